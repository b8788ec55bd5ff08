"""Run one page of the documentation in the working directory: ``run_page.py PAGE.md``. Not a test itself."""

import contextlib
import doctest
import io
import subprocess
import sys
from pathlib import Path

from documents import NOT_RUN, blocks, commands, missing

CHECK = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def shown(command: list[str]) -> str:
    """What a command prints, with an exit code of 0 or, of a verdict, 3."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def expanded(words: list[str]) -> list[str]:
    """As a shell does it: names with a star are files."""
    return [
        name
        for word in words
        for name in (sorted(map(str, Path().glob(word))) if "*" in word and "=" not in word else [word])
    ]


def main(page: str) -> None:
    """Run it, and report the first block that fails by its line."""
    names: dict[str, object] = {"__name__": "page"}
    last, skipped = "", False
    for block in blocks(Path(page).read_text()):
        where = f"{page}:{block.line}"
        if block.is_output:
            if not skipped and not CHECK.check_output(block.text, last, FLAGS):
                raise SystemExit(f"{where}: expected\n{block.text}got\n{last}")
        elif block.language == "python":
            lacking = missing(block.text)
            skipped = bool(lacking)
            if skipped:
                say(f"skipped {where}: {', '.join(lacking)} missing")
                continue
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                exec(compile("\n" * block.line + block.text, page, "exec"), names)
            last = told.getvalue()
        else:
            last, skipped = "", False
            for words in commands(block):
                joined = " ".join(words)
                if words[0] == "zanalysis" and not joined.startswith(tuple(NOT_RUN)):
                    say(f"run {where}: {joined}")
                    last += shown(expanded(words))
    say("done")


if __name__ == "__main__":
    main(sys.argv[1])

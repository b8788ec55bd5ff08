"""Mutated checkpoints through the command line, one after the other in this process: `fuzz_analyze.py FOLDER`.

Every tenth file goes through the parsing of the arguments too, which takes longer than all the rest and has
nothing to do with the file. A process of its own, because it limits its memory, and because a signal would end
it. It writes one line of JSON for each file: name, exit code, messages, results, seconds; and, last, the peak
memory in bytes.
"""

import contextlib
import io
import json
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import typer

from zanalysis import cli, cli_offline

HANG = 20
ALLOWANCE = 1 << 30
APP = cli.app


def analyzed(path, parsing=True):
    """Call the command as the shell would; return its exit code and what it said."""
    said, results = io.StringIO(), io.StringIO()
    metrics = "rank,stable_rank,support"
    cli.app = APP if parsing else lambda: cli_offline.analyze([Path(path)], metrics, quiet=True)
    sys.argv = ["zanalysis", "analyze", str(path), "--quiet", "--metrics", metrics]
    with contextlib.redirect_stdout(results), contextlib.redirect_stderr(said):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except typer.Exit as end:
            code = end.exit_code
        except BaseException:
            code, _ = "raised", traceback.print_exc()
    return code, said.getvalue(), results.getvalue()


def tell(line):
    """Write a line that is there also if this process ends with the next."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(folder):
    """Analyze every file of the folder."""
    import torch

    import zanalysis.sweep  # noqa: F401

    torch.set_num_threads(1)
    analyzed(sorted(Path(folder).iterdir())[0])  # what is loaded lazily belongs to none of the files
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ALLOWANCE, size + ALLOWANCE))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process, also inside C code
    for i, path in enumerate(sorted(Path(folder).iterdir())):
        signal.alarm(HANG)
        began = time.perf_counter()
        code, said, results = analyzed(path, parsing=i % 10 == 0)
        signal.alarm(0)
        took = time.perf_counter() - began
        tell(json.dumps([path.name, code, said, results, took]))
    tell(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


if __name__ == "__main__":
    main(sys.argv[1])

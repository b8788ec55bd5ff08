"""README, CONTRIBUTING and the pages of docs/, taken apart into blocks, and what is needed to run them.

A page is run as a reader would: its Python blocks one after the other with one set of names, its commands in
a shell, in one folder. A block ``text`` behind the comment ``<!-- output -->`` is what the block before prints.
"""

import ast
import re
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.as_posix(),
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

# Seen in shell blocks, and not run by the tests: what it needs, or what it would do.
NOT_RUN = {
    "zanalysis verify theorem1 --data mnist": "a data set that is not bundled, and minutes",
    "zanalysis verify theorem1 --network notebook": "minutes",
    "zanalysis analyze checkpoints/ --workers": "Dask workers of its own; see test_sweep_dask",
    "zanalysis experiment table-3": "minutes; see test_experiments",
    "zanalysis experiment table-2 --scale paper": "the authors' data, and a GPU",
    "zanalysis experiment zero-weights": "minutes",
    "zanalysis figure 5 runs/figure-6-small": "an experiment of minutes; see test_cli_figure",
    "zanalysis watch run.h5 --web": "serves until it is told to stop",
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, its first line in the page, and what the one before prints."""

    language: str
    text: str
    line: int
    is_output: bool


def blocks(text: str) -> list[Block]:
    tokens = MarkdownIt("commonmark").parse(text)
    found, announced = [], False
    for token in tokens:
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(token.info.strip(), token.content, token.map[0] + 1, announced))
        announced = token.type == "html_block" and token.content.strip() == "<!-- output -->"
    return found


def missing(source: str) -> list[str]:
    """Which packages that only extras bring are imported by a block, and not here."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(_BRINGS.get(node.module, node.module.split(".")[0]))
    return sorted(name for name in names & set(OPTIONAL) if find_spec(name) is None)


_BRINGS = {
    "hooks.integrations.lightning": "lightning",
    "hooks.integrations.huggingface": "transformers",
    "hooks.integrations.tensorboard": "tensorboard",
}
OPTIONAL = (
    *("accelerate", "lightning", "mlflow", "pyarrow", "sklearn", "tensorboard", "transformers", "wandb"),
    *("distributed", "jinja2", "plotly", "textual", "xarray"),
)


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, as lists of words; lines that a backslash goes on with are one."""
    if block.language not in ("", "bash", "sh", "console"):
        return []
    lines = [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]
    starts = ("zanalysis ", "make ", "pip ", "python ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


def links(text: str) -> list[str]:
    """Targets of links and pictures of a page that lie in this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [target for target in found if not re.match(r"[a-z]+:", target)]

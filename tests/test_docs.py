"""The documentation: what it names exists, its blocks run, the site builds and has no dead link."""

import html.parser
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from documents import NAMES, NOT_RUN, ROOT, blocks, commands, links, missing

import hooks
import zanalysis as za
from zanalysis.analyzers.metrics import KNOWN
from zanalysis.analyzers.statuses import STATUSES
from zanalysis.cli import app

pytest.importorskip("markdown_it")
TEXTS = {name: (ROOT / name).read_text() for name in NAMES}
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.rst")))
COMMANDS = [
    (name, words) for name, text in TEXTS.items() for block in blocks(text) for words in commands(block)
]


def test_there_are_pages_to_look_at():
    assert {"README.md", "CONTRIBUTING.md", "docs/quickstart.md", "docs/numbers.md"} <= set(NAMES)
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("name", NAMES)
def test_what_is_imported_exists(name):
    for block in blocks(TEXTS[name]):
        if block.language == "python" and not missing(block.text):
            for line in re.findall(r"^from ((?:hooks|zanalysis)[\w.]*) import ([\w, ]+)", block.text, re.M):
                module = importlib.import_module(line[0])
                assert all(hasattr(module, one.strip()) for one in line[1].split(",")), line
            for one in re.findall(r"\bza\.([a-zA-Z_0-9]+)", block.text):
                assert one in za.__all__ or one in ("figures", "initializers"), one


@pytest.mark.parametrize(
    "words",
    [words for _, words in COMMANDS if words[0] == "zanalysis"],
    ids=lambda words: " ".join(words)[:60],
)
def test_every_command_is_one(words):
    """Read by the parser of the command line itself, and not carried out."""
    command, given = typer.main.get_command(app), words[1:]
    context = command.make_context("zanalysis", list(given), resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = (
            [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        )
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)


def test_make_targets_and_extras_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    section = re.search(r"\[options.extras_require\]\n(.*?)\n\n", (ROOT / "setup.cfg").read_text(), re.S)
    extras = set(re.findall(r"^([a-z-]+) =", section[1], re.M))
    for name, words in COMMANDS:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, (name, words)
    for name, text in TEXTS.items():
        for named in re.findall(r"pip install[^\n`]*?\[([a-z,-]+)\]", text):
            assert set(named.split(",")) <= extras, (name, named)


def test_what_is_not_run_is_still_there():
    joined = [" ".join(words) for _, words in COMMANDS]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in joined), start


@pytest.mark.parametrize("name", NAMES)
def test_links_within_the_repository_lead_somewhere(name):
    here = (ROOT / name).parent
    for target in links(TEXTS[name]):
        path, _, anchor = target.partition("#")
        found = [here / path, here / f"{path}.md", here / f"{path}.rst"] if path else [ROOT / name]
        found = [one for one in found if one.exists()]
        assert found, target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found[0].read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, target


def test_every_public_name_is_in_the_reference():
    named = set(re.findall(r"auto(?:function|class):: ([\w.]+)", REFERENCE))
    packages = set(re.findall(r"\.\. public:: ([\w.]+)", REFERENCE))
    wanted = {f"zanalysis.{name}" for name in za.__all__ if not name.startswith("__")}
    wanted |= {f"hooks.{name}" for name in hooks.__all__}
    covered = named | packages | {"zanalysis.ZAnalysisError"}
    assert wanted <= covered, sorted(wanted - covered)
    assert {"zanalysis.experiments.data", "zanalysis.errors"} <= packages


def test_every_metric_status_and_command_is_explained():
    numbers = TEXTS["docs/numbers.md"]
    assert [name for name in KNOWN if f"`{name}`" not in numbers and f'`"{name}"`' not in numbers] == []
    assert [word for word in STATUSES if f"| `{word}` |" not in numbers] == []
    shown = {" ".join(words) for _, words in COMMANDS}
    for command in _leaves("zanalysis", typer.main.get_command(app)):
        assert any(line.startswith(command) for line in shown), command


def _leaves(path, command):
    inner = getattr(command, "commands", None)
    return [path] if inner is None else [x for name in inner for x in _leaves(f"{path} {name}", inner[name])]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_page_runs_as_written(name, tmp_path):
    """In a process of its own, so that what is imported and warned of is what a reader sees."""
    _prepare(name, tmp_path)
    tools = tmp_path / ".tools"
    tools.mkdir()
    script = tools / "zanalysis"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m zanalysis.cli "$@"\n')
    script.chmod(0o755)
    paths = [str(Path(za.__file__).parent.parent), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_page.py"), str(ROOT / name)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("done\n")


def _prepare(name, folder):
    # What the README's commands take for granted: checkpoints of the reader's own, and a module with a model.
    if name != "README.md":
        return
    import torch
    from safetensors.torch import save_file
    from torch import nn

    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 3))
    (folder / "checkpoints").mkdir()
    for file in ("kaiming.pt", "zero.pt", "ckpt.pt", "checkpoints/step-1.pt", "checkpoints/step-2.pt"):
        torch.save(model.state_dict(), folder / file)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "module.py").write_text(
        "from torch import nn, ones\n\n\ndef build():\n"
        "    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 3))\n"
        "    return model, lambda model: float(model(ones(2, 2, 4, 4)).sum())\n"
    )


class Page(html.parser.HTMLParser):
    """The links and the anchors of a page of HTML, and what it loads from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.loaded = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with warnings as errors."""
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("_build"))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, str(folder / "docs"), str(folder / "html")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.mark.slow
def test_the_site_has_no_dead_link_and_loads_nothing_from_elsewhere(site):
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 15
    checked = 0
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            if re.match(r"[a-z]+:", target):
                assert target in page.links, f"{path.name} loads {target}"
                continue
            file, _, anchor = target.partition("#")
            other = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert other.exists(), f"{path.name}: {target}"
            if anchor and other in pages:
                assert anchor in pages[other].anchors, f"{path.name}: {target}"
            checked += 1
    assert checked > 500


@pytest.mark.slow
def test_the_site_documents_what_is_public(site):
    reference = "\n".join(path.read_text() for path in (site / "reference").glob("*.html"))
    for module in (za, hooks):
        for name in module.__all__:
            if not name.startswith("__") and not inspect.ismodule(getattr(module, name)):
                assert re.search(rf'id="[\w.]*\.{name}"', reference), name
    specification = (site / "run-file.html").read_text()
    from zanalysis import runfile

    for field in set(re.findall(r"``([\w/]+)``", runfile.__doc__)):
        assert field in specification, field

"""The walls of the house, read off the syntax tree."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "zanalysis").rglob("*.py"), *(ROOT / "hooks").rglob("*.py")])
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_there_are_modules_to_look_at():
    assert {"hooks/tracker.py", "zanalysis/analyzers/spectrum.py"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_library_stays_in_its_room(name):
    used = packages(ROOT / name)
    if not name.startswith("zanalysis/runfile/"):
        assert "h5py" not in used
    if not name.startswith(("zanalysis/figures/", "zanalysis/reporting/")):
        assert not used & {"matplotlib", "seaborn", "plotly", "jinja2"}
    if name != "zanalysis/watching/terminal.py":
        assert not used & {"textual", "textual_plot"}
    if name != "zanalysis/watching/web.py":
        assert not used & {"bokeh", "tornado"}
    if name != "zanalysis/labelled.py" and name != "zanalysis/runfile/reader.py":  # which names the type
        assert "xarray" not in used
    if name.startswith("zanalysis/") and not name.startswith(("zanalysis/experiments/", "zanalysis/cli.py")):
        assert "hooks" not in used
    if not name.startswith("hooks/integrations/"):
        frameworks = {
            "accelerate",
            "lightning",
            "mlflow",
            "pytorch_lightning",
            "tensorboard",
            "transformers",
            "wandb",
        }
        assert not used & frameworks
        assert name == "zanalysis/runfile/tensorboard.py" or "torch.utils.tensorboard" not in imports(
            ROOT / name
        )
    if name.startswith("zanalysis/analyzers/"):
        assert not used & {"pandas", "h5py", "pathlib", "os", "io"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hooks/")])
def test_hooks_see_only_three_rooms(name):
    ours = {i for i in imports(ROOT / name) if i.startswith("zanalysis.")}
    rooms = ("zanalysis.runfile", "zanalysis.analyzers", "zanalysis.errors", "zanalysis._version")
    assert all(i.startswith(rooms) for i in ours)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_command_line_prints(name):
    tree = ast.parse((ROOT / name).read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    assert not calls or name == "zanalysis/cli.py"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_hold_no_logic(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            assert not [
                n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)
            ]

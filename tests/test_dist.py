"""What `make dist` makes: what is in it, and that it works where there is nothing else of the project."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import zanalysis as za

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
KEPT = ("zanalysis", "hooks", "docs", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
KEPT += ("CHANGELOG.md", "CITATION.cff", "constraints.txt", "tests", "notebooks", "benchmarks")
STRAY = re.compile(r"(^|/)(tests?|notebooks|benchmarks|docs|\.ci)/|\.ipynb$|test_\w+\.py$|__pycache__")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive, built from a copy of the tree."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in KEPT:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        elif path.exists():
            shutil.copy(path, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    said = done.stdout + done.stderr
    assert not re.search(r"deprecat|SetuptoolsWarning", said, re.IGNORECASE), said[-3000:]
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    info = f"zanalysis-{za.__version__}.dist-info/"
    assert all(name.startswith(("zanalysis/", "hooks/", info)) for name in names)
    assert [name for name in names if STRAY.search(name)] == []
    sources = {
        str(path.relative_to(ROOT)) for package in ("zanalysis", "hooks") for path in (ROOT / package).rglob("*.py")
    }  # fmt: skip
    assert {name for name in names if name.endswith(".py")} == sources
    for data in ("zanalysis/py.typed", "hooks/py.typed", "zanalysis/reporting/templates/report.html.j2"):
        assert data in names
    assert any(name.endswith("LICENSE") for name in names)


def test_the_source_archive_holds_no_tests_and_no_notebooks(built):
    with tarfile.open(built[1]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert [name for name in names if STRAY.search(name)] == []
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "hooks/tracker.py"} <= set(
        names
    )


@pytest.fixture(scope="module")
def stranger(built, tmp_path_factory):
    """An environment with the wheel and nothing else of the project; torch and the like are the surrounding ones."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index",
         str(built[0])],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (site / "surrounding.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    return folder


def _run(stranger, command, cwd):
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    clean["PATH"] = f"{stranger / 'env' / 'bin'}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=900, check=False
    )


def test_a_stranger_walks_the_pages_with_the_wheel_alone(stranger, tmp_path):
    """Quick start, attach, checkpoints, report: each in a folder of its own, by the installed command."""
    where = _run(stranger, ["python", "-c", "import zanalysis; print(zanalysis.__file__)"], tmp_path)
    assert str(stranger) in where.stdout
    for name in ("documents.py", "run_page.py"):
        shutil.copy(ROOT / "tests" / name, stranger / name)
    pages = stranger / "pages"
    pages.mkdir(exist_ok=True)
    for page in ("quickstart", "attach", "checkpoints", "looking"):
        shutil.copy(ROOT / "docs" / f"{page}.md", pages)
        folder = tmp_path / page
        folder.mkdir()
        done = _run(stranger, ["python", str(stranger / "run_page.py"), str(pages / f"{page}.md")], folder)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (tmp_path / "quickstart" / "report.html").stat().st_size > 10_000


def test_part_of_the_suite_passes_against_the_wheel(stranger, tmp_path):
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    chosen = [
        "test_contract.py",
        "test_spectrum.py",
        "test_tracker.py",
        "test_runfile.py",
        "test_initializers.py",
    ]
    done = _run(
        stranger,
        ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in chosen)],
        tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\d{2,} passed", done.stdout)

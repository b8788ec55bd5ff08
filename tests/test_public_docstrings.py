"""What a public docstring has to say: shapes where there are tensors, what is raised, and whence a formula."""

import ast
import functools
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import hooks
import zanalysis as za
from zanalysis import figures, initializers

ROOT = Path(__file__).parent.parent
TENSORS = re.compile(r"\b(?:Tensor|ndarray|NDArray)\b")
SHAPE = re.compile(r"`\[[^\]`]*\]`|\bshape\b|\bscalar\b|0-d|one number|`[a-zA-Z_]+` \[", re.IGNORECASE)
SOURCE = re.compile(
    r"\b(?:19|20)\d\d\b|arXiv|[Pp]reprint|numpy|ZerO|[Pp]aper|"
    r"[Tt]heorem|Figure|Algorithm|Definition|Lemma|Table \d|Shannon|`\w+`'s"
)
# Definitions that every textbook has; they need no source, but must be written out.
TEXTBOOK = {
    "zanalysis.spectral_norm", "zanalysis.frobenius_norm", "zanalysis.nuclear_norm", "zanalysis.condition_number",
    "zanalysis.singular_values",
}  # fmt: skip
METRICS = (
    "rank", "stable_rank", "effective_rank", "support", "ActivationSpan", "jacobian_singular_values", "tucker2",
    "tucker_ranks", "distinct_rows",
)  # fmt: skip
RAISED = {"InputError", "RunFileError", "CheckpointError", "NotBuiltYetError"}


def offered(module):
    """The public functions and classes of a module, and the public methods of the classes, by name."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value) or not callable(value) or not hasattr(value, "__module__"):
            continue
        if not str(value.__module__).startswith(("hooks", "zanalysis")):
            continue
        yield f"{module.__name__}.{name}", value
        if inspect.isclass(value) and not issubclass(value, Exception):
            for inner, method in vars(value).items():
                if not inner.startswith("_") and inner != "forward" and inspect.isfunction(method):
                    yield f"{module.__name__}.{name}.{inner}", method


def of_the_reference():
    """What the pages of the reference document by a directive for a whole module."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.rst")):
        for name in re.findall(r"^\.\. public:: ([\w.]+)", page.read_text(), re.M):
            module = importlib.import_module(name)
            if hasattr(module, "__all__"):
                yield from offered(module)


PUBLIC = {}
for _name, _value in [
    *(pair for module in (za, hooks, initializers, figures) for pair in offered(module)),
    *of_the_reference(),
]:
    if all(_value is not known for known in PUBLIC.values()):
        PUBLIC[_name] = _value


def doc(value):
    words = inspect.getdoc(value) or ""
    if inspect.isclass(value) and "__init__" in vars(value):
        words += "\n" + (inspect.getdoc(value.__init__) or "")
    return words


def called(value):
    return value.__init__ if inspect.isclass(value) else value


@functools.cache
def tree(function):
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def raises(function, depth):
    """Whether our errors may come of a call: raised in it, or in functions of ours that it calls, to a depth."""
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return False
    try:
        body = tree(function)
    except (OSError, TypeError):
        return False
    caught = any(isinstance(node, ast.ExceptHandler) for node in ast.walk(body))
    for node in ast.walk(body):
        if not isinstance(node, ast.Raise | ast.Call):
            continue
        if isinstance(node, ast.Raise):
            if isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") in RAISED:
                return True
        elif depth and not caught and isinstance(node.func, ast.Name):
            target = called(function.__globals__.get(node.func.id))
            ours = str(getattr(target, "__module__", "")).startswith(("hooks", "zanalysis"))
            if ours and inspect.isfunction(target) and raises(target, depth - 1):
                return True
    return False


def test_there_is_something_to_look_at():
    assert len(PUBLIC) > 60
    assert raises(za.rank, 3)
    assert not raises(hooks.tracker.RankTracker.table, 0)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_in_its_first_line_what_it_does(name):
    first = doc(PUBLIC[name]).partition("\n")[0]
    assert len(first) > 10
    assert first.endswith((".", "?", ":"))


@pytest.mark.parametrize("name", PUBLIC)
def test_tensors_have_shapes(name):
    function = called(PUBLIC[name])
    if not inspect.isfunction(inspect.unwrap(function)):
        return
    annotations = {
        key: str(kind) for key, kind in getattr(inspect.unwrap(function), "__annotations__", {}).items()
    }
    if any(TENSORS.search(kind) and "Callable" not in kind for kind in annotations.values()):
        assert SHAPE.search(doc(PUBLIC[name])), annotations


@pytest.mark.parametrize("name", PUBLIC)
def test_what_it_raises_is_said(name):
    if raises(called(PUBLIC[name]), 2):
        assert "Raises:" in doc(PUBLIC[name])


@pytest.mark.parametrize("name", [f"zanalysis.{one}" for one in METRICS])
def test_a_formula_has_a_source(name):
    assert SOURCE.search(doc(PUBLIC[name]))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.startswith("zanalysis.initializers.")])
def test_an_initialization_has_a_source(name):
    if inspect.isfunction(PUBLIC[name]) and name.endswith("_"):
        assert SOURCE.search(doc(PUBLIC[name]) + (inspect.getmodule(PUBLIC[name]).__doc__ or ""))


@pytest.mark.parametrize("name", sorted(TEXTBOOK))
def test_a_textbook_number_is_written_out(name):
    assert re.search(r"σ|singular values?|entries", doc(PUBLIC[name]))

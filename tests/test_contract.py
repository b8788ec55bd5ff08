"""The public names of the contract, and what importing them costs."""

import inspect
import subprocess
import sys

import pytest

import hooks
import zanalysis as za

HOOKS = ["RankTracker", "Recorder", "every", "logspaced", "at", "alerts"]
TRACKER = [
    "model", "optimizer", "path", "schedule", "layers", "tensors", "metrics", "reference", "tolerance", "view",
    "probe", "mode", "start", "flush_seconds", "on_full", "budget", "alerts", "on_record", "on_alert",
]  # fmt: skip
RECORDER = [
    "model", "optimizer", "path", "schedule", "layers", "tensors", "dtype", "rows", "compression", "mode", "start",
    "flush_seconds", "on_full",
]  # fmt: skip
PARAMETERS = {
    "rank": ["W", "tolerance", "reference", "view"],
    "stable_rank": ["W", "reference", "view"],
    "jacobian_singular_values": ["model", "x", "k", "source", "target"],
    "pruned": ["model", "sparsity", "scope"],
    "pruning_curve": ["model", "evaluate", "sparsities", "scope"],
    "tucker2": ["W", "ranks", "refine"],
    "tucker2_error_surface": ["W"],
    "activation_span": ["model", "data", "layers"],
    "verify_glrl": ["run", "layers", "reference"],
    "report": ["run", "out", "overwrite"],
    "analyze": ["paths", "metrics", "reference", "tolerance", "view", "layers"],
    "compare": ["a", "b"],
    "curves": ["paths", "model", "curves", "sparsities"],
}


@pytest.mark.parametrize("name", [name for name in za.__all__ if name != "__version__"])
def test_every_public_name_resolves_and_is_documented(name):
    assert inspect.getdoc(getattr(za, name))


@pytest.mark.parametrize("name", HOOKS)
def test_every_name_of_hooks_resolves_and_is_documented(name):
    assert inspect.getdoc(getattr(hooks, name))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'rnak'"):
        _ = za.rnak


def test_lazy_names_are_those_that_type_checkers_see():
    assert set(za.__all__) - {"__version__"} == set(za._HOME) | set(za._MODULES)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_signatures_are_those_of_the_contract(name):
    given = list(inspect.signature(getattr(za, name)).parameters)
    assert [p for p in given if p in PARAMETERS[name]] == PARAMETERS[name]


def test_tracker_takes_what_the_contract_says():
    signature = inspect.signature(hooks.RankTracker)
    assert list(signature.parameters)[: len(TRACKER)] == TRACKER
    assert signature.parameters["metrics"].default == ("rank", "stable_rank")


def test_recorder_takes_what_the_contract_says():
    signature = inspect.signature(hooks.Recorder)
    assert list(signature.parameters)[: len(RECORDER)] == RECORDER
    assert signature.parameters["schedule"].default is inspect.Parameter.empty


def test_attaching_loads_no_plotting_and_no_pandas():
    code = (
        "import sys, hooks; print(sorted({'matplotlib', 'pandas', 'plotly', 'seaborn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_attaching_loads_no_framework():
    names = "accelerate lightning mlflow pytorch_lightning tensorboard transformers wandb"
    code = f"import sys, hooks, hooks.integrations; print(sorted(set('{names}'.split()) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_module_hides_a_public_name():
    # Importing a module of the name of a function would put the module in the function's place.
    code = "import pkgutil, zanalysis as za; print({m.name for m in pkgutil.iter_modules(za.__path__)} & set(za._HOME))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"

"""The examples in the docstrings give the values they state."""

import doctest
import importlib
import pkgutil

import pytest

import hooks
import zanalysis

FRAMEWORKS = {"hooks.integrations.huggingface": "transformers", "hooks.integrations.lightning": "lightning"}
"""What a module needs that need not be there."""

MODULES = [
    info.name
    for package in (hooks, zanalysis)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if info.name not in FRAMEWORKS
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.filterwarnings("ignore::Warning")
def test_examples_of_integrations(name):
    pytest.importorskip(FRAMEWORKS[name])
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    count = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert count > 30

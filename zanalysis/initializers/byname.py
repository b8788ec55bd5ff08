"""Every initialization by its name."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Generator, nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.initializers.identities import hadamard_, partial_identity_, perturbed_identity_
from zanalysis.initializers.report import Report
from zanalysis.initializers.residual import constnet_, fixup_, rezero_, skipinit_
from zanalysis.initializers.standard import kaiming_, xavier_
from zanalysis.initializers.zero import zero_
from zanalysis.initializers.zeros import all_constant_, all_zero_, zeros_

__all__ = ["INITIALIZATIONS", "describe", "initialize"]

_BY_NAME: dict[str, Callable[..., Report]] = {
    "kaiming": kaiming_,
    "xavier": xavier_,
    "partial-identity": partial_identity_,
    "hadamard": hadamard_,
    "zero": zero_,
    "perturbed-identity": perturbed_identity_,
    "rezero": rezero_,
    "fixup": fixup_,
    "skipinit": skipinit_,
    "constnet": constnet_,
    "constnet-noise": partial(constnet_, noise=True),
    "zeros": zeros_,
    "all-constant": all_constant_,
    "all-zero": all_zero_,
}

INITIALIZATIONS: tuple[str, ...] = tuple(_BY_NAME)


def initialize(model: nn.Module, name: str, *, generator: Generator | None = None, **options: Any) -> Report:
    """Initialize a model by the name of an initialization.

    Args:
        model: any module.
        name: one of `INITIALIZATIONS`.
        generator: source of the randomness, where there is any; the deterministic ones ignore it.
        options: those of the function of that name, such as `last` of ``"zero"``.

    Returns:
        A report: what each parameter got, what was assumed, what was left alone.

    Raises:
        InputError: if the name or an option is unknown, an option is missing, or the initialization refuses the model.

    Example:
        >>> report = initialize(nn.Linear(3, 3), "zero")
        >>> print(report)
        ZerO: 2 of 2 parameters set
          identity     1  weight
          0            1  bias
          no residual branch was found; where there are some, name the layers that end them with last=…
    """
    function = _function(name)
    known = _options(function)
    for option in options:
        if option not in known or option == "generator":
            raise InputError(f"{name} has no option {option!r}; {_those(known, option)}")
    missing = [o for o, p in known.items() if p.default is inspect.Parameter.empty and o not in options]
    if missing:
        raise InputError(f"{name} needs the option {missing[0]!r}, and none was given.")
    if "generator" in known:
        options["generator"] = generator
    return function(model, **options)


def describe(name: str) -> tuple[str, dict[str, str]]:
    """Say what an initialization is, and its options.

    Args:
        name: one of `INITIALIZATIONS`.

    Returns:
        The first line of its documentation, and its options with their defaults in words.
    """
    function = _function(name)
    told: Any = function.func if isinstance(function, partial) else function
    options = {
        option: "required" if parameter.default is inspect.Parameter.empty else f"{parameter.default!r}"
        for option, parameter in _options(function).items()
        if option != "generator"
    }
    return (inspect.getdoc(told) or "").splitlines()[0], options


def _function(name: str) -> Callable[..., Report]:
    if name not in _BY_NAME:
        raise InputError(f"unknown initialization {name!r}; {did_you_mean(str(name), INITIALIZATIONS)}")
    return _BY_NAME[name]


def _options(function: Callable[..., Report]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return dict(list(parameters.items())[1:])


def _those(known: dict[str, inspect.Parameter], option: str) -> str:
    options = [known_option for known_option in known if known_option != "generator"]
    return did_you_mean(option, options) if options else "it has none."

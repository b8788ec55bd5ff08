"""The standard random initializations, of whole models: Kaiming (He) and Xavier (Glorot)."""

from collections.abc import Callable
from typing import Literal

from torch import Generator, Tensor, nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.initializers.attention import Attention
from zanalysis.initializers.matrices import finite
from zanalysis.initializers.parts import Part
from zanalysis.initializers.plan import Rule, carry_out, drawn, ordinary, survey
from zanalysis.initializers.report import Report

__all__ = ["Distribution", "Mode", "kaiming_", "kaiming_rule", "table_rule", "xavier_"]

Mode = Literal["fan_in", "fan_out"]
Distribution = Literal["normal", "uniform"]


def kaiming_(
    model: nn.Module,
    mode: Mode = "fan_in",
    distribution: Distribution = "normal",
    *,
    attention: Attention = None,
    generator: Generator | None = None,
) -> Report:
    """Initialize a model by He's rule for ReLU networks: every weight of variance 2 / fan.

    `N(0, 2/fan)`, or uniform in `±√(6/fan)`; the fan of a kernel is its inputs (or outputs) times its taps, of a
    grouped one those of a group, of attention those of each of its matrices. Biases 0, normalization scale 1 and
    shift 0, scalar multipliers 1, embeddings N(0, 1) as in PyTorch (the fan's rule where an output layer shares it).

    Source: He et al., ICCV 2015 (arXiv 1502.01852), equations 10 and 14.

    Args:
        model: any module.
        mode: ``"fan_in"`` keeps the variance in the forward pass, ``"fan_out"`` in the backward pass.
        distribution: ``"normal"`` or ``"uniform"``.
        attention: roles of linear layers, see `find_attention`; by name if None.
        generator: source of the randomness; the global one if None.

    Returns:
        A report.

    Raises:
        InputError: if an option is not what was expected.

    Example:
        >>> kaiming_(nn.Linear(8, 4)).rules()
        {'weight': 'N(0, 2/fan_in)', 'bias': '0'}
    """
    _one_of("mode", mode, ("fan_in", "fan_out"))
    _one_of("distribution", distribution, ("normal", "uniform"))
    parts, assumed = survey(model, attention)

    def rule(part: Part) -> Rule | None:
        if part.kind == "embedding":
            return table_rule(part, generator)
        return (
            kaiming_rule(part, mode, generator, distribution=distribution) if part.weight else ordinary(part)
        )

    return carry_out(model, "Kaiming", parts, rule, assumed)


def xavier_(
    model: nn.Module,
    gain: float = 1.0,
    distribution: Distribution = "normal",
    *,
    attention: Attention = None,
    generator: Generator | None = None,
) -> Report:
    """Initialize a model by Glorot's rule: every weight of variance `gain² · 2 / (fan_in + fan_out)`.

    Normal, or uniform in `±gain·√(6/(fan_in + fan_out))`; fans, biases, normalization and embeddings as for `kaiming_`.

    Source: Glorot & Bengio, AISTATS 2010, equations 12 and 16.

    Args:
        model: any module.
        gain: a factor, 1 for linear and tanh, √2 for ReLU.
        distribution: ``"normal"`` or ``"uniform"``.
        attention: roles of linear layers, see `find_attention`; by name if None.
        generator: source of the randomness; the global one if None.

    Returns:
        A report.

    Raises:
        InputError: if an option is not what was expected.

    Example:
        >>> xavier_(nn.Linear(8, 4), gain=2).rules()["weight"]
        'N(0, 2²·2/(fan_in + fan_out))'
    """
    gain = finite(gain, "gain")
    _one_of("distribution", distribution, ("normal", "uniform"))
    parts, assumed = survey(model, attention)
    factor = "" if gain == 1 else f"{gain:g}²·"

    def rule(part: Part) -> Rule | None:
        if part.kind == "embedding":
            return table_rule(part, generator)
        if not part.weight:
            return ordinary(part)
        if distribution == "normal":
            text = f"N(0, {factor}2/(fan_in + fan_out))"
            return drawn(
                part, text, _quiet(nn.init.xavier_normal_, gain=gain, generator=generator), generator
            )
        text = f"uniform, variance {factor}2/(fan_in + fan_out)"
        return drawn(part, text, _quiet(nn.init.xavier_uniform_, gain=gain, generator=generator), generator)

    return carry_out(model, "Xavier", parts, rule, assumed)


def kaiming_rule(
    part: Part,
    mode: Mode,
    generator: Generator | None,
    *,
    distribution: Distribution = "normal",
    factor: float = 1.0,
    factor_text: str = "",
) -> Rule:
    """Return He's rule for one weight.

    Args:
        part: the weight.
        mode: which fan.
        generator: source of the randomness.
        distribution: ``"normal"`` or ``"uniform"``.
        factor: of the standard deviation.
        factor_text: of that factor, in words.

    Returns:
        The rule.
    """
    fill = nn.init.kaiming_normal_ if distribution == "normal" else nn.init.kaiming_uniform_

    def draw(values: Tensor) -> None:
        if values.numel():
            fill(values, mode=mode, nonlinearity="relu", generator=generator).mul_(factor)

    text = f"N(0, 2/{mode})" if distribution == "normal" else f"uniform, variance 2/{mode}"
    return drawn(part, factor_text + text, draw, generator)


def table_rule(part: Part, generator: Generator | None) -> Rule:
    """Return the rule of an embedding, N(0, 1) as in PyTorch.

    Args:
        part: the embedding.
        generator: source of the randomness.

    Returns:
        The rule.
    """
    return drawn(part, "N(0, 1)", lambda values: values.normal_(generator=generator), generator)


def _quiet(fill: Callable[..., Tensor], **settings: object) -> Callable[[Tensor], None]:
    # PyTorch warns of an empty tensor, which has nothing to fill.
    def draw(values: Tensor) -> None:
        if values.numel():
            fill(values, **settings)

    return draw


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {did_you_mean(str(value), known)}")

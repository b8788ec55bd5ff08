"""Plan an initialization first, then carry it out: what is refused is refused before a single number has changed."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from zanalysis.errors import InputError
from zanalysis.initializers import noise
from zanalysis.initializers.attention import Attention, find_attention
from zanalysis.initializers.parts import Part, parts_of
from zanalysis.initializers.report import Entry, Report, named

__all__ = ["Filling", "Rule", "blockwise", "carry_out", "constant", "drawn", "ordinary", "remarks", "survey"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ORDINARY = {
    "bias": 0.0,
    "scale": 1.0,
    "shift": 0.0,
    "multiplier": 1.0,
    "scalar-bias": 0.0,
    "prelu": 0.25,
}


@dataclass(frozen=True)
class Rule:
    """What one parameter is set to.

    Attributes:
        text: in words.
        fill: sets it.
    """

    text: str
    fill: Callable[[], object]


Filling = Callable[[Part], Rule | None]


def survey(model: nn.Module, attention: Attention = None) -> tuple[list[Part], list[str]]:
    """List the parameters of a model, and what there is to say of them.

    Args:
        model: any module.
        attention: see `find_attention`.

    Returns:
        The parts, and sentences.
    """
    roles, assumed = find_attention(model, attention)
    parts = parts_of(model, roles)
    return parts, assumed + remarks(parts)


def remarks(parts: Iterable[Part]) -> list[str]:
    """Say which parameters are tied, and which are frozen.

    Args:
        parts: those that are set.

    Returns:
        Sentences.
    """
    parts, assumed = list(parts), []
    for part in parts:
        if part.also:
            assumed.append(f"{part.name} is one parameter with {named(part.also)}; it was set once.")
    frozen = [part.name for part in parts if not part.parameter.requires_grad and part.kind != "unknown"]
    if frozen:
        assumed.append(f"set although frozen (requires_grad is False): {named(frozen)}.")
    return assumed


def constant(part: Part, value: float) -> Rule:
    """Return the rule that every entry is one number.

    Args:
        part: what is set.
        value: to what.

    Returns:
        The rule.
    """
    return Rule(f"{value:g}", lambda: part.parameter.detach().fill_(value))


def ordinary(part: Part) -> Rule | None:
    """Return the rule of what is no weight: biases 0, normalization and multipliers 1, PReLU 0.25 as PyTorch has it.

    Args:
        part: any parameter.

    Returns:
        The rule; None for weights and where none is known.
    """
    return constant(part, _ORDINARY[part.kind]) if part.kind in _ORDINARY else None


def blockwise(part: Part, text: str, fill: Callable[[Tensor], object]) -> Rule:
    """Return the rule that each block of a weight is filled by one function.

    Args:
        part: a weight.
        text: the rule in words.
        fill: fills one block `[P, Q, *taps]` in place.

    Returns:
        The rule.
    """

    def all_blocks() -> None:
        for block in part.blocks():
            fill(block)
        _clear_padding(part)

    return Rule(text, all_blocks)


def drawn(part: Part, text: str, draw: Callable[[Tensor], object], generator: Generator | None) -> Rule:
    """Return the rule that each block is drawn at random, on the generator's device.

    Args:
        part: a weight.
        text: the rule in words.
        draw: fills a tensor of the block's shape and dtype in place.
        generator: whose device; the block's own if None.

    Returns:
        The rule.
    """

    def fill(block: Tensor) -> None:
        device = block.device if generator is None else generator.device
        values = torch.empty(block.shape, dtype=block.dtype, device=device)
        draw(values)
        block.copy_(values)

    return blockwise(part, text, fill)


def carry_out(
    model: nn.Module, title: str, parts: Iterable[Part], rule: Filling, assumed: Iterable[str]
) -> Report:
    """Set every parameter by its rule.

    Args:
        model: the model.
        title: of the initialization.
        parts: its parameters.
        rule: of each; None where none is known.
        assumed: sentences for the report.

    Returns:
        The report.

    Raises:
        InputError: if a rule cannot be carried out, with the parameter's name; nothing has changed then.
    """
    planned: list[tuple[Part, Rule]] = []
    unknown: list[str] = []
    for part in parts:
        try:
            found = rule(part)
        except InputError as error:
            raise InputError(f"{part.name}: {error}") from error
        if found is None:
            unknown.append(part.name)
            continue
        if part.parameter.dtype not in _FLOATS:
            raise InputError(
                f"{part.name}: got dtype {part.parameter.dtype}, expected float64, float32, float16 or bfloat16; "
                "initialize in one of these, and convert afterwards."
            )
        planned.append((part, found))
    noise.remove(model)
    with torch.no_grad():
        for _, found in planned:
            found.fill()
    if unknown:
        warnings.warn(
            f"{title} knows no rule for {named(unknown)}; left as "
            f"{'it was' if len(unknown) == 1 else 'they were'}. Initialize what matters of it yourself.",
            UserWarning,
            stacklevel=3,
        )
    entries = tuple(Entry(part.name, found.text, tuple(part.parameter.shape)) for part, found in planned)
    return Report(model, title, entries, tuple(assumed), tuple(unknown))


def _clear_padding(part: Part) -> None:
    # The row of a padding index is zero, and never gets a gradient.
    padding = getattr(part.module, "padding_idx", None)
    if part.kind == "embedding" and padding is not None:
        part.parameter.detach()[padding].zero_()

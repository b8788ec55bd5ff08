"""Convolutions replaced by three smaller ones.

After Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile
applications", ICLR 2016: a convolution becomes a 1×1 convolution to r_in channels, one of the old size to
r_out channels, and a 1×1 convolution to c_out channels, that is one factor, the core and the other factor
of its kernel's Tucker-2 decomposition.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zanalysis.analyzers._weights import LayerChoice, chosen, layer_name
from zanalysis.analyzers.tucker_kernel import Tucker2, checked_ranks, tucker2
from zanalysis.analyzers.tucker_rule import RULES, tucker_parameters, tucker_ranks
from zanalysis.errors import InputError, did_you_mean

__all__ = ["CompressedLayer", "CompressionReport", "compress"]

Ranks = str | Sequence[int] | Mapping[str, Sequence[int]]
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class CompressedLayer:
    """One convolution and the three that stand for it.

    The first of the three works on every input position, the other two on every output position, so that the
    counts for one position are exact without an input. Zeros of the padding count like any other entry.

    Attributes:
        layer: its name.
        rank_out: r_out.
        rank_in: r_in.
        error: relative error of the kernel; NaN for a zero kernel.
        parameters_before: weight and bias.
        parameters_after: the same of the three.
        per_output_before: multiplications for one output position, before.
        per_output_after: the same after, without the first convolution's.
        per_input_after: multiplications of the first convolution for one input position.
        multiplications_before: for the given input; None where none was given.
        multiplications_after: for the given input; None where none was given.
    """

    layer: str
    rank_out: int
    rank_in: int
    error: float
    parameters_before: int
    parameters_after: int
    per_output_before: int
    per_output_after: int
    per_input_after: int
    multiplications_before: int | None
    multiplications_after: int | None


@dataclass(frozen=True)
class CompressionReport:
    """What `compress` did to a model.

    Attributes:
        layers: the replaced convolutions, in model order.
        left: name -> reason, for each convolution asked for that stayed as it was.
        parameters_before: parameters of the whole model, tied ones once.
        parameters_after: the same of the compressed model.
        multiplications_before: of all its convolutions and matrix products for the given input; None where
            none was given.
        multiplications_after: the same of the compressed model.
    """

    layers: tuple[CompressedLayer, ...]
    left: dict[str, str]
    parameters_before: int
    parameters_after: int
    multiplications_before: int | None
    multiplications_after: int | None


def compress(
    model: nn.Module,
    ranks: Ranks = "evb",
    *,
    threshold: float | None = None,
    layers: LayerChoice = None,
    refine: bool = True,
    input: Tensor | Sequence[Tensor] | None = None,
) -> tuple[nn.Module, CompressionReport]:
    """Replace convolutions by three smaller ones, in a copy of the model.

    Every `Conv1d`, `Conv2d` and `Conv3d` with one group is replaced by a `Sequential` of `reduce`, `core` and
    `expand` (Kim et al. 2016). The core keeps stride, padding, dilation and padding mode, the last keeps the
    bias; dtype, device, train mode and `requires_grad` stay. At full ranks the copy computes the same
    function.

    Left as they are, with the reason in the report: grouped convolutions, subclasses, weights that are tied
    or computed from other tensors, layers that a mapping of ranks does not name, and layers that would not
    become smaller at the ranks which a *rule* chose. Ranks given as numbers are carried out whatever they
    cost.

    Variational Bayes finds rank 0 in a kernel that is all noise or an identity, as most are before training;
    such a layer becomes rank 1, which changes its function altogether: `error` in the report says how much.
    Hooks on a replaced convolution do not pass to its replacement.

    Args:
        model: any module; it is not changed.
        ranks: a rule of `tucker_ranks` (`"evb"`, `"error"`, `"energy"`); or one pair (r_out, r_in) for all,
            where a smaller number of channels takes its place; or layer name -> pair.
        threshold: what the rule needs; see `tucker_ranks`.
        layers: which convolutions: their names, a predicate on the name, or `None` for all.
        refine: whether to improve each HOSVD by HOOI; see `tucker2`.
        input: an example for counting multiplications, one tensor `[batch, ...]` or the positional
            arguments of the model. It runs through copies in eval mode.

    Returns:
        The compressed copy and the report.

    Raises:
        InputError: if `ranks` is none of these, or there is no convolution to compress. Also if a layer is
            not known or does not fit its ranks.

    Example:
        >>> small, report = compress(nn.Conv2d(64, 64, 3, bias=False), (8, 8))
        >>> report.parameters_before, report.parameters_after
        (36864, 1600)
    """
    convolutions = _convolutions(model)
    names = chosen(convolutions, layers)
    if not names:
        raise InputError(
            f"{type(model).__name__} has no convolution to compress; expected a Conv1d, Conv2d or Conv3d. "
            "Check the model, and `layers` if you gave it."
        )
    _check_ranks(ranks, threshold, convolutions)
    multiplications, positions = _counted(model, input)
    obstacles = _obstacles(convolutions)
    copied = _copied(model)
    twins = _convolutions(copied)
    replacements: dict[int, nn.Module] = {}
    records: list[CompressedLayer] = []
    left: dict[str, str] = {}
    for name in names:
        if name in obstacles:
            left[name] = obstacles[name]
            continue
        weight = convolutions[name].weight
        pair = _pair(name, weight, ranks, threshold)
        if pair is None:
            left[name] = "it is not among the layers that ranks were given for"
        elif isinstance(ranks, str) and tucker_parameters(weight.shape, pair) >= weight.numel():
            left[name] = f"at the ranks {pair} it would not become smaller"
        else:
            found = tucker2(weight, pair, refine)
            replacements[id(twins[name])] = _three(twins[name], found)
            records.append(_record(name, convolutions[name], found, positions.get(name)))
    compressed = _replaced(copied, replacements)
    return compressed, CompressionReport(
        layers=tuple(records),
        left=left,
        parameters_before=_parameters(model),
        parameters_after=_parameters(compressed),
        multiplications_before=multiplications,
        multiplications_after=_counted(compressed, input)[0],
    )


def _convolutions(model: nn.Module) -> dict[str, _Convolution]:
    return {layer_name(name): m for name, m in model.named_modules() if isinstance(m, _CONVOLUTIONS)}


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be copied: {error} Remove what computes its weights (pruning, "
            "the older weight norm) first; expected a model that copy.deepcopy takes."
        ) from error


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_ranks(ranks: Ranks, threshold: float | None, convolutions: Mapping[str, _Convolution]) -> None:
    if isinstance(ranks, str):
        if ranks not in RULES:
            raise InputError(
                f"ranks={ranks!r} is not a rule; {did_you_mean(ranks, RULES)} Or give numbers (r_out, r_in)."
            )
    elif threshold is not None:
        raise InputError(f"threshold={threshold!r} belongs to a rule; leave it out when ranks are numbers.")
    elif isinstance(ranks, Mapping):
        chosen(convolutions, list(ranks))
    else:
        largest = [
            max(getattr(c, side) for c in convolutions.values()) for side in ("out_channels", "in_channels")
        ]
        checked_ranks(ranks, largest)


def _pair(name: str, weight: Tensor, ranks: Ranks, threshold: float | None) -> tuple[int, int] | None:
    c_out, c_in = weight.shape[:2]
    try:
        if isinstance(ranks, str):
            return tucker_ranks(weight, ranks, threshold)
        if isinstance(ranks, Mapping):
            return checked_ranks(ranks[name], (c_out, c_in)) if name in ranks else None
        return min(ranks[0], c_out), min(ranks[1], c_in)
    except InputError as error:
        raise InputError(f"Layer {name!r}: {error}") from error


def _obstacles(convolutions: Mapping[str, _Convolution]) -> dict[str, str]:
    """Return why three plain convolutions cannot stand for one, for each of which this is so."""
    users = Counter(id(c._parameters.get("weight")) for c in convolutions.values())
    found: dict[str, str] = {}
    for name, convolution in convolutions.items():
        if parametrize.is_parametrized(convolution) or convolution._parameters.get("weight") is None:
            found[name] = "its weight is computed from other tensors"
        elif type(convolution) not in _CONVOLUTIONS:
            found[name] = f"it is a {type(convolution).__name__}, which may compute something else"
        elif convolution.groups != 1:
            found[name] = f"it has {convolution.groups} groups"
        elif users[id(convolution.weight)] > 1:
            found[name] = "its weight is tied to another layer's"
    return found


def _three(convolution: _Convolution, found: Tucker2) -> nn.Sequential:
    """Return the three convolutions that compute a decomposed one."""
    weight, bias = convolution.weight, convolution.bias
    kind: Any = type(convolution)
    (r_out, r_in), ones = found.core.shape[:2], (1,) * (weight.ndim - 2)
    same = {key: getattr(convolution, key) for key in ("stride", "padding", "dilation", "padding_mode")}

    def empty(*sizes: Any, bias: bool = False, **options: Any) -> Any:
        # By way of "meta": initializing a layer would draw from the user's random numbers.
        layer = kind(*sizes, bias=bias, device="meta", dtype=weight.dtype, **options)
        return layer.to_empty(device=weight.device)

    reduce = empty(convolution.in_channels, r_in, 1)
    core = empty(r_in, r_out, convolution.kernel_size, **same)
    expand = empty(r_out, convolution.out_channels, 1, bias=bias is not None)
    with torch.no_grad():
        reduce.weight.copy_(found.factor_in.mT.reshape(r_in, -1, *ones))
        core.weight.copy_(found.core)
        expand.weight.copy_(found.factor_out.reshape(-1, r_out, *ones))
        if bias is not None:
            expand.bias.copy_(bias)
            expand.bias.requires_grad_(bias.requires_grad)
    three = nn.Sequential(OrderedDict(reduce=reduce, core=core, expand=expand))
    for layer in three:
        layer.weight.requires_grad_(weight.requires_grad)
    return three.train(convolution.training)


def _record(
    name: str, convolution: _Convolution, found: Tucker2, positions: tuple[int, int] | None
) -> CompressedLayer:
    weight, (r_out, r_in) = convolution.weight, found.core.shape[:2]
    bias = 0 if convolution.bias is None else convolution.bias.numel()
    into = weight.shape[1] * r_in
    parameters = tucker_parameters(weight.shape, (r_out, r_in))
    before, after = weight.numel(), parameters - into
    inputs, outputs = positions or (0, 0)
    return CompressedLayer(
        layer=name,
        rank_out=r_out,
        rank_in=r_in,
        error=float(found.error),
        parameters_before=before + bias,
        parameters_after=parameters + bias,
        per_output_before=before,
        per_output_after=after,
        per_input_after=into,
        multiplications_before=None if positions is None else outputs * before,
        multiplications_after=None if positions is None else outputs * after + inputs * into,
    )


def _replaced(model: nn.Module, replacements: Mapping[int, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)]
    return replacements.get(id(model), model)


def _counted(
    model: nn.Module, input: Tensor | Sequence[Tensor] | None
) -> tuple[int | None, dict[str, tuple[int, int]]]:
    """Count multiplications for an input, and the positions that go into and out of each convolution.

    Args:
        model: any module; a copy of it runs.
        input: one tensor, the positional arguments, or None for no count.

    Returns:
        The number of multiplications in convolutions and matrix products, and layer name -> positions.
    """
    if input is None:
        return None, {}
    from torch.utils.flop_counter import FlopCounterMode  # only a count needs it

    positions: dict[str, tuple[int, int]] = {}
    twin = _copied(model).eval()
    for name, convolution in _convolutions(twin).items():

        def count(
            module: nn.Module, args: Any, kwargs: Any, output: Tensor, name: str = name, c: Any = convolution
        ) -> None:
            given = args[0] if args else kwargs["input"]
            before = positions.get(name, (0, 0))
            positions[name] = (
                before[0] + given.numel() // c.in_channels,
                before[1] + output.numel() // c.out_channels,
            )

        convolution.register_forward_hook(count, with_kwargs=True)
    arguments = (input,) if isinstance(input, Tensor) else tuple(input)
    devices = {tensor.device for tensor in twin.state_dict().values() if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(*arguments)
    return counter.get_total_flops() // 2, positions

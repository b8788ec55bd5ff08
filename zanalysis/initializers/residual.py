"""Initializations of residual networks, without normalization or in its place: Fixup, ReZero, SkipInit, ConstNet."""

import math
from typing import Literal

from torch import Generator, Tensor, nn

from zanalysis.errors import InputError
from zanalysis.initializers.attention import Attention
from zanalysis.initializers.branches import Branches, find_branches, find_classifier
from zanalysis.initializers.choosing import Layers, named_layers
from zanalysis.initializers.matrices import finite, taps
from zanalysis.initializers.noise import OutputDropout, Source
from zanalysis.initializers.parts import WEIGHTED, Part
from zanalysis.initializers.plan import Rule, blockwise, carry_out, constant, ordinary, survey
from zanalysis.initializers.report import Report, named
from zanalysis.initializers.standard import Mode, kaiming_rule, table_rule

__all__ = ["constnet_", "fixup_", "rezero_", "skipinit_"]


def fixup_(
    model: nn.Module,
    *,
    last: Layers = None,
    classifier: Layers = None,
    attention: Attention = None,
    generator: Generator | None = None,
) -> Report:
    """Initialize a residual network by Fixup's three rules.

    1. The classification layer (weight and bias) and the last layer of each residual branch are 0. 2. Every other
    layer is `N(0, 2/fan_out)` as in the authors' code; those inside branches times `L^{−1/(2m−2)}`, L the number of
    branches, m that of the layers in the branch; layers on a shortcut without that factor. 3. One scalar multiplier
    in each branch is 1, a scalar bias before each layer and activation 0: these belong to the model, and are found
    as parameters of one entry. The authors train biases and multipliers at a tenth of the learning rate.

    Source: Zhang, Dauphin & Ma, ICLR 2019 (arXiv 1901.09321); github.com/hongyi-zhang/Fixup.

    Args:
        model: a residual network.
        last: the layers that end a branch: names, globs, patterns or predicates; found if None.
        classifier: the classification layer; the last linear layer outside the branches if None.
        attention: roles of linear layers, see `find_attention`; by name if None.
        generator: source of the randomness; the global one if None.

    Returns:
        A report.

    Raises:
        InputError: if the branches or the layers that it needs are not found, or a name that was given is unknown.
    """
    parts, assumed = survey(model, attention)
    branches = find_branches(model, last)
    head, said = find_classifier(model, branches, classifier)
    assumed += branches.assumed + said
    if not any(part.kind == "multiplier" for part in parts):
        assumed.append(
            "the model has no scalar multipliers, which Fixup's rule 3 asks for: one in each branch."
        )
    if not any(part.kind == "scalar-bias" for part in parts):
        assumed.append(
            "the model has no scalar biases, which Fixup's rule 3 asks for: one before each layer."
        )
    inside, count, zeroed = branches.inside, len(branches.found), branches.last | set(head)

    def rule(part: Part) -> Rule | None:
        if part.kind == "embedding":
            return table_rule(part, generator)
        if not part.weight:
            return ordinary(part)
        if part.layers & zeroed:
            return constant(part, 0.0)
        layers = next((len(inside[layer].layers) for layer in sorted(part.layers) if layer in inside), 0)
        if layers < 2:
            return kaiming_rule(part, "fan_out", generator)
        factor = count ** (-1 / (2 * layers - 2))
        text = f"{count}^(−1/{2 * layers - 2}) · "
        return kaiming_rule(part, "fan_out", generator, factor=factor, factor_text=text)

    return carry_out(model, "Fixup", parts, rule, assumed)


def rezero_(
    model: nn.Module,
    *,
    mode: Mode = "fan_in",
    attention: Attention = None,
    generator: Generator | None = None,
) -> Report:
    """Initialize a residual network by ReZero: `x + α F(x)` with every α = 0, all weights by He's rule.

    Every block is its skip path at the start. The scalars belong to the model, and are found as parameters of one
    entry by a name such as `alpha`, `scale` or `resweight`. The classifier is not zeroed.

    Source: Bachlechner et al., UAI 2021 (arXiv 2003.04887); github.com/tbachlechner/ReZero-examples.

    Args:
        model: a network with a scalar multiplier in each residual branch.
        mode: of He's rule, see `kaiming_`.
        attention: roles of linear layers, see `find_attention`; by name if None.
        generator: source of the randomness; the global one if None.

    Returns:
        A report.

    Raises:
        InputError: if the branches or their multipliers are not found, or a name that was given is unknown.
    """
    return _scaled(model, "ReZero", 0.0, None, mode, attention, generator)


def skipinit_(
    model: nn.Module,
    alpha: float | Literal["1/sqrt(d)"] = 0.0,
    *,
    last: Layers = None,
    mode: Mode = "fan_in",
    attention: Attention = None,
    generator: Generator | None = None,
) -> Report:
    """Initialize a residual network by SkipInit: a scalar α at the end of each branch, all weights by He's rule.

    Source: De & Smith, NeurIPS 2020 (arXiv 2002.10444): α = 0, or `1/√d`, d the number of residual blocks.

    Args:
        model: a network with a scalar multiplier in each residual branch.
        alpha: a number, or ``"1/sqrt(d)"``.
        last: the layers that end a branch, from which the blocks are counted; found if None.
        mode: of He's rule, see `kaiming_`.
        attention: roles of linear layers, see `find_attention`; by name if None.
        generator: source of the randomness; the global one if None.

    Returns:
        A report.

    Raises:
        InputError: if alpha is neither, or d is asked for and no residual branch was found.
    """
    branches = None
    survey(model, attention)  # what is refused is refused before the branches are looked for
    if alpha == "1/sqrt(d)":
        branches = find_branches(model, last)
        if not branches.found:
            raise InputError(
                "1/sqrt(d) needs the number of residual blocks, and none was found; give last=…."
            )
        value = 1 / math.sqrt(len(branches.found))
    else:
        value = finite(_as_number(alpha), "alpha")
    return _scaled(model, "SkipInit", value, branches, mode, attention, generator)


def constnet_(
    model: nn.Module,
    noise: bool | float = False,
    *,
    last: Layers = None,
    classifier: Layers = None,
    generator: Generator | None = None,
) -> Report:
    """Initialize a residual network by ConstNet: every feature of a layer is identical.

    Weights in residual branches are 0; the first convolution, those on shortcuts and all others are the average over
    channels, `1/c_in` at the centre tap for every output; the classifier 0 (weight and bias); biases 0, normalization
    scale 1 and shift 0; scalar multipliers 1 and scalar biases 0. In exact arithmetic the features stay identical for
    ever: with `noise`, dropout on the output of the layers in the branches, in training mode, tells them apart. It
    lives in hooks that go with the model through deepcopy, pickle and `.to`, and are in no state dict.

    Source: Blumenfeld, Gilboa & Soudry, ICML 2020 (arXiv 2007.01038); github.com/yanivbl6/BeyondSigProp, whose blocks
    hold one 3×3 convolution each: of two zero layers in one branch neither ever gets a gradient.

    Args:
        model: a residual network.
        noise: whether to drop, with the authors' p = 0.01; or p.
        last: the layers that end a branch: names, globs, patterns or predicates; found if None.
        classifier: the classification layer; the last linear layer outside the branches if None.
        generator: of the noise; the global one if None.

    Returns:
        A report.

    Raises:
        InputError: if the noise is no probability, no residual branch was found, or a kernel has no centre tap.
    """
    p = 0.01 if noise is True else finite(noise or 0.0, "noise")
    if not 0 <= p < 1:
        raise InputError(f"got noise = {noise!r}, expected True, False or a probability below 1.")
    parts, assumed = survey(model)
    branches = find_branches(model, last)
    if not branches.found:
        raise InputError(
            "ConstNet is defined for residual networks, and no residual branch was found; give last=…."
        )
    head, said = find_classifier(model, branches, classifier)
    assumed += branches.assumed + said + _stuck(branches)
    if p:
        assumed.append("the noise lives in the model and in no state dict.")
    inside = branches.inside
    modules = named_layers(model)

    def rule(part: Part) -> Rule | None:
        if not part.weight:
            return ordinary(part)
        if part.layers & (inside.keys() | head):
            return constant(part, 0.0)
        for block in part.blocks():
            taps(block)
        return blockwise(part, "channel average", _average)

    report = carry_out(model, "ConstNet with noise" if p else "ConstNet", parts, rule, assumed)
    if p:
        source = Source(generator)
        for module in dict.fromkeys(modules[name] for name in inside):
            if isinstance(module, WEIGHTED):
                module.register_forward_hook(OutputDropout(p, source))
    return report


def _average(block: Tensor) -> None:
    block.zero_()
    taps(block).fill_(1.0 / max(1, block.shape[1]))


def _stuck(branches: Branches) -> list[str]:
    stuck = [branch.block for branch in branches.found if len(branch.layers) > 1]
    if not stuck:
        return []
    return [
        "of several zero layers in one branch none ever gets a gradient; ConstNet's blocks hold one layer each, but "
        f"not these: {named(stuck)}."
    ]


def _as_number(alpha: object) -> object:
    try:
        return float(alpha) if isinstance(alpha, str) else alpha
    except ValueError:
        raise InputError(f"got alpha = {alpha!r}, expected a number or '1/sqrt(d)'.") from None


def _scaled(
    model: nn.Module,
    title: str,
    value: float,
    branches: Branches | None,
    mode: Mode,
    attention: Attention,
    generator: Generator | None,
) -> Report:
    if mode not in ("fan_in", "fan_out"):
        raise InputError(f"unknown mode {mode!r}; expected 'fan_in' or 'fan_out'.")
    parts, assumed = survey(model, attention)
    multipliers = [part.name for part in parts if part.kind == "multiplier"]
    if not multipliers:
        raise InputError(
            f"{title} needs a learnable scalar at the end of each residual branch, and {type(model).__name__} has no "
            "parameter of one entry named scale, alpha, resweight or the like; build the model with them."
        )
    assumed += [f"taken for the scalars of the branches: {named(multipliers)}."]
    assumed += branches.assumed if branches is not None else []

    def rule(part: Part) -> Rule | None:
        if part.kind == "multiplier":
            return constant(part, value)
        if part.kind == "embedding":
            return table_rule(part, generator)
        return kaiming_rule(part, mode, generator) if part.weight else ordinary(part)

    return carry_out(model, title, parts, rule, assumed)

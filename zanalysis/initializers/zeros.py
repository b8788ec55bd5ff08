"""Learning from zero weights: zeroed layers, and the noise that lets an all-zero network begin.

Source: the published code of "Deep Learning with Zero Initialization: Revisiting Symmetry Breaking and Gradient Flow"
(Seo, preprint, researchsquare.com rs-4890533).
"""

from torch import Generator, nn

from zanalysis.initializers.choosing import Layers, chosen_layers
from zanalysis.initializers.noise import Source, ZeroNoise
from zanalysis.initializers.parts import ATTENTION, NORMS, WEIGHTED, Part, parts_of, unwrapped
from zanalysis.initializers.plan import Rule, carry_out, constant, ordinary, remarks, survey
from zanalysis.initializers.report import Report, named

__all__ = ["all_constant_", "all_zero_", "zeros_"]


def zeros_(model: nn.Module, layers: Layers = None, *, weights_only: bool = False) -> Report:
    """Set the weights and biases of chosen layers to zero, and leave all else as it is.

    A layer behind a zero layer can move only after that one has.

    Args:
        model: any module.
        layers: which linear, convolution and attention layers: names, globs, compiled regular expressions,
            predicates `name -> bool` or `(name, module) -> bool`, or several of these; all if None.
        weights_only: whether biases are left as they are.

    Returns:
        A report of what was set.

    Raises:
        InputError: if a layer is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> zeros_(model, "2").rules()
        {'2.weight': '0', '2.bias': '0'}
    """
    parts = parts_of(model, {})
    chosen = set(chosen_layers(model, layers, "layers"))
    # The output projection belongs to its attention layer, though PyTorch keeps it in a child.
    chosen |= {
        f"{part.layer}.out_proj".lstrip(".") for part in parts if part.layer in chosen and _attends(part)
    }
    kinds = ("linear", "conv") if weights_only else ("linear", "conv", "bias")
    wanted = [part for part in parts if part.layers & chosen and part.kind in kinds]
    return carry_out(model, "zeros", wanted, lambda part: constant(part, 0.0), remarks(wanted))


def all_constant_(model: nn.Module, *, generator: Generator | None = None) -> Report:
    """Leave no random weight: every linear and convolution layer 0, with a noise that stops by itself.

    Weights, biases and embeddings 0; normalization scale 1 and shift 0. While a layer's weight is still entirely
    zero, its output gets one value for each output feature, as a bias would give, uniform in ±1/√fan_in and drawn
    anew at each forward in training mode; once the weight has moved it is gone for good. It lives in hooks that go
    with the model through deepcopy, pickle and `.to`, and are in no state dict: initialize first, load after.

    Args:
        model: any module, such as an MLP-Mixer.
        generator: of the noise; PyTorch's global one if None.

    Returns:
        A report.

    Raises:
        InputError: if the model cannot be initialized, such as one whose weights are not loaded yet.
    """
    return _silent(model, "all-constant", False, generator)


def all_zero_(model: nn.Module, *, generator: Generator | None = None) -> Report:
    """Set everything to zero, normalization included, with a noise that stops by itself.

    As `all_constant_`, and every normalization layer's scale and shift 0, too; those get the same noise, uniform
    in ±1/√n with n the entries of the scale, while their scale is zero.

    Args:
        model: any module, such as an MLP-Mixer.
        generator: of the noise; PyTorch's global one if None.

    Returns:
        A report.

    Raises:
        InputError: as for `all_constant_`.
    """
    return _silent(model, "all-zero", True, generator)


def _silent(model: nn.Module, title: str, norms: bool, generator: Generator | None) -> Report:
    parts, assumed = survey(model, {})
    noisy = _noisy(model, norms)
    within = [part.layer or "the model" for part in parts if _attends(part) and part.weight]
    if within:
        assumed.append(
            "attention computes its projections within itself, where no noise can be given: "
            f"{named(list(dict.fromkeys(within)))}."
        )
    own = [
        part.layer for part in parts if norms and part.kind == "scale" and not isinstance(part.module, NORMS)
    ]
    if own:
        assumed.append(
            f"zero without a noise, as these normalization layers are not PyTorch's: {named(own)}."
        )
    if noisy:
        assumed.append(
            f"the noise of {len(noisy)} layers lives in the model and in no state dict; it stops layer by layer once "
            "the weight has moved."
        )

    def rule(part: Part) -> Rule | None:
        if part.weight or (norms and part.kind in ("scale", "shift")):
            return constant(part, 0.0)
        return ordinary(part)

    report = carry_out(model, title, parts, rule, assumed)
    source = Source(generator)
    for module in noisy:
        module.register_forward_hook(ZeroNoise(module, source))
    return report


def _noisy(model: nn.Module, norms: bool) -> list[nn.Module]:
    modules = list(unwrapped(model).modules())
    within = {module.out_proj for module in modules if isinstance(module, ATTENTION)}
    scaled = [m for m in modules if norms and isinstance(m, NORMS) and m.weight is not None]
    return [m for m in modules if (isinstance(m, WEIGHTED) and m not in within) or m in scaled]


def _attends(part: Part) -> bool:
    return isinstance(part.module, ATTENTION)

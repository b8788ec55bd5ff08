"""ZerO, of a tensor or of a whole model.

The same bits on every machine, in every dtype float64 rounded once, and no random number generator is touched.

Source: Zhao, Schäfer & Anandkumar, "ZerO Initialization: Initializing Neural Networks with only Zeros and Ones",
TMLR 2022 (arXiv 2110.12661). Its authors published code for linear layers only
(github.com/jiaweizzhao/ZerO-initialization).
"""

from typing import Any, Literal, overload

from torch import Tensor, nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.initializers.algorithms import algorithm_rule, check_taps, named_case
from zanalysis.initializers.attention import Attention
from zanalysis.initializers.branches import find_branches
from zanalysis.initializers.choosing import Layers, named_layers
from zanalysis.initializers.matrices import Normalization, checked_normalization, fill_zero
from zanalysis.initializers.parts import CONVOLUTIONS, Part
from zanalysis.initializers.plan import Rule, carry_out, constant, ordinary, survey
from zanalysis.initializers.report import Report, named

__all__ = ["zero_"]

Patches = Literal["refuse", "linear"]
Embedding = Literal["algorithm-1", "keep"]


@overload
def zero_(tensor: Tensor, normalization: Normalization = ...) -> Tensor: ...
@overload
def zero_(
    tensor: nn.Module,
    normalization: Normalization = ...,
    *,
    last: Layers = ...,
    attention: Attention = ...,
    patches: Patches = ...,
    embedding: Embedding = ...,
) -> Report: ...
def zero_(
    tensor: Tensor | nn.Module,
    normalization: Normalization = "orthonormal",
    *,
    last: Layers = None,
    attention: Attention = None,
    patches: Patches = "refuse",
    embedding: Embedding = "algorithm-1",
) -> Tensor | Report:
    """Initialize by ZerO: Algorithm 1 for a matrix `[P, Q]`, Algorithm 2 for an odd kernel.

    Identity where P = Q, partial identity where P < Q, `c · I* H_m I*` where P > Q; a kernel has that on its centre
    tap and zeros elsewhere, a grouped one for each group. In a model moreover: the last convolution of each residual
    branch 0; `W_Q` by Algorithm 1 (the identity where it is square), `W_K` and `W_V` 0, other linear layers and the
    output projection by Algorithm 1; biases 0, normalization scale 1 and shift 0; scalar multipliers 1 and scalar
    biases 0, as in Fixup. The paper states no rule for embeddings: by default their table `[V, d]` gets Algorithm 1.
    A transposed convolution is taken by its outputs and inputs, whatever the order in its parameter. Buffers, such
    as running statistics, are not touched.

    Args:
        tensor: a tensor `[P, Q]` or `[c_out, c_in, *taps]` with odd taps; or a model.
        normalization: of the Hadamard transform: ``"orthonormal"``, or ``"paper"`` for the printed factor.
        last: the layers that end a residual branch: names, globs, patterns or predicates, set to 0 whatever
            they are; an empty sequence for none. If None, they are found, and convolutions among them set to 0.
        attention: roles of linear layers, see `find_attention`; by name if None.
        patches: what to do with an even kernel that cuts its input into patches (stride equal to kernel, no padding):
            ``"linear"`` takes it as the linear layer of a patch that it is, ``"refuse"`` refuses it as any other.
        embedding: ``"algorithm-1"``, or ``"keep"`` to leave embeddings as they are.

    Returns:
        The tensor; of a model a report.

    Raises:
        InputError: if an option is unknown, or a tensor cannot be filled, such as an even kernel; the layer is named.

    Example:
        >>> import torch
        >>> zero_(torch.empty(2, 2))
        tensor([[1., 0.],
                [0., 1.]])
        >>> zero_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).rules()["2.weight"]
        'partial identity'
    """
    if not isinstance(tensor, nn.Module):
        return fill_zero(tensor, normalization)
    checked_normalization(normalization)
    _one_of("patches", patches, ("refuse", "linear"))
    _one_of("embedding", embedding, ("algorithm-1", "keep"))
    parts, assumed = survey(tensor, attention)
    branches = find_branches(tensor, last)
    modules = named_layers(tensor)
    zeroed = {name for name in branches.last if last is not None or isinstance(modules[name], CONVOLUTIONS)}
    assumed += branches.assumed
    if spared := sorted(branches.last - zeroed):
        assumed.append(
            "the last linear layer of a branch keeps Algorithm 1, ZerO's rule for Transformers, and only convolutions "
            f"are set to 0 (last=… sets others, too): {named(spared)}."
        )
    cut = [part.name for part in parts if part.kind == "conv" and patches == "linear" and _cuts(part)]
    if cut:
        assumed.append(f"taken as the linear layer of a patch, for which Algorithm 1 holds: {named(cut)}.")
    tables = [part.name for part in parts if part.kind == "embedding"]
    if tables:
        done = "left as they were" if embedding == "keep" else "their table [V, d] was set by Algorithm 1"
        parts = [part for part in parts if part.kind != "embedding" or embedding != "keep"]
        assumed.append(f"the paper states no rule for embeddings; {done}: {named(tables)}.")

    def rule(part: Part) -> Rule | None:
        if part.weight and part.layers & zeroed:
            return constant(part, 0.0)
        if part.roles:
            return _attention_rule(part, normalization)
        if part.weight:
            return algorithm_rule(part, normalization, part.name in cut)
        return ordinary(part)

    return carry_out(tensor, "ZerO", parts, rule, assumed)


def _attention_rule(part: Part, normalization: Normalization) -> Rule:
    check_taps(part)

    def fill() -> None:
        for role, block in zip(part.roles, part.blocks(), strict=True):
            if role == "q":
                fill_zero(block, normalization)
            else:
                block.zero_()

    block = part.blocks()[0]
    words = {"q": named_case(*block.shape[:2]), "k": "0", "v": "0"}
    return Rule(", ".join(f"{role.upper()} {words[role]}" for role in part.roles), fill)


def _cuts(part: Part) -> bool:
    module: Any = part.module
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or module.groups > 1:
        return False
    even = any(size % 2 == 0 for size in module.kernel_size)
    return (
        even
        and module.stride == module.kernel_size
        and not any(module.padding)
        and set(module.dilation) == {1}
    )


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {did_you_mean(str(value), known)}")

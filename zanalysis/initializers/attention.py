"""Find the query, key and value matrices of attention layers that are built of linear ones."""

from collections.abc import Mapping

from torch import nn

from zanalysis.errors import InputError, did_you_mean
from zanalysis.initializers.choosing import chosen_layers, named_layers
from zanalysis.initializers.report import named

__all__ = ["ROLES", "Attention", "find_attention"]

Attention = Mapping[str, str] | None
ROLES = ("q", "k", "v", "qkv", "kv", "none")

_NAMES = {
    "q": {"q", "query", "queries", "q_proj", "query_proj", "to_q", "wq", "w_q", "q_lin", "q_linear", "linear_q"},
    "k": {"k", "key", "keys", "k_proj", "key_proj", "to_k", "wk", "w_k", "k_lin", "k_linear", "linear_k"},
    "v": {"v", "value", "values", "v_proj", "value_proj", "to_v", "wv", "w_v", "v_lin", "v_linear", "linear_v"},
    "qkv": {"qkv", "to_qkv", "wqkv", "w_qkv", "qkv_proj", "in_proj", "attn_qkv", "c_attn"},
    "kv": {"kv", "to_kv", "wkv", "w_kv", "kv_proj"},
}  # fmt: skip
_TOGETHER = ({"q", "k", "v"}, {"q", "kv"}, {"qkv"})


def find_attention(model: nn.Module, given: Attention = None) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Find which linear layers are the matrices of attention, and which blocks they hold.

    Args:
        model: any model. `nn.MultiheadAttention` is not looked at: its parameters say what they are.
        given: roles by name or glob: ``"q"``, ``"k"``, ``"v"``, ``"qkv"`` or ``"kv"`` (blocks of equal size one after
            the other along the outputs), or ``"none"`` for a layer that is no such matrix. They go before names.

    Returns:
        The roles of each layer, by its name, and what was assumed.

    Raises:
        InputError: if a role is unknown, or a layer is given that is not there or cannot be cut into its blocks.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for prefix, module in named_layers(model).items():
        mine: dict[str, str] = {}
        for child, linear in module.named_children():
            for role, names in _NAMES.items():
                if (
                    isinstance(linear, nn.Linear)
                    and child.lower() in names
                    and not linear.out_features % len(role)
                ):
                    mine[role] = f"{prefix}.{child}" if prefix else child
        if any(set(mine) == together for together in _TOGETHER):
            roles |= {name: tuple(role) for role, name in mine.items()}
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"got attention = {given!r}, expected roles by name, such as {{'*.qkv': 'qkv'}}.")
    assumed = []
    if roles:
        assumed.append(f"taken for query, key and value matrices, by name: {named(list(roles))}.")
        if any(len(role) > 1 for role in roles.values()):
            assumed.append(
                "a matrix that holds several of them was cut into blocks of equal size, in that order."
            )
    for pattern, role in (given or {}).items():
        if role not in ROLES:
            raise InputError(
                f"unknown role {role!r} of {pattern!r} in attention; {did_you_mean(str(role), ROLES)}"
            )
        for name in chosen_layers(model, pattern, "attention"):
            _check(model, name, role)
            roles[name] = () if role == "none" else tuple(role)
    return roles, assumed


def _check(model: nn.Module, name: str, role: str) -> None:
    module = named_layers(model)[name]
    if not isinstance(module, nn.Linear):
        raise InputError(f"attention: {name} is {type(module).__name__}, expected nn.Linear layers.")
    if role != "none" and module.out_features % len(role):
        raise InputError(
            f"attention: {name} has {module.out_features} outputs, which {len(role)} blocks of equal size do not fill."
        )

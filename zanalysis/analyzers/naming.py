"""Names: of layers, the same live and offline; as a file can hold them; as a terminal may show them."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from zanalysis.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Pattern", "Selection", "inert", "layer_name", "plain", "selected", "written_out"]

Pattern = str | re.Pattern[str] | Callable[..., bool]
Selection = Pattern | Sequence[Pattern] | None

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def plain(text: str) -> str:
    r"""Return a name as a file can hold it: valid UTF-8, without zero bytes.

    Args:
        text: any text.

    Returns:
        The text, with lone surrogates and zeros as escapes.

    Example:
        >>> plain("fc\udc80\0")
        'fc\\udc80\\x00'
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def inert(text: str) -> str:
    r"""Return a text that does nothing to a terminal: no escape sequence, no line break, no change of direction.

    Args:
        text: any text, such as a name taken from a file.

    Returns:
        The text, with every control, format, private and unassigned character as a Python escape.

    Example:
        >>> inert("fc\x1b[2J\u202e.weight")
        'fc\\x1b[2J\\u202e.weight'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text
    )


def layer_name(qualified: str) -> str:
    """Return the name of a layer, the same live and offline.

    Args:
        qualified: a parameter's name as `named_parameters` or a state dict gives it.

    Returns:
        The name less ``module.`` at the front, ``_orig_mod.`` anywhere, and a final ``.weight``; what no file
        can hold, such as a lone surrogate, as an escape.

    Example:
        >>> layer_name("module._orig_mod.encoder.fc.weight")
        'encoder.fc'
    """
    parts = [part for part in qualified.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    if len(parts) > 1 and parts[-1] == "weight":
        parts = parts[:-1]
    return plain(".".join(parts))


def selected(
    selection: Selection, candidates: Mapping[str, Callable[[], "Tensor"]], strict: bool = True
) -> list[str]:
    """Choose layers by name.

    Args:
        selection: None for all; else names, globs, compiled regular expressions, predicates
            `name -> bool` or `(name, parameter) -> bool`, or several of these.
        candidates: what there is to choose from: a function that gives the parameter, by name.
        strict: whether a pattern must match something.

    Returns:
        The names chosen, in the order of the candidates.

    Raises:
        InputError: if the selection is of another kind, empty, or one of its patterns matches nothing.

    Example:
        >>> selected("fc*", dict.fromkeys(["conv1", "fc1", "fc2"]))
        ['fc1', 'fc2']
    """
    if selection is None:
        return list(candidates)
    single = isinstance(selection, str | re.Pattern) or callable(selection)
    if not single and not isinstance(selection, Iterable):
        raise InputError(f"got layers = {selection!r}, expected names, globs, patterns or predicates.")
    patterns: list[Any] = [selection] if single else list(selection)  # type: ignore[arg-type]
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {name for name, parameter in candidates.items() if _matches(pattern, name, parameter)}
        if not matching and strict:
            shown = pattern if isinstance(pattern, str) else getattr(pattern, "pattern", "the predicate")
            raise InputError(f"no layer matches {shown!r}; {did_you_mean(str(shown), candidates)}")
        chosen |= matching
    if not patterns:
        raise InputError("layers is empty; pass None for every layer, or some names.")
    return [name for name in candidates if name in chosen]


def written_out(selection: Selection) -> frozenset[str]:
    """Return what a selection says word for word: the names that may be those of single layers.

    A layer of one row or one column is followed only where it is named so.

    Args:
        selection: as for `selected`.

    Returns:
        Its strings.

    Example:
        >>> sorted(written_out(["conv1", "fc*"]))
        ['conv1', 'fc*']
    """
    if isinstance(selection, str):
        return frozenset((selection,))
    if selection is None or callable(selection) or not isinstance(selection, Sequence | Set):
        return frozenset()
    return frozenset(pattern for pattern in selection if isinstance(pattern, str))


def _matches(pattern: Pattern, name: str, parameter: Callable[[], "Tensor"]) -> bool:
    if isinstance(pattern, str):
        return name == pattern or fnmatchcase(name, pattern)
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    if not callable(pattern):
        raise InputError(
            f"got {pattern!r} in layers, expected a name, a glob, a compiled regular expression "
            "or a predicate."
        )
    return bool(pattern(name, parameter()) if _takes_two(pattern) else pattern(name))


def _takes_two(predicate: Callable[..., bool]) -> bool:
    try:
        parameters = signature(predicate).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return False
    # What has a default is the predicate's own business: `lambda name, wanted=names: …`.
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is Parameter.empty]
    return len(required) > 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)

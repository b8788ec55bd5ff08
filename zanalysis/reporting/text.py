"""Text from a file, made harmless to look at: what would act on the text around it is shown as an escape.

HTML is escaped by the template. This is about what HTML lets through: control characters of terminals,
overrides of the direction of writing, characters without width, with which one name can pass for another.
"""

import json
import re
import unicodedata
from typing import Any

__all__ = ["number", "settings", "visible"]

# Control characters, format characters (bidirectional overrides among them), surrogates, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_PLAIN = re.compile(r"[\x20-\x7e]*")


def visible(text: object) -> str:
    r"""Return a text with every character that cannot be seen as an escape.

    Args:
        text: any text, or what can be made one.

    Returns:
        The text; `\x1b`, `\u202e` and the like in the place of what they stand for.

    Example:
        >>> visible("fc\u202e1\x1b[31m")
        'fc\\u202e1\\x1b[31m'
    """
    words = str(text)
    if _PLAIN.fullmatch(words):
        return words
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _HIDDEN else char
        for char in words
    )


def settings(value: Any) -> str:
    """Lay recorded settings out as indented JSON, to be read.

    Args:
        value: what JSON can hold.

    Returns:
        The text; every character that cannot be seen as an escape.
    """
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(map(visible, lines))


def number(value: float | None, digits: int = 6) -> str:
    """Write a number for a reader.

    Args:
        value: the number; None where there is none.
        digits: how many significant ones.

    Returns:
        The number; an en dash where there is none.

    Example:
        >>> number(1234567.0), number(0.25), number(None)
        ('1,234,567', '0.25', '–')
    """
    if value is None or value != value:
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"

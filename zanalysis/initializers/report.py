"""What an initialization says of itself: which rule each parameter got, what was assumed, what was left alone."""

from dataclasses import dataclass, field

from torch import nn

__all__ = ["Entry", "Report"]

_NAMED = 4


@dataclass(frozen=True)
class Entry:
    """What one parameter got.

    Attributes:
        name: of the parameter, without the prefixes of wrappers.
        rule: what it was set to, in words.
        shape: of the parameter.
    """

    name: str
    rule: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What an initialization did to a model; `str(report)` is a short table.

    Attributes:
        model: the model, initialized in place.
        initialization: what was done, in words.
        layers: one entry for each parameter that was set, in the model's order.
        assumed: sentences: what was taken for what, and why.
        unknown: names of the parameters that no rule was known for, and that are as they were.
    """

    model: nn.Module = field(repr=False)
    initialization: str
    layers: tuple[Entry, ...]
    assumed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def rules(self) -> dict[str, str]:
        """Return the rule of each parameter.

        Returns:
            The rules, by name.
        """
        return {entry.name: entry.rule for entry in self.layers}

    def __str__(self) -> str:
        """Return the table: each rule, how many parameters got it, and the first of them."""
        groups: dict[str, list[str]] = {}
        for entry in self.layers:
            groups.setdefault(entry.rule, []).append(entry.name)
        if self.unknown:
            groups["unknown: left as they were"] = list(self.unknown)
        width = max(map(len, groups), default=0)
        count = len(self.layers) + len(self.unknown)
        lines = [f"{self.initialization}: {len(self.layers)} of {count} parameters set"]
        lines += [f"  {rule:<{width}}  {len(names):>4}  {named(names)}" for rule, names in groups.items()]
        lines += [f"  {sentence}" for sentence in self.assumed]
        return "\n".join(lines)


def named(names: list[str]) -> str:
    """Return a list of names as a sentence holds it.

    Args:
        names: any number.

    Returns:
        The first few, and how many more there are.
    """
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f", and {more} more" if more > 0 else "")

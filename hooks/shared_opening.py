"""Opening one run file for several processes: one opens it, all hear how it went."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from hooks.distributed import NoWriter, initial_weights
from hooks.journal import Journal
from hooks.layers import Layer, is_distributed
from hooks.references import initial_of, initial_tensor
from hooks.shards import Moment, ShardedLayers
from hooks.team import Team
from zanalysis.analyzers.matrices import Reference, View
from zanalysis.analyzers.metrics import plan
from zanalysis.runfile import Initial

__all__ = ["Opened", "open_together"]

Opened = tuple[Journal, Iterable[Initial] | None]
"""The journal, and the initial weights of a run that goes on."""


class _SharedInitials(Iterable[Initial]):
    """The initial weights of the layers, brought to the leader one at a time, as often as asked for."""

    def __init__(
        self, layers: Sequence[Layer], references: Mapping[str, Mapping[str, Reference]], moment: Moment
    ) -> None:
        self._layers, self._references, self._moment = layers, references, moment

    def __iter__(self) -> Iterator[Initial]:
        for layer in self._layers:
            weight = self._references[layer.name]["init"]
            if is_distributed(weight):
                weight = self._moment.whole(layer.name, "init")
            assert isinstance(weight, Tensor)
            yield initial_of(layer, weight)


def open_together(
    team: Team,
    layers: Sequence[Layer],
    references: dict[str, dict[str, Reference]],
    names: Sequence[str],
    view: View,
    open_file: Callable[[Iterable[Initial]], Opened],
) -> Journal:
    """Open the record where the leader is. What fails there is raised everywhere.

    Args:
        team: the processes.
        layers: the layers.
        references: by layer and by name; ``init`` is replaced where a run goes on.
        names: of the references.
        view: how a kernel becomes a matrix.
        open_file: opens the file, given the initial weights.

    Returns:
        The journal; one that keeps nothing in all processes but the leader.
    """
    by_name = {layer.name: layer for layer in layers}
    shared = ShardedLayers(team, list(by_name), plan("support", names), references, view, {})
    moment = Moment(shared, lambda name: by_name[name].read())
    initials = _SharedInitials(layers, references, moment) if "init" in names else ()
    opened: Opened | None = None
    error: Exception | None = None
    try:
        opened = moment.share(0, lambda: open_file(initials))
    except Exception as failure:
        error = failure
    team.raise_together(error)
    journal, kept = opened or (Journal(NoWriter()), None)
    if team.agreed(kept is not None):
        wholes = None if kept is None else {one.layer: initial_tensor(one) for one in kept}
        for name, weight in initial_weights(wholes, layers, team).items():
            references[name]["init"] = weight
    return journal

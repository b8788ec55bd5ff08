"""The summary: what was trained, how, and what was recorded of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zanalysis.reporting.gathering import Record
from zanalysis.reporting.text import number

__all__ = ["layer_rows", "summary"]

_FIRST = ("lr", "momentum", "betas", "weight_decay")


def summary(record: Record) -> list[tuple[str, str]]:
    """Return the facts that stand first on the page.

    Args:
        record: the record; what its attributes lack is left out.

    Returns:
        Names and facts.
    """
    return [(name, fact) for name, fact in _facts(record) if fact]


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    attributes, steps = record.attributes, record.steps
    yield "model", _text(_mapping(attributes.get("model")).get("type"))
    yield "optimizer", "; ".join(_optimizers(attributes.get("optimizers")))
    if len(steps):
        plural = "steps" if len(steps) > 1 else "step"
        yield (
            "recorded",
            f"{number(len(steps))} {plural}, {number(int(steps[0]))} to {number(int(steps[-1]))}",
        )
    else:
        yield "recorded", "no step yet"
    yield "schedule", _text(attributes.get("schedule"))
    # A sample of a probe stands where a layer's name does, and is none.
    followed = {one.layer for one in record.series if one.tensor != "jacobian"}
    followed |= {key.layer for key in record.spectrum_keys if key.tensor != "jacobian"}
    yield "layers", number(len(followed))
    yield "metrics", _several([one.metric for one in record.series], bool(record.spectrum_keys))
    yield "tensors", _several([key[1] for key in (*record.series, *record.spectrum_keys)])
    yield "references", _several([key[2] for key in (*record.series, *record.spectrum_keys)])
    yield "tolerance rules", _several([s.tolerance_rule for s in record.series if s.tolerance_rule != "none"])
    yield "view of kernels", _text(attributes.get("view"))
    yield "seed of torch", _text(attributes.get("torch_seed"))
    yield "cost of recording", _cost(record)
    for name, fact in _mapping(attributes.get("user")).items():
        yield str(name), _text(fact)
    yield "versions", ", ".join(f"{k} {_text(v)}" for k, v in _mapping(attributes.get("versions")).items())


def _several(words: list[str], spectra: bool = False) -> str:
    return ", ".join(dict.fromkeys([*words, *(["singular_values"] if spectra else [])]))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _optimizers(optimizers: Any) -> Iterator[str]:
    for optimizer in optimizers if isinstance(optimizers, list) else []:
        groups = _mapping(optimizer).get("groups")
        groups = [_mapping(group) for group in groups] if isinstance(groups, list) else []
        first = groups[0] if groups else {}
        settings = [f"{key} {_text(first[key])}" for key in _FIRST if first.get(key) not in (None, 0)]
        more = f", {len(groups)} groups" if len(groups) > 1 else ""
        said = f" ({', '.join(settings)}{more})" if settings or more else ""
        yield f"{_text(_mapping(optimizer).get('type'))}{said}"


def _cost(record: Record) -> str:
    if record.overhead is None or not len(record.overhead):
        return ""
    total = record.overhead.iloc[-1]
    share = float(total["share"])
    if not np.isfinite(share):
        return ""
    return f"{float(total['seconds']):.3g} s inside the loop, {100 * share:.2g} % of the time"


def layer_rows(attributes: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what is recorded of each layer's shape and start.

    Args:
        attributes: of a run.

    Returns:
        `name`, `shape`, `dtype`, `start` and the largest magnitude at the `start_scale`, as text.
    """
    layers = attributes.get("layers")
    rows = []
    for layer in map(_mapping, layers if isinstance(layers, list) else []):
        shape = layer.get("shape")
        rows.append(
            {
                "name": _text(layer.get("name")) or "(no name)",
                "shape": " × ".join(map(str, shape)) if isinstance(shape, list) else "",
                "dtype": _text(layer.get("dtype")),
                "start": _text(layer.get("start")),
                "scale": _text(layer.get("start_scale")),
            }
        )
    return rows

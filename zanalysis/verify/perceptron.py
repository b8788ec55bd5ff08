"""What a record says of the network it watched, as far as Theorem 1 asks.

Theorem 1 of the ZerO paper is about perceptrons `z_l = φ(W_l z_{l−1})`. A hypothesis that the record
does not show to be met is *unmet*: the sentence that says so names it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from zanalysis.runfile.reader import Run

__all__ = ["Perceptron"]

# Activations by their value and slope at 0. With φ(0) = 0 a unit that is zero stays zero; with
# φ'(0) = 0 besides, nothing flows back through it either.
FLAT_AT_ZERO = {"ReLU", "ReLU6", "Hardshrink", "Softshrink"}
ZERO_AT_ZERO = FLAT_AT_ZERO | {
    "CELU", "ELU", "GELU", "Hardswish", "Hardtanh", "LeakyReLU", "Mish", "PReLU", "RReLU", "SELU", "SiLU",
    "Softsign", "Tanh", "Tanhshrink",
}  # fmt: skip
NONZERO_AT_ZERO = {"Hardsigmoid", "LogSigmoid", "Sigmoid", "Softmax", "Softmin", "Softplus", "LogSoftmax"}
HARMLESS = {"Dropout", "AlphaDropout", "Flatten", "Identity", "Linear"}


@dataclass(frozen=True)
class Perceptron:
    """A run, read as the record of a perceptron."""

    run: Run

    @property
    def label(self) -> str:
        """What the run is called."""
        return self.run.path.stem

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every number recorded against the identity."""
        table = self.run.table()
        return table[(table["reference"] == "identity") & (table["tensor"] == "weight")]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The recorded weights, in order, as the tracker described them."""
        layers: list[dict[str, Any]] = self.run.attributes.get("layers", [])
        return layers

    @property
    def hidden(self) -> list[dict[str, Any]]:
        """Every weight but the first and the last."""
        return self.layers[1:-1]

    @property
    def n_x(self) -> int:
        """Input dimension, the columns of the first weight."""
        return int(self.layers[0]["shape"][1])

    @property
    def n_y(self) -> int:
        """Output dimension, the rows of the last weight."""
        return int(self.layers[-1]["shape"][0])

    @property
    def widths(self) -> list[int]:
        """Dimensions of the hidden spaces."""
        return [int(layer["shape"][0]) for layer in self.layers[:-1]]

    @cached_property
    def activations(self) -> list[str]:
        """The types of the modules between the weights that are not linear maps, each once."""
        model = self.run.attributes.get("model", {})
        modules = model.get("modules", [])
        if model.get("sequential") and self.layers:
            # Only here is the order that of execution; what follows the last weight belongs to the loss.
            names = [module["name"] for module in modules]
            last = self.layers[-1]["name"]
            modules = modules[: names.index(last)] if last in names else modules
        kinds = [module["type"] for module in modules if module["type"] not in HARMLESS]
        return list(dict.fromkeys(kinds))

    @property
    def flat_at_zero(self) -> bool:
        """Whether the activation also has slope 0 at 0, as torch's ReLU has."""
        return bool(self.activations) and set(self.activations) <= FLAT_AT_ZERO

    @property
    def weight_decay(self) -> float:
        """The largest weight decay among the optimizers' groups."""
        groups = [g for o in self.run.attributes.get("optimizers", []) for g in o.get("groups", [])]
        return max([float(group.get("weight_decay") or 0.0) for group in groups], default=0.0)

    @property
    def optimizer(self) -> str:
        """The type of the first optimizer."""
        optimizers = self.run.attributes.get("optimizers", [])
        return optimizers[0]["type"] if optimizers else "the optimizer"

    def unmet(self) -> Iterator[str]:
        """Yield the hypotheses on the architecture that the record does not show to be met.

        Yields:
            A clause for each.
        """
        if len(self.layers) < 3 or any(len(layer["shape"]) != 2 for layer in self.layers):
            yield "the network is not recorded as a perceptron with at least three weight matrices"
            return
        weights = [p for p in self.run.attributes["model"]["parameters"] if len(p["shape"]) >= 2]
        if len(weights) != len(self.layers):
            yield f"only {len(self.layers)} of the model's {len(weights)} weights are recorded (record every layer)"
        narrow = min(self.widths)
        if narrow < max(self.n_x, self.n_y):
            yield (
                f"N_h ≥ N_x, N_y is not met: the narrowest hidden space has {narrow} dimensions, "
                f"N_x = {self.n_x}, N_y = {self.n_y}"
            )
        yield from self._unmet_activation()
        for parameter in self.run.attributes["model"]["parameters"]:
            if parameter["name"].split(".")[-1].startswith("bias") and not parameter["zero"]:
                yield f"the bias {parameter['name']} is not zero at step 0"
        if self.run.attributes.get("start", 0) != 0:
            yield f"the record begins at step {self.run.attributes['start']}, not at the initialization"

    def _unmet_activation(self) -> Iterator[str]:
        if not self.activations and not self.run.attributes["model"].get("sequential"):
            yield (
                "no activation function is recorded (one that is called inside forward cannot be seen: use a "
                "module such as nn.ReLU)"
            )
        for kind in self.activations:
            if kind in NONZERO_AT_ZERO:
                yield f"the activation function {kind} does not vanish at 0"
            elif kind not in ZERO_AT_ZERO:
                yield f"the module type {kind} is not part of the theorem's network"

    def starts(self) -> list[str]:
        """Return how each weight started, in order: ``identity``, ``hadamard``, ``zero``, ``other`` …."""
        return [str(layer.get("start", "unrecorded")) for layer in self.layers]

    def not_identity(self) -> Iterator[str]:
        """Yield a clause for each weight that did not start as the (partial) identity.

        Yields:
            The clause.
        """
        for layer, start in zip(self.layers, self.starts(), strict=True):
            if start != "identity":
                yield f"{layer['name']} does not start as the identity (its residual at step 0 is not zero)"

    def over_steps(self, layer: str) -> pd.DataFrame:
        """Return what was recorded of one layer against the identity, one row for each step.

        Args:
            layer: its name.

        Returns:
            Index step; a column for each metric (with its rule where there is one), and `bad`, the first
            status of the step that is neither ok, zero nor below_noise, else the empty string.
        """
        rows = self.table[self.table["layer"] == layer]
        names = rows["metric"] + rows["tolerance_rule"].map(
            lambda rule: "" if rule == "none" else f" ({rule})"
        )
        wide = rows.assign(name=names).pivot_table(
            index="step", columns="name", values="value", aggfunc="first", dropna=False, observed=True
        )
        fine = {"ok", "zero", "below_noise"}
        relevant = rows[rows["metric"].str.startswith(("support", "rank"))]
        bad = relevant.groupby("step")["status"].agg(lambda s: next((w for w in s if w not in fine), ""))
        return wide.assign(bad=bad.reindex(wide.index).fillna(""))

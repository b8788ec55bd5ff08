"""What a record says of the network it watched, as far as Theorem 1 asks.

Theorem 1 of the ZerO paper is about perceptrons `z_l = φ(W_l z_{l−1})`. A hypothesis that the record
does not show to be met is *unmet*: the sentence that says so names it.
"""

import re
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
NONZERO_AT_ZERO = {
    "AlphaDropout",
    "FeatureAlphaDropout",
    "Hardsigmoid",
    "LogSigmoid",
    "Sigmoid",
    "Softmax",
    "Softmin",
    "Softplus",
    "LogSoftmax",
}
HARMLESS = {"Dropout", "Flatten", "Identity", "Linear"}
RANDOM = {"Dropout", "RReLU"}


@dataclass(frozen=True)
class Perceptron:
    """A run, read as the record of a perceptron."""

    run: Run

    @property
    def label(self) -> str:
        """What the run is called."""
        return self.run.path.stem

    @property
    def kind(self) -> str:
        """The class of the model."""
        return str(self.run.attributes.get("model", {}).get("type", "the model"))

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

    @property
    def sequential(self) -> bool:
        """Whether the recorded modules, in their order, are all that happens."""
        return bool(self.run.attributes.get("model", {}).get("sequential"))

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """The modules that act between the first and the last weight, as far as their order is known."""
        modules: list[dict[str, Any]] = self.run.attributes.get("model", {}).get("modules", [])
        names = [module["name"] for module in modules]
        ends = [layer["name"] for layer in (self.layers[:1] + self.layers[-1:])]
        if self.sequential and set(ends) <= set(names):
            # Only here is the order that of execution; what follows the last weight belongs to the loss.
            return modules[names.index(ends[0]) : names.index(ends[-1]) + 1]
        return modules

    @property
    def activations(self) -> list[str]:
        """The types of the modules between the weights that are not linear maps, each once."""
        kinds = [module["type"] for module in self.modules if module["type"] not in HARMLESS]
        return list(dict.fromkeys(kinds))

    @property
    def random(self) -> list[str]:
        """The types of the modules that draw random numbers."""
        return sorted({module["type"] for module in self.modules} & RANDOM)

    @property
    def flat_at_zero(self) -> bool:
        """Whether the activation also has slope 0 at 0, as torch's ReLU has, behind every weight but the last."""
        if not self.activations or not set(self.activations) <= FLAT_AT_ZERO:
            return False
        if not self.sequential:
            return True
        flat = False
        for module in self.modules[1:]:
            if module["type"] == "Linear":
                if not flat:
                    return False
                flat = False
            flat = flat or module["type"] in FLAT_AT_ZERO
        return True

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
        yield from self._unmet_parameters()
        if self.run.attributes.get("start", 0) != 0:
            yield f"the record begins at step {self.run.attributes['start']}, not at the initialization"

    def _unmet_parameters(self) -> Iterator[str]:
        model = self.run.attributes["model"]
        kinds = {module["name"]: module["type"] for module in model["modules"]}
        for parameter in model["parameters"]:
            owner, _, attribute = parameter["name"].rpartition(".")
            if len(parameter["shape"]) >= 2 or parameter["zero"] or kinds.get(owner) == "PReLU":
                continue
            if attribute.startswith("bias"):
                yield f"the bias {parameter['name']} is not zero at step 0"
            else:
                yield f"the parameter {parameter['name']} is not part of the theorem's network"

    def _unmet_activation(self) -> Iterator[str]:
        if not self.activations and not self.sequential:
            yield (
                "no activation function is recorded (one that is called inside forward cannot be seen: use a "
                "module such as nn.ReLU)"
            )
        settings = {module["type"]: module["settings"] for module in self.modules}
        for kind in self.activations:
            limits = dict(re.findall(r"(min_val|max_val)=(-?[\d.e+-]+)", settings[kind]))
            clipped = float(limits.get("min_val", 0)) > 0 or float(limits.get("max_val", 0)) < 0
            if kind in NONZERO_AT_ZERO or clipped:
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

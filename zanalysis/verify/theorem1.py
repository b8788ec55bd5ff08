"""Theorem 1 of the ZerO paper, claim by claim, on recorded runs.

Zhao, Schäfer & Anandkumar, "ZerO Initialization", TMLR 2022, section 2.3. The paper writes
rank(W_l) ≤ N_x in equation 3; its proof bounds the residual `W_l − I`, and so does this.

(ii) is decided by the *support* of `W − α·I*`: outside a block every entry is exactly zero, so the
number of its non-zero rows and columns bounds the rank with no tolerance at all. The block has N_x
rows and columns where φ(0) = φ'(0) = 0 (ReLU), and max(N_x, N_y) where only φ(0) = 0.

The second cap is not in the paper. In the Hadamard network column j < p of H, p = 2^⌈log₂ N_x⌉,
depends on the row i only through i mod p, so the units i and i + p start equal and stay tied, except
where the first N_y differ through W_L: `rank(W_l − I) ≤ p + N_y`, whatever N_h. Rounding that
differs between tied units unties them, so only a float64 record decides it, and only one whose
Hadamard factor is a power of two can refute it: with an irrational factor the pre-activations that
are 0 in exact arithmetic get a rounding error of either sign, and the ReLU makes it count.
"""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from zanalysis.errors import InputError
from zanalysis.runfile.reader import Run, open_run
from zanalysis.verify import exact_cases
from zanalysis.verify.perceptron import Perceptron
from zanalysis.verify.verdict import Verdict, combined

__all__ = ["verify_theorem1"]

Source = Run | str | os.PathLike[str]

SPAN = "span_dimension/"
"""Logged scalars of this prefix are dimensions of activation spans over data, by module."""

_LARGEST_STATIC = 512


def verify_theorem1(runs: Source | Sequence[Source]) -> list[Verdict]:
    """Judge Theorem 1, its lemmas, its negative control and the second cap.

    Claims about training are judged on the runs whose recorded hypotheses are met; a hypothesis that
    is unmet, or not recorded, makes a part ``inconclusive`` and is named. Record every weight with
    `reference="identity"` and `metrics=("support", "rank")`. The others are computed anew.

    Args:
        runs: open runs or paths of run files, one or several.

    Returns:
        Verdicts on (i), (ii), (iii), Lemma 1, Lemma 2, the linear control and the second cap, in this
        order. A claim that runs decide has a part for each run and layer.

    Raises:
        InputError: if there is no run.
    """
    several = [runs] if isinstance(runs, Run | str | os.PathLike) else list(runs)
    if not several:
        raise InputError("no run was given; pass an open run, or several.")
    networks = [Perceptron(run if isinstance(run, Run) else open_run(run)) for run in several]
    return [
        _claim_i(networks),
        _claim_ii(networks),
        _claim_iii(networks),
        exact_cases.lemma_1(),
        exact_cases.lemma_2(),
        exact_cases.linear_control(),
        _second_cap(networks),
    ]


def _inconclusive(claim: str, bound: float | None, why: str, evidence: pd.DataFrame | None = None) -> Verdict:
    return Verdict(claim, "inconclusive", bound, None, why, pd.DataFrame() if evidence is None else evidence)


def _worst(claim: str, parts: Sequence[Verdict], fallback: str) -> Verdict:
    # The numbers are those of the part that comes nearest to failing.
    if not parts:
        return _inconclusive(claim, None, fallback)
    judgement = combined(parts)
    deciding = [part for part in parts if part.verdict == judgement]

    def slack(part: Verdict) -> float:
        if part.measured is None or part.bound is None:
            return float("-inf")
        return part.measured - part.bound

    chosen = max(deciding, key=slack)
    why = chosen.why
    others = [part for part in deciding if part is not chosen]
    if judgement != "inconclusive" and others:
        named = ", ".join(part.claim.removeprefix(f"{claim} ") for part in others[:8])
        why = f"{why.rstrip('.')}. The verdict is the same on {named}{', …' if len(others) > 8 else ''}."
    if judgement == "inconclusive" and others:
        why = "; ".join(dict.fromkeys(part.why for part in deciding))
    rows = [part.evidence.assign(part=part.claim) for part in parts if len(part.evidence)]
    evidence = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    return Verdict(claim, judgement, chosen.bound, chosen.measured, why, evidence, tuple(parts))


def _claim_i(networks: Sequence[Perceptron]) -> Verdict:
    widths = [max(network.widths) for network in networks if len(network.layers) >= 2]
    static = exact_cases.perturbed_identities(min(max(widths, default=256), _LARGEST_STATIC))
    parts = [static, *(part for network in networks for part in _random_starts(network))]
    judged = _worst("(i)", parts, "")
    trained = [part for part in parts[1:] if part.verdict == "holds"]
    why = static.why
    if trained:
        why += "; " + "; ".join(part.why for part in trained)
    shown = trained[-1] if trained else static
    if judged.verdict == "violated":
        return judged
    return Verdict("(i)", judged.verdict, shown.bound, shown.measured, why, judged.evidence, tuple(parts))


def _random_starts(network: Perceptron) -> Iterator[Verdict]:
    """Yield a verdict for each randomly initialized square hidden layer, at its first record."""
    for layer in network.hidden:
        rows, columns = layer["shape"] if len(layer["shape"]) == 2 else (0, 1)
        if layer.get("start") != "other" or rows != columns:
            continue
        seen = network.over_steps(layer["name"])
        ranks = [column for column in seen.columns if column.startswith("rank (")]
        name = f"(i) {network.label} {layer['name']}"
        if 0 not in seen.index or not ranks:
            yield _inconclusive(name, rows, "its rank at step 0 is not recorded")
            continue
        found = float(seen[ranks].max(axis=1).loc[0])
        why = f"{network.label}: {layer['name']} − I has rank {found:.0f} of {rows} at step 0, and at least "
        why += f"{seen[ranks].max(axis=1).min():.0f} at every recorded step"
        # A floating rank below the maximum refutes nothing that holds almost surely: it may be rounding.
        verdict = Verdict(
            name, "holds" if found == rows else "inconclusive", rows, found, why, _evidence(seen, network)
        )
        yield verdict


def _evidence(seen: pd.DataFrame, network: Perceptron) -> pd.DataFrame:
    return seen.reset_index().assign(run=network.label)


def _claim_ii(networks: Sequence[Perceptron]) -> Verdict:
    parts = [part for network in networks for part in _bounded(network)]
    return _worst("(ii)", parts, "no run was given")


def _bounded(network: Perceptron) -> Iterator[Verdict]:
    """Yield a verdict of (ii) for each hidden layer, or one on the network if a hypothesis is unmet."""
    unmet = [*network.unmet()]
    unmet += [*network.not_identity()] if len(network.layers) >= 3 else []
    if unmet:
        yield _inconclusive(f"(ii) {network.label}", None, f"{network.label}: {'; '.join(unmet)}")
        return
    bound = network.n_x if network.flat_at_zero else max(network.n_x, network.n_y)
    for layer in network.hidden:
        yield _bounded_layer(network, layer["name"], bound)


def _rule(column: str) -> str:
    rule = column.removeprefix("rank (").removesuffix(")")
    return f"tolerance {rule}" if rule[0].isdigit() else f"{rule} tolerance"


def _bounded_layer(network: Perceptron, layer: str, bound: int) -> Verdict:
    name, label = f"(ii) {network.label} {layer}", f"{network.label}: {layer}"
    seen = network.over_steps(layer)
    evidence = _evidence(seen, network)
    sides = ["support_rows", "support_columns"]
    if len(seen) == 0 or not set(sides) <= set(seen.columns):
        why = f"{label}: its support against the identity is not recorded: attach with reference='identity', "
        return _inconclusive(name, bound, why + "metrics=('support', 'rank')", evidence)
    if 0 not in seen.index:
        return _inconclusive(name, bound, f"{label}: step 0 is not recorded", evidence)
    supports = seen[sides].min(axis=1)
    measured = float(supports.max())
    ranks = [column for column in seen.columns if column.startswith("rank (")]
    floating = ", ".join(f"{seen[column].max():.0f} ({_rule(column)})" for column in ranks)
    beside = f" The floating rank reached {floating}." if ranks else ""
    if measured > bound:
        step = int(supports.index[int(supports.to_numpy().argmax())])
        rows_then, columns_then = (float(seen[side].loc[step]) for side in sides)
        why = (
            f"{label} − α·I* has {rows_then:.0f} non-zero rows and {columns_then:.0f} "
            f"columns at step {step}, more than the bound {bound}"
        )
        unsure = _unsure(network, measured)
        if unsure:
            return Verdict(name, "inconclusive", bound, measured, f"{why}; but {unsure}", evidence)
        caveat = "" if network.sequential else f" (as far as the code of {network.kind}.forward can be seen)"
        why += f", with every hypothesis met{caveat}.{beside}"
        return Verdict(name, "violated", bound, measured, why, evidence)
    bad = seen.index[seen["bad"] != ""]
    if len(bad):
        word = str(seen["bad"].loc[bad[0]])
        why = f"{label} is {word} at step {bad[0]}, so its support is unknown from there"
        if word == "no_common_diagonal":
            why += ": its diagonal differs where nothing was learned, which gradient descent does not do"
        return _inconclusive(name, bound, why, evidence)
    rows, columns = (seen[side].max() for side in sides)
    own = network.over_steps(network.layers[0]["name"])
    pixels = (
        f" (the data's own bound: {own[sides[1]].max():.0f} inputs are ever non-zero)"
        if sides[1] in own
        else ""
    )
    why = (
        f"{label} − α·I* is exactly zero outside {rows:.0f} rows and {columns:.0f} columns at each of "
        f"{len(seen)} recorded steps{pixels}.{beside}{_decay(network, seen)}"
    )
    return Verdict(name, "holds", bound, measured, why, evidence)


def _unsure(network: Perceptron, measured: float) -> str:
    # What keeps a support above the bound from refuting the theorem.
    if network.run.attributes.get("resumed"):
        return "the run was resumed, and whether with the same weights is not recorded"
    if not network.sequential and measured <= max(network.n_x, network.n_y):
        return (
            "where the activation stands is not recorded; without a ReLU behind each weight the bound is N_y"
        )
    return ""


def _decay(network: Perceptron, seen: pd.DataFrame) -> str:
    if network.weight_decay == 0 or "identity_scale" not in seen:
        return ""
    scale = float(seen["identity_scale"].iloc[-1])
    if scale == 1:
        return ""
    return (
        f" Weight decay {network.weight_decay:g} under {network.optimizer} shrinks the identity itself, to "
        f"α = {scale:.6g}, by the same factor everywhere: against I the residual would read (nearly) full rank, "
        "against α·I* its support stays exact."
    )


def _claim_iii(networks: Sequence[Perceptron]) -> Verdict:
    parts = []
    for network in networks:
        if not _is_hadamard(network) or "hadamard" not in network.starts():
            continue
        logged = network.run.logged()
        names = [name for name in map(str, logged.columns) if name.startswith(SPAN)]
        spans = {name.removeprefix(SPAN): float(logged[name].max()) for name in names}
        if not spans:
            continue
        where, widest = max(spans.items(), key=lambda item: item[1])
        supports = [network.over_steps(layer["name"])[["support_rows", "support_columns"]].min(axis=1).max()
                    for layer in network.hidden
                    if "support_rows" in network.over_steps(layer["name"])]  # fmt: skip
        beside = f"; the support of its residual reaches {max(supports):.0f}" if supports else ""
        parts.append(
            Verdict(
                f"(iii) {network.label}",
                "holds" if widest > network.n_x else "inconclusive",
                network.n_x,
                float(widest),
                f"{network.label}: the activations of {where} span {widest:.0f} dimensions over the data, "
                f"N_x = {network.n_x}{beside}",
                logged.assign(run=network.label),
            )
        )
    # Where N_x is a power of two, H I* has N_x distinct rows at most, and only training breaks the bound.
    static = exact_cases.static_span(n_x=24, n_h=64)
    judged = _worst("(iii)", [*parts, static], "")
    shown = [part for part in parts if part.verdict == "holds"]
    if not shown:
        missed = [f"{part.why}, not more" for part in parts]
        why = "; ".join([static.why, "no recorded run shows it" if not missed else missed[0]])
        return Verdict(
            "(iii)", static.verdict, static.bound, static.measured, why, judged.evidence, judged.parts
        )
    best = max(shown, key=lambda part: (part.measured or 0.0) - (part.bound or 0.0))
    return Verdict(
        "(iii)",
        judged.verdict,
        best.bound,
        best.measured,
        f"{best.why}; {static.why}",
        judged.evidence,
        (*parts, static),
    )


def _is_hadamard(network: Perceptron) -> bool:
    starts = network.starts()
    if len(starts) < 3 or not set(starts) <= {"hadamard", "identity"} or starts[-1] != "identity":
        return False
    # A network no wider than its input has no dimension-increasing layer: it is both kinds at once.
    named = str(network.run.attributes.get("user", {}).get("initialization", ""))
    return starts.count("hadamard") == 1 or ("hadamard" not in starts and named.startswith("hadamard"))


def _second_cap(networks: Sequence[Perceptron]) -> Verdict:
    parts = [part for network in networks if _is_hadamard(network) for part in _capped(network)]
    return _worst("second cap", parts, "no run starts with one Hadamard layer and identities behind it")


def _capped(network: Perceptron) -> Iterator[Verdict]:
    p = 1 << (network.n_x - 1).bit_length()
    cap = p + network.n_y
    unmet = [*network.unmet()]
    if network.random:
        unmet.append(f"{', '.join(network.random)} draws random numbers, which untie units")
    if network.weight_decay:
        unmet.append("weight decay shrinks the identity, and nothing in this network shows by how much")
    if unmet:
        yield _inconclusive(f"second cap {network.label}", cap, f"{network.label}: {'; '.join(unmet)}")
        return
    for layer in network.hidden:
        name, label = f"second cap {network.label} {layer['name']}", f"{network.label}: {layer['name']}"
        seen = network.over_steps(layer["name"])
        evidence = _evidence(seen, network)
        if layer["start"] != "identity":
            continue
        if "rank (default)" not in seen or (seen["bad"] != "").any():
            yield _inconclusive(
                name, cap, f"{label}: no rank with the default tolerance is recorded throughout", evidence
            )
            continue
        measured = float(seen["rank (default)"].max())
        if layer["dtype"] != "float64":
            why = f"{label} is {layer['dtype']}: rounding unties tied units; record it in float64"
            yield Verdict(name, "inconclusive", cap, measured, why, evidence)
            continue
        yield _judged_cap(network, layer, seen, (name, label), (p, cap))


def _judged_cap(
    network: Perceptron,
    layer: dict[str, Any],
    seen: pd.DataFrame,
    names: tuple[str, str],
    caps: tuple[int, int],
) -> Verdict:
    (name, label), (p, cap) = names, caps
    evidence = _evidence(seen, network)
    measured = float(seen["rank (default)"].max())
    if measured <= cap:
        why = f"{label} − I has rank {measured:.0f} ≤ p + N_y = {p} + {network.n_y} at every recorded step, in float64"
        width = layer["shape"][0]
        why += f": units i and i + {p} stay tied" if width > cap else f", which N_h = {width} alone ensures"
        return Verdict(name, "holds", cap, measured, why, evidence)
    why = f"{label} − I has rank {measured:.0f} > p + N_y = {cap} in float64"
    factors = [entry["start_scale"] for entry in network.layers if entry["start"] == "hadamard"]
    if all(math.frexp(factor)[0] == 0.5 for factor in factors):
        return Verdict(name, "violated", cap, measured, why, evidence)
    why += ", but the Hadamard factor is no power of two, so that rounding can untie units at the kink of the ReLU"
    return Verdict(name, "inconclusive", cap, measured, why, evidence)

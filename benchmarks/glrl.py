"""The confusion matrix of `verify glrl`, on systems of which the answer is known: `python -m benchmarks.glrl`.

The thresholds were set on seeds below 500; seeds from 1000 on were not looked at before.
"""

import argparse
import sys
import time
from collections import Counter

from rich.console import Console
from rich.table import Table

from zanalysis.experiments.glrl_cases import KINDS, case_of
from zanalysis.verify.glrl_part import judge_spectrum

WORDS = ("holds", "violated", "inconclusive")


def confusion(first: int, cases: int) -> dict[str, Counter[str]]:
    """Judge every kind of case.

    Args:
        first: the first seed.
        cases: how many of each kind.

    Returns:
        How often each word was said, by kind.
    """
    found: dict[str, Counter[str]] = {}
    for kind in KINDS:
        said = [
            judge_spectrum(
                case.steps, case.values, case.shape, reference=case.reference, clock=case.clock
            ).verdict
            for case in (case_of(kind, seed) for seed in range(first, first + cases))
        ]
        found[kind] = Counter(said)
    return found


def by_expectation(found: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """Sum over the kinds of which the same is expected.

    Args:
        found: as `confusion` returns it.

    Returns:
        How often each word was said, by what is right.
    """
    sums: dict[str, Counter[str]] = {"holds": Counter(), "not": Counter(), "inconclusive": Counter()}
    for kind, said in found.items():
        sums[KINDS[kind][1]] += said
    return sums


def shortcomings(found: dict[str, Counter[str]]) -> list[str]:
    """Say what is required and missed.

    Args:
        found: as `confusion` returns it.

    Returns:
        Sentences; none if all is well.
    """
    sums = by_expectation(found)
    missed = []
    if sums["not"]["holds"]:
        missed.append(f"{sums['not']['holds']} negatives hold; none may")
    if sums["holds"]["holds"] < 0.95 * sums["holds"].total():
        missed.append(f"{sums['holds']['holds']} of {sums['holds'].total()} positives hold; 95 % must")
    if sums["inconclusive"]["inconclusive"] < sums["inconclusive"].total():
        missed.append("a record that cannot tell was judged")
    return missed


def table_of(found: dict[str, Counter[str]], title: str) -> Table:
    """Lay the matrix out.

    Args:
        found: as `confusion` returns it.
        title: above it.

    Returns:
        A row for each kind, then the sums.
    """
    table = Table(title=title, title_justify="left")
    for column in ("kind", "right", *WORDS):
        table.add_column(column, justify="right" if column in WORDS else "left")
    names = {"not": "not holds"}
    for kind, said in found.items():
        right = KINDS[kind][1]
        table.add_row(kind, names.get(right, right), *(str(said[word] or "") for word in WORDS))
    table.add_section()
    for right, said in by_expectation(found).items():
        table.add_row("all", names.get(right, right), *(str(said[word]) for word in WORDS))
    return table


def main() -> int:
    """Print the matrix.

    Returns:
        0, or 1 if it falls short of what is required.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    parser.add_argument("--cases", type=int, default=10, help="of each kind")
    asked = parser.parse_args()
    begun = time.perf_counter()
    found = confusion(asked.first, asked.cases)
    seeds = f"seeds {asked.first} to {asked.first + asked.cases - 1}"
    console = Console(width=100)
    console.print(table_of(found, f"{asked.cases * len(KINDS)} cases, {len(KINDS)} kinds, {seeds}"))
    missed = shortcomings(found)
    for sentence in missed:
        console.print(f"falls short: {sentence}")
    print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())

"""Measure ours against its peers, side by side in one process: `make bench`.

Every module `benchmarks/rows_*.py` has a function `rows()` that returns dictionaries with the keys
name, ours_s, peer_s, ratio, ours_value, peer_value, required.
"""

import importlib
import platform
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def main() -> int:
    """Print one table of all rows; say at the end which fell short.

    Returns:
        0, or 1 if a ratio is below what is required.
    """
    sys.path.insert(0, str(Path(__file__).parent))
    wanted = sys.argv[1:]
    table = Table(title=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for column in ("row", "ours [s]", "peer [s]", "ratio", "required", "our value", "peer's value"):
        table.add_column(column)
    short = []
    for path in sorted(Path(__file__).parent.glob("rows_*.py")):
        if wanted and not any(word in path.stem for word in wanted):
            continue
        for row in importlib.import_module(path.stem).rows():
            table.add_row(
                row["name"], f"{row['ours_s']:.4g}", f"{row['peer_s']:.4g}", f"{row['ratio']:.3g}",
                str(row["required"]), str(row["ours_value"]), str(row["peer_value"]),
            )  # fmt: skip
            most = row.get("at_most")
            if (
                row["ratio"] > most
                if most is not None
                else isinstance(row["required"], int | float) and row["ratio"] < row["required"]
            ):
                short.append(row["name"])
    console = Console(width=200)
    console.print(table)
    for name in short:
        console.print(f"below what is required: {name}")
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())

"""Execute notebooks in place: `python notebooks/execute.py [NAME.ipynb …]`, all of this folder if none is named.

What a reader has no use for, and what would differ from run to run, is left out: the time of each cell, and the
versions of the kernel.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

__all__ = ["METADATA", "cleaned", "execute"]

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What a committed notebook says of its kernel."""
_TIMEOUT = 600


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out of a notebook what differs from run to run.

    Args:
        notebook: it is changed.

    Returns:
        The same notebook.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def execute(path: Path) -> Path:
    """Execute a notebook in its folder, and write it with its outputs.

    Args:
        path: of the notebook; it is replaced only when every cell has run.

    Returns:
        The path.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=_TIMEOUT, resources={"metadata": {"path": path.parent}}
    )
    client.record_timing = False
    client.execute()
    nbformat.write(cleaned(notebook), path)
    return path


def main(names: Sequence[str]) -> None:
    """Execute the notebooks that are named, or all that lie beside this file.

    Args:
        names: paths.
    """
    for path in [Path(name) for name in names] or sorted(Path(__file__).parent.glob("*.ipynb")):
        print(execute(path))


if __name__ == "__main__":
    main(sys.argv[1:])

"""WikiText-2 (Merity et al. 2017): the published files of tokens or raw text, or their copies in parquet."""

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.data.archives import FolderStore, Store, ZipStore, reading
from zanalysis.experiments.data.sources import located
from zanalysis.experiments.data.text import END, UNKNOWN, TextDataset, encoded

__all__ = ["load_wikitext"]

_PARTS = ("train", "valid", "test")
_TOPS = ("wikitext-2", "wikitext-2-raw")
_FOLDERS = ("", *_TOPS, "wikitext-2-v1", "wikitext-2-raw-v1")
_MOST_BYTES = 64 << 20  # the training text has 11 MB, that of WikiText-103 has 540 MB
_RAREST = 3  # what the authors replaced by <unk>, section 4.2 of the paper
_ROWS = 4096

_Reader = Callable[[str], str]


def load_wikitext(data_dir: str | os.PathLike[str] | None) -> TextDataset:
    """Load WikiText-2 as words.

    A line's words are what stands between spaces; each line, also an empty one, ends with `<eos>`. In the raw
    text, which has no `<unk>`, the words that the training text has fewer than three times become it.

    Args:
        data_dir: where the archive or the files lie, as in `load`.

    Returns:
        The text. Of the published tokens: 2,088,628, 217,646 and 245,569 of them, and 33,278 words.

    Raises:
        ZAnalysisError: if the files are missing and cannot be fetched, or are not what they should be.
    """
    where, read = located("wikitext-2", data_dir, _in_folder)
    parts = []
    for part in _PARTS:
        text = read(part)
        words = [word for line in _lines(text) for word in (*line.split(), END)]
        if not text.strip():
            raise ZAnalysisError(f"the {part} text of WikiText-2 in {where} is empty; fetch it again.")
        parts.append(words)
    if len(parts[0]) <= max(len(parts[1]), len(parts[2])):
        raise ZAnalysisError(
            f"the training text of WikiText-2 in {where} has {len(parts[0])} tokens, no more than another part of "
            "it; are the files swapped?"
        )
    if parts[1] == parts[2]:
        raise ZAnalysisError(
            f"the validation and the test text of WikiText-2 in {where} are the same; fetch them again."
        )
    raw = UNKNOWN not in parts[0]
    found, tokens = encoded(parts, _RAREST if raw else 1)
    train, valid, test = _three(found)
    return TextDataset("wikitext-2", train, valid, test, tokens, "WikiText-2, raw" if raw else "WikiText-2")


def _three(found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return found[0], found[1], found[2]


def _lines(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _in_folder(folder: Path) -> tuple[Path, _Reader] | None:
    for top in _TOPS:
        archive = folder / f"{top}-v1.zip"
        if archive.is_file():
            store = ZipStore(archive, top)
            return archive, _texts(store, "raw" if top.endswith("raw") else "tokens")
    for place in (folder / name for name in _FOLDERS):
        for ending in ("tokens", "raw"):
            if all((place / f"wiki.{part}.{ending}").is_file() for part in _PARTS):
                return place, _texts(FolderStore(place), ending)
        tables = {part: _tables(place, part) for part in _PARTS}
        if all(tables.values()):
            return place, lambda part, tables=tables: "".join(map(_parquet, tables[part]))
    return None


def _texts(store: Store, ending: str) -> _Reader:
    def read(part: str) -> str:
        name = f"wiki.{part}.{ending}"
        try:
            return store.read(name, _MOST_BYTES).decode()
        except UnicodeDecodeError as error:
            raise ZAnalysisError(f"{store.where(name)} is no text in UTF-8; fetch it again.") from error

    return read


def _tables(folder: Path, part: str) -> list[Path]:
    return sorted(folder.glob(f"{part}*.parquet"))


def _parquet(path: Path) -> str:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ZAnalysisError(
            "reading parquet needs pyarrow, which is not installed: pip install 'zanalysis[parquet]'."
        ) from error
    lines: list[str] = []
    size = 0
    try:
        with reading(path), pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise ZAnalysisError(
                    f"{path} should have the column text, but has {', '.join(file.schema_arrow.names)}."
                )
            for rows in file.iter_batches(batch_size=_ROWS, columns=["text"]):
                size += rows.nbytes
                if size > _MOST_BYTES:
                    raise ZAnalysisError(
                        f"{path} holds more than {_MOST_BYTES} bytes, more than it should; is it of WikiText-103?"
                    )
                lines += [(line or "").removesuffix("\n") for line in rows.column(0).to_pylist()]
    except (pyarrow.ArrowException, AttributeError) as error:
        raise ZAnalysisError(f"{path} is no parquet file of texts: {error}; fetch it again.") from error
    return "".join(f"{line}\n" for line in lines)

"""Text: the documentation of Python, WikiText-2 in its published formats, contiguous batches."""

import builtins
import platform
import sys
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import torch

from zanalysis.errors import InputError, ZAnalysisError
from zanalysis.experiments.data import TextDataset, load, wikitext
from zanalysis.experiments.data.text import encoded

TEXTS = {
    "train": " \n = Title = \n \n A word , <unk> and a word . \n \n Another line of it . \n",
    "valid": " \n A line . \n",
    "test": " \n Another word of it . \n",
}
RAW = {
    "train": " \n the cat sat \n the cat ran \n the cat is rare \n \n",
    "valid": " \n the dog sat \n",
    "test": " \n a cat \n",
}
NAMES = {"train": "train", "valid": "validation", "test": "test"}


def write_files(folder, texts, ending):
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in texts.items():
        (folder / f"wiki.{part}.{ending}").write_bytes(text.encode())


def write_zip(path, texts, ending):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part, text in texts.items():
            packed.writestr(f"{path.stem.removesuffix('-v1')}/wiki.{part}.{ending}", text)


def write_parquet(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in texts.items():
        # As published: a row is a line with its end, but an empty line is an empty row.
        lines = ["" if not line.strip() else f"{line}\n" for line in text.split("\n")[:-1]]
        table = pyarrow.table({"text": lines})
        pyarrow.parquet.write_table(table, folder / f"{NAMES[part]}-00000-of-00001.parquet")


def literal(texts):
    words = {
        part: [w for line in text.splitlines() for w in [*line.split(), "<eos>"]]
        for part, text in texts.items()
    }
    order = list(dict.fromkeys(w for part in ("train", "valid", "test") for w in words[part]))
    return words, order


def words_of(data, part):
    return [data.tokens[i] for i in getattr(data, part).tolist()]


@pytest.mark.parametrize("form", ["files", "above", "folder", "zip", "parquet"])
def test_wikitext_is_read_in_each_of_its_forms(tmp_path, form):
    {
        "files": lambda: write_files(tmp_path, TEXTS, "tokens"),
        "above": lambda: write_files(tmp_path / "wikitext-2", TEXTS, "tokens"),
        "folder": lambda: write_files(tmp_path / "wikitext-2" / "wikitext-2", TEXTS, "tokens"),
        "zip": lambda: write_zip(tmp_path / "wikitext-2-v1.zip", TEXTS, "tokens"),
        "parquet": lambda: write_parquet(tmp_path / "wikitext-2-v1", TEXTS),
    }[form]()
    data = load("wikitext-2", tmp_path)
    words, order = literal(TEXTS)
    assert data.tokens == order
    for part, expected in words.items():
        assert words_of(data, part) == expected
        assert getattr(data, part).dtype == torch.int64
    assert data.vocabulary == len(order)
    assert words["train"][:2] == ["<eos>", "="]
    assert data.origin == "WikiText-2"


@pytest.mark.parametrize("form", ["files", "zip", "parquet"])
def test_rare_words_of_the_raw_text_become_unknown(tmp_path, form):
    {
        "files": lambda: write_files(tmp_path / "wikitext-2-raw", RAW, "raw"),
        "zip": lambda: write_zip(tmp_path / "wikitext-2-raw-v1.zip", RAW, "raw"),
        "parquet": lambda: write_parquet(tmp_path / "wikitext-2-raw-v1", RAW),
    }[form]()
    data = load("wikitext-2", tmp_path)
    assert set(data.tokens) == {"<eos>", "the", "cat", "<unk>"}
    assert words_of(data, "valid") == ["<eos>", "the", "<unk>", "<unk>", "<eos>"]
    assert data.origin == "WikiText-2, raw"


FAULTS = {
    "empty": ({"test": ""}, "the test text of WikiText-2 in .* is empty"),
    "blank": ({"valid": " \n\n"}, "the valid text of WikiText-2 in .* is empty"),
    "swapped": (
        {"train": TEXTS["valid"], "valid": TEXTS["train"]},
        r"has 5 tokens, no more than .* swapped\?",
    ),
    "twice": ({"test": TEXTS["valid"]}, "the validation and the test text .* are the same"),
    "no text": ({"train": "\udcff\udcfe"}, r"wiki\.train\.tokens is no text in UTF-8"),
}


@pytest.mark.parametrize("case", sorted(FAULTS))
def test_faults_of_wikitext_are_named(tmp_path, case):
    changed, says = FAULTS[case]
    for part, text in {**TEXTS, **changed}.items():
        (tmp_path / f"wiki.{part}.tokens").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ZAnalysisError, match=says):
        load("wikitext-2", tmp_path)


def test_larger_texts_of_the_same_name_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "_MOST_BYTES", 60)
    write_files(tmp_path / "a", TEXTS, "tokens")
    write_zip(tmp_path / "wikitext-2-v1.zip", TEXTS, "tokens")
    write_parquet(tmp_path / "b", TEXTS)
    with pytest.raises(ZAnalysisError, match=r"wiki\.train\.tokens holds more than 60 bytes"):
        load("wikitext-2", tmp_path / "a")
    with pytest.raises(ZAnalysisError, match=r"wiki\.train\.tokens in .*zip holds more than 60 bytes"):
        load("wikitext-2", tmp_path)
    with pytest.raises(ZAnalysisError, match=r"train-.*parquet holds more than 60 bytes.* WikiText-103"):
        load("wikitext-2", tmp_path / "b")


def test_parquet_of_something_else_is_named(tmp_path):
    write_parquet(tmp_path, TEXTS)
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["a"]}), path)
    with pytest.raises(
        ZAnalysisError, match=r"train-.*parquet should have the column text, but has sentence"
    ):
        load("wikitext-2", tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(ZAnalysisError, match=r"train-.*parquet is no parquet file of texts"):
        load("wikitext-2", tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ZAnalysisError, match=r"train-.*parquet.*; fetch it again"):
        load("wikitext-2", tmp_path)


def test_what_is_missing_is_named(tmp_path):
    write_files(tmp_path, {"train": "a", "valid": "b"}, "tokens")
    with pytest.raises(
        ZAnalysisError, match=r"wikitext-2 is not in .*: put wikitext-2-v1\.zip, or the files"
    ):
        load("wikitext-2", tmp_path)


def counting(n):
    part = torch.arange(n)
    return TextDataset("counting", part, part[:5], part, [str(i) for i in range(n)], "a count")


@pytest.mark.parametrize(("tokens", "batch", "length"), [(100, 4, 7), (101, 3, 8), (50, 1, 49), (10, 5, 3)])
def test_batches_are_contiguous(tokens, batch, length):
    data = counting(tokens)
    pairs = list(data.batches("train", batch, length))
    each = tokens // batch
    inputs = torch.cat([i for i, _ in pairs], dim=1)
    targets = torch.cat([t for _, t in pairs], dim=1)
    for column in range(batch):
        text = list(range(column * each, (column + 1) * each))
        assert inputs[column].tolist() == text[:-1]
        assert targets[column].tolist() == text[1:]
    assert all(i.shape == t.shape for i, t in pairs)
    assert all(i.shape == (batch, length) for i, _ in pairs[:-1])
    assert data.count("train", batch, length) == len(pairs)


def test_batches_that_cannot_be_are_refused():
    data = counting(100)
    with pytest.raises(InputError, match="unknown split 'tset'; did you mean 'test'"):
        data.batches("tset", 4, 7)
    with pytest.raises(InputError, match="batch and length are at least 1, got 4 and 0"):
        data.batches("train", 4, 0)
    with pytest.raises(InputError, match=r"has 5 tokens, too few for 3 texts .* a batch of at most 2"):
        data.batches("valid", 3, 7)


def test_a_shorter_text_has_another_fingerprint():
    data = counting(100)
    few = data.subset(train=50)
    assert (len(few.train), len(few.test), few.vocabulary) == (50, 100, 100)
    assert len({data.fingerprint, few.fingerprint, data.subset(test=99).fingerprint}) == 3
    assert data.subset(train=100).fingerprint == data.fingerprint
    with pytest.raises(InputError, match="counting has 5 valid tokens, so not 6"):
        data.subset(valid=6)


def test_every_word_is_kept_unless_rare_ones_are_not_wanted():
    parts, words = encoded([["a", "b", "a"], ["c"]])
    assert ([part.tolist() for part in parts], words) == ([[0, 1, 0], [2]], ["a", "b", "c"])


def test_the_documentation_of_python_is_split_without_overlap():
    data = load("pydoc")
    total = len(data.train) + len(data.valid) + len(data.test)
    assert total > 50_000
    assert abs(len(data.train) / total - 0.8) < 0.02
    assert abs(len(data.valid) - len(data.test)) < 0.02 * total
    assert 1000 < data.vocabulary < 5000
    unknown = data.tokens.index("<unk>")
    # A word of the vocabulary stands at least three times in the training text.
    counts = torch.bincount(data.train, minlength=data.vocabulary)
    counts[unknown] = 3
    assert counts.min() >= 3
    lines = {part: " ".join(words_of(data, part)).split("<eos>") for part in ("train", "valid", "test")}
    # Lines that differ in rare words alone may look the same.
    long = {
        part: {line for line in ls if len(line.split()) > 6 and "<unk>" not in line}
        for part, ls in lines.items()
    }
    assert len(long["train"]) > 1000
    assert not long["train"] & (long["valid"] | long["test"])
    assert not long["valid"] & long["test"]


def test_the_documentation_is_the_same_twice_and_says_of_which_python(monkeypatch):
    data = load("pydoc")
    assert load("pydoc").fingerprint == data.fingerprint
    assert data.origin == f"pydoc_data.topics of Python {platform.python_version()}"
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert load("pydoc").fingerprint != data.fingerprint


def test_a_python_without_its_documentation_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("pydoc_data"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ZAnalysisError, match=r"was installed without pydoc_data\.topics; install the whole"):
        load("pydoc")

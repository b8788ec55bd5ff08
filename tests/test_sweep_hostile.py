"""Damaged and malicious files through `zanalysis analyze`: an answer, or one clear sentence and exit code 2."""

import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

FILES = 300
MOST_MEMORY = 1 << 30
UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def state():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 9), nn.Conv1d(3, 4, 3), nn.Embedding(7, 5), nn.Conv2d(2, 3, 3))
    return model.state_dict() | {"half.weight": torch.randn(6, 6).bfloat16()}


def whole(kind):
    if kind == "safetensors":
        return _bytes_of(lambda path: save_file(state(), path))
    if kind == "legacy":
        return _bytes_of(lambda path: torch.save(state(), path, _use_new_zipfile_serialization=False))
    training = {"state_dict": state(), "epoch": 3, "global_step": 17, "optimizer": {"lr": 0.1}}
    return _bytes_of(lambda path: torch.save(training, path))


def _bytes_of(save):
    path = Path(os.environ["FUZZ_SCRATCH"])
    save(path)
    return path.read_bytes()


def damaged(data, chance):
    """Return the bytes with a few things wrong, as a bad disk, a cut transfer or a liar would have it."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data))
        match chance.randrange(7):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice((0, 1, 127, 128, 255))
            case 2:
                del data[at:]
                data += b"x"
            case 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 40))
            case 4:
                del data[at : at + chance.randrange(1, 200)]
                data += b"x"
            case 5:
                length = chance.randrange(1, 64)
                data[at : at + length] = bytes(length)
            case 6:
                digits = [m.start() for m in re.finditer(rb"[0-9]", bytes(data[:4000]))]
                if digits:
                    data[chance.choice(digits)] = ord(chance.choice("0123456789-e"))
    return bytes(data)


def with_damaged_member(data, chance):
    """Return a zip archive in which one member is damaged and every checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as after:
        members = before.namelist()
        victim = (
            next(m for m in members if m.endswith("data.pkl"))
            if chance.random() < 0.8
            else chance.choice(members)
        )
        for member in members:
            content = before.read(member)
            after.writestr(member, damaged(content, chance) if member == victim else content)
    return out.getvalue()


def run(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, str(Path(__file__).with_name("fuzz_analyze.py")), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, (
        result.returncode,
        result.stderr[-2000:],
        lines[-1][0] if lines else "none",
    )
    return {name: (code, said, results) for name, code, said, results, _ in lines[:-1]}, lines[-1]


KINDS = ("safetensors", "pt", "legacy")


def write_damaged(folder, files, seed):
    os.environ["FUZZ_SCRATCH"] = str(folder.with_name("scratch"))
    for kind in KINDS:
        chance, data = random.Random(seed), whole(kind)
        for i in range(files):
            repacked = kind == "pt" and i % 2
            content = with_damaged_member(data, chance) if repacked else damaged(data, chance)
            suffix = kind if kind == "safetensors" else "pt"
            (folder / f"{kind}-{i:04}.{suffix}").write_bytes(content)


def judge(answers, peak, kind, files):
    answers = {name: answer for name, answer in answers.items() if name.startswith(f"{kind}-")}
    assert len(answers) == files
    for name, (code, said, results) in answers.items():
        assert code in (0, 2), (name, code, said)
        assert "Traceback" not in said + results, (name, said)
        if code == 2:
            assert said.startswith("zanalysis: "), (name, said)
            assert name in said, (name, said)
        assert not UNSEEN.search(said + results), (name, said)
    codes = [code for code, *_ in answers.values()]
    assert codes.count(2) > files / 10
    assert codes.count(0) > files / 30
    assert peak < MOST_MEMORY


class Touch:
    """A pickle that would create a file when it is read."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.path}",)
        if self.how == "open":
            return open, (self.path, "w")
        return eval, (f"__import__('pathlib').Path({self.path!r}).touch()",)


HOW, WHERE = ("system", "open", "eval"), ("zip", "old", "bare")
EVIL = "fc\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[red]bold[/red]\n:boom:.weight"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Everything hostile, through the command line of one process."""
    folder = tmp_path_factory.mktemp("hostile") / "files"
    folder.mkdir()
    write_damaged(folder, FILES, seed=20)
    for how in HOW:
        for where in WHERE:
            payload = {"fc.weight": torch.eye(4), "config": Touch(folder.with_name(f"created-{how}"), how)}
            target = folder / f"evil-{how}-{where}.pt"
            if where == "bare":
                target.write_bytes(pickle.dumps(payload["config"]))
            else:
                torch.save(payload, target, _use_new_zipfile_serialization=where == "zip")
    save_file({EVIL: torch.eye(4), "ok.weight": torch.eye(3)}, folder / "escapes.safetensors")
    torch.save({EVIL: torch.eye(4)}, folder / "escapes.pt")
    return folder, *run(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_an_answer_or_a_sentence(hostile, kind):
    _, answers, peak = hostile
    judge(answers, peak, kind, FILES)


@pytest.mark.slow
def test_more_damaged_files_do_too(tmp_path):
    (tmp_path / "files").mkdir()
    write_damaged(tmp_path / "files", 1000, seed=21)
    answers, peak = run(tmp_path / "files")
    for kind in KINDS:
        judge(answers, peak, kind, 1000)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", WHERE)
def test_a_pickle_that_would_create_a_file_creates_none(hostile, how, where):
    folder, answers, _ = hostile
    code, said, results = answers[f"evil-{how}-{where}.pt"]
    assert not folder.with_name(f"created-{how}").exists()
    assert code == 2 or "fc" in results
    assert "Traceback" not in said


def test_the_pickles_would_create_files_where_they_are_trusted(tmp_path):
    for how in HOW:
        made = pickle.loads(pickle.dumps(Touch(tmp_path / how, how)))
        if how == "open":
            made.close()
        assert (tmp_path / how).exists()


def test_names_with_escapes_are_shown_inert(hostile):
    _, answers, _ = hostile
    for name in ("escapes.safetensors", "escapes.pt"):
        code, said, results = answers[name]
        assert code == 0
        assert not UNSEEN.search(said + results)
        assert r"fc\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[red]bold[/red]\n:boom:" in results

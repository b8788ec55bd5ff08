"""Pickles that would run something: nothing runs, nothing is imported, and what is refused is said."""

import builtins
import functools
import operator
import os
import pickle
import struct
import subprocess
import sys

import pytest
import torch

from zanalysis.checkpoints import open_checkpoint
from zanalysis.checkpoints.streams import Window
from zanalysis.checkpoints.unpickler import Unpickler
from zanalysis.errors import CheckpointError


class Calls:
    """Pickles as a call."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Outer:
    class Inner:
        pass


def write(data, folder, layout):
    """Put a pickle where `torch.load` would find it."""
    path = folder / f"{layout}.pt"
    if layout == "plain":
        path.write_bytes(data)
    elif layout == "dcp":
        (folder / "dcp").mkdir()
        (folder / "dcp" / ".metadata").write_bytes(data)
        return folder / "dcp"
    elif layout == "legacy":
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join(head) + data + pickle.dumps([], 2))
    else:
        writer = torch._C.PyTorchFileWriter(str(path))
        writer.write_record("data.pkl", data, len(data))
        writer.write_end_of_file()
    return path


LAYOUTS = ("plain", "zip", "legacy", "dcp")


def evil(target):
    """Objects whose unpickling would make the file `target`, by every road that pickle offers."""
    touch = f"touch {target}"
    code = f"open({str(target)!r}, 'w')"
    system = Calls(os.system, (touch,))
    return {
        "os.system": system,
        "in a state dict": {"state_dict": {"fc.weight": system}},
        "as a key's value in args": Calls(torch.Size, (system,)),
        "in a state": Calls(Outer, (), {"a": system}),
        "appended": Calls(list, (), None, iter([system])),
        "set": Calls(dict, (), None, iter([("a", system)])),
        "eval": Calls(eval, (code,)),
        "exec": Calls(exec, (code,)),
        "import": Calls(__import__, ("os",)),
        "getattr": Calls(getattr, (Calls(__import__, ("os",)), "system")),
        "getattr of a class": Calls(getattr, (Outer, "__init__")),
        "partial": Calls(functools.partial, (os.system, touch)),
        "methodcaller": Calls(operator.methodcaller, ("system", touch)),
        "subprocess": Calls(subprocess.Popen, (["touch", str(target)],)),
        "torch.load": Calls(torch.load, (str(target),)),
        "torch.hub": Calls(torch.hub.load_state_dict_from_url, ("x",)),
        "torch.jit.load": Calls(torch.jit.load, (str(target),)),
        "nested torch.save": Calls(torch.storage._load_from_bytes, (b"x",)),
        "open": Calls(builtins.open, (str(target), "w")),
        "compile": Calls(compile, (code, "x", "exec")),
        "rebuilder of another rebuilder": Calls(
            torch._tensor._rebuild_from_type_v2, (os.system, torch.Tensor, (touch,), {})
        ),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("case", evil("x"))
def test_what_would_run_a_program_is_refused(case, protocol, layout, tmp_path):
    target = tmp_path / "created"
    path = write(pickle.dumps(evil(target)[case], protocol), tmp_path, layout)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"nothing was run, and the file is refused|no rebuilder of torch"
    ):
        open_checkpoint(path)
    assert set(tmp_path.rglob("*")) == before
    assert not target.exists()


def test_the_sentence_names_the_file_and_the_call(tmp_path):
    path = write(pickle.dumps(Calls(os.system, ("true",)), 2), tmp_path, "zip")
    name = "posix.system" if os.name == "posix" else "nt.system"
    with pytest.raises(
        CheckpointError, match=rf"zip\.pt names {name}, which can run a program; nothing was run"
    ):
        open_checkpoint(path)
    path = write(pickle.dumps(Calls(torch.load, ("x",)), 2), tmp_path, "zip")
    with pytest.raises(
        CheckpointError, match=r"calls torch\.serialization\.load, and a checkpoint may call nothing"
    ):
        open_checkpoint(path)


RAW = {
    "inst": (b"(S'touch x'\nios\nsystem\n.", "an opcode|the opcode STRING"),
    "inst of binary text": (b"(U\x07touch xios\nsystem\n.", "names os.system"),
    "inst of a function": (b"(U\x01xitorch\nload\n.", "calls torch.load"),
    "obj": (b"(cos\nsystem\nU\x07touch xo.", "names os.system"),
    "obj of a function": (b"(ctorch\nload\nU\x01xo.", "calls torch.load"),
    "obj of nothing": (b"(o.", "calls an object that it brings along"),
    "reduce of an object": (b"cfoo\nBar\n)R)R.", "calls an object that it brings along"),
    "reduce of a text": (b"U\x02os)R.", "calls an object that it brings along"),
    "reduce without a tuple": (b"cfoo\nBar\nNR.", "calls something with no arguments"),
    "ext1": (b"\x82\x01.", "the opcode EXT1"),
    "ext2": (b"\x83\x01\x00.", "the opcode EXT2"),
    "ext4": (b"\x84\x01\x00\x00\x00.", "the opcode EXT4"),
    "a text id": (b"P1\n.", "the opcode PERSID"),
    "a buffer": (b"\x97.", "the opcode NEXT_BUFFER"),
    "an id that is none": (b"K\x01Q.", "refers to something that is no storage"),
    "an id of an unknown type": (b"(U\x07storagecfoo\nBar\nU\x010U\x03cpuK\x01tQ.", "no storage"),
    "an id with a negative count": (
        b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xff\xff\xff\xfftQ.",
        "no storage",
    ),
    "an id with a long key": (
        b"(U\x07storagectorch\nFloatStorage\nX" + struct.pack("<I", 9999) + b"a" * 9999 + b"U\x03cpuK\x01tQ.",
        "no storage",
    ),
    "two-part name": (b"cos path\nsystem\n.", "names a class"),
    "name with a line": (b"\x80\x04U\x03os\nU\x06system\x93.", "names a class"),
    "name with an escape": (b"cos\x1b[2J\nsystem\n.", r"names a class 'os\\x1b\[2J.system'"),
    "name of no text": (b"\x80\x04K\x01K\x02\x93.", "is no text"),
    "dotted name": (b"\x80\x04U\x05torchU\x10subprocess.Popen\x93.", "names torch.subprocess.Popen"),
    "python 2 builtins": (b"c__builtin__\neval\n.", "names builtins.eval"),
    "a memo that is not there": (b"h\x05.", "refers to what is not there"),
    "a huge memo index": (b"Nr\xff\xff\xff\xff0N.", None),
    "a memo index beyond": (b"Np99999999999\n.", "memo index is out of range"),
    "a negative memo index": (b"Np-1\n.", "memo index is out of range"),
    "an empty stack": (b".", "takes more than it put down"),
    "no mark": (b"Nt.", "lacks a mark"),
    "beyond a mark": (b"N(0N\x85a.", "appends to no list|takes more"),
    "no end": (b"N", "something else than a pickle"),
    "an unknown opcode": (b"\xff", "something else than a pickle"),
    "a long text that is not there": (
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        "expected 9223372036854775807 bytes",
    ),
    "a long byte string that is not there": (
        b"\x8e\xff\xff\xff\xff\x00\x00\x00\x00abc.",
        "expected 4294967295 bytes",
    ),
    "a long number that is not there": (b"\x8b\xff\xff\xff\x7fabc.", "not enough data"),
    "a number of many digits": (b"L" + b"9" * 100_000 + b"L\n.", "Exceeds the limit"),
    "odd items": (b"}(Nu.", "sets items of no mapping"),
    "items of a list": (b"]K\x01K\x02s.", "sets items of no mapping"),
    "appended to a text": (b"U\x01aK\x01a.", "appends to no list"),
    "made of no class": (b"K\x01)\x81.", "makes an object of no class"),
    "a rebuilder with too few": (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "is given 0 arguments"),
    "a rebuilder without storage": (
        b"ctorch._utils\n_rebuild_tensor\n(K\x00K\x00)" + b")tR.",
        "a tensor has no storage",
    ),
    "a parameter of a number": (b"ctorch.nn.parameter\nParameter\nK\x01\x85R.", "a parameter has no tensor"),
    "a parameter made of a number": (b"ctorch.nn.parameter\nParameter\nK\x01\x85\x81.", "has no tensor"),
    "a rebuilder through itself": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)NtR.",
        "no rebuilder of torch",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_odd_opcodes_are_refused(case, tmp_path):
    data, match = RAW[case]
    with pytest.raises(CheckpointError, match=match or "holds no weights|pickle"):
        open_checkpoint(write(data, tmp_path, "zip"))


def load(data):
    import io

    unpickler = Unpickler(Window(io.BytesIO(data), 0, len(data), 1 << 30))
    return unpickler.load(), list(unpickler.placeholders)


def test_a_huge_memo_index_takes_no_memory():
    assert load(b"\x80\x02Nr\xff\xff\xff\xff.") == (None, [])


def test_placeholders_only_carry_what_they_are_given():
    value, names = load(b"cmine\nobject\n(K\x01\x85tR.".replace(b"mine\nobject", b"mine\nObject"))
    assert (value.kind, value.args, names) == ("mine.Object", ((1,),), ["mine.Object"])
    assert type(value).__name__ == "Built"
    assert not hasattr(value, "__dict__")


def test_a_placeholder_named_like_object_is_one_too():
    value, names = load(b"cmine\nobject\n)\x81}U\x08__init__K\x01sb.")
    assert (value.kind, value.state.pairs, names) == ("mine.object", [("__init__", 1)], ["mine.object"])
    value, names = load(b"cbuiltins\nobject\n)\x81.")
    assert (value.kind, names) == ("builtins.object", [])


def test_special_attributes_of_a_state_are_only_data(tmp_path):
    value, _ = load(b"cmine\nThing\n)\x81}(U\x09__class__K\x01U\x0c__setstate__cmine\nThing\nub.")
    assert [key for key, _ in value.state.pairs] == ["__class__", "__setstate__"]
    assert type(value).__name__ == "Built"


def test_a_class_within_a_class_is_named():
    value, names = load(pickle.dumps(Outer.Inner(), 2))
    assert value.kind.endswith("Outer.Inner")
    assert names[-1].endswith("Outer.Inner")


def test_nothing_is_imported(tmp_path, monkeypatch):
    package = tmp_path / "importable_for_this_test.py"
    package.write_text(f"open({str(tmp_path / 'created')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for data in (b"cimportable_for_this_test\nThing\n)\x81.", b"cimportable_for_this_test\nThing\n)R."):
        with pytest.raises(CheckpointError, match="holds no weights"):
            open_checkpoint(write(data, tmp_path, "zip"))
    assert "importable_for_this_test" not in sys.modules
    assert not (tmp_path / "created").exists()


def test_environment_and_safe_globals_of_torch_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write(pickle.dumps(Calls(os.getcwd, ()), 2), tmp_path, "zip")
    with (
        torch.serialization.safe_globals([os.getcwd]),
        pytest.raises(CheckpointError, match="nothing was run"),
    ):
        open_checkpoint(path)


N = 50_000
BOMBS = {
    "deep lists": b"]" * N + b"a" * (N - 1) + b".",
    "deep tuples": b")" + b"\x85" * N + b".",
    "a deep tuple as a key": b"})" + b"\x85" * N + b"Ns.",
    "a deep tuple in a set": b"\x8f()" + b"\x85" * N + b"\x90.",
    "doubled tuples as a key": b"})" + b"2\x86" * 200 + b"Ns.",
    "doubled lists": b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(100)) + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a dict in itself": b"}q\x00U\x05modelh\x00s.",
    "deep dicts": b"}U\x01a" * N + b"N" + b"s" * N + b".",
    "many marks": b"(" * N + b"N.",
    "keys of one hash": b"}("
    + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(20_000))
    + b"u.",
    "one long list in many mappings": b"]("
    + b"N" * 2500
    + b"eq\x000]("
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 2500
    + b"e.",
    "many dicts": b"](" + b"}" * (2 * N) + b"e.",
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_end_in_a_sentence(case, tmp_path):
    with pytest.raises(CheckpointError, match=r"zip\.pt (holds no weights|holds millions|is damaged)"):
        open_checkpoint(write(BOMBS[case], tmp_path, "zip"))


def test_endless_pickles_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("zanalysis.checkpoints.unpickler._MOST_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="holds more than tensors: millions of Python objects"):
        open_checkpoint(write(b"](" + b"N" * 2000 + b"e.", tmp_path, "zip"))

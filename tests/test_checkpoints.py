"""Checkpoints as torch, safetensors and the usual trainers write them: found, described, equal to the bit."""

import argparse
import copy
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

from hooks import RankTracker, Recorder, every
from zanalysis.checkpoints import find_checkpoints, open_checkpoint, open_checkpoints, places
from zanalysis.errors import CheckpointError, InputError

Point = namedtuple("Point", "x y")


@dataclass
class Config:
    width: int
    where: Path


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 5)
        self.cell = nn.LSTM(4, 3)
        self.experts = nn.Parameter(torch.randn(2, 3, 4))
        self.register_buffer("fleeting", torch.randn(2, 2), persistent=False)
        self.register_buffer("kept", torch.randn(2, 2))


@pytest.fixture
def weights():
    """A state dict with what a layout can do wrong: views, strides, narrow dtypes, none, scalars."""
    flat = torch.arange(24, dtype=torch.float32)
    return OrderedDict(
        {
            "fc1.weight": torch.randn(4, 3),
            "fc1.bias": torch.randn(4),
            "layer.10.weight": torch.randn(3, 5).bfloat16(),
            "layer.9.weight": torch.randn(3, 5).half(),
            "double": torch.randn(2, 3, dtype=torch.float64),
            "transposed": torch.randn(5, 3).t(),
            "view": flat[6:18].view(3, 4),
            "columns": flat.view(4, 6)[:, 1:3],
            "expanded": torch.randn(3, 1).expand(3, 4),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "count": torch.tensor(7),
        }
    )


def same(checkpoint, state):
    """Everything in the checkpoint is in the state dict, to the bit, and the other way round."""
    assert {t.name for t in checkpoint.tensors} == set(state)
    for stored in checkpoint.tensors:
        expected = state[stored.name]
        assert stored.shape == tuple(expected.shape)
        assert stored.dtype == expected.dtype
        loaded = stored.load()
        assert loaded.dtype == expected.dtype
        assert loaded.is_contiguous()
        assert torch.equal(loaded, expected)
        assert stored.status == ("ok" if expected.dtype.is_floating_point else "skipped")


def save_dcp(state, folder):
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it is a single process
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def saved(state, kind, folder):
    """Write a state dict as one kind of checkpoint, and return where."""
    folder.mkdir(exist_ok=True)
    state = dict(state)
    dense = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if kind == "pt":
        torch.save(state, folder / "model.pt")
        return folder / "model.pt"
    if kind == "legacy":
        torch.save(state, folder / "model.pth", _use_new_zipfile_serialization=False)
        return folder / "model.pth"
    if kind == "safetensors":
        save_file(dense, folder / "model.safetensors")
        return folder / "model.safetensors"
    if kind in ("sharded", "sharded-bin"):
        suffix = "safetensors" if kind == "sharded" else "bin"
        names = list(dense)
        shards = {f"model-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
        for shard, held in shards.items():
            part = {name: dense[name] for name in held}
            (save_file if kind == "sharded" else torch.save)(part, folder / shard)
        where = {name: shard for shard, held in shards.items() for name in held}
        (folder / f"model.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        return folder
    if kind == "huggingface":
        (folder / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text('{"global_step": 40}')
        save_file(dense, folder / "model.safetensors")
        return folder
    return save_dcp(dense, folder)


@pytest.mark.parametrize(
    "kind", ["pt", "legacy", "safetensors", "sharded", "sharded-bin", "huggingface", "dcp"]
)
def test_every_format_gives_back_what_was_saved(weights, kind, tmp_path):
    path = saved(weights, kind, tmp_path / "saved")
    checkpoint = open_checkpoint(path)
    same(checkpoint, weights)
    assert checkpoint.kind == {"sharded-bin": "sharded"}.get(kind, kind)
    assert checkpoint.path == path
    assert checkpoint.step == (40 if kind == "huggingface" else None)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again == checkpoint
    same(again, weights)
    assert find_checkpoints(path) == [path]
    assert open_checkpoints(str(path)) == [checkpoint]


def test_names_come_in_the_order_of_the_file_or_else_as_people_sort(weights, tmp_path):
    assert [t.name for t in open_checkpoint(saved(weights, "pt", tmp_path)).tensors] == list(weights)
    names = [t.name for t in open_checkpoint(saved(weights, "safetensors", tmp_path)).tensors]
    assert names.index("layer.9.weight") < names.index("layer.10.weight")


def test_legacy_says_so(tmp_path, weights):
    (note,) = open_checkpoint(saved(weights, "legacy", tmp_path)).notes
    assert "legacy format" in note


def test_a_relative_path_is_read_from_another_folder_too(weights, tmp_path, monkeypatch):
    saved(weights, "pt", tmp_path)
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("model.pt")
    monkeypatch.chdir("/")
    same(checkpoint, weights)


def test_a_view_of_a_large_storage_is_read_by_its_own_bytes(tmp_path, monkeypatch):
    large = torch.arange(600_000.0).view(600, 1000)
    views = {"rows": large[100:103], "corner": large[::200, ::333], "turned": large.t()[5:8, :4]}
    torch.save(views, tmp_path / "v.pt")
    read = []
    plain = places._numbers
    monkeypatch.setattr(places, "_numbers", lambda *a: read.append(a[2]) or plain(*a))
    monkeypatch.setattr(places, "_ONE_READ", 1000)
    same(open_checkpoint(tmp_path / "v.pt"), views)
    assert sum(read) < 20_000


def test_big_endian_numbers_are_turned(tmp_path):
    value = torch.randn(3, 4)
    swapped = torch.from_numpy(value.numpy().byteswap())
    plain, turned = tmp_path / "plain.pt", tmp_path / "turned.pt"
    torch.save({"w": swapped}, plain)
    data = plain.read_bytes()
    assert data.count(b"little") == 1
    # "little" and "big" differ in length: the member is shortened in its two headers as well.
    reader = torch._C.PyTorchFileReader(str(plain))
    writer = torch._C.PyTorchFileWriter(str(turned))
    for name in ("data.pkl", "data/0"):
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_record("byteorder", b"big", 3)
    writer.write_end_of_file()
    same(open_checkpoint(turned), {"w": value})


def test_storages_that_are_views_in_old_files(tmp_path):
    # As torch wrote them before 1.6: a persistent id with the key, the offset and the size of a view.
    class Storage:
        def __init__(self, *view):
            self.view = view

    class Tensor:
        def __init__(self, storage):
            self.storage = storage

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (self.storage, 1, (2, 2), (2, 1), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.DoubleStorage, "70", "cuda:3", 12, value.view or None)
            return None

    with (tmp_path / "old.pt").open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump({"root": Tensor(Storage()), "view": Tensor(Storage("71", 6, 5))})
        pickle.dump(["70"], file, 2)
        file.write((12).to_bytes(8, "little") + np.arange(12.0).tobytes())
    expected = torch.arange(12.0, dtype=torch.float64)
    same(
        open_checkpoint(tmp_path / "old.pt"),
        {"root": expected[1:5].view(2, 2), "view": expected[7:11].view(2, 2)},
    )


def test_tied_weights_name_their_first_place(tmp_path):
    shared = torch.randn(3, 2)
    torch.save({"a": shared, "b": shared, "c": shared.clone(), "d": shared.t()}, tmp_path / "t.pt")
    assert [t.tied for t in open_checkpoint(tmp_path / "t.pt").tensors] == ["", "a", "", ""]


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.zeros(2, 2, dtype=torch.int8), r"quantized or whole numbers \(int8\)"),
        (torch.zeros(2, 2, dtype=torch.int64), r"whole numbers \(int64\)"),
        (torch.zeros(2, 2, dtype=torch.bool), r"whole numbers \(bool\)"),
        (torch.zeros(2, 2, dtype=torch.complex64), r"complex \(complex64\)"),
        (torch.zeros(2, 2).to(torch.float8_e4m3fn), r"quantized \(float8_e4m3fn"),
        (torch.zeros(2, 2, dtype=torch.uint16), r"whole numbers \(uint16\)"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_no_matrix_of_weights_is_skipped_and_can_still_be_read(tensor, why, legacy, tmp_path):
    torch.save({"w": tensor}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    (stored,) = open_checkpoint(tmp_path / "w.pt").tensors
    assert (stored.status, stored.dtype) == ("skipped", tensor.dtype)
    assert re.search(why, stored.why)
    assert torch.equal(stored.load().view(torch.uint8), tensor.view(torch.uint8))


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "without its numbers": lambda: torch.empty(2, 3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.eye(2), torch.eye(3)]),
    "negated": lambda: torch.randn(3, 4, dtype=torch.complex64).conj().imag,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", ODD)
def test_what_has_no_plain_numbers_is_skipped(case, tmp_path):
    torch.save({"w": ODD[case](), "fc": torch.eye(2)}, tmp_path / "w.pt")
    why = case.removesuffix(" rows")
    stored, other = open_checkpoint(tmp_path / "w.pt").tensors
    assert why in stored.why
    assert stored.status == "skipped"
    with pytest.raises(CheckpointError, match=r"w\.pt has 'w', which cannot be read: .*" + why):
        stored.load()
    assert torch.equal(other.load(), torch.eye(2))


def test_safetensors_dtypes_that_torch_lacks_are_skipped(tmp_path):
    header = json.dumps({"w": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (stored,) = open_checkpoint(tmp_path / "w.safetensors").tensors
    assert (stored.dtype, stored.status, stored.why) == (None, "skipped", "torch has no dtype F4")


NESTED = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "config": Config(3, Path("/x"))},
    "an unknown key": lambda s: {"what I trained": s, "loss": torch.tensor(0.1), "history": [0.3, 0.2]},
    "deep": lambda s: {"run": {"trainer": {"net": s}}},
    "with the optimizer": lambda s: {"optimizer": adam(), "module": s, "lr_scheduler": {"w": torch.eye(90)}},
    "optimizer under another name": lambda s: {"solver": adam(), "weights_of_net": s},
    "with random states": lambda s: {
        "net": s,
        "rng_state": torch.get_rng_state(),
        "np": np.random.get_state(),
    },
    "with a copy": lambda s: {"ema": {k: v + 1 for k, v in s.items() if v.ndim}, "model": s},
    "with statistics": lambda s: {"mine": s, "mean": torch.ones(1, 2), "other": {"std": torch.ones(1, 2)}},
    "in a tuple": lambda s: ("v1", s, adam()),
    "among numbers": lambda s: {"model": s, "best": np.float64(3), "at": np.arange(3), "p": Point(1, {2, 3})},
}


def adam():
    layer = nn.Linear(50, 50)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 50)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", NESTED)
def test_the_state_dict_is_found_wherever_it_is(case, legacy, weights, tmp_path):
    torch.save(NESTED[case](weights), tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    same(open_checkpoint(tmp_path / "c.pt"), weights)


def test_placeholders_are_named_and_a_choice_is_told(weights, tmp_path):
    model = {"ema": weights, "model": dict(weights), "cfg": Config(3, Path("/x")), "f": nn.functional.relu}
    torch.save(model | {"n": argparse.Namespace(a=1)}, tmp_path / "c.pt")
    checkpoint = open_checkpoint(tmp_path / "c.pt")
    assert {"argparse.Namespace", "pathlib.PosixPath", "torch.nn.functional.relu"} < set(
        checkpoint.placeholders
    )
    assert any(name.endswith(".Config") for name in checkpoint.placeholders)
    (note,) = checkpoint.notes
    assert note == "The weights under 'model' (12 tensors) are taken; 'ema' (12 tensors) is left out."


def test_parts_without_a_usual_name_are_all_taken(tmp_path):
    generator, discriminator = nn.Linear(4, 3).state_dict(), nn.Linear(3, 5).state_dict()
    torch.save({"G": generator, "D": {"deep": discriminator}, "step": 3}, tmp_path / "gan.pt")
    checkpoint = open_checkpoint(tmp_path / "gan.pt")
    assert [t.name for t in checkpoint.tensors] == ["G.weight", "G.bias", "D.deep.weight", "D.deep.bias"]
    assert checkpoint.notes == (
        "Several parts hold weights ('G' (2 tensors), 'D.deep' (2 tensors)); each is named by its key.",
    )
    assert checkpoint.step == 3


def test_a_usual_name_does_not_hide_the_larger_part(tmp_path):
    parts = {"model": nn.Linear(4, 3).state_dict(), "text_tower": nn.Linear(30, 30).state_dict()}
    torch.save(parts, tmp_path / "clip.pt")
    names = [t.name for t in open_checkpoint(tmp_path / "clip.pt").tensors]
    assert names == ["model.weight", "model.bias", "text_tower.weight", "text_tower.bias"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_is_walked_as_its_state_dict(legacy, wrapped, tmp_path):
    net = nn.Sequential(Net(), nn.Linear(3, 2), nn.ModuleDict({"a": nn.Bilinear(2, 3, 4)}))
    path = tmp_path / "m.pt"
    torch.save({"net": net, "n": 1} if wrapped else net, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(path)
    same(checkpoint, net.state_dict())
    kernels = {t.name: t.kernel for t in checkpoint.tensors if len(t.shape) == 3}
    assert kernels == {"0.conv.weight": True, "0.experts": None, "2.a.weight": False}
    assert "torch.nn.modules.conv.Conv1d" in checkpoint.placeholders


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_read_and_not_run(tmp_path):
    net = nn.Sequential(nn.Conv1d(2, 3, 5), nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    torch.jit.script(net).save(str(tmp_path / "s.pt"))
    checkpoint = open_checkpoint(tmp_path / "s.pt")
    same(checkpoint, net.state_dict())
    assert checkpoint.kind == "torchscript"
    assert checkpoint.tensors[0].kernel is True
    assert checkpoint.notes == ("It is a TorchScript archive; its tensors are read, its code is not.",)


def test_lightning_tells_its_step(weights, tmp_path):
    saved = {
        "epoch": 2,
        "global_step": 300,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [adam()],
        "lr_schedulers": [],
        "hyper_parameters": argparse.Namespace(width=3),
    }
    torch.save(saved, tmp_path / "epoch=2-step=299.ckpt")
    checkpoint = open_checkpoint(tmp_path / "epoch=2-step=299.ckpt")
    assert (checkpoint.kind, checkpoint.step) == ("lightning", 300)
    same(checkpoint, weights)


@pytest.mark.parametrize(
    ("own", "name", "step"),
    [
        ({"global_step": 5, "step": 6}, "a7.pt", 5),
        ({"step": torch.tensor(6)}, "a7.pt", 6),
        ({"step": torch.tensor([8.0])}, "a7.pt", 8),
        ({"step": -1}, "run3-step12.pt", 12),
        ({"step": True}, "a.pt", None),
        ({"step": 10**30}, "a.pt", None),
        ({"global_step": "x"}, "9" * 40 + ".pt", None),
    ],
)
def test_the_step_is_its_own_or_the_last_number_in_its_name(own, name, step, tmp_path):
    torch.save({"model": {"w": torch.eye(2)}} | own, tmp_path / name)
    assert open_checkpoint(tmp_path / name).step == step


def test_safetensors_keep_a_step_in_their_metadata(tmp_path):
    save_file({"w": torch.eye(2)}, tmp_path / "a7.safetensors", {"step": "70", "format": "pt"})
    assert open_checkpoint(tmp_path / "a7.safetensors").step == 70


def test_a_distributed_checkpoint_finds_the_model_in_a_training_state(weights, tmp_path):
    dense = {name: tensor.contiguous() for name, tensor in weights.items()}
    state = {"model": dense, "optimizer": adam(), "step": 30, "note": "x"}
    checkpoint = open_checkpoint(save_dcp(state, tmp_path / "c7"))
    same(checkpoint, weights)
    assert (checkpoint.kind, checkpoint.step, checkpoint.placeholders) == ("dcp", 30, ())


def write_chunks(folder, whole, cuts, change=None):
    """Write a matrix as a distributed checkpoint in chunks, as several processes would."""
    folder.mkdir()
    chunks, stores = [], {}
    with (folder / "__0_0.distcp").open("wb") as file:
        for rows, columns in cuts:
            begin = file.tell()
            torch.save(whole[rows, columns].clone(), file)
            offset = torch.Size([rows.start, columns.start])
            size = torch.Size([rows.stop - rows.start, columns.stop - columns.start])
            chunks.append(dcp_metadata.ChunkStorageMetadata(offset, size))
            index = dcp_metadata.MetadataIndex("model.w", offset)
            stores[index] = _StorageInfo("__0_0.distcp", begin, file.tell() - begin)
    properties = dcp_metadata.TensorProperties(dtype=whole.dtype)
    listed = {"model.w": dcp_metadata.TensorStorageMetadata(properties, whole.shape, chunks)}
    metadata = dcp_metadata.Metadata(listed, {"model.w": ("model", "w")}, stores)
    if change is not None:
        change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


QUARTERS = [(slice(a, a + 3), slice(b, b + 4)) for a in (0, 3) for b in (0, 4)]


def test_chunks_of_a_distributed_tensor_are_put_together(tmp_path):
    whole = torch.randn(6, 8)
    same(open_checkpoint(write_chunks(tmp_path / "c", whole, QUARTERS)), {"w": whole})


def _first(metadata):
    return next(iter(metadata.storage_data.values()))


def _set(path, value):
    def change(metadata):
        target = metadata
        for key in path[:-1]:
            target = target[key] if isinstance(target, dict | list) else getattr(target, key)
        object.__setattr__(target, path[-1], value)

    return change


@pytest.mark.parametrize(
    ("cuts", "change", "match"),
    [
        (QUARTERS[:3], None, "do not cover it once"),
        ([*QUARTERS[:3], QUARTERS[0]], None, "do not cover it once"),
        (QUARTERS, _set(("state_dict_metadata", "model.w", "size"), torch.Size([6, 9])), "do not cover"),
        (QUARTERS, _set(("state_dict_metadata", "model.w", "size"), torch.Size([6])), "other axes"),
        (QUARTERS, _set(("state_dict_metadata", "model.w", "chunks"), []), "no list of chunks"),
        (QUARTERS, lambda m: m.storage_data.clear(), "is in no file"),
        (QUARTERS, lambda m: _first(m).__setattr__("length", 10**9), "truncated"),
        (
            QUARTERS,
            lambda m: _first(m).__setattr__("length", 40),
            "larger than its place",
        ),
        (
            QUARTERS,
            lambda m: _first(m).__setattr__("relative_path", "../outside"),
            "no file in its folder",
        ),
    ],
)
def test_chunks_that_do_not_fit_are_refused(cuts, change, match, tmp_path):
    folder = write_chunks(tmp_path / "c", torch.randn(6, 8), cuts, change)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


def test_a_chunk_that_is_another_tensor_is_refused_when_read(tmp_path):
    def swap(metadata):
        infos = list(metadata.storage_data.values())
        infos[0].offset, infos[0].length = infos[1].offset, infos[1].length

    cuts = [(slice(0, 3), slice(0, 8)), (slice(3, 6), slice(0, 7)), (slice(3, 6), slice(7, 8))]
    (stored,) = open_checkpoint(write_chunks(tmp_path / "c", torch.randn(6, 8), cuts, swap)).tensors
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is damaged: a chunk is not the tensor"):
        stored.load()


def test_quantized_folders_say_so(tmp_path):
    folder = saved({"w": torch.eye(3)}, "huggingface", tmp_path)
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    (note,) = open_checkpoint(folder).notes
    assert "quantized by 'gptq'" in note


def test_the_links_of_a_hub_cache_are_followed(weights, tmp_path):
    model = tmp_path / "models--a--b"
    folder = saved(weights, "sharded", tmp_path / "plain")
    revision = model / "snapshots" / "12ab"
    revision.mkdir(parents=True)
    (model / "blobs").mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(model / "blobs" / str(i))
        (revision / file.name).symlink_to(Path("../../blobs") / str(i))
    same(open_checkpoint(revision), weights)


def test_a_run_file_without_raw_tensors_says_what_to_do(tmp_path, mlp):
    model, optimizer, train = mlp
    with RankTracker(model, optimizer, tmp_path / "run.h5", schedule=every(1)):
        train(2)
    with pytest.raises(CheckpointError, match=r"run\.h5 keeps measured numbers and no weights; .*Recorder"):
        open_checkpoint(tmp_path / "run.h5")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_run_file_with_raw_tensors_is_a_checkpoint_for_each_step(tmp_path, mlp, dtype):
    model, optimizer, train = mlp
    weights = []
    with Recorder(
        model, optimizer, tmp_path / "raw.h5", schedule=every(1), tensors=("weight", "gradient"), dtype=dtype
    ):
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        for _ in range(2):
            train(1)
            weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    found = open_checkpoints(tmp_path / "raw.h5")
    assert [(c.kind, c.step) for c in found] == [("recorder", step) for step in (0, 1, 2)]
    for checkpoint, kept in zip(found, weights, strict=True):
        assert {t.name for t in checkpoint.tensors} == {"0", "2"}
        for stored in checkpoint.tensors:
            weight = kept[f"{stored.name}.weight"]
            assert stored.dtype == (dtype or torch.float32)
            assert stored.shape == tuple(weight.shape)
            assert torch.equal(stored.load(), weight.to(stored.dtype))
    last = open_checkpoint(tmp_path / "raw.h5")
    assert last.step == 2
    assert last.notes == ("Of its 3 recorded steps the last, 2, is taken.",)


def test_folders_are_expanded_in_natural_order(weights, tmp_path):
    for name in ("step10.pt", "step9.pt", "step100.safetensors", "optimizer.pt", "notes.txt", ".hidden.pt"):
        (tmp_path / name).write_bytes(b"x")
    saved(weights, "sharded", tmp_path / "step20")
    saved(weights, "huggingface", tmp_path / "step11")
    (tmp_path / "logs").mkdir()
    names = [path.name for path in find_checkpoints([tmp_path / "notes.txt", tmp_path])]
    assert names == ["notes.txt", "step9.pt", "step10.pt", "step11", "step20", "step100.safetensors"]


def test_what_is_not_there_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match="no checkpoint is given"):
        find_checkpoints([])
    with pytest.raises(CheckpointError, match=r"gone\.pt does not exist"):
        find_checkpoints(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match="empty has no checkpoint in it"):
        find_checkpoints([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="empty is a folder, but not one checkpoint"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="a pipe, a socket or a device"):
        open_checkpoint(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint("a\0b.pt")


def test_optimizer_state_alone_is_no_checkpoint(tmp_path):
    torch.save({"optimizer": adam(), "step": 3}, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match=r"o\.pt holds no weights \(optimizer state does not count\)"):
        open_checkpoint(tmp_path / "o.pt")


def test_a_file_shortened_after_it_was_opened_is_told(tmp_path, weights):
    for kind in ("pt", "safetensors"):
        path = saved(weights, kind, tmp_path / kind)
        checkpoint = open_checkpoint(path)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(CheckpointError, match="was shortened after it was opened"):
            checkpoint.tensors[0].load()
        path.unlink()
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            checkpoint.tensors[0].load()


def test_a_single_tensor_and_copies_of_shared_modules(tmp_path):
    torch.save(torch.eye(3), tmp_path / "one.pt")
    same(open_checkpoint(tmp_path / "one.pt"), {"tensor": torch.eye(3)})
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, copy.deepcopy(shared), shared)
    torch.save(net, tmp_path / "net.pt")
    assert [t.name for t in open_checkpoint(tmp_path / "net.pt").tensors] == [
        n for n, _ in net.named_parameters()
    ]


RANK = """
    import sys, warnings
    import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, Replicate, distribute_tensor

    warnings.simplefilter("ignore")
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(35.0).view(7, 5)
    model = {
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": distribute_tensor(whole, mesh, [Shard(1)]).bfloat16(),
        "same": distribute_tensor(whole, mesh, [Replicate()]),
    }
    dcp.save({"model": model, "step": 9}, checkpoint_id=f"{folder}/dcp")
    if rank == 0:
        torch.save(model, f"{folder}/shard.pt")
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
    commands = [[sys.executable, "-c", textwrap.dedent(RANK), str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    whole = torch.arange(35.0).view(7, 5)
    checkpoint = open_checkpoint(tmp_path / "dcp")
    same(checkpoint, {"rows": whole, "columns": whole.bfloat16(), "same": whole})
    assert checkpoint.step == 9
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    (stored, *_) = open_checkpoint(tmp_path / "shard.pt").tensors
    assert (stored.status, stored.shape) == ("skipped", (7, 5))
    assert "DTensor, whose numbers are elsewhere" in stored.why

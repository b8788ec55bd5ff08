"""Pruning and Tucker curves of a user's model, at each checkpoint."""

import json
import sys

import pandas as pd
import pytest
import torch
from torch import nn

import zanalysis as za

MODULE = """
import torch
from torch import nn

X = torch.ones(2, 3, 6, 6)

def build():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4))
    return model, lambda m: m(X).square().sum().item()

def model_only():
    return build()[0]

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield "my_nets"
    sys.modules.pop("my_nets", None)


@pytest.fixture
def checkpoints(module, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (2, 10):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4))
        torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, folder / f"{step}.pt")
    return folder


def test_curves_are_those_of_the_analyzers(module, checkpoints):
    table = za.curves(checkpoints, f"{module}:build", sparsities=(0, 0.5), fractions=(0.5, 1))
    assert table["step"].tolist() == [2] * 4 + [10] * 4
    assert set(table["status"]) == {"ok"}
    model, evaluate = sys.modules[module].build()
    state = torch.load(checkpoints / "10.pt", weights_only=True)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    model.eval()
    last = table[table["step"] == 10]
    pruning = za.pruning_curve(model, evaluate, (0, 0.5))
    ours = last[last["curve"] == "pruning"]
    assert ours["score"].tolist() == pruning["score"]
    assert ours["parameters"].tolist() == pruning["kept"]
    tucker = za.tucker_curve(model, evaluate, "0", [(4, 2), (8, 3)])
    ours = last[last["curve"] == "tucker"]
    assert ours["score"].tolist() == tucker["score"]
    assert ours[["rank_out", "rank_in"]].to_numpy().tolist() == [[4, 2], [8, 3]]
    assert ours["parameters"].tolist() == tucker["parameters"]
    assert set(ours["layer"]) == {"0"}


def test_interrupted_curves_go_on(module, checkpoints, tmp_path):
    out = tmp_path / "curves.csv"

    def stop(done, _):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        za.curves(checkpoints, f"{module}:build", out=out, progress=stop)
    kept = [json.loads(line) for line in out.with_name("curves.csv.part").read_text().splitlines()]
    assert len(kept) == 4
    whole = za.curves(checkpoints, f"{module}:build")
    told = []
    table = za.curves(checkpoints, f"{module}:build", out=out, progress=lambda *numbers: told.append(numbers))
    pd.testing.assert_frame_equal(table, whole, check_exact=True)
    assert told[-1] == (4, 4)
    assert out.exists()


def test_a_checkpoint_of_another_network_is_a_row_with_its_reason(module, checkpoints, caplog):
    state = torch.load(checkpoints / "10.pt", weights_only=True)
    state["module.3.weight"] = torch.ones(4, 100)
    torch.save(state, checkpoints / "11.pt")
    del state["module.3.weight"]
    torch.save(state, checkpoints / "12.pt")
    table = za.curves(checkpoints, f"{module}:build", curves="pruning", sparsities=[0])
    assert table["status"].tolist() == ["ok", "ok", "error", "error"]
    assert "has shape [4, 100] in the checkpoint and [4, 128] in the model" in caplog.text
    assert "has no '3.weight'" in caplog.text


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("my_nets", {}, "expected package.module:function"),
        ("my_nets:biuld", {}, "there is no 'my_nets:biuld'"),
        ("no_such_module:build", {}, "there is no 'no_such_module:build'"),
        ("my_nets:number", {}, "expected a function"),
        ("my_nets:model_only", {}, r"expected \(model, evaluate\)"),
        (lambda: (1, 2), {}, "expected a torch.nn.Module"),
        (3, {}, "expected 'package.module:function' or a function"),
        ("my_nets:build", {"curves": "prunning"}, "did you mean 'pruning'"),
        ("my_nets:build", {"scope": "all"}, "unknown scope"),
        ("my_nets:build", {"sparsities": [2]}, "expected a number from 0 to 1"),
        ("my_nets:build", {"layers": "conv"}, "no layer matches 'conv'"),
    ],
)
def test_bad_input_is_one_sentence(module, checkpoints, model, settings, message):
    with pytest.raises(za.ZAnalysisError, match=message):
        za.curves(checkpoints, model, **settings)

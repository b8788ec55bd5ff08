"""Checkpoints measured offline: the numbers a tracker gives live, in a fixed order, whatever the file."""

import re
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_info
from torch import nn

import zanalysis as za
from hooks import RankTracker, Recorder
from zanalysis.checkpoints import open_checkpoint
from zanalysis.errors import InputError
from zanalysis.runfile.tables import COLUMNS
from zanalysis.sweep import side_by_side
from zanalysis.sweep.layers import layers_of
from zanalysis.sweep.running import LARGE, on_every_core
from zanalysis.sweep.splitting import checked_split

METRICS = (
    "rank",
    "rank_margin",
    "stable_rank",
    "effective_rank",
    "support",
    "condition_number",
    "frobenius_norm",
)


class Zoo(nn.Module):
    """One of each kind of weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.plain = nn.Sequential(nn.Conv1d(4, 6, 5, bias=False), nn.ConvTranspose1d(6, 4, 3))
        self.conv2 = nn.Conv2d(3, 5, 3)
        self.lstm = nn.LSTM(6, 4)
        self.attn = nn.MultiheadAttention(6, 2)
        self.experts = nn.Parameter(torch.randn(3, 7, 5))
        self.bilinear = nn.Bilinear(40, 40, 3)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 12)
        self.head.weight = self.embed.weight  # tied
        self.narrow = nn.Linear(6, 1)  # a vector
        self.dead = nn.Linear(4, 4)
        self.broken = nn.Linear(4, 4)
        nn.init.zeros_(self.dead.weight)
        nn.init.constant_(self.broken.weight, torch.nan)
        nn.init.eye_(self.attn.out_proj.weight)


def values_agree(ours, theirs):
    same = ["layer", "tensor", "reference", "tolerance_rule", "metric", "status"]
    pd.testing.assert_frame_equal(ours[same], theirs[same])
    exact = ours["metric"].isin(["rank", "support_rows", "support_columns"]).to_numpy()
    a, b = ours["value"].to_numpy(), theirs["value"].to_numpy()
    np.testing.assert_array_equal(a[exact], b[exact])
    loose = (ours["metric"] == "stable_rank").to_numpy()
    np.testing.assert_allclose(a[loose], b[loose], rtol=1e-4)
    np.testing.assert_allclose(a[~loose], b[~loose], rtol=1e-6)
    np.testing.assert_allclose(ours["tolerance"].to_numpy(), theirs["tolerance"].to_numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_live_and_in_either_file_the_table_is_the_same(tmp_path, dtype):
    model = Zoo().to(dtype)
    with RankTracker(model, metrics=METRICS, reference=[None, "init", "identity"]) as tracker:
        live = tracker.table()
    assert live["layer"].nunique() >= 14
    torch.save(model.state_dict(), tmp_path / "step-7.pt")
    torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, tmp_path / "whole-7.pt")
    save_file(
        {k: v.clone() for k, v in model.state_dict().items() if k != "head.weight"},
        tmp_path / "s-7.safetensors",
    )
    with Recorder(model, None, tmp_path / "raw.h5", schedule=lambda step: step == 7) as recorder:
        for _ in range(7):
            recorder.step()
    everything = za.analyze(tmp_path / "raw.h5", metrics=METRICS, reference=[None, "init", "identity"])
    assert everything["step"].unique().tolist() == [0, 7]
    for _, table in everything.groupby("step"):
        values_agree(table.reset_index(drop=True), live)
    for name in ("step-7.pt", "whole-7.pt", "s-7.safetensors"):
        table = za.analyze(tmp_path / name, metrics=METRICS, reference=[None, "init", "identity"])
        assert list(table.columns) == ["checkpoint", *COLUMNS]
        assert set(table["step"]) == {7}
        assert table.dtypes.drop("checkpoint").equals(live.dtypes)
        values_agree(table, live)


def test_kernels_batches_and_ties_are_told_apart(tmp_path):
    torch.save(Zoo().state_dict(), tmp_path / "zoo.pt")
    layers = {layer.name: layer for layer in layers_of(open_checkpoint(tmp_path / "zoo.pt"), None, "out", {})}
    kernels = {name for name, layer in layers.items() if layer.kernel}
    assert kernels == {"conv1", "plain.0", "plain.1"}
    assert layers["experts"].names == ("experts[0]", "experts[1]", "experts[2]")
    assert len(layers["bilinear"].names) == 3
    assert "head" not in layers
    assert not {"narrow", "norm"} & set(layers)
    said = checked_split({"experts": "kernel", "plain.*": "matrices"})
    layers = {
        layer.name: layer for layer in layers_of(open_checkpoint(tmp_path / "zoo.pt"), None, "out", said)
    }
    assert layers["experts"].names == ("experts",)
    assert len(layers["plain.0"].names) == 6


def test_wrappers_leave_the_names_alone(tmp_path):
    torch.save({"module._orig_mod.fc.weight": torch.eye(3), "b.weight": torch.eye(2)}, tmp_path / "a.pt")
    assert za.analyze(tmp_path / "a.pt", metrics="rank")["layer"].tolist() == ["b", "fc"]


def test_order_steps_and_init_over_a_folder(tmp_path):
    W = torch.diag(torch.arange(1.0, 7.0))
    for step in (100, 20, 3):
        change = torch.zeros(6, 6)
        change[: step % 7, 0] = 1.0
        torch.save({"b.weight": W + change * (step > 3), "a.weight": W}, tmp_path / f"run-{step}.pt")
    table = za.analyze(tmp_path, metrics=("rank", "support"), reference="init")
    assert list(dict.fromkeys(table["step"])) == [3, 20, 100]
    rows = table[table["metric"] == "support_rows"].set_index(["step", "layer"])["value"]
    assert rows[3, "b"] == 0
    assert rows[20, "b"] == 6
    assert rows[100, "b"] == 2
    keys = ["step", "layer", "tensor", "reference", "metric"]
    pd.testing.assert_frame_equal(table, table.sort_values(keys, kind="stable", ignore_index=True))
    given = [tmp_path / f"run-{step}.pt" for step in (20, 100, 3)]
    pd.testing.assert_frame_equal(za.analyze(given, metrics=("rank", "support"), reference="init"), table)


def test_without_any_number_the_step_is_the_position(tmp_path):
    for name in ("first", "last"):
        torch.save({"weight": torch.eye(3)}, tmp_path / f"{name}.pt")
    assert za.analyze(tmp_path, metrics="rank")["step"].tolist() == [0, 1]


def test_references_from_files_and_memory(tmp_path):
    W = torch.eye(4)
    torch.save({"fc.weight": W + torch.ones(4, 4)}, tmp_path / "a.pt")
    torch.save({"fc.weight": W}, tmp_path / "start.pt")
    given = [str(tmp_path / "start.pt"), {"fc.weight": W}, W, "identity", None]
    table = za.analyze(tmp_path / "a.pt", metrics="rank", reference=given)
    ranks = table[table["metric"] == "rank"].set_index("reference")["value"]
    assert ranks.to_dict() == {"start.pt": 1, "tensor": 1, "tensor_2": 1, "identity": 1, "none": 4}


def test_a_layer_that_fails_is_a_row_and_a_line_in_the_log(tmp_path, caplog):
    torch.save({"fc.weight": torch.eye(4), "new.weight": torch.eye(3)}, tmp_path / "a.pt")
    torch.save({"fc.weight": torch.eye(5)}, tmp_path / "start.pt")
    table = za.analyze(tmp_path / "a.pt", metrics=("rank",), reference=[None, tmp_path / "start.pt"])
    assert table["status"].tolist() == ["ok", "error", "ok", "error"]
    assert table["value"].isna().tolist() == [False, True, False, True]
    assert "has shape [5, 5], the weight [4, 4]" in caplog.text
    assert "the reference has no tensor 'new'" in caplog.text


def test_a_failing_function_of_the_users_own_is_a_row_too(tmp_path):
    def fragile(matrix):
        if matrix.shape[0] == 3:
            raise ValueError("three")
        return matrix.sum()

    torch.save({"a.weight": torch.eye(3), "b.weight": torch.eye(4)}, tmp_path / "a.pt")
    table = za.analyze(tmp_path / "a.pt", metrics=["rank", fragile])
    assert table["metric"].tolist() == ["fragile", "rank"] * 2
    assert table["status"].tolist() == ["error", "ok", "ok", "ok"]
    assert table["value"].tolist()[1:] == [3, 4, 4]


def test_an_unreadable_checkpoint_among_others_does_not_stop_the_sweep(tmp_path, caplog):
    torch.save({"fc.weight": torch.eye(4)}, tmp_path / "step-1.pt")
    (tmp_path / "step-2.pt").write_bytes((tmp_path / "step-1.pt").read_bytes()[:200])
    table = za.analyze(tmp_path, metrics="rank")
    assert table[["step", "layer", "status"]].to_numpy().tolist() == [[1, "fc", "ok"], [2, "", "error"]]
    assert "step-2.pt" in caplog.text
    with pytest.raises(za.ZAnalysisError, match="step-2"):
        za.analyze(tmp_path / "step-2.pt")


def test_quantized_weights_are_skipped_with_a_status(tmp_path):
    state = {
        "fc.weight": torch.eye(4),
        "q.weight": torch.ones(8, 8, dtype=torch.int8),
        "i": torch.ones(3, 3).long(),
    }
    torch.save(state, tmp_path / "a.pt")
    table = za.analyze(tmp_path / "a.pt", metrics="rank")
    assert table[["layer", "status"]].to_numpy().tolist() == [["fc", "ok"], ["q", "skipped"]]
    assert np.isnan(table["value"].iloc[1])


def test_singular_values_are_metrics_with_an_index(tmp_path):
    torch.save(
        {"fc.weight": torch.diag(torch.arange(20.0, 0.0, -1.0)), "s.weight": torch.eye(3)}, tmp_path / "a.pt"
    )
    table = za.analyze(tmp_path / "a.pt", metrics="singular_values")
    assert table["metric"].tolist() == [f"singular_values[{i}]" for i in (*range(16), *range(3))]
    np.testing.assert_allclose(table["value"], [*np.arange(20.0, 4.0, -1.0), 1, 1, 1], rtol=1e-12)


def test_split_measures_each_part_by_itself(tmp_path):
    blocks = [torch.diag(torch.tensor([1.0] * k + [0.0] * (4 - k))) for k in (1, 2, 3, 4, 2, 3)]
    state = {"attn.in_proj_weight": torch.cat(blocks), "c_attn.weight": torch.cat(blocks, 1)}
    state["experts"] = torch.stack([torch.cat(blocks[:2]), torch.cat(blocks[2:4])])
    torch.save(state, tmp_path / "a.pt")
    split = {
        "*.in_proj_weight": {"parts": "qkv", "heads": 2},
        "c_attn": {"parts": {"q": 16, "k": 4, "v": 4}, "dim": 1},
        "experts": ["up", "gate"],
    }
    ranks = za.analyze(tmp_path / "a.pt", metrics="rank", split=split).set_index("layer")["value"].to_dict()
    heads = dict(zip(["q][0", "q][1", "k][0", "k][1", "v][0", "v][1"], (1, 2, 3, 4, 2, 3), strict=True))
    expected = {f"attn.in_proj_weight[{name}]": rank for name, rank in heads.items()}
    expected |= {"c_attn[q]": 4, "c_attn[k]": 2, "c_attn[v]": 3}
    expected |= {"experts[up][0]": 1, "experts[up][1]": 3, "experts[gate][0]": 2, "experts[gate][1]": 4}
    assert ranks == expected
    against = za.analyze(tmp_path / "a.pt", metrics="rank", split=split, reference=["init", "identity"])
    assert set(against.loc[against["reference"] == "init", "status"]) == {"zero"}
    assert "error" not in set(against["status"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": "rnak"}, "did you mean 'rank'"),
        ({"view": "side"}, "unknown view 'side'"),
        ({"layers": "fcc"}, "no layer matches 'fcc'; did you mean 'fc'"),
        ({"layers": []}, "layers is empty"),
        ({"reference": "int"}, "there is no such file"),
        ({"reference": 3}, "unknown reference 3"),
        ({"reference": []}, "reference is empty"),
        ({"reference": {"fc": 1}}, "expected a tensor"),
        ({"tolerance": "loose"}, "unknown tolerance"),
        ({"split": 3}, "expected {glob: how}"),
        ({"split": {"fc": "qq"}}, "different names"),
        ({"split": {"fc": {"head": 3}}}, "unknown key 'head'"),
        ({"split": {"fc": {"heads": 0}}}, "expected a whole number"),
        ({"split": {"fc": {"parts": 3, "dim": 2}}}, "expected 0 .rows. or 1"),
        ({"split": {"fc": 3}}, "does not split into 3 parts"),
        ({"split": {"fc": {"parts": {"q": 1, "k": 1}}}}, "does not split into 2 parts"),
        ({"workers": 0}, "expected how many processes"),
        ({"workers": 1, "scheduler": "tcp://x"}, "pass one of the two"),
        ({"out": "table.xlsx"}, "unknown suffix '.xlsx'"),
        ({"out": "no/such/folder/table.csv"}, "there is no folder"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, settings, message):
    torch.save({"fc.weight": torch.eye(4)}, tmp_path / "a.pt")
    with pytest.raises(za.ZAnalysisError, match=message):
        za.analyze(tmp_path / "a.pt", **settings)


def test_nothing_to_measure_is_said(tmp_path):
    torch.save({"bias": torch.ones(4)}, tmp_path / "a.pt")
    with pytest.raises(za.ZAnalysisError, match="has no weight to measure"):
        za.analyze(tmp_path / "a.pt")
    with pytest.raises(za.ZAnalysisError, match=r"there is no checkpoint in|no checkpoint is given"):
        za.analyze([])
    with pytest.raises(za.ZAnalysisError, match="expected a path"):
        za.analyze([3])


def test_threads_give_the_table_of_one(tmp_path):
    torch.save({f"{i}.weight": torch.randn(60, 40) for i in range(40)}, tmp_path / "a.pt")
    torch.save({f"{i}.weight": torch.randn(60, 40) for i in range(40)}, tmp_path / "b.pt")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = za.analyze(tmp_path, reference=["init", None])
        torch.set_num_threads(3)
        told = []
        together = za.analyze(
            tmp_path, reference=["init", None], progress=lambda done, of: told.append((done, of))
        )
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    values_agree(together, alone)
    assert told == [(i, 80) for i in range(1, 81)]


class Stub:
    """A unit of work that notes under what it was carried out."""

    key = ""

    def __init__(self, weight, seen, lock):
        self.weight, self._seen, self._lock = weight, seen, lock

    def run(self):
        with self._lock:
            self._seen["now"] += 1
            self._seen["most"] = max(self._seen["most"], self._seen["now"])
        time.sleep(0.002)
        with self._lock:
            self._seen["now"] -= 1
            self._seen[self.weight].add((torch.get_num_threads(), self._seen["now"] == 0))
            blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
            self._seen["blas"].add((self.weight, *blas))


def test_the_cores_are_never_asked_for_twice():
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    seen = {"now": 0, "most": 0, 10: set(), LARGE: set(), "blas": set()}
    tasks = [Stub(LARGE if i % 10 == 5 else 10, seen, threading.Lock()) for i in range(40)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert {task for task, _ in on_every_core(tasks)} == set(tasks)
        assert torch.get_num_threads() == 3
        interrupted = on_every_core(tasks)
        next(interrupted)
        interrupted.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen["most"] == 3
    assert {threads for threads, _ in seen[10]} == {1}
    assert seen[LARGE] == {(3, True)}
    # Built for fewer threads than it is asked for, a BLAS takes as many as it can.
    assert {(weight, count) for weight, *counts in seen["blas"] for count in counts} >= {(10, 1)}
    assert not any(count > 1 for weight, *counts in seen["blas"] for count in counts if weight == 10)
    assert blas == [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_compare_sets_two_side_by_side(tmp_path):
    a, b = torch.eye(5), torch.eye(5)
    b[0, 1], b[3, 3] = 2.0, 0.0
    torch.save({"fc.weight": a, "old.weight": a.clone()}, tmp_path / "z.pt")
    torch.save({"fc.weight": b, "new.weight": a.clone()}, tmp_path / "a.pt")
    table = za.compare(tmp_path / "z.pt", tmp_path / "a.pt", metrics="rank")
    assert list(table.columns) == ["checkpoint", *COLUMNS]
    sides = side_by_side(table).set_index("layer")
    assert sides.loc["fc", ["a", "b", "change"]].tolist() == [5, 4, 2]
    assert sides.loc["old", "status_b"] == ""
    assert np.isnan(sides.loc["new", "a"])
    with pytest.raises(za.ZAnalysisError, match=re.escape("two different checkpoints")):
        za.compare(tmp_path / "a.pt", tmp_path / "a.pt")
    with pytest.raises(za.ZAnalysisError, match="holds 2 checkpoints"):
        za.compare(tmp_path, tmp_path / "a.pt")


def test_what_is_of_gradients_is_not_measured_of_weights(tmp_path):
    torch.save({"w": torch.eye(3)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="zero_gradient is a number of gradients, and a checkpoint has none"):
        za.analyze(tmp_path / "a.pt", metrics=("rank", "zero_gradient"))


def test_a_tensor_of_one_row_is_measured_where_its_name_is_written_out_as_it_is_live(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 5))
    torch.save(model.state_dict(), tmp_path / "one.pt")
    assert set(za.analyze(tmp_path / "one.pt").layer) == {"2"}
    assert set(za.analyze(tmp_path / "one.pt", layers="*").layer) == {"2"}
    offline = za.analyze(tmp_path / "one.pt", layers=["0", "2"], metrics=("rank", "stable_rank"))
    live = RankTracker(model, layers=["0", "2"], metrics=("rank", "stable_rank"))
    expected = live.table()
    live.close()
    pd.testing.assert_frame_equal(
        offline[COLUMNS].drop(columns="step").reset_index(drop=True), expected.drop(columns="step")
    )

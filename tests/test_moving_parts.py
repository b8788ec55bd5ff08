"""What may change while a tracker is attached: optimizers, layers, the model, its dtype; and two networks at once."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hooks import RankTracker, Recorder, every
from zanalysis.runfile.reader import open_run

METRICS = ("rank", "stable_rank", "frobenius_norm")


def network(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 5))


def batches(steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, generator=generator) for _ in range(steps)]


def train(model, optimizer, xs):
    for x in xs:
        optimizer.zero_grad()
        model(x.to(next(model.parameters()).dtype)).square().sum().backward()
        optimizer.step()


def events_of(tracker):
    return [(step, kind, layer, text) for step, _, kind, layer, text in tracker._memory.events]


def rows(tracker, **wanted):
    table = tracker.table()
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


# --- two networks ---------------------------------------------------------------------------------------


def test_two_networks_in_one_loop_are_two_trackers(tmp_path):
    def play(path):
        torch.manual_seed(0)
        generator, critic = nn.Linear(3, 4), nn.Linear(4, 2)
        of_generator, of_critic = (torch.optim.Adam(m.parameters(), lr=0.05) for m in (generator, critic))
        options = {"schedule": every(2), "tensors": ("weight", "gradient"), "metrics": METRICS, "mode": "w"}
        trackers = [
            RankTracker(generator, of_generator, path and path / "g.h5", **options),
            RankTracker(critic, of_critic, path and path / "c.h5", **options),
        ]
        norms = []
        for z in torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(2)):
            for _ in range(2):  # the critic steps twice as often
                of_critic.zero_grad()
                critic(generator(z).detach()).square().sum().backward()
                of_critic.step()
            of_generator.zero_grad()
            (-critic(generator(z)).sum()).backward()
            norms.append(generator.weight.grad.norm().item())
            of_generator.step()
        tables = [tracker.table() for tracker in trackers]
        for tracker in trackers:
            tracker.close()
        return tables, norms

    (of_g, of_c), norms = play(tmp_path)
    assert of_g["step"].unique().tolist() == [0, 2, 4, 6]
    assert of_c["step"].unique().tolist() == list(range(0, 13, 2))
    gradient = of_g[(of_g["tensor"] == "gradient") & (of_g["metric"] == "frobenius_norm")]
    np.testing.assert_allclose(gradient["value"].to_numpy()[1:], [norms[i] for i in (1, 3, 5)], rtol=1e-6)
    for table, again in zip((of_g, of_c), play(None)[0], strict=True):
        pd.testing.assert_frame_equal(table, again)


# --- optimizers -----------------------------------------------------------------------------------------


def test_another_optimizer_goes_on_with_the_steps_of_the_one_before(tmp_path):
    model = network()
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = RankTracker(
        model, first, tmp_path / "run.h5", schedule=every(1), tensors=("weight", "gradient"), metrics=METRICS
    )
    xs = batches(5)
    train(model, first, xs[:2])
    second = torch.optim.AdamW(model.parameters(), lr=0.1)
    tracker.watch(optimizer=second)
    train(model, second, xs[2:])
    norm = model[0].weight.grad.norm().item()
    train(model, first, xs[:1])  # is not followed any more
    assert tracker.completed == 5
    tracker.close()
    assert not first._optimizer_step_post_hooks
    assert not second._optimizer_step_post_hooks
    run = open_run(tmp_path / "run.h5")
    table = run.table()
    assert table["step"].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert set(table[table["step"] > 0]["status"]) == {"ok"}
    last = table[
        (table["step"] == 5) & (table["tensor"] == "gradient") & (table["metric"] == "frobenius_norm")
    ]
    assert last[last["layer"] == "0"]["value"].item() == pytest.approx(norm, rel=1e-6)
    assert run.events[["step", "kind", "text"]].to_numpy().tolist() == [
        [2, "watch", "the optimizers are others from step 2 on: AdamW"]
    ]


def test_an_optimizer_may_be_replaced_between_the_backward_and_its_step(attach):
    model = network()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    tracker = attach(model, first, schedule=every(1), tensors="gradient", metrics=METRICS)
    model(batches(1)[0]).square().sum().backward()
    tracker.watch(optimizer=[second])
    second.step()
    assert set(rows(tracker, step=1)["status"]) == {"ok"}


def test_a_loop_may_take_over_the_counting(attach):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(model, optimizer, schedule=every(1), metrics=METRICS)
    tracker.watch(optimizer=[])
    train(model, optimizer, batches(2))
    assert tracker.completed == 0
    tracker.step()
    assert tracker.table()["step"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("given", ["sgd", object()])
def test_what_cannot_be_followed_is_said_and_raises_nothing(attach, given, caplog):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(model, optimizer, schedule=every(1), metrics=METRICS)
    tracker.watch(optimizer=given)
    tracker.watch(model=nn.Linear(3, 3))
    tracker.watch(model=given)
    train(model, optimizer, batches(1))
    assert tracker.table()["step"].unique().tolist() == [0, 1]
    texts = [text for _, kind, _, text in events_of(tracker) if kind == "watch"]
    assert "watch() changed nothing: got" in texts[0]
    assert "expected a torch.optim.Optimizer" in texts[0]
    assert "Linear has none of the recorded layers" in texts[1]
    assert "expected a torch.nn.Module" in texts[2]
    tracker.close()
    tracker.watch(optimizer=optimizer)
    assert "after the tracker was closed" in caplog.records[-1].getMessage()


# --- layers ---------------------------------------------------------------------------------------------


def test_a_layer_of_the_same_shape_goes_on_in_the_same_columns(attach, caplog):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = attach(
        model, optimizer, schedule=every(1), tensors=("weight", "gradient", "activation"), metrics=METRICS,
        reference=[None, "init"],
    )  # fmt: skip
    initial, xs = model[2].weight.detach().clone(), batches(4)
    train(model, optimizer, xs[:2])
    model[2] = nn.Linear(8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker.watch(model[2], optimizer=optimizer)
    z = []
    model[2].register_forward_hook(lambda module, args, output: z.append(output.detach().clone()))
    train(model, optimizer, xs[2:])
    table = tracker.table()
    now = table[(table["step"] == 4) & (table["layer"] == "2") & (table["metric"] == "frobenius_norm")]
    expected = {
        ("weight", "none"): model[2].weight.norm(),
        ("weight", "init"): (model[2].weight - initial).norm(),
        ("gradient", "none"): model[2].weight.grad.norm(),
        ("activation", "none"): z[-1].norm(),
    }
    found = {(row["tensor"], row["reference"]): row["value"] for row in now.to_dict("records")}
    assert found == {key: pytest.approx(norm.item(), rel=1e-5) for key, norm in expected.items()}
    # Seen at once, so that the activations of the very next step are there.
    assert set(table[table["step"] == 3]["status"]) == {"ok"}
    texts = [
        (step, kind, layer, text) for step, kind, layer, text in events_of(tracker) if kind == "replaced"
    ]
    assert texts == [(2, "replaced", "2", "another module is in the place of 2; it is followed from now on")]


def test_a_swapped_layer_that_no_optimizer_trains_is_said(attach):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = attach(model, optimizer, schedule=every(1), metrics=METRICS)
    model[0], model[2] = nn.Linear(6, 8), nn.Linear(8, 5).requires_grad_(False)
    train(model, optimizer, batches(1))
    texts = {layer: text for _, kind, layer, text in events_of(tracker) if kind == "replaced"}
    assert texts["0"].endswith(
        "; no optimizer that is followed trains it: pass the one that does to watch(optimizer=…)"
    )
    assert texts["2"].endswith("it is followed from now on")


def test_a_layer_of_another_shape_is_said_and_what_needs_the_former_one_is_an_error(attach):
    model = network(width=8)
    tracker = attach(model, schedule=every(1), metrics=METRICS, reference=[None, "init"])
    tracker.step()
    model[2] = nn.Linear(8, 7)
    tracker.watch(model)
    tracker.step()
    model[2] = nn.Linear(8, 5)
    tracker.step()
    at = rows(tracker, step=2, layer="2").set_index(["reference", "metric"])
    assert at.loc[("none", "rank"), "value"] == 7
    assert set(at.loc["init"]["status"]) == {"error"}
    assert set(rows(tracker, step=2, layer="0")["status"]) <= {"ok", "zero"}
    assert set(rows(tracker, step=3, layer="2")["status"]) == {"ok"}
    texts = [(step, text) for step, kind, _, text in events_of(tracker) if kind == "replaced"]
    assert texts[0][0] == 1
    assert texts[0][1].startswith(
        "2 has shape [7, 8] from step 1 on, before [5, 8]: numbers of it alone go on"
    )
    assert [step for step, _ in texts] == [1, 3]


def test_a_matrix_in_the_place_of_several_is_no_number_of_each(attach):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 4, 4))

    model = Several()
    tracker = attach(model, schedule=every(1), metrics="rank")
    model.experts = nn.Parameter(torch.eye(4))
    tracker.step()
    assert set(rows(tracker, step=1)["status"]) == {"error"}
    assert rows(tracker, step=1)["layer"].tolist() == ["experts[0]", "experts[1]", "experts[2]"]


def test_raw_tensors_of_another_shape_are_not_taken_for_those_before(tmp_path):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    with Recorder(model, path=tmp_path / "raw.h5", schedule=every(1)) as recorder:
        recorder.step()
        model[0] = nn.Linear(4, 6)  # as many entries
        recorder.watch(model[0])
        recorder.step()
    run = open_run(tmp_path / "raw.h5")
    steps = {one.layer: one.steps.tolist() for one in run.tensors}
    assert steps == {"0": [0, 1], "1": [0, 1, 2]}
    assert set(run.events["kind"]) == {"replaced", "error"}


# --- the model ------------------------------------------------------------------------------------------


def test_another_model_takes_the_place_of_the_first(attach):
    model = network()
    tracker = attach(
        model, schedule=every(1), metrics=METRICS, tensors=("weight", "activation"), probe=batches(1)[0]
    )
    other = nn.Module()
    other.add_module("_orig_mod", network(seed=5))
    other._orig_mod.append(nn.Linear(5, 3))
    other.forward = lambda x: other._orig_mod(x)
    tracker.watch(other)
    tracker.step()
    inner = other._orig_mod
    found = rows(tracker, step=1, metric="frobenius_norm").set_index(["layer", "tensor"])["value"]
    assert found[("0", "weight")] == pytest.approx(inner[0].weight.norm().item(), rel=1e-6)
    z = inner[2](inner[1](inner[0](batches(1)[0])))
    assert found[("2", "activation")] == pytest.approx(z.norm().item(), rel=1e-5)
    text = next(text for _, kind, _, text in events_of(tracker) if kind == "watch")
    assert text.endswith("is followed from step 0 on; not recorded: 3")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_may_be_cast(attach, dtype):
    model = network(width=140)
    options = {"schedule": every(1), "metrics": METRICS, "reference": [None, "init", "identity"]}
    tracker = attach(model, **options, tensors=("weight", "activation"), probe=batches(1)[0])
    initial = copy.deepcopy(model.state_dict())
    model.to(dtype)
    tracker.step()
    fresh = attach(model, **options, tensors=("weight", "activation"), probe=batches(1)[0].to(dtype))
    keys = ["layer", "tensor", "reference", "metric"]
    found, expected = (
        t[t["reference"] != "init"].set_index(keys) for t in (rows(tracker, step=1), fresh.table())
    )
    assert set(rows(tracker, step=1)["status"]) <= {"ok", "zero", "below_noise"}
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-6)
    np.testing.assert_allclose(found["tolerance"], expected["tolerance"], rtol=1e-6)
    init = rows(tracker, step=1, reference="init", metric="frobenius_norm").set_index("layer")["value"]
    change = model[0].weight.detach().double() - initial["0.weight"].double()
    assert init["0"] == pytest.approx(change.norm().item(), rel=1e-6)
    word = str(dtype).removeprefix("torch.")
    assert [event[:3] for event in events_of(tracker)] == [(1, "cast", "")]
    assert events_of(tracker)[0][3] == f"0, 2: {word}, before float32, from step 1 on"


def test_a_cast_within_a_window_of_spans_ends_in_numbers_or_in_words(attach):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    tracker = attach(
        model, optimizer, schedule=every(4), tensors="activation", metrics="span_dimension", span_window=4
    )
    xs = batches(8)
    train(model, optimizer, xs[:2])
    model.double()
    train(model, optimizer, xs[2:])
    table = rows(tracker, metric="span_dimension").set_index(["step", "layer"])
    assert set(table.loc[8]["status"]) == {"ok"}
    assert set(table.loc[4]["status"]) <= {"ok", "error"}


def test_the_jacobian_of_a_probe_follows_a_cast(attach):
    model = network()
    tracker = attach(
        model,
        schedule=every(1),
        metrics="jacobian_singular_values",
        probe=batches(1)[0],
        jacobian={"samples": 2},
    )
    model.double()
    tracker.step()
    found = tracker.table().set_index("step")["value"]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_a_tracker_leaves_no_trace_behind_what_it_has_followed():
    model = network()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    before = [copy.copy(module.__dict__) for module in model.modules()]
    tracker = RankTracker(model, first, schedule=every(1), tensors=("weight", "activation"))
    tracker.watch(model, optimizer=second)
    other = network(3)
    tracker.watch(other)
    tracker.close()
    assert not first._optimizer_step_pre_hooks
    assert not second._optimizer_step_pre_hooks
    for module in [*model.modules(), *other.modules()]:
        assert not module._forward_hooks
    assert [module.__dict__.keys() for module in model.modules()] == [one.keys() for one in before]


def test_a_model_that_was_moved_is_said_and_comes_back(attach):
    model = network()
    tracker = attach(model, schedule=every(1), metrics=("rank", "frobenius_norm"), reference=[None, "init"])
    here = copy.deepcopy(model.state_dict())
    model.to("meta")  # the one other device that every machine has: it holds no numbers
    tracker.step()
    model.to_empty(device="cpu").load_state_dict(here)
    tracker.step()
    assert set(rows(tracker, step=1)["status"]) == {"error"}
    assert set(rows(tracker, step=2)["status"]) <= {"ok", "zero"}
    moved = [(step, text) for step, kind, _, text in events_of(tracker) if kind == "moved"]
    assert moved == [
        (1, "0, 2: on meta, before on cpu, from step 1 on"),
        (2, "0, 2: on cpu, before on meta, from step 2 on"),
    ]


@pytest.mark.cuda
@pytest.mark.parametrize("metrics", [METRICS, "stable_rank"])
def test_a_model_may_be_moved_to_a_gpu(attach, metrics):
    model = network()
    tracker = attach(
        model, schedule=every(1), metrics=metrics, reference=[None, "init"], tensors=("weight", "activation"),
        probe=batches(1)[0],
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker.watch(optimizer=optimizer)
    train(model, optimizer, batches(1))
    model.to("cuda")
    train(model, optimizer, [x.cuda() for x in batches(1)])
    fresh = attach(
        model, schedule=every(1), metrics=metrics, tensors=("weight", "activation"), probe=batches(1)[0]
    )
    keys = ["layer", "tensor", "metric"]
    found = rows(tracker, step=2, reference="none").set_index(keys)["value"]
    np.testing.assert_allclose(found, fresh.table().set_index(keys)["value"], rtol=1e-4)
    assert set(rows(tracker, step=2)["status"]) == {"ok"}
    assert [kind for _, kind, _, _ in events_of(tracker)] == ["watch", "moved"]

"""Spans over windows: what the activations of the last steps up to a record span, and nothing else."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hooks import RankTracker, every
from hooks.agenda import Agenda
from hooks.spans import SpanWindows, checked_window
from zanalysis.analyzers.statuses import STATUSES
from zanalysis.errors import InputError
from zanalysis.runfile.reader import open_run

LAYER = SimpleNamespace(name="a")


def stacked_rank(rows, tolerance):
    """Count the singular values of everything stacked, in float64."""
    return int((np.linalg.svd(np.concatenate(rows), compute_uv=False) > tolerance).sum())


def followed(z, due, window, micro=1, **settings):
    """Feed `z(step, i)` through windows as a tracker does; return readings by recorded step, and what came in."""
    agenda = Agenda(due, window)
    spans = SpanWindows([LAYER], ["activation"], **settings)
    readings, came, held = {}, {}, []
    for step in range(1, 31):
        windows = agenda.windows(step)
        if any(step == max(1, r - window + 1) for r in windows):
            spans.open(step)
        parts = [z(step, i) for i in range(micro)]
        came[step] = [part.double().numpy() for part in parts]
        for part in parts:
            spans.take("a", "activation", part)
        held.append(spans.held)
        if agenda.recorded(step):
            readings[step] = spans.readings()
        later = agenda.windows(step + 1)
        spans.forget(max(1, later[0] - window + 1) if later else None)
    return readings, came, held


def drawn(features=12, samples=2, rank=9):
    basis = torch.randn(rank, features)

    def z(step, i):
        # Each step brings directions of its own, so that every window has another span.
        generator = torch.Generator().manual_seed(100 * step + i)
        rows = torch.randn(samples, 2, generator=generator)
        return rows @ basis[[step % rank, (step // 3) % rank]]

    return z


@pytest.mark.parametrize(("window", "distance"), [(1, 1), (1, 4), (3, 5), (5, 5), (4, 2), (7, 2), (6, 1)])
def test_a_reading_is_the_rank_of_the_stacked_window(window, distance):
    readings, came, held = followed(drawn(), lambda step: step % distance == 0, window, micro=2)
    assert sorted(readings) == [step for step in range(1, 31) if step % distance == 0]
    for step, (number,) in readings.items():
        rows = [part for s in range(max(1, step - window + 1), step + 1) for part in came[s]]
        largest = np.linalg.svd(np.concatenate(rows), compute_uv=False)[0]
        # Whatever is in the window too much or too little shows in its largest singular value.
        assert number.tolerance == pytest.approx(12 * torch.finfo(torch.float32).eps * largest, rel=1e-6)
        assert number.value == stacked_rank(rows, number.tolerance)
    assert max(held) <= math.ceil(window / distance)


def test_nothing_is_held_between_windows_that_do_not_touch():
    _, _, held = followed(drawn(), lambda step: step % 10 == 0, 3)
    assert held == [1 if step % 10 in (8, 9, 0) else 0 for step in range(1, 31)]


def test_several_tolerances_and_the_support_stand_side_by_side():
    def z(step, i):
        rows = torch.zeros(20, 12)
        rows[:, 1:5] = torch.randn(20, 4)
        rows[:, 4] *= 1e-3
        return rows

    rules = ("default", "numpy", "rounding", 0.5, 1e-9)
    readings, came, _ = followed(z, lambda step: step == 4, 2, tolerances=rules, support=True)
    numbers = readings[4]
    rows = [*came[3], *came[4]]
    for number in numbers[:-1]:
        assert number.value == stacked_rank(rows, number.tolerance)
    assert [n.value for n in numbers] == [4, 4, 4, 3, 4, 4]
    assert [n.tolerance for n in numbers[3:5]] == [0.5, 1e-9]
    assert math.isnan(numbers[-1].tolerance)
    series = SpanWindows([LAYER], ["activation"], rules, support=True).series
    assert [(s.metric, s.tolerance_rule) for s in series] == [
        *(("span_dimension", str(rule)) for rule in rules), ("support_columns", "none"),
    ]  # fmt: skip


STATES = {
    "ok": lambda: torch.randn(40, 12),
    "too_few_samples": lambda: torch.randn(3, 12),
    "nonfinite": lambda: torch.full((4, 12), math.inf),
    "zero": lambda: torch.zeros(4, 12),
    "empty": lambda: torch.zeros(0, 12),
    "below_noise": lambda: torch.randn(4, 130).bfloat16(),
}


@pytest.mark.parametrize("status", STATES)
def test_the_reason_stands_beside_the_number(status):
    readings, _, _ = followed(lambda step, i: STATES[status](), lambda step: step == 1, 1, support=True)
    dimension, support = readings[1]
    assert STATUSES[dimension.code] == status
    expected = {"ok": 12, "too_few_samples": 3, "zero": 0}.get(status, math.nan)
    assert dimension.value == pytest.approx(expected, nan_ok=True)
    assert STATUSES[support.code] == (status if status in ("nonfinite", "zero", "empty") else "ok")


def test_a_window_in_which_nothing_came_in_is_empty():
    spans = SpanWindows([LAYER], ["activation", "activation_gradient"], support=True)
    spans.take("a", "activation", torch.ones(2, 3))  # before any window
    spans.open(1)
    assert [(STATUSES[n.code], math.isnan(n.value)) for n in spans.readings()] == [("empty", True)] * 4
    words = {"activation": "unused", "activation_gradient": "no_gradient"}
    readings = spans.readings(lambda layer, tensor: words[tensor])
    assert [STATUSES[n.code] for n in readings] == ["unused"] * 2 + ["no_gradient"] * 2
    assert [STATUSES[n.code] for n in spans.nothing("skipped")] == ["skipped"] * 4


def test_16_bit_activations_are_resolved_where_rounding_is_asked_for():
    z = (torch.randn(300, 5) @ torch.randn(5, 160)).bfloat16()
    readings, _, _ = followed(
        lambda step, i: z, lambda step: step == 1, 1, tolerances=("default", "rounding")
    )
    assert [STATUSES[n.code] for n in readings[1]] == ["below_noise", "ok"]
    assert readings[1][1].value == 5


def test_wide_layers_are_sketched_and_what_a_sketch_cannot_say_is_an_error():
    z = torch.randn(50, 6) @ torch.randn(6, 400)
    errors = []
    spans = SpanWindows(
        [LAYER],
        ["activation"],
        ("default", "rounding"),
        max_features=32,
        on_error=lambda layer, tensor, error: errors.append((layer, tensor, str(error))),
    )
    spans.open(1)
    spans.take("a", "activation", z)
    known, refused = spans.readings()
    assert (known.value, STATUSES[known.code]) == (6, "ok")
    assert (math.isnan(refused.value), STATUSES[refused.code]) == (True, "error")
    assert spans.sketched == {"a"}
    assert errors[0][:2] == ("a", "activation")
    assert "needs column norms, which a sketch lacks" in errors[0][2]


def test_a_failure_spoils_its_window_and_no_other():
    errors = []
    spans = SpanWindows([LAYER], ["activation"], on_error=lambda *what: errors.append(what))
    spans.open(1)
    spans.take("a", "activation", torch.ones(2, 3))
    spans.take("a", "activation", torch.ones(2, 4))  # another width
    spans.take("a", "activation", torch.ones(2, 3))
    assert [STATUSES[n.code] for n in spans.readings()] == ["error"]
    assert "expected floating activations [..., 3]" in str(errors[0][2])
    spans.forget()
    spans.open(3)
    spans.take("a", "activation", ValueError("no matrix"))
    assert [STATUSES[n.code] for n in spans.readings()] == ["error"]
    assert str(errors[1][2]) == "no matrix"
    spans.forget()
    spans.open(2)
    spans.take("a", "activation", torch.ones(2, 4))
    assert [(n.value, STATUSES[n.code]) for n in spans.readings()] == [(1, "ok")]


def test_the_spans_of_several_processes_become_one_in_the_same_order_everywhere():
    other = SpanWindows([LAYER, SimpleNamespace(name="b")], ["activation"])
    other.open(1)
    other.take("a", "activation", torch.eye(4)[:1])
    theirs = {"a": other._segments[0].spans["a", "activation"], "b": None}
    order = iter(["a", "b"])

    def combine(ours):
        name = next(order)
        if ours is None or theirs[name] is None:
            return ours or theirs[name]
        return ours.merge(theirs[name])

    spans = SpanWindows([LAYER, SimpleNamespace(name="b")], ["activation"], combine=combine)
    spans.open(1)
    spans.take("a", "activation", torch.eye(4)[1:3])
    readings = spans.readings()
    assert readings[0].value == 3
    assert STATUSES[readings[1].code] == "empty"
    assert next(order, None) is None


def test_an_activation_is_neither_kept_nor_changed():
    z = torch.randn(600, 9, requires_grad=True) * 2
    before = z.detach().clone()
    spans = SpanWindows([LAYER], ["activation"], ("default", "rounding", 1e-3))
    spans.open(1)
    spans.take("a", "activation", z)
    assert torch.equal(z, before)
    z.detach().zero_()
    assert spans.readings()[0].value == 9


@pytest.mark.parametrize("window", [0, -1, 2.0, True, "3", None])
def test_a_window_is_a_number_of_steps(window):
    with pytest.raises(InputError, match=r"got span_window = .*, expected a whole number, 1 or more"):
        checked_window(window)


# --- attached -----------------------------------------------------------------------------------------


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 9, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(36, 5),
    )


def trained(model, tracker_of, steps=12, micro=3, batch=2):
    """Train with accumulation.

    Return the tracker's table, every output and its gradient by step and layer, and how many factors were held.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen, now, held = {}, [1], []

    def collect(name):
        def hook(module, args, output):
            z = output.detach().clone()
            seen.setdefault((now[0], name, "activation"), []).append(z)
            output.register_hook(
                lambda g: seen.setdefault((now[0], name, "activation_gradient"), []).append(
                    g.detach().clone()
                )
            )

        return hook

    for name in ("0", "3", "7"):
        model.get_submodule(name).register_forward_hook(collect(name))
    with tracker_of(model, optimizer) as tracker:
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(micro):
                nn.functional.cross_entropy(
                    model(torch.randn(batch, 1, 4, 4)), torch.randint(5, (batch,))
                ).backward()
            now[0] += 1
            held.append(tracker._reducer._beside._trained.held)
            optimizer.step()
        held.append(tracker._reducer._beside._trained.held)
        return tracker.table(), seen, held


def matrix(parts):
    rows = [(z.movedim(1, -1) if z.ndim == 4 else z).flatten(0, -2).double().numpy() for z in parts]
    return np.concatenate(rows)


@pytest.mark.parametrize(("window", "distance"), [(1, 4), (3, 4), (5, 2)])
def test_a_tracker_records_the_span_of_every_micro_batch_of_the_window(tmp_path, window, distance):
    tensors = ("weight", "activation", "activation_gradient")

    def attach(model, optimizer):
        return RankTracker(
            model,
            optimizer,
            tmp_path / "run.h5",
            schedule=every(distance),
            tensors=tensors,
            metrics=("rank", "support", "span_dimension"),
            span_window=window,
        )

    table, seen, held = trained(convolutional(), attach)
    assert max(held) == 6 * math.ceil(window / distance)  # of three layers and two tensors
    assert held[-1] == 0 or window > distance
    indexed = table.set_index(["step", "layer", "tensor", "metric"])
    assert indexed.index.is_unique
    for step in range(0, 13, distance):
        for layer in ("0", "3", "7"):
            for tensor in tensors[1:]:
                row = indexed.loc[(step, layer, tensor, "span_dimension")]
                support = indexed.loc[(step, layer, tensor, "support_columns")]
                if step == 0:
                    assert (row["status"], math.isnan(row["value"])) == ("skipped", True)
                    continue
                steps = range(max(1, step - window + 1), step + 1)
                Z = matrix([z for s in steps for z in seen[s, layer, tensor]])
                largest = np.linalg.svd(Z, compute_uv=False)[0]
                eps = torch.finfo(torch.float32).eps
                assert row["tolerance"] == pytest.approx(Z.shape[1] * eps * largest, rel=1e-5)
                assert row["value"] == stacked_rank([Z], row["tolerance"])
                expected = "too_few_samples" if row["value"] == len(Z) < Z.shape[1] else "ok"
                assert row["status"] == expected
                assert support["value"] == (Z != 0).any(0).sum()
    # At the other steps of a window nothing is recorded.
    assert sorted(set(table["step"])) == list(range(0, 13, distance))
    run = open_run(tmp_path / "run.h5")
    assert run.attributes["span_window"] == window
    assert "support_rows" in set(table["metric"][table["tensor"] == "activation"])
    assert run.events["kind"].tolist() == []


def test_what_a_window_lacks_has_a_reason():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                z = self.a(x)
            return self.c(z)

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tensors = ("activation", "activation_gradient")
    with RankTracker(
        model, optimizer, schedule=every(1), tensors=tensors, metrics="span_dimension"
    ) as tracker:
        model(torch.randn(4, 3)).sum().backward()
        model.c.requires_grad_(False)
        optimizer.step()
    table = tracker.table().set_index(["step", "layer", "tensor"])["status"]
    assert table.loc[1].to_dict() == {
        ("a", "activation"): "unused",
        ("a", "activation_gradient"): "unused",
        ("b", "activation"): "unused",
        ("b", "activation_gradient"): "unused",
        ("c", "activation"): "ok",
        ("c", "activation_gradient"): "ok",
    }


def test_a_resumed_window_holds_the_steps_since_then():
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"schedule": every(5), "tensors": "activation", "metrics": "span_dimension", "span_window": 4}
    with RankTracker(model, optimizer, start=8, **options) as tracker:
        for i in range(2):
            model(torch.eye(4)[i : i + 1]).sum().backward()
            optimizer.step()
    assert tracker.table()[["step", "value"]].to_numpy().tolist() == [[10, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": "span_dimension"},
            "span_dimension is a metric of activations; add 'activation' to tensors",
        ),
        ({"span_window": 3}, "got span_window = 3, but no span is taken over steps of the training"),
        ({"span_window": 0}, "got span_window = 0, expected a whole number"),
        ({"span_max_features": 0.5}, "got span_max_features = 0.5, expected a whole number"),
        (
            {
                "metrics": "span_dimension",
                "tensors": "activation",
                "span_window": 2,
                "probe": torch.ones(2, 6),
            },
            r"with probe=… the spans of activations are those of the probe",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(mlp, options, message):
    model, optimizer, _ = mlp
    with pytest.raises(InputError, match=message):
        RankTracker(model, optimizer, **options)
    assert not model[0]._forward_hooks


def test_a_wide_layer_is_sketched_and_that_is_said(tmp_path):
    model = nn.Linear(3, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"tensors": "activation", "metrics": "span_dimension", "span_max_features": 16}
    with RankTracker(model, optimizer, tmp_path / "run.h5", schedule=every(1), **options) as tracker:
        for _ in range(3):
            model(torch.randn(30, 3)).sum().backward()
            optimizer.step()
    assert tracker.table()["value"].tolist()[1:] == [4, 4, 4]
    events = open_run(tmp_path / "run.h5").events
    assert events["kind"].tolist() == ["sketched"]
    assert "has more than 16 features: its span is taken of a sketch" in events["text"][0]

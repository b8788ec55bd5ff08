"""Gradients as the optimizer uses them: against gradients taken by hand, wherever a loop gets its own from."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hooks import RankTracker, every
from zanalysis.errors import InputError
from zanalysis.runfile.reader import open_run


def norm_of(W):
    return torch.linalg.vector_norm(W.double())


def product(W):
    """Differs for any two matrices, as good as surely; to the last bit."""
    return (W.double().flatten() * torch.arange(1, W.numel() + 1)).sum()


@pytest.fixture
def follow(attach):
    """Attach to the gradients; return a function that gives what was recorded as step -> layer -> value."""

    def make(model, optimizer, **options):
        options = {"schedule": every(1), "tensors": "gradient", "metrics": product} | options
        tracker = attach(model, optimizer, **options)

        def recorded(column="value"):
            table = tracker.table().query("step > 0")
            return table.pivot(index="step", columns="layer", values=column).to_dict("index")

        recorded.tracker = tracker
        return recorded

    return make


def by_hand(model, names, scale=1.0):
    return {name: product(model.get_parameter(f"{name}.weight").grad / scale).item() for name in names}


def two_layers():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def backward(model, seed=0, factor=1.0):
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
    loss = factor * model(x).square().sum()
    loss.backward()
    return loss


# --- the moment ---------------------------------------------------------------------------------------


def test_accumulated_and_clipped_gradients_are_recorded(follow):
    model = two_layers()
    optimizer = torch.optim.AdamW(model.parameters())
    recorded, expected = follow(model, optimizer), {}
    for step in range(1, 4):
        for micro in range(4):
            backward(model, 10 * step + micro)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1 * step)
        expected[step] = by_hand(model, "02")
        optimizer.step()
        optimizer.zero_grad()
    assert recorded() == expected


@pytest.mark.parametrize("passed", ["positional", "keyword"])
def test_of_a_closure_that_is_evaluated_several_times_the_first_counts(follow, passed):
    model = two_layers()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    recorded, expected, losses = follow(model, optimizer), {}, []

    def closure(step):
        optimizer.zero_grad()
        loss = backward(model, step)
        expected.setdefault(step, by_hand(model, "02"))
        losses.append(loss)
        return loss

    for step in range(1, 4):
        closure_of_step = partial(closure, step)
        result = (
            optimizer.step(closure_of_step)
            if passed == "positional"
            else optimizer.step(closure=closure_of_step)
        )
        assert result in losses
    assert len(losses) > 6
    assert recorded() == expected


def test_a_closure_that_does_everything_is_read_when_it_returns(follow):
    # As Lightning does it: the gradients of the step before are still there when the step begins.
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorded, expected = follow(model, optimizer), {}
    for step in range(1, 4):

        def closure(step=step):
            loss = backward(model, step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            expected[step] = by_hand(model, "02")
            return loss

        optimizer.step(closure=closure)
        optimizer.zero_grad(set_to_none=step == 1)
    assert recorded() == expected


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaler_is_taken_off_and_its_skipped_steps_are_not_counted(follow, fused, unscaled):
    model = two_layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    tensors = ("gradient", "activation")
    recorded = follow(model, optimizer, tensors=tensors, layers="2").tracker
    expected = []
    for attempt in range(5):
        optimizer.zero_grad()
        loss = backward_scaled(model, scaler, attempt, np.inf if attempt in (0, 2) else 1.0)
        if unscaled:
            scaler.unscale_(optimizer)
        if attempt not in (0, 2):
            expected.append(by_hand(model, "2", 1.0 if unscaled else scaler.get_scale())["2"])
        scaler.step(optimizer)
        scaler.update()
        assert loss.requires_grad
    table = recorded.table().query("step > 0 and tensor == 'gradient'")
    assert table["step"].tolist() == [1, 2, 3]
    assert table["value"].tolist() == expected


def backward_scaled(model, scaler, seed, factor):
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
    loss = factor * model(x).square().sum()
    scaler.scale(loss).backward()
    return loss


def test_a_skipped_step_of_a_fused_optimizer_leaves_nothing_of_itself(follow):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    tracker = follow(model, optimizer, tensors=("activation", "gradient"), metrics="frobenius_norm").tracker
    for skipped in (True, False):
        optimizer.zero_grad()
        if skipped:
            backward(model)
        else:
            model[0](torch.ones(3, 6)).sum().backward()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(float(skipped))
        optimizer.step()
    table = tracker.table().query("step == 1").set_index(["layer", "tensor"])
    assert tracker.table()["step"].unique().tolist() == [0, 1]
    assert table["status"].to_dict() == {
        ("0", "activation"): "ok", ("0", "gradient"): "ok",
        ("2", "activation"): "unused", ("2", "gradient"): "unused",
    }  # fmt: skip


@pytest.mark.parametrize("first_in_loop", [True, False])
def test_of_several_optimizers_each_is_read_at_its_own_step(follow, first_in_loop):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    counts, other = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 1))
    recorded = follow(model, [counts, other])
    at_its_step = {}
    for seed in range(1, 4):
        backward(model, seed)
        for optimizer in (counts, other) if first_in_loop else (other, counts):
            name = "0" if optimizer is counts else "1"
            at_its_step[seed, name] = by_hand(model, name)[name]
            if optimizer is counts:
                at_its_step[seed, "2"] = by_hand(model, "2")["2"]
            optimizer.step()
            backward(model, seed + 10)
    values = recorded()
    assert sorted(values) == [1, 2, 3]
    for step in (1, 2, 3):
        assert values[step]["0"] == at_its_step[step, "0"]
        assert values[step]["2"] == at_its_step[step, "2"]  # trained by neither
        # Where the other one steps afterwards, its last step before this one is the one that shows.
        earlier = step - 1 if first_in_loop else step
        if earlier:
            assert values[step]["1"] == at_its_step[earlier, "1"]
        else:
            assert recorded("status")[step]["1"] == "skipped"


def test_another_optimizer_that_skips_its_step_is_not_recorded(follow):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    counts, other = (torch.optim.SGD(layer.parameters(), lr=0.1, fused=True) for layer in model)
    recorded = follow(model, [counts, other])
    for found in (1.0, 0.0):
        backward(model)
        other.grad_scale, other.found_inf = torch.tensor(1.0), torch.tensor(found)
        other.step()
        counts.step()
    assert [row["1"] for row in recorded("status").values()] == ["skipped", "ok"]


def test_an_optimizer_in_the_backward_is_seen_where_it_is_given(follow, attach, caplog):
    model = two_layers()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    expected = []

    def step_at_once(parameter):
        if parameter.ndim == 2:
            expected.append(product(parameter.grad).item())
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    handles = [p.register_post_accumulate_grad_hook(step_at_once) for p in model.parameters()]
    recorded = follow(model, list(optimizers.values()))
    blind = follow(model, None)
    for step in (1, 2):
        backward(model, step)
        blind.tracker.step()
    # The first optimizer is that of the first layer, whose gradient comes last.
    assert recorded() == {1: {"2": expected[0], "0": expected[1]}, 2: {"2": expected[2], "0": expected[3]}}
    assert set(blind("status")[2].values()) == {"skipped"}
    assert caplog.text.count("is used up inside the backward") == 2  # once for each layer
    assert "optimizer=[...]" in caplog.text
    [handle.remove() for handle in handles]


def test_without_an_optimizer_the_gradients_are_those_of_the_moment(follow):
    model = two_layers()
    recorded, expected = follow(model, None), {}
    for step in (1, 2):
        model.zero_grad()
        backward(model, step)
        expected[step] = by_hand(model, "02")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        recorded.tracker.step()
    assert recorded() == expected


# --- the numbers, and the words where there is none -----------------------------------------------------


def test_every_metric_of_a_gradient_is_that_of_its_matrix(tmp_path, attach):
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = attach(
        model, optimizer, tmp_path / "run.h5", schedule=every(1), tensors=("weight", "gradient"),
        metrics=("rank", "stable_rank", "nuclear_norm", "support", "singular_values", "zero_gradient",
                 "identity_scale"),
        reference=[None, "init", "identity"], view="in",
    )  # fmt: skip
    model(torch.randn(3, 2, 6)).square().sum().backward()
    matrices = {"0": model[0].weight.grad.transpose(0, 1).flatten(1), "2": model[2].weight.grad.mT}
    matrices = {name: matrix.double().numpy().copy() for name, matrix in matrices.items()}
    optimizer.step()
    tracker.close()
    run = open_run(tmp_path / "run.h5")
    table = run.table().query("step == 1")
    gradients = table.query("tensor == 'gradient'")
    assert set(gradients["reference"]) == {"none"}
    assert "identity_scale" not in set(gradients["metric"])
    assert "zero_gradient" not in set(table.query("tensor == 'weight'")["metric"])
    assert set(table.query("tensor == 'weight'")["reference"]) == {"none", "init", "identity"}
    values = gradients.set_index(["layer", "metric"])["value"]
    for name, matrix in matrices.items():
        sigma = np.linalg.svd(matrix, compute_uv=False)
        tau = max(matrix.shape) * np.finfo(np.float32).eps * sigma[0]
        assert values[name, "rank"] == (sigma > tau).sum()
        assert values[name, "stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-4)
        assert values[name, "nuclear_norm"] == pytest.approx(sigma.sum(), rel=1e-6)
        assert values[name, "support_rows"] == (abs(matrix).max(1) > 0).sum()
        assert values[name, "zero_gradient"] == 0
        recorded = run.spectra(name, tensor="gradient").values[1]
        np.testing.assert_allclose(recorded[: len(sigma)], sigma, rtol=1e-6, atol=1e-9)


def test_a_gradient_that_is_zero_frozen_unused_or_not_finite_says_which(attach):
    model = nn.ModuleDict(
        {name: nn.Linear(3, 3) for name in ("used", "zero", "frozen", "unused", "late", "infinite", "zeroed")}
    )
    model["frozen"].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tracker = attach(
        model, optimizer, schedule=every(1), tensors="gradient", metrics=("zero_gradient", "frobenius_norm")
    )
    for step in (1, 2):
        optimizer.zero_grad(set_to_none=step == 1)
        x = torch.ones(2, 3)
        z = model["used"](x) + 0 * model["zero"](x) + model["frozen"](x) + torch.inf * model["infinite"](x)
        z = z + (model["zeroed"](x) if step == 1 else model["late"](x))
        z.sum().backward()
        optimizer.step()
    table = tracker.table().pivot(index=["step", "metric"], columns="layer", values=["value", "status"])
    flags = table["value"].xs("zero_gradient", level="metric")
    words = table["status"].xs("zero_gradient", level="metric")
    assert set(words.loc[0]) == {"skipped"}
    assert flags.loc[0].isna().all()
    said = {
        "used": "ok",
        "zero": "zero",
        "frozen": "no_gradient",
        "unused": "unused",
        "infinite": "nonfinite",
    }
    for step in (1, 2):
        assert words.loc[step].to_dict() | said == words.loc[step].to_dict()
        assert flags.loc[step, ["used", "zero"]].tolist() == [0, 1]
        assert flags.loc[step, ["frozen", "unused", "infinite"]].isna().all()
    assert words["late"].tolist() == ["skipped", "unused", "ok"]
    # `zero_grad(set_to_none=False)` leaves zeros, which the optimizer uses.
    assert words["zeroed"].tolist() == ["skipped", "ok", "zero"]
    assert flags["zeroed"].tolist()[1:] == [0, 1]


def test_a_tied_weight_has_one_gradient_the_sum(follow):
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorded = follow(model, optimizer)
    model(torch.tensor([1, 2])).square().sum().backward()
    expected = by_hand(model, "0")
    optimizer.step()
    assert recorded() == {1: expected}


def test_a_sparse_gradient_is_made_dense(follow):
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters())
    recorded = follow(model, optimizer)
    model(torch.tensor([1, 2, 1])).square().sum().backward()
    expected = product(model[0].weight.grad.to_dense()).item()
    optimizer.step()
    assert recorded() == {1: {"0": expected}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_gradient_is_measured_in_the_dtype_it_is_stored_in(follow, dtype):
    dtypes = []

    def dtype_of(W):
        dtypes.append(W.dtype)
        return 0

    model = nn.Sequential(nn.Linear(4, 4)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorded = follow(model, optimizer, metrics=(dtype_of, "rank"))
    model(torch.ones(2, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    assert dtypes == [dtype]
    assert recorded.tracker.table().query("step == 1 and metric == 'rank'")["status"].tolist() == ["ok"]


def test_a_parametrized_weight_has_the_gradient_of_its_original_and_it_is_said(follow, caplog):
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)), parametrizations.weight_norm(nn.Linear(5, 4))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorded = follow(model, optimizer)
    backward(model)
    inner = [module.parametrizations.weight for module in model]
    expected = {"0": product(inner[0].original.grad).item(), "1": product(inner[1].original1.grad).item()}
    optimizer.step()
    assert recorded() == {1: expected}
    assert caplog.text.count("its gradient is that of the original parameter") == 2


class Halves(nn.Module):
    def forward(self, left, right):
        return torch.cat([left, right])

    def right_inverse(self, W):
        return W[:2], W[2:]


def test_a_parametrization_without_a_parameter_of_its_shape_says_so(follow, caplog):
    layer = nn.Linear(6, 5)
    nn.utils.parametrize.register_parametrization(layer, "weight", Halves())
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorded = follow(model, optimizer)
    backward(model)
    optimizer.step()
    assert recorded("status") == {1: {"0": "skipped"}}
    assert "no parameter behind 0 has its shape" in caplog.text


def test_a_weight_that_is_pruned_after_all_keeps_its_gradient(follow):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorded = follow(model, optimizer)
    prune.l1_unstructured(model[0], "weight", 0.5)
    backward(model)
    expected = product(model[0].weight_orig.grad).item()
    assert (model[0].weight_orig.grad == 0).any()
    optimizer.step()
    assert recorded()[1]["0"] == expected


@pytest.mark.parametrize(
    ("tensors", "metrics", "sentence"),
    [
        ("weight", "zero_gradient", "no number of weight comes of metrics = zero_gradient"),
        (
            ("gradient", "activation"),
            "identity_scale",
            "no number of gradient or activation comes of",
        ),
        (
            "activation",
            ("zero_gradient", "identity_scale"),
            "zero_gradient is one of gradients",
        ),
    ],
)
def test_metrics_that_say_nothing_of_the_tensors_are_refused_alone(mlp, tensors, metrics, sentence):
    model, optimizer, _ = mlp
    with pytest.raises(InputError, match=sentence):
        RankTracker(model, optimizer, tensors=tensors, metrics=metrics)


def test_a_reference_without_weights_is_refused(mlp):
    model, optimizer, _ = mlp
    with pytest.raises(InputError, match="reference = init is subtracted from weights"):
        RankTracker(model, optimizer, tensors="gradient", reference="init")


def test_series_of_weights_come_first_and_are_what_they_were(attach, mlp):
    model, optimizer, _ = mlp
    options = {"metrics": ("rank", "singular_values"), "reference": [None, "init"]}
    alone = attach(model, optimizer, **options)._columns
    more = attach(model, optimizer, tensors=("activation_gradient", "gradient", "weight"), **options)._columns
    assert more.series[: len(alone.series)] == alone.series
    assert more.spectra[: len(alone.spectra)] == alone.spectra
    assert [series.tensor for series in more.series[len(alone.series) :]] == ["gradient"] * 2 + [
        "activation_gradient"
    ] * 2

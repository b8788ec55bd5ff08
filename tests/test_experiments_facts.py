"""Every experiment at smoke scale, each with a fact of its method."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from experiment_cases import job_of, network_of
from safetensors.torch import load_file
from torch import nn

import zanalysis as za
from zanalysis.experiments.feeding import feed_of
from zanalysis.experiments.models import Multiplier, ResidualBlock
from zanalysis.experiments.recipes import RECIPES
from zanalysis.experiments.runner import run_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def blocks(model):
    return [module for module in model.modules() if isinstance(module, ResidualBlock)]


def literal_zero(rows, columns):
    """ZerO's matrix, entry by entry (Algorithm 1, orthonormal)."""
    matrix = torch.zeros(rows, columns)
    if rows <= columns:
        for i in range(rows):
            matrix[i, i] = 1
        return matrix
    m = (rows - 1).bit_length()
    for i in range(rows):
        for j in range(columns):
            matrix[i, j] = (-1) ** bin(i & j).count("1") * 2 ** (-m / 2)
    return matrix


def is_zero_by_formula(model):
    """ZerO on a convolutional network: the centre taps by Algorithm 1, the last convolution of each block zero."""
    last = [[m for m in block.branch.modules() if isinstance(m, nn.Conv2d)][-1] for block in blocks(model)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().clone()
            centre = weight.shape[2] // 2
            matrix = weight[:, :, centre, centre].clone()
            weight[:, :, centre, centre] = 0
            assert not weight.any()
            if any(module is one for one in last):
                assert not matrix.any()
            else:
                torch.testing.assert_close(matrix, literal_zero(*matrix.shape), rtol=1e-7, atol=0)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert last


def hidden_of(model, block):
    """What comes into a block, for some images."""
    seen = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    return seen[0]


def every_block_is_its_skip(model):
    for block in blocks(model):
        into, output = hidden_of(model, block)
        with torch.no_grad():
            skipped = block.skip(into)
        assert torch.equal(output, skipped) or torch.equal(output, skipped.relu())


def verdicts_hold(outcome):
    assert {verdict.verdict for verdict in outcome.verdicts} <= {"holds", "inconclusive"}
    assert sum(verdict.verdict == "holds" for verdict in outcome.verdicts) >= 4


def zero_by_formula(outcome):
    is_zero_by_formula(network_of(job_of(outcome.recipe.name, "zero")).model)
    started = {
        name: record["facts"]["zero_at_start"]
        for name, record in outcome.records.items()
        if name.startswith("zero")
    }
    last = "conv3" if "imagenet" in outcome.recipe.name else "conv2"
    for zero in started.values():
        assert set(zero) == {f"layer{i}.0.{last}" for i in range(1, 5)}


def line_up(outcome):
    name = outcome.recipe.name
    is_zero_by_formula(network_of(job_of(name, "zero")).model)
    for label in ("fixup", "rezero", "skipinit", "constnet"):
        every_block_is_its_skip(network_of(job_of(name, label)).model)
    fixup = network_of(job_of(name, "fixup")).model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fixup.modules())
    for block in blocks(fixup):
        into, _ = hidden_of(fixup, block)
        with torch.no_grad():
            assert not block.branch(into).any()
    assert not fixup.fc.weight.any()
    for label in ("rezero", "skipinit"):
        scales = [
            m.scale for m in network_of(job_of(name, label)).model.modules() if isinstance(m, Multiplier)
        ]
        assert len(scales) == 4
        assert all(scale.shape == (1,) and scale == 0 for scale in scales)
    for label, told_apart in (("constnet", False), ("constnet-noise", True)):
        for seed in (0, 1):
            table = za.open_run(outcome.trainings / f"{label}-{seed}.h5").table()
            seen = table[table["metric"].eq("distinct_rows") & table["tensor"].eq("weight")]
            kernels = seen[seen["layer"].ne("fc") & seen["reference"].eq("none")]
            assert (kernels[kernels["step"] == 0]["value"] == 1).all()
            end = kernels[kernels["step"] == kernels["step"].max()]["value"]
            assert bool((kernels["value"] == 1).all()) is not told_apart
            assert bool((end > 1).any()) is told_apart


def deep(outcome):
    for depth in (8, 14):
        for label in ("zero", "fixup", "rezero", "skipinit", "batchnorm"):
            model = network_of(job_of("figure-4", label, depth)).model
            weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            assert len(weighted) == depth
            normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
            assert normed is (label == "batchnorm")
            if label == "zero":
                is_zero_by_formula(model)
            if label not in ("batchnorm",):
                every_block_is_its_skip(model)
    assert {(row.label, row.at) for row in outcome.rows} >= {("zero-8", 8), ("batchnorm-14", 14)}


def language_model(outcome):
    model = network_of(job_of("table-4", "zero", 2)).model
    for layer in model.layers:
        attention, ff = layer.attention, layer.feedforward
        assert torch.equal(attention.query.weight, torch.eye(8))
        assert not attention.key.weight.any()
        assert not attention.value.weight.any()
        assert torch.equal(ff.first.weight, torch.eye(8))
    job = job_of("table-4", "standard", 1)
    loss, tokens = 0.0, 0
    model = network_of(job).model.eval()
    for inputs, targets in job.data.batches("test", 10, 12):
        with torch.no_grad():
            scores = model(inputs).double().log_softmax(-1)
        loss -= scores.gather(-1, targets[..., None]).sum()
        tokens += targets.numel()
    first = outcome.records["standard-1-0"]["curves"]["test_perplexity"][0]
    assert first == pytest.approx(float((loss / tokens).exp()), rel=1e-5)


def spread(outcome):
    assert outcome.trainings.name == "table-2-smoke"
    for row in outcome.rows:
        assert row.std == pytest.approx(np.std(row.values, ddof=1))
        assert row.seeds[:3] == (0, 1, 2)
    weights = [load_file(outcome.trainings / f"zero-{seed}.safetensors") for seed in (0, 1)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any("95 % interval" in note for note in outcome.notes)


def trajectories(outcome):
    table = za.open_run(outcome.trainings / "zero-0.h5").table()
    seen = table[table["metric"].eq("stable_rank") & table["layer"].eq("layer3.0.conv1")]
    assert set(seen["reference"]) == {"none", "init", "identity"}
    raw, update = (seen[seen["reference"] == name].set_index("step") for name in ("none", "init"))
    rows, columns = 16, 8
    if "imagenet" in outcome.recipe.name:
        rows, columns = 16, 32
    assert raw.loc[0, "value"] == pytest.approx(float(za.stable_rank(literal_zero(rows, columns))), rel=1e-4)
    assert update.loc[0, "status"] == "zero"
    assert 1 <= update.iloc[-1]["value"] <= min(rows, columns)
    assert za.open_run(outcome.trainings / "zero-0.h5").spectra("layer3.0.conv1").values.shape[1] >= 8


def complexity(outcome):
    for label in ("zero-0", "kaiming-0"):
        record = outcome.records[label]
        for what, share in (("pruning", "sparsity"), ("tucker", "rank_out")):
            frame = pd.read_csv(outcome.trainings / record["measured"][what])
            assert len(frame) >= 8
            # Nothing pruned, or full ranks, is the trained network itself, up to rounding in a product or two.
            assert frame["score"].iloc[0] == pytest.approx(record["value"], abs=1.01)
            assert frame[share].is_monotonic_increasing or frame[share].is_monotonic_decreasing


def all_zero_cnn(outcome):
    for record in outcome.records.values():
        facts = record["facts"]
        layers = {"block1.conv", "block2.conv", "block3.conv", "fc"}
        assert set(facts["zero_at_start"]) == layers == set(facts["first_moved"])
        # Only the last layer has a gradient at first: a layer before a zero one gets none.
        assert facts["first_gradient"]["fc"] == 1
        assert {facts["first_gradient"][name] for name in layers - {"fc"}} == {2}
        assert record["curves"]["test_accuracy"][0] == pytest.approx(10, abs=5)
        assert record["parameters"] == 3 * 10 + 10 * 65


def zeroed_head(outcome):
    facts = outcome.records["zeroed-0"]["facts"]
    assert facts["zero_at_start"] == ["fc"]
    assert facts["first_gradient"]["fc"] == 1
    assert {step for layer, step in facts["first_gradient"].items() if layer != "fc"} == {2}


def zeroed_first(outcome):
    facts = outcome.records["zeroed-0"]["facts"]
    first = {name for name in facts["first_moved"] if name.endswith(".first")}
    assert set(facts["zero_at_start"]) == first | {"head"}
    assert facts["first_moved"]["head"] == 1
    assert all(facts["first_moved"][name] == 2 for name in first)
    # A second layer behind a first one of zeros sees only the first one's biases, and moves with them.
    assert outcome.records["standard-0"]["facts"]["zero_at_start"] == []


def zeroed_second(outcome):
    facts = outcome.records["zeroed-0"]["facts"]
    second = {name for name in facts["first_moved"] if name.endswith(".second")}
    head = {"head"} if "mixer" in outcome.recipe.name else set()
    assert set(facts["zero_at_start"]) == second | head
    first = {name for name in facts["first_moved"] if name.endswith(".first")}
    moved = 1 if not head else 2
    assert all(facts["first_moved"][name] == moved for name in second)
    assert all(facts["first_moved"][name] == moved + 1 for name in first)
    model = network_of(job_of(outcome.recipe.name, "zeroed")).model
    biases = [bool(m.bias.any()) for n, m in model.named_modules() if n.endswith(".second")]
    assert all(biases) is bool(head)  # of the Mixer only the weights are zero


def noise_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def noisy(outcome):
    name, label = outcome.recipe.name, outcome.recipe.systems[0].label
    facts = outcome.records[f"{label}-0"]["facts"]
    model = network_of(job_of(name, label)).model
    assert set(facts["zero_at_start"]) == set(facts["first_moved"])
    for module in model.modules():
        if isinstance(module, nn.Linear) or (label == "all-zero" and isinstance(module, nn.LayerNorm)):
            assert not module.weight.any()
    job = job_of(name, label)
    network, feed = network_of(job).model, feed_of(job)
    assert noise_of(network) > 0
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    left = []
    for step in range(10):
        images, labels = feed.batch(*divmod(step, 5))
        still = {n for n, m in network.named_modules() if m._forward_hooks and not m.weight.any()}
        nn.functional.cross_entropy(network(images), labels).backward()
        hooked = {n for n, m in network.named_modules() if m._forward_hooks}
        assert hooked == still  # it stops by itself, and only where a weight has moved
        left.append(len(hooked))
        optimizer.step()
        optimizer.zero_grad()
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]


FACTS = {
    "theorem-1": verdicts_hold,
    "table-2": zero_by_formula,
    "table-2-imagenet": zero_by_formula,
    "table-3": line_up,
    "table-3-resnet-50": line_up,
    "reproducibility": spread,
    "figure-4": deep,
    "table-4": language_model,
    "figure-6": complexity,
    "figure-5": trajectories,
    "figure-5-imagenet": trajectories,
    "zero-weights/cnn-mnist": all_zero_cnn,
    "zero-weights/cnn-cifar-10": all_zero_cnn,
    "zero-weights/cnn-cifar-100": all_zero_cnn,
    "zero-weights/resnet-cifar-10": zeroed_head,
    "zero-weights/vit-cifar-10": zeroed_first,
    "zero-weights/mixer-cifar-10": zeroed_first,
    "zero-weights/mixer-tiny-imagenet": zeroed_second,
    "zero-weights/vit-tiny-imagenet": zeroed_second,
    "zero-weights/mixer-all-constant": noisy,
    "zero-weights/mixer-all-zero": noisy,
}


def test_every_experiment_has_its_fact():
    assert set(FACTS) == set(RECIPES)


@pytest.mark.parametrize("name", FACTS)
def test_at_smoke_scale_it_runs_to_its_table_and_shows_its_fact(out, name):
    outcome = run_experiment(name, "smoke", out=out)
    assert outcome.results.exists()
    assert outcome.picture.stat().st_size > 5_000
    content = json.loads(outcome.results.read_text())
    assert content["experiment"] == name
    if RECIPES[name].scales:
        expected = len(RECIPES[name].systems) * len(RECIPES[name].scales["smoke"].values or [None])
        assert len(outcome.rows) == expected
        assert all(row.values for row in outcome.rows)
    FACTS[name](outcome)

"""Experiments: one of each model family, going on after a kill, using again, refusing, and bad input."""

import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from experiment_cases import job_of, network_of, same_weights
from typer.testing import CliRunner

import zanalysis as za
from zanalysis.cli import app
from zanalysis.errors import InputError, RunFileError, ZAnalysisError
from zanalysis.experiments.asking import loaded_data, stretched
from zanalysis.experiments.comparing import deviation_ratio
from zanalysis.experiments.data import load
from zanalysis.experiments.feeding import feed_of
from zanalysis.experiments.jobs import Job, variants
from zanalysis.experiments.optimizing import factor, optimizer_of
from zanalysis.experiments.recipes import RECIPES, find
from zanalysis.experiments.recipes.schema import Decay, Optimizer
from zanalysis.experiments.results import Row, incomparable, rows_of
from zanalysis.experiments.runner import run_experiment
from zanalysis.experiments.states import best_of
from zanalysis.experiments.training import train
from zanalysis.experiments.training_together import train_together
from zanalysis.initializers import INITIALIZATIONS

ROWS_OF_THE_PROTOCOLS = [
    "theorem-1", "table-2", "table-2-imagenet", "table-3", "table-3-resnet-50", "figure-4", "table-4",
    "reproducibility", "figure-5", "figure-6",
    *(f"zero-weights/{name}" for name in (
        "cnn-mnist", "cnn-cifar-10", "cnn-cifar-100", "resnet-cifar-10", "vit-cifar-10", "mixer-cifar-10",
        "mixer-tiny-imagenet", "vit-tiny-imagenet", "mixer-all-constant", "mixer-all-zero")),
]  # fmt: skip


def table(path):
    """The record of a run, in an order of its own."""
    return za.open_run(path).table()


# What there is


def test_every_row_of_the_protocols_has_its_recipe_at_three_scales():
    assert set(ROWS_OF_THE_PROTOCOLS) <= set(RECIPES)
    for recipe in RECIPES.values():
        if recipe.metric == "verdict":
            continue
        assert set(recipe.scales) == {"smoke", "small", "paper"}
        assert recipe.trainings is None or recipe.trainings in RECIPES
        for system in recipe.systems:
            assert system.initialization is None or system.initialization in INITIALIZATIONS


def test_recipes_that_share_trainings_describe_the_same_ones():
    for recipe in RECIPES.values():
        if recipe.trainings is None:
            continue
        owner = RECIPES[recipe.trainings]
        assert recipe.metric == owner.metric
        known = {system.label: system for system in owner.systems}
        for system in recipe.systems:
            theirs = known[system.label]
            assert (system.initialization, system.options, system.arguments) == (
                theirs.initialization, theirs.options, theirs.arguments)  # fmt: skip
        for scale, protocol in recipe.scales.items():
            other = owner.scales[scale]
            assert {k: v for k, v in vars(protocol).items() if k not in {"seeds", "ours"}} == {
                k: v for k, v in vars(other).items() if k not in {"seeds", "ours"}
            }


def test_the_papers_numbers_and_settings_are_those_of_the_protocols():
    paper = {system.label: system.paper[None] for system in find("table-2").systems}
    assert [(p.mean, p.std) for p in paper.values()] == [(5.13, 0.08), (5.15, 0.13), (5.23, 0.16)]
    three = [s.paper[None].mean for s in find("table-3").systems if s.paper]
    assert three == [5.13, 5.20, 5.17, 5.26, 72.39, 5.41]
    fifty = [s.paper[None].mean for s in find("table-3-resnet-50").systems if s.paper]
    assert fifty == [4.53, 4.72, 4.51, 4.63, 71.58, 4.88]
    standard, zero = (list(system.paper.values()) for system in find("table-4").systems)
    assert [p.mean for p in standard] == [200.44, 168.69, 154.67, 146.43, None, None]
    assert [p.mean for p in zero] == [192.34, 169.73, 151.91, 149.27, 145.62, 141.81]
    cifar, imagenet = find("table-2").scales["paper"], find("table-2-imagenet").scales["paper"]
    for protocol in (cifar, imagenet):
        assert protocol.optimizer == Optimizer("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
        assert protocol.seeds == 10
    assert (cifar.decay.warmup, imagenet.decay.warmup) == (10, 5)
    four = find("table-4").scales["paper"]
    assert (four.epochs, four.decay.milestones, four.values) == (20, (10,), (2, 4, 6, 8, 10, 20))
    cnn = find("zero-weights/cnn-mnist").scales["paper"]
    assert (cnn.epochs, cnn.batch, cnn.optimizer.lr, cnn.seeds) == (500, 100, 1e-4, 20)
    assert (cnn.decay.kind, cnn.decay.period, cnn.decay.factor) == ("every", 20, 0.95)
    mixer = find("zero-weights/mixer-tiny-imagenet").scales["paper"]
    assert (mixer.epochs, mixer.batch, mixer.augmentation.mixup) == (100, 500, 0.5)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_network_of_every_recipe_is_described_rightly(name):
    recipe = RECIPES[name]
    for scale in ("smoke", "small") if recipe.scales else ():
        protocol = recipe.scales[scale]
        for variant in variants(recipe, protocol):
            if scale == "small" and variant.at not in (None, protocol.values[0] if protocol.values else None):
                continue
            at_hand = (
                {"data": "digits", "train": 40, "test": 20} if protocol.model != "transformer-lm" else {}
            )
            network_of(job_of(name, variant.system.label, variant.at, scale=scale, **at_hand))


def test_list_names_every_experiment():
    result = CliRunner().invoke(app, ["experiment", "list"])
    assert result.exit_code == 0
    assert all(name in result.output for name in RECIPES)
    listed = json.loads(CliRunner().invoke(app, ["experiment", "list", "--json"]).output)
    assert [one["name"] for one in listed] == list(RECIPES)
    assert listed[1]["scales"]["paper"] == {"data": "cifar-10", "epochs": 200, "seeds": 10}


# How weights are updated


def literal_factor(decay, step, per_epoch, epochs):
    """The learning rate's share, written slowly."""
    if (step + 1) / per_epoch < decay.warmup:
        return (step + 1) / per_epoch / decay.warmup
    epoch = step / per_epoch
    if decay.kind == "cosine":
        return 0.5 + 0.5 * np.cos(np.pi * max(epoch - decay.warmup, 0) / (epochs - decay.warmup))
    share = 1.0
    if decay.kind == "milestones":
        for milestone in decay.milestones:
            share *= decay.factor if epoch >= milestone else 1
    if decay.kind == "every":
        for later in range(decay.period, epochs + 1, decay.period):
            share *= decay.factor if epoch >= later else 1
    return share


@pytest.mark.parametrize(
    "decay",
    [
        Decay(),
        Decay(warmup=2, kind="cosine"),
        Decay(warmup=0.5, kind="milestones", milestones=(3, 5), factor=0.1),
        Decay(kind="every", period=2, factor=0.95),
    ],
)
def test_learning_rate_follows_the_formula(decay):
    for step in range(7 * 6):
        assert factor(decay, step, 7, 6) == pytest.approx(literal_factor(decay, step, 7, 6), rel=1e-12)


def test_scalars_have_a_rate_of_their_own():
    network = network_of(job_of("table-3", "fixup")).model
    optimizer = optimizer_of(network, Optimizer(lr=0.2, scalars=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.02 if "bias" in name or "scale" in name else 0.2)
    assert len(rates) == len(list(network.parameters()))


def test_batches_depend_on_seed_and_step_alone():
    job, other = job_of("zero-weights/mixer-all-constant", "standard"), None
    one, again = feed_of(job), feed_of(job)
    first = [one.batch(epoch, index) for epoch, index in ((0, 0), (0, 1), (1, 0))]
    second = [again.batch(epoch, index) for epoch, index in ((1, 0), (0, 1), (0, 0))][::-1]
    for (images, labels), (same, soft) in zip(first, second, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, soft)
        assert labels.shape[1] == 10  # MixUp's labels are soft
    other = feed_of(job_of("zero-weights/mixer-all-constant", "standard", seed=1))
    assert not torch.equal(other.batch(0, 0)[0], first[0][0])
    seen = torch.cat([feed_of(job_of("table-2", "zero")).batch(0, i)[1] for i in range(5)])
    assert torch.equal(seen.sort().values, job_of("table-2", "zero").data.train.labels.sort().values)
    later = torch.cat([feed_of(job_of("table-2", "zero")).batch(1, i)[1] for i in range(5)])
    assert not torch.equal(later, seen)


def test_deterministic_weights_are_those_of_every_seed_and_random_ones_are_not():
    for name, label, same in (("table-2", "zero", True), ("table-2", "kaiming", False)):
        one, other = (network_of(job_of(name, label, seed=seed)).model for seed in (0, 1))
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same


# Running


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("table-2", "zero"),
        ("figure-4", "zero-8"),
        ("table-4", "zero-1"),
        ("zero-weights/vit-cifar-10", "zeroed"),
        ("zero-weights/mixer-all-constant", "all-constant"),
        ("zero-weights/cnn-mnist", "all-zero"),
    ],
)
def test_one_recipe_of_each_model_family_runs_to_its_table(tmp_path, name, only):
    seeds = 2 if find(name).together else 1
    outcome = run_experiment(name, "smoke", seeds=seeds, out=tmp_path, only=[only])
    assert outcome.picture.stat().st_size > 5_000
    assert [row.seeds for row in outcome.rows] == [tuple(range(seeds))]
    content = json.loads(outcome.results.read_text())
    told = "each training counts with the best of its epochs, chosen by the test samples themselves"
    assert (told in outcome.notes) == name.startswith("zero-weights")
    absent = [s.title for s in find(name).systems if s.title not in {row.title for row in outcome.rows}]
    assert not any(note.startswith(f"{title}: ") for note in outcome.notes for title in absent)
    counted = "best" if name.startswith("zero-weights") else "value"
    values = [record[counted] for record in content["trainings"].values()]
    assert content["rows"][0]["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    for record in content["trainings"].values():
        assert record["steps"] == outcome_steps(outcome, record)
        run = za.open_run(outcome.trainings / record["run"])
        assert run.attributes["user"] == record["settings"]
        assert run.steps[-1] == record["steps"]
        metric = f"test_{find(name).metric}"
        assert run.logged()[metric].dropna().tolist() == pytest.approx(record["curves"][metric])
        assert (outcome.trainings / record["weights"]).exists()
    assert not list(outcome.trainings.glob("*.pt"))
    assert not list(outcome.trainings.glob(".*"))


def outcome_steps(outcome, record):
    """How many steps a training should have made."""
    settings = record["settings"]
    data = load(settings["data"]).subset(train=settings["train"])
    if settings["model"] == "transformer-lm":
        return settings["epochs"] * data.count("train", settings["batch"], settings["length"])
    return settings["epochs"] * -(-len(data.train) // settings["batch"])


def test_results_have_everything_to_repeat_a_training(tmp_path):
    run_experiment("table-2", "smoke", seeds=[3], out=tmp_path / "one", only=["kaiming"])
    record = json.loads((tmp_path / "one/table-2-smoke/results.json").read_text())["trainings"]["kaiming-3"]
    settings = record["settings"]
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["data_fingerprint"] == load("digits").subset(train=160, test=100).fingerprint
    run_experiment("table-2", "smoke", seeds=[settings["seed"]], out=tmp_path / "two", only=["kaiming"])
    again = json.loads((tmp_path / "two/table-2-smoke/results.json").read_text())["trainings"]["kaiming-3"]
    assert again["curves"] == record["curves"]
    assert same_weights(*(tmp_path / n / "table-2-smoke/kaiming-3.safetensors" for n in ("one", "two")))


def test_the_global_generators_are_left_as_they_were(tmp_path):
    before = torch.get_rng_state()
    run_experiment("zero-weights/mixer-all-constant", "smoke", out=tmp_path, only=["all-constant"])
    assert torch.equal(torch.get_rng_state(), before)


KILLED = """
import os, signal, sys
from zanalysis.experiments.runner import run_experiment
def watch(name, number, count):
    def progress(done, of):
        if done == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
    return progress
run_experiment({name!r}, "smoke", seeds={seeds}, out=sys.argv[1], only=[{only!r}], checkpoint_seconds=0, watch=watch)
"""


def record_steps(outcome):
    """The steps at which the trainings of an experiment were recorded."""
    return {
        step for r in outcome.records.values() for step in za.open_run(outcome.trainings / r["run"]).steps
    }


@pytest.mark.parametrize(
    ("name", "only", "seeds", "step"),
    [
        # MixUp, noise from a generator and recorded gradients; replicas together; text with dropout.
        ("zero-weights/mixer-all-constant", "all-constant", [1], 8),
        pytest.param("zero-weights/cnn-mnist", "all-zero", [0, 1], 14, marks=pytest.mark.slow),
        pytest.param("table-3", "constnet-noise", [0], 9, marks=pytest.mark.slow),
        pytest.param("table-4", "zero-2", [0], 19, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_ends_with_the_bits_of_one_left_alone(tmp_path, name, only, seeds, step):
    script = KILLED.format(step=step, name=name, seeds=seeds, only=only)
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "killed"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = tmp_path / "killed" / f"{name}-smoke"
    assert len(list(folder.glob("*.pt"))) == 1
    begun = []
    outcome = run_experiment(
        name, "smoke", seeds=seeds, out=tmp_path / "killed", only=[only],
        watch=lambda *_: lambda done, of: begun.append(done),
    )  # fmt: skip
    # Not on a recorded step, whose gradients would be lost: steps 5, 7 and 10 of ten are recorded.
    assert 0 < begun[0] < step
    assert begun[0] not in record_steps(outcome)
    whole = run_experiment(name, "smoke", seeds=seeds, out=tmp_path / "whole", only=[only])
    assert outcome.records.keys() == whole.records.keys()
    for key, record in outcome.records.items():
        alone = whole.records[key]
        assert record["curves"] == alone["curves"]
        assert record["facts"] == alone["facts"]
        assert same_weights(outcome.trainings / record["weights"], whole.trainings / alone["weights"])
        pd.testing.assert_frame_equal(
            table(outcome.trainings / record["run"]), table(whole.trainings / alone["run"])
        )
    assert not list(folder.glob("*.pt"))


def test_what_has_finished_is_used_again_and_foreign_files_are_refused(tmp_path):
    def go(**more):
        told = []
        settings = {"seeds": 1, "out": tmp_path, "only": ["zeroed"], **more}
        run_experiment(
            "zero-weights/vit-cifar-10",
            "smoke",
            watch=lambda name, *_: told.append(name) or (lambda *_: None),
            **settings,
        )
        return told

    assert go() == ["zeroed-0"]
    assert go() == []
    assert go(seeds=2) == ["zeroed-1"]
    folder = tmp_path / "zero-weights/vit-cifar-10-smoke"
    before = (folder / "zeroed-0.json").stat().st_mtime_ns
    assert go(overwrite=True) == ["zeroed-0"]
    assert (folder / "zeroed-0.json").stat().st_mtime_ns > before
    record = json.loads((folder / "zeroed-0.json").read_text())
    record["settings"]["optimizer"]["lr"] = 0.5
    (folder / "zeroed-0.json").write_text(json.dumps(record))
    with pytest.raises(
        RunFileError, match=r"zeroed-0\.json exists already \(its optimizer lr is 0\.5, not 0\.001\)"
    ):
        go()
    (folder / "zeroed-0.json").unlink()
    assert go() == ["zeroed-0"]  # its run file has the right settings
    (folder / "zeroed-0.json").unlink()
    (folder / "zeroed-0.h5").write_bytes(b"something else")
    with pytest.raises(RunFileError, match=r"zeroed-0\.h5 exists already \(it is not a run file"):
        go()
    (folder / "zeroed-0.h5").unlink()
    (folder / "zeroed-0.pt").write_bytes(b"something else")
    with pytest.raises(RunFileError, match=r"zeroed-0\.pt exists already \(it is not the checkpoint"):
        go()
    assert go(overwrite=True) == ["zeroed-0"]
    (folder / "zeroed-0.h5").unlink()
    (folder / "zeroed-0.h5").mkdir()
    with pytest.raises(RunFileError, match=r"cannot remove .*zeroed-0\.h5: Is a directory; move it away"):
        go(overwrite=True)
    (folder / "zeroed-0.h5").rmdir()
    assert go(overwrite=True) == ["zeroed-0"]
    (folder / "zeroed-0.safetensors").unlink()
    with pytest.raises(RunFileError, match=r"zeroed-0\.safetensors, which belongs to it, is missing"):
        go()


def test_divergence_is_a_result(tmp_path):
    job = job_of("table-2", "kaiming", optimizer=Optimizer("sgd", lr=1e30))
    record = train(job, tmp_path)
    assert (record["status"], record["value"]) == ("diverged", None)
    assert 1 <= record["diverged_at"] == record["steps"] < 10
    assert json.loads((tmp_path / "kaiming-0.json").read_text()) == record
    assert train(job, tmp_path) == record


def test_training_loss_is_the_mean_over_the_samples_of_its_epoch(tmp_path):
    job = job_of("zero-weights/vit-cifar-10", "standard", batch=30, optimizer=Optimizer("sgd", lr=0.0))
    images, labels = job.data.train.batch(torch.arange(100))
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(network_of(job).model(images), labels).item()
    assert train(job, tmp_path)["curves"]["train_loss"] == [None, *[pytest.approx(whole, rel=1e-5)] * 2]


def test_replicas_trained_together_are_those_trained_alone(tmp_path):
    jobs = [job_of("zero-weights/cnn-mnist", "all-zero", seed=seed) for seed in (0, 1)]
    (tmp_path / "together").mkdir()
    (tmp_path / "alone").mkdir()
    together = train_together(jobs, tmp_path / "together")
    for job, record in zip(jobs, together, strict=True):
        alone = train(job, tmp_path / "alone")
        assert record["facts"]["first_gradient"] == alone["facts"]["first_gradient"]
        # float32, where sums are formed in another order over 20 steps
        assert record["curves"]["test_loss"] == pytest.approx(alone["curves"]["test_loss"], rel=1e-4)
        assert record["curves"]["train_loss"][1:] == pytest.approx(
            alone["curves"]["train_loss"][1:], rel=1e-4
        )


# Comparing


def row(label, values, paper=None):
    values = tuple(values)
    std = float(np.std(values, ddof=1))
    return Row(label, label, None, values, tuple(range(len(values))), (), float(np.mean(values)), std, paper)


def test_interval_of_a_ratio_of_deviations_covers_it():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        one, other = (row("a", generator.normal(5, s, n)) for s, n in ((0.7, 4), (1.0, 20)))
        ratio, low, high = deviation_ratio(one, other)
        assert low < ratio < high
        covered += low < 0.7 < high
    assert 0.92 < covered / 400 < 0.98


def test_why_numbers_are_not_the_sources():
    recipe = find("table-2")
    assert incomparable(recipe, "paper", recipe.scales["paper"]) == ()
    reasons = incomparable(recipe, "small", recipe.scales["small"])
    assert reasons[:2] == ("scale small", "fashion-mnist instead of cifar-10")
    assert "5 epochs instead of 200" in reasons
    assert "width 8 instead of 64" in reasons
    assert "crop 0 instead of 4" in reasons
    longer = incomparable(recipe, "small", stretched(recipe.scales["small"], 10))
    assert "warm-up 2 instead of 10" in longer
    assert not any(reason.startswith("period") for reason in longer)  # a cosine has none
    text = find("table-4")
    assert "length 12 instead of 35" in incomparable(text, "smoke", text.scales["smoke"])
    assert "milestones 1 instead of 10" in incomparable(text, "smoke", text.scales["smoke"])


@pytest.mark.parametrize(("name", "label", "counted"), [("table-2", "zero", 8.0), ("figure-4", "zero", 8.0),
                         ("zero-weights/mixer-cifar-10", "zeroed", 9.0)])  # fmt: skip
def test_the_last_epoch_counts_except_in_the_second_seed(name, label, counted):
    recipe = find(name)
    protocol = recipe.scales["smoke"]
    variant = next(v for v in variants(recipe, protocol) if v.system.label == label)
    records = {
        f"{variant.label}-{seed}": {
            "settings": {"system": label, "at": variant.at},
            "seed": seed,
            "status": status,
            "value": 8.0,
            "best": 9.0,
        }
        for seed, status in ((1, "ok"), (0, "ok"), (2, "diverged"))
    }
    (only,) = rows_of(recipe, variants(recipe, protocol), records)
    assert (only.values, only.seeds, only.diverged) == ((counted, counted), (0, 1), (2,))
    assert (only.mean, only.std) == (counted, 0)


def test_best_epoch_depends_on_the_metric():
    assert best_of([3.0, 1.0, 2.0], "accuracy") == 3
    assert best_of([3.0, 1.0, 2.0], "perplexity") == 1
    assert best_of([], "error") is None


# Bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "table-22"}, "unknown experiment 'table-22'; did you mean 'table-2'?"),
        ({"scale": "smal"}, "unknown scale 'smal'; did you mean 'small'?"),
        ({"data": "mnits"}, "unknown data set 'mnits'; did you mean 'mnist'?"),
        ({"only": ["zerro"]}, "table-2 has no system 'zerro'; did you mean 'zero'?"),
        ({"seeds": 0}, "got seeds = 0, expected how many"),
        ({"seeds": [1, -1]}, "got seed -1, expected a whole number"),
        ({"seeds": []}, "got no seed"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used here"),
        ({"epochs": 0}, "got epochs = 0"),
        ({"threads": 0}, "got threads = 0"),
        ({"data": "pydoc"}, "pydoc holds text, but resnet is a model of images"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, sentence):
    settings = {"name": "table-2", "scale": "smoke", "out": tmp_path, "seeds": 1, **arguments}
    with pytest.raises(InputError) as caught:
        run_experiment(settings.pop("name"), settings.pop("scale"), **settings)
    assert sentence in str(caught.value)
    assert not list(tmp_path.rglob("*.h5"))


def test_missing_data_says_which_files_from_where_to_which_folder(tmp_path):
    with pytest.raises(ZAnalysisError, match=r"cifar-10") as caught:
        run_experiment("table-2", "paper", data_dir=tmp_path, out=tmp_path / "runs")
    assert str(tmp_path) in str(caught.value)
    assert "cifar-10-python.tar.gz" in str(caught.value)
    assert "https://" in str(caught.value)


def test_small_scale_stands_in_the_digits_and_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("ZANALYSIS_DATA", raising=False)
    protocol = find("table-2").scales["small"]
    loaded, used, notes = loaded_data(protocol, tmp_path)
    assert (loaded.name, used.data) == ("digits", "digits")
    assert "fashion-mnist is not at hand" in notes[0]
    assert "trained on digits instead" in notes[0]


def test_the_command_line_prints_the_table_the_reason_and_the_folder(tmp_path):
    arguments = [
        "experiment",
        "table-2",
        "--scale",
        "smoke",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    result = CliRunner().invoke(app, [*arguments, "--only", "zero"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "ZerO" in result.output
    assert "5.13 ± 0.08" in result.output
    assert "Not the setting of the source: scale smoke; digits instead of cifar-10" in result.output
    assert "results.json and table-2.png are in" in result.output
    result = CliRunner().invoke(app, [*arguments, "--only", "zero", "--json"], catch_exceptions=False)
    assert json.loads(result.output)["rows"][0]["label"] == "zero"
    alone = CliRunner().invoke(app, [*arguments, "--only", "zero", "--seeds", "2,", "--json"])
    assert list(json.loads(alone.output)["trainings"]) == ["zero-0", "zero-2"]
    bad = CliRunner().invoke(app, ["experiment", "table-2", "--seeds", "x"])
    assert isinstance(bad.exception, InputError)


def test_a_job_says_what_decides_its_outcome():
    job = job_of("table-2", "zero")
    assert isinstance(job, Job)
    settings = job.settings()
    assert json.loads(json.dumps(settings)) == settings
    changed = job_of("table-2", "zero", batch=16).settings()
    assert {name for name in settings if settings[name] != changed[name]} == {"batch"}

"""Whatever is recorded: the training is bit for bit what it would be, and the gradients are those it used."""

import random
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hooks import RankTracker, Recorder, every
from zanalysis.runfile.reader import open_run


class Network(nn.Module):
    """A convolutional network with everything that is easily disturbed."""

    def __init__(self, repeats):
        super().__init__()
        self.repeats = repeats
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second = nn.Sequential(
            nn.Dropout(0.2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(nn.Linear(64, 6), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x):
        x = self.first(x)
        x = self.second(x) if self.repeats is None else checkpoint(self.second, x, use_reentrant=self.repeats)
        return self.head(x.flatten(1))


LAYERS = ("first.0", "second.1", "head.0", "head.3")

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2, history_size=3),
}


def fingerprint(W):
    random.random(), np.random.rand(), torch.rand(2)
    return (W.double().flatten() * torch.arange(1, W.numel() + 1)).sum()


def everything(model, optimizer, path, schedule):
    return RankTracker(
        model,
        optimizer,
        path,
        schedule=schedule,
        tensors=("weight", "gradient", "activation", "activation_gradient"),
        metrics=("rank", "stable_rank", "zero_gradient", "singular_values", fingerprint),
        reference=[None, "init"],
        on_record=lambda step, rows: random.random(),
    )


def probed(model, optimizer, path, schedule):
    return RankTracker(
        model,
        optimizer,
        path,
        schedule=schedule,
        tensors=("gradient", "activation", "activation_gradient"),
        metrics=("stable_rank", "span_dimension", "jacobian_singular_values"),
        span_window=3,
        probe=torch.linspace(-1, 1, 5 * 16).reshape(5, 1, 4, 4),
        jacobian={"samples": 2},
        budget=1.0,
    )


def whole(model, optimizer, path, schedule):
    tensors = ("weight", "gradient", "activation", "activation_gradient")
    return Recorder(model, optimizer, path, schedule=schedule, tensors=tensors)


KINDS = {
    "numbers of all tensors": everything,
    "probe, spans and Jacobians": probed,
    "the tensors themselves": whole,
}
"""Ways to record: a context manager of model, optimizer, path and schedule."""


def training(settings, steps, watch, used=None):
    """Train for a number of steps taken; return everything that must not change.

    What `used` gets: the gradient of each layer at each step, as the optimizer used it.
    """
    amp, kind, accumulation, repeats = settings
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Network(repeats)
    optimizer = OPTIMIZERS[kind](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7, enabled=amp == "float16")
    precision = torch.autocast("cpu", getattr(torch, amp)) if amp else nullcontext()
    taken = attempt = 0

    def note(scale=1.0):
        if used is not None:
            used.append({name: model.get_submodule(name).weight.grad / scale for name in LAYERS})

    with watch(model, optimizer):
        while taken < steps:
            attempt += 1
            batches = [(torch.randn(4, 1, 4, 4), torch.randint(3, (4,))) for _ in range(accumulation)]
            evaluated = []

            def closure(batches=batches, attempt=attempt, evaluated=evaluated):
                optimizer.zero_grad()
                for x, y in batches:
                    with precision:
                        loss = nn.functional.cross_entropy(model(x), y) / len(batches)
                    if amp == "float16" and attempt == 3:
                        loss = loss * float("inf")
                    scaler.scale(loss).backward()
                if kind == "lbfgs":
                    if not evaluated:
                        note()
                    evaluated.append(loss)
                return loss

            if kind == "lbfgs":
                optimizer.step(closure)
                taken += 1
                continue
            closure()
            scale = scaler.get_scale()
            clips = kind != "fused sgd" and attempt % 2
            if clips:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            note(1.0 if clips else scale)
            scaler.step(optimizer)
            scaler.update()
            skipped = scaler.get_scale() < scale
            taken += not skipped
            if used is not None and skipped:
                used.pop()
    return {
        "attempts": attempt,
        "model": model.state_dict(),
        "modes": [module.training for module in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@cache
def plainly(settings, steps):
    used = []
    return training(settings, steps, lambda *_: nullcontext(), used), used


def check(tmp_path, kind, settings, steps, apart):
    plain, used = plainly(settings, steps)
    schedule = every(apart)
    watched = training(
        settings, steps, lambda model, optimizer: KINDS[kind](model, optimizer, tmp_path / "run.h5", schedule)
    )
    for part in plain:
        assert same(plain[part], watched[part]), part
    assert (plain["attempts"] > steps) == (settings[0] == "float16")
    return open_run(tmp_path / "run.h5"), used


def check_numbers(run, used, steps, apart):
    assert run.steps.tolist() == list(range(0, steps + 1, apart))
    assert run.events["text"].tolist() == []
    table = run.table()
    assert set(table["tensor"]) == {"weight", "gradient", "activation", "activation_gradient"}
    assert set(table.query("step == 0 and tensor != 'weight'")["status"]) == {"skipped"}
    later = table.query("step > 0")
    # In a long training units may die, and their gradient with them.
    assert set(later.query("tensor != 'weight'")["status"]) <= ({"ok"} if steps < 50 else {"ok", "zero"})
    assert len(table) == len(run.steps) * len(LAYERS) * (2 * 3 + 4 + 3 + 4)
    prints = later.query("tensor == 'gradient' and metric == 'fingerprint'").set_index(["step", "layer"])
    for step in run.steps[1:]:
        for layer in LAYERS:
            gradient = used[step - 1][layer]
            assert prints.loc[(step, layer), "value"] == fingerprint(gradient).item(), (step, layer)
            sigma = torch.linalg.svdvals(gradient.flatten(1).double()).numpy()
            recorded = run.spectra(layer, tensor="gradient").values[step // apart][: len(sigma)]
            np.testing.assert_allclose(recorded, sigma, rtol=1e-6, atol=1e-9 * sigma[0])


def check_probed(run, settings, steps, apart):
    assert run.steps.tolist() == list(range(0, steps + 1, apart))
    words = run.table().groupby("tensor")["status"].agg(set).to_dict()
    assert words["activation"] <= {"ok", "too_few_samples", "zero"}
    # A gradient that overflowed on the way to a step is one of those that came in; at step 0 there are none.
    overflow = {"nonfinite"} if settings[0] == "float16" else set()
    assert words["activation_gradient"] <= {"ok", "too_few_samples", "zero", "skipped"} | overflow
    # Reentrant checkpointing refuses the derivative by an input, and is heard.
    assert words["jacobian"] <= ({"error"} if settings[3] else {"ok", "zero"})
    assert len(run.events) == bool(settings[3])


def check_whole(run, used, steps, apart):
    """The tensors in the file are the gradients that the optimizer used, to the bit."""
    for recorded in run.tensors:
        first = 0 if recorded.tensor == "weight" else apart
        assert recorded.steps.tolist() == list(range(first, steps + 1, apart)), recorded
    for step in range(apart, steps + 1, apart):
        for layer in LAYERS:
            assert torch.equal(run.tensor(layer, "gradient", step), used[step - 1][layer])


CHECKS = {
    "numbers of all tensors": lambda run, used, settings, *rest: check_numbers(run, used, *rest),
    "probe, spans and Jacobians": lambda run, used, settings, *rest: check_probed(run, settings, *rest),
    "the tensors themselves": lambda run, used, settings, *rest: check_whole(run, used, *rest),
}


ALL = [
    (amp, kind, accumulation, repeats)
    for amp in (None, "bfloat16", "float16")
    for kind in OPTIMIZERS
    if not (amp == "float16" and kind == "lbfgs")  # a gradient scaler takes no closure
    for accumulation in (1, 4)
    for repeats in (None, False, True)
]
CHOSEN = [
    s
    for s in ALL
    if s[2:] == (4, False) or (s[0] is None and s[2:] == (1, None)) or s == (None, "sgd", 4, True)
]


def name_of(settings):
    amp, kind, accumulation, repeats = settings
    repeated = {None: "plain", False: "checkpointed", True: "checkpointed reentrantly"}[repeats]
    return f"{amp or 'float32'}-{kind}-{accumulation}-{repeated}"


@pytest.mark.parametrize("settings", CHOSEN, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_20_steps_are_bit_identical(tmp_path, kind, settings):
    run, used = check(tmp_path, kind, settings, steps=20, apart=5)
    CHECKS[kind](run, used, settings, 20, 5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ALL, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_200_steps_are_bit_identical(tmp_path, kind, settings):
    run, used = check(tmp_path, kind, settings, steps=200, apart=10)
    CHECKS[kind](run, used, settings, 200, 10)

"""Runs that the tests of the report share."""

import numpy as np
import torch
from torch import nn

from hooks import RankTracker, every
from zanalysis.runfile import RunWriter, Series, SpectrumKey

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "fc\x1b[31mred",
    "a\u202egnp.exe",
    "{{7*7}} %{y} ${alert(3)}",
    "'onmouseover='alert(4)",
    "&lt;b&gt;<a href='javascript:alert(5)'>x</a>",
    "\u200fעברית.weight",
    "x" * 300,
]


def small_run(path):
    """Train a small convolutional network for 20 steps, its record at every second."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = ("rank", "stable_rank", "singular_values", "distinct_rows", "support")
    with RankTracker(
        model, optimizer, path, schedule=every(2), metrics=metrics, reference=[None, "init"]
    ) as tracker:
        for _ in range(20):
            x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            tracker.log(loss=loss, accuracy=0.5)
    return path


def hostile_run(path):
    """Record under names that would act on the page, if they could."""
    series = [
        Series(name, "weight", reference, "default", metric)
        for name in EVIL
        for reference in ("none", "<b>ref</b>")
        for metric in ("rank", "<img src=x onerror=alert(6)>")
    ]
    spectra = [SpectrumKey(name, "<i>weight</i>", "none") for name in EVIL]
    markup = {"dtype": "</td><script>alert(8)</script>", "start": "\x07"}
    attributes = {
        "model": {"type": "<script>alert(7)</script>", "modules": 3},
        "layers": [
            *({**markup, "name": name, "matrices": [name], "shape": [8, 8]} for name in EVIL),
            7,
            {"name": 3},
        ],
        "optimizers": "<svg onload=alert(9)>",
        "schedule": "</title><script>alert(10)</script>",
        "user": {"</pre><script>alert(11)</script>": "</style>\u2028", "\u202e": "\x1b[2J"},
        "versions": {"<i>": ["x"]},
        "resumed": [{"start": "<script>alert(12)</script>"}, 5],
    }  # fmt: skip
    writer = RunWriter(path, series, spectra, attributes, k=4, mode="w")
    rng = np.random.default_rng(0)
    ones, codes = np.ones(len(series)), np.zeros(len(series), np.uint8)
    for step in range(12):
        spectrum = -np.sort(-rng.random((len(spectra), 4)), axis=-1)
        writer.append(step, rng.integers(1, 9, len(series)).astype(float), ones, codes, spectrum)
        writer.log(step, '<script>alert("log")</script>', step)
        writer.log(step, "</script>`${alert(13)}`<img src=x onerror=alert(14)>", -step)
    writer.log(3, "<b>loss</b>&amp;", 1.0)
    writer.event(3, "<b>kind</b>", "</li><script>alert(15)</script>\x1b[2J", "<img src=x onerror=alert(16)>")
    writer.close()
    return path


def many_layers(path, layers=130, steps=40):
    """Record the rank of many layers under two references."""
    names = [f"model.layers.{i}.attention.query" for i in range(layers)]
    series = [
        Series(n, "weight", r, t, "rank")
        for n in names
        for r in ("none", "init")
        for t in ("default", "0.001")
    ]
    described = [
        {"name": n, "matrices": [n], "shape": [64, 64], "dtype": "float32", "start": "other"} for n in names
    ]
    writer = RunWriter(path, series, attributes={"layers": described}, mode="w")
    rng = np.random.default_rng(0)
    final = rng.integers(5, 60, len(series))
    for step in range(steps):
        value = np.round(final * (1 - np.exp(-step / 10)))
        writer.append(
            step, value, np.full(len(series), 1e-5), np.zeros(len(series), np.uint8), np.empty((0, 0))
        )
    writer.close()
    return path

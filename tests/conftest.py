"""What several tests of recording share."""

import os

import pytest
import torch
from torch import nn

from hooks import RankTracker

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def mlp():
    """A small model, its optimizer, and a function that trains it for some steps."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(3, 6, generator=generator)).square().sum().backward()
            optimizer.step()

    return model, optimizer, train


@pytest.fixture
def attach():
    """Construct trackers that are closed whatever happens in the test."""
    trackers = []

    def make(*args, **kwargs):
        trackers.append(RankTracker(*args, **kwargs))
        return trackers[-1]

    yield make
    for tracker in trackers:
        tracker.close()

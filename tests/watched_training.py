"""A training in a process of its own, to be watched: `python watched_training.py PATH STEPS PAUSE [MODE [START]]`.

It tells each completed step on standard output. Of its two linear layers the first is recorded well, the second
has no gradient for a while.
"""

import os
import sys
import time

import torch
from torch import nn

from hooks import RankTracker, every


def train(path, steps, pause, mode="x", start=0):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with RankTracker(
        model,
        optimizer,
        path,
        schedule=every(2),
        metrics=("rank", "stable_rank"),
        tensors=("weight", "gradient"),
        reference=[None, "init"],
        mode=mode,
        start=start,
        flush_seconds=0.1,
    ) as tracker:
        for step in range(start + 1, steps + 1):
            optimizer.zero_grad()
            loss = (model(torch.randn(32, 16, generator=generator)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            tracker.log(loss=loss, lr=0.05 / step)
            os.write(1, b"%d\n" % step)
            time.sleep(pause)


if __name__ == "__main__":
    path, steps, pause, *more = sys.argv[1:]
    train(path, int(steps), float(pause), *more[:1], *map(int, more[1:]))

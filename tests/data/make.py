"""Record the run files of this schema version that the tests keep, gzipped: `python tests/data/make.py FOLDER`.

Run once, when a version is released, by the software that writes it; never again for a version that is there.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from hooks import RankTracker, Recorder, every

out = Path(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(1)


def train(tracker_of):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(12.0).reshape(3, 4) / 8)
        model[2].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tracker_of(model, optimizer) as tracker:
        for step in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            tracker.log(loss=step / 4)
            if step == 2:
                tracker.log(step=1.0)


metrics = ("rank", "stable_rank", "support", "singular_values")
train(
    lambda m, o: RankTracker(
        m, o, out / "schema-1.h5", schedule=every(2), metrics=metrics, reference=[None, "init"]
    )
)
train(
    lambda m, o: Recorder(m, o, out / "schema-1-raw.h5", schedule=every(2), tensors=("weight", "activation"))
)

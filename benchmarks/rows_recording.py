"""The benchmark row of raw recording: every weight every ten steps, against plain writing of the same bytes.

Three trainings of the same model go on in turn in one process, ten steps at a time: one that writes nothing, one that
writes its weights at every tenth step to a plain file with `open(...).write`, and one with a `Recorder`. What counts
is the time by which ten steps take longer than without writing: that of the loop, and of the thread that competes
with it. The bytes are then with the operating system; neither waits for the disk.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import torch
from torch import nn

from hooks import Recorder, every
from zanalysis.runfile.reader import open_run

EVERY, ROUNDS, WARM_UP = 10, 40, 3
WIDTH, BATCH = 1024, 64


class _Training:
    """A model that is trained ten steps at a time, with something done after each step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.after: Callable[[int], None] = lambda step: None
        self.step = 0
        self.seconds: list[float] = []

    def go_on(self) -> None:
        """Train ten steps, of which the fifth is written."""
        x, y = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))
        began = perf_counter()
        for _ in range(EVERY):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.step += 1
            self.after(self.step)
        self.seconds.append(perf_counter() - began)


def rows() -> list[dict[str, str | float]]:
    """Train the three in turn; lower quartiles over the rounds.

    Returns:
        One row: name, ours_s, peer_s, ratio, ours_value, peer_value, required. The seconds are those that one
        record adds to ten steps; the values are the bytes per second that this makes.
    """
    plain, peer, ours = trainings = [_Training() for _ in range(3)]
    weights = [p for p in peer.model.parameters() if p.ndim > 1]
    size = sum(p.numel() * p.element_size() for p in weights)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        file = stack.enter_context((folder / "peer").open("wb", buffering=0))

        def write(step: int) -> None:
            if step % EVERY == EVERY // 2:
                for weight in weights:
                    file.write(weight.detach().numpy())

        peer.after = write
        schedule = every(EVERY, offset=EVERY // 2)
        stack.enter_context(Recorder(ours.model, ours.optimizer, folder / "ours", schedule=schedule))
        for turn in range(WARM_UP + ROUNDS):
            for training in trainings[turn % 3 :] + trainings[: turn % 3]:
                training.go_on()
        stack.close()
        run = open_run(folder / "ours")
        assert len(run.steps) == 1 + WARM_UP + ROUNDS
        assert (folder / "peer").stat().st_size == (WARM_UP + ROUNDS) * size
    # The lower quartile: what else the machine does only ever adds.
    quiet = {id(one): quantiles(one.seconds[WARM_UP:], n=4)[0] for one in trainings}
    ours_s, peer_s = (max(quiet[id(one)] - quiet[id(plain)], 1e-9) for one in (ours, peer))
    return [
        {
            "name": f"raw recording of every weight every {EVERY} steps, against plain writing in the same loop",
            "ours_s": ours_s,
            "peer_s": peer_s,
            "ratio": peer_s / ours_s,
            "ours_value": f"{size / ours_s / 1e6:.0f} MB/s",
            "peer_value": f"{size / peer_s / 1e6:.0f} MB/s",
            "required": 0.8,
        }
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)

"""The benchmark rows of raw recording: every weight every ten steps, against plain writing of the same bytes.

Three trainings of the same model go on in turn in one process, ten steps at a time: one that writes nothing, one that
writes its weights at one of the ten steps to a plain file with `open(...).write`, and one with a `Recorder`. The bytes
are then with the operating system; neither waits for the disk.

The first row compares what reaches the file in a second of training. The second, which requires nothing, compares by
how much ten steps become longer: where the training keeps every core busy, the thread that writes takes time from it,
besides the copy; where a core is free, only the copy counts.
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
        Two rows: name, ours_s, peer_s, ratio, ours_value, peer_value, required. The seconds are those of ten steps
        with one record, and those that it adds; the values are the bytes per second that this makes.
    """
    trainings = [_Training() for _ in range(3)]
    _, peer, ours = trainings
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
    without, peer_s, ours_s = (quantiles(one.seconds[WARM_UP:], n=4)[0] for one in trainings)
    of_each = [_row("bytes per second of training", ours_s, peer_s, size, 0.8)]
    added = [max(seconds - without, 1e-9) for seconds in (ours_s, peer_s)]
    return [*of_each, _row("seconds added to ten steps", *added, size, 0.0)]


def _row(what: str, ours_s: float, peer_s: float, size: int, required: float) -> dict[str, str | float]:
    return {
        "name": f"raw recording of every weight every {EVERY} steps, against plain writing: {what}",
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s,
        "ours_value": f"{size / ours_s / 1e6:.0f} MB/s",
        "peer_value": f"{size / peer_s / 1e6:.0f} MB/s",
        "required": required,
    }


if __name__ == "__main__":
    for row in rows():
        print(row)

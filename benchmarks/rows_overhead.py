"""What a tracker costs a training: two copies of a model in one process, step by step in turn.

Every row is the time of the observed copy over that of the plain one, closing included, with the order of the
two swapped at every step. A row of plain against plain is the noise floor.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hooks import RankTracker, every

__all__ = ["rows"]

Attach = Callable[[nn.Module, torch.optim.Optimizer, Path], AbstractContextManager[Any]]


def perceptron() -> nn.Module:
    """Return the MLP 784-1024-1024-10."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


class Block(nn.Module):
    """A basic block of a ResNet (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body + shortcut)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """Return a ResNet-18 for 32×32 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def images(*shape: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of noise with labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)


def compared(model: nn.Module, shape: tuple[int, ...], steps: int, attach: Attach) -> tuple[float, float]:
    """Train two copies in turn, one of them observed.

    Args:
        model: the model.
        shape: of a batch.
        steps: how many.
        attach: what observes the second copy.

    Returns:
        Seconds per step of the plain and of the observed copy.
    """
    models = [model, copy.deepcopy(model)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    seconds = [0.0, 0.0]
    batches = images(*shape)

    def step(which: int, x: Tensor, y: Tensor) -> None:
        began = time.perf_counter()
        optimizers[which].zero_grad()
        nn.functional.cross_entropy(models[which](x), y).backward()
        optimizers[which].step()
        seconds[which] += time.perf_counter() - began

    for which in (0, 1) * 5:
        step(which, *next(batches))
    seconds = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(attach(models[1], optimizers[1], Path(folder) / "run.h5"))
        for index in range(steps):
            batch = next(batches)
            for which in (0, 1) if index % 2 else (1, 0):
                step(which, *batch)
        began = time.perf_counter()
        stack.close()
        seconds[1] += time.perf_counter() - began
    return seconds[0] / steps, seconds[1] / steps


def tracked(*settings: dict[str, Any]) -> Attach:
    """Return what attaches a tracker for each of the settings.

    Args:
        *settings: arguments of `RankTracker`.
    """

    def attach(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> ExitStack:
        stack = ExitStack()
        for index, given in enumerate(settings):
            stack.enter_context(RankTracker(model, optimizer, path.with_stem(f"run{index}"), **given))
        return stack

    return attach


def delve(model: nn.Module, _: torch.optim.Optimizer, path: Path) -> AbstractContextManager[Any]:
    """Attach delve's tracker as its documentation has it, its statistics taken at every step."""
    from delve import SaturationTracker

    tracker = SaturationTracker(str(path.with_suffix("")), save_to="csv", modules=model, device="cpu")
    return ExitStack.__enter__(_closing(tracker.close))


def wandb_watch(model: nn.Module, _: torch.optim.Optimizer, path: Path) -> AbstractContextManager[Any]:
    """Attach `wandb.watch` offline, every 10 steps."""
    import wandb

    run = wandb.init(mode="offline", dir=str(path.parent), settings=wandb.Settings(silent=True))
    run.watch(model, log="all", log_freq=10)
    return ExitStack.__enter__(_closing(run.finish))


def _closing(close: Callable[[], Any]) -> ExitStack:
    stack = ExitStack()
    stack.callback(close)
    return stack


MLP = (perceptron, (64, 784), 400)
CNN = (lambda: resnet18(16), (128, 3, 32, 32), 150)
NEVER = every(10**9)


def rows() -> Iterator[dict[str, object]]:
    """Yield one row for each way to observe.

    Yields:
        Rows as `__main__` prints them; `ratio` is observed over plain, and `at_most` what is allowed.
    """
    stable = {"metrics": "stable_rank"}
    cases: list[tuple[str, Any, Attach, float | None]] = [
        ("MLP, plain against plain", MLP, lambda *_: nullcontext(), None),
        ("MLP, steps that are not due", MLP, tracked({**stable, "schedule": NEVER}), 1.01),
        ("MLP, stable rank every 10 steps", MLP, tracked({**stable, "schedule": every(10)}), 1.08),
        (
            "MLP, stable rank every 10 steps and rank every 100",
            MLP,
            tracked({**stable, "schedule": every(10)}, {"metrics": "rank", "schedule": every(100)}),
            1.25,
        ),
        ("ResNet-18 of width 16, plain against plain", CNN, lambda *_: nullcontext(), None),
        (
            "ResNet-18 of width 16, rank and stable rank of every layer every 10 steps",
            CNN,
            tracked({"schedule": every(10)}),
            1.02,
        ),
        (
            "ResNet-18 of width 16, stable rank of every layer at every step",
            CNN,
            tracked({**stable, "schedule": every(1)}),
            1.05,
        ),
    ]
    cases += [(f"MLP, {name}", MLP, attach, None) for name, attach in _peers()]
    for name, (make, shape, steps), attach, most in cases:
        torch.manual_seed(0)
        plain, observed = compared(make(), shape, steps, attach)
        yield {
            "name": f"{name} (s per step)",
            "ours_s": observed,
            "peer_s": plain,
            "ratio": observed / plain,
            "ours_value": "–",
            "peer_value": "–",
            "required": "–" if most is None else f"≤ {most}",
            "at_most": most,
        }


def _peers() -> Iterator[tuple[str, Attach]]:
    for name, package, attach in (
        ("delve's SaturationTracker", "delve", delve),
        ("wandb.watch offline, every 10 steps", "wandb", wandb_watch),
    ):
        try:
            __import__(package)
        except ImportError:
            continue
        yield name, attach

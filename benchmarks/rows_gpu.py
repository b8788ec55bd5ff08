"""What a tracker costs a training on a GPU: the sizes of GPT-2 small and ResNet-50. No rows without one.

As in `rows_overhead`, two copies of a model are trained in one process, step by step in turn. A step is
closed by a synchronization of the benchmark's own, so that the clock sees all of it.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hooks import RankTracker, every

__all__ = ["rows"]

STEPS = 60


class CausalBlock(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the past, then transform."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.between(x))


class Transformer(nn.Module):
    """A language model of the size of GPT-2 small (124 million parameters, embeddings tied)."""

    def __init__(self, words: int = 50257, length: int = 1024, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(CausalBlock(width, width // 64) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class Bottleneck(nn.Module):
    """A bottleneck block (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        parts: list[nn.Module] = []
        for i, o, size, step in ((inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)):
            parts += [
                nn.Conv2d(i, o, size, step, size // 2, bias=False),
                nn.BatchNorm2d(o),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*parts[:-1])
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body + shortcut)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """Return a ResNet-50 for images of 224²."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            layers.append(Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def tokens() -> tuple[Tensor, Tensor]:
    """Return 8 × 1024 tokens and the next of each."""
    drawn = torch.randint(50257, (8, 1025), generator=torch.Generator().manual_seed(0)).cuda()
    return drawn[:, :-1], drawn[:, 1:].reshape(-1)


def pictures() -> tuple[Tensor, Tensor]:
    """Return 128 images of noise and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 3, 224, 224, generator=generator)
    return x.cuda(), torch.randint(1000, (128,), generator=generator).cuda()


def compared(
    make: Callable[[], nn.Module], batch: Callable[[], tuple[Tensor, Tensor]], settings: dict[str, Any] | None
) -> tuple[float, float]:
    """Train two copies in turn, one of them tracked.

    Args:
        make: makes the model.
        batch: makes its inputs and targets.
        settings: of the tracker; None for plain against plain.

    Returns:
        Seconds per step of the plain and of the tracked copy, closing included.
    """
    torch.manual_seed(0)
    models = [make().cuda()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in models]
    x, y = batch()

    def step(which: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        optimizers[which].zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            logits = models[which](x)
        nn.functional.cross_entropy(logits.flatten(0, -2).float(), y).backward()
        optimizers[which].step()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    for which in (0, 1) * 5:
        step(which)
    seconds = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        tracker = (
            RankTracker(models[1], optimizers[1], Path(folder) / "run.h5", **settings) if settings else None
        )
        for index in range(STEPS + 10):
            for which in (0, 1) if index % 2 else (1, 0):
                spent = step(which)
                seconds[which] += spent if index >= 10 else 0.0
        if tracker is not None:
            began = time.perf_counter()
            tracker.close()
            seconds[1] += time.perf_counter() - began
    return seconds[0] / STEPS, seconds[1] / STEPS


def rows() -> Iterator[dict[str, object]]:
    """Yield rows as `rows_overhead` does, where there is a GPU.

    Yields:
        The step times, plain and tracked.
    """
    if not torch.cuda.is_available():
        return
    name = torch.cuda.get_device_name()
    for model, make, batch in (
        ("GPT-2 small's size", Transformer, tokens),
        ("ResNet-50", resnet50, pictures),
    ):
        for what, settings, most in (
            ("plain against plain", None, None),
            ("stable rank at every step", {"metrics": "stable_rank", "schedule": every(1)}, 1.02),
            ("rank every 50 steps", {"metrics": "rank", "schedule": every(50)}, 1.10),
        ):
            plain, tracked = compared(make, batch, settings)
            yield {
                "name": f"{model} on {name}, {what} (s per step)",
                "ours_s": tracked,
                "peer_s": plain,
                "ratio": tracked / plain,
                "ours_value": "–",
                "peer_value": "–",
                "required": "–" if most is None else f"≤ {most}",
                "at_most": most,
            }

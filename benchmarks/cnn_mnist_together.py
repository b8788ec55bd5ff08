"""The three-convolution CNN from all-zero weights on full MNIST: replicas trained together, resumable.

The protocol of the repository "learning from all-zero weights": every weight and bias zero at the start,
Adam 1e-4, batches of 100, times 0.95 every 20 epochs, 500 epochs, best test accuracy per run. Float32
instead of bfloat16 autocast; images in [0, 1], not standardized, not augmented.

    python benchmarks/cnn_mnist_together.py OUT [--seeds 5] [--first-seed 0] [--epochs 500] [--data-dir DIR]

OUT gets results.json (settings, curves, what moved when) after every epoch, and state.pt, from which a
second call goes on.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from zanalysis.experiments.data import Dataset, load
from zanalysis.experiments.together import Together, channels_last

BATCH, LEARNING_RATE, DECAY_EVERY, DECAY, SLOPE = 100, 1e-4, 20, 0.95, 0.01
FIRST_STEPS, STATE_EVERY = 10, 5


class ThreeConvolutions(nn.Module):
    """Three single-channel 3×3 convolutions, each `LeakyReLU(conv(x)) + x`, and a linear layer: all zero."""

    def __init__(self, pixels: int = 784, classes: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(pixels, classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, classes]` of images `[batch, 1, height, width]`."""
        for convolution in self.convolutions:
            x = nn.functional.leaky_relu(convolution(x), SLOPE) + x
        return self.head(x.flatten(1))


def facts(together: Together) -> dict[str, object]:
    """Return which gradients of the last step were exactly zero, and which parameters still are."""
    return {
        "step": together.steps,
        "zero_gradient": {
            n: (p.grad == 0).flatten(1).all(1).tolist() for n, p in together.parameters.items()
        },
        "zero_weight": {n: (p == 0).flatten(1).all(1).tolist() for n, p in together.parameters.items()},
    }


def epoch(together: Together, data: Dataset, orders: Tensor, first: list[dict[str, object]]) -> list[float]:
    """Train every replica on all samples, in its own order; return the mean losses."""
    total = torch.zeros(len(together))
    for rows in orders.split(BATCH, dim=1):
        losses = together.step(channels_last(data.train_images[rows].unsqueeze(2)), data.train_labels[rows])
        total += losses * rows.shape[1]
        if together.steps <= FIRST_STEPS:
            first.append(facts(together))
    return (total / orders.shape[1]).tolist()


def accuracy(together: Together, data: Dataset) -> list[float]:
    """Return the share of test images that each replica gets right."""
    right = torch.zeros(len(together), dtype=torch.int64)
    pairs = zip(data.test_images.split(10 * BATCH), data.test_labels.split(10 * BATCH), strict=True)
    for images, labels in pairs:
        batch = channels_last(images.unsqueeze(1).expand(len(together), -1, -1, -1, -1))
        right += (together.predict(batch).argmax(2) == labels).sum(1)
    return [count / len(data.test_labels) for count in right.tolist()]


def norms(together: Together) -> dict[str, list[float]]:
    """Return the Frobenius norm of every parameter of every replica."""
    return {n: p.detach().flatten(1).norm(dim=1).tolist() for n, p in together.parameters.items()}


def seeds_of(arguments: argparse.Namespace) -> list[int]:
    """Return the seeds of the replicas' orders."""
    return list(range(arguments.first_seed, arguments.first_seed + arguments.seeds))


def settings(data: Dataset, arguments: argparse.Namespace) -> dict[str, object]:
    """Return everything needed to repeat the run."""
    model = ThreeConvolutions(data.features, data.classes)
    return {
        "model": "cnn (three 3×3 convolutions of one channel, LeakyReLU(conv(x)) + x, one linear layer)",
        "initialization": "all zero, biases included", "leaky_relu_slope": SLOPE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data.name, "data_fingerprint": data.fingerprint,
        "train_images": len(data.train_images), "test_images": len(data.test_images),
        "inputs": "[0, 1], not standardized, no augmentation", "optimizer": f"Adam, lr {LEARNING_RATE}",
        "schedule": f"StepLR({DECAY_EVERY}, {DECAY}), per epoch", "batch": BATCH, "epochs": arguments.epochs,
        "seeds": seeds_of(arguments), "dtype": "float32", "device": "cpu",
        "method": "zanalysis.experiments.together.Together, one order of the samples per replica",
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def rounded(value: object) -> object:
    """Return the same with floats of six digits, which is what float32 has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def readable(results: dict) -> str:
    """Return JSON with a line for each fact, epoch and first step."""
    parts = []
    for name, value in rounded(results).items():
        lines = [json.dumps(one) for one in value] if isinstance(value, list) else None
        text = (
            json.dumps(value, indent=1, ensure_ascii=False)
            if lines is None
            else "[\n" + ",\n".join(lines) + "\n]"
        )
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def replace(path: Path, write) -> None:
    """Write a file so that a reader, or a kill, never meets half of it."""
    temporary = path.with_suffix(path.suffix + ".part")
    write(temporary)
    Path(temporary).replace(path)


def train(arguments: argparse.Namespace) -> None:
    """Run the epochs that are left."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    data = load("mnist", arguments.data_dir)
    together = Together(
        [ThreeConvolutions(data.features, data.classes) for _ in seeds_of(arguments)],
        lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True),
    )
    schedule = torch.optim.lr_scheduler.StepLR(together.optimizer, DECAY_EVERY, DECAY)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(arguments)]
    results: dict = {"settings": settings(data, arguments), "first_steps": [], "epochs": [], "best": []}
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True)
        results = json.loads(state["results"])
        together.load_state_dict(state["together"])
        schedule.load_state_dict(state["schedule"])
        for generator, bits in zip(generators, state["generators"], strict=True):
            generator.set_state(bits)
        replace(out / "results.json", lambda path: path.write_text(readable(results)))
    for number in range(len(results["epochs"]) + 1, arguments.epochs + 1):
        began = time.perf_counter()
        rate = schedule.get_last_lr()[0]
        orders = torch.stack([torch.randperm(len(data.train_images), generator=g) for g in generators])
        losses = epoch(together, data, orders, results["first_steps"])
        schedule.step()
        row = {"epoch": number, "lr": rate, "loss": losses, "test_accuracy": accuracy(together, data)}
        row |= {"norms": norms(together), "seconds": round(time.perf_counter() - began, 2)}
        results["epochs"].append(row)
        best = [
            max(values) for values in zip(*(one["test_accuracy"] for one in results["epochs"]), strict=True)
        ]
        results["best"] = best
        replace(out / "results.json", lambda path: path.write_text(readable(results)))
        if number % STATE_EVERY == 0 or number == arguments.epochs:
            kept = {
                "together": together.state_dict(), "schedule": schedule.state_dict(),
                "generators": [g.get_state() for g in generators], "results": json.dumps(results),
            }  # fmt: skip
            replace(out / "state.pt", lambda path, kept=kept: torch.save(kept, path))
        print(number, f"{row['seconds']:.1f} s", row["test_accuracy"], "best", best, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--data-dir", type=Path)
    train(parser.parse_args())

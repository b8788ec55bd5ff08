"""Lightning: what the callback records is what the plain loop records."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from snippets import run as execute
from snippets import snippets_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hooks import RankTracker, every
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.reader import open_run

pytest.importorskip("lightning")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning:lightning")]

import lightning as L  # noqa: E402

from hooks.integrations import lightning  # noqa: E402
from hooks.integrations.lightning import RankTrackerCallback  # noqa: E402

OPTIONS = {
    "schedule": every(3),
    "tensors": ("weight", "gradient", "activation"),
    "metrics": ("rank", "stable_rank", "frobenius_norm"),
    "reference": [None, "init"],
}


class Net(L.LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.fail_at = fail_at

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        self.log("mean", loss.detach() / 2, on_step=False, on_epoch=True)
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("on purpose")
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def data(samples=64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, torch.randint(3, (samples,), generator=generator))


def loader(batch=8):
    return DataLoader(data(), batch_size=batch)


def made(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


def trainer(callback, folder, **options):
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": folder}
    return L.Trainer(callbacks=callback if isinstance(callback, list) else [callback], **settings | options)


def plain(epochs=2, accumulate=1, clip=None, autocast=None, **options):
    """The loop that the trainer runs, by hand."""
    model = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with RankTracker(model, optimizer, **OPTIONS | options) as tracker:
        for _ in range(epochs):
            for i, (x, y) in enumerate(loader()):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
                    loss = nn.functional.cross_entropy(model.net(x), y)
                (loss / accumulate).backward()
                if (i + 1) % accumulate == 0:
                    if clip is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), clip)
                    optimizer.step()
                    optimizer.zero_grad()
    return tracker.table(), model


@pytest.mark.parametrize(
    ("of_trainer", "of_loop"),
    [
        ({}, {}),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"precision": "bf16-mixed"}, {"autocast": torch.bfloat16}),
    ],
    ids=["plain", "accumulation", "clipping", "bfloat16"],
)
def test_the_table_is_that_of_the_plain_loop(tmp_path, of_trainer, of_loop):
    model = made()
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    trainer(callback, tmp_path, **of_trainer).fit(model, loader())
    table, expected = plain(**of_loop)
    pd.testing.assert_frame_equal(open_run(tmp_path / "run.h5").table(), table)
    assert table["step"].max() == (6 if "accumulate" in of_loop else 15)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(expected.named_parameters())[name])


def test_validation_within_an_epoch_changes_nothing_and_metrics_stand_at_their_steps(tmp_path):
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    trainer(callback, tmp_path, val_check_interval=4, num_sanity_val_steps=2).fit(
        made(), loader(), loader(16)
    )
    run = open_run(tmp_path / "run.h5")
    pd.testing.assert_frame_equal(run.table(), plain()[0])
    logged = run.logged().set_index("step")
    losses = []
    model = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for x, y in [*loader(), *loader()]:
        loss = nn.functional.cross_entropy(model.net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = logged["loss"].dropna()
    # At recorded steps, and where a validation or an epoch ended; never a value that is older than its step.
    assert found.index.tolist() == [3, 4, 6, 8, 9, 12, 15, 16]
    np.testing.assert_allclose(found, [losses[step - 1] for step in found.index], rtol=1e-6)
    assert logged["val"].dropna().index.tolist() == [4, 8, 12, 16]
    np.testing.assert_allclose(logged["mean"].dropna().loc[8], np.mean(losses[:8]) / 2, rtol=1e-5)
    assert logged["mean"].dropna().index.tolist() == [8, 16]


def test_going_on_from_a_checkpoint_goes_on_in_the_file(tmp_path):
    whole = RankTrackerCallback(tmp_path / "whole.h5", **OPTIONS)
    trainer(whole, tmp_path).fit(made(), loader())

    first = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    before = trainer(first, tmp_path, max_epochs=1)
    before.fit(made(), loader())
    before.save_checkpoint(tmp_path / "c.ckpt")
    assert before.global_step == 8
    again = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    trainer(again, tmp_path).fit(made(seed=7), loader(), ckpt_path=tmp_path / "c.ckpt")
    run = open_run(tmp_path / "run.h5")
    pd.testing.assert_frame_equal(run.table(), open_run(tmp_path / "whole.h5").table())
    assert run.events["kind"].tolist() == ["resumed"]
    # Once more, from the same checkpoint: what was recorded behind it is cut, not refused and not doubled.
    trainer(RankTrackerCallback(tmp_path / "run.h5", **OPTIONS), tmp_path).fit(
        made(), loader(), ckpt_path=tmp_path / "c.ckpt"
    )
    assert run.table()["step"].unique().tolist() == [0, 3, 6, 9, 12, 15]


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    model, one = made(), trainer(callback, tmp_path, max_epochs=1)
    one.fit(model, loader())
    one.fit_loop.max_epochs = 2
    one.fit(model, loader())
    assert open_run(tmp_path / "run.h5").steps.tolist() == [0, 3, 6, 9, 12, 15]
    with pytest.raises(RunFileError, match="exists already"):  # a new training does not overwrite it
        trainer(RankTrackerCallback(tmp_path / "run.h5", **OPTIONS), tmp_path).fit(made(), loader())


def test_an_exception_closes_the_file_and_is_noted(tmp_path):
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    model = made(fail_at=7)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(callback, tmp_path).fit(model, loader())
    run = open_run(tmp_path / "run.h5")
    assert run.finished
    assert run.steps.tolist() == [0, 3, 6]
    assert run.events["text"].tolist() == ["the loop was left by RuntimeError: on purpose"]
    assert all(not module._forward_hooks for module in model.modules())


class Adversaries(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(4, 6), nn.Linear(6, 3)

    def training_step(self, batch, index):
        of_generator, of_critic = self.optimizers()
        for _ in range(2):
            of_critic.zero_grad()
            self.manual_backward(self.critic(self.generator(batch[0][:, :4]).detach()).square().mean())
            of_critic.step()
        of_generator.zero_grad()
        self.manual_backward(-self.critic(self.generator(batch[0][:, :4])).square().mean())
        of_generator.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.generator, self.critic)]


def adversaries():
    torch.manual_seed(1)
    return Adversaries()


def test_two_networks_are_two_callbacks_and_go_on_each_at_its_own_step(tmp_path):
    def callbacks(folder):
        folder.mkdir(exist_ok=True)
        return [
            RankTrackerCallback(folder / f"{name}.h5", layers=name, optimizers=i, **OPTIONS)
            for i, name in enumerate(("generator", "critic"))
        ]

    model = adversaries()
    optimizers = model.configure_optimizers()
    trackers = [
        RankTracker(model, optimizer, layers=name, **OPTIONS)
        for optimizer, name in zip(optimizers, ("generator", "critic"), strict=True)
    ]
    for x, _ in [*loader(), *loader()]:
        for _ in range(2):
            optimizers[1].zero_grad()
            model.critic(model.generator(x[:, :4]).detach()).square().mean().backward()
            optimizers[1].step()
        optimizers[0].zero_grad()
        (-model.critic(model.generator(x[:, :4])).square().mean()).backward()
        optimizers[0].step()
    tables = [tracker.table() for tracker in trackers]
    assert [table["step"].max() for table in tables] == [15, 30]

    trainer(callbacks(tmp_path / "a"), tmp_path).fit(adversaries(), loader())
    first = trainer(callbacks(tmp_path / "b"), tmp_path, max_epochs=1)
    first.fit(adversaries(), loader())
    first.save_checkpoint(tmp_path / "c.ckpt")
    second = trainer(callbacks(tmp_path / "b"), tmp_path)
    second.fit(adversaries(), loader(), ckpt_path=tmp_path / "c.ckpt")
    for folder in ("a", "b"):
        for name, table in zip(("generator", "critic"), tables, strict=True):
            pd.testing.assert_frame_equal(open_run(tmp_path / folder / f"{name}.h5").table(), table)


def test_two_networks_in_memory_are_two_callbacks_too(tmp_path):
    both = [
        RankTrackerCallback(layers=name, optimizers=i, **OPTIONS)
        for i, name in enumerate(("generator", "critic"))
    ]
    trainer(both, tmp_path, max_epochs=1).fit(adversaries(), loader())
    assert [callback.tracker.table()["layer"].iloc[0].split(".")[0] for callback in both] == [
        "generator",
        "critic",
    ]


def test_a_scaler_that_skips_steps_is_not_counted(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    class Overflows(Net):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * (float("inf") if index == 2 else 1.0)

    torch.manual_seed(0)
    callback = RankTrackerCallback(
        tmp_path / "run.h5", schedule=every(1), metrics="frobenius_norm", tensors="gradient"
    )
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    plugin.forward_context = lambda: torch.autocast("cpu", enabled=False)
    trainer(callback, tmp_path, max_epochs=1, plugins=[plugin]).fit(Overflows(), loader())
    table = open_run(tmp_path / "run.h5").table()
    assert table["step"].unique().tolist() == list(range(8))  # eight batches, seven steps
    assert set(table[table["step"] > 0]["status"]) == {"ok"}


SCRIPT = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[2])
import torch
import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from test_lightning import OPTIONS, Net, data
from hooks.integrations.lightning import RankTrackerCallback
from torch.utils.data import DataLoader, DistributedSampler

class Parallel(Net):
    def train_dataloader(self):
        # Samples 0, 2, 4, 6 and 1, 3, 5, 7: together the batch of the plain loop.
        sampler = DistributedSampler(data(), 2, self.trainer.global_rank, shuffle=False)
        return DataLoader(data(), batch_size=4, sampler=sampler)

torch.set_num_threads(1)
callback = RankTrackerCallback(sys.argv[1] + "/run.h5", **OPTIONS)
trainer = L.Trainer(
    max_epochs=2, callbacks=[callback], accelerator="cpu", devices=2, logger=False, enable_checkpointing=False,
    strategy=DDPStrategy(process_group_backend="gloo"), enable_progress_bar=False, enable_model_summary=False,
    use_distributed_sampler=False,
)
torch.manual_seed(0)
trainer.fit(Parallel())
assert (callback.tracker.recorded is None) == bool(trainer.global_rank), callback.tracker.recorded
print("done", trainer.global_rank, callback.tracker.completed)
"""


def test_two_processes_write_one_file_whose_numbers_are_those_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), here],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    table = open_run(tmp_path / "run.h5").table()
    expected, _ = plain()
    keys = ["step", "layer", "tensor", "reference", "metric", "status"]
    both = [t[t["tensor"] != "activation"].reset_index(drop=True) for t in (table, expected)]
    pd.testing.assert_frame_equal(both[0][keys], both[1][keys])
    np.testing.assert_allclose(both[0]["value"], both[1]["value"], rtol=2e-4, atol=1e-6)
    counts = [t[t["metric"] == "rank"]["value"].tolist() for t in both]
    np.testing.assert_array_equal(*counts)
    logged = open_run(tmp_path / "run.h5").logged()
    assert {3, 6, 9, 12, 15} <= set(logged["step"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 3}, "start is what the trainer has"),
        ({"optimizer": None}, "optimizer is what the trainer has"),
        ({"shedule": every(2)}, "unknown argument 'shedule' of RankTracker; did you mean 'schedule'"),
        ({"mode": "r"}, "got mode = 'r'"),
        ({"optimizers": "first"}, "expected indices into trainer.optimizers"),
        ({"optimizers": True}, "expected indices into trainer.optimizers"),
    ],
)
def test_wrong_arguments_are_refused_when_the_callback_is_made(options, message):
    with pytest.raises(InputError, match=message):
        RankTrackerCallback("run.h5", **options)


def test_an_optimizer_that_is_not_there_is_refused_when_training_begins(tmp_path):
    with pytest.raises(InputError, match=r"got optimizers = \[1\], but the trainer has 1"):
        trainer(RankTrackerCallback(tmp_path / "run.h5", optimizers=1), tmp_path).fit(made(), loader())
    assert not (tmp_path / "run.h5").exists()


def test_the_snippet_gives_the_table_of_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = snippets_of(lightning).values()
    names = execute(code)
    L.seed_everything(0)
    model = names["Classifier"]()
    inputs, labels = torch.randn(256, 16), torch.randint(4, (256,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with RankTracker(model, optimizer, schedule=every(5)) as tracker:
        for _ in range(2):
            for x, y in zip(inputs.split(32), labels.split(32), strict=True):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model.net(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    run = open_run("run.h5")
    pd.testing.assert_frame_equal(run.table(), tracker.table())
    assert run.steps.tolist() == [0, 5, 10, 15]
    logged = run.logged().set_index("step")["loss"]
    np.testing.assert_allclose(logged[[5, 10, 15]], [losses[step - 1] for step in (5, 10, 15)], rtol=1e-6)

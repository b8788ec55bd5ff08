"""Hugging Face: what the callback records is what the plain loop records."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from snippets import run, snippets_of

from hooks import RankTracker, every
from zanalysis.errors import InputError, RunFileError
from zanalysis.runfile.reader import open_run

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::Warning:transformers"),
    pytest.mark.filterwarnings("ignore::Warning:accelerate"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    get_scheduler,
    set_seed,
)

from hooks.integrations import huggingface  # noqa: E402
from hooks.integrations.huggingface import RankTrackerCallback  # noqa: E402

SNIPPETS = snippets_of(huggingface)
OPTIONS = {
    "schedule": every(3),
    "tensors": ("weight", "gradient"),
    "metrics": ("rank", "stable_rank", "frobenius_norm"),
    "reference": [None, "init"],
    "layers": ["*.query", "classifier", "*.word_embeddings"],
}


def made(seed=0):
    set_seed(seed)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def data(n=64):
    generator = torch.Generator().manual_seed(4)
    texts = torch.randint(64, (n, 8), generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    return [{"input_ids": text, "labels": label} for text, label in zip(texts, labels, strict=True)]


def trainer(callback, folder, model=None, **options):
    settings = {
        "max_steps": 12,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    settings |= {"disable_tqdm": True, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    callbacks = [callback] if callback else []
    return Trainer(
        model or made(),
        TrainingArguments(str(folder / "out"), **settings | options),
        train_dataset=data(),
        eval_dataset=data(8),
        callbacks=callbacks,
    )


@pytest.fixture
def batches(monkeypatch):
    """What the trainer trained on, micro-batch by micro-batch, with the state of the generator that drops units."""
    seen = []
    step = Trainer.training_step

    def watched(self, model, inputs, *args, **kwargs):
        given, state = copy.deepcopy(dict(inputs)), torch.get_rng_state()
        loss = step(self, model, inputs, *args, **kwargs)
        seen.append((given, state, loss.item()))
        return loss

    monkeypatch.setattr(Trainer, "training_step", watched)
    return seen


def plain(model, batches, options, lr=1e-2, steps=12, accumulate=1):
    """The loop that the trainer runs, by hand."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 0, steps)
    losses = []
    with RankTracker(model, optimizer, **options) as tracker:
        for i, (inputs, state, taken) in enumerate(batches):
            torch.set_rng_state(state)
            loss = model(**inputs).loss
            # Whether a trainer divides by the micro-batches depends on its version, and on the model.
            divided = accumulate if abs(loss.item() - taken) > 1e-3 else 1
            (loss / divided).backward()
            losses.append(loss.item())
            if (i + 1) % accumulate == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return tracker.table(), losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_table_is_that_of_the_plain_loop(tmp_path, batches, accumulate):
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    trainer(
        callback, tmp_path, gradient_accumulation_steps=accumulate, eval_strategy="steps", eval_steps=6
    ).train()
    expected, losses = plain(made(), batches, OPTIONS, accumulate=accumulate)
    run = open_run(tmp_path / "run.h5")
    pd.testing.assert_frame_equal(run.table(), expected, rtol=1e-6)
    assert run.finished
    assert run.steps.tolist() == [0, 3, 6, 9, 12]
    logged = run.logged().set_index("step")
    assert logged["loss"].dropna().index.tolist() == [4, 8, 12]
    if accumulate == 1:
        np.testing.assert_allclose(logged["loss"][4], np.mean(losses[:4]), rtol=1e-4)
    assert logged["eval_loss"].dropna().index.tolist() == [6, 12]
    assert callback.tracker.completed == 12


def test_going_on_from_a_checkpoint_goes_on_in_the_file(tmp_path):
    whole = RankTrackerCallback(tmp_path / "whole.h5", **OPTIONS)
    trainer(whole, tmp_path, save_strategy="steps", save_steps=4).train()
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    broken = trainer(callback, tmp_path)
    inner = broken.training_step

    def fails(*args, **kwargs):
        if broken.state.global_step == 7:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    broken.training_step = fails
    with pytest.raises(KeyboardInterrupt), callback:
        broken.train()
    run = open_run(tmp_path / "run.h5")
    assert run.finished
    assert run.steps.tolist() == [0, 3, 6]
    assert run.events["kind"].tolist() == ["exception"]
    again = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    trainer(again, tmp_path, model=made(9)).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")
    )
    pd.testing.assert_frame_equal(run.table(), open_run(tmp_path / "whole.h5").table(), rtol=1e-6)
    assert run.events["kind"].tolist() == ["exception", "resumed"]


def test_a_second_training_does_not_overwrite_the_file(tmp_path):
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    trainer(callback, tmp_path, max_steps=2).train()
    with pytest.raises(RunFileError, match="exists already"):
        trainer(callback, tmp_path, max_steps=2).train()


def test_in_a_process_that_is_not_the_first_nothing_is_attached(tmp_path):
    callback = RankTrackerCallback(tmp_path / "run.h5", **OPTIONS)
    model = made()
    state = type("State", (), {"is_world_process_zero": False, "global_step": 0})
    callback.on_train_begin(None, state, None, model=model)
    callback.on_log(None, state, None, logs={"loss": 1.0})
    callback.on_train_end(None, state, None)
    assert callback.tracker is None
    assert not (tmp_path / "run.h5").exists()


def test_wrong_arguments_are_refused_when_the_callback_is_made():
    with pytest.raises(InputError, match="unknown argument 'metric' of RankTracker; did you mean 'metrics'"):
        RankTrackerCallback("run.h5", metric="rank")


def test_the_snippet_of_the_trainer_gives_the_table_of_the_plain_loop(tmp_path, monkeypatch, batches):
    monkeypatch.chdir(tmp_path)
    names = run(SNIPPETS["Attach to a `Trainer`"])
    set_seed(0)
    model = BertForSequenceClassification(names["config"])
    expected, _ = plain(model, batches, {"schedule": every(5), "layers": "*.query"}, lr=5e-5, steps=10)
    pd.testing.assert_frame_equal(open_run("run.h5").table(), expected, rtol=1e-6)
    assert expected["step"].unique().tolist() == [0, 5, 10]
    assert open_run("run.h5").logged()["step"].tolist() == [5, 10]


def test_the_snippet_of_accelerate_gives_the_table_of_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(SNIPPETS["With accelerate, give the tracker what `prepare` returns"])
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = torch.randn(64, 16).split(4)
    with RankTracker(model, optimizer, schedule=every(2)) as tracker:
        for i, inputs in enumerate(batches):
            (model(inputs).square().mean() / 2).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
    expected = tracker.table()
    assert expected["step"].unique().tolist() == [0, 2, 4, 6, 8]
    pd.testing.assert_frame_equal(open_run("run.h5").table(), expected)


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
from test_huggingface import OPTIONS, trainer
from hooks.integrations.huggingface import RankTrackerCallback

torch.set_num_threads(1)
callback = RankTrackerCallback(sys.argv[1] + "/run.h5", **OPTIONS)
one = trainer(callback, Path(sys.argv[1]), ddp_backend="gloo", dataloader_num_workers=0, max_steps=6)
one.train()
assert one.args.world_size == 2
assert (callback.tracker is None) == (one.args.process_index == 1)
if callback.tracker is not None:
    norm = one.model.classifier.weight.detach().norm().item()
    Path(sys.argv[1], "norm").write_text(repr(norm))
"""


def test_of_two_processes_the_first_records_what_both_train(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(tmp_path),
    ]
    result = subprocess.run(
        [sys.executable, *command, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert result.returncode == 0, result.stderr
    run = open_run(tmp_path / "run.h5")
    assert run.finished
    assert run.steps.tolist() == [0, 3, 6]
    table = run.table()
    last = table[(table["step"] == 6) & (table["layer"] == "classifier") & (table["reference"] == "none")]
    found = last[(last["tensor"] == "weight") & (last["metric"] == "frobenius_norm")]["value"].item()
    assert found == pytest.approx(float((tmp_path / "norm").read_text()), rel=1e-6)

"""Weights & Biases and MLflow: the adapters of the documentation, run as written, in their offline modes."""

import pandas as pd
import pytest
import torch
from snippets import run, snippets_of

import hooks.integrations
from hooks import RankTracker, every
from zanalysis.runfile.reader import open_run

SNIPPETS = snippets_of(hooks.integrations)
IGNORED = [
    pytest.mark.filterwarnings("ignore::Warning:wandb"),
    pytest.mark.filterwarnings("ignore::Warning:mlflow"),
]
pytestmark = [pytest.mark.slow, *IGNORED, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """Run in a folder of its own; gives the table of the loop without the framework."""
    monkeypatch.chdir(tmp_path)

    def table():
        torch.manual_seed(0)
        model = torch.nn.Linear(16, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with RankTracker(model, optimizer, schedule=every(5)) as tracker:
            for _ in range(10):
                optimizer.zero_grad()
                model(torch.randn(4, 16)).square().mean().backward()
                optimizer.step()
        return tracker.table()

    return table


def finite(table):
    return {
        (row["step"], f"{row['metric']}/{row['layer']}"): row["value"] for row in table.to_dict("records")
    }


def test_the_adapter_of_weights_and_biases(plain, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = []
    original = wandb.Run.log

    def log(self, data, step=None, **kwargs):
        logged.append((step, dict(data)))
        return original(self, data, step=step, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", log)
    torch.manual_seed(0)
    run(SNIPPETS["Weights & Biases"])
    expected = plain()
    assert {(step, name): value for step, data in logged for name, value in data.items()} == finite(expected)
    pd.testing.assert_frame_equal(open_run("run.h5").table(), expected)
    assert open_run("run.h5").events.empty
    (offline,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"stable_rank/weight" in offline.read_bytes()


def test_the_adapter_of_mlflow(plain, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # since 3.x it is asked for by name
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    torch.manual_seed(0)
    run(SNIPPETS["MLflow"])
    expected = plain()
    pd.testing.assert_frame_equal(open_run("run.h5").table(), expected)
    assert open_run("run.h5").events.empty
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments()
    (found,) = client.search_runs([experiment.experiment_id])
    numbers = {
        (point.step, name): point.value
        for name in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, name)
    }
    assert numbers == finite(expected)

"""Where people already train and look: one line each. Nothing here is imported by `import hooks`.

- `hooks.integrations.lightning`: a callback for the Lightning `Trainer`; `pip install 'zanalysis[lightning]'`.
- `hooks.integrations.huggingface`: a callback for the `Trainer` of transformers, and what accelerate needs;
  `pip install 'zanalysis[huggingface]'`.
- `hooks.integrations.tensorboard`: scalars and spectra as they are recorded; `pip install 'zanalysis[tensorboard]'`.

Weights & Biases and MLflow need no adapter of ours: `on_record` is called with each record, in the loop. What it
costs counts as ``writing`` in `run.overhead`.

Weights & Biases::

    import torch
    import wandb

    from hooks import RankTracker, every

    model = torch.nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with wandb.init(project="ranks", mode="offline") as run:

        def to_wandb(step, rows):
            run.log({f"{row['metric']}/{row['layer']}": row["value"] for row in rows}, step=step)

        with RankTracker(model, optimizer, "run.h5", schedule=every(5), mode="w", on_record=to_wandb):
            for _ in range(10):
                optimizer.zero_grad()
                model(torch.randn(4, 16)).square().mean().backward()
                optimizer.step()

MLflow::

    import math

    import mlflow
    import torch

    from hooks import RankTracker, every

    model = torch.nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with mlflow.start_run():

        def to_mlflow(step, rows):  # a store of numbers: what is NaN stays out
            numbers = {f"{row['metric']}/{row['layer']}": row["value"] for row in rows}
            mlflow.log_metrics({name: x for name, x in numbers.items() if math.isfinite(x)}, step=step)

        with RankTracker(model, optimizer, "run.h5", schedule=every(5), mode="w", on_record=to_mlflow):
            for _ in range(10):
                optimizer.zero_grad()
                model(torch.randn(4, 16)).square().mean().backward()
                optimizer.step()
"""

"""``watch(writer=...)`` with the real trackers."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import normwise
from normwise.errors import InputError, NormwiseWarning
from normwise.probe.scalars import sink_of

TAG = "normwise/0/var_min"


def installed(package: str):
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed: see tests/real-networks.txt")
    return importlib.import_module(package)


class Named(nn.Module):
    """Its layer has a name that MLflow would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"µ@home: 1": nn.BatchNorm1d(4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers["µ@home: 1"](x)


def trained(writer, steps: int = 5, model: nn.Module | None = None) -> normwise.watch:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with normwise.watch(model, writer=writer) as w:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    return w


def test_weights_and_biases(tmp_path, monkeypatch):
    wandb = installed("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(InputError, match="takes no values"):
        normwise.watch(nn.BatchNorm1d(2), writer=wandb)  # no run was started
    run = wandb.init(mode="offline", dir=tmp_path, project="normwise")
    try:
        for writer in (run, wandb):
            trained(writer)
        assert run.summary["normwise/step"] == 4
        assert run.summary[TAG] > 0
        assert run.step == 2 * len([0, 1, 2, 4])  # one row a sampled step
    finally:
        run.finish()
    with pytest.raises(InputError, match=r"is finished.*wandb.init"):
        normwise.watch(nn.BatchNorm1d(2), writer=run)


def test_mlflow(tmp_path, monkeypatch):
    # Its store of files is out of favour, and the only one without a database's packages.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = installed("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        trained(mlflow)
        trained(mlflow, model=Named())
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, TAG)
    assert [metric.step for metric in history][:4] == [0, 1, 2, 4]


def test_accelerate(tmp_path):
    """The three lines of docs/integrations.md."""
    accelerate = installed("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    with normwise.watch(model, writer=accelerator) as w:
        for _ in range(5):
            optimizer.zero_grad()
            accelerator.backward(model(torch.randn(8, 4)).square().mean())
            optimizer.step()
    accelerator.end_training()
    assert w.diagnosis().run.steps == 5
    assert TAG in scalars_in(tmp_path / "run")


def scalars_in(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags()["scalars"]


def test_a_logger_of_lightning(tmp_path):
    from lightning.fabric.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trained(logger)
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 1, 2, 4]


def test_names_hold_what_every_tracker_allows():
    class Strict:
        def log_metrics(self, metrics, step):
            assert all(set(name) <= set("normwise/abcdefghijklmnopqrstuvwxyz_µ:. 0123456789") for name in metrics)
            assert any("µ_home: 1" in name for name in metrics)

    trained(Strict(), model=Named())


def test_a_tracker_that_fails_does_not_end_training():
    class Failing:
        calls = 0

        def log_metrics(self, metrics, step):
            self.calls += 1
            raise ConnectionError("gone")

    failing = Failing()
    with pytest.warns(NormwiseWarning, match="no more scalars are written: ConnectionError: gone"):
        assert trained(failing).run().steps == 5
    assert failing.calls == 1


@pytest.mark.parametrize("writer", [torch.ones(2), sys, print, 3, lambda metrics, step: None])
def test_what_takes_no_values_is_refused_when_given(writer):
    with pytest.raises(InputError, match="expected a folder for TensorBoard"):
        sink_of(writer)

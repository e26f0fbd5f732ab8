"""What is recognized as a normalization layer, by type and behaviour."""

import pytest
import torch
from torch import nn

import normwise.nn as nw
from normwise.surgery.layers import describe, find, replace


class HandWrittenRMS(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x):
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


class HandWrittenFrozen(nn.Module):
    def __init__(self, size):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((size,), value))
        self.eps = 1e-5

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class ChannelsFirstLN(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.BatchNorm2d):
    pass


class BNAct(nn.BatchNorm2d):
    def __init__(self, size):
        super().__init__(size)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Scale(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize(
    ("module", "method", "dim", "axis"),
    [
        (nn.BatchNorm1d(4), "batch", 1, 1),
        (nn.BatchNorm3d(4), "batch", 3, 1),
        (nn.SyncBatchNorm(4), "batch", None, 1),
        (nn.InstanceNorm2d(4), "instance", 2, 1),
        (nn.GroupNorm(2, 4), "group", None, 1),
        (nn.GroupNorm(1, 4), "layer", None, 1),
        (nn.GroupNorm(4, 4), "instance", None, 1),
        (nn.LayerNorm(4), "layer", None, -1),
        (nn.RMSNorm(4), "rms", None, -1),
        (nw.BatchNorm2d(4), "batch", 2, 1),
        (nw.SwitchableNorm2d(4), "switchable", 2, 1),
        (HandWrittenRMS(4), "rms", None, -1),
        (HandWrittenFrozen(4), "batch", 2, 1),
        (ChannelsFirstLN(4), "layer", None, 1),
        (Renamed(4), "batch", 2, 1),
        (BNAct(4), "batch", 2, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_is_recognized(module, method, dim, axis):
    layer = describe(module)
    assert layer.problem is None
    assert (layer.method, layer.channels, layer.dim, layer.channel_axis) == (method, 4, dim, axis)


def test_frozen_is_told_by_behaviour():
    assert describe(HandWrittenFrozen(4)).frozen
    assert not describe(nn.BatchNorm2d(4)).frozen


def test_the_tail_is_seen():
    layer = describe(BNAct(4))
    assert [name for name, _ in layer.tail] == ["act"]


def test_a_weight_of_zero_proves_nothing():
    module = Doubled(4)
    nn.init.zeros_(module.weight)
    assert "does not compute batch norm alone" in describe(module).problem


@pytest.mark.parametrize("module", [Scale(4), nn.PReLU(4), nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Embedding(4, 4)])
def test_others_are_not(module):
    assert describe(module) is None


def test_elements_of_several_axes_are_a_problem():
    assert "one entry per element of (4, 5)" in describe(nn.LayerNorm((4, 5))).problem


def test_lazy_and_parametrized_are_problems():
    assert "lazy" in describe(nn.LazyBatchNorm2d()).problem
    parametrized = nn.utils.parametrize.register_parametrization(nn.BatchNorm2d(4), "weight", nn.Softplus())
    assert "parametrized" in describe(parametrized).problem


def test_describing_leaves_the_module_and_the_generator_alone():
    module, calls = BNAct(4), []
    module.register_forward_hook(lambda *a: calls.append(1))
    module.act.register_forward_hook(lambda *a: calls.append(1))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch.manual_seed(3)
    describe(module)
    assert torch.equal(torch.rand(1), torch.manual_seed(3) and torch.rand(1))
    assert not calls
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_shared_layers_are_found_once_and_replaced_everywhere():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(norm, nn.Sequential(nn.ReLU(), norm))
    (found,) = find(model)
    assert found.names == ["0", "1.1"]
    replace(model, norm, new := nn.GroupNorm(2, 4))
    assert model[0] is new
    assert model[1][1] is new
    assert replace(norm, norm, new) is new

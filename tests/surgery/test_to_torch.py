"""The way back: torch's own classes, the same objects, weights, keys and outputs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normwise
from normwise import nn as ours
from normwise.errors import InputError, NormwiseError, NormwiseWarning
from normwise.parametrize import weight_standardization
from normwise.surgery import convert, fold, freeze, to_torch
from normwise.surgery.layouts import BatchNormNd

SHAPES = {1: (4, 6, 7), 2: (4, 6, 5, 5), 3: (4, 6, 3, 3, 3)}
PLAIN: list[tuple[Callable[..., nn.Module], type[nn.Module], tuple[int, ...]]] = [
    *((getattr(ours, f"BatchNorm{d}d"), getattr(nn, f"BatchNorm{d}d"), SHAPES[d]) for d in SHAPES),
    *((getattr(ours, f"InstanceNorm{d}d"), getattr(nn, f"InstanceNorm{d}d"), SHAPES[d]) for d in SHAPES),
    *((getattr(ours, f"LazyBatchNorm{d}d"), getattr(nn, f"LazyBatchNorm{d}d"), SHAPES[d]) for d in SHAPES),
    *((getattr(ours, f"LazyInstanceNorm{d}d"), getattr(nn, f"LazyInstanceNorm{d}d"), SHAPES[d]) for d in SHAPES),
    (lambda n, **o: ours.GroupNorm(2, n, **o), nn.GroupNorm, (4, 6, 5)),
    (lambda n, **o: ours.GroupNorm(1, n, **o), nn.GroupNorm, (4, 6, 5)),
    (ours.LayerNorm, nn.LayerNorm, (4, 6)),
    (ours.RMSNorm, nn.RMSNorm, (4, 6)),
]


def made(make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    lazy = "Lazy" in getattr(make, "__name__", "")
    layer = make(**options) if lazy else make(6, **options)
    if not lazy:
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


@pytest.mark.parametrize(("make", "cls", "shape"), PLAIN)
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
def test_each_layer_is_torchs_own_with_the_same_keys_and_outputs(make, cls, shape, activation):
    layer = made(make, activation=activation)
    # Torch cannot copy lazy layers before they have run.
    twin = made(make, activation=activation) if "Lazy" in cls.__name__ else copy.deepcopy(layer)
    x = torch.randn(shape) + 0.3
    back = to_torch(nn.Sequential(layer))[0]
    norm = back if activation is None else back[0]
    assert type(norm) is cls
    assert norm is layer
    for training in (True, False):
        torch.testing.assert_close(back.train(training)(x), twin.train(training)(x), rtol=1e-4, atol=1e-5)
    assert list(back.state_dict()) == list(twin.state_dict())
    torch.testing.assert_close(back.state_dict(), twin.state_dict())
    if "Lazy" not in cls.__name__:
        assert set(vars(norm)) <= set(vars(cls(2, 6) if cls is nn.GroupNorm else cls(6)))


class Net(nn.Module):
    """A network with every place an activation can be in."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = norm(8)
        self.again = self.norm
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3), norm(8), norm(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.more(self.again(self.norm(self.conv(x)))).mean((2, 3)))


def relu_net() -> Net:
    net = Net(lambda n: ours.BatchNorm2d(n, activation="relu"))
    for _ in range(2):
        net(torch.randn(4, 3, 9, 9))
    return net


def test_checkpoints_go_both_ways_and_sharing_and_parameters_stay():
    net, x = relu_net(), torch.randn(2, 3, 9, 9)
    before, state, parameters = net.eval()(x), copy.deepcopy(net.state_dict()), list(net.parameters())
    assert to_torch(net) is net
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    assert net.norm is net.again
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    assert list(net.state_dict()) == list(state)
    for fresh in (relu_net(), to_torch(relu_net())):
        fresh.load_state_dict(net.state_dict())
        torch.testing.assert_close(fresh.eval()(x), before, rtol=1e-4, atol=1e-5)
        fresh.load_state_dict(state)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(twin.state_dict()) == list(state)
        twin.load_state_dict(state)
        torch.testing.assert_close(twin(x), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="nothing"):
        net.load_state_dict(state | {"norm.nothing": torch.ones(1)})
    missing = {key: value for key, value in state.items() if key != "norm.weight"}
    with pytest.raises(RuntimeError, match="weight"):
        net.load_state_dict(missing)


def test_a_copy_leaves_the_model_alone_and_says_what_became():
    net, seen = relu_net(), []
    back = to_torch(net, copy=True, report=seen.append)
    assert type(net.norm) is ours.BatchNorm2d
    assert type(back.more[1][0]) is nn.BatchNorm2d
    assert [row[0] for row in seen[0].layers] == ["norm", "more.1", "more.2"]
    assert "norm  BatchNorm2d -> torch.nn.Sequential(BatchNorm2d, ReLU)" in str(seen[0])


def test_mode_gradients_type_hooks_and_frozen_layers_stay():
    net = relu_net().double()
    net.norm.eval().weight.requires_grad_(False)
    calls = []
    handle = net.norm.register_forward_hook(lambda module, args, y: calls.append(y.min().item()))
    freeze(net, where="more.1")
    before = net.more[1].running_mean.clone()
    to_torch(net)
    assert not net.norm.training
    assert not net.norm[0].weight.requires_grad
    assert net.norm[0].weight.dtype == torch.float64
    net.train()
    net(torch.randn(2, 3, 9, 9).double())
    assert len(calls) == 2
    assert min(calls) == 0  # after the activation, as before
    assert torch.equal(net.more[1][0].running_mean, before)
    handle.remove()
    net(torch.randn(2, 3, 9, 9).double())
    assert len(calls) == 2


def test_the_model_itself_and_where():
    assert type(to_torch(ours.LayerNorm(4))) is nn.LayerNorm
    assert [type(m) for m in to_torch(ours.LayerNorm(4, activation="silu"))] == [nn.LayerNorm, nn.SiLU]
    net = to_torch(relu_net(), where="more.*")
    assert type(net.norm) is ours.BatchNorm2d
    assert type(net.more[1]) is nn.Sequential
    assert to_torch(nn.Linear(2, 2)).weight.shape == (2, 2)


def test_synced_layers_become_plain():
    model = normwise.sync(nn.Sequential(ours.BatchNorm2d(3)))
    assert not hasattr(to_torch(model)[0], "sync")


def test_a_parametrized_norm_and_weight_norm_become_torchs():
    net = nn.Sequential(
        normwise.weight_norm(nn.Linear(6, 5)),
        normwise.weight_norm(nn.Linear(5, 6), dim=None),
        nn.Unflatten(1, (6, 1)),
        normwise.weight_norm(nn.Conv1d(6, 6, 1), dim=-1),
        normwise.weight_norm(ours.BatchNorm1d(6)),
    ).eval()
    with torch.no_grad():
        net[0].parametrizations.weight.original1[0] = 0  # no direction: torch's formula gives NaN
    x, keys, parameters = torch.randn(4, 6), list(net.state_dict()), list(net.parameters())
    before = net(x)
    to_torch(net)
    torch.testing.assert_close(net(x), before)
    assert isinstance(net[4], nn.BatchNorm1d)
    assert not isinstance(net[4], ours.BatchNorm1d)
    assert all("normwise" not in type(m).__mro__[1].__module__ for m in net.modules())
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    theirs.load_state_dict(net[0].state_dict())
    torch.testing.assert_close(theirs(x), net[0](x))


REFUSED = [
    ours.SwitchableNorm2d(4),
    ours.BatchRenorm(4),
    ours.GhostBatchNorm(4),
    ours.MeanOnlyBatchNorm(4),
    ours.BatchInstanceNorm(4),
    ours.FilterResponseNorm(4),
    ours.FrozenBatchNorm(4),
    ours.ConditionalBatchNorm(4, num_conditions=2),
    ours.ConditionalInstanceNorm(4, num_conditions=2),
    ours.AdaptiveInstanceNorm(),
    ours.LayerNormLSTM(4, 4),
    ours.LayerNormGRUCell(4, 4),
    weight_standardization(nn.Conv2d(3, 4, 3)),
    BatchNormNd(4),
    type("Mine", (ours.BatchNorm2d,), {})(4),
]


@pytest.mark.parametrize("layer", REFUSED, ids=lambda layer: type(layer).__name__)
def test_what_torch_has_no_class_for_is_named_and_nothing_changed(layer):
    model = nn.Sequential(ours.BatchNorm2d(4), nn.ModuleDict({"odd": layer}))
    with pytest.raises(InputError, match=r"nothing was changed:\n  1\.odd") as problem:
        to_torch(model)
    assert isinstance(problem.value, NormwiseError)
    assert type(model[0]) is ours.BatchNorm2d
    to_torch(model, where="0")
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("member", "cls"), [("batch", nn.BatchNorm2d), ("layer", nn.GroupNorm), ("instance", nn.InstanceNorm2d)]
)
def test_hardened_on_request(member, cls):
    layer = ours.SwitchableNorm2d(6, activation="relu")
    for logits in (layer.mean_weight, layer.var_weight):
        logits.data[layer.over.index(member)] = 30.0
    layer(torch.randn(4, 6, 5, 5))
    model, x = nn.Sequential(layer).eval(), torch.randn(4, 6, 5, 5)
    before, weight = model(x), layer.weight
    to_torch(model, harden=True)
    assert type(model[0][0]) is cls
    assert model[0][0].weight is weight
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_an_unclear_choice_warns_and_standardized_weights_are_kept():
    model = nn.Sequential(weight_standardization(nn.Conv2d(3, 4, 3)), ours.SwitchableNorm2d(4))
    x = torch.randn(2, 3, 5, 5)
    before = model[0](x)
    with pytest.warns(NormwiseWarning, match=r"'1' becomes instance norm, which had a share of 0\.33"):
        to_torch(model, harden=True)
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model[0](x), before)


def test_layers_of_surgery_find_their_axes_on_example_inputs():
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "batch").model
    with pytest.raises(InputError, match="give example_inputs"):
        to_torch(model)
    assert type(to_torch(model, example_inputs=torch.randn(2, 3, 5, 5))[1]) is nn.BatchNorm2d


def test_what_folding_left_becomes_torchs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ours.BatchNorm2d(4, activation="leaky_relu")).eval()
    x = torch.randn(2, 3, 5, 5)
    before = fold(model, x)(x)
    assert type(to_torch(model)[1]) is nn.LeakyReLU
    torch.testing.assert_close(model(x), before)


def test_an_encoder_layer_goes_on_computing_its_activation():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    layer.norm1, x = ours.LayerNorm(8, activation="relu"), torch.randn(2, 5, 8)
    before = layer.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(to_torch(layer).eval()(x), before, rtol=1e-4, atol=1e-5)

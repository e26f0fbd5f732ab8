"""Switchable layers become what they chose, and nothing else changes."""

import pytest
import torch
from torch import nn

import normwise.nn as nw
from normwise.errors import InputError
from normwise.surgery.freeze import freeze, is_frozen
from normwise.surgery.harden import harden

MEMBERS = ("instance", "layer", "group", "batch")
SHAPES = {1: (4, 8, 6), 2: (4, 8, 5, 3), 3: (2, 8, 3, 4, 3)}
LAYERS = {1: nw.SwitchableNorm1d, 2: nw.SwitchableNorm2d, 3: nw.SwitchableNorm3d}


def made(dim, means, variances, over=MEMBERS, **options):
    """A layer that has lived, with given shares."""
    torch.manual_seed(0)
    layer = LAYERS[dim](8, over=over, eps=1e-3, momentum=0.3, num_groups=2, **options).double()
    for name, shares in (("mean_weight", means), ("var_weight", variances)):
        getattr(layer, name).data = torch.tensor(shares, dtype=torch.float64).log().clamp_min(-80)
    for parameter in (layer.weight, layer.bias):
        nn.init.normal_(parameter)
    if layer.running_mean is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def one_hot(member):
    return [float(name == member) for name in MEMBERS]


def hardened(model, x=None, **options):
    records = []
    result = harden(model, example_inputs=x, report=records.append, **options)
    return result, records[0]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_layer_that_is_sure_becomes_the_plain_layer_with_the_same_function(dim, member):
    x = torch.randn(SHAPES[dim]).double() * 2 + 1
    model = nn.Sequential(made(dim, one_hot(member), one_hot(member), activation="relu"))
    evaluated = model.eval()(x)
    trained = model.train()(x)
    result, record = hardened(model, x)
    assert not isinstance(result[0], nw.SwitchableNorm)
    assert record.layers[0].became == member
    assert record.layers[0].drift < 1e-12
    assert record.drift < 1e-12
    torch.testing.assert_close(result.train()(x), trained)
    kept = getattr(result[0], "running_mean", None)
    assert (kept is not None) == (member == "batch")
    if member == "batch":
        assert result[0].momentum == 0.3
        assert result[0].num_batches_tracked == 2  # the statistics moved on from the layer's own
    else:
        torch.testing.assert_close(result.eval()(x), evaluated)


def test_a_mixture_keeps_the_members_that_matter_and_their_ratios():
    x = torch.randn(SHAPES[2]).double()
    layer = made(2, [0.02, 0.38, 0.05, 0.55], [0.03, 0.57, 0.1 - 1e-9, 0.3 + 1e-9])
    model = nn.Sequential(layer)
    wanted = made(2, [0.0, 0.38, 0.0, 0.55], [0.0, 0.57, 0.0, 0.3])
    result, record = hardened(model.eval(), x)
    assert record.layers[0].kept == ["layer", "batch"]
    assert result[0].over == ("layer", "batch")
    assert 0 < record.layers[0].drift < 0.2
    torch.testing.assert_close(result(x), wanted.eval()(x), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(result[0].shares()[0], torch.tensor([0.38, 0.55]).double() / 0.93, rtol=1e-7, atol=0)
    assert record.layers[0].mean_weights == pytest.approx([0.02, 0.38, 0.05, 0.55])
    assert "mixture of layer, batch" in str(record)


def test_disagreement_between_means_and_variances_is_a_mixture_of_both():
    model = nn.Sequential(made(2, one_hot("layer"), one_hot("batch")))
    x = torch.randn(SHAPES[2]).double()
    before = model.eval()(x)
    result, record = hardened(model, x)
    assert result[0].over == ("layer", "batch")
    assert record.drift < 1e-12
    torch.testing.assert_close(result(x), before)


@pytest.mark.parametrize(("threshold", "became"), [(0.5, "batch"), (0.7, "switchable")])
def test_the_threshold_decides(threshold, became):
    model = nn.Sequential(made(2, [0.1, 0.2, 0.1, 0.6], [0.1, 0.1, 0.1, 0.7]))
    _, record = hardened(model, threshold=threshold)
    assert record.layers[0].became == became
    assert record.drift is None


def test_a_sparse_mix_becomes_dense_with_the_same_shares():
    layer = nw.SwitchableNorm2d(8, sparse=True).double()
    layer.mean_weight.data = torch.tensor([1.0, 1.3, 0.1]).double()
    layer.var_weight.data = torch.tensor([1.0, 0.9, 0.1]).double()
    assert layer.shares()[0][2] == 0
    x = torch.randn(SHAPES[2]).double()
    model = nn.Sequential(layer).eval()
    before = model(x)
    result, _ = hardened(model, threshold=0.9)
    assert result[0].over == ("instance", "layer")
    assert result[0].sparsity is None
    torch.testing.assert_close(result(x), before, rtol=1e-6, atol=1e-6)


def test_a_mixture_without_negligible_members_stays_the_same_object():
    model = nn.Sequential(nw.SwitchableNorm2d(8))
    layer = model[0]
    result, record = hardened(model)
    assert result[0] is layer
    assert record.layers[0].kept == ["instance", "layer", "batch"]


def test_shared_frozen_and_hooked_layers():
    shared = made(2, one_hot("batch"), one_hot("batch"))
    calls = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    model = freeze(nn.Sequential(shared, nn.ReLU(), shared)).train()
    result, record = hardened(model, torch.randn(SHAPES[2]).double())
    assert result[0] is result[2]
    assert isinstance(result[0], nw.BatchNorm2d)
    assert is_frozen(result[0])
    assert not result.train()[0].training
    calls.clear()
    result(torch.randn(SHAPES[2]).double())
    assert len(calls) == 2
    assert len(result[0]._forward_hooks) == 1
    assert len(record.layers) == 1


def test_parameters_stay_the_optimizers():
    model = nn.Sequential(made(2, one_hot("layer"), one_hot("layer")))
    weight = model[0].weight
    assert hardened(model)[0][0].weight is weight


def test_where_copy_and_the_model_itself():
    sure = [made(2, one_hot("batch"), one_hot("batch")) for _ in range(2)]
    model = nn.Sequential(*sure)
    other, _ = hardened(model, copy=True)
    assert isinstance(other[0], nw.BatchNorm2d)
    result, _ = hardened(model, where="1")
    assert isinstance(result[0], nw.SwitchableNorm2d)
    assert isinstance(result[1], nw.BatchNorm2d)
    assert isinstance(harden(sure[0]), nw.BatchNorm2d)


def test_the_official_variance_has_a_drift_that_is_told():
    x = torch.randn(4, 8, 2, 2).double()
    model = nn.Sequential(made(2, one_hot("instance"), one_hot("instance"), variance="official"))
    _, record = hardened(model, x)
    assert record.layers[0].drift > 0.05  # 1/√(4/3) at 2×2


def test_wrong_arguments():
    with pytest.raises(InputError, match="has no switchable layer"):
        harden(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(InputError, match="shares from 0 to 1"):
        harden(nn.Sequential(nw.SwitchableNorm2d(3)), 3)

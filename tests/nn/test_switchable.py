"""Switchable norm against formulas over the data, and what it tells of its mixes."""

import itertools

import pytest
import torch
from mixes import oracle, settled, shaken
from torch import nn

from normwise.errors import NormwiseWarning
from normwise.nn import (
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    importance,
)

MEMBERS = ("instance", "layer", "group", "batch")
SUBSETS = [s for k in range(1, 5) for s in itertools.combinations(MEMBERS, k)]


@pytest.mark.parametrize("over", SUBSETS, ids="+".join)
@pytest.mark.parametrize("variance", ["paper", "official"])
def test_every_subset_matches_the_formula_with_gradients(over, variance):
    layer = shaken(over=over, variance=variance, num_groups=2)
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(x.shape, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        running = (layer.running_mean, layer.running_var) if not training and "batch" in over else None
        running = None if running is None else tuple(t.clone() for t in running)
        expected = oracle(
            x,
            over,
            layer.mean_weight.softmax(0),
            layer.var_weight.softmax(0),
            layer.weight,
            layer.bias,
            variance,
            running=running,
        )
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
        leaves = [x, *layer.parameters()]
        for ours, theirs in zip(
            torch.autograd.grad(y, leaves, grad),
            torch.autograd.grad(expected, leaves, grad, allow_unused=True),
            strict=True,
        ):
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("cls", "shape"), [(SwitchableNorm1d, (3, 4, 6)), (SwitchableNorm3d, (2, 4, 2, 3, 2))])
def test_other_dimensions_match_the_formula(cls, shape):
    layer = shaken(cls)
    x = torch.randn(shape, dtype=torch.float64)
    shares = layer.shares()
    expected = oracle(x, layer.over, *shares, layer.weight, layer.bias, "paper")
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


def test_faults_of_the_published_layer_are_not_repeated():
    x = 100 + 0.01 * torch.randn(4, 3, 8, 8)
    for variance in ("paper", "official"):
        layer = SwitchableNorm2d(3, variance=variance)
        exact = oracle(
            x.double(), layer.over, *layer.shares(), torch.ones(3).double(), torch.zeros(3).double(), variance
        )
        assert (layer(x).double() - exact).abs().max() < 5e-3
    assert SwitchableNorm2d(3).eval()(torch.randn(2, 3, 4, 4)).abs().max() < 10
    with pytest.warns(NormwiseWarning, match="instance would rest on one element"):
        y = SwitchableNorm2d(3)(torch.randn(8, 3, 1, 1))
    assert y.isfinite().all()


def test_importance_reads_every_layer_and_prints_a_table():
    model = nn.Sequential(
        SwitchableNorm2d(4), nn.ReLU(), settled("layer"), SwitchableNorm1d(4, over=("group", "batch"))
    )
    found = importance(model)
    assert [mixture.layer for mixture in found] == ["0", "2", "3"]
    assert found[1].mean_weights == [0.0, 1.0, 0.0]
    for mixture in found:
        assert sum(mixture.mean_weights) == pytest.approx(1)
    lines = repr(found).splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "of", "instance", "layer", "batch", "group"]
    assert lines[3].split() == ["2", "means", "0.000", "1.000", "0.000", "-"]
    assert repr(importance(nn.ReLU())) == "no switchable layers"

"""Sparse mixes: projections by their definitions, and layers that settle on one member."""

import copy
import pickle

import pytest
import torch
from mixes import oracle, settled, shaken
from torch import nn

from normwise import kernels, methods
from normwise.core.moments import sparsemax, sparsestmax
from normwise.errors import InputError
from normwise.nn import (
    SwitchableNorm2d,
    importance,
    set_sparsity,
)


def projection_by_bisection(z):
    """The simplex projection by its definition: p = max(z − τ, 0) with Σ p = 1."""
    low, high = z.min() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (z - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (z - low).clamp_min(0)


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_sparsemax_is_the_projection_with_the_right_gradient(members):
    torch.manual_seed(members)
    sparse = 0
    for _ in range(50):
        z = torch.randn(members, dtype=torch.float64, requires_grad=True)
        p = sparsemax(z)
        torch.testing.assert_close(p, projection_by_bisection(z.detach()), rtol=0, atol=1e-12)
        g = torch.randn(members, dtype=torch.float64)
        support = (p > 0).double()
        sparse += int(support.sum() < members)
        expected = support * (g - (g * support).sum() / support.sum())
        torch.testing.assert_close(torch.autograd.grad(p, z, g)[0], expected)
        torch.testing.assert_close(sparsemax((z + 1e6).float()).double(), p.detach(), rtol=0, atol=0.2)
    assert sparse > 0 or members == 1


def test_sparsestmax_is_the_closest_point_outside_the_disc():
    torch.manual_seed(0)
    n = 150
    grid = torch.tensor([(i / n, j / n, 1 - (i + j) / n) for i in range(n + 1) for j in range(n + 1 - i)]).double()
    for _ in range(60):
        z, sparsity = 0.6 * torch.randn(3).double(), torch.rand(()).item()
        radius = sparsity * (2 / 3) ** 0.5
        p = sparsestmax(z, sparsity)
        assert abs(p.sum() - 1) < 1e-12
        assert (p >= 0).all()
        assert (p - 1 / 3).norm() >= radius - 1e-9
        allowed = grid[(grid - 1 / 3).norm(dim=1) >= radius]
        assert (p - z).square().sum() <= (allowed - z).square().sum(1).min() + 1e-7


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_sparsity_ends_exactly_one_hot_at_the_largest(members, dtype):
    torch.manual_seed(0)
    for _ in range(100):
        z = torch.randn(members, dtype=dtype)
        p = sparsestmax(z, 1.0)
        assert p.tolist() == [float(k == z.argmax()) for k in range(members)]
    even = torch.ones(members, dtype=dtype, requires_grad=True)
    p = sparsestmax(even, 1.0)
    assert p.tolist() == pytest.approx([1 / members] * members)
    p[0].backward()
    assert even.grad.isfinite().all()


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_sparse_layer_matches_the_formula_with_gradients(sparsity, training):
    layer = shaken(sparse=True).train(training)
    assert set_sparsity(layer, sparsity) == 1
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    running = None if training else (layer.running_mean.clone(), layer.running_var.clone())
    means, variances = (sparsestmax(w, layer.sparsity) for w in (layer.mean_weight, layer.var_weight))
    expected = oracle(x, layer.over, means, variances, layer.weight, layer.bias, "paper", running=running)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    leaves = [x, *layer.parameters()]
    grad = torch.randn(x.shape, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_dead_members_are_not_computed_in_evaluation(monkeypatch, leave_kernels_out):
    x = torch.randn(2, 3, 4, 4)
    expected = nn.functional.instance_norm(x)
    layer = settled("instance")

    def dead(*_):
        raise AssertionError("a member with no share was computed")

    leave_kernels_out()  # the pools of the plain path can be watched
    for name in ("layer", "batch"):
        monkeypatch.setitem(methods.POOLS, name, dead)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="no share"):
        layer.train()(x)
    monkeypatch.undo()
    # A layer that has settled on the batch reads no moments of its input at all.
    layer = settled("batch")
    expected = nn.functional.batch_norm(x, layer.running_mean, layer.running_var)
    leave_kernels_out()
    monkeypatch.setattr(kernels.reference, "moments", dead)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_sparsity_is_stored_copied_and_reset():
    layer = settled("layer")
    set_sparsity(layer, 0.75)
    twin = SwitchableNorm2d(3, sparse=True).eval()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4, 4)
    for other in (twin, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.sparsity.item() == 0.75
        assert other(x).equal(layer(x))
    layer.reset_parameters()
    assert layer.sparsity.item() == 0
    assert "sparsity" not in SwitchableNorm2d(3).state_dict()
    assert "sparse=True" in repr(layer)
    with pytest.raises(InputError, match="from 0"):
        set_sparsity(layer, 1.5)


def test_training_with_a_rising_sparsity_settles_on_the_member_that_helps():
    """The target is batch norm's output, so the logits must come to the batch member."""
    torch.manual_seed(0)
    layer = SwitchableNorm2d(4, sparse=True)
    optimizer = torch.optim.SGD([layer.mean_weight, layer.var_weight], lr=0.3)
    scales = torch.tensor([0.3, 1.0, 3.0, 0.1]).reshape(1, 4, 1, 1)
    for step in range(40):
        x = scales * torch.randn(8, 4, 6, 6) + torch.randn(8, 4, 1, 1)
        target = nn.functional.batch_norm(x, None, None, training=True)
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x), target).backward()
        optimizer.step()
        set_sparsity(layer, min(1.0, max(0.0, (step - 5) / 25)))
    found = importance(layer)[0]
    assert found.mean_weights == [0.0, 0.0, 1.0]
    assert found.var_weights == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("sparse", [False, True])
def test_traces_and_transforms(sparse):
    layer = SwitchableNorm2d(3, sparse=sparse).eval()
    x = torch.randn(2, 3, 4, 4)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(traced(x), layer(x))
    mapped = torch.vmap(layer)(x[:, None])
    torch.testing.assert_close(mapped[:, 0], layer(x), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)

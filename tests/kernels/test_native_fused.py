"""The whole normalizations among the native operators against float64 formulas: one pool within a sample, and mixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import (
    ACTIVATIONS,
    SLOPE,
    TOLERANCE,
    activate,
    close,
    on_every_problem,
    oracle_group,
    problem,
    rounded,
    same_format,
    wide,
)
from torch import Tensor

import fused
from normwise.kernels import native, serving

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "")


@on_every_problem(pooling=["instance", "layer", "group"], affine=["none", "channel", "cell"])
def test_sample_norm(shape, dtype, layout, pooling, affine):
    x, g, _, weight, bias, *_ = problem(shape, dtype, layout)
    groups = {"instance": shape[1], "layer": 1, "group": next(d for d in (3, 2, 1) if shape[1] % d == 0)}[pooling]
    if affine == "channel":
        weight, bias = torch.randn(shape[1], dtype=weight.dtype), torch.randn(shape[1], dtype=weight.dtype)
    if affine == "none":
        weight = bias = None
    if x.numel() == 0 or x.numel() == shape[0] * groups:  # nothing to normalize: the deviation is exactly 0
        y = fused.sample_norm(x, groups, weight, bias)[0]
        expected = torch.zeros_like(x) if bias is None else wide(bias.expand(shape[:2]), x).expand(shape)
        torch.testing.assert_close(y, rounded(expected, x.dtype), rtol=0, atol=0)
        return
    activation = "relu" if affine == "channel" else None
    leaf = x.double().requires_grad_()
    parameters = [] if weight is None else [weight.double().requires_grad_(), bias.double().requires_grad_()]
    expected = oracle_group(leaf, groups, *(parameters or (None, None)), activation)
    y, moments = fused.sample_norm(x, groups, weight, bias, activation=activation)
    close(y, expected.detach(), dtype)
    same_format(y, x, layout)
    gradients = torch.autograd.grad(expected, [leaf, *parameters], g.double())
    actual = fused.sample_norm_backward(g, x, moments, groups, weight, bias, activation=activation)
    close(actual[0], gradients[0], dtype, slack=4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=False):
        close(ours, theirs, ours.dtype, slack=20)


LAST_AXES = [((2, 3, 20), 1), ((5, 3, 4), 2), ((3, 5), 2), ((200, 33), 1), ((2, 1, 2500), 1), ((6,), 1)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("shape", "axes"), LAST_AXES, ids=str)
def test_layer_norm(shape, axes, centered, dtype, activation):
    torch.manual_seed(sum(shape))
    x, g = ((0.5 + 2 * torch.randn(shape)).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-axes:]).to(dtype) for _ in range(2))
    leaves = [t.double().clone().requires_grad_() for t in (x, weight, bias)]
    last = tuple(range(-axes, 0))
    centred = leaves[0] - leaves[0].mean(last, keepdim=True) if centered else leaves[0]
    normalized = centred / (centred.square().mean(last, keepdim=True) + 1e-5).sqrt()
    expected = activate(normalized * leaves[1] + leaves[2], activation)
    options = (1e-5, centered, activation, SLOPE)
    y, moments = fused.layer_norm(x, axes, weight, bias, *options)
    close(y, expected.detach(), dtype)
    assert y.dtype == dtype
    actual = fused.layer_norm_backward(g, x, moments, axes, weight, bias, *options)
    gradients = torch.autograd.grad(expected, leaves, g.double())
    close(actual[0], gradients[0], dtype, slack=4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=True):
        close(ours, theirs, ours.dtype, slack=20)
    absent = fused.layer_norm_backward(g, x, moments, axes, None, None, *options)[1]
    assert absent.shape == (normalized[(0,) * (x.ndim - axes)].numel(),)


def test_layer_norm_of_nothing_and_of_strides():
    assert fused.layer_norm(torch.ones(0, 4), 1)[0].shape == (0, 4)
    assert [t.shape for t in fused.layer_norm(torch.ones(3, 0), 1)] == [(3, 0), (2, 3)]
    nothing = fused.layer_norm_backward(torch.ones(0, 2), torch.ones(0, 2), torch.ones(2, 0).double(), 1)
    assert [t.tolist() for t in nothing] == [[], [0, 0], [0, 0]]
    x, g = torch.randn(2, 5, 4), torch.randn(2, 4, 5)
    y, moments = fused.layer_norm(x.mT, 1)
    assert y.is_contiguous()
    assert torch.equal(y, fused.layer_norm(x.mT.contiguous(), 1)[0])
    strided = fused.layer_norm_backward(g.mT.contiguous().mT, x.mT, moments, 1)
    contiguous = fused.layer_norm_backward(g, x.mT.contiguous(), moments, 1)
    assert all(torch.equal(a, b) for a, b in zip(strided, contiguous, strict=True))


def test_layer_norm_of_equal_values_is_the_bias():
    bias = torch.randn(7)
    for value in (0.0, 1e-3, 3.3, 1e6):
        y, _ = fused.layer_norm(torch.full((2, 7), value), 1, torch.randn(7), bias)
        assert torch.equal(y, bias.expand(2, 7))


@pytest.mark.parametrize("length", [3, 5, 16, 21])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layer_norm_of_large_equal_values_has_gradients(length, activation):
    x, g = torch.full((5, length), 2e36), torch.randn(5, length)
    y, moments = fused.layer_norm(x, 1, activation=activation)
    assert not y.any()
    assert all(t.isfinite().all() for t in fused.layer_norm_backward(g, x, moments, 1, activation=activation))


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 2)])
def test_gradients_have_the_shapes_of_their_parameters(shape):
    x, weight = torch.randn(shape), torch.ones(1, 6)
    for groups in ([2], [0], [1, 0]):
        found = fused.mix_norm_backward(x, x, fused.mix_norm(x, groups, weight)[1], groups, weight)
        assert [t.shape for t in found[1:3]] == [(1, 6), (6,)]


def oracle_mix(x: Tensor, groups: list[int], parameters: list[Tensor], activation: str | None) -> Tensor:
    """The formula, from pools taken directly over the elements."""
    weight, bias, mean_weight, var_weight = parameters
    N, C = x.shape[:2]
    values = x.reshape(N, C, -1)
    pools = []
    for G in groups:
        axes = (0, 2) if G == 0 else (2,)
        split = values if G == 0 else values.reshape(N, G, -1)
        var, mean = torch.var_mean(split, axes, correction=0, keepdim=True)
        repeats = 1 if G == 0 else C // G
        pools.append([t.repeat_interleave(repeats, 1) for t in (mean, var)])
    mean, var = (
        sum(w * pool[i] for w, pool in zip(weights.softmax(0), pools, strict=True))
        for i, weights in enumerate((mean_weight, var_weight))
    )
    y = (values - mean) / (var + 1e-5).sqrt() * weight[:, None] + bias[:, None]
    return activate(y.reshape(x.shape), activation)


@on_every_problem(members=[("batch",), ("instance", "layer", "batch"), ("batch", "group")])
def test_mix_norm(shape, dtype, layout, members):
    x, g, *_ = problem(shape, dtype, layout)
    if x.numel() == 0 or x.numel() == shape[0] * shape[1] == 1 or (len(members) > 1 and x.ndim == 2):
        return  # the engine takes other ways
    C, acc = shape[1], torch.float64 if dtype == torch.float64 else torch.float32
    count = next(d for d in (3, 2, 1) if C % d == 0)
    groups = [{"instance": C, "layer": 1, "batch": 0, "group": count}[name] for name in members]
    parameters = [torch.randn(size, dtype=acc) for size in (C, C, len(groups), len(groups))]
    leaves = [x.double().requires_grad_(), *(t.double().requires_grad_() for t in parameters)]
    expected = oracle_mix(leaves[0], groups, leaves[1:], "leaky_relu")
    options = {"activation": "leaky_relu", "slope": SLOPE}
    y, moments = fused.mix_norm(x, groups, *parameters, **options)
    close(y, expected.detach(), dtype, slack=2)
    same_format(y, x, layout)
    gradients = torch.autograd.grad(expected, leaves, g.double())
    actual = fused.mix_norm_backward(g, x, moments, groups, *parameters, **options)
    close(actual[0], gradients[0], dtype, slack=4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=True):
        close(ours, theirs, acc, slack=200)  # sums over all of x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(37, 3, 40), (1030, 5), (4099, 2), (48, 6, 7, 7), (3, 4, 40, 41)], ids=str)
def test_a_batch_norm_joins_its_samples(shape, layout):
    """However many samples a piece of memory spans, and whether they can be divided evenly or not."""
    x, g = problem(shape, torch.float32, layout, mean=100.0)[0], problem(shape, torch.float32, layout)[1]
    weight, bias = torch.randn(2, shape[1])
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = F.batch_norm(leaves[0], None, None, *leaves[1:], training=True)
    y, moments = fused.mix_norm(x, [0], weight, bias)
    assert moments.shape == (2, 1, shape[1])
    close(y, expected.detach(), x.dtype)
    actual = fused.mix_norm_backward(g, x, moments, [0], weight, bias)
    for ours, theirs in zip(actual, torch.autograd.grad(expected, leaves, g.double()), strict=False):
        close(ours, theirs, x.dtype, slack=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mix_norm_moves_running_averages_and_counts_what_is_not_finite(dtype):
    x = torch.randn(3, 4, 5, dtype=dtype)
    mean, var = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
    skipped, tracked = torch.zeros(2, dtype=torch.int64)
    fused.mix_norm(x, [0], running=(mean, var, 0.1, skipped, tracked))
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2)))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2)))
    before = mean.clone(), var.clone()
    x[1, 2, 3] = float("inf")
    fused.mix_norm(x, [0], running=(mean, var, 0.1, skipped, tracked))
    assert (skipped, tracked) == (1, 1)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    fused.mix_norm(x, [0], running=(mean, var, 0.1, None, tracked))
    assert tracked == 2
    assert not var[2].isfinite()
    with pytest.raises(RuntimeError, match="counted in one int64"):
        fused.mix_norm(x, [0], running=(mean, var, 0.1, None, tracked.int()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mix_norm_with_a_population(layout):
    x, g, center, *_ = problem((3, 4, 5, 5), torch.float32, layout)
    population, weight = (center[0], center[1].square() + 0.5), center[2]
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = F.batch_norm(leaves[0], *population, leaves[1])
    y, moments = fused.mix_norm(x, [0], weight, population=population)
    close(y, expected.detach().double(), x.dtype)
    actual = fused.mix_norm_backward(g, x, moments, [0], weight, population=population)
    for ours, theirs in zip(actual, torch.autograd.grad(expected, leaves, g), strict=False):
        close(ours, theirs.double(), x.dtype, slack=20)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_sample_norm_errs_no_more_than_torch(mean, std, layout, groups):
    x = problem((4, 16, 28, 28), torch.float32, layout, mean, std)[0]
    expected = oracle_group(x.double(), groups, None, None, None)
    ours = (fused.sample_norm(x, groups)[0] - expected).abs().max().item()
    theirs = (F.group_norm(x, groups) - expected).abs().max().item()
    assert ours <= max(theirs, 1e-6)


@pytest.mark.skipif(
    native.available() and native.instruction_set() == "baseline", reason="there is no fused multiply-add"
)
@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 0])
def test_float32_is_rounded_once(mean, layout, groups):
    """But for the shift, which is of the size of mean over deviation."""
    x = problem((8, 64, 28, 28), torch.float32, layout, mean, 1.0)[0]
    weight = torch.rand(64) + 0.5
    y = fused.mix_norm(x, [groups], weight)[0]
    parameters = [weight.double(), torch.zeros(64).double(), torch.zeros(1).double(), torch.zeros(1).double()]
    expected = oracle_mix(x.double(), [groups], parameters, None)
    half_a_digit = torch.from_numpy(np.spacing(y.abs().numpy())).double() / 2
    assert ((y - expected).abs() - half_a_digit).max().item() <= 6e-8 + 1e-7 * mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channels_far_from_zero_leave_the_others_alone(dtype, layout):
    """Whether a channel has a centre to subtract is its own matter."""
    x, g, *_ = problem((4, 64, 9, 9), dtype, layout, 0.0, 1.0)
    far = x.clone()
    far[:, 1] += 100
    others = [c for c in range(64) if c != 1]
    results = []
    for given in (x, far):
        y, moments = fused.mix_norm(given, [0], activation="silu")
        dx = fused.mix_norm_backward(g, given, moments, [0], activation="silu")[0]
        results.append((y[:, others], dx[:, others]))
    for near, beside in zip(*results, strict=True):
        torch.testing.assert_close(near, beside, rtol=0, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [[1], [4], [16], [0], [16, 1, 0]], ids=str)
def test_gradients_lose_nothing_by_a_mean_far_from_zero(mean, layout, groups):
    x, g, *_ = problem((4, 16, 28, 28), torch.float32, layout, mean, 1.0)
    # So that float32 holds every value to the same share of the deviation, whatever the mean.
    x = torch.round((x - mean) * 8) / 8 + mean
    # Kernels in Triton sum in float32, which loses digits of what cancels in a gradient far from zero.
    g, slack = (g - mean, 2) if serving.INTERPRETED else (g, 1)
    weight, bias = torch.rand(16) + 0.5, torch.randn(16)
    logits = torch.randn(len(groups)) if len(groups) > 1 else torch.zeros(1)
    given = [weight, bias] if len(groups) == 1 else [weight, bias, logits, logits]
    leaves = [t.double().requires_grad_() for t in (x, weight, bias, logits, logits)]
    oracle_mix(leaves[0], groups, leaves[1:], "relu").backward(g.double())
    _, moments = fused.mix_norm(x, groups, *given, activation="relu")
    actual = fused.mix_norm_backward(g, x, moments, groups, *given, activation="relu")
    for ours, leaf in zip(actual[: 1 + len(given)], leaves, strict=False):
        size = leaf.grad.abs().max().item()
        assert (ours.double() - leaf.grad).abs().max().item() <= 3e-6 * slack * size


@pytest.mark.parametrize("shape", [(1, 2, 600, 600), (1, 2, 360, 400), (3, 64, 64, 67), (2, 3, 211, 223)])
def test_layer_norm_of_long_channels_last_samples(shape):
    """Cut into equal rows where their length and number allow it, and else into channels."""
    x, g, *_ = problem(shape, torch.float32, "channels_last", 3.0, 2.0)
    leaf = x.double().requires_grad_()
    expected = oracle_group(leaf, 1, None, None, None)
    y, moments = fused.sample_norm(x, 1)
    close(y, expected.detach(), x.dtype)
    dx = fused.sample_norm_backward(g, x, moments, 1)[0]
    close(dx, torch.autograd.grad(expected, leaf, g.double())[0], x.dtype, slack=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["layer", "sample", "batch", "mix"])
def test_gradients_have_the_types_of_their_parameters(kind, dtype):
    """And are those of float32 parameters of the same values, rounded."""
    torch.manual_seed(0)
    x, g, weight, bias = (torch.randn(shape).to(dtype) for shape in ((5, 6, 6), (5, 6, 6), (6,), (6,)))
    groups = {"layer": None, "sample": [2], "batch": [0], "mix": [6, 1, 0]}[kind]
    learned = [weight, bias] if kind != "mix" else [weight, bias, *torch.randn(2, 3).to(dtype)]
    found = []
    for parameters in (learned, [t.float() for t in learned]):
        if groups is None:
            y, moments = fused.layer_norm(x, 1, *parameters)
            found.append((y, *fused.layer_norm_backward(g, x, moments, 1, *parameters)))
        else:
            y, moments = fused.mix_norm(x, groups, *parameters)
            gradients = fused.mix_norm_backward(g, x, moments, groups, *parameters)
            found.append((y, *gradients[: 1 + len(parameters)]))
    assert [t.dtype for t in found[1][2:]] == [torch.float32] * len(learned)
    for mine, expected in zip(*found, strict=True):
        assert mine.dtype == dtype
        # Norms of the last axes have no kernel in Triton.
        assert torch.equal(mine, expected.to(dtype) if kind == "layer" else rounded(expected, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [[0], [4, 1, 0]], ids=str)
def test_running_averages_of_16_bits(groups, dtype):
    torch.manual_seed(0)
    x, counts = (2 + 3 * torch.randn(5, 4, 7)).to(dtype), [*torch.zeros(2, dtype=torch.int64)]
    narrow = [*torch.rand(2, 4).to(dtype)]
    wide_ones = [t.float() for t in narrow]
    fused.mix_norm(x, groups, running=(*narrow, 0.3, *counts))
    fused.mix_norm(x, groups, running=(*wide_ones, 0.3, None, None))
    assert [count.item() for count in counts] == [0, 1]
    for mine, expected in zip(narrow, wide_ones, strict=True):
        torch.testing.assert_close(mine, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    before = [t.clone() for t in narrow]
    fused.mix_norm(x * 3000 if dtype == torch.float16 else x * 1e30, groups, running=(*narrow, 0.9, *counts))
    assert [count.item() for count in counts] == [1, 1]
    assert all(torch.equal(*pair) for pair in zip(narrow, before, strict=True))

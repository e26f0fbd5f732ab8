"""The kernels in Triton, interpreted on the CPU, against float64: run by test_triton.py in a process of its own.

They stand under the operators in the place of those in C++, so that autograd and the layers are the same.
"""

from __future__ import annotations

import math

import pytest
import torch
from problems import (
    ACTIVATIONS,
    LAYOUTS,
    SLOPE,
    TOLERANCE,
    close,
    elements,
    masked_gradient,
    oracle_apply,
    oracle_group,
    oracle_moments,
    pairwise,
    problem,
    same_format,
    spatial,
    wide,
)
from test_native import samples
from test_native_fused import oracle_mix
from torch import Tensor

import fused
from normwise import nn
from normwise.kernels import backend, reference
from normwise.kernels.triton import launching, sample, serving

assert serving.INTERPRETED, f"run by test_triton.py: {serving.why_not()}"

# NumPy's, where a device gives infinity without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

SHAPES = [(2, 6, 7, 7), (1, 3, 13), (2, 4, 3, 2, 3), (2, 49, 1), (5, 6), (1, 1, 1, 1), (0, 3, 4, 4), (3, 2, 0)]
WAYS = ["held", "looped", "pooled"]


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tiles so small that small problems take every way through the kernels: on chip, in loops, in pieces and pools."""
    if request.param != "held":
        monkeypatch.setattr(launching, "TILE", 32)
        monkeypatch.setattr(launching, "CHANNELS", 8)
        monkeypatch.setattr(launching, "PROGRAMS", 4)
        monkeypatch.setattr(sample, "HELD", 0)
        monkeypatch.setattr(sample, "HELD_BACKWARD", 0)
        monkeypatch.setattr(sample, "LOOPED", 32)
        monkeypatch.setattr(sample, "LINE", 2)
        monkeypatch.setattr(sample, "LARGEST", 10**6 if request.param == "looped" else 0)
        monkeypatch.setattr(sample, "FEWEST", 0)
    return request.param


def rows(**more: list) -> pytest.MarkDecorator:
    """Any two values together of shapes, types, layouts, ways through the kernels and activations, and more."""
    names = ["shape", "dtype", "layout", "way", "activation", *more]
    found = pairwise(SHAPES, [*TOLERANCE], [*LAYOUTS], WAYS, ACTIVATIONS, *more.values())
    return pytest.mark.parametrize(names, found, ids=lambda value: str(value), indirect=["way"])


def slack(dtype: torch.dtype) -> float:
    """The interpreter cuts float32 off where devices round to bfloat16: one unit of the last place, not half of it."""
    return 2.0 if dtype == torch.bfloat16 else 1.0


@rows()
def test_cells(shape, dtype, layout, way, activation):
    x, g, center, scale, shift, gmean, gvar = problem(shape, dtype, layout)
    assert backend(x) is serving
    acc = center.dtype
    for actual, expected in zip(serving.moments(x), oracle_moments(x), strict=True):
        assert actual.dtype == acc
        close(actual, expected, acc)
    y = serving.apply(x, center, scale, shift, activation, SLOPE)
    close(y, oracle_apply(x, center, scale, shift, activation), dtype, slack(dtype))
    same_format(y, x, layout)
    mean = oracle_moments(x)[0].to(acc)
    masked, deviation, count = (
        masked_gradient(g, x, center, scale, shift, activation),
        x.double() - wide(mean, x),
        elements(x),
    )
    sums = serving.grad_sums(g, x, mean, center, scale, shift, activation, SLOPE)
    for actual, expected in zip(sums, (masked, masked * deviation), strict=True):
        expected = expected if x.ndim == 2 else expected.sum(spatial(x))
        close(actual / count, expected / count, acc)
    dx = serving.grad_input(g, x, mean, center, scale, shift, gmean, gvar, activation, SLOPE)
    expected = wide(scale, x) * masked + wide(gvar, x) * 2 / count * deviation + wide(gmean, x) / count
    close(dx, expected, dtype, slack(dtype))
    same_format(dx, x, layout)


def parameters(kind: str, x: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
    shape = {"channel": x.shape[1:2], "cell": x.shape[:2]}
    return [None, None] if kind == "none" else [torch.randn(shape[kind], dtype=dtype) for _ in range(2)]


@rows(pooling=["instance", "layer", "group"], affine=["none", "channel", "cell"])
def test_sample_norm(shape, dtype, layout, way, activation, pooling, affine):
    x, g, center, *_ = problem(shape, dtype, layout)
    C, acc = shape[1], center.dtype
    groups = {"instance": C, "layer": 1, "group": next(d for d in (3, 2, 1) if C % d == 0)}[pooling]
    weight, bias = parameters(affine, x, acc)
    if x.numel() <= shape[0] * groups:  # nothing to normalize: the deviation is 0
        y = fused.sample_norm(x, groups, weight, bias)[0]
        expected = torch.zeros(shape) if bias is None else wide(bias.expand(shape[:2]), x).expand(shape)
        close(y, expected.double(), dtype, slack(dtype))
        return
    leaves = [x.double().requires_grad_(), *(t.double().requires_grad_() for t in (weight, bias) if t is not None)]
    expected = oracle_group(leaves[0], groups, *(leaves[1:] or (None, None)), activation)
    y, moments = fused.sample_norm(x, groups, weight, bias, activation=activation, slope=SLOPE)
    close(y, expected.detach(), dtype, slack(dtype))
    same_format(y, x, layout)
    actual = fused.sample_norm_backward(g, x, moments, groups, weight, bias, activation=activation, slope=SLOPE)
    gradients = torch.autograd.grad(expected, leaves, g.double())
    close(actual[0], gradients[0], dtype, 4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=False):
        close(ours, theirs, acc, 20)


@rows(members=[("batch",), ("instance", "layer", "batch"), ("batch", "group"), ("layer", "instance")])
def test_mixes(shape, dtype, layout, way, activation, members):
    x, g, center, *_ = problem(shape, dtype, layout)
    if x.numel() == 0 or elements(x) * shape[0] == 1 or (len(members) > 1 and elements(x) == 1):
        return  # the engine takes other ways
    C, acc = shape[1], center.dtype
    pools = {"instance": C, "layer": 1, "batch": 0, "group": next(d for d in (3, 2, 1) if C % d == 0)}
    groups = [pools[name] for name in members]
    learned = [torch.randn(size, dtype=acc) for size in (C, C, len(groups), len(groups))]
    if len({*groups}) < len(groups):
        return
    leaves = [t.double().requires_grad_() for t in (x, *learned)]
    expected = oracle_mix(leaves[0], groups, leaves[1:], activation)
    options = {"activation": activation, "slope": SLOPE}
    y, moments = fused.mix_norm(x, groups, *learned, **options)
    close(y, expected.detach(), dtype, 2)
    same_format(y, x, layout)
    actual = fused.mix_norm_backward(g, x, moments, groups, *learned, **options)
    gradients = torch.autograd.grad(expected, leaves, g.double())
    close(actual[0], gradients[0], dtype, 4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=True):
        close(ours, theirs, acc, 200)  # sums over all of x


LARGE_MEANS = [*pairwise([0.0, 1e3, 1e6], ["contiguous", "channels_last"], WAYS, [[1], [4], [2], [0], [4, 1, 0]])]


@pytest.mark.parametrize(("mean", "layout", "way", "groups"), LARGE_MEANS, ids=str, indirect=["way"])
def test_large_means_keep_their_digits(mean, layout, way, groups):
    x, g, *_ = problem((2, 4, 5, 11), torch.float32, layout, 0.0, 1.0)
    # So that float32 holds every value to the same share of the deviation, whatever the mean.
    x = torch.round(x * 8) / 8 + mean
    learned = [torch.rand(4) + 0.5, torch.randn(4), *(torch.randn(len(groups)) for _ in range(2))]
    leaves = [t.double().requires_grad_() for t in (x, *learned)]
    expected = oracle_mix(leaves[0], groups, leaves[1:], "relu")
    given = learned if len(groups) > 1 else learned[:2]
    if len(groups) == 1 and groups[0]:
        y, moments = fused.sample_norm(x, groups[0], *given, activation="relu")
        actual = fused.sample_norm_backward(g, x, moments, groups[0], *given, activation="relu")
    else:
        y, moments = fused.mix_norm(x, groups, *given, activation="relu")
        actual = fused.mix_norm_backward(g, x, moments, groups, *given, activation="relu")
    assert (y - expected).abs().max().item() <= 2e-6
    gradients = torch.autograd.grad(expected, leaves, g.double())
    for ours, theirs in zip(actual[: 1 + len(given)], gradients, strict=False):
        assert (ours.double() - theirs).abs().max().item() <= 3e-6 * theirs.abs().max().item()


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("groups", [[0], [4, 0]], ids=str)
def test_running_averages(way, groups):
    x, counts = 2 + 3 * torch.randn(5, 4, 7), [*torch.zeros(2, dtype=torch.int64)]
    mean, var = torch.rand(4), torch.rand(4) + 1
    expected = [0.7 * t.clone() + 0.3 * m for t, m in ((mean, x.mean((0, 2))), (var, x.var((0, 2))))]
    fused.mix_norm(x, groups, running=(mean, var, 0.3, *counts))
    torch.testing.assert_close([mean, var], expected)
    assert [count.item() for count in counts] == [0, 1]
    for bad in (math.inf, math.nan, 3e38):
        spoiled = x.clone()
        spoiled[1, 2] = torch.tensor([bad, -bad, 1, 2, 3, 4, 5])
        fused.mix_norm(spoiled, groups, running=(mean, var, 0.3, *counts))
    torch.testing.assert_close([mean, var], expected)
    assert [count.item() for count in counts] == [3, 1]
    fused.mix_norm(spoiled, groups, running=(mean, var, 0.3, None, counts[1]))
    assert counts[1] == 2
    assert not var[2].isfinite()


@pytest.mark.parametrize(
    ("way", "layout", "value", "groups"),
    pairwise(WAYS, ["contiguous", "channels_last"], [3.3, 2e36], [[1], [2], [0], [4, 1, 0]]),
    ids=str,
    indirect=["way"],
)
def test_equal_values_come_out_as_the_bias_and_have_gradients(way, layout, value, groups):
    x, g, weight, bias, *_ = problem((2, 4, 5, 7), torch.float32, layout)
    x = torch.full_like(x, value)
    y, moments = fused.mix_norm(x, groups, weight[0], bias[0])
    assert torch.equal(y, bias[0][:, None, None].expand_as(x))
    found = fused.mix_norm_backward(g, x, moments, groups, weight[0], bias[0], activation="silu")
    assert all(t.isfinite().all() for t in found if t is not None)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_the_same_bits_every_time(way):
    x, g, weight, bias, *_ = problem((2, 4, 3, 7), torch.float32, "channels_last")
    results = []
    for _ in range(2):
        y, moments = fused.mix_norm(x, [4, 1, 0], weight[0], bias[0])
        results.append([y, moments, *fused.mix_norm_backward(g, x, moments, [4, 1, 0], weight[0], bias[0])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", samples(torch.float32, "contiguous"))
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_opcheck(name):
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    operator = getattr(torch.ops.normwise, name.split()[0]).default
    torch.library.opcheck(operator, samples(torch.bfloat16, "channels_last")[name], test_utils=tests)


LAYERS = {
    "batch": lambda: nn.BatchNorm2d(4, activation="silu"),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "group": lambda: nn.GroupNorm(2, 4, activation="leaky_relu"),
    "layer": lambda: nn.GroupNorm(1, 4),
    "switchable": lambda: nn.SwitchableNorm2d(4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_second_gradients_of_layers(name):
    layer, x = LAYERS[name]().double(), torch.randn(2, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, (x,), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trains", [True, False])
def test_layers_are_what_plain_operators_make_of_them(name, trains, monkeypatch):
    layer = LAYERS[name]().train(trains)
    twin = LAYERS[name]().double().train(trains)
    with torch.no_grad():
        for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
            other.copy_(mine.copy_(torch.rand_like(mine)))
    x, g = (torch.randn(3, 4, 5, 6) for _ in range(2))
    leaf, double = x.clone().requires_grad_(), x.double().requires_grad_()
    y = layer(leaf)
    y.backward(g)
    monkeypatch.setattr("normwise.core.route.backend", lambda x: reference)
    monkeypatch.setattr("normwise.core.route.native.CALLS", {})
    expected = twin(double)
    expected.backward(g.double())
    close(y.detach(), expected.detach(), torch.float32)
    close(leaf.grad, double.grad, torch.float32, 2)
    for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
        close(mine.grad, other.grad, torch.float32, 20)
    for mine, other in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other.to(mine.dtype))

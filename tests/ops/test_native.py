"""The native kernels against float64 formulas, on one problem set of shapes, types, layouts and activations."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "")

SHAPES = [
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (4, 6),
    (2, 4, 9),
    (2, 3, 4, 5, 6),
    (0, 3, 4, 4),
    (3, 2, 0),
    (2, 300, 3),
    (3, 5, 67, 67),
]
TOLERANCE = {
    torch.float32: 3e-6,
    torch.float64: 1e-13,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}  # relative to the result's size
ACTIVATIONS = [None, "relu", "leaky_relu", "silu"]
SLOPE = 0.2


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def permuted(x: Tensor) -> Tensor:
    """Cells in one piece, their spatial axes the other way round."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if x.ndim > 3 else x.contiguous()


LAYOUTS = {"contiguous": Tensor.contiguous, "channels_last": channels_last, "permuted": permuted, "strided": strided}


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, mean: float = 0.5, std: float = 2.0
) -> list[Tensor]:
    """x and g of the given kind, then center, scale, shift, gmean, gvar of (N, C)."""
    torch.manual_seed(sum(shape))
    full = [LAYOUTS[layout]((mean + std * torch.randn(shape, dtype=torch.float64)).to(dtype)) for _ in range(2)]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return full + [torch.randn(shape[:2], dtype=acc) for _ in range(5)]


def wide(t: Tensor, x: Tensor) -> Tensor:
    return t.double().reshape(t.shape + (1,) * (x.ndim - 2))


def spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def elements(x: Tensor) -> int:
    return max(1, x[0, 0].numel()) if x.numel() else 1


def oracle_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double().flatten(2) if x.ndim > 2 else x.double()[..., None]
    count = max(1, x.shape[2])
    mean = x.sum(2) / count
    return mean, (x - mean[..., None]).square().sum(2) / count


def activate(z: Tensor, activation: str | None) -> Tensor:
    return {None: lambda z: z, "relu": F.relu, "leaky_relu": lambda z: F.leaky_relu(z, SLOPE), "silu": F.silu}[
        activation
    ](z)


def oracle_apply(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None) -> Tensor:
    return activate((x.double() - wide(center, x)) * wide(scale, x) + wide(shift, x), activation)


def masked_gradient(
    g: Tensor, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None
) -> Tensor:
    z = ((x.double() - wide(center, x)) * wide(scale, x) + wide(shift, x)).requires_grad_()
    return torch.autograd.grad(activate(z, activation), z, g.double())[0]


def oracle_group(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, activation: str | None) -> Tensor:
    cells = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(cells, 2, correction=0, keepdim=True)
    y = ((cells - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    if weight is not None:
        y = y * wide(weight.expand(x.shape[0], -1), x) + wide(bias.expand(x.shape[0], -1), x)
    return activate(y, activation)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, slack: float = 1.0) -> None:
    assert actual.shape == expected.shape
    if actual.numel():
        assert not actual.isnan().any()
        size = max(1.0, expected.abs().max().item())
        assert (actual.double() - expected).abs().max().item() <= TOLERANCE[dtype] * size * slack


def same_format(y: Tensor, x: Tensor, layout: str) -> None:
    assert y.dtype == x.dtype
    if layout == "strided":
        assert y.is_contiguous()
    elif x.numel():
        assert y.stride() == x.stride()


every_problem = [
    pytest.mark.parametrize("shape", SHAPES, ids=str),
    pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:]),
    pytest.mark.parametrize("layout", LAYOUTS),
]


def on_every_problem(test):
    for mark in every_problem:
        test = mark(test)
    return test


@on_every_problem
def test_moments(shape, dtype, layout):
    x = problem(shape, dtype, layout)[0]
    mean, var = native.moments(x)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    for actual, expected in zip((mean, var), oracle_moments(x), strict=True):
        assert actual.dtype == accumulated
        close(actual, expected, accumulated)


@on_every_problem
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_apply(shape, dtype, layout, activation):
    x, _, center, scale, shift, *_ = problem(shape, dtype, layout)
    y = native.apply(x, center, scale, shift, activation, SLOPE)
    close(y, oracle_apply(x, center, scale, shift, activation), dtype)
    same_format(y, x, layout)


@on_every_problem
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(shape, dtype, layout, activation):
    x, g, center, scale, shift, gmean, gvar = problem(shape, dtype, layout)
    mean = oracle_moments(x)[0].to(center.dtype)
    acc = center.dtype
    masked = masked_gradient(g, x, center, scale, shift, activation)
    deviation = x.double() - wide(mean, x)
    s1, s2 = native.grad_sums(g, x, mean, center, scale, shift, activation, SLOPE)
    sums = (
        (masked, masked * deviation) if x.ndim == 2 else (masked.sum(spatial(x)), (masked * deviation).sum(spatial(x)))
    )
    count = elements(x)
    close(s1 / count, sums[0] / count, acc)
    close(s2 / count, sums[1] / count, acc)
    dx = native.grad_input(g, x, mean, center, scale, shift, gmean, gvar, activation, SLOPE)
    expected = wide(scale, x) * masked + wide(gvar, x) * 2 / count * deviation + wide(gmean, x) / count
    close(dx, expected, dtype)
    same_format(dx, x, layout)


@on_every_problem
@pytest.mark.parametrize("pooling", ["instance", "layer", "group"])
@pytest.mark.parametrize("affine", ["none", "channel", "cell"])
def test_sample_norm(shape, dtype, layout, pooling, affine):
    x, g, _, weight, bias, *_ = problem(shape, dtype, layout)
    groups = {"instance": shape[1], "layer": 1, "group": next(d for d in (3, 2, 1) if shape[1] % d == 0)}[pooling]
    if affine == "channel":
        weight, bias = torch.randn(shape[1], dtype=weight.dtype), torch.randn(shape[1], dtype=weight.dtype)
    if affine == "none":
        weight = bias = None
    if x.numel() == 0 or x.numel() == shape[0] * groups:  # nothing to normalize: the deviation is exactly 0
        y = native.sample_norm(x, groups, weight, bias)[0]
        expected = torch.zeros_like(x) if bias is None else wide(bias.expand(shape[:2]), x).expand(shape)
        torch.testing.assert_close(y, expected.to(x.dtype), rtol=0, atol=0)
        return
    activation = "relu" if affine == "channel" else None
    leaf = x.double().requires_grad_()
    parameters = [] if weight is None else [weight.double().requires_grad_(), bias.double().requires_grad_()]
    expected = oracle_group(leaf, groups, *(parameters or (None, None)), activation)
    y, mean, var = native.sample_norm(x, groups, weight, bias, activation=activation)
    close(y, expected.detach(), dtype)
    same_format(y, x, layout)
    gradients = torch.autograd.grad(expected, [leaf, *parameters], g.double())
    actual = native.sample_norm_backward(g, x, mean, var, groups, weight, bias, activation=activation)
    close(actual[0], gradients[0], dtype, slack=4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=False):
        close(ours, theirs, mean.dtype, slack=20)


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


@on_every_problem
@pytest.mark.parametrize("members", [("batch",), ("instance", "layer", "batch"), ("batch", "group")], ids=str)
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
    y, mean, var = native.mix_norm(x, groups, *parameters, **options)
    close(y, expected.detach(), dtype, slack=2)
    same_format(y, x, layout)
    gradients = torch.autograd.grad(expected, leaves, g.double())
    actual = native.mix_norm_backward(g, x, mean, var, groups, *parameters, **options)
    close(actual[0], gradients[0], dtype, slack=4)
    for ours, theirs in zip(actual[1:], gradients[1:], strict=True):
        close(ours, theirs, acc, slack=200)  # sums over all of x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mix_norm_moves_running_averages_and_counts_what_is_not_finite(dtype):
    x = torch.randn(3, 4, 5, dtype=dtype)
    mean, var, skipped = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype), torch.zeros((), dtype=torch.int64)
    native.mix_norm(x, [0], running=(mean, var, skipped, 0.1))
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2)))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2)))
    before = mean.clone(), var.clone()
    x[1, 2, 3] = float("inf")
    native.mix_norm(x, [0], running=(mean, var, skipped, 0.1))
    assert skipped == 1
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    native.mix_norm(x, [0], running=(mean, var, None, 0.1))
    assert not var[2].isfinite()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mix_norm_with_a_population(layout):
    x, g, center, *_ = problem((3, 4, 5, 5), torch.float32, layout)
    population, weight = (center[0], center[1].square() + 0.5), center[2]
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = F.batch_norm(leaves[0], *population, leaves[1])
    y, mean, var = native.mix_norm(x, [0], weight, population=population)
    close(y, expected.detach().double(), x.dtype)
    actual = native.mix_norm_backward(g, x, mean, var, [0], weight, population=population)
    for ours, theirs in zip(actual, torch.autograd.grad(expected, leaves, g), strict=False):
        close(ours, theirs.double(), x.dtype, slack=20)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parameters_broadcast_and_gradients_may_lie_otherwise(layout):
    x, g, center, *_ = problem((3, 4, 5, 5), torch.float32, layout)
    other = {"contiguous": "channels_last", "channels_last": "contiguous"}[layout]
    for scale, shift in [
        (torch.randn(1, 4), torch.randn(3, 1)),
        (torch.randn(4), torch.randn(1, 1)),
        (torch.randn(4, 3).t(), center[:, :1]),
    ]:
        expanded = [t.expand(3, 4).contiguous() for t in (scale, shift)]
        assert torch.equal(native.apply(x, center, scale, shift), native.apply(x, center, *expanded))
        expected = native.grad_input(g, x, center, center, *expanded, center, center)
        actual = native.grad_input(LAYOUTS[other](g), x, center, center, scale, shift, center, center)
        assert torch.equal(actual, expected)
        assert actual.stride() == x.stride()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_input_gives_non_finite_moments_in_its_cell_only(dtype, layout, bad):
    for position in (0, 20, 48):
        x = problem((2, 5, 7, 7), dtype, layout)[0].clone()
        x[1, 3, position // 7, position % 7] = bad
        mean, var = native.moments(x)
        assert not mean[1, 3].isfinite()
        assert not var[1, 3].isfinite()
        assert (~mean.isfinite()).sum() == 1
        one = torch.ones_like(mean)
        assert not native.apply(x, 0 * one, one, one)[1, 3, position // 7, position % 7].isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_half_value_survives(dtype, layout):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = LAYOUTS[layout](bits.view(dtype).reshape(4, 16, 32, 32))
    y = native.apply(x, torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1))
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], x[~x.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_are_rounded_as_torch_rounds(dtype, layout):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(4, 16, 32, 33).to(dtype))
    for scale in (1.1, 1e-7, 1e5, 3e38):
        y = native.apply(x, torch.zeros(1, 1), torch.full((1, 1), scale), torch.zeros(1, 1))
        assert torch.equal(y, (x.float() * scale).to(dtype))


@pytest.mark.parametrize("value", [1e4, 3.3, -7e-5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_constant_input_has_no_variance(value, layout):
    mean, var = native.moments(LAYOUTS[layout](torch.full((2, 3, 50, 61), value)))
    assert torch.equal(mean, torch.full((2, 3), value))
    assert (var == 0).all()


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moments_are_as_accurate_as_their_type(mean, std, layout, dtype):
    x = problem((4, 8, 56, 57), dtype, layout, mean, std)[0]
    ours = native.moments(x)
    expected = oracle_moments(x)
    assert ((ours[0] - expected[0]).abs() <= 1.2e-7 * expected[0].abs() + 1e-7 * expected[1].sqrt()).all()
    assert ((ours[1] - expected[1]).abs() <= 1e-6 * expected[1]).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_outlier_or_a_border_does_not_spoil_the_variance(layout):
    x = 100 + 0.01 * torch.randn(2, 8, 40, 40)
    x[..., 0, :] = x[..., -1, :] = x[..., :, 0] = x[..., :, -1] = 0
    x[:, :, 20, 20] = 1e4
    x = LAYOUTS[layout](x)
    var = native.moments(x)[1]
    torch.testing.assert_close(var.double(), oracle_moments(x)[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("std", [1.0, 1e-3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_sample_norm_errs_no_more_than_torch(mean, std, layout, groups):
    x = problem((4, 16, 28, 28), torch.float32, layout, mean, std)[0]
    expected = oracle_group(x.double(), groups, None, None, None)
    ours = (native.sample_norm(x, groups)[0] - expected).abs().max().item()
    theirs = (F.group_norm(x, groups) - expected).abs().max().item()
    assert ours <= max(theirs, 1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_are_the_same_bits_for_every_run_and_number_of_threads(layout):
    x, g, center, scale, shift, gmean, gvar = problem((2, 96, 41, 43), torch.float32, layout)

    def everything() -> list[Tensor]:
        y, mean, var = native.sample_norm(x, 1, scale[0], shift[0])
        return [
            *native.moments(x),
            *native.grad_sums(g, x, center, center, scale, shift),
            native.grad_input(g, x, center, center, scale, shift, gmean, gvar),
            y,
            *native.sample_norm_backward(g, x, mean, var, 1, scale[0], shift[0]),
            *native.mix_norm(x, [96, 4, 1, 0], scale[0], shift[0]),
            *native.mix_norm_backward(g, x, *native.moments(x), [96, 4, 1, 0], scale[0], shift[0]),
        ]

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 2, 4):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets_agree(isa):
    """Run a part of this file on the kernels for lesser processors."""
    if native.instruction_set() in ("baseline", isa):
        pytest.skip(f"this processor's best is {native.instruction_set()}: there is no lesser {isa} to ask for")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "(test_moments or test_gradients or test_apply or rounded or survives) and not lesser"]
    done = subprocess.run(command, env={**os.environ, "NORMWISE_ISA": isa}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def samples(dtype: torch.dtype, layout: str) -> dict[str, tuple]:
    x, g, center, scale, shift, gmean, gvar = problem((3, 4, 5, 6), dtype, layout)
    _, mean, var = native.sample_norm(x, 2)
    logits, running = center[0, :3], [torch.zeros(4), torch.ones(4), torch.zeros((), dtype=torch.int64)]
    return {
        "moments": (x,),
        "apply": (x, center, scale, shift, 1, 0.1),
        "grad_sums": (g, x, center, center, scale, shift, 2, 0.1),
        "grad_input": (g, x, center, center, scale, shift, gmean, gvar, 0, 0.1),
        "sample_norm": (x, 2, scale[0], None, 1e-5, 3, 0.0),
        "sample_norm_backward": (g, x, mean, var, 2, scale, None, 1e-5, 3, 0.0),
        "mix_norm": (x, scale[0], None, logits, logits, True, [4, 1, 0], 1e-5, None, None, *running, 0.1, 1, 0.0),
        "mix_norm_backward": (
            *(g, x, *native.moments(x), scale[0], None, logits, logits, True, [4, 1, 0], 1e-5, None, None, 1, 0.0),
        ),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", samples(torch.float32, "contiguous") if native.available() else [])
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_opcheck(name, layout):
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(getattr(torch.ops.normwise, name).default, samples(dtype, layout)[name])


def test_wrong_arguments_are_refused():
    x, cell = torch.zeros(2, 4, 3), torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match="one value per cell"):
        native.apply(x, cell, cell, torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="cannot be divided into 3 groups"):
        native.sample_norm(x, 3)
    with pytest.raises(RuntimeError, match="differ in shape"):
        native.grad_sums(x[..., :2], x, cell, cell, cell, cell)
    with pytest.raises(RuntimeError, match="expected float32"):
        native.moments(x.int())

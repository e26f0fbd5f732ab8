"""The native kernels against float64 formulas, on one problem set of shapes, types, layouts and activations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
    on_every_problem,
    oracle_apply,
    oracle_moments,
    problem,
    same_format,
    spatial,
    wide,
)
from torch import Tensor

import fused
from normwise.kernels.cpu import native

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "")


@on_every_problem
def test_moments(shape, dtype, layout):
    x = problem(shape, dtype, layout)[0]
    mean, var = native.moments(x)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    for actual, expected in zip((mean, var), oracle_moments(x), strict=True):
        assert actual.dtype == accumulated
        close(actual, expected, accumulated)


@on_every_problem(activation=ACTIVATIONS)
def test_apply(shape, dtype, layout, activation):
    x, _, center, scale, shift, *_ = problem(shape, dtype, layout)
    y = native.apply(x, center, scale, shift, activation, SLOPE)
    close(y, oracle_apply(x, center, scale, shift, activation), dtype)
    same_format(y, x, layout)


@on_every_problem(activation=ACTIVATIONS)
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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_are_the_same_bits_for_every_run_and_number_of_threads(layout):
    x, g, center, scale, shift, gmean, gvar = problem((2, 96, 41, 43), torch.float32, layout)
    vectors, of_vectors, weight, bias = (torch.randn(shape) for shape in ((70, 2048), (70, 2048), (2048,), (2048,)))

    def everything() -> list[Tensor]:
        normalized = fused.layer_norm(vectors, 1, weight, bias), fused.sample_norm(vectors, 4, weight, bias)
        y, moments = fused.sample_norm(x, 1, scale[0], shift[0])
        batch = fused.mix_norm(x, [0], scale[0], shift[0])
        mixed = fused.mix_norm(x, [96, 4, 1, 0], scale[0], shift[0])
        return [
            *native.moments(x),
            *native.grad_sums(g, x, center, center, scale, shift),
            native.grad_input(g, x, center, center, scale, shift, gmean, gvar),
            y,
            *fused.sample_norm_backward(g, x, moments, 1, scale[0], shift[0]),
            *batch,
            *fused.mix_norm_backward(g, x, batch[1], [0], scale[0], shift[0])[:3],
            *mixed,
            *fused.mix_norm_backward(g, x, mixed[1], [96, 4, 1, 0], scale[0], shift[0]),
            *normalized[0],
            *fused.layer_norm_backward(of_vectors, vectors, normalized[0][1], 1, weight, bias),
            *normalized[1],
            *fused.sample_norm_backward(of_vectors, vectors, normalized[1][1], 4, weight, bias),
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


def passes_under(choice: dict[str, str]) -> None:
    """Run a part of this file and of the next with other kernels."""
    files = [__file__, str(Path(__file__).with_name("test_native_fused.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    command += [
        "-k",
        "(test_moments or test_gradients or test_apply or test_layer_norm or rounded or survives or same_bits) "
        "and not lesser",
    ]
    done = subprocess.run(command, env={**os.environ, **choice}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets_agree(isa):
    if native.instruction_set() in ("baseline", isa):
        pytest.skip(f"this processor's best is {native.instruction_set()}: there is no lesser {isa} to ask for")
    passes_under({"NORMWISE_ISA": isa})


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_what_no_cache_holds_is_written_past_it(isa):
    """As everything would be with a cache of no size."""
    passes_under({"NORMWISE_ISA": isa, "NORMWISE_CACHE_BYTES": "0"})


def samples(dtype: torch.dtype, layout: str) -> dict[str, tuple]:
    x, g, center, scale, shift, gmean, gvar = problem((3, 4, 5, 6), dtype, layout)
    moments = {groups: fused.mix_norm(x, [groups])[1] for groups in (0, 2, 4)}
    logits, running = center[0, :3], [torch.zeros(4), torch.ones(4), *torch.zeros(2, dtype=torch.int64)]
    return {
        "moments": (x,),
        "apply": (x, center, scale, shift, 1, 0.1),
        "grad_sums": (g, x, center, center, scale, shift, 2, 0.1),
        "grad_input": (g, x, center, center, scale, shift, gmean, gvar, 0, 0.1),
        "sample_norm": (x, 2, scale[0], None, 1e-5, 3, 0.0),
        "sample_norm_backward": (g, x, moments[2], 2, scale, None, 1e-5, 3, 0.0),
        "batch_norm": (x, scale[0], shift[0], 1e-5, True, *running, 0.1, 2, 0.1),
        "batch_norm_backward": (g, x, moments[0], scale[0], None, 1e-5, True, True, 2, 0.1),
        "batch_norm (evaluation)": (x, scale[0], None, 1e-5, False, *running[:2], None, None, 0.0, 1, 0.0),
        "batch_norm_backward (evaluation)": (g, x, moments[0], scale[0], None, 1e-5, False, True, 0, 0.0),
        "mix_norm": (x, scale[0], None, logits, logits, True, [4, 1, 0], 1e-5, None, None, *running, 0.1, 1, 0.0),
        "mix_norm_backward": (
            *(g, x, moments[4], scale[0], None, logits, logits, True, [4, 1, 0], 1e-5, None, None, 1, 0.0),
        ),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", samples(torch.float32, "contiguous") if native.available() else [])
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_opcheck(name, layout):
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(operator(name), samples(dtype, layout)[name])


@pytest.mark.parametrize("name", ["sample_norm", "batch_norm", "batch_norm (evaluation)", "mix_norm"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_opcheck_of_layers_cast_to_16_bits(name, backward):
    forward, *use = name.split()
    name = " ".join([f"{forward}_backward" if backward else forward, *use])
    args = samples(torch.bfloat16, "contiguous")[name]
    cast = [a.bfloat16() if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
    torch.library.opcheck(operator(name), tuple(cast))


def operator(name: str):
    return getattr(torch.ops.normwise, name.split()[0]).default


@pytest.mark.skipif(not native.differentiates(), reason=native.why_not_differentiable() or "")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["sample_norm", "batch_norm", "batch_norm (evaluation)", "mix_norm"])
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_opcheck_with_gradients(name, layout):
    args = samples(torch.float32, layout)[name]
    learned = [isinstance(a, Tensor) and a.is_floating_point() and i < 5 for i, a in enumerate(args)]
    args = [a.clone().requires_grad_() if learns else a for a, learns in zip(args, learned, strict=True)]
    torch.library.opcheck(operator(name), tuple(args))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_opcheck_of_layer_norm(axes, transposed):
    x = torch.randn(3, 4, 5) if not transposed else torch.randn(3, 5, 4).mT
    weight, bias = torch.randn(x.shape[-axes:]), torch.randn(x.shape[-axes:])
    learned = [t.requires_grad_(native.differentiates()) for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.normwise.layer_norm.default, (learned[0], axes, *learned[1:], 1e-5, True, 3, 0.01))
    moments = fused.layer_norm(x.detach(), axes)[1]
    for given in ((weight.detach(), bias.detach()), (None, None)):
        args = (torch.randn(3, 4, 5), x.detach(), moments, axes, *given, 1e-5, False, 1, 0.01)
        torch.library.opcheck(torch.ops.normwise.layer_norm_backward.default, args)


def test_wrong_arguments_are_refused():
    x, cell = torch.zeros(2, 4, 3), torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match="one value per cell"):
        native.apply(x, cell, cell, torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="cannot be divided into 3 groups"):
        fused.sample_norm(x, 3)
    for running in ((cell[0], cell[0, :3]), (cell[0].double(), cell[0])):
        with pytest.raises(RuntimeError, match=r"one a channel|of the type that the input is summed in"):
            fused.mix_norm(x, [0], running=(*running, 0.1, None, None))
    with pytest.raises(RuntimeError, match="4 values, one a channel"):
        fused.mix_norm(x, [0], population=(cell[0], cell[0, :3]))
    with pytest.raises(RuntimeError, match="4 values, one a channel"):
        fused.sample_norm(x, 2, weight=cell[:, :1])
    with pytest.raises(RuntimeError, match="does not go with the input's"):
        fused.mix_norm(x, [0], bias=cell[0].double())
    with pytest.raises(RuntimeError, match="of the shape of the last 2 axes"):
        fused.layer_norm(x, 2, weight=cell)
    with pytest.raises(RuntimeError, match="the last 4 of 3 axes"):
        fused.layer_norm(x, 4)
    with pytest.raises(RuntimeError, match="differ in shape"):
        native.grad_sums(x[..., :2], x, cell, cell, cell, cell)
    with pytest.raises(RuntimeError, match="expected float32"):
        native.moments(x.int())

"""Layers cast to 16 bits, as people do: `model.half()`, `model.bfloat16()`."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import normwise.nn as ours
from normwise.core.moments import Moments, update_running
from normwise.errors import NormwiseWarning

C = 512  # so many variances that their sum passes what float16 holds
TRACKING = {
    "batch": lambda: ours.BatchNorm2d(C),
    "cumulative": lambda: ours.BatchNorm2d(C, momentum=None),
    "instance": lambda: ours.InstanceNorm2d(C, affine=True, track_running_stats=True),
    "switchable": lambda: ours.SwitchableNorm2d(C),
    "renorm": lambda: ours.BatchRenorm(C),
    "ghost": lambda: ours.GhostBatchNorm(C, ghost_size=2),
}
LAYER = pytest.mark.parametrize("kind", TRACKING)
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def batch(dtype: torch.dtype, std: float = 20.0) -> torch.Tensor:
    torch.manual_seed(0)
    return (3 + std * torch.randn(4, C, 5, 5)).to(dtype)


def without_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normwise.kernels.cpu.native.CALLS", {})
    monkeypatch.setattr("normwise.kernels.cpu.native._problem", "switched off")


def averages_follow(layer: nn.Module, call: nn.Module, dtype: torch.dtype) -> None:
    reference = copy.deepcopy(layer).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormwiseWarning)
        for _ in range(2):
            call(batch(dtype))
            reference(batch(dtype).float())
    assert layer.num_batches_skipped == 0
    assert layer.num_batches_tracked == reference.num_batches_tracked
    for name in ("running_mean", "running_var"):
        average, expected = getattr(layer, name), getattr(reference, name)
        assert average.dtype == dtype
        # Two roundings to the type, of which the first one's size shrinks with the second step.
        torch.testing.assert_close(average.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@LAYER
@TYPES
def test_running_averages_move(kind: str, dtype: torch.dtype) -> None:
    layer = TRACKING[kind]().to(dtype)
    averages_follow(layer, layer, dtype)


@LAYER
@TYPES
def test_running_averages_move_in_plain_torch(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    without_native_kernels(monkeypatch)
    layer = TRACKING[kind]().to(dtype)
    averages_follow(layer, layer, dtype)


@LAYER
@TYPES
def test_running_averages_move_where_nothing_is_read(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_native_kernels(monkeypatch)
    monkeypatch.setattr("normwise.core.moments.readable", lambda t: False)
    layer = TRACKING[kind]().to(dtype)
    averages_follow(layer, layer, dtype)


@LAYER
def test_running_averages_move_compiled(kind: str) -> None:
    layer = TRACKING[kind]().half()
    averages_follow(layer, torch.compile(layer, backend="eager"), torch.float16)


@pytest.mark.parametrize("native", [True, False])
def test_an_average_beyond_its_type_is_left_as_it_is(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        without_native_kernels(monkeypatch)
    layer = ours.BatchNorm2d(C, momentum=1.0).half()
    with pytest.warns(NormwiseWarning, match="met a batch"):
        y = layer(batch(torch.float16, std=1000.0))  # a variance of 10^6
    assert y.isfinite().all()
    assert layer.num_batches_skipped == 1
    assert torch.equal(layer.running_var, torch.ones_like(layer.running_var))
    assert torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))


@pytest.mark.parametrize("native", [True, False])
def test_many_large_variances_are_finite_each(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        without_native_kernels(monkeypatch)
    layer = ours.BatchNorm2d(C)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormwiseWarning)
        layer(batch(torch.float32, std=1e18))  # their sum is beyond float32
    assert layer.num_batches_skipped == 0
    assert (layer.running_var > 1e34).all()


def test_the_move_is_computed_in_float32() -> None:
    mean, var = torch.full((1,), 256.0).bfloat16(), torch.full((1,), 256.0).bfloat16()
    wide_mean, wide_var = mean.float(), var.float()
    moments = Moments(torch.full((1, 1), 261.0), torch.full((1, 1), 261.0), 1000)
    for averages in ((mean, var), (wide_mean, wide_var)):
        update_running(*averages, moments, momentum=0.3)
    assert torch.equal(mean, wide_mean.bfloat16())
    assert torch.equal(var, wide_var.bfloat16())


KINDS = {
    "BatchNorm2d": (8,),
    "InstanceNorm2d": (8, 1e-5, 0.1, True, True),
    "GroupNorm": (2, 8),
    "LayerNorm": (6,),
    "RMSNorm": (6,),
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def outcome(layer: nn.Module, dtype: torch.dtype) -> list[torch.dtype] | type[BaseException]:
    x = torch.ones(4, 8, 6, 6, dtype=dtype, requires_grad=True)
    try:
        y = layer(x)
    except RuntimeError as error:
        return type(error)
    y.float().sum().backward()
    return [y.dtype, *(p.grad.dtype for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's own, of RMS norm
def test_mixed_types_are_taken_or_refused_as_by_torch(kind: str, training: bool) -> None:
    for of_x in FLOATS:
        for of_layer in FLOATS:
            mine, theirs = (
                outcome(getattr(module, kind)(*KINDS[kind]).to(of_layer).train(training), of_x) for module in (ours, nn)
            )
            assert mine == theirs, (of_x, of_layer)

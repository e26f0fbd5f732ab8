"""Values whose squares, or sums, are beyond the type that they are summed in: the answer is torch's or a finite one."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import normwise.nn as ours
from normwise import normalize
from normwise.methods import Switchable

SMALL, LARGE, FLAT = (3, 4, 5, 5), (3, 64, 41, 41), (30, 64)
# Ours, torch's where it has one, and the shape.
LAYERS = {
    "batch": (lambda: ours.BatchNorm2d(4), lambda: nn.BatchNorm2d(4), SMALL),
    "batch of several blocks": (lambda: ours.BatchNorm2d(64), lambda: nn.BatchNorm2d(64), LARGE),
    "batch without space": (lambda: ours.BatchNorm1d(64), lambda: nn.BatchNorm1d(64), FLAT),
    "instance": (lambda: ours.InstanceNorm2d(4, affine=True), lambda: nn.InstanceNorm2d(4, affine=True), SMALL),
    "group": (lambda: ours.GroupNorm(2, 4), lambda: nn.GroupNorm(2, 4), SMALL),
    "group of several blocks": (lambda: ours.GroupNorm(1, 64), lambda: nn.GroupNorm(1, 64), LARGE),
    "group without space": (lambda: ours.GroupNorm(4, 64), lambda: nn.GroupNorm(4, 64), FLAT),
    "layer": (lambda: ours.LayerNorm(64), lambda: nn.LayerNorm(64), FLAT),
    "rms": (lambda: ours.RMSNorm(64), lambda: nn.RMSNorm(64), FLAT),
    "switchable": (lambda: ours.SwitchableNorm2d(4), None, SMALL),
    "renorm": (lambda: ours.BatchRenorm(4), None, SMALL),
    "batch instance": (lambda: ours.BatchInstanceNorm(4), None, SMALL),
    "ghost": (lambda: ours.GhostBatchNorm(4, ghost_size=2), None, SMALL),
    "filter response": (lambda: ours.FilterResponseNorm(4), None, SMALL),
}
SIZES = {  # of the largest value
    torch.float32: (1e20, 1e30, 1e37, 3.4e38),
    torch.bfloat16: (1e30, 3.38e38),
    torch.float16: (65504.0,),
    torch.float64: (1e160,),  # at 1e308 means overflow, in torch as well
}
CASES = [pytest.param(dtype, size, id=f"{str(dtype)[6:]}-{size:g}") for dtype, sizes in SIZES.items() for size in sizes]
FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])


def values(shape: tuple[int, ...], dtype: torch.dtype, size: float) -> torch.Tensor:
    """Of both signs, the largest among them; so that differences overflow as well as sums and squares."""
    torch.manual_seed(0)
    x = (2 * torch.rand(shape, dtype=torch.float64) - 1) * size
    x.view(-1)[:3] = torch.tensor([size, size, -size], dtype=torch.float64)
    return x.to(dtype)


def step(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the batch is left out of the running averages
        y = layer(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)]


def no_worse(found: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Equal where torch's answer is finite; a finite answer is welcome where it is not."""
    for mine, other in zip(found, theirs, strict=True):
        known = other.isfinite()
        rtol = 4 * torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine[known], other[known], rtol=rtol, atol=400 * rtol)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("dtype", "size"), CASES)
@FORMATS
def test_no_worse_than_torch(kind: str, dtype: torch.dtype, size: float, layout: torch.memory_format) -> None:
    mine, theirs, shape = LAYERS[kind]
    if len(shape) != 4 and layout == torch.channels_last:
        return  # there is one layout
    x = values(shape, dtype, size)
    x = x.contiguous(memory_format=layout) if len(shape) == 4 else x
    layer = mine().to(dtype)
    found = step(layer, x)
    assert all(t.isfinite().all() for t in found), [t.isfinite().all().item() for t in found]
    assert all(t.isfinite().all() for t in layer.buffers())
    if theirs is not None:
        no_worse(found, step(theirs().to(dtype), x))


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "layer"])
@pytest.mark.parametrize(("dtype", "size"), CASES)
def test_plain_torch_has_no_nan(kind: str, dtype: torch.dtype, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass; layer norm is torch's there."""
    monkeypatch.setattr("normwise.kernels.cpu.native.CALLS", {})
    monkeypatch.setattr("normwise.kernels.cpu.native._problem", "switched off")
    mine, _, shape = LAYERS[kind]
    layer = mine().to(dtype)
    assert step(layer, values(shape, dtype, size))[0].isfinite().all()
    assert all(t.isfinite().all() for t in layer.buffers())


@pytest.mark.parametrize("kind", ["batch", "instance", "group", "switchable"])
@pytest.mark.parametrize("size", SIZES[torch.float32])
def test_transforms_have_no_nan(kind: str, size: float) -> None:
    mine, _, shape = LAYERS[kind]
    layer = mine()
    y = torch.func.vmap(layer)(values(shape, torch.float32, size)[None])
    assert y.isfinite().all()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "kind", ["batch", "instance", "group", "group of several blocks", "layer", "batch without space"]
)
def test_what_is_not_finite_stays_so(kind: str, bad: float) -> None:
    mine, theirs, shape = LAYERS[kind]
    assert theirs is not None
    x = values(shape, torch.float32, 1.0)
    x.view(-1)[7] = bad
    found, expected = step(mine(), x)[0], step(theirs(), x)[0]
    assert torch.equal(found.isnan(), expected.isnan())


def test_a_member_without_a_share_has_no_part_in_an_overflow() -> None:
    x = values(SMALL, torch.float32, 1.0)
    x[0] *= 1e25  # the instance statistics of the other samples are finite, the batch's are not
    shares = {"mean_weight": torch.tensor([1.0, 0.0]), "var_weight": torch.tensor([1.0, 0.0])}
    y = normalize(x, Switchable(("instance", "batch"), logits=False), **shares)
    torch.testing.assert_close(y[1:], nn.functional.instance_norm(x[1:]))
    assert y.isfinite().all()

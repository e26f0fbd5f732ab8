"""The ways to normalize, and how well each explains what a module gives for an input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from normwise.methods import RMS, Batch, Group, Instance, Layer

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "identity": lambda gate: gate,
}


class Way(NamedTuple):
    """One way to normalize: ``groups`` of channels along ``axis`` share a statistic over ``pool``."""

    pool: str
    axis: int
    groups: int
    centred: bool
    # Whether each of the last two axes' elements has a scale of its own (heads and channels).
    grid: bool = False

    def __call__(self, x: Tensor, eps: float = 0.0) -> Tensor:
        """Normalize."""
        parts = self.split(x)
        return self.join(parts * torch.rsqrt(parts.square().mean(self.dims(parts), keepdim=True) + eps), x)

    def split(self, x: Tensor) -> Tensor:
        """The input as (N, ..., groups, channels of a group), without its mean where that is taken off."""
        moved = x.movedim(self.axis, -1)
        parts = moved.unflatten(-1, (self.groups, -1))
        return parts - parts.mean(self.dims(parts), keepdim=True) if self.centred else parts

    def join(self, parts: Tensor, x: Tensor) -> Tensor:
        """The other way round."""
        return parts.flatten(-2).movedim(-1, self.axis)

    def dims(self, parts: Tensor) -> tuple[int, ...]:
        """The axes of what :meth:`split` gives that share a statistic."""
        if self.pool == "token":
            return (-1,)
        inner = range(1, parts.ndim - 2) if self.pool == "sample" else range(parts.ndim - 2)
        return (*inner, parts.ndim - 1)


class Fit(NamedTuple):
    """A way, and the scale and shift of each channel that explain the output best."""

    way: Way
    scale: Tensor
    shift: Tensor
    error: float


def gatings(x: Tensor, gate: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """What a second input may do: its name, what is normalized then, and what the result is multiplied by."""
    if gate is None:
        yield "", x, None
        return
    gate = gate.double()
    for name, function in GATES.items():
        yield f"times {name} of the second, after", x, function(gate)
        yield f"times {name} of the second, before", x * function(gate), None
    yield "the second added before", x + gate, None


def explain(way: Way, inner: Tensor, y: Tensor, outer: Tensor | None) -> Fit:
    """How well one way explains an output; ``outer`` is what the normalized input was multiplied by."""
    if outer is not None:
        y = torch.where(outer.abs() > 1e-3, y / outer, float("nan"))
    return Fit(way, *per_channel(way(inner), y, way))


def per_channel(z: Tensor, y: Tensor, way: Way) -> tuple[Tensor, Tensor, float]:
    """Scale and shift of each channel by least squares, and the largest error relative to the largest value."""
    z, y = ((t.flatten(-2) if way.grid else t).movedim(way.axis, 0).flatten(1) for t in (z, y))
    known = y.isfinite()
    y, weight = torch.where(known, y, 0.0), known.double()
    count = weight.sum(1, keepdim=True).clamp_min(1)
    mean_z, mean_y = ((t * weight).sum(1, keepdim=True) / count for t in (z, y))
    dz, dy = (z - mean_z) * weight, (y - mean_y) * weight
    scale = (dz * dy).sum(1, keepdim=True) / dz.square().sum(1, keepdim=True).clamp_min(1e-300)
    error = (dy - scale * dz).abs().max() / y.abs().max().clamp_min(1e-300)
    flat = bool(scale.abs().max() <= 1e-6)
    return scale[:, 0], (mean_y - scale * mean_z)[:, 0], math.inf if flat else float(error)


def broadcast(values: Tensor, y: Tensor, way: Way) -> Tensor:
    """A value a channel, as it goes with an output."""
    if way.axis == -1:
        return values.reshape(y.shape[-2:]) if way.grid else values
    return values.reshape(-1, *(1,) * (y.ndim - 2))


def named(way: Way, shape: tuple[int, ...]) -> tuple[str, str | None]:
    """The method's name, and why it is not the plain one."""
    channels = shape[way.axis]
    if way.pool == "token":
        each = f"it takes a statistic over each {channels // way.groups} of its {channels} channels"
        return Layer.name if way.centred else RMS.name, None if way.groups == 1 else each
    if not way.centred:
        return RMS.name, "it takes its statistics over several positions"
    if way.pool == "batch":
        return Batch.name, None
    return {1: Layer.name, channels: Instance.name}.get(way.groups, Group.name), None

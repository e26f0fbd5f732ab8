"""The four kernels in plain torch: the specification, and the path for every device without native ones.

A *cell* is one (n, c) of ``x`` with shape (N, C, ...); M is the number of its elements (1 without spatial axes).
Tensors per cell broadcast to (N, C) and hold the accumulation type: float32, or float64 for float64 input. Every
function is made of differentiable torch operators, so that autograd, ``torch.func`` and ``torch.compile`` pass through.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.errors import InputError

ACTIVATIONS = (None, "relu", "leaky_relu", "silu")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give the type in which statistics of ``dtype`` are held: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device has the type: MPS has not."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def widened(t: Tensor) -> Tensor:
    """A tensor in float64, on its device or, where that has no such type, on the CPU."""
    return (t if has_float64(t.device) else t.cpu()).double()


def moments(x: Tensor, mask: Tensor | None = None, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every cell; an ``exact`` mean is of float64, where the device has that."""
    values = x.to(accumulation_dtype(x.dtype))
    axes = tuple(range(2, x.ndim))
    wide = torch.float64 if exact and axes and has_float64(x.device) else values.dtype
    if mask is not None:
        return _masked_moments(values, mask, axes, wide)
    if not axes:
        return values, torch.zeros_like(values)
    if x.numel() == 0:
        return values.sum(axes), values.sum(axes)
    var, mean = torch.var_mean(values, axes, correction=0)
    return (mean if wide == mean.dtype else values.mean(axes, dtype=wide)), var


def _masked_moments(values: Tensor, mask: Tensor, axes: tuple[int, ...], wide: torch.dtype) -> tuple[Tensor, Tensor]:
    # torch.where, not a product: what stands in the padding may be NaN.
    mask = mask.expand_as(values)
    if not axes:
        return torch.where(mask, values, 0), torch.zeros_like(values)
    count = mask.sum(axes, keepdim=True).clamp_min(1)
    mean = torch.where(mask, values, 0).sum(axes, keepdim=True, dtype=wide) / count
    var = torch.where(mask, values - mean.to(values.dtype), 0).square().sum(axes, keepdim=True) / count
    return mean.squeeze(axes), var.squeeze(axes)


def apply(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None = None, slope: float = 0.01
) -> Tensor:
    """Normalize: ``act((x − center) · scale + shift)``."""
    return activate(_mapped(x, center, scale, shift), activation, slope).to(x.dtype)


def _mapped(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    dtype = accumulation_dtype(x.dtype)
    narrow = center.to(dtype)
    if center.dtype != dtype:
        # What an exact center loses in the type of the elements goes into the shift.
        scale, shift = scale.to(dtype), (shift - (center - narrow) * scale).to(dtype)
    narrow, scale, shift = (_over_cells(t, x) for t in (narrow, scale, shift))
    return (x.to(dtype) - narrow) * scale + shift


def activate(z: Tensor, activation: str | None, slope: float = 0.01) -> Tensor:
    """Apply the named activation."""
    match known_activation(activation):
        case "relu":
            return F.relu(z)
        case "leaky_relu":
            return F.leaky_relu(z, slope)
        case "silu":
            return F.silu(z)
    return z


def known_activation(activation: str | None) -> str | None:
    """Check an activation's name before it is needed."""
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown activation {activation!r}: expected one of {', '.join(map(repr, ACTIVATIONS))}")
    return activation


def _activation_slope(z: Tensor, activation: str | None, slope: float) -> Tensor | float:
    """The derivative of the activation at ``z``."""
    match activation:
        case "relu":
            return (z > 0).to(z.dtype)
        case "leaky_relu":
            return torch.where(z > 0, 1.0, slope)
        case "silu":
            s = torch.sigmoid(z)
            return s * (1 + z * (1 - s))
    return 1.0


def through_activation(
    g: Tensor, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None, slope: float
) -> Tensor:
    """The gradient in front of the activation, which is recomputed from ``x``."""
    g = g.to(accumulation_dtype(x.dtype))
    return g if activation is None else g * _activation_slope(_mapped(x, center, scale, shift), activation, slope)


def grad_sums(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """The two sums from which every gradient of the affine follows: S1 = Σ g and S2 = Σ g · (x − mean), per cell."""
    g = through_activation(g, x, center, scale, shift, activation, slope)
    narrow = mean.to(g.dtype)
    product = g * (x.to(g.dtype) - _over_cells(narrow, x))
    axes = tuple(range(2, x.ndim))
    s1, s2 = (g.sum(axes), product.sum(axes)) if axes else (g, product)
    return s1, s2 if mean.dtype == narrow.dtype else s2 - (mean - narrow) * s1


def grad_input(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor:
    """The gradient of the input: ``scale · g + (2 · grad_var / M) · (x − mean) + grad_mean / M``."""
    g = through_activation(g, x, center, scale, shift, activation, slope)
    # Where the variance overflowed its gradient is 0, and the deviation may have overflowed, too.
    mean = torch.where(grad_var == 0, 0, mean)
    elements = max(1, x[0, 0].numel()) if x.numel() else 1
    narrow, slope_var, offset = mean.to(g.dtype), 2 * grad_var / elements, grad_mean / elements
    if mean.dtype != narrow.dtype:
        offset = offset - slope_var * (mean - narrow)
    narrow, scale, slope_var, offset = (_over_cells(t.to(g.dtype), x) for t in (narrow, scale, slope_var, offset))
    return (scale * g + slope_var * (x.to(g.dtype) - narrow) + offset).to(x.dtype)


def _over_cells(t: Tensor, x: Tensor) -> Tensor:
    """A per-cell tensor, made broadcastable against ``x``."""
    return t.reshape(t.shape + (1,) * (x.ndim - 2))

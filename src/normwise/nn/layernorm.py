"""Normalization over the last axes, layer by layer with torch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normwise import kernels
from normwise.core.last_axes import layer_norm, rms_norm
from normwise.errors import InputError
from normwise.functional import normalize, real_elements
from normwise.methods import RMS, Layer
from normwise.nn._axis import ChannelAxis, checked_axis
from normwise.nn._eps import Eps, eps_of
from normwise.nn._state import affine_of, boundary, parameter_of

# The names in this module, which is what the forward passes look up; the functions branch on their input.
torch.fx.wrap("layer_norm")
torch.fx.wrap("rms_norm")
torch.fx.wrap("normalize")


class LayerNorm(ChannelAxis, torch.nn.LayerNorm):
    """Layer normalization over the last axes (Ba et al. 2016, arXiv 1607.06450), with an activation.

    Formula: y = weight · (x − μ) / √(σ² + eps) + bias, moments over ``normalized_shape``. ``LayerNorm(C, axis=1)``
    takes the channels of each position of (N, C, ...); for all positions of a map together use ``GroupNorm(1, C)``. A
    position's moments touch no other position; with ``mask`` or ``lengths`` padded ones also come out as 0 and get no
    gradient, whatever stands in them.

    Args:
        normalized_shape: the last axes' sizes, an int or a sequence.
        eps: added to the variance.
        elementwise_affine: whether ``weight`` and ``bias`` are learned.
        bias: whether ``bias`` is learned where ``elementwise_affine`` is.
        device: of the parameters.
        dtype: of the parameters.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        axis: with a single size, where the channels stand: -1, 1, or ``None`` to find them by the input's shape.

    Raises:
        InputError: an unknown activation or axis, a mask or lengths that do not fit, or with ``axis=None`` an input in
            which the channels may stand in either place.
        RuntimeError: the input's last axes differ from ``normalized_shape``.

    Example:
        >>> LayerNorm(6)(torch.randn(4, 6)).shape
        torch.Size([4, 6])
    """

    activation: str | None = None
    axis: int | None = -1
    eps = Eps()

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        axis: int | None = -1,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.activation = kernels.known_activation(activation)
        _stand(self, axis)

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` (N, ...) or ``lengths`` (N,) say which positions are real."""
        shape = self.normalized_shape
        weight, bias = affine_of(self) or (self.weight, self.bias)
        if self.axis != -1 and self._channel_axis(input, shape[0]) == 1:
            options: dict[str, Any] = {"weight": weight, "bias": bias, "mask": mask, "lengths": lengths}
            return normalize(input, _LAYER, eps=eps_of(self), activation=self.activation, **options)
        if mask is lengths is None:
            return layer_norm(input, shape, weight, bias, eps_of(self), self.activation)
        keep = _real_positions(input, len(shape), mask, lengths)
        return _kept(layer_norm(_kept(input, keep), shape, weight, bias, eps_of(self), self.activation), keep)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return super().extra_repr() + _told(self.axis)


class RMSNorm(ChannelAxis, torch.nn.RMSNorm):
    """Root-mean-square normalization over the last axes (Zhang & Sennrich 2019, arXiv 1910.07467).

    Formula: y = (offset + weight) · x / √(mean(x²) + eps), the mean over ``normalized_shape``. ``offset=1`` is the
    convention of Gemma and others, whose weights are stored as differences from 1 and start at 0; the sum is taken in
    float32 at least, as in bfloat16 a small weight would be rounded away.

    Args:
        normalized_shape: the last axes' sizes, an int or a sequence.
        eps: added to the mean square; ``None`` is the machine epsilon of float32, or of float64 for such input.
        elementwise_affine: whether ``weight`` is learned.
        device: of the parameters.
        dtype: of the parameters.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        offset: what is added to the weight, which starts at 1 − offset.
        bias: whether a bias is added, as no RMS norm of torch's has.
        axis: as for :class:`LayerNorm`.

    Raises:
        InputError: as for :class:`LayerNorm`.
        RuntimeError: the input's last axes differ from ``normalized_shape``.

    Example:
        >>> RMSNorm(2, eps=0.0)(torch.tensor([[3.0, 4.0]]).div(12.5 ** 0.5))
        tensor([[0.8485, 1.1314]], grad_fn=<...>)
    """

    activation: str | None = None
    axis: int | None = -1
    offset: float = 0.0
    eps = Eps()

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        offset: float = 0.0,
        bias: bool = False,
        axis: int | None = -1,
    ) -> None:
        self.offset = offset
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        if bias and elementwise_affine:
            self.bias = torch.nn.Parameter(torch.zeros(self.normalized_shape, device=device, dtype=dtype))
        self.activation = kernels.known_activation(activation)
        _stand(self, axis)

    def reset_parameters(self) -> None:
        """Set the weight to what multiplies by 1, and a bias to 0."""
        if self.elementwise_affine:
            torch.nn.init.constant_(self.weight, 1 - self.offset)
        if "bias" in self._parameters:
            torch.nn.init.zeros_(self.bias)

    @boundary
    def forward(self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``x``; ``mask`` and ``lengths`` as for :class:`LayerNorm`."""
        shape, weight = self.normalized_shape, parameter_of(self, "weight")
        bias = self.bias if "bias" in self._parameters else None
        if self.offset and weight is not None:
            weight = self.offset + weight.to(kernels.accumulation_dtype(weight.dtype))
        if self.axis != -1 and self._channel_axis(x, shape[0]) == 1:
            options: dict[str, Any] = {"weight": weight, "bias": bias, "mask": mask, "lengths": lengths}
            return normalize(x, _RMS, eps=_eps_for(self, x), activation=self.activation, **options)
        if mask is lengths is None:
            return rms_norm(x, shape, weight, eps_of(self), self.activation, bias)
        keep = _real_positions(x, len(shape), mask, lengths)
        return _kept(rms_norm(_kept(x, keep), shape, weight, eps_of(self), self.activation, bias), keep)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return super().extra_repr() + (f", offset={self.offset:g}" if self.offset else "") + _told(self.axis)


_LAYER, _RMS = Layer(per_token=True), RMS()


def _told(axis: int | None) -> str:
    return "" if axis == -1 else f", axis={axis}"


def _stand(layer: LayerNorm | RMSNorm, axis: int | None) -> None:
    """Say where a layer's channels stand."""
    if checked_axis(axis) != -1:
        if len(layer.normalized_shape) != 1:
            raise InputError(f"axis={axis} goes with one size, the channels, got {layer.normalized_shape}")
        layer.axis = axis


def _eps_for(layer: RMSNorm, x: Tensor) -> float:
    """The number that is added: torch's for the type where none was given."""
    eps: float | None = eps_of(layer)
    return torch.finfo(kernels.accumulation_dtype(x.dtype)).eps if eps is None else eps


@torch.fx.wrap
def _real_positions(x: Tensor, axes: int, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """The mask that broadcasts to ``x``, whose last ``axes`` are normalized and therefore count as a whole."""
    if mask is None and lengths is None:
        return None
    if x.is_nested:
        raise InputError("mask and lengths are for padding, and a nested tensor has none: leave them out")
    positions = x.shape[: x.ndim - axes]
    if not positions:
        raise InputError(f"mask and lengths need positions before the normalized axes, got the shape {tuple(x.shape)}")
    # As (N, C, ...) with a single channel, which is the form that masks are checked against.
    keep = real_elements(x.new_empty(()).expand(positions).unsqueeze(1), mask, lengths)
    return None if keep is None else keep.squeeze(1).reshape(*keep.squeeze(1).shape, *(1,) * axes)


@torch.fx.wrap
def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    """``x`` with zeros, and no gradient, where nothing is real."""
    return x if keep is None else torch.where(keep, x, 0)

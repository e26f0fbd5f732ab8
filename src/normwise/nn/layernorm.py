"""Normalization over the last axes with torch's names and torch's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise import ops
from normwise.composite import differentiate_by, graph_of_gradients, needs_plain_graph
from normwise.errors import InputError
from normwise.functional import real_elements
from normwise.nn._state import affine_of, boundary, exporting
from normwise.ops import fused, native

# The name in this module, which is what the forward pass below looks up; the functions branch on their input.
torch.fx.wrap("layer_norm")


def layer_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer normalization by torch's kernel, with right derivatives of any order and the memory format of ``x``.

    Torch's own third derivatives and nested forward mode are wrong (pytorch#186256, #196699), and its result is always
    contiguous. Compiled, exported and under autocast this *is* ``torch.nn.functional.layer_norm``.

    Args:
        x: (*, *shape).
        shape: the last axes.
        weight: of that shape.
        bias: of that shape.
        eps: added to the variance.

    Returns:
        A tensor like ``x``.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), None, None, 0.0)
        tensor([[-1.,  1.]])
    """
    if needs_plain_graph() or x.is_meta or torch._C._is_any_autocast_enabled() or not x.is_contiguous():
        return _unusual_layer_norm(x, shape, weight, bias, eps)
    return _contiguous_layer_norm(x, shape, weight, bias, eps)


def _contiguous_layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    if torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    ):
        if native.differentiates() and type(x) is Tensor:  # others, such as DTensor, know torch's operators
            return fused.layer_norm(x, shape, weight, bias, eps)[0]
        y: Tensor = _LayerNormFunction.apply(x, shape, weight, bias, eps)
        return y
    return torch.layer_norm(x, shape, weight, bias, eps)


def _unusual_layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Under transforms and autocast, and in other memory formats."""
    plain = needs_plain_graph()
    followed = plain and (torch.compiler.is_compiling() or exporting())
    if followed or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return F.layer_norm(x, shape, weight, bias, eps)
    kernel = _plain_layer_norm if plain else _contiguous_layer_norm
    memory_format = None if x.is_contiguous() else {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        return kernel(x, shape, weight, bias, eps)
    if len(shape) != x.ndim - 1:
        return kernel(x, shape, weight, bias, eps).contiguous(memory_format=memory_format)
    # All but the batch is normalized, so the order of the axes is free: take the one in memory.
    weight, bias = (None if t is None else t.movedim(0, -1) for t in (weight, bias))
    return kernel(x.movedim(1, -1), (*shape[1:], shape[0]), weight, bias, eps).movedim(-1, 1)


def _plain_layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """The formula in differentiable operators."""
    values = x.to(ops.accumulation_dtype(x.dtype))
    var, mean = torch.var_mean(values, tuple(range(-len(shape), 0)), correction=0, keepdim=True)
    y = (values - mean) * torch.rsqrt(var + eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


def _graph(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    eps: float,
    of_parameters: bool,
) -> list[Tensor | None]:
    """With ``create_graph=True``: the gradients of the plain formula, which have gradients of their own."""
    return graph_of_gradients(
        lambda *t: _plain_layer_norm(t[0], tuple(shape), t[1], t[2], eps), (x, weight, bias), grad
    )


differentiate_by("layer_norm", _graph)


class _LayerNormFunction(torch.autograd.Function):
    """What ``csrc/graph`` does in C++."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.shape, ctx.eps = shape, eps
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        if torch.is_grad_enabled():
            found = _graph(grad, x, mean, rstd, weight, bias, ctx.shape, ctx.eps, of_parameters=True)
        else:
            kernel = torch.ops.aten.native_layer_norm_backward
            found = kernel(grad, x, ctx.shape, mean, rstd, weight, bias, wanted)
        grad_x, grad_weight, grad_bias = (g if want else None for g, want in zip(found, wanted, strict=True))
        return grad_x, None, grad_weight, grad_bias, None


class LayerNorm(torch.nn.LayerNorm):
    """Layer normalization over the last axes (Ba et al. 2016, arXiv 1607.06450): torch's kernel, with an activation.

    Formula: y = weight · (x − μ) / √(σ² + eps) + bias, moments over ``normalized_shape``. For a convolutional map with
    one weight per channel use ``GroupNorm(1, C)``. A position's moments touch no other position; with ``mask`` or
    ``lengths`` padded ones also come out as 0 and get no gradient, whatever stands in them.

    Args:
        normalized_shape: the last axes' sizes, an int or a sequence.
        eps: added to the variance.
        elementwise_affine: whether ``weight`` and ``bias`` are learned.
        bias: whether ``bias`` is learned where ``elementwise_affine`` is.
        device: of the parameters.
        dtype: of the parameters.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.

    Raises:
        InputError: an unknown activation, or a mask or lengths that do not fit.
        RuntimeError: the input's last axes differ from ``normalized_shape``.

    Example:
        >>> LayerNorm(6)(torch.randn(4, 6)).shape
        torch.Size([4, 6])
    """

    activation: str | None = None

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
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.activation = ops.known_activation(activation)

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` (N, ...) or ``lengths`` (N,) say which positions are real."""
        shape = self.normalized_shape
        weight, bias = affine_of(self) or (self.weight, self.bias)
        if mask is lengths is None:
            y = layer_norm(input, shape, weight, bias, self.eps)
            return y if self.activation is None else ops.activate(y, self.activation)
        keep = _real_positions(input, len(shape), mask, lengths)
        y = layer_norm(_kept(input, keep), shape, weight, bias, self.eps)
        return _kept(ops.activate(y, self.activation), keep)


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square normalization over the last axes (Zhang & Sennrich 2019, arXiv 1910.07467): torch's kernel.

    Formula: y = weight · x / √(mean(x²) + eps), the mean over ``normalized_shape``.

    Args:
        normalized_shape: the last axes' sizes, an int or a sequence.
        eps: added to the mean square; ``None`` is the machine epsilon of float32, or of float64 for such input.
        elementwise_affine: whether ``weight`` is learned.
        device: of the parameters.
        dtype: of the parameters.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.

    Raises:
        RuntimeError: the input's last axes differ from ``normalized_shape``.

    Example:
        >>> RMSNorm(2, eps=0.0)(torch.tensor([[3.0, 4.0]]).div(12.5 ** 0.5))
        tensor([[0.8485, 1.1314]], grad_fn=<...>)
    """

    activation: str | None = None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.activation = ops.known_activation(activation)

    @boundary
    def forward(self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``x``; ``mask`` and ``lengths`` as for :class:`LayerNorm`."""
        if mask is lengths is None:
            y = super().forward(x)
            return y if self.activation is None else ops.activate(y, self.activation)
        keep = _real_positions(x, len(self.normalized_shape), mask, lengths)
        return _kept(ops.activate(super().forward(_kept(x, keep)), self.activation), keep)


@torch.fx.wrap
def _real_positions(x: Tensor, axes: int, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """The mask that broadcasts to ``x``, whose last ``axes`` are normalized and therefore count as a whole."""
    if mask is None and lengths is None:
        return None
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

"""Layer norm and RMS norm as functions: by the native kernels where these serve, elsewhere by torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from normwise import kernels
from normwise.core.autograd import Fused, any_requires_grad, over_last_axes
from normwise.core.route import exporting, needs_plain_graph, one_call
from normwise.errors import InputError
from normwise.kernels.cpu import native

# Eps, whether about the mean and not about 0, and the activation.
How = tuple[float, bool, str | None]


def layer_norm(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
) -> Tensor:
    """Layer normalization with right derivatives of any order and the memory format of ``x``.

    Torch's own third derivatives and nested forward mode are wrong (pytorch#186256, #196699), and its result is always
    contiguous. Compiled, exported and under autocast this *is* ``torch.nn.functional.layer_norm``.
    """
    if x.is_nested:
        if x.layout is torch.strided:  # torch takes these with both parameters only
            like: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
            weight = torch.ones(shape, **like) if weight is None else weight
            bias = torch.zeros(shape, **like) if bias is None else bias
        return kernels.activate(F.layer_norm(x, shape, weight, bias, eps), activation)
    return _normalize(x, shape, weight, bias, (eps, True, activation), _torch_layer_norm)


def rms_norm(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    eps: float | None,
    activation: str | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Root-mean-square normalization; where no native kernel serves this *is* ``torch.nn.functional.rms_norm``."""
    if x.is_nested and x.layout is torch.strided:
        raise InputError(
            "RMSNorm takes nested tensors of layout=torch.jagged only, as torch does: make it one of these"
        )
    if x.is_nested or (eps is None and not x.is_floating_point()):
        return kernels.activate(_torch_rms_norm(x, shape, weight, bias, eps), activation)
    if eps is None:
        eps = torch.finfo(kernels.accumulation_dtype(x.dtype)).eps
    return _normalize(x, shape, weight, bias, (eps, False, activation), _torch_rms_norm)


def _normalize(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    how: How,
    elsewhere: Callable[..., Tensor],
) -> Tensor:
    """By the native kernels in the memory format of ``x``; where they do not serve, ``elsewhere`` does."""
    if x.is_contiguous() or needs_plain_graph() or x.is_meta:
        return _kernel(x, shape, weight, bias, how, elsewhere)
    return _in_its_format(functools.partial(_kernel, how=how, elsewhere=elsewhere), x, shape, weight, bias)


def _kernel(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    how: How,
    elsewhere: Callable[..., Tensor],
) -> Tensor:
    y = _natively(x, shape, weight, bias, how)
    return kernels.activate(elsewhere(x, shape, weight, bias, how[0]), how[2]) if y is None else y


def _natively(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, how: How) -> Tensor | None:
    """``None`` where the native kernels do not serve: under transforms and autocast, elsewhere than on the CPU, ..."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return None
    eps, centered, activation = how
    axes, call, code = len(shape), native.CALLS.get("layer_norm"), native.CODES.get(activation)
    if code is None or x.shape[-axes:] != shape:
        return None
    y = None if call is None else call(x, axes, weight, bias, eps, centered, code, 0.01)
    if y is None and _serve(x, shape, weight, bias):
        return one_call("layer_norm", (x, axes, weight, bias, eps, centered, code, 0.01), x, weight, bias)
    return y


def _serve(x: Tensor, shape: tuple[int, ...], *parameters: Tensor | None) -> bool:
    """Whether the kernel takes a call that is out of the ordinary: one that is watched, or nothing at all."""
    if needs_plain_graph() or torch._C._is_any_autocast_enabled() or not native.supports(x):
        return False
    dtypes = (x.dtype, kernels.accumulation_dtype(x.dtype))
    # Others, such as DTensor, know torch's operators.
    return type(x) in (Tensor, Parameter) and all(
        t is None or (type(t) in (Tensor, Parameter) and t.is_cpu and t.dtype in dtypes and t.shape == shape)
        for t in parameters
    )


def _in_its_format(
    kernel: Callable[..., Tensor], x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """What a kernel whose result is contiguous gives, in the memory format of ``x``."""
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        return kernel(x, shape, weight, bias)
    if len(shape) != x.ndim - 1:
        return kernel(x, shape, weight, bias).contiguous(memory_format=memory_format)
    # All but the batch is normalized, so the order of the axes is free: take the one in memory.
    weight, bias = (None if t is None else t.movedim(0, -1) for t in (weight, bias))
    return kernel(x.movedim(1, -1), (*shape[1:], shape[0]), weight, bias).movedim(-1, 1)


def _torch_layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """By torch's kernel, or in operators where a transform must see them."""
    plain = needs_plain_graph()
    followed = plain and (torch.compiler.is_compiling() or exporting())
    if followed or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return F.layer_norm(x, shape, weight, bias, eps)
    if plain:
        return over_last_axes(x, len(shape), weight, bias, eps)
    if torch.is_grad_enabled() and any_requires_grad(x, weight, bias):
        y: Tensor = Fused.apply(_OfTorch(shape, eps), x, weight, bias)
        return y
    return torch.layer_norm(x, shape, weight, bias, eps)


def _torch_rms_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float | None
) -> Tensor:
    if bias is None and (weight is None or weight.dtype == x.dtype or x.dtype.itemsize > 2):
        return F.rms_norm(x, shape, weight, eps)
    # Rounded once, at the end: a weight or bias of more digits keeps them until then.
    y = F.rms_norm(x.to(kernels.accumulation_dtype(x.dtype)), shape, weight, eps)
    return (y if bias is None else y + bias).to(x.dtype)


class _OfTorch:
    """Torch's kernels, whose own graph has wrong third derivatives."""

    def __init__(self, shape: tuple[int, ...], eps: float) -> None:
        self.shape, self.eps = shape, eps

    def forward(self, *tensors: Any) -> tuple[Tensor, Sequence[Tensor]]:
        x, weight, bias = tensors
        y, *kept = torch.native_layer_norm(x, self.shape, weight, bias, self.eps)
        return y, kept

    def backward(self, grads: Any, tensors: Any, kept: Any, wanted: Any) -> Any:
        (grad,), (x, *parameters) = grads, tensors
        kernel = torch.ops.aten.native_layer_norm_backward
        return kernel(grad, x, self.shape, *kept, *parameters, [*wanted])

    def formula(self, tensors: Any, kept: Any) -> Tensor:
        x, weight, bias = tensors
        return over_last_axes(x, len(self.shape), weight, bias, self.eps)

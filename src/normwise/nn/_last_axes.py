"""Layer norm and RMS norm as functions: by the native kernels where these serve, elsewhere by torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from normwise import kernels
from normwise.composite import differentiate_by, graph_of_gradients, needs_plain_graph
from normwise.errors import InputError
from normwise.kernels.cpu import fused, native
from normwise.mixes import any_requires_grad
from normwise.nn._state import exporting

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
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float | None, activation: str | None = None
) -> Tensor:
    """Root-mean-square normalization; where no native kernel serves this *is* ``torch.nn.functional.rms_norm``."""
    if x.is_nested and x.layout is torch.strided:
        raise InputError(
            "RMSNorm takes nested tensors of layout=torch.jagged only, as torch does: make it one of these"
        )
    if x.is_nested or (eps is None and not x.is_floating_point()):
        return kernels.activate(F.rms_norm(x, shape, weight, eps), activation)
    if eps is None:
        eps = torch.finfo(kernels.accumulation_dtype(x.dtype)).eps
    return _normalize(x, shape, weight, None, (eps, False, activation), _torch_rms_norm)


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
    axes, call = len(shape), native.CALLS.get("layer_norm")
    eps, centered, activation = how
    try:
        if x.shape[-axes:] != shape:
            return None
        code = native.CODES[activation]
        y = None if call is None else call(x, axes, weight, bias, eps, centered, code, 0.01)
        if y is not None or not _serve(x, weight, bias):
            return y
        if native.differentiates() or not (torch.is_grad_enabled() and any_requires_grad(x, weight, bias)):
            return fused.layer_norm(x, axes, weight, bias, *how)[0]
        y = _Native.apply(x, weight, bias, axes, *how)
        return y
    except RuntimeError as problem:
        if native.refuses(problem):
            return None  # torch takes it, or has the words for what is wrong
        raise


def _serve(x: Tensor, *parameters: Tensor | None) -> bool:
    if needs_plain_graph() or torch._C._is_any_autocast_enabled() or not native.supports(x):
        return False
    # Others, such as DTensor, know torch's operators.
    return all(t is None or type(t) in (Tensor, Parameter) for t in (x, *parameters))


class _Native(torch.autograd.Function):
    """What ``csrc/graph`` does in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int, *options: Any) -> Tensor:
        eps, centered, activation = options
        y, moments = fused.layer_norm(x, axes, weight, bias, *options)
        ctx.save_for_backward(x, moments, weight, bias)
        ctx.call = axes, eps, centered, activation
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, moments, weight, bias = ctx.saved_tensors
        axes, eps, centered, activation = ctx.call
        if torch.is_grad_enabled():
            found = _differentiable_backward(grad, x, weight, bias, axes, eps, centered, activation)
        else:
            found = [*fused.layer_norm_backward(grad, x, moments, axes, weight, bias, eps, centered, activation)]
        # Autograd ignores what nobody wants, but not a gradient of None.
        return *(None if t is None else g for g, t in zip(found, (x, weight, bias), strict=True)), *(None,) * 4


def _differentiable_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axes: int,
    eps: float,
    centered: bool,
    activation: str | None,
    slope: float = 0.01,
) -> list[Tensor | None]:
    """With ``create_graph=True``: the gradients of the plain formula, which have gradients of their own."""

    def formula(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return kernels.activate(_formula(x, axes, weight, bias, eps, centered), activation, slope)

    return graph_of_gradients(formula, (x, weight, bias), grad)


def _graph(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    axes: int,
    weight: Any,
    bias: Any,
    eps: float,
    centered: bool,
    code: int,
    slope: float,
) -> list[Tensor | None]:
    return _differentiable_backward(g, x, weight, bias, axes, eps, centered, kernels.ACTIVATIONS[code], slope)


differentiate_by("layer_norm", _graph)


def _formula(
    x: Tensor, axes: int, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool = True
) -> Tensor:
    """In differentiable operators."""
    values, last = x.to(kernels.accumulation_dtype(x.dtype)), tuple(range(-axes, 0))
    if centered:
        var, mean = torch.var_mean(values, last, correction=0, keepdim=True)
        values = values - mean
    else:
        var = values.square().mean(last, keepdim=True)
    y = values * torch.rsqrt(var + eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


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
        return _formula(x, len(shape), weight, bias, eps)
    if torch.is_grad_enabled() and any_requires_grad(x, weight, bias):
        y: Tensor = _OfTorch.apply(x, shape, weight, bias, eps)
        return y
    return torch.layer_norm(x, shape, weight, bias, eps)


def _torch_rms_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: None, eps: float) -> Tensor:
    return F.rms_norm(x, shape, weight, eps)


class _OfTorch(torch.autograd.Function):
    """Torch's kernels, whose own graph has wrong third derivatives."""

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
            found = _differentiable_backward(grad, x, weight, bias, len(ctx.shape), ctx.eps, True, None)
        else:
            kernel = torch.ops.aten.native_layer_norm_backward
            found = kernel(grad, x, ctx.shape, mean, rstd, weight, bias, wanted)
        grad_x, grad_weight, grad_bias = (g if want else None for g, want in zip(found, wanted, strict=True))
        return grad_x, None, grad_weight, grad_bias, None

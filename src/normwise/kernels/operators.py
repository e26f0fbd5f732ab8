"""What the native operators return, without the data: for tracing, compilation and ``torch.library.opcheck``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor, float64

from normwise.kernels.reference import accumulation_dtype


def channels_last(x: Tensor) -> bool:
    """Whether channels vary fastest among the axes that make a sample (tensors.cpp says the same)."""
    return x.shape[1] > 1 and all(
        stride > x.stride(1) for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True) if size > 1
    )


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of the output: those of ``x`` if it is dense, else dense ones of its kind."""
    spatial = range(2, x.ndim)
    for axes in (sorted(spatial, key=x.stride, reverse=True), list(spatial)):
        strides, step = [0] * x.ndim, 1
        for axis in reversed([0, *axes, 1] if channels_last(x) else [0, 1, *axes]):
            strides[axis] = step
            step = step * max(1, x.shape[axis])
        if all(size == 1 or have == want for size, have, want in zip(x.shape, x.stride(), strides, strict=True)):
            return x.stride()
    return tuple(strides)


def _fake_like(x: Tensor) -> Tensor:
    """An empty tensor of the output's layout."""
    return x.new_empty_strided(x.shape, dense_strides(x))


def _fake_cells(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))


def _fake_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return _fake_cells(x), _fake_cells(x)


def _fake_apply(x: Tensor, *_: Any) -> Tensor:
    return _fake_like(x)


def _fake_grad_sums(g: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_cells(x), _fake_cells(x)


def _fake_grad_input(g: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _fake_like(x)


def _fake_sample_norm(x: Tensor, groups: int, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_like(x), x.new_empty((2, x.shape[0], groups), dtype=float64)


def _fake_sample_norm_backward(
    g: Tensor, x: Tensor, moments: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, weight, bias)


def _fake_layer_norm(x: Tensor, axes: int, *_: Any) -> tuple[Tensor, Tensor]:
    samples = prod(x.shape[: x.ndim - axes])
    return _fake_contiguous(x), x.new_empty((2, samples), dtype=float64)


def _fake_contiguous(x: Tensor) -> Tensor:
    return x.new_empty_strided(x.shape, x.stride()) if x.is_contiguous() else x.new_empty(x.shape)


def _fake_layer_norm_backward(
    g: Tensor, x: Tensor, moments: Tensor, axes: int, weight: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    count = prod(x.shape[x.ndim - axes :])
    return _fake_contiguous(x), _fake_parameter(x, weight, count), _fake_parameter(x, bias, count)


def _fake_parameter(x: Tensor, t: Tensor | None, count: int) -> Tensor:
    return (
        x.new_empty((count,), dtype=accumulation_dtype(x.dtype)) if t is None else x.new_empty(t.shape, dtype=t.dtype)
    )


def _fake_gradients(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    return _fake_like(x), _fake_parameter(x, weight, channels), _fake_parameter(x, bias, channels)


def _fake_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, training: bool, *_: Any
) -> tuple[Tensor, Tensor]:
    samples, channels = x.shape[:2]
    if not training:
        samples = 1
    elif not any(t is not None and t.ndim == 2 for t in (weight, bias)):
        samples = min(1, samples)  # all are normalized alike
    return _fake_like(x), x.new_empty((2, samples, channels), dtype=float64)


def _fake_batch_norm_backward(
    g: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, weight, bias)


def _fake_mix_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    groups: Sequence[int],
    eps: float,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    if list(groups) != [0]:
        return _fake_like(x), x.new_empty((2, *x.shape[:2]), dtype=float64)
    return _fake_batch_norm(x, weight, bias, eps, True)


def _fake_mix_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    groups: Sequence[int],
    *_: Any,
) -> tuple[Tensor, ...]:
    shares = (_fake_parameter(x, t, len(groups)) for t in (mean_weight, var_weight))
    return *_fake_gradients(x, weight, bias), *shares


def _on_one_device(fake: Callable[..., Any]) -> Callable[..., Any]:
    # Where one tensor is a meta tensor and another is not, the dispatcher comes here: to memory that nobody writes to.
    @functools.wraps(fake)
    def checked(*args: Any) -> Any:
        devices = {str(a.device) for a in args if isinstance(a, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"normwise: expected tensors on one device, got {' and '.join(sorted(devices))}")
        return fake(*args)

    return checked


_FAKES: dict[str, Callable[..., Any]] = {
    "moments": _fake_moments,
    "apply": _fake_apply,
    "grad_sums": _fake_grad_sums,
    "grad_input": _fake_grad_input,
    "sample_norm": _fake_sample_norm,
    "sample_norm_backward": _fake_sample_norm_backward,
    "layer_norm": _fake_layer_norm,
    "layer_norm_backward": _fake_layer_norm_backward,
    "batch_norm": _fake_batch_norm,
    "batch_norm_backward": _fake_batch_norm_backward,
    "mix_norm": _fake_mix_norm,
    "mix_norm_backward": _fake_mix_norm_backward,
}
FAKES = {name: _on_one_device(fake) for name, fake in _FAKES.items()}


# What the operators take and give; csrc/ops.cpp defines the same.
SCHEMAS = {
    "moments": "(Tensor x) -> (Tensor, Tensor)",
    "apply": "(Tensor x, Tensor center, Tensor scale, Tensor shift, int activation, float slope) -> Tensor",
    "grad_sums": (
        "(Tensor g, Tensor x, Tensor mean, Tensor center, Tensor scale, Tensor shift, int activation, float "
        "slope) -> (Tensor, Tensor)"
    ),
    "grad_input": (
        "(Tensor g, Tensor x, Tensor mean, Tensor center, Tensor scale, Tensor shift, Tensor grad_mean, "
        "Tensor grad_var, int activation, float slope) -> Tensor"
    ),
    "sample_norm": (
        "(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, int activation, float slope) -> "
        "(Tensor, Tensor)"
    ),
    "sample_norm_backward": (
        "(Tensor g, Tensor x, Tensor moments, int groups, Tensor? weight, Tensor? bias, float eps, int "
        "activation, float slope) -> (Tensor, Tensor, Tensor)"
    ),
    "layer_norm": (
        "(Tensor x, int axes, Tensor? weight, Tensor? bias, float eps, bool centered, int activation, float "
        "slope) -> (Tensor, Tensor)"
    ),
    "layer_norm_backward": (
        "(Tensor g, Tensor x, Tensor moments, int axes, Tensor? weight, Tensor? bias, float eps, bool "
        "centered, int activation, float slope) -> (Tensor, Tensor, Tensor)"
    ),
    "batch_norm": (
        "(Tensor x, Tensor? weight, Tensor? bias, float eps, bool training, Tensor(a!)? running_mean, "
        "Tensor(b!)? running_var, Tensor(c!)? skipped, Tensor(d!)? tracked, float momentum, int activation, "
        "float slope) -> (Tensor, Tensor)"
    ),
    "batch_norm_backward": (
        "(Tensor g, Tensor x, Tensor moments, Tensor? weight, Tensor? bias, float eps, bool training, bool "
        "of_parameters, int activation, float slope) -> (Tensor, Tensor, Tensor)"
    ),
    "mix_norm": (
        "(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean_weight, Tensor? var_weight, bool logits, int[] "
        "groups, float eps, Tensor? population_mean, Tensor? population_var, Tensor(a!)? running_mean, "
        "Tensor(b!)? running_var, Tensor(c!)? skipped, Tensor(d!)? tracked, float momentum, int activation, "
        "float slope) -> (Tensor, Tensor)"
    ),
    "mix_norm_backward": (
        "(Tensor g, Tensor x, Tensor moments, Tensor? weight, Tensor? bias, Tensor? mean_weight, Tensor? "
        "var_weight, bool logits, int[] groups, float eps, Tensor? population_mean, Tensor? population_var, "
        "int activation, float slope) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
}

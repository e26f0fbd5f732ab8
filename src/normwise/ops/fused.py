"""Whole normalizations as one native call each way, for the methods that are mixes of pooled moments.

What pools within a sample does both passes while a group is in the cache. Autograd in C++ differentiates the operators
where it was built (:func:`normwise.ops.native.differentiates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normwise.ops.native import CODES, available

# A mix that moves no running averages.
_NOT_RUNNING = (None, None, 0.0, None, None)


def sample_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Normalize every group of channels of every sample: ``act((x − μ) / √(σ² + eps) · weight + bias)``, in one trip.

    Args:
        x: (N, C, ...).
        groups: into how many groups C is divided; 1 is layer norm, C is instance norm.
        weight: (C,), or (N, C) for a weight per sample; ``None`` is 1.
        bias: like ``weight``; ``None`` is 0.
        eps: added to the variance.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        slope: the negative slope of ``"leaky_relu"``.

    Returns:
        ``(y, moments)``: the output, and the groups' means and variances (2, N, groups), float64.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> sample_norm(x, 1, eps=0.0)[0].tolist() if available() else [[[-1.0, 1.0]]]
        [[[-1.0, 1.0]]]
    """
    return _OPERATORS["sample_norm"](x, groups, weight, bias, eps, CODES[activation], slope)


def sample_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`sample_norm`, in one trip through ``g`` and ``x``.

    Args:
        g: the gradient of the output, shaped like ``x``.
        x: as given to :func:`sample_norm`.
        moments: as returned by :func:`sample_norm`.
        groups: as given to :func:`sample_norm`.
        weight: as given to :func:`sample_norm`.
        bias: as given to :func:`sample_norm`.
        eps: as given to :func:`sample_norm`.
        activation: as given to :func:`sample_norm`.
        slope: as given to :func:`sample_norm`.

    Returns:
        ``(dx, dweight, dbias)``. The last two have the parameter's type and shape; of an absent parameter they are what
        a (C,) one of the accumulation type would get.

    Example:
        >>> x, moments = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0]], [[1.0]]], dtype=torch.float64)
        >>> sample_norm_backward(x, x, moments, 1, eps=0.0)[2].tolist() if available() else [4.0]
        [4.0]
    """
    return _OPERATORS["sample_norm_backward"](g, x, moments, groups, weight, bias, eps, CODES[activation], slope)


def _is_one_pool(groups: Sequence[int], mean_weight: Tensor | None, var_weight: Tensor | None) -> bool:
    """Whether the mix is one pool, with no weight of its own: for that there are operators that take less time."""
    return len(groups) == 1 and mean_weight is var_weight is None


def mix_norm(
    x: Tensor,
    groups: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    logits: bool = True,
    eps: float = 1e-5,
    population: Sequence[Any] | None = None,
    running: Sequence[Any] | None = None,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Normalize by a mix of pooled moments, ``act((x − Σ wₖμₖ) / √(Σ w′ₖσ²ₖ + eps) · weight + bias)``, in one call.

    Args:
        x: (N, C, ...).
        groups: one number a member: how many groups it pools over within a sample (1 is layer norm, C instance norm),
            or 0 for the pool over samples. Batch norm is ``[0]``.
        weight: (C,), or (N, C) for a weight per sample; ``None`` is 1.
        bias: like ``weight``; ``None`` is 0.
        mean_weight: (K,), logits of the softmax mix of means; ``None`` mixes equally.
        var_weight: (K,), logits of the softmax mix of variances.
        logits: ``False`` where these are shares that sum to 1.
        eps: added to the variance.
        population: mean and variance (C,), in the place of the pool over samples; what follows is not read.
        running: running mean and variance (C,), of the type of ``x`` or the accumulation type, and moved in place
            towards the pool over samples; the momentum; a count of batches that were not finite, or would have taken
            them beyond their type, and left them as they are, or ``None``; a count of those that moved them, or
            ``None``.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        slope: the negative slope of ``"leaky_relu"``.

    Returns:
        ``(y, moments)``: the output, and the means and variances, float64, that :func:`mix_norm_backward` wants back.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> mix_norm(x, [0], eps=0.0)[0].tolist() if available() else [[[-1.0, 1.0]]]
        [[[-1.0, 1.0]]]
    """
    name, args = operator_for_mix(x, groups, weight, bias, mean_weight, var_weight, logits, eps, population, running)
    return _OPERATORS[name](*args, CODES[activation], slope)


def operator_for_mix(
    x: Tensor,
    groups: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Sequence[Any] | None,
    running: Sequence[Any] | None,
) -> tuple[str, tuple[Any, ...]]:
    """Which operator serves a mix: of one pool there are some that take less.

    Args:
        x: as :func:`mix_norm` takes it, as is all that follows.
        groups: likewise.
        weight: likewise.
        bias: likewise.
        mean_weight: likewise.
        var_weight: likewise.
        logits: likewise.
        eps: likewise.
        population: likewise.
        running: likewise.

    Returns:
        Its name in ``torch.ops.normwise``, and what it takes before the activation's number and its slope.

    Example:
        >>> operator_for_mix(torch.zeros(2, 6, 4), [3], *[None] * 4, True, 1e-5, None, None)[0]
        'sample_norm'
    """
    one = _is_one_pool(groups, mean_weight, var_weight)
    if one and groups[0]:
        return "sample_norm", (x, groups[0], weight, bias, eps)
    if one and population is not None:
        mean, var = population[0], population[1]
        return "batch_norm", (x, weight, bias, eps, False, mean, var, None, None, 0.0)
    running_mean, running_var, momentum, skipped, tracked = _NOT_RUNNING if running is None else running
    averages = (running_mean, running_var, skipped, tracked, float(momentum))
    if one:
        return "batch_norm", (x, weight, bias, eps, True, *averages)
    known = (None, None) if population is None else population[:2]
    return "mix_norm", (x, weight, bias, mean_weight, var_weight, logits, groups, eps, *known, *averages)


def mix_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    groups: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    logits: bool = True,
    eps: float = 1e-5,
    population: Sequence[Any] | None = None,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`mix_norm`, by the closed-form vjp of pools and mix.

    Args:
        g: the gradient of the output, shaped like ``x``.
        x: as given to :func:`mix_norm`.
        moments: as returned by :func:`mix_norm`.
        groups: as given to :func:`mix_norm`, as is everything that follows.
        weight: as given.
        bias: as given.
        mean_weight: as given.
        var_weight: as given.
        logits: as given.
        eps: as given.
        population: as given.
        activation: as given.
        slope: as given.

    Returns:
        The gradients of x, weight, bias, mean_weight and var_weight, each of the type of what it belongs to; where a
        parameter is absent they have no meaning, or are ``None``.

    Example:
        >>> x, moments = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0]], [[1.0]]], dtype=torch.float64)
        >>> mix_norm_backward(x, x, moments, [0], eps=0.0)[2].tolist() if available() else [4.0]
        [4.0]
    """
    act = (CODES[activation], slope)
    one = _is_one_pool(groups, mean_weight, var_weight)
    if one and groups[0]:
        return *_OPERATORS["sample_norm_backward"](g, x, moments, groups[0], weight, bias, eps, *act), None, None
    if one:
        return (
            *_OPERATORS["batch_norm_backward"](g, x, moments, weight, bias, eps, population is None, True, *act),
            None,
            None,
        )
    known = (None, None) if population is None else population[:2]
    mix = (weight, bias, mean_weight, var_weight, logits, groups)
    return _OPERATORS["mix_norm_backward"](g, x, moments, *mix, eps, *known, *act)


def layer_norm(
    x: Tensor,
    axes: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    centered: bool = True,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Normalize the last axes of every position: ``act((x − μ) / √(σ² + eps) · weight + bias)``, in one trip.

    Args:
        x: of at least ``axes`` axes.
        axes: how many of the last axes are normalized together.
        weight: of their shape; ``None`` is 1.
        bias: like ``weight``; ``None`` is 0.
        eps: added to the variance.
        centered: ``False`` takes 0 in the place of the mean, as RMS norm does: σ² is then the mean square.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        slope: the negative slope of ``"leaky_relu"``.

    Returns:
        ``(y, moments)``: the output, contiguous, and the positions' means and variances (2, positions), float64.

    Example:
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> layer_norm(x, 1, eps=0.0)[0].tolist() if available() else [[-1.0, 1.0]]
        [[-1.0, 1.0]]
    """
    return _OPERATORS["layer_norm"](x, axes, weight, bias, eps, centered, CODES[activation], slope)


def layer_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    axes: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    centered: bool = True,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`layer_norm`, in one trip through ``g`` and ``x``.

    Args:
        g: the gradient of the output, shaped like ``x``.
        x: as given to :func:`layer_norm`.
        moments: as returned by :func:`layer_norm`.
        axes: as given to :func:`layer_norm`, as is everything that follows.
        weight: as given.
        bias: as given.
        eps: as given.
        centered: as given.
        activation: as given.
        slope: as given.

    Returns:
        ``(dx, dweight, dbias)``. The last two have the parameter's type and shape; of an absent parameter they are what
        one of a single axis and the accumulation type would get.

    Example:
        >>> x, moments = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0], [1.0]], dtype=torch.float64)
        >>> layer_norm_backward(x, x, moments, 1, eps=0.0)[2].tolist() if available() else [1.0, 3.0]
        [1.0, 3.0]
    """
    return _OPERATORS["layer_norm_backward"](g, x, moments, axes, weight, bias, eps, centered, CODES[activation], slope)


def _operator(name: str) -> Any:
    # Looked up once, and what it calls: either costs as much as a small tensor's arithmetic.
    operator = getattr(torch.ops.normwise, name).default
    return getattr(operator, "_op", operator)


_NAMES = ("sample_norm", "batch_norm", "mix_norm", "layer_norm")
_OPERATORS = {name: _operator(name) for known in _NAMES for name in (known, f"{known}_backward")} if available() else {}

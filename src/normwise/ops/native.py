"""The kernels in C++, where they were built: same functions, same results as :mod:`normwise.ops.reference`.

They speak torch's stable ABI (see ``setup.py``) and cover CPU tensors of float32, float64, bfloat16 and float16 in the
contiguous and the channels-last layout; other strides are copied into one of the two first. Besides the four kernels
there are fused ones for methods that pool within a sample: both passes run while a group is in cache.

The four kernels take no part in autograd: :mod:`normwise.engine` does that for the whole of moments, method and apply.
The fused operators do where a second library could be built. It speaks autograd's C++ interface, which is no part of
the stable ABI, so its name holds the one torch that it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normwise.ops.fakes import FAKES
from normwise.ops.reference import ACTIVATIONS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_CODES = {activation: code for code, activation in enumerate(ACTIVATIONS)}

# A mix that moves no running averages.
_NOT_RUNNING = (None, None, 0.0, None, None)

_LIBRARY = Path(__file__).with_name("_native.so")
_GRAPH = Path(__file__).with_name(f"_graph-{torch.__version__}.so")
_HOW = "build it with `pip install --no-build-isolation .` where torch and a C++ compiler are present"


def _load() -> str | None:
    """Load the library; the reason if that is not possible."""
    if not _LIBRARY.exists():
        return f"the native library is not built: {_HOW}"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as problem:
        return f"the native library does not load ({problem}): {_HOW}"
    # A library built in place stays behind when its sources move on.
    missing = [name for name in ("isa", *FAKES) if not hasattr(torch.ops.normwise, name)]
    if missing:
        return f"the native library is of another version (it lacks {', '.join(missing)}): {_HOW}"
    return None


def _load_graph() -> str | None:
    """Load autograd's kernels; the reason if that is not possible."""
    if _problem is not None:
        return "there are no native kernels to differentiate"
    if not _GRAPH.exists():
        return f"not built for torch {torch.__version__}: {_HOW}"
    try:
        torch.ops.load_library(str(_GRAPH))
    except OSError as problem:
        return f"does not load ({problem}): {_HOW}"
    return None


_problem = _load()
_graph_problem = _load_graph()


def available() -> bool:
    """Whether the native kernels are loaded.

    Returns:
        Whether they are.

    Example:
        >>> available() == (why_not() is None)
        True
    """
    return _problem is None


def why_not() -> str | None:
    """Why the native kernels are not available and how to get them.

    Returns:
        A sentence, or ``None`` if they are available.

    Example:
        >>> why_not() is None or "build it with" in why_not()
        True
    """
    return _problem


def differentiates() -> bool:
    """Whether :func:`mix_norm` is differentiable, by autograd in C++; where not, the caller does it in Python.

    Returns:
        Whether it is.

    Example:
        >>> differentiates() == (why_not_differentiable() is None)
        True
    """
    return _graph_problem is None


def why_not_differentiable() -> str | None:
    """Why autograd does not reach the native kernels from C++, and how to get that.

    Returns:
        A sentence, or ``None`` if it does.

    Example:
        >>> why_not_differentiable() is None or not differentiates()
        True
    """
    return _graph_problem


def instruction_set() -> str:
    """The instruction set that the kernels chose for this processor.

    The environment variable ``NORMWISE_ISA``, read once at the first call of a kernel, may ask for less.

    Returns:
        ``"baseline"``, ``"avx2"`` or ``"avx512"``.

    Example:
        >>> not available() or instruction_set() in ("baseline", "avx2", "avx512")
        True
    """
    return ("baseline", "avx2", "avx512")[torch.ops.normwise.isa()]


def supports(x: Tensor) -> bool:
    """Whether the kernels take this tensor.

    Args:
        x: any tensor.

    Returns:
        Whether it is a strided CPU tensor of a supported type with at least two axes, and the kernels are available.

    Example:
        >>> supports(torch.zeros(2, 3, dtype=torch.int64))
        False
    """
    return _problem is None and x.is_cpu and x.dtype in DTYPES and x.ndim >= 2 and x.layout == torch.strided


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every cell, as :func:`normwise.ops.reference.moments`.

    Args:
        x: (N, C, ...).

    Returns:
        ``(mean, var)``, both (N, C).

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> [t.item() for t in moments(x)] if available() else [2.0, 1.0]
        [2.0, 1.0]
    """
    return torch.ops.normwise.moments(x)


def apply(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None = None, slope: float = 0.01
) -> Tensor:
    """Normalize: ``act((x − center) · scale + shift)``, as :func:`normwise.ops.reference.apply`.

    Args:
        x: (N, C, ...).
        center: what to subtract, per cell.
        scale: what to multiply with, per cell.
        shift: what to add, per cell.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        slope: the negative slope of ``"leaky_relu"``.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Example:
        >>> x, two, zero = torch.tensor([[[1.0, 3.0]]]), torch.full((1, 1), 2.0), torch.zeros(1, 1)
        >>> apply(x, two, two, zero, "relu").tolist() if available() else [[[0.0, 2.0]]]
        [[[0.0, 2.0]]]
    """
    return torch.ops.normwise.apply(x, center, scale, shift, _CODES[activation], slope)


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
    """S1 = Σ g and S2 = Σ g · (x − mean) per cell, as :func:`normwise.ops.reference.grad_sums`.

    Args:
        g: the gradient of the output, shaped like ``x``.
        x: the input of :func:`apply`.
        mean: the cells' means.
        center: as given to :func:`apply`.
        scale: as given to :func:`apply`.
        shift: as given to :func:`apply`.
        activation: as given to :func:`apply`; g is first taken through it.
        slope: as given to :func:`apply`.

    Returns:
        ``(S1, S2)``, both (N, C).

    Example:
        >>> g, x = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 3.0]]])
        >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        >>> [s.item() for s in grad_sums(g, x, 2 * one, zero, one, zero)] if available() else [3.0, 1.0]
        [3.0, 1.0]
    """
    return torch.ops.normwise.grad_sums(g, x, mean, center, scale, shift, _CODES[activation], slope)


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
    """``scale · g + (2 · grad_var / M) · (x − mean) + grad_mean / M``, as :func:`normwise.ops.reference.grad_input`.

    Args:
        g: the gradient of the output, shaped like ``x``.
        x: the input of :func:`apply`.
        mean: the cells' means.
        center: as given to :func:`apply`.
        scale: as given to :func:`apply`.
        shift: as given to :func:`apply`.
        grad_mean: the gradient of the cells' means.
        grad_var: the gradient of the cells' variances.
        activation: as given to :func:`apply`; g is first taken through it.
        slope: as given to :func:`apply`.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Example:
        >>> x, one, zero = torch.ones(1, 1, 2), torch.ones(1, 1), torch.zeros(1, 1)
        >>> grad_input(x, x, one, one, 3 * one, zero, 4 * one, zero).tolist() if available() else [[[5.0, 5.0]]]
        [[[5.0, 5.0]]]
    """
    return torch.ops.normwise.grad_input(
        g, x, mean, center, scale, shift, grad_mean, grad_var, _CODES[activation], slope
    )


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
    return _sample_norm(x, groups, weight, bias, eps, _CODES[activation], slope)


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
        ``(dx, dweight, dbias)``. The last two have the accumulation type and the parameter's shape; of an absent
        parameter they are what a (C,) one would get.

    Example:
        >>> x, moments = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0]], [[1.0]]], dtype=torch.float64)
        >>> sample_norm_backward(x, x, moments, 1, eps=0.0)[2].tolist() if available() else [4.0]
        [4.0]
    """
    return _sample_norm_backward(g, x, moments, groups, weight, bias, eps, _CODES[activation], slope)


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
        running: running mean and variance (C,), of the accumulation type and moved in place towards the pool over
            samples; the momentum; a count of batches that were not finite and left them as they are, or ``None``; a
            count of those that moved them, or ``None``.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        slope: the negative slope of ``"leaky_relu"``.

    Returns:
        ``(y, moments)``: the output, and the means and variances, float64, that :func:`mix_norm_backward` wants back.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> mix_norm(x, [0], eps=0.0)[0].tolist() if available() else [[[-1.0, 1.0]]]
        [[[-1.0, 1.0]]]
    """
    code = _CODES[activation]
    one = _is_one_pool(groups, mean_weight, var_weight)
    if one and groups[0]:
        return _sample_norm(x, groups[0], weight, bias, eps, code, slope)
    if one and population is not None:
        mean, var = population[0], population[1]
        return _batch_norm(x, weight, bias, eps, False, mean, var, None, None, 0.0, code, slope)
    running_mean, running_var, momentum, skipped, tracked = _NOT_RUNNING if running is None else running
    rest = (running_mean, running_var, skipped, tracked, float(momentum), code, slope)
    if one:
        return _batch_norm(x, weight, bias, eps, True, *rest)
    known = (None, None) if population is None else population[:2]
    return _mix_norm(x, weight, bias, mean_weight, var_weight, logits, groups, eps, *known, *rest)


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
        The gradients of x, weight, bias, mean_weight and var_weight. Those of the parameters have the accumulation
        type; where a parameter is absent they have no meaning, or are ``None``.

    Example:
        >>> x, moments = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0]], [[1.0]]], dtype=torch.float64)
        >>> mix_norm_backward(x, x, moments, [0], eps=0.0)[2].tolist() if available() else [4.0]
        [4.0]
    """
    act = (_CODES[activation], slope)
    one = _is_one_pool(groups, mean_weight, var_weight)
    if one and groups[0]:
        return *_sample_norm_backward(g, x, moments, groups[0], weight, bias, eps, *act), None, None
    if one:
        return *_batch_norm_backward(g, x, moments, weight, bias, eps, population is None, True, *act), None, None
    known = (None, None) if population is None else population[:2]
    mix = (weight, bias, mean_weight, var_weight, logits, groups)
    return _mix_norm_backward(g, x, moments, *mix, eps, *known, *act)


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's ``native_layer_norm`` with autograd in C++ of its own; only where :func:`differentiates` says so.

    Args:
        x: (*, *shape).
        shape: the last axes.
        weight: of that shape, or ``None``.
        bias: likewise.
        eps: added to the variance.

    Returns:
        The output, the means, and the reciprocals of the deviations.

    Example:
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> layer_norm(x, [2], None, None, 0.0)[0].tolist() if differentiates() else [[-1.0, 1.0]]
        [[-1.0, 1.0]]
    """
    return _layer_norm(x, shape, weight, bias, eps)


if available():

    def _operator(name: str) -> Any:
        # Looked up once, and what it calls: either costs as much as a small tensor's arithmetic.
        operator = getattr(torch.ops.normwise, name).default
        return getattr(operator, "_op", operator)

    _sample_norm, _sample_norm_backward = _operator("sample_norm"), _operator("sample_norm_backward")
    _batch_norm, _batch_norm_backward = _operator("batch_norm"), _operator("batch_norm_backward")
    _mix_norm, _mix_norm_backward = _operator("mix_norm"), _operator("mix_norm_backward")
    for _name, _fake in FAKES.items():
        torch.library.register_fake(f"normwise::{_name}", _fake)
    if differentiates():
        _layer_norm = _operator("layer_norm")

"""``normalize``: any method of the family as a function, in the manner of ``torch.nn.functional.batch_norm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from normwise import kernels
from normwise.core.checks import check_axis, check_defined, check_fits, check_learned, check_running, refuse_nested
from normwise.core.distributed import Sync
from normwise.core.formula import Context
from normwise.core.last_axes import layer_norm, rms_norm
from normwise.core.method import Method
from normwise.core.moments import Moments, may_move, transforming, update_running
from normwise.core.route import Running, all_learned, at_once, needs_plain_graph, normalized, numbered
from normwise.errors import InputError
from normwise.methods import method_named

__all__ = ["normalize", "real_elements", "transforming"]


@torch.fx.wrap
def normalize(
    x: Tensor,
    method: str | Method | type[Method] = "batch",
    *,
    axis: int = 1,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_running: bool = False,
    momentum: float | Tensor | None = None,
    skipped: Tensor | None = None,
    tracked: Tensor | None = None,
    activation: str | None = None,
    slope: float = 0.01,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    sync: Sync | None = None,
    **learned: Tensor | None,
) -> Tensor:
    """Normalize ``x`` by one method of the family: ``y = act((x − center) · scale + shift)``.

    ``center``, ``scale`` and ``shift`` are what the method makes of the means and variances of the cells ``x[n, c]``;
    the formula and source of each method stand with its class in :mod:`normwise.methods`. Statistics are held in
    float32 at least, whatever the dtype of ``x``.

    Under ``mask`` or ``lengths`` the result is that of the unpadded data: padding, whatever stands in it, touches
    neither statistics nor gradients, and comes out as 0. A statistic that the mask leaves a single element has variance
    0, so that element comes out as ``bias``; it does not move the running averages.

    Args:
        x: (N, C, ...) with any number of spatial axes, none included, or with ``axis=-1`` (N, ..., C); float16,
            bfloat16, float32 or float64.
        method: a method with its options, such as ``Group(num_groups=8)``, of :mod:`normwise.methods` or of your own;
            or a key of ``METHODS``, with options where need be: ``"group(num_groups=8)"``.
        axis: where the channels stand, 1 or -1. Methods that normalize each token by itself (``"rms"``, ``"l2"``) go
            over the channels of every position; so does ``"layer"`` where they come last.
        weight: (C,), or (N, C) to differ between samples; default 1.
        bias: (C,) or (N, C), default 0.
        eps: added to the variance.
        running_mean: (C,), the running averages; with ``running_var``.
        running_var: (C,).
        use_running: normalize by the running averages instead of the batch (evaluation), where the method keeps any.
        momentum: weight of this batch in the running averages, which are then changed in place; ``None`` leaves them.
            Under ``torch.func`` transforms they move where these were given them, one for each batch: in an ensemble.
        skipped: an integer tensor (); with it, a batch whose statistics are not finite leaves the running averages as
            they are and is counted here.
        tracked: an integer tensor (), which counts the batches that moved the running averages, and empty ones.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, applied to the result.
        slope: of ``"leaky_relu"``.
        mask: bool, ``True`` where an element is real: ``(N, *spatial)`` for all channels alike, or anything that
            broadcasts to ``x``, such as ``(N, 1, *spatial)``.
        lengths: (N,) integers: the elements of each sample along the last axis that are real. Not with ``mask``.
        sync: share the batch's statistics with other processes, all of which must then make this call.
        **learned: the method's learned tensors beside weight and bias, by the names in its ``learned``:
            ``mean_weight`` and ``var_weight`` of a switchable mix, the ``gate`` of batch-instance normalization. One
            that is not given is what it begins as.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        InputError: there is no such method, option or axis, it has no meaning for this shape, running averages are
            missing or go with no such method, or the mask or the lengths do not fit.
        NotImplementedError: ``x`` is not of floating-point numbers.
        RuntimeError: ``x`` has fewer than two axes, or its channels or dtype do not go with the parameters.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 2, 4)
        >>> y = normalize(x, "instance")
        >>> y.mean(-1).abs().max() < 1e-6
        tensor(True)
        >>> normalize(torch.tensor([[[1.0, 3.0, 99.0]]]), "instance", lengths=torch.tensor([2]), eps=0.0)
        tensor([[[-1.,  1.,  0.]]])
    """
    row = method if isinstance(method, Method) else method_named(method)
    if axis != 1 or row.per_token:
        check_axis(x, axis)
        first = x if axis == 1 else x.movedim(-1, 1)
        if row.by_position(axis):
            check_running(row, running_mean, running_var, use_running, momentum)
            given = {name: t for name, t in learned.items() if t is not None}
            context, keep = Context(weight, bias, eps), real_elements(first, mask, lengths)
            compute = _by_position if row.curve is None else _curved
            result = compute(first, row, context, given, keep, activation, slope)
        else:
            options: dict[str, Any] = {"running_mean": running_mean, "running_var": running_var, **learned}
            options |= {"use_running": use_running, "momentum": momentum, "skipped": skipped, "tracked": tracked}
            options |= {"activation": activation, "slope": slope, "mask": mask, "lengths": lengths, "sync": sync}
            result = normalize(first, row, weight=weight, bias=bias, eps=eps, **options)
        result = result if axis == 1 else result.movedim(1, -1)
        return result.contiguous() if x.is_contiguous() else result
    running = None
    if momentum is not None and not use_running and running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, momentum, skipped, tracked)
    averages = (running_mean, running_var) if use_running else None
    used = running is not None or use_running or running_mean is running_var is None
    if mask is lengths is sync is None and used and learned.keys() <= row.learned.keys():
        y = _plainly(x, row, weight, bias, eps, activation, slope, running, averages, learned)
        if y is not None:
            return y
    refuse_nested(x)
    check_running(row, running_mean, running_var, use_running, momentum)
    given = {name: t for name, t in learned.items() if t is not None} if learned else {}
    keep = real_elements(x, mask, lengths)
    check_fits(x, row, {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias})
    if given:
        check_learned(x, row, given)
    kernels.known_activation(activation)
    stored = None
    if running_mean is not None and running_var is not None and (use_running or row.reads_reference):
        dtype = kernels.accumulation_dtype(x.dtype)
        # Copies where there is a backward pass: the next training step may change the buffers before it runs.
        copy = torch.is_grad_enabled() or needs_plain_graph()
        mean, var = (t.to(dtype, copy=copy).unsqueeze(0) for t in (running_mean, running_var))
        stored = Moments(mean, var)
    exchange = None if sync is None else sync.exchange()
    population, reference = (stored, None) if use_running else (None, stored)
    context = Context(weight, bias, eps, population, reference, exchange)
    check_defined(x, row, context)
    if keep is not None:
        # Filled before, so that nothing in the padding can spread, and after, which also cuts off its gradient.
        x = torch.where(keep, x, 0)
    # A rank without data still learns what the others saw.
    some = x.numel() > 0 or exchange is not None
    moves = running is not None and may_move((running_mean, running_var, tracked), (x, keep))
    if moves and not some and tracked is not None:
        tracked.add_(1)  # as in torch
    running = running if moves and some else None
    y, cells = normalized(x, row, context, given, keep, activation, slope, running)
    if keep is not None:
        y = torch.where(keep, y, 0)
    if running is not None and cells is not None:
        moved = (running.momentum, running.skipped, running.tracked)
        update_running(running.mean, running.var, row.track(cells, context), *moved)
    return y


def _by_position(
    x: Tensor,
    row: Method,
    given: Context,
    learned: Mapping[str, Tensor],
    keep: Tensor | None,
    activation: str | None,
    slope: float,
) -> Tensor:
    """Normalize (N, C, ...) with each position in the place of a sample."""
    N, C, dtype = x.shape[0], x.shape[1], kernels.accumulation_dtype(x.dtype)
    check_fits(x, row, {"weight": given.weight, "bias": given.bias})
    check_learned(x, row, learned)
    kernels.known_activation(activation)
    last = x.movedim(1, -1)
    keep = None if keep is None else keep.movedim(1, -1)
    per_sample = any(t is not None and t.ndim > 1 for t in (given.weight, given.bias))
    if row.centred is not None and not per_sample and (keep is None or keep.shape[-1] == 1) and slope == 0.01:
        last = last if keep is None else torch.where(keep, last, 0)
        given = row.terms(given, Moments(last.new_zeros((), dtype=dtype), last.new_zeros((), dtype=dtype), C))
        weight = None if given.weight is None else given.weight.expand(C).contiguous()
        if row.centred:
            y = layer_norm(last, (C,), weight, given.bias, given.eps, activation)
        else:
            y = rms_norm(last, (C,), weight, given.eps, activation, given.bias)
    else:
        rows = last.reshape(-1, C)
        if per_sample:
            each = len(rows) // max(N, 1)
            weight, bias = (
                t if t is None or t.ndim < 2 else t.expand(N, C).repeat_interleave(each, 0)
                for t in (given.weight, given.bias)
            )
            given = given._replace(weight=weight, bias=bias)
        mask = None if keep is None else keep.expand(*last.shape[:-1], keep.shape[-1]).reshape(-1, keep.shape[-1])
        rows = rows if mask is None else torch.where(mask, rows, 0)
        y = normalized(rows, row, given, learned, mask, activation, slope, None)[0].reshape(last.shape)
    y = y if keep is None else torch.where(keep, y, 0)
    return y.movedim(-1, 1)


def _curved(
    x: Tensor,
    row: Method,
    given: Context,
    learned: Mapping[str, Tensor],
    keep: Tensor | None,
    activation: str | None,
    slope: float,
) -> Tensor:
    """A curve of each element of (N, C, ...), then weight and bias."""
    assert row.curve is not None
    dtype = kernels.accumulation_dtype(x.dtype)
    check_fits(x, row, {"weight": given.weight, "bias": given.bias})
    check_learned(x, row, learned)
    y = x if keep is None else torch.where(keep, x, 0)
    y = row.curve(y.to(dtype), **{name: t.to(dtype) for name, t in all_learned(x, row, learned)})
    weight, bias = (
        None if t is None else t.to(dtype).reshape(*t.shape, *(1,) * (x.ndim - 2)) for t in (given.weight, given.bias)
    )
    y = y if weight is None else y * weight
    y = kernels.activate(y if bias is None else y + bias, activation, slope).to(x.dtype)
    return y if keep is None else torch.where(keep, y, 0)


def _plainly(
    x: Tensor,
    method: Method,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    running: Running | None,
    population: tuple[Tensor | None, Tensor | None] | None,
    learned: Mapping[str, Tensor | None],
) -> Tensor | None:
    """By the C++ library or torch's kernels, before all checks, which take a small tensor longer than that."""
    if torch.compiler.is_compiling() or x.is_nested or x.ndim < 2 or type(x.shape[1]) is not int:
        return None
    stored = population is not None and None not in population
    pools = numbered(method, x.shape[1], stored)
    if pools is None or (population is not None and not stored) or ((running or population) and 0 not in pools):
        return None
    if not learned:
        return at_once(x, pools, weight, bias, eps, activation, slope, running, population)
    mix = method.mix(stored)
    shares = (learned.get("mean_weight"), learned.get("var_weight"), mix is None or mix.logits)
    return at_once(x, pools, weight, bias, eps, activation, slope, running, population, *shares)


def real_elements(x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor | None:
    """Check a mask or lengths against an input, and give the mask that broadcasts to it.

    Args:
        x: (N, C, ...).
        mask: bool, ``(N, *spatial)`` or broadcastable to ``x``; ``True`` is real.
        lengths: (N,) integers, the real elements along the last axis.

    Returns:
        A mask with as many axes as ``x``; ``None`` without mask and lengths.

    Raises:
        InputError: both are given, or one of the wrong type, shape or range.

    Example:
        >>> real_elements(torch.zeros(2, 3, 4), lengths=torch.tensor([1, 4])).int()
        tensor([[[1, 0, 0, 0]],
                [[1, 1, 1, 1]]], dtype=torch.int32)
    """
    if mask is None and lengths is None:
        return None
    if mask is not None and lengths is not None:
        raise InputError("give mask or lengths, not both: lengths are short for the mask of right-padded sequences")
    return _from_lengths(x, lengths) if mask is None else _broadcastable(x, mask)


def _broadcastable(x: Tensor, mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"mask must be a bool tensor, True where an element is real, got {came}: try mask.bool()")
    shape = tuple(mask.shape)
    if mask.ndim == x.ndim - 1:
        mask = mask.unsqueeze(1)
    if mask.ndim != x.ndim or [m for m, size in zip(mask.shape, x.shape, strict=True) if m not in (1, size)]:
        N, space = x.shape[0], tuple(x.shape[2:])
        raise InputError(
            f"mask of shape {shape} does not fit an input of shape {tuple(x.shape)}: expected {(N, *space)}, or "
            f"{(N, 1, *space)}"
        )
    return mask.to(x.device)


def _from_lengths(x: Tensor, lengths: Tensor | None) -> Tensor:
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        came = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise InputError(f"lengths must be an integer tensor of shape (N,), got {came}")
    if x.ndim < 3:
        raise InputError(f"lengths need a spatial axis, got an input of shape {tuple(x.shape)}: use mask of shape (N,)")
    N, size = x.shape[0], x.shape[-1]
    if lengths.shape != (N,):
        raise InputError(f"lengths must have shape ({N},) for {N} samples, got {tuple(lengths.shape)}")
    # Only where looking does not make the host wait for a device.
    looks = lengths.device.type == "cpu" and not needs_plain_graph()
    if looks and N and not 0 <= int(lengths.min()) <= int(lengths.max()) <= size:
        raise InputError(f"lengths must lie in 0..{size}, the size of the last axis, got {lengths.tolist()}")
    mask = torch.arange(size, device=x.device) < lengths.to(x.device).unsqueeze(1)
    return mask.reshape(N, *(1,) * (x.ndim - 2), size)

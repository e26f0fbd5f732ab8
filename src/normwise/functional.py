"""``normalize``: moments → method → affine map, with the backward pass fused.

Between forward and backward nothing of the size of ``x`` is kept but ``x`` itself; see docs/design for the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normwise import ops
from normwise.errors import InputError
from normwise.methods import Inputs, Method, elements_behind, method_named
from normwise.moments import Moments, update_running

__all__ = ["normalize"]

# The tensors among a method's inputs, in the order in which the autograd function takes and returns them.
_TENSORS = ("weight", "bias", "mean_weight", "var_weight")


@torch.fx.wrap
def normalize(
    x: Tensor,
    method: str = "batch",
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    num_groups: int = 1,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_running: bool = False,
    momentum: float | Tensor | None = None,
    over: tuple[str, ...] = ("instance", "layer", "batch"),
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    variance: str = "paper",
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor:
    """Normalize ``x`` by one method of the family: ``y = act((x − center) · scale + shift)``.

    ``center``, ``scale`` and ``shift`` are what the method makes of the means and variances of the cells ``x[n, c]``;
    the formula and source of each method stand with its function in :mod:`normwise.methods`. Statistics are held in
    float32 at least, whatever the dtype of ``x``.

    Args:
        x: (N, C, ...) with any number of spatial axes, none included; float16, bfloat16, float32 or float64.
        method: a key of ``METHODS``.
        weight: (C,), default 1.
        bias: (C,), default 0.
        eps: added to the variance.
        num_groups: of group normalization and of a switchable mix's group member; divides C.
        running_mean: (C,), the running averages; with ``running_var``.
        running_var: (C,).
        use_running: normalize by the running averages instead of the batch (evaluation).
        momentum: weight of this batch in the running averages, which are then changed in place; ``None`` leaves them.
        over: the members of a switchable mix.
        mean_weight: (K,), logits of the mix of means; default equal.
        var_weight: (K,), logits of the mix of variances; default equal.
        variance: ``"paper"`` or ``"official"``, of a switchable mix.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, applied to the result.
        slope: of ``"leaky_relu"``.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        InputError: there is no such method, or it has no meaning for this shape.
        RuntimeError: ``x`` has fewer than two axes.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 2, 4)
        >>> y = normalize(x, "instance")
        >>> y.mean(-1).abs().max() < 1e-6
        tensor(True)
    """
    row = method_named(method)
    population = None
    if use_running and running_mean is not None and running_var is not None:
        dtype = ops.accumulation_dtype(x.dtype)
        # Copies: the next training step may change the buffers before this step's backward pass runs.
        population = Moments(running_mean.to(dtype, copy=True)[None], running_var.to(dtype, copy=True)[None])
    inputs = Inputs(weight, bias, eps, num_groups, population, over, mean_weight, var_weight, variance)
    _check_defined(x, row, inputs)
    y, cells = _normalize(x, row, inputs, activation, slope)
    if momentum is not None and not use_running and running_mean is not None and running_var is not None and x.numel():
        assert row.track is not None, f"{method} keeps no running averages"
        update_running(running_mean, running_var, row.track(cells), momentum)
    return y


# For a single element: what the method needs more of, in torch's words, and what to do.
_UNDEFINED = {
    "batch": ("value per channel", "Use batches of 2 or more (drop_last=True), or group or layer normalization"),
    "instance": ("spatial element", "Use group or layer normalization where the map is 1×1"),
    "group": ("value per group", "Use fewer groups"),
    "layer": ("value per sample", "Normalize before the features shrink to one"),
}


def _check_defined(x: Tensor, row: Method, inputs: Inputs) -> None:
    """Refuse what has no variance: with one element behind a statistic every input would come out as ``bias``."""
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    if not x.numel() or not row.reads_cells(inputs):
        return
    if elements_behind(inputs, x.shape[0], x.shape[1], _elements(x)).get(row.name) == 1:
        scope, remedy = _UNDEFINED[row.name]
        raise InputError(
            f"Expected more than 1 {scope} when training, got input size {tuple(x.shape)}: the variance of a single "
            f"value is 0, and {row.name} normalization would erase the data. {remedy}"
        )


def _normalize(x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float) -> tuple[Tensor, Moments]:
    if _needs_plain_graph():
        return _composite(x, row, inputs, activation, slope)
    y, mean, var = _Fused.apply(x, row, inputs, activation, slope, *(getattr(inputs, name) for name in _TENSORS))
    return y, Moments(mean, var, _elements(x))


def _elements(x: Tensor) -> int:
    """Elements per cell."""
    count = 1
    for size in x.shape[2:]:
        count *= size
    return count


def _needs_plain_graph() -> bool:
    """Whether a transform has to see every operator: ``torch.func``, forward mode, compilation and export."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _cells(x: Tensor, row: Method, inputs: Inputs, moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Moments:
    """The moments of ``x``, or a placeholder where the method does not read them."""
    if row.reads_cells(inputs):
        return Moments(*moments(x), _elements(x))
    zero = x.new_zeros((1, 1), dtype=ops.accumulation_dtype(x.dtype))
    return Moments(zero, zero, 1)


def _composite(x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float) -> tuple[Tensor, Moments]:
    """The same result from differentiable operators alone, for derivatives of any order."""
    cells = _cells(x, row, inputs, ops.reference.moments)
    return ops.reference.apply(x, *row.function(cells, inputs), activation, slope), cells


class _Fused(torch.autograd.Function):
    """Forward by two kernels, backward by two more; the method's own part is differentiated by autograd on (N, C)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        cells = _cells(x, row, inputs, ops.moments)
        affine = row.function(cells, inputs)
        y = ops.apply(x, *affine, activation, slope)
        ctx.row, ctx.activation, ctx.slope = row, activation, slope
        # The parameters are saved as tensors, so that changing one before the backward pass is an error as elsewhere.
        ctx.inputs = _with_tensors(inputs, [None] * len(_TENSORS))
        ctx.save_for_backward(x, cells.mean, cells.var, *tensors)
        # Without spatial axes the mean may be x itself, which an autograd function must not return unchanged.
        mean = cells.mean.clone() if cells.mean is x else cells.mean
        ctx.mark_non_differentiable(mean, cells.var)
        return y, mean, cells.var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, *tensors = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        run = _differentiable_backward if torch.is_grad_enabled() else _fused_backward
        grad_x, *grad_tensors = run(ctx, grad, x, Moments(mean, var, _elements(x)), tensors, wanted)
        return grad_x, None, None, None, None, *grad_tensors


def _with_tensors(inputs: Inputs, tensors: Sequence[Tensor | None]) -> Inputs:
    named: dict[str, Any] = dict(zip(_TENSORS, tensors, strict=True))
    return inputs._replace(**named)


def _differentiable_backward(
    ctx: Any, grad: Tensor, x: Tensor, cells: Moments, tensors: list[Tensor | None], wanted: list[bool]
) -> list[Tensor | None]:
    """With ``create_graph=True``: differentiate the composite, whose gradient has gradients of its own."""
    y, _ = _composite(x, ctx.row, _with_tensors(ctx.inputs, tensors), ctx.activation, ctx.slope)
    return _gradients([y], [x, *tensors], [grad], wanted, create_graph=True)


def _fused_backward(
    ctx: Any, grad: Tensor, x: Tensor, cells: Moments, tensors: list[Tensor | None], wanted: list[bool]
) -> list[Tensor | None]:
    with torch.enable_grad():
        mean, var = cells.mean.detach().requires_grad_(), cells.var.detach().requires_grad_()
        parameters = [None if t is None else t.detach().requires_grad_() for t in tensors]
        affine = ctx.row.function(Moments(mean, var, cells.elements), _with_tensors(ctx.inputs, parameters))
    center, scale, shift = (t.detach() for t in affine)
    # Sums about the cells' means lose the least; where these are not known, about the center.
    about = cells.mean if ctx.row.reads_cells(ctx.inputs) else center
    s1, s2 = ops.grad_sums(grad, x, about, center, scale, shift, ctx.activation, ctx.slope)
    grad_affine = (-scale * s1, s2 + (about - center) * s1, s1)
    live = [(a, g.sum_to_size(a.shape)) for a, g in zip(affine, grad_affine, strict=True) if a.requires_grad]
    leaves = [mean, var, *parameters]
    grad_mean, grad_var, *grad_tensors = _gradients(
        [a for a, _ in live], leaves, [g for _, g in live], [True, True, *wanted[1:]]
    )
    if not wanted[0]:
        return [None, *grad_tensors]
    grad_mean, grad_var = (torch.zeros_like(mean) if g is None else g for g in (grad_mean, grad_var))
    args = (about, center, scale, shift, grad_mean, grad_var, ctx.activation, ctx.slope)
    return [ops.grad_input(grad, x, *args), *grad_tensors]


def _gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    wanted: Sequence[bool],
    create_graph: bool = False,
) -> list[Tensor | None]:
    """``torch.autograd.grad`` for the wanted inputs, ``None`` for the others."""
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    if not outputs:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if want else None for want in wanted]

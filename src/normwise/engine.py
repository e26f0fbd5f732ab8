"""The engine: cells' moments → method → affine map, with the backward pass fused.

Forward is two kernels (``moments``, ``apply``), backward two more (``grad_sums``, ``grad_input``); the method lives on
(N, C) tensors between them and is differentiated by autograd. A method that is a mix of pools goes whole through one
native call each way, which knows the vjp of pools and mix in closed form. Nothing of the size of ``x`` is kept for the
backward pass but ``x`` itself; an activation is recomputed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normwise import ops
from normwise.methods import METHODS, Inputs, Method
from normwise.moments import Moments

# The tensors among a method's inputs, in the order in which the autograd function takes and returns them.
_TENSORS = ("weight", "bias", "mean_weight", "var_weight", "extra")


class Running(NamedTuple):
    """Running averages (C,) to move towards the batch; see :func:`normwise.moments.update_running`.

    Example:
        >>> Running(torch.zeros(3), torch.ones(3), momentum=0.1).skipped is None
        True
    """

    mean: Tensor
    var: Tensor
    momentum: float | Tensor
    skipped: Tensor | None = None
    tracked: Tensor | None = None


def run(
    x: Tensor,
    row: Method,
    inputs: Inputs,
    activation: str | None = None,
    slope: float = 0.01,
    running: Running | None = None,
) -> tuple[Tensor, Moments | None]:
    """Normalize by one method, and give the cells' moments that it was computed from.

    Args:
        x: (N, C, ...).
        row: the method.
        inputs: its inputs.
        activation: applied to the result; see :func:`normwise.ops.activate`.
        slope: of ``"leaky_relu"``.
        running: what the caller will move by the cells' moments, unless that happens on the way.

    Returns:
        The result, differentiable to any order in ``x`` and the tensors among ``inputs``, and the moments per cell,
        which are for bookkeeping and carry no gradient where the backward pass is fused; ``None`` where there is
        nothing left to do with them.

    Example:
        >>> from normwise.methods import METHODS
        >>> y, _ = run(torch.tensor([[[1.0, 3.0]]]), METHODS["instance"], Inputs(eps=0.0))
        >>> y
        tensor([[[-1.,  1.]]])
    """
    if needs_plain_graph():
        return _composite(x, row, inputs, activation, slope)
    groups = _native_groups(x, row, inputs, running)
    if groups is not None:
        return _mix(x, row, inputs, groups, activation, slope, running), None
    y, mean, var = _Fused.apply(x, row, inputs, activation, slope, *(getattr(inputs, name) for name in _TENSORS))
    return y, Moments(mean, var, _elements(x, inputs))


def run_pool(
    x: Tensor,
    method: str | Method,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    running: Running | None = None,
    population: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """Normalize by one pool in one native call, checking no more than that needs.

    The ordinary case of :func:`run`, before all checks: a small tensor spends its time on them.

    Args:
        x: (N, C, ...).
        method: which; those but batch, layer, group and instance are out of the ordinary.
        num_groups: of group norm.
        weight: (C,) or ``None``.
        bias: likewise.
        eps: added to the variance.
        activation: applied to the result.
        slope: of ``"leaky_relu"``.
        running: averages to move towards the pool over samples.
        population: mean and variance (C,) in the place of the pool over samples, for a call without gradients.

    Returns:
        The result; ``None`` where anything is out of the ordinary, whether valid or not.

    Example:
        >>> y = run_pool(torch.tensor([[[1.0, 3.0]]]), "layer", 1, None, None, 0.0, None, 0.01)
        >>> y is None or y.tolist() == [[[-1.0, 1.0]]]
        True
    """
    if method not in _GROUPS or activation not in ops.ACTIVATIONS or needs_plain_graph() or not ops.native.supports(x):
        return None
    shape, dtype = x.shape, x.dtype
    C, per_channel, wide = shape[1], shape[1:2], ops.accumulation_dtype(dtype)
    learns = x.requires_grad
    for t in (weight, bias):
        if t is not None:
            if t.shape != per_channel or not (t.dtype == dtype or t.dtype == wide):
                return None
            learns |= t.requires_grad
    if C < 1 or num_groups < 1 or C % num_groups:
        return None
    groups = _GROUPS[method](C, num_groups)
    if population is not None:
        fits = population[0].shape == population[1].shape == per_channel and x.numel() > 0
        if not fits or (learns and torch.is_grad_enabled()):
            return None
        given = (None, None, True, eps, population, None, activation, slope)
        return ops.native.mix_norm(x, (0,), weight, bias, *given)[0]
    # At least two values behind each statistic.
    if x.numel() < 2 * (shape[0] * groups or C):
        return None
    if running is not None and not (running.mean.shape == running.var.shape == per_channel and _movable(running, x)):
        return None
    if learns and torch.is_grad_enabled():
        return _Pool.apply(x, weight, bias, (method, groups, eps, activation, slope), running)
    options = (None, None, True, eps, None, running, activation, slope)
    return ops.native.mix_norm(x, (groups,), weight, bias, *options)[0]


class _Pool(torch.autograd.Function):
    """A normalization by one pool: one native call forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: tuple[Any, ...], running: Running | None
    ) -> Tensor:
        _, groups, eps, activation, slope = ctx.call = call
        options = (None, None, True, eps, None, running, activation, slope)
        y, mean, var = ops.native.mix_norm(x, (groups,), weight, bias, *options)
        ctx.save_for_backward(x, mean, var, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias = ctx.saved_tensors
        method, groups, eps, activation, slope = ctx.call
        if torch.is_grad_enabled():
            call = _Call(METHODS[method], Inputs(weight, bias, eps, max(1, groups)), [groups], activation, slope, None)
            wanted = [*ctx.needs_input_grad[:3], False, False, False]
            found = _differentiable_backward(call, grad, x, [weight, bias, None, None, None], wanted)
            return *found[:3], None, None
        options = (weight, bias, None, None, True, eps, None, activation, slope)
        dx, dw, db, *_ = ops.native.mix_norm_backward(grad, x, mean, var, (groups,), *options)
        # Autograd ignores what nobody wants, but not the gradient of nothing.
        return dx, None if weight is None else dw, None if bias is None else db, None, None


# How many groups a pool has within a sample; 0 is the pool over samples. The native kernels know pools by this number.
_GROUPS: dict[str, Callable[[int, int], int]] = {
    "instance": lambda channels, num_groups: channels,
    "layer": lambda channels, num_groups: 1,
    "group": lambda channels, num_groups: num_groups,
    "batch": lambda channels, num_groups: 0,
}


def _native_groups(x: Tensor, row: Method, p: Inputs, running: Running | None) -> list[int] | None:
    """The pools that the method mixes, by their groups; ``None`` where it does more, or the kernels do not serve."""
    if row.members is None or p.mask is not None or p.exchange is not None or not ops.native.supports(x):
        return None
    if p.parts != "both" or p.variance != "paper" or x.numel() == 0:
        return None
    groups = [_GROUPS[name](x.shape[1], p.num_groups) for name in row.members(p)]
    if len(groups) > 1 and x.numel() == x.shape[0] * x.shape[1]:
        return None  # with one element a cell some members have no meaning and the method drops them
    if running is not None and not (0 in groups and _movable(running, x)):
        return None
    return groups


def _movable(running: Running, x: Tensor) -> bool:
    """Whether a native kernel can move the running averages."""
    mean, var, dtype = running.mean, running.var, ops.accumulation_dtype(x.dtype)
    alike = mean.dtype == var.dtype == dtype and mean.is_cpu and var.is_cpu
    return alike and mean.is_contiguous() and var.is_contiguous()


def _elements(x: Tensor, inputs: Inputs) -> int | Tensor:
    """Elements per cell, or under a mask how many of them count."""
    if inputs.mask is None:
        return elements_per_cell(x)
    mask = inputs.mask.expand(x.shape[0], inputs.mask.shape[1], *x.shape[2:])
    return mask.sum(tuple(range(2, x.ndim))) if x.ndim > 2 else mask.long()


def elements_per_cell(x: Tensor) -> int:
    """How many elements each cell (n, c) holds; 1 without spatial axes.

    Args:
        x: (N, C, ...).

    Returns:
        The product of the spatial sizes.

    Example:
        >>> elements_per_cell(torch.zeros(2, 3, 4, 5))
        20
    """
    count = 1
    for size in x.shape[2:]:
        count *= size
    return count


def needs_plain_graph() -> bool:
    """Whether a transform has to see every operator: ``torch.func``, forward mode, compilation and export.

    Returns:
        ``True`` where a composite of plain operators must run in the place of fused ones.

    Example:
        >>> needs_plain_graph()
        False
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _cells(x: Tensor, row: Method, inputs: Inputs, moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Moments:
    """The moments of ``x``, or a placeholder where the method does not read them."""
    if row.reads_cells(inputs):
        # Masked moments have no native kernel: the plain ones serve.
        values = moments(x) if inputs.mask is None else ops.reference.moments(x, inputs.mask)
        return Moments(*values, _elements(x, inputs))
    zero = x.new_zeros((1, 1), dtype=ops.accumulation_dtype(x.dtype))
    return Moments(zero, zero, 1)


def _composite(x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float) -> tuple[Tensor, Moments]:
    """The same result from differentiable operators alone, for derivatives of any order."""
    cells = _cells(x, row, inputs, ops.reference.moments)
    return ops.reference.apply(x, *row.function(cells, inputs), activation, slope), cells


def _mix(
    x: Tensor, row: Method, p: Inputs, groups: list[int], activation: str | None, slope: float, running: Running | None
) -> Tensor:
    """The whole normalization in one native call."""
    mean_weight, var_weight = (p.mean_weight, p.var_weight) if "mean_weight" in row.parameters else (None, None)
    if torch.is_grad_enabled() and _any_requires_grad(x, p.weight, p.bias, mean_weight, var_weight):
        call = _Call(row, p, groups, activation, slope, running)
        return _Mix.apply(x, p.weight, p.bias, mean_weight, var_weight, call)
    options = (p.logits, p.eps, p.population, running, activation, slope)
    return ops.native.mix_norm(x, groups, p.weight, p.bias, mean_weight, var_weight, *options)[0]


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    for t in tensors:  # noqa: SIM110 - a generator would take longer than the loop
        if t is not None and t.requires_grad:
            return True
    return False


class _Call(NamedTuple):
    """What a native call takes beside tensors that may want gradients. One argument, because each costs time."""

    row: Method
    inputs: Inputs
    groups: list[int]
    activation: str | None
    slope: float
    running: Running | None


class _Mix(torch.autograd.Function):
    """One native call forward and one backward; written for small tensors, where Python takes most of the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        weight, bias, mean_weight, var_weight, call = args
        _, p, groups, activation, slope, running = call
        options = (p.logits, p.eps, p.population, running, activation, slope)
        y, mean, var = ops.native.mix_norm(x, groups, weight, bias, mean_weight, var_weight, *options)
        ctx.save_for_backward(x, mean, var, weight, bias, mean_weight, var_weight)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias, mean_weight, var_weight = ctx.saved_tensors
        call = ctx.call
        if torch.is_grad_enabled():
            tensors = [weight, bias, mean_weight, var_weight, None]
            return *_differentiable_backward(call, grad, x, tensors, [*ctx.needs_input_grad])[:5], None
        _, p, groups, activation, slope, _ = call
        options = (weight, bias, mean_weight, var_weight, p.logits, p.eps, p.population, activation, slope)
        dx, dw, db, of_means, of_vars = ops.native.mix_norm_backward(grad, x, mean, var, groups, *options)
        # Autograd ignores what nobody wants, but not a gradient of None.
        return (
            dx,
            None if weight is None else dw,
            None if bias is None else db,
            None if mean_weight is None else of_means,
            None if var_weight is None else of_vars,
            None,
        )


class _Fused(torch.autograd.Function):
    """Forward by two kernels, backward by two more; the method's own part is differentiated by autograd on (N, C)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        cells = _cells(x, row, inputs, ops.moments)
        affine = row.function(cells, inputs)
        y = ops.apply(x, *affine, activation, slope)
        ctx.row, ctx.inputs, ctx.activation, ctx.slope = row, inputs, activation, slope
        # The parameters are saved as tensors, so that changing one before the backward pass is an error as elsewhere.
        ctx.save_for_backward(x, cells.mean, cells.var, *tensors)
        # Without spatial axes the mean may be x itself, which an autograd function must not return unchanged.
        mean = cells.mean.clone() if cells.mean is x else cells.mean
        ctx.mark_non_differentiable(mean, cells.var)
        return y, mean, cells.var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, *tensors = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        if torch.is_grad_enabled():
            grad_x, *grad_tensors = _differentiable_backward(ctx, grad, x, tensors, wanted)
        else:
            cells = Moments(mean, var, _elements(x, ctx.inputs))
            grad_x, *grad_tensors = _fused_backward(ctx, grad, x, cells, tensors, wanted)
        return grad_x, None, None, None, None, *grad_tensors


def _with_tensors(inputs: Inputs, tensors: Sequence[Tensor | None]) -> Inputs:
    named: dict[str, Any] = dict(zip(_TENSORS, tensors, strict=True))
    return inputs._replace(**named)


def _differentiable_backward(
    call: Any, grad: Tensor, x: Tensor, tensors: list[Tensor | None], wanted: list[bool]
) -> list[Tensor | None]:
    """With ``create_graph=True``: differentiate the composite, whose gradient has gradients of its own."""
    y, _ = _composite(x, call.row, _with_tensors(call.inputs, tensors), call.activation, call.slope)
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
    if isinstance(cells.elements, Tensor):
        # The kernel divides by the size of the cell; under a mask fewer elements share the gradient.
        share = elements_per_cell(x) / cells.elements.clamp_min(1).to(mean.dtype)
        grad_mean, grad_var = grad_mean * share, grad_var * share
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

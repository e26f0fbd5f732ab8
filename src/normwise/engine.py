"""The engine: cells' moments → method → affine map, with the backward pass fused.

Forward is two kernels (``moments``, ``apply``), backward two more (``grad_sums``, ``grad_input``); the method lives on
(N, C) tensors between them and is differentiated by autograd. A method that is a mix of pools goes whole through one
native call each way (:mod:`normwise.mixes`). Nothing of the size of ``x`` is kept for the backward pass but ``x``
itself; an activation is recomputed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normwise import kernels
from normwise.composite import cells_of, compose, element_counts, elements_per_cell, gradients, needs_plain_graph
from normwise.core.moments import Moments
from normwise.methods import Inputs, Method
from normwise.mixes import Running, normalize_by_mix, pools_of

# The tensors among a method's inputs, in the order in which the autograd function takes and returns them.
_TENSORS = ("weight", "bias", "mean_weight", "var_weight", "extra")


def run(
    x: Tensor,
    row: Method,
    inputs: Inputs,
    activation: str | None = None,
    slope: float = 0.01,
    running: Running | None = None,
) -> tuple[Tensor, Moments | None]:
    """Normalize by one method, and give the cells' moments that it was computed from."""
    if needs_plain_graph():
        return compose(x, row, inputs, activation, slope)
    pools = pools_of(x, row, inputs, running)
    if pools is not None:
        p, learned = inputs, "mean_weight" in row.parameters
        mix = (pools, p.weight, p.bias, p.mean_weight if learned else None, p.var_weight if learned else None, p.logits)
        return normalize_by_mix(x, *mix, p.eps, p.population, running, activation, slope), None
    tensors = [getattr(inputs, name) for name in _TENSORS]
    try:
        y, mean, var = _Fused.apply(x, row, inputs, activation, slope, *tensors)
    except _LearnsMore:
        return compose(x, row, inputs, activation, slope)
    return y, Moments(mean, var, element_counts(x, inputs))


class _LearnsMore(Exception):  # noqa: N818 - not an error
    """The method's function draws on a tensor that wants a gradient and that only a composite can give one."""


class _Fused(torch.autograd.Function):
    """Forward by two kernels, backward by two more; the method's own part is differentiated by autograd on (N, C)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        cells = cells_of(x, row, inputs, kernels.moments)
        known = [None if t is None else t.detach() for t in tensors]
        with torch.enable_grad():  # of what is known nothing wants a gradient: what does is closed over
            affine = row.function(cells, _with_tensors(inputs, known))
        if any(t.requires_grad for t in affine):
            raise _LearnsMore
        y = kernels.apply(x, *affine, activation, slope)
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
            cells = Moments(mean, var, element_counts(x, ctx.inputs))
            grad_x, *grad_tensors = _fused_backward(ctx, grad, x, cells, tensors, wanted)
        return grad_x, None, None, None, None, *grad_tensors


def _with_tensors(inputs: Inputs, tensors: Sequence[Tensor | None]) -> Inputs:
    named: dict[str, Any] = dict(zip(_TENSORS, tensors, strict=True))
    return inputs._replace(**named)


def _differentiable_backward(
    call: Any, grad: Tensor, x: Tensor, tensors: list[Tensor | None], wanted: list[bool]
) -> list[Tensor | None]:
    """With ``create_graph=True``: differentiate the composite, whose gradient has gradients of its own."""
    y, _ = compose(x, call.row, _with_tensors(call.inputs, tensors), call.activation, call.slope)
    return gradients([y], [x, *tensors], [grad], wanted, create_graph=True)


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
    s1, s2 = kernels.grad_sums(grad, x, about, center, scale, shift, ctx.activation, ctx.slope)
    grad_affine = (-scale * s1, s2 + (about - center) * s1, s1)
    live = [(a, g.sum_to_size(a.shape)) for a, g in zip(affine, grad_affine, strict=True) if a.requires_grad]
    leaves = [mean, var, *parameters]
    grad_mean, grad_var, *grad_tensors = gradients(
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
    return [kernels.grad_input(grad, x, *args), *grad_tensors]

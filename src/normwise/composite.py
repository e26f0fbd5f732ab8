"""A method as a composite of plain operators: differentiable to any order, and open to every transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from normwise import kernels
from normwise.core.moments import Moments
from normwise.methods import Inputs, Method


def needs_plain_graph() -> bool:
    """Whether a transform has to see every operator: ``torch.func``, forward mode, compilation, export, ``make_fx``."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or (torch._C._len_torch_dispatch_stack() > 0 and any(torch._C._get_dispatch_mode(key) for key in _TRACERS))
    )


# Modes under which sizes may be symbols and values may be absent.
_TRACERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)


def elements_per_cell(x: Tensor) -> int:
    """How many elements each cell (n, c) holds; 1 without spatial axes."""
    count = 1
    for size in x.shape[2:]:
        count *= size
    return count


def element_counts(x: Tensor, inputs: Inputs) -> int | Tensor:
    """Elements per cell, or under a mask how many of them count."""
    if inputs.mask is None:
        return elements_per_cell(x)
    mask = inputs.mask.expand(x.shape[0], inputs.mask.shape[1], *x.shape[2:])
    return mask.sum(tuple(range(2, x.ndim))) if x.ndim > 2 else mask.long()


def cells_of(x: Tensor, row: Method, inputs: Inputs, moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Moments:
    """The moments of ``x``, or a placeholder where the method does not read them."""
    if row.reads_cells(inputs):
        # Masked moments have no native kernel: the plain ones serve.
        values = moments(x) if inputs.mask is None else kernels.reference.moments(x, inputs.mask)
        return Moments(*values, element_counts(x, inputs))
    zero = x.new_zeros((1, 1), dtype=kernels.accumulation_dtype(x.dtype))
    return Moments(zero, zero, 1)


def compose(x: Tensor, row: Method, inputs: Inputs, activation: str | None, slope: float) -> tuple[Tensor, Moments]:
    """Normalize by differentiable operators alone, for derivatives of any order."""
    cells = cells_of(x, row, inputs, kernels.reference.moments)
    return kernels.reference.apply(x, *row.function(cells, inputs), activation, slope), cells


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    wanted: Sequence[bool],
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Give ``torch.autograd.grad`` for the wanted inputs, ``None`` for the others."""
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    if not outputs:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if want else None for want in wanted]


def graph_of_gradients(
    formula: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor | None]:
    """Give the gradients of a formula by all its tensors, with gradients of their own."""
    leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in tensors]
    return gradients([formula(*leaves)], leaves, [grad], [t is not None for t in leaves], create_graph=True)


_LIBRARY = torch.library.Library("normwise", "IMPL") if kernels.native.differentiates() else None


def differentiate_by(operator: str, graph: Callable[..., list[Tensor | None]]) -> None:
    """Say how the gradients of an operator of ``torch.ops.normwise`` get gradients of their own.

    Autograd in C++ calls ``operator_backward``; with ``create_graph=True`` it finds there what is given here. Without
    that library nothing happens.
    """
    if _LIBRARY is None:
        return
    backward = getattr(torch.ops.normwise, f"{operator}_backward").default

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            # An operator returns no None; what stands for it is not looked at.
            return tuple([torch.empty(0) if g is None else g for g in graph(*args)])
        with torch._C._AutoDispatchBelowAutograd():
            return backward(*args)

    _LIBRARY.impl(f"{operator}_backward", kernel, "Autograd")

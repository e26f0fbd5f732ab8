"""The one autograd function, and the one way in which gradients get gradients of their own.

A :class:`Call` says how something is computed quickly, how its gradients are, and what it is in plain operators. The
gradients of the plain formula have gradients, to any order; so they are what ``create_graph=True`` gives, whether
autograd reaches a kernel from Python (:class:`Fused`) or in C++ (``kernels/cpu/csrc/graph``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from normwise.core.formula import Context, standardize
from normwise.core.method import Method
from normwise.core.moments import Affine, Moments, mix, pool, pool_groups
from normwise.kernels import reference
from normwise.kernels.cpu import native

Tensors = Sequence[Tensor | None]


class Call(Protocol):
    """What :class:`Fused` computes: from some tensors, those that may want gradients."""

    def forward(self, *tensors: Tensor | None) -> tuple[Any, Tensors]:
        """Give the result, a tensor or several, and what the gradients need further."""

    def backward(self, grads: Tensors, tensors: Tensors, kept: Tensors, wanted: Sequence[bool]) -> Tensors:
        """Give the gradients of the tensors; of those that nobody wants anything."""

    def formula(self, tensors: Tensors, kept: Tensors) -> Any:
        """Give the result in plain operators."""


class Fused(torch.autograd.Function):
    """A call as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> Any:  # noqa: D102
        result, kept = call.forward(*tensors)
        ctx.call, ctx.count = call, len(tensors)
        # Saved as tensors, so that changing one before the backward pass is an error as elsewhere.
        ctx.save_for_backward(*tensors, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():
            return None, *differentiated(ctx.call.formula(tensors, kept), tensors, grads, wanted)
        found = ctx.call.backward(grads, tensors, kept, wanted)
        return None, *(g if want else None for g, want in zip(found, wanted, strict=True))


def differentiated(results: Any, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Give the gradients of a formula's results with gradients of their own; ``None`` for what is not wanted."""
    return gradients([results] if isinstance(results, Tensor) else results, tensors, grads, wanted, create_graph=True)


def gradients(
    outputs: Sequence[Tensor], inputs: Tensors, grads: Any, wanted: Sequence[bool], create_graph: bool = False
) -> list[Tensor | None]:
    """Give ``torch.autograd.grad`` for the wanted inputs, ``None`` for the others."""
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    if not outputs:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if want and t is not None else None for t, want in zip(inputs, wanted, strict=True)]


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether one of some tensors wants a gradient."""
    for t in tensors:  # noqa: SIM110 - a generator would take longer than the loop
        if t is not None and t.requires_grad:
            return True
    return False


# A method by the four kernels of the cells.


def elements_per_cell(x: Tensor) -> int:
    """How many elements each cell (n, c) holds; 1 without spatial axes."""
    count = 1
    for size in x.shape[2:]:
        count *= size
    return count


@dataclass
class Cells:
    """A method: moments, its function, apply; backward two sums, its function's own gradient, and that of the input.

    The tensors are x, weight, bias and the learned ones in the order of ``method.learned``. ``reads`` says whether the
    method reads the moments of x, ``seen`` are these.
    """

    method: Method
    given: Context
    mask: Tensor | None
    activation: str | None
    slope: float
    kernels: ModuleType = reference
    reads: bool = True
    seen: Moments | None = None
    affine: Affine | None = field(default=None, repr=False)

    def map(self, cells: Moments, tensors: Tensors) -> Affine:
        """What the method makes of moments."""
        weight, bias, *learned = tensors
        given = self.given._replace(weight=weight, bias=bias)
        return self.method.affine(cells, given, **dict(zip(self.method.learned, learned, strict=True)))

    def cells(self, x: Tensor, kernels: ModuleType, exact: bool = False) -> Moments:
        """The moments of ``x``, or a placeholder where the method does not read them."""
        if not self.reads:
            zero = x.new_zeros((1, 1), dtype=reference.accumulation_dtype(x.dtype))
            return Moments(zero, zero, 1)
        # Masked moments have no native kernel: the plain ones serve.
        plain = kernels is reference or self.mask is not None
        mean, var = reference.moments(x, self.mask, exact) if plain else kernels.moments(x)
        return Moments(mean, var, self._elements(x))

    def formula(self, tensors: Tensors, kept: Tensors = ()) -> Tensor:
        """In plain operators, open to every transform."""
        x, *rest = tensors
        assert x is not None
        self.seen = self.cells(x, reference)
        return reference.apply(x, *self.map(self.seen, rest), self.activation, self.slope)

    def prepare(self, x: Tensor, tensors: Tensors) -> Affine:
        """Take the moments, and make the map of them and of tensors without their graphs."""
        with torch.no_grad():
            self.seen = self.cells(x.detach(), self.kernels, exact=self.kernels is reference)
        self.affine = self.map(self.seen, [None if t is None else t.detach() for t in tensors])
        return self.affine

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, Tensors]:
        """Apply the map that was prepared."""
        x, cells, affine = tensors[0], self.seen, self.affine
        assert x is not None
        assert cells is not None
        assert affine is not None
        self.affine = None  # not to be kept for the backward pass, which makes it anew
        return self.kernels.apply(x, *affine, self.activation, self.slope), [cells.mean, cells.var]

    def backward(self, grads: Tensors, tensors: Tensors, kept: Tensors, wanted: Sequence[bool]) -> Tensors:
        """Two sums over each cell, and from the method's own gradient that of the input."""
        (grad,), (x, *rest) = grads, tensors
        elements = self._elements(x) if self.reads else 1  # type: ignore[arg-type]
        with torch.enable_grad():
            mean, var = (t.detach().requires_grad_() for t in kept)  # type: ignore[union-attr]
            leaves = [None if t is None else t.detach().requires_grad_() for t in rest]
            affine = self.map(Moments(mean, var, elements), leaves)
        center, scale, shift = (t.detach() for t in affine)
        # Sums about the cells' means lose the least; where these are not known, about the center.
        about = mean.detach() if self.reads else center
        act = (self.activation, self.slope)
        if self.kernels is reference:  # once, and not for each of the two kernels
            grad = reference.through_activation(grad, x, center, scale, shift, *act)  # type: ignore[arg-type]
            act = (None, self.slope)
        s1, s2 = self.kernels.grad_sums(grad, x, about, center, scale, shift, *act)
        grad_affine = (-scale * s1, s2 + (about - center) * s1, s1)
        live = [
            (a, g.sum_to_size(a.shape).to(a.dtype)) for a, g in zip(affine, grad_affine, strict=True) if a.requires_grad
        ]
        grad_mean, grad_var, *found = gradients(
            [a for a, _ in live], [mean, var, *leaves], [g for _, g in live], [True, True, *wanted[1:]]
        )
        if not wanted[0]:
            return [None, *found]
        grad_mean, grad_var = (torch.zeros_like(mean) if g is None else g for g in (grad_mean, grad_var))
        if isinstance(elements, Tensor):
            # The kernel divides by the size of the cell; under a mask fewer elements share the gradient.
            share = elements_per_cell(x) / elements.clamp_min(1).to(mean.dtype)  # type: ignore[arg-type]
            grad_mean, grad_var = grad_mean * share, grad_var * share
        args = (about, center, scale, shift, grad_mean, grad_var, *act)
        return [self.kernels.grad_input(grad, x, *args), *found]

    def _elements(self, x: Tensor) -> int | Tensor:
        """Elements per cell, or under a mask how many of them count."""
        if self.mask is None:
            return elements_per_cell(x)
        mask = self.mask.expand(x.shape[0], self.mask.shape[1], *x.shape[2:])
        return mask.sum(tuple(range(2, x.ndim))) if x.ndim > 2 else mask.long()


# Whole normalizations by one native operator each way. Each has a formula, of the arguments of its backward operator.


def mixed(
    x: Tensor,
    groups: Sequence[int],
    weight: Any,
    bias: Any,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Moments | None,
    code: int,
    slope: float,
) -> Tensor:
    """A mix of pools in plain operators; ``code`` is the activation's."""
    cells = Moments(*reference.moments(x), elements_per_cell(x))
    batch = pool(cells, 0) if population is None and 0 in groups else population
    members: list[Any] = [pool_groups(cells, G) if G else batch for G in groups]
    if len(groups) > 1 or mean_weight is not None or var_weight is not None:
        equal = cells.mean.new_full((len(groups),), 1 / len(groups))
        shares = (
            equal if w is None else torch.softmax(w.to(equal.dtype), 0) if logits else w.to(equal.dtype)
            for w in (mean_weight, var_weight)
        )
        members = [mix(members, *shares)]
    affine = standardize(members[0], Context(weight, bias, eps))
    return reference.apply(x, *affine, reference.ACTIVATIONS[code], slope)


def _sample_norm(x: Tensor, moments: Tensor, groups: int, weight: Any, bias: Any, eps: float, *act: Any) -> Tensor:
    return mixed(x, (groups,), weight, bias, None, None, True, eps, None, *act)


def _batch_norm(
    x: Tensor, moments: Tensor, weight: Any, bias: Any, eps: float, training: bool, _: bool, *act: Any
) -> Tensor:
    # In evaluation the moments that were kept are the running averages of that time.
    kept = None if training else Moments(*moments.to(reference.accumulation_dtype(x.dtype)))
    return mixed(x, (0,), weight, bias, None, None, True, eps, kept, *act)


def _mix_norm(x: Tensor, moments: Tensor, *args: Any) -> Tensor:
    weight, bias, mean_weight, var_weight, logits, groups, eps, mean, var, *act = args
    population = None if mean is None else Moments(*(t.reshape(1, -1) for t in (mean, var)))
    return mixed(x, groups, weight, bias, mean_weight, var_weight, logits, eps, population, *act)


def _layer_norm(
    x: Tensor, moments: Tensor, axes: int, weight: Any, bias: Any, eps: float, centered: bool, code: int, slope: float
) -> Tensor:
    y = over_last_axes(x, axes, weight, bias, eps, centered)
    return reference.activate(y, reference.ACTIVATIONS[code], slope)


def over_last_axes(
    x: Tensor, axes: int, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool = True
) -> Tensor:
    """Layer norm, or not ``centered`` RMS norm, in plain operators."""
    values, last = x.to(reference.accumulation_dtype(x.dtype)), tuple(range(-axes, 0))
    if centered:
        var, mean = torch.var_mean(values, last, correction=0, keepdim=True)
        values = values - mean
    else:
        var = values.square().mean(last, keepdim=True)
    y = values * torch.rsqrt(var + eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "sample_norm": _sample_norm,
    "batch_norm": _batch_norm,
    "mix_norm": _mix_norm,
    "layer_norm": _layer_norm,
}


class _Pair(NamedTuple):
    """An operator f(x, ...) -> (y, moments), and f_backward(g, x, moments, ...).

    ``places`` say which of f's arguments f_backward takes further; ``None`` for whether gradients of tensors but x are
    wanted. Those of them that have gradients, too, stand in ``learned``. ``csrc/graph/node.h`` does the same.
    """

    forward: Any
    backward: Any
    places: list[int | None]
    learned: list[int]


@functools.cache
def _pair(name: str) -> _Pair:
    forward, backward = (getattr(torch.ops.normwise, n).default for n in (name, f"{name}_backward"))
    takes = [a.name for a in forward._schema.arguments]
    further = backward._schema.arguments[3:]
    places = [takes.index(a.name) if a.name in takes else None for a in further]
    tensors = [p for p, a in zip(places, further, strict=True) if "Tensor" in str(a.type) and p is not None]
    return _Pair(forward, backward, places, tensors[: len(backward._schema.returns) - 1])


class Whole:
    """An operator that normalizes in one call each way, where autograd does not reach it in C++."""

    def __init__(self, name: str, args: Sequence[Any]) -> None:
        self.name, self.args = name, list(args)

    @property
    def tensors(self) -> Tensors:
        """The arguments that have gradients, x first."""
        return [self.args[p] for p in (0, *_pair(self.name).learned)]

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, Tensors]:
        """Call the operator."""
        y, moments = _pair(self.name).forward(*self.args)
        for place in (0, *_pair(self.name).learned):
            self.args[place] = None  # saved by autograd, and no longer than it needs them
        return y, [moments]

    def backward(self, grads: Tensors, tensors: Tensors, kept: Tensors, wanted: Sequence[bool]) -> Tensors:
        """Call the other operator."""
        found: Tensors = _pair(self.name).backward(grads[0], tensors[0], kept[0], *self._further(tensors))
        return found

    def formula(self, tensors: Tensors, kept: Tensors) -> Tensor:
        """In plain operators."""
        return _FORMULAS[self.name](tensors[0], kept[0], *self._further(tensors))

    def _further(self, tensors: Tensors) -> list[Any]:
        """The backward operator's arguments after the gradient, x and the moments."""
        _, _, places, learned = _pair(self.name)
        given = dict(zip(learned, tensors[1:], strict=True))
        return [True if p is None else given[p] if p in given else self.args[p] for p in places]


def _let_gradients_have_graphs(library: torch.library.Library) -> None:
    """Give the backward operators, which autograd in C++ calls, gradients of their own."""
    for name, formula in _FORMULAS.items():
        library.impl(f"{name}_backward", functools.partial(_backward_with_graph, name, formula), "Autograd")


def _backward_with_graph(name: str, formula: Callable[..., Tensor], *args: Any) -> Any:
    if not (torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)):
        with torch._C._AutoDispatchBelowAutograd():
            return _pair(name).backward(*args)
    grad, x, moments, *further = args
    _, _, places, learned = _pair(name)
    positions = [places.index(p) for p in learned]
    tensors = (x, *(further[i] for i in positions))
    leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in tensors]
    for i, leaf in zip(positions, leaves[1:], strict=True):
        further[i] = leaf
    found = differentiated(formula(leaves[0], moments, *further), leaves, [grad], [True] * len(leaves))
    # An operator returns no None; what stands for it is not looked at.
    return tuple([torch.empty(0) if g is None else g for g in found])


_LIBRARY = torch.library.Library("normwise", "IMPL") if native.differentiates() else None
if _LIBRARY is not None:
    _let_gradients_have_graphs(_LIBRARY)

"""A mix of pools as one native call each way: batch, layer, instance and group norm, alone or in a switchable mix.

The kernels know the vjp of pools and mix in closed form, so no graph is built in a call. Autograd reaches them from C++
where that was built for this torch (``csrc/graph``), and else by a function in Python: the same two calls, but some
microseconds slower, which is as much as a small tensor takes. A gradient that must have gradients of its own is
differentiated as a composite of plain operators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normwise import kernels
from normwise.composite import compose, differentiate_by, graph_of_gradients, needs_plain_graph
from normwise.core.moments import Moments
from normwise.kernels.cpu import fused, native
from normwise.methods import METHODS, Inputs, Method


class Running(NamedTuple):
    """Running averages (C,) to move towards the batch; see :func:`normwise.core.moments.update_running`."""

    mean: Tensor
    var: Tensor
    momentum: float | Tensor
    skipped: Tensor | None = None
    tracked: Tensor | None = None


# How many groups a pool has within a sample; 0 is the pool over samples. The native kernels know pools by this number.
_GROUPS: dict[str, Callable[[int, int], int]] = {
    "instance": lambda channels, num_groups: channels,
    "layer": lambda channels, num_groups: 1,
    "group": lambda channels, num_groups: num_groups,
    "batch": lambda channels, num_groups: 0,
}


@functools.lru_cache
def _pools(over: tuple[str, ...], channels: int, num_groups: int) -> tuple[int, ...] | None:
    """The members as numbers, if they go with each other and with the channels."""
    fits = channels > 0 < num_groups and channels % num_groups == 0
    if not fits or not over or len({*over}) < len(over) or any(name not in _GROUPS for name in over):
        return None
    return tuple([_GROUPS[name](channels, num_groups) for name in over])


def normalize_at_once(
    x: Tensor,
    members: str | Method | Sequence[str],
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    running: Sequence[Any] | None = None,
    population: Sequence[Any] | None = None,
) -> Tensor | None:
    """Normalize by a pool or a mix of pools, checking no more than that needs.

    The ordinary case of :func:`normwise.normalize`, before all checks: a small tensor spends its time on them.
    """
    if (
        torch.compiler.is_compiling()
        or activation not in kernels.ACTIVATIONS
        or x.ndim < 2
        or not x.is_cpu
        or x.is_nested
    ):
        return None
    over = (members,) if isinstance(members, str) else members
    if type(over) is not tuple:
        return None
    shape = x.shape
    N, C = shape[0], shape[1]
    # Symbols in the place of sizes cannot be looked up.
    pools = _pools(over, C, num_groups) if type(C) is int else None
    if pools is None:
        return None
    if mean_weight is not None or var_weight is not None:
        K = (len(over),)
        if mean_weight is None or var_weight is None or not mean_weight.shape == var_weight.shape == K:
            return None
    if (population is not None or running is not None) and 0 not in pools:
        return None
    if running is not None and isinstance(running[2], Tensor) and needs_plain_graph():
        return None  # the kernels would read the momentum
    # Two values behind each statistic of x; a population's are not.
    statistics = N * C if len(pools) > 1 else N * pools[0] or (C if population is None else 0)
    if x.numel() < max(1, 2 * statistics):
        return None
    mix = (weight, bias, mean_weight, var_weight, logits, eps)
    try:
        y = None
        if native.CALLS:
            lasting = None if population is None else _lasting(population, x, pools)
            operator, args = fused.operator_for_mix(x, pools, *mix, lasting, running)
            y = native.CALLS[operator](*args, native.CODES[activation], slope)
        if y is not None or needs_plain_graph() or not native.supports(x):
            return y
        return normalize_by_mix(x, pools, *mix, population, running, activation, slope)
    except RuntimeError as problem:
        if not native.refuses(problem):
            raise
        return None  # the checks find what is wrong, and the words for it


def pools_of(x: Tensor, row: Method, p: Inputs, running: Running | None) -> tuple[int, ...] | None:
    """Give the pools that a method mixes, if it does no more than that and the kernels serve."""
    if row.members is None or p.mask is not None or p.exchange is not None or not native.supports(x):
        return None
    if p.parts != "both" or p.variance != "paper" or x.numel() == 0:
        return None
    pools = _pools(row.members(p), x.shape[1], p.num_groups)
    if pools is None:
        return None
    if "mean_weight" in row.parameters and x.numel() == x.shape[0] * x.shape[1]:
        return None  # with one element a cell some members have no meaning: the method drops them, or refuses
    if running is not None and not (0 in pools and movable(running, x)):
        return None
    return pools


def movable(running: Running, x: Tensor) -> bool:
    """Whether a native kernel can move running averages."""
    mean, var = running.mean, running.var
    fits = mean.dtype in (x.dtype, kernels.accumulation_dtype(x.dtype))
    alike = fits and mean.dtype == var.dtype and mean.is_cpu and var.is_cpu
    return alike and mean.is_contiguous() and var.is_contiguous()


def normalize_by_mix(
    x: Tensor,
    pools: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Sequence[Any] | None,
    running: Sequence[Any] | None,
    activation: str | None,
    slope: float,
) -> Tensor:
    """Normalize by a mix of pools in one native call."""
    tensors = (x, weight, bias, mean_weight, var_weight)
    if population is not None:
        population = _lasting(population, x, pools)
    if native.differentiates() or not torch.is_grad_enabled() or not any_requires_grad(*tensors):
        return fused.mix_norm(
            x, pools, weight, bias, mean_weight, var_weight, logits, eps, population, running, activation, slope
        )[0]
    return _Mix.apply(*tensors, pools, (logits, eps, population, running, activation, slope))


def _lasting(population: Sequence[Any], x: Tensor, pools: Sequence[int]) -> Sequence[Any]:
    """It may change before the backward pass, for which the operators keep a copy only where it stands alone."""
    if not torch.is_grad_enabled() or (len(pools) == 1 and native.differentiates()):
        return population
    dtype = kernels.accumulation_dtype(x.dtype)
    return population[0].to(dtype, copy=True), population[1].to(dtype, copy=True)


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether one of some tensors wants a gradient."""
    for t in tensors:  # noqa: SIM110 - a generator would take longer than the loop
        if t is not None and t.requires_grad:
            return True
    return False


class _Mix(torch.autograd.Function):
    """What ``csrc/graph`` does in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        weight, bias, mean_weight, var_weight, pools, options = args
        y, moments = fused.mix_norm(x, pools, weight, bias, mean_weight, var_weight, *options)
        ctx.save_for_backward(x, moments, weight, bias, mean_weight, var_weight)
        logits, eps, population, _, *activation = options
        ctx.call = pools, (logits, eps, population, *activation)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, moments, *parameters = ctx.saved_tensors
        pools, options = ctx.call
        if torch.is_grad_enabled():
            found = _differentiable_backward(grad, x, pools, *parameters, *options)
        else:
            found = [*fused.mix_norm_backward(grad, x, moments, pools, *parameters, *options)]
        # Autograd ignores what nobody wants, but not a gradient of None.
        return *(None if t is None else g for g, t in zip(found, [x, *parameters], strict=True)), None, None


def _differentiable_backward(
    grad: Tensor,
    x: Tensor,
    pools: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Sequence[Any] | None,
    activation: str | None,
    slope: float,
) -> list[Tensor | None]:
    """With ``create_graph=True``: differentiate the composite, whose gradient has gradients of its own."""
    C = x.shape[1]
    names = {0: "batch", 1: "layer", C: "instance"}
    over = tuple([names.get(groups, "group") for groups in pools])
    mixes = len(over) > 1 or mean_weight is not None or var_weight is not None
    inputs = Inputs(
        eps=eps,
        num_groups=next((groups for groups in pools if groups not in names), 1),
        population=None if population is None else Moments(*(t.reshape(1, C) for t in population[:2])),
        over=over,
        logits=logits,
    )

    def formula(x: Tensor, *parameters: Tensor | None) -> Tensor:
        given: dict[str, Any] = dict(zip(("weight", "bias", "mean_weight", "var_weight"), parameters, strict=True))
        row = METHODS["switchable" if mixes else over[0]]
        return compose(x, row, inputs._replace(**given), activation, slope)[0]

    return graph_of_gradients(formula, (x, weight, bias, mean_weight, var_weight), grad)


def _sample_graph(
    g: Tensor, x: Tensor, moments: Tensor, groups: int, weight: Any, bias: Any, eps: float, *activation: Any
) -> list[Tensor | None]:
    options = (None, None, True, eps, None, *_named(*activation))
    return _differentiable_backward(g, x, (groups,), weight, bias, *options)[:3]


def _batch_graph(
    g: Tensor, x: Tensor, moments: Tensor, weight: Any, bias: Any, eps: float, training: bool, _: bool, *activation: Any
) -> list[Tensor | None]:
    population = None if training else [t.to(kernels.accumulation_dtype(x.dtype)) for t in moments]
    options = (None, None, True, eps, population, *_named(*activation))
    return _differentiable_backward(g, x, (0,), weight, bias, *options)[:3]


def _mix_graph(g: Tensor, x: Tensor, moments: Tensor, *args: Any) -> list[Tensor | None]:
    weight, bias, mean_weight, var_weight, logits, pools, eps, population_mean, population_var, *activation = args
    population = None if population_mean is None else (population_mean, population_var)
    options = (mean_weight, var_weight, logits, eps, population, *_named(*activation))
    return _differentiable_backward(g, x, pools, weight, bias, *options)


def _named(code: int, slope: float) -> tuple[str | None, float]:
    return kernels.ACTIVATIONS[code], slope


for _name, _graph in (("sample_norm", _sample_graph), ("batch_norm", _batch_graph), ("mix_norm", _mix_graph)):
    differentiate_by(_name, _graph)

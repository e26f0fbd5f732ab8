"""Which kernels serve a call: asked once, here, and answered with a value.

A plain call of a small tensor asks nobody in Python: :func:`at_once` hands it to the C++ library, which computes it, or
gives ``None`` where the call is out of the ordinary or does not fit the kernel. All other calls are checked by
:func:`normwise.normalize` and go the way that :func:`route` says.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from normwise.core.autograd import Cells, Fused, Whole, any_requires_grad, elements_per_cell
from normwise.core.formula import Context
from normwise.core.method import Method
from normwise.core.mixture import Mixture
from normwise.core.moments import Moments
from normwise.kernels import backend, of_torch, reference
from normwise.kernels.cpu import fused, native
from normwise.pools import numbers_of_groups


class Running(NamedTuple):
    """Running averages (C,) to move towards the batch; see :func:`normwise.core.moments.update_running`."""

    mean: Tensor
    var: Tensor
    momentum: float | Tensor
    skipped: Tensor | None = None
    tracked: Tensor | None = None


class MixCall(NamedTuple):
    """A mix of pools: numbers of groups within a sample, or 0 for the pool over samples. What one call of it takes."""

    pools: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    mean_weight: Tensor | None
    var_weight: Tensor | None
    logits: bool
    eps: float
    population: Sequence[Any] | None
    running: Sequence[Any] | None


@dataclass(frozen=True)
class Route:
    """The way of a call: in one call each way (``whole``), by the four ``kernels`` of the cells, or plainly.

    Whole calls are of the native library or of torch's own kernels. Without kernels the formula is evaluated in plain
    operators, which every transform sees.
    """

    kernels: ModuleType | None
    whole: tuple[int, ...] | None = None


PLAIN = Route(None)


def at_once(
    x: Tensor,
    pools: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    slope: float = 0.01,
    running: Sequence[Any] | None = None,
    population: Sequence[Any] | None = None,
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    logits: bool = True,
) -> Tensor | None:
    """Have C++, or on a device torch, normalize a plain tensor by a pool or a mix of pools; ``None`` where it cannot.

    Pools are numbers of groups within a sample, or 0 for the pool over samples: see :func:`numbered`.
    """
    if torch.compiler.is_compiling() or activation not in native.CODES or not native.CALLS:
        return None
    if running is not None and isinstance(running[2], Tensor) and not (running[2].is_cpu and not needs_plain_graph()):
        return None  # the kernels would read the momentum
    name, args = fused.operator_for_mix(
        x, pools, weight, bias, mean_weight, var_weight, logits, eps, population, running
    )
    y = native.CALLS[name](*args, native.CODES[activation], slope)
    if y is not None or x.is_cpu or needs_plain_graph() or not _has_variance(x, pools, population):
        return y
    if not _for_torch(x, pools, weight, bias, population, running):
        return None
    mix = MixCall(pools, weight, bias, mean_weight, var_weight, logits, eps, population, running)
    return by_torch(x, mix, activation, slope)


def _has_variance(x: Tensor, pools: tuple[int, ...], population: Sequence[Any] | None) -> bool:
    """Whether it is plain that there are elements enough, and nothing to be refused or dropped."""
    return x.numel() > (0 if population is not None and len(pools) == 1 else x.shape[0] * x.shape[1])


def _for_torch(
    x: Tensor,
    pools: tuple[int, ...] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    population: Sequence[Any] | None,
    running: Sequence[Any] | None,
) -> bool:
    """Whether torch's kernels serve: on a device for which there are none of ours."""
    if pools is None or backend(x) is not reference:
        return False
    if len(pools) > 1 and x.device.type in ("mps", "meta"):  # which lack some of those for a mix
        return False
    averages = (running or population or ())[:2] if 0 in pools else ()
    return of_torch.takes(x, weight, bias, *(t.reshape(-1) for t in averages))


def by_torch(x: Tensor, mix: MixCall, activation: str | None, slope: float) -> Tensor:
    """Normalize by torch's own kernels."""
    pools, weight, bias, mean_weight, var_weight, logits, eps, population, running = mix
    learned = (weight, bias, mean_weight, var_weight)
    if population is not None and torch.is_grad_enabled() and any_requires_grad(x, *learned):
        # They may change before the backward pass.
        population = torch.stack([t.reshape(-1) for t in population[:2]]).unbind()
    if len(pools) > 1 or mean_weight is not None or var_weight is not None:
        y = Fused.apply(Mixture(pools, logits, eps, population, running), x, *learned)
    elif pools[0]:
        y = of_torch.sample_norm(x, pools[0], weight, bias, eps)
    elif running is None:
        y = of_torch.batch_norm(x, weight, bias, eps, population)
    else:
        y = of_torch.batch_norm_and_track(x, weight, bias, eps, *running)
    return reference.activate(y, activation, slope)


def numbered(method: Method, channels: int, stored: bool) -> tuple[int, ...] | None:
    """The pools of a method that is a mix of them, by numbers of groups; 0 is the pool over samples."""
    mix = method.mix(stored)
    return None if mix is None or channels < 1 else _numbers(mix.pools, method.groups(channels), channels)


@functools.lru_cache
def _numbers(pools: tuple[str, ...], groups: int, channels: int) -> tuple[int, ...] | None:
    numbers = numbers_of_groups(channels, groups)
    return tuple([numbers[name] for name in pools]) if groups > 0 and channels % groups == 0 else None


def route(x: Tensor, method: Method, given: Context, mask: Tensor | None, running: Running | None) -> Route:
    """Say which kernels serve a call that has been checked."""
    if needs_plain_graph():
        return PLAIN
    four = Route(backend(x))
    if mask is not None or given.exchange is not None or x.numel() == 0:
        return four
    whole = numbered(method, x.shape[1], given.population is not None)
    if four.kernels is reference:
        fits = whole is not None and (len(whole) == 1 or _has_variance(x, whole, given.population))
        torchs = fits and _for_torch(x, whole, given.weight, given.bias, given.population, running)
        return Route(of_torch, whole) if torchs else four
    if whole is None or (running is not None and not (0 in whole and _movable(running, x))):
        return four
    if method.learned and x.numel() == x.shape[0] * x.shape[1]:
        return four  # with one element a cell some members have no meaning: the method drops them, or refuses
    return Route(four.kernels, whole)


def _movable(running: Running, x: Tensor) -> bool:
    """Whether a kernel can move running averages, without the host reading off a device how far."""
    mean, var = running.mean, running.var
    fits = mean.dtype in (x.dtype, reference.accumulation_dtype(x.dtype))
    alike = fits and mean.dtype == var.dtype and mean.device == var.device == x.device
    alike = alike and (x.is_cpu or not isinstance(running.momentum, Tensor))
    return alike and mean.is_contiguous() and var.is_contiguous()


def normalized(
    x: Tensor,
    method: Method,
    given: Context,
    learned: Mapping[str, Tensor],
    mask: Tensor | None,
    activation: str | None,
    slope: float,
    running: Running | None,
) -> tuple[Tensor, Moments | None]:
    """Normalize; the moments that it was computed from, unless a kernel has moved the running averages already."""
    way = route(x, method, given, mask, running)
    if way.whole is not None:
        pooled = method.mix(given.population is not None)
        assert pooled is not None
        shares = (learned.get("mean_weight"), learned.get("var_weight"), pooled.logits)
        mix = MixCall(way.whole, given.weight, given.bias, *shares, given.eps, given.population, running)
        if way.kernels is not of_torch:
            return whole(x, mix, activation, slope), None
        tracks = running is not None and 0 not in way.whole  # by the cells' own moments: each sample's
        y = by_torch(x, mix._replace(running=None) if tracks else mix, activation, slope)
        return y, Moments(*reference.moments(x.detach()), elements_per_cell(x)) if tracks else None
    tensors: list[Tensor | None] = [given.weight, given.bias]
    tensors += [t for _, t in all_learned(x, method, learned)]
    call = Cells(method, given._replace(weight=None, bias=None), mask, activation, slope, way.kernels or reference)
    call.reads = method.reads_cells(given.population is not None)
    # Of what the map is made of nothing wants a gradient. If the map does, the method's function draws on more: on
    # tensors that it closes over, whose gradients only plain operators give.
    if way.kernels is None or any_requires_grad(*call.prepare(x, tensors)):
        y = call.formula([x, *tensors])
    elif torch.is_grad_enabled() and any_requires_grad(x, *tensors):
        y = Fused.apply(call, x, *tensors)
    else:
        y, _ = call.forward(x)
    seen, call.seen = call.seen, None  # the graph must not keep it longer than what it saves
    return y, seen


def all_learned(x: Tensor, method: Method, given: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A method's learned tensors; one that nobody gave is what it begins as."""
    for name, one in method.learned.items():
        if name in given:
            yield name, given[name]
        else:
            dtype = reference.accumulation_dtype(x.dtype)
            yield name, x.new_full(one.shape(x.shape[1]), one.start, dtype=dtype)


def whole(x: Tensor, mix: MixCall, activation: str | None, slope: float) -> Tensor:
    """Normalize by a mix of pools in one native call."""
    name, args = fused.operator_for_mix(x, *mix)
    learned = (mix.weight, mix.bias, mix.mean_weight, mix.var_weight)
    return one_call(name, (*args, native.CODES[activation], slope), x, *learned)


def one_call(name: str, args: Sequence[Any], *tensors: Tensor | None) -> Tensor:
    """Call an operator that normalizes; some of its arguments, ``tensors``, may want gradients."""
    if native.differentiates() or not (torch.is_grad_enabled() and any_requires_grad(*tensors)):
        return fused.OPERATORS[name](*args)[0]
    call = Whole(name, args)
    y: Tensor = Fused.apply(call, *call.tensors)
    return y


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Leave types as they are, on the device of a tensor."""
    available = torch.amp.is_autocast_available(x.device.type)  # "meta" has none
    return torch.autocast(x.device.type, enabled=False) if available else nullcontext()


def exporting() -> bool:
    """Whether the graph is being written down for others, who know torch's operators and not ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # ONNX goes by one of the two


# Modes under which sizes may be symbols and values may be absent.
_TRACERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)


def needs_plain_graph() -> bool:
    """Whether a transform has to see every operator: ``torch.func``, forward mode, compilation, export, ``make_fx``."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or (torch._C._len_torch_dispatch_stack() > 0 and any(torch._C._get_dispatch_mode(key) for key in _TRACERS))
    )

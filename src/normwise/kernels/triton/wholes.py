"""The operators ``torch.ops.normwise.*`` by these kernels: what each call takes, and which kernels serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normwise.kernels.operators import FAKES
from normwise.kernels.reference import ACTIVATIONS
from normwise.kernels.triton import batch, cells, mix, sample

NONE = (None, None)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every cell."""
    found = cells_of(x)
    return found[0].clone(), found[2].clone()


def cells_of(x: Tensor) -> Tensor:
    """The moments of cells: (3, N, C), means as two numbers."""
    view = cells.View.of(x)
    if x.numel() == 0:
        return x.new_zeros((3, view.N, view.C), dtype=view.dtype)
    only = mix.Mix((view.C,), 1)
    return only.pooled(view, cells.pieces(view), None, None, NONE).view(3, view.N, view.C)


def sample_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, code: int, slope: float
) -> tuple[Tensor, Tensor]:
    """In one launch where groups fit, else in three."""
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(f"normwise: {x.shape[1]} channels cannot be divided into {groups} groups")
    found = sample.sample_norm(x, groups, weight, bias, eps, code, slope)
    if found is None:
        args = (None, None, False, eps, NONE, NONE * 2, 0.0, code, slope)
        found = mix.mix_norm(x, [groups], weight, bias, *args, one_pool=True)
    return found


def sample_norm_backward(
    g: Tensor, x: Tensor, moments: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """In two launches where groups fit, else in four."""
    found = sample.sample_norm_backward(g, x, moments, groups, weight, bias, *rest)
    if found is None:
        eps, code, slope = rest
        args = (None, None, False, eps, NONE, code, slope)
        found = mix.mix_norm_backward(g, x, moments, [groups], weight, bias, *args, one_pool=True)[:3]
    return found


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    training: bool,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    skipped: Tensor | None,
    tracked: Tensor | None,
    momentum: float,
    code: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """In two launches; three where samples have parameters of their own, one in evaluation."""
    running = (running_mean, running_var, skipped, tracked)
    check_running(x, *running)
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("normwise: evaluation needs running averages")
    if training and by_sample(weight, bias):
        parameters = (weight, bias, None, None, False, eps, NONE)
        return mix.mix_norm(x, [0], *parameters, running, momentum, code, slope)
    return batch.batch_norm(x, weight, bias, eps, training, running, momentum, code, slope)


def batch_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    training: bool,
    of_parameters: bool,
    code: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """In two launches; four where samples have parameters of their own."""
    if training and by_sample(weight, bias):
        args = (None, None, False, eps, NONE, code, slope)
        return mix.mix_norm_backward(g, x, moments, [0], weight, bias, *args)[:3]
    return batch.batch_norm_backward(g, x, moments, weight, bias, eps, training, of_parameters, code, slope)


def mix_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    groups: Sequence[int],
    eps: float,
    population_mean: Tensor | None,
    population_var: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    skipped: Tensor | None,
    tracked: Tensor | None,
    momentum: float,
    code: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """In three launches; of the pool over samples alone in two."""
    population, running = (population_mean, population_var), (running_mean, running_var, skipped, tracked)
    check_running(x, *running)
    check_running(x, *population)
    if [*groups] == [0] and not by_sample(weight, bias):
        training = population_mean is None
        averages = running if training else (*population, None, None)
        return batch.batch_norm(x, weight, bias, eps, training, averages, momentum, code, slope)
    shares = (mean_weight, var_weight, logits)
    return mix.mix_norm(x, groups, weight, bias, *shares, eps, population, running, momentum, code, slope)


def mix_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    groups: Sequence[int],
    eps: float,
    population_mean: Tensor | None,
    population_var: Tensor | None,
    code: int,
    slope: float,
) -> tuple[Tensor, ...]:
    """In four launches; of the pool over samples alone in two."""
    population = (population_mean, population_var)
    if [*groups] == [0] and not by_sample(weight, bias):
        training = population_mean is None
        found = batch.batch_norm_backward(g, x, moments, weight, bias, eps, training, True, code, slope)
        # One share has no gradient through a softmax.
        return *found, *(sample.empty_parameter(x, t, 1).zero_() for t in (mean_weight, var_weight))
    shares = (mean_weight, var_weight, logits)
    return mix.mix_norm_backward(g, x, moments, groups, weight, bias, *shares, eps, population, code, slope)


def by_sample(*parameters: Tensor | None) -> bool:
    """Whether a parameter has a place for samples: then the moments of all cells are kept."""
    return any(t is not None and t.ndim == 2 for t in parameters)


def check_running(x: Tensor, mean: Tensor | None, var: Tensor | None, *counters: Tensor | None) -> None:
    """Refuse running averages of another size, or in several pieces, and counters of another type."""
    for t in (mean, var):
        if t is not None and (t.shape != x.shape[1:2] or not t.is_contiguous()):
            raise RuntimeError(f"normwise: expected {x.shape[1]} values, one a channel, got the shape {tuple(t.shape)}")
    if any(t is not None and (t.dtype != torch.int64 or t.numel() != 1) for t in counters):
        raise RuntimeError("normwise: batches are counted in one int64")


def _four(kernel: Callable[..., Any]) -> Callable[..., Any]:
    # The operators know activations by number.
    return lambda *args: kernel(*args[:-2], ACTIVATIONS[args[-2]], args[-1])


OPERATORS: dict[str, Callable[..., Any]] = {
    "moments": moments,
    "apply": _four(cells.apply),
    "grad_sums": _four(cells.grad_sums),
    "grad_input": _four(cells.grad_input),
    "sample_norm": sample_norm,
    "sample_norm_backward": sample_norm_backward,
    "batch_norm": batch_norm,
    "batch_norm_backward": batch_norm_backward,
    "mix_norm": mix_norm,
    "mix_norm_backward": mix_norm_backward,
}


def call(name: str, *args: Any) -> Any:
    """Call an operator; where there is no element its results are empty, or gradients of nothing."""
    x = args[1] if name.endswith("_backward") or name.startswith("grad") else args[0]
    if x.numel():
        return OPERATORS[name](*args)
    found = FAKES[name](*args)
    return found.zero_() if isinstance(found, Tensor) else tuple(t.zero_() for t in found)


def operator(name: str) -> Callable[..., Any]:
    """The function of an operator, as a kernel of the dispatcher."""
    return lambda *args: call(name, *args)

"""A mix of pools in few of torch's operators, for devices that have no kernel of ours: twenty each way and not eighty.

Torch's kernel of batch norm applies the map of every cell, and gives the two sums that its gradient needs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normwise.core.autograd import Tensors, elements_per_cell, mixed
from normwise.core.moments import Moments
from normwise.kernels import of_torch, reference


@dataclass
class Mixture:
    """The mix as one call; its tensors are x, weight, bias, and the logits or shares of the means and the variances.

    ``pools`` are numbers of groups within a sample, 0 is the pool over samples.
    """

    pools: tuple[int, ...]
    logits: bool
    eps: float
    population: Sequence[Tensor] | None
    running: Sequence[Any] | None

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, Tensors]:
        """Mix the pools' moments, and apply."""
        x, weight, bias, *learned = tensors
        assert x is not None
        values = x.to(reference.accumulation_dtype(x.dtype))
        var, mean = torch.var_mean(values, tuple(range(2, x.ndim)), correction=0)
        pooled = [self._pool(groups, values, mean, var) for groups in self.pools]
        shares = torch.stack([_weights(w, mean, len(self.pools)) for w in learned])
        shares = shares.softmax(1) if self.logits else shares
        members = torch.stack([m[part].expand_as(mean) for part in (0, 1) for m in pooled])
        members = members.unflatten(0, (2, -1))
        center, var = (members * shares[..., None, None]).sum(1)
        scaled = var + self.eps
        factor, shift = _over_samples(weight, bias, mean)
        y = of_torch.apply_to_cells(values, center, scaled, factor, shift).to(x.dtype)
        # About the cells' means, so that nothing that is computed of them later loses digits of large ones.
        members[0].sub_(mean)
        return y, [members, shares, mean, center, scaled, factor]

    def backward(self, grads: Tensors, tensors: Tensors, kept: Any, wanted: Sequence[bool]) -> Tensors:
        """From the gradients of every cell's center and variance those of the pools, and of these that of the input."""
        x: Any = tensors[0]
        members, shares, mean, center, scaled, factor = kept
        values, grad = x.to(mean.dtype), grads[0].to(mean.dtype)  # type: ignore[union-attr]
        dx, sums = of_torch.grads_of_cells(grad, values, center, scaled, factor)
        grad_bias, grad_weight = sums.sum(1)
        # Of centers with the sign changed, and of variances −2 times: what is left out here stands in the steps below.
        of_cells = sums * torch.pow(scaled, _column(mean, -0.5, -1.0))
        of_cells = of_cells if factor is None else of_cells.mul_(factor)
        of_shares = (members * of_cells.unsqueeze(1)).sum((2, 3))
        if self.logits:
            of_shares = torch._softmax_backward_data(of_shares, shares, 1, shares.dtype)
        else:
            of_shares[0].sub_(of_shares[0, :1].clone())  # of means that sum to 1 the first is what the others leave
        of_shares = of_shares * _column(mean, -1.0, -0.5).flatten(1)
        parts = torch.stack([self._over_pool(of_cells, groups) for groups in self.pools], 1)
        parts = parts.mul_(shares[..., None, None])
        parts[0].addcmul_(parts[1], members[0], value=-1)
        offset, slope = (of_torch.over_cells(t, values) for t in parts.sum(1))
        deviation, M = values - of_torch.over_cells(mean, values), elements_per_cell(x)
        dx = dx.addcmul_(deviation, slope, value=-1 / M).sub_(offset, alpha=1 / M)
        given = zip((grad_weight, grad_bias, *of_shares), tensors[1:], strict=True)
        return [dx.to(x.dtype), *(None if t is None else found.to(t.dtype) for found, t in given)]

    def formula(self, tensors: Tensors, kept: Tensors) -> Tensor:
        """In plain operators."""
        x, weight, bias, mean_weight, var_weight = tensors
        assert x is not None
        population = None if self.population is None else Moments(*(t.reshape(1, -1) for t in self.population))
        shares = (mean_weight, var_weight, self.logits)
        return mixed(x, self.pools, weight, bias, *shares, self.eps, population, 0, 0.0)

    def _pool(self, groups: int, values: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of a pool, as they broadcast to (N, C)."""
        N, C = mean.shape
        if groups == C:
            return mean, var
        if groups:
            found = torch.var_mean(values.reshape(N, groups, -1), -1, correction=0)
            v, m = (t if groups == 1 else t.repeat_interleave(C // groups, 1, output_size=C) for t in found)
            return m, v
        if self.population is not None:
            m, v = (t.to(mean.dtype) for t in self.population)
            return m, v
        if self.running is not None:
            return of_torch.batch_moments_and_track(values, *self.running)
        v, m = torch.var_mean(values, (0, *range(2, values.ndim)), correction=0)
        return m, v

    def _over_pool(self, grads: Tensor, groups: int) -> Tensor:
        """What of the gradients (2, N, C) of mean and variance each cell has from a pool: the mean over its cells."""
        C = grads.shape[2]
        if groups == C:
            return grads
        if groups:
            found = grads.unflatten(2, (groups, -1)).mean(-1)
            return found.expand_as(grads) if groups == 1 else found.repeat_interleave(C // groups, 2, output_size=C)
        return torch.zeros_like(grads) if self.population is not None else grads.mean(1, keepdim=True).expand_as(grads)


def _weights(given: Tensor | None, mean: Tensor, members: int) -> Tensor:
    return mean.new_full((members,), 1 / members) if given is None else given.to(mean.dtype)


def _over_samples(weight: Tensor | None, bias: Tensor | None, mean: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias for every cell."""
    if weight is None or bias is None:
        factor, shift = (None if t is None else t.to(mean.dtype).expand_as(mean).contiguous() for t in (weight, bias))
        return factor, shift
    factor, shift = torch.stack([t.to(mean.dtype).expand_as(mean) for t in (weight, bias)])
    return factor, shift


@functools.lru_cache
def _numbers(dtype: torch.dtype, device: torch.device, *values: float) -> Tensor:
    # Filled there: a copy would make the host wait.
    return torch.cat([torch.full((1, 1, 1), value, dtype=dtype, device=device) for value in values])


def _column(like: Tensor, *values: float) -> Tensor:
    """Numbers, made on a device once."""
    return _numbers(like.dtype, like.device, *values)

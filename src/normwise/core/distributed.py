"""Statistics over several processes, through ``torch.distributed``: the pool over samples goes on over the ranks.

Every rank sends its own (mean, variance, count) per channel and pools what all have sent, weighted by the counts.
Uneven ranks and ranks without any data are no special case. Counts travel in float64, exact up to 2⁵³.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normwise.core.moments import Moments, pool
from normwise.errors import InputError


@dataclass(frozen=True)
class Sync:
    """Says that a layer shares its batch statistics with the ranks of a process group.

    Kept by layers and passed to :func:`normwise.normalize`; :func:`normwise.sync` puts it there. Copies of a layer
    share the group. A custom group cannot be pickled; the default one, ``None``, is looked up when it is used.
    """

    process_group: dist.ProcessGroup | None = None

    def exchange(self) -> Exchange | None:
        """Start one forward pass's exchange."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self.process_group) < 2:
            return None
        return Exchange(self.process_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sync:
        return self

    def __reduce__(self) -> tuple[type[Sync], tuple[()]]:
        if self.process_group is not None:
            raise InputError(
                "a layer synced over a custom process group cannot be pickled: save its state_dict, or sync over the "
                "default group"
            )
        return Sync, ()


class Exchange:
    """What all ranks know of one batch: called with a rank's own pooled moments, it gives those of the joined batch.

    The ranks communicate on the first call. Later calls (the backward pass recomputes its method) replay what was
    received then, and only connect the gradients: one gather forward and one reduce-scatter backward per layer.
    """

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        self.process_group = process_group
        self._received: Tensor | None = None

    def __call__(self, own: Moments) -> Moments:
        """Pool the moments (1, C) of all ranks; all must call, with the same C."""
        count = torch.as_tensor(own.elements, device=own.mean.device).expand_as(own.mean)
        message = torch.cat([t.double() for t in (own.mean, own.var, count)])
        ranks = _Gather.apply(message, self.process_group, self._received)
        self._received = ranks.detach()
        mean, var, count = ranks.unbind(1)
        joined = pool(Moments(mean, var, count.detach()), 0)
        return Moments(joined.mean.to(own.mean.dtype), joined.var.to(own.var.dtype), joined.elements)


class _Gather(torch.autograd.Function):
    """Every rank's tensor, stacked. Its gradient, like that of the scatter, is the other: both differentiate twice."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup | None, received: Tensor | None) -> Tensor:
        ctx.group = group
        if received is not None:
            return received.clone()
        ranks = own.new_empty(dist.get_world_size(group), *own.shape)
        dist.all_gather(list(ranks.unbind()), own.contiguous(), group)
        return ranks

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _ReduceScatter.apply(grad, ctx.group), None, None


class _ReduceScatter(torch.autograd.Function):
    """The sum over ranks of what each holds for this one."""

    @staticmethod
    def forward(ctx: Any, ranks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        own = ranks.new_empty(ranks.shape[1:])
        dist.reduce_scatter(own, list(ranks.contiguous().unbind()), group=group)
        return own

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Gather.apply(grad, ctx.group, None), None

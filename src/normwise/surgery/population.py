"""Population statistics of one layer, gathered batch by batch in float64 and merged by total variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normwise import kernels
from normwise.core.moments import Moments, pool, unbiased
from normwise.core.reading import on_host
from normwise.functional import real_elements
from normwise.kernels.reference import widened
from normwise.surgery.description import NormLayer


class Population:
    """What has been seen of a layer's input: pooled moments per channel, in float64 on the CPU.

    Batch statistics are those of all elements together: batches weigh as much as they hold, and the spread between
    batches counts. A tracked instance norm keeps, as in torch, the mean over samples of each sample's own moments.
    """

    def __init__(self, channels: int, per_sample: bool = False) -> None:
        self.per_sample = per_sample
        self.batches = 0
        self.skipped = 0
        zero = torch.zeros(1, channels, dtype=torch.float64)
        # While gathering, ``var`` is biased; of an instance norm it is the finished mean and ``elements`` are samples.
        self._moments = Moments(zero, zero, zero)

    def add(self, cells: Moments) -> None:
        """Take in a batch, given as moments per cell (N, C); one that is not finite is skipped and counted."""
        batch = self._of_batch(cells)
        if not (batch.mean.isfinite().all() and batch.var.isfinite().all()):
            self.skipped += 1
            return
        self.batches += 1
        self._moments = _merge([self._moments, batch], between=not self.per_sample)

    @property
    def elements(self) -> int:
        """How many elements (of an instance norm: samples) a channel's statistics rest on, the best-off channel's."""
        counts = self._moments.elements
        return int(counts.max()) if isinstance(counts, Tensor) else counts

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self._moments.mean[0]

    @property
    def var(self) -> Tensor:
        """(C,), as it enters ``running_var``: unbiased."""
        return (self._moments.var if self.per_sample else unbiased(self._moments))[0]

    @property
    def enough(self) -> bool:
        """Whether a variance can be taken of every channel."""
        return bool((torch.as_tensor(self._moments.elements) > (0 if self.per_sample else 1)).all())

    def pack(self) -> Tensor:
        """All that other ranks need, as one vector."""
        counts = torch.tensor([self.batches, self.skipped], dtype=torch.float64)
        return torch.cat([counts, *(torch.as_tensor(t).reshape(-1) for t in self._moments)])

    def merge_packed(self, ranks: list[Tensor]) -> None:
        """Replace what was seen by what all ranks saw together; the order of ``ranks`` fixes the rounding."""
        C = self._moments.mean.shape[1]
        self.batches, self.skipped = (int(sum(r[i].item() for r in ranks)) for i in (0, 1))
        parts = [Moments(*(r[2:].reshape(3, 1, C).unbind())) for r in ranks]
        self._moments = _merge(parts, between=not self.per_sample)

    def _of_batch(self, cells: Moments) -> Moments:
        N, C = cells.mean.shape
        if not self.per_sample:
            pooled = pool(cells, 0)
            return Moments(pooled.mean, pooled.var, torch.as_tensor(pooled.elements, dtype=torch.float64).expand(1, C))
        own = Moments(cells.mean, unbiased(cells), torch.ones(N, C, dtype=torch.float64))
        return _merge_rows(own, between=False)


def cells_of(layer: NormLayer, module: nn.Module, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Moments:
    """Moments per cell of a layer's input, in float64 on the CPU."""
    if layer.channel_axis == -1:
        x = x.movedim(-1, 1)
    elif layer.takes_single(x.ndim):
        x, mask, lengths = (None if t is None else t.unsqueeze(0) for t in (x, mask, lengths))  # type: ignore[assignment]
    keep = real_elements(x, mask, lengths)
    x = widened(x.detach())
    mean, var = kernels.reference.moments(x, None if keep is None else keep.to(x.device))
    elements: int | Tensor = x[0, 0].numel() if x.numel() else 0
    if keep is not None:
        elements = keep.expand_as(x).flatten(2).sum(2).cpu().double()
    mean, var = on_host([mean, var])
    return Moments(mean, var, elements)


def _merge(parts: list[Moments], between: bool) -> Moments:
    """Moments of the union; without ``between`` the variances are averaged and the spread of the means left out."""
    mean, var, count = (torch.cat([torch.as_tensor(p[i]) for p in parts]) for i in range(3))
    return _merge_rows(Moments(mean, var, count), between)


def _merge_rows(rows: Moments, between: bool) -> Moments:
    pooled = pool(rows, 0)
    if between:
        return pooled
    count = torch.as_tensor(rows.elements)
    var = (count * rows.var).sum(0, keepdim=True) / count.sum(0, keepdim=True).clamp_min(1)
    return Moments(pooled.mean, var, pooled.elements)

"""Let a model train without its running averages noticing: for second passes over a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from normwise.nn._checks import model_given
from normwise.surgery.selection import Where, chosen


@contextmanager
def statistics_paused(model: nn.Module, *, where: Where = None) -> Iterator[None]:
    """Keep running statistics and their counters as they are for a while; layers normalize by the batch as ever.

    For the second forward pass of sharpness-aware optimizers, for gradient checks and retries: what has counted once is
    not counted again.

    Args:
        model: any module.
        where: a name pattern or predicate ``(name, layer) -> bool``; default every layer with running statistics.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> with statistics_paused(model):
        ...     _ = model(torch.randn(8, 2))
        >>> model[0].running_mean
        tensor([0., 0.])
    """
    model_given(model, "statistics_paused")
    found = [f.module for f in chosen(model, where) if isinstance(getattr(f.module, "running_mean", None), Tensor)]
    layers: list[Any] = [layer for layer in found if hasattr(layer, "momentum")]
    momenta = [layer.momentum for layer in layers]
    counters = [c for layer in layers if isinstance(c := getattr(layer, "num_batches_tracked", None), Tensor)]
    counts = [counter.clone() for counter in counters]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for counter, before in zip(counters, counts, strict=True):
            counter.copy_(before)

"""Readings of a device, put off: what a step is asked for comes to the host in one copy, for which it waits once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normwise.core.reading import on_host

Taken = Tensor | None


class Reads:
    """Hands tensors to functions on the host, in float64: those of the CPU at once, others at the next :meth:`read`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[..., object], list[Taken]]] = []

    def later(self, take: Callable[..., object], *tensors: Taken) -> None:
        """Have ``take(*tensors)`` called with the values that the tensors have now."""
        if not self._waiting and all(t is None or t.is_cpu for t in tensors):
            take(*_in_float64(tensors))
        else:
            # Copies, which the device makes in its own time: what stands there may change.
            self._waiting.append((take, [None if t is None else _copied(t) for t in tensors]))

    def read(self) -> None:
        """Call all that wait, in their order."""
        waiting, self._waiting = self._waiting, []
        values = iter(_in_float64([t for _, tensors in waiting for t in tensors]))
        for take, tensors in waiting:
            take(*[next(values) for _ in tensors])


def _copied(t: Tensor) -> Tensor:
    t = t.detach()
    # As few types as hold them exactly, since each is a copy to the host of its own.
    return t.float() if t.dtype == torch.bool or (t.is_floating_point() and t.itemsize < 4) else t.clone()


def _in_float64(tensors: Sequence[Taken]) -> list[Taken]:
    return [None if t is None else t.double() for t in on_host(tensors)]

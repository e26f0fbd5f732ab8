"""Readings of a device, put off: what a step is asked for comes to the host in one copy, for which it waits once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normwise.kernels.reference import has_float64

Taken = Tensor | None


class Reads:
    """Hands tensors to functions on the host, in float64: those of the CPU at once, others at the next :meth:`read`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[..., object], list[Taken]]] = []

    def later(self, take: Callable[..., object], *tensors: Taken) -> None:
        """Have ``take(*tensors)`` called with the values that the tensors have now."""
        if not self._waiting and all(t is None or t.is_cpu for t in tensors):
            take(*on_host(tensors))
        else:
            # Copies, which the device makes in its own time: what stands there may change.
            self._waiting.append((take, [None if t is None else _wide(t, copy=True) for t in tensors]))

    def read(self) -> None:
        """Call all that wait, in their order."""
        waiting, self._waiting = self._waiting, []
        values = iter(on_host([t for _, tensors in waiting for t in tensors]))
        for take, tensors in waiting:
            take(*[next(values) for _ in tensors])


def on_host(tensors: Sequence[Taken]) -> list[Any]:
    """Give tensors on the CPU in float64; what stands on one device is copied together."""
    found: list[Any] = [None if t is None else t.detach() for t in tensors]
    for device in dict.fromkeys(t.device for t in found if t is not None):
        places = [i for i, t in enumerate(found) if t is not None and t.device == device]
        there = [found[i] for i in places]
        if device.type == "cpu":
            here = [t.double() for t in there]
        else:
            flat = torch.cat([_wide(t).flatten() for t in there]).cpu().double()
            parts = flat.split([t.numel() for t in there])
            here = [part.reshape(t.shape) for part, t in zip(parts, there, strict=True)]
        for i, t in zip(places, here, strict=True):
            found[i] = t
    return found


def _wide(t: Tensor, copy: bool = False) -> Tensor:
    return t.detach().to(torch.float64 if has_float64(t.device) else torch.float32, copy=copy)

"""Reading tensors of a device on the host: together, since the host waits for the device at each copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def on_host(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Give tensors on the CPU, in their types; those of one type on one device come in one copy."""
    found: list[Any] = [None if t is None else t.detach() for t in tensors]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, t in enumerate(found):
        if t is not None and not t.is_cpu:
            groups.setdefault((t.device, t.dtype), []).append(i)
    for places in groups.values():
        there = [found[i] for i in places]
        parts = torch.cat([t.flatten() for t in there]).cpu().split([t.numel() for t in there])
        for i, t, part in zip(places, there, parts, strict=True):
            found[i] = part.reshape(t.shape)
    return found


def unequal(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Tell of pairs of tensors whether they differ, of those on a device together."""
    same = on_host([(a == b).all() if a.shape == b.shape and not a.is_cpu else None for a, b in pairs])
    return [
        not (torch.equal(a, b) if s is None and a.is_cpu else bool(s)) for s, (a, b) in zip(same, pairs, strict=True)
    ]

"""Which parameter of a module a measured scale or shift follows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Explained(NamedTuple):
    """A quantity as ``factor`` · parameter + ``offset``; without a name it is the offset alone."""

    name: str | None
    factor: float
    offset: float


def explained(
    seen: list[Tensor], learned: dict[str, Tensor], values: list[dict[str, Tensor]], tolerance: float
) -> Explained | None:
    """Which parameter a scale or shift follows, if one."""
    wanted = torch.cat([t.flatten() for t in seen])
    size = float(wanted.abs().max())
    if size < 1e-6 or float((wanted - wanted.mean()).abs().max()) < 10 * tolerance * max(size, 1.0):
        return Explained(None, 0.0, 0.0 if size < 10 * tolerance else float(wanted.mean()))
    for name in learned:
        given = torch.cat([
            v[name].flatten().expand(s.numel()) if v[name].numel() == 1 else v[name].flatten()
            for v, s in zip(values, seen, strict=False)
        ])
        if given.shape != wanted.shape or float(given.std()) < 1e-9:
            continue
        factor = float(
            ((given - given.mean()) * (wanted - wanted.mean())).sum() / (given - given.mean()).square().sum()
        )
        offset = float(wanted.mean() - factor * given.mean())
        if float((factor * given + offset - wanted).abs().max()) < 10 * tolerance * size:
            return Explained(name, factor, offset if abs(offset) > 1e-3 else 0.0)
    return None


def is_length(scale: Explained, channels: int) -> bool:
    """Whether the result's length is 1, or the parameter, and not √channels times that."""
    factor = scale.factor if scale.name else scale.offset
    return channels > 1 and math.isclose(factor, channels**-0.5, rel_tol=1e-3)

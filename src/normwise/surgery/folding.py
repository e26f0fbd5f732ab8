"""What :func:`fold` did to a model, and how far its outputs moved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from normwise.kernels.reference import widened
from normwise.surgery.running import Left


@dataclass(frozen=True)
class Folded:
    """One layer that is gone: ``into`` took it over, ``side`` says whether that came before it or after it."""

    layer: str
    into: str
    side: str
    through: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Folding:
    """What :func:`fold` did; ``print`` it for a table.

    ``error`` is the largest change of the output on the example inputs over its largest value, ``None`` where that was
    not measured, and ``unchecked`` says why. ``notes`` hold what the proof rests on, where that is not the whole model
    in every use.

    Example:
        >>> print(Folding([Folded("bn", "conv", "before")], [Left("bn2", "is in training mode")], error=1e-7))
        folded 1 layer, output changed by 1e-07 of its largest value
          bn -> conv (before it)
        left alone:
          bn2  is in training mode
    """

    folded: list[Folded]
    left: list[Left]
    error: float | None
    notes: list[str] = field(default_factory=list)
    unchecked: str = "no example_inputs"

    def __str__(self) -> str:
        """Give a table."""
        changed = f"not checked: {self.unchecked}" if self.error is None else f"{self.error:.2g} of its largest value"
        lines = [f"folded {len(self.folded)} layer{'' if len(self.folded) == 1 else 's'}, output changed by {changed}"]
        if self.error is None:
            lines[0] = lines[0].replace("changed by ", "")
        for row in self.folded:
            through = f", through {', '.join(row.through)}" if row.through else ""
            lines.append(f"  {row.layer} -> {row.into} ({row.side} it{through})")
        if self.left:
            lines += ["left alone:", *(f"  {left.layer}  {left.reason}" for left in self.left)]
        return "\n".join([*lines, *self.notes])


_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def change(before: list[Tensor], after: list[Tensor], tolerance: float | None) -> tuple[float, float]:
    """Largest change over largest value, of the worst of the outputs, and what is accepted."""
    worst, limit = 0.0, 0.0
    for old, new in zip(before, after, strict=True):
        limit = max(limit, _TOLERANCE.get(old.dtype, 0.02))
        if old.numel():
            old, new = widened(old), widened(new)
            size = old[old.isfinite()].abs().amax() if old.isfinite().any() else old.new_ones(())
            # What was NaN or infinite before may stay so.
            same = (old == new) | (old.isnan() & new.isnan())
            error = (torch.where(same, 0, (new - old).abs()).amax() / size.clamp_min(1e-300)).item()
            worst = error if not error <= worst else worst
    return worst, limit if tolerance is None else tolerance

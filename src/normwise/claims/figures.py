"""Figures of the commonest kinds, from the numbers of runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normwise.claims.claim import Experiment, Runs
from normwise.claims.statistics import estimate
from normwise.outcomes import Figure, Series


def line(
    name: str,
    x: Sequence[float],
    columns: Sequence[np.ndarray],
    look: str = "",
    *,
    dashed: bool = False,
    ratio: bool = False,
) -> Series:
    """Make a series of means with intervals."""
    return Series(name, [float(v) for v in x], [estimate(c, ratio) for c in columns], look or name, dashed)


def by_batch_size(runs: Runs, experiment: Experiment, methods: Sequence[str], title: str) -> Figure:
    """Draw test accuracy over the batch size, a line per method."""
    sizes = sorted(experiment.batch_sizes)
    series = [line(m, range(len(sizes)), [runs.test(experiment, m, b) for b in sizes]) for m in methods]
    return Figure(title, "batch size", "test accuracy, %", series, ticks=[str(b) for b in sizes], factor=100.0)


def bars(title: str, y_name: str, rows: Sequence[tuple[str, str, np.ndarray]], factor: float = 1.0) -> Figure:
    """Draw one number for each of several methods."""
    series = [line(name, [k], [values], look) for k, (name, look, values) in enumerate(rows)]
    return Figure(title, "", y_name, series, ticks=[name for name, _, _ in rows], factor=factor)

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
    """Make a series of means with intervals.

    Args:
        name: in the legend.
        x: positions.
        columns: for each x the numbers of the seeds.
        look: the method whose colour it has; default ``name``.
        dashed: to tell two series of one method apart.
        ratio: geometric means, for a logarithmic axis.

    Returns:
        The series.

    Example:
        >>> line("batch", [1.0], [np.array([0.5, 0.5])]).y[0].value
        0.5
    """
    return Series(name, [float(v) for v in x], [estimate(c, ratio) for c in columns], look or name, dashed)


def by_batch_size(runs: Runs, experiment: Experiment, methods: Sequence[str], title: str) -> Figure:
    """Draw test accuracy over the batch size, a line per method.

    Args:
        runs: what was measured.
        experiment: with several batch sizes.
        methods: which.
        title: of the figure.

    Returns:
        The figure.

    Example:
        >>> callable(by_batch_size)
        True
    """
    sizes = sorted(experiment.batch_sizes)
    series = [line(m, range(len(sizes)), [runs.test(experiment, m, b) for b in sizes]) for m in methods]
    return Figure(title, "batch size", "test accuracy, %", series, ticks=[str(b) for b in sizes], factor=100.0)


def bars(title: str, y_name: str, rows: Sequence[tuple[str, str, np.ndarray]], factor: float = 1.0) -> Figure:
    """Draw one number for each of several methods.

    Args:
        title: of the figure.
        y_name: of the number.
        rows: name, method whose colour it has, and the numbers of the seeds.
        factor: on the numbers.

    Returns:
        The figure.

    Example:
        >>> bars("T", "MiB", [("batch norm", "batch", np.array([1.0, 1.0]))]).ticks
        ['batch norm']
    """
    series = [line(name, [k], [values], look) for k, (name, look, values) in enumerate(rows)]
    return Figure(title, "", y_name, series, ticks=[name for name, _, _ in rows], factor=factor)

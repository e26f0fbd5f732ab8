"""What is drawn of a result: rows with a name and a number, the same for its page and for plotly in Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from normwise.advice import Advice
from normwise.errors import InputError
from normwise.findings import Diagnosis
from normwise.records import Interval, Standing, Study
from normwise.report import _formats as formats
from normwise.report import _view as view
from normwise.results import Tabular


@dataclass(frozen=True)
class Row:
    """One number by its name, with its interval; ``look`` names the method whose colour and symbol it has."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    look: str | None = None


@dataclass(frozen=True)
class Chart:
    """Rows from top to bottom.

    ``form`` is "bars", "dots" or "line" (dots joined in order). ``log``: on a logarithmic axis. ``mark`` is where a
    line says that it is much. ``worst`` is the side (−1 left, 1 right) on which an outlier may leave the picture; 0:
    none may.
    """

    title: str
    rows: list[Row]
    form: str = "bars"
    log: bool = False
    mark: float | None = None
    worst: int = 0
    unit: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Line:
    """Numbers along an axis, and whose they are."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Curves:
    """Lines of methods over one axis, ``along``."""

    title: str
    rows: list[Line]
    along: str
    unit: str


def charts_of(result: Tabular) -> dict[str, list[Chart | Curves]]:
    """Give the charts of a result by name, those that have something to show; of a study one for each batch size."""
    drawn = _OF[result._kind](getattr(result, "record", result))
    told = {name: [chart for chart in charts if chart.rows] for name, charts in drawn.items()}
    return {name: charts for name, charts in told.items() if charts}


def chosen(result: Tabular, name: str | None) -> list[Chart | Curves]:
    """Give the charts of one name, the first where none is named."""
    there = charts_of(result)
    if not there:
        raise InputError(f"this {result._kind} holds nothing that could be plotted: its numbers were not measured")
    if name is not None and name not in there:
        raise InputError(f"this {result._kind} has no chart {name!r}: choose from {', '.join(there)}")
    return there[name or next(iter(there))]


def _study(study: Study) -> dict[str, list[Chart] | list[Curves]]:
    scale, groups = formats.scale_of(study), [g for g in view.groups_of(study) if g.standings]

    def each(title: str, unit: str, pick: Any, **form: Any) -> list[Chart]:
        return [
            Chart(f"{title}, batch size {g.batch_size}", [r for s in g.standings if (r := pick(s))], **form, unit=unit)
            for g in groups
        ]

    def estimate(method: str, i: Interval | None) -> Row | None:
        if i is None:
            return None
        return Row(method, scale.factor * i.value, scale.factor * i.low, scale.factor * i.high, method)

    test, step, unit = f"Test {scale.name}", "Time per step", scale.unit.strip()
    return {
        "score": each(test, unit, lambda s: estimate(s.method, s.test), form="dots", worst=-1),
        "behind": each(
            "Behind the best on validation", scale.points, lambda s: estimate(s.method, s.behind), form="dots"
        ),
        "time": each(step, "ms", lambda s: _row(s.method, s.step_seconds, 1e3, s.method)),
        "memory": each(
            "Peak memory of a step", "MiB", lambda s: _row(s.method, s.peak_bytes, 1 / formats.MIB, s.method)
        ),
        "curves": [
            Curves(
                f"Validation {scale.name}, batch size {g.batch_size}",
                [_learning(study, s, scale.factor) for s in g.standings],
                "epoch",
                unit,
            )
            for g in groups
        ],
    }


def _learning(study: Study, standing: Standing, factor: float) -> Line:
    """The mean of a method's runs at each point of their curves that all of them reached."""
    what = standing.method, standing.batch_size
    runs = [t.curve for t in view.finals_of(study) if (t.setup.method, t.setup.batch_size) == what]
    points = [(p[0].epoch, [q.valid_score for q in p if q.valid_score is not None]) for p in zip(*runs, strict=False)]
    whole = [(epoch, factor * fmean(scores)) for epoch, scores in points if len(scores) == len(runs)]
    return Line(standing.method, [epoch for epoch, _ in whole], [score for _, score in whole])


def _advice(advice: Advice) -> dict[str, list[Chart]]:
    ranking = [r for r in advice.ranking if not r.refused]
    costs = [(r.spec, r.cost, r.method) for r in ranking if r.cost is not None]
    points = [row for r in ranking if (row := _row(r.spec, r.points, 1, r.method))]
    times = [row for name, cost, look in costs if (row := _row(name, cost.step_seconds, 1e3, look))]
    peaks = [row for name, cost, look in costs if (row := _row(name, cost.peak_bytes, 1 / formats.MIB, look))]
    return {
        "points": [Chart("Expected behind the best method", points, "dots", worst=-1, unit="points")],
        "time": [Chart("Time of a training step", times, unit="ms")],
        "memory": [Chart("Peak memory of a training step", peaks, unit="MiB")],
    }


def _diagnosis(seen: Diagnosis) -> dict[str, list[Chart]]:
    gradients = [(w.layer.names, w.gradient or None) for w in seen.weights]
    gaps = [(n.layer.names, n.mean_gap) for n in seen.norms]
    shifts = [(w.layer.names, w.moved_mean) for w in seen.weights]
    of_loss = "Norm of the loss's gradient at each layer's output"
    moved = "How far one step moves each layer's mean"
    unit = "standard deviations"
    return {
        "gradients": [Chart(of_loss, _layers(gradients), "line", log=True)],
        "gaps": [Chart("How far running means are off", _layers(gaps), "line", mark=0.5, unit=unit)],
        "shifts": [Chart(moved, _layers(shifts), "line", mark=1.0, unit=unit)],
    }


def _conversion(record: Tabular) -> dict[str, list[Chart]]:
    rows = record._rows()
    title = "Difference to the old network's output at each layer"
    return {
        name: [Chart(title + more, _layers((r["layer"], r[name]) for r in rows), "line", unit="shares of its size")]
        for name, more in (("refitted", ", re-fitted"), ("drift", ""))
    }


def _inspection(seen: Tabular) -> dict[str, list[Chart]]:
    rows = seen._rows()
    ranges = [
        Row(
            ", ".join(r["names"]),
            math.sqrt(r["variance_min"] * r["variance_max"]),
            r["variance_min"],
            r["variance_max"],
        )
        for r in rows
        if r["variance_min"] and r["variance_min"] > 0
    ]
    return {
        "channels": [Chart("Channels", _layers((r["names"], r["channels"] or None) for r in rows))],
        "variance": [Chart("Running variances, least to largest", ranges, "dots", log=True)],
        "dead": [Chart("Channels whose weight is dead", _layers((r["names"], r["dead"] or None) for r in rows))],
    }


_OF: Mapping[str, Any] = {
    "study": _study,
    "advice": _advice,
    "diagnosis": _diagnosis,
    "conversion": _conversion,
    "inspection": _inspection,
}


def _layers(values: Iterable[tuple[list[str] | str, float | None]]) -> list[Row]:
    """Rows of layers in their order, those whose number is known and finite."""
    named = ((names if isinstance(names, str) else ", ".join(names), value) for names, value in values)
    return [row for name, value in named if (row := _row(name or "the model", value, 1))]


def _row(name: str, value: float | None, factor: float, look: str | None = None) -> Row | None:
    return None if value is None or not math.isfinite(value) else Row(name, value * factor, look=look)

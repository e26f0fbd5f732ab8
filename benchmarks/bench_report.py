"""The measurements as a Markdown table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

Found = list[dict[str, Any]]


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def goals(speed: Found) -> list[tuple[str, float, float, bool]]:
    """(what, target, reached, met) for each goal that these rows tell of."""

    def ratios(name: str, rows: Found) -> list[float]:
        return [row["times_ours"][name] for row in rows if name in row["times_ours"]]

    switchable = [row for row in speed if row["method"] == "switchable"]
    others = [row for row in speed if row["method"] != "switchable"]
    large = [row for row in speed if row["dtype"] == "float32" and row["megabytes"] > 8]
    found = []
    if switchable:
        formula, batch = geometric_mean(ratios("formula", switchable)), geometric_mean(ratios("torch", switchable))
        found.append(("switchable, times faster than the eager formula", 8.0, formula, formula >= 8))
        found.append(("switchable, times faster than torch.nn.BatchNorm2d", 1.0, batch, batch >= 1))
    if others:
        mean, worst = geometric_mean(ratios("torch", others)), min(ratios("torch", others))
        found.append(("batch, layer, instance, group, times faster than torch.nn", 2.0, mean, mean >= 2))
        found.append(("the same, slowest row", 0.95, worst, worst >= 0.95))
    if large:
        above = 1 / geometric_mean(ratios("limit", large))
        found.append(("float32 above 8 MB, times the limit", 1.3, above, above <= 1.3))
        above = 1 / geometric_mean(ratios("traffic", large))
        found.append(("the same, with the limit's copies between all four tensors of a step", 1.3, above, above <= 1.3))
    return found


def missing(speed: Found) -> Found:
    """Rows slower than torch.nn's layer by more than 5 %."""
    return [row for row in speed if row["method"] != "switchable" and row["times_ours"]["torch"] < 0.95]


def inaccurate(accuracy: Found) -> Found:
    """Rows whose error exceeds that of torch's layer, beyond a tie."""
    return [row for row in accuracy if row["y"] > 1.001 * row["torch_y"] or row["dx"] > 1.001 * row["torch_dx"]]


def behind(layers: Found) -> Found:
    """Layers slower than torch's by more than 5 %, in some use; of switchable norm torch has none."""
    return [row for row in layers if row["layer"] == row["torch"] and row["times_ours"] < 0.95]


def summarize(speed: Found, layers: Found, accuracy: Found) -> str:
    lines = [
        f"{'met ' if met else 'MISSED'} {what}: {reached:.2f} (goal {goal:g})"
        for what, goal, reached, met in goals(speed)
    ]
    lines.append(f"{len(missing(speed))} of {len(speed)} rows slower than torch.nn by more than 5 %")
    if layers:
        own = [row for row in layers if row["layer"] == row["torch"]]
        lines.append(f"{len(behind(layers))} of {len(own)} uses of a layer slower than torch.nn by more than 5 %")
    if accuracy:
        lines.append(f"{len(inaccurate(accuracy))} of {len(accuracy)} accuracy rows err more than torch.nn")
    return "\n".join(lines)


def _cells(values: Iterable[object]) -> str:
    return "| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values) + " |"


def _grid(titles: list[str], lines: Iterable[Iterable[object]]) -> list[str]:
    return [_cells(titles), _cells(["---"] * len(titles)), *(_cells(line) for line in lines), ""]


def _name(row: dict[str, Any]) -> list[str]:
    return [row["method"], row["dtype"], row["layout"], "×".join(map(str, row["shape"])), str(row["threads"])]


def table(header: dict[str, Any], speed: Found, layers: Found, memory: Found, accuracy: Found) -> str:
    """Everything, as Markdown."""
    environment = "; ".join(f"{name} {value}" for name, value in header["environment"].items())
    lines = ["# Benchmark of the engine", "", f"`{header['command']}`. {environment}.", ""]
    lines += ["Training forward and backward. A number is another's time divided by ours: above 1 we are faster.", ""]
    lines += _grid(
        ["goal", "wanted", "reached", "met"], ([w, g, r, "yes" if m else "**no**"] for w, g, r, m in goals(speed))
    )
    names = ["torch", "formula", "compiled", "limit", "traffic"]
    titles = [
        "method",
        "dtype",
        "layout",
        "shape",
        "threads",
        "ours, µs",
        "torch.nn",
        "eager formula",
        "compiled",
        "limit",
        "of four tensors",
    ]
    if missing(speed):
        lines += ["## Rows slower than torch.nn by more than 5 %", ""]
        lines += _grid(
            titles[:7], ([*_name(r), r["microseconds"]["ours"], r["times_ours"]["torch"]] for r in missing(speed))
        )
    lines += ["## All rows", ""]
    lines += _grid(
        titles,
        ([*_name(r), r["microseconds"]["ours"], *(r["times_ours"].get(name, "") for name in names)] for r in speed),
    )
    if layers:
        lines += [
            "## Layer by layer, small and in evaluation",
            "",
            "Layer and input of one type, contiguous, one thread. Training and evaluation with gradients are forward "
            "and backward.",
            "",
        ]
        titles = ["layer", "beside", "type", "shape", "use", "ours, µs", "torch.nn"]
        lines += _grid(
            titles,
            (
                [
                    *(r["layer"], r["torch"], r["dtype"], "×".join(map(str, r["shape"])), r["use"]),
                    *(r["microseconds"]["ours"], r["times_ours"]),
                ]
                for r in layers
            ),
        )
    if memory:
        lines += ["## Memory of a training step, in tensors of x's size", ""]
        lines += _grid(["layer", "saved for backward", "peak"], ([m["layer"], m["saved"], m["peak"]] for m in memory))
    if accuracy:
        lines += [
            "## Largest error against the float64 formula",
            "",
            f"Rows that err more than torch.nn: {len(inaccurate(accuracy))}.",
            "",
        ]
        keys = ["method", "dtype", "layout", "mean", "std", "y", "torch_y", "dx", "torch_dx"]
        lines += _grid(keys, ([row[key] for key in keys] for row in accuracy))
    return "\n".join(lines)


COLOURS = {"torch": "#4c72b0", "formula": "#c44e52", "compiled": "#55a868", "limit": "#8c8c8c"}


def chart(speed: Found) -> str:
    """A dot for every row and contender: how many times our time it takes, on a logarithmic axis; a band a method."""
    methods = list(dict.fromkeys(row["method"] for row in speed))
    top = max(ratio for row in speed for ratio in row["times_ours"].values())
    low = min(ratio for row in speed for ratio in row["times_ours"].values())
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(top))
    left, width, band = 110, 620, 90
    height = 60 + band * len(methods)

    def at(ratio: float) -> float:
        return left + width * (math.log2(ratio) - first) / max(1, last - first)

    parts = [f'<rect width="{left + width + 40}" height="{height}" fill="#fff"/>']
    for power in range(first, last + 1):
        x, weight = at(2.0**power), 2 if power == 0 else 0.5
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{height - 30}" stroke="#bbb" stroke-width="{weight}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{2.0**power:g}×</text>')
    for i, method in enumerate(methods):
        rows = [row for row in speed if row["method"] == method]
        parts.append(f'<text x="10" y="{30 + band * (i + 0.55):.0f}">{escape(method)}</text>')
        for j, (name, colour) in enumerate(COLOURS.items()):
            y = 30 + band * i + (j + 0.7) * band / 5
            for row in rows:
                if name in row["times_ours"]:
                    tip = escape(f"{name}: {row['times_ours'][name]:.2f}, {' '.join(_name(row))} threads")
                    parts.append(
                        f'<circle cx="{at(row["times_ours"][name]):.1f}" cy="{y:.1f}" r="3.5" fill="{colour}" '
                        f'fill-opacity="0.55"><title>{tip}</title></circle>'
                    )
    for j, (name, colour) in enumerate(COLOURS.items()):
        label = {"torch": "torch.nn", "formula": "eager formula", "compiled": "torch.compile"}.get(name, name)
        parts.append(f'<circle cx="{left + 150 * j}" cy="14" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{left + 10 + 150 * j}" y="18">{label}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="Time of others divided by ours">\n{body}\n</svg>\n'
    )

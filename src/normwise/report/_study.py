"""A study for people: verdicts first, then every number, in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normwise.records import Interval, Standing, Study, to_dict
from normwise.report import _formats as formats
from normwise.report import _view as view
from normwise.report._formats import Scale
from normwise.report._palette import NAMES
from normwise.report._terminal import indented, said, told

# Below this many columns an interval goes on a line of its own, under its estimate.
ROOMY = 112


def render(study: Study) -> RenderableType:
    """Draw the verdicts, then the tables; see :func:`normwise.report.table`."""
    groups, scale = view.groups_of(study), formats.scale_of(study)
    parts: list[RenderableType] = []
    if not study.finished:
        parts.append(Text("Unfinished: what follows covers the trials done so far.", style="bold yellow"))
    if not study.verdicts:
        parts.append(Text("No verdict yet."))
    shared = view.shared_cautions(study)
    parts += [_verdict(study, group, shared) for group in groups if group.verdict]
    if shared:
        parts.append(Padding(Group(*(told("Caution", c) for c in shared)), (0, 0, 1, 0)))
    for group in groups:
        if group.standings:
            parts.append(_Standings(group, scale))
    if any(group.standings for group in groups):
        parts.append(_legend(study))
    return Group(*parts)


def _verdict(study: Study, group: view.Group, shared: list[str]) -> RenderableType:
    verdict = group.verdict
    assert verdict is not None  # the caller's filter
    head = Text.assemble((f"Batch size {group.batch_size}: ", "bold"))
    if group.undecided:
        head.append(group.undecided.lower(), style="bold red")
    else:
        head.append_text(said(f"use {NAMES.get(verdict.use, verdict.use)}", "bold green"))
        head.append("  " + "; ".join(formats.sure_of(verdict, study)), style="dim")
    lines: list[RenderableType] = [said(verdict.headline, "italic")]
    lines += [said(reason) for reason in verdict.why]
    lines += [told("Caution", caution) for caution in verdict.cautions if caution not in shared]
    return Padding(Group(head, *map(indented, lines)), (0, 0, 1, 0))


@dataclass(frozen=True)
class _Standings:
    """The table of one batch size; looks at the width it is given."""

    group: view.Group
    scale: Scale

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        roomy = options.max_width >= ROOMY
        table = Table(
            title=f"Batch size {self.group.batch_size}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0) if roomy else 0,
        )
        longest = max(len(s.method) for s in self.group.standings)
        table.add_column("method", overflow="fold", min_width=min(longest, 12) + 2)
        for title in ("validation", "test", "behind best"):
            unit = "" if title == "behind best" else self.scale.unit
            table.add_column(title + unit, justify="right", overflow="fold")
        for title in ("ms/step", "peak MiB", "diverged") if roomy else ("ms\n/step", "peak\nMiB", "diver-\nged"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for standing in self.group.standings:
            table.add_row(*self._row(standing, roomy))
        yield table

    def _row(self, standing: Standing, roomy: bool) -> list[Text]:
        advised = standing is self.group.advised and not self.group.undecided
        style = "bold" if advised else ""
        return [
            said(("★ " if advised else "  ") + standing.method, style),
            self._estimate(standing.valid, roomy, style),
            self._estimate(standing.test, roomy, style),
            self._estimate(standing.behind, roomy, style) if standing.behind else Text(formats.MISSING),
            Text(formats.step_time(standing, " " if roomy else "\n"), style),
            Text(formats.mebibytes(standing.peak_bytes), style),
            Text(f"{standing.diverged}/{standing.runs}", "red" if standing.diverged else style),
            Text(self.group.mark(standing), style),
        ]

    def _estimate(self, interval: Interval, roomy: bool, style: str) -> Text:
        """Write "97.2 [96.1, 98.0]", on two lines where it is narrow."""
        dash = " to " if interval.low < 0 else "–"
        bounds = self.scale.bounds(interval, ", " if roomy else dash)
        around = f" [{bounds}]" if roomy else f"\n{bounds}"
        return Text(self.scale.number(interval.value), style).append(around, style="dim")


def _legend(study: Study) -> Text:
    return Text(
        f"★ advised. best, tied: on validation, where the choice is made. Intervals: {formats.interval_level(study)}, "
        "bootstrap over seeds; behind best: paired, seed by seed."
        + " stopped: clearly behind, so it ran fewer seeds." * study.settings.race
        + " ±: half the 95 % interval of a step's time." * any(s.step_interval is not None for s in study.standings)
        + "".join(f" {other} = {method}." for other, method in study.settings.same_as.items()),
        style="dim",
    )


def html(study: Study, live: Mapping[str, Any] | None = None) -> str:
    """Draw the page; see :func:`normwise.report.html`. ``live`` is what the banner of a live page says."""
    from normwise.report import _frame as frame

    methods = view.methods_of(study)
    scale = formats.scale_of(study)
    blends = view.blends_of(study)
    finals = view.finals_of(study)
    members = formats.unique(member for blend in blends for layer in blend.layers for member in layer.members)
    return frame.render(
        "study",
        # What the charts read: the study as it is stored, and how to draw it.
        {
            "study": to_dict(study),
            "scale": to_dict(scale),
            "methods": methods,
            "blends": [to_dict(blend) for blend in blends],
        },
        study.versions,
        methods,
        drawn=members,
        study=study,
        live=live,
        settings=study.settings,
        scale=scale,
        level=formats.interval_level(study),
        groups=view.groups_of(study),
        blends=blends,
        finals=finals,
        regrets=view.regrets_of(study),
        curve_sizes=[(size, f"Batch size {size}") for size in dict.fromkeys(t.setup.batch_size for t in finals)],
        lost=[t for t in study.trials if t.state != "complete"],
        shared_cautions=view.shared_cautions(study),
        members=members,
    )

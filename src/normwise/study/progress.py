"""What a person sees while a study runs: a live line in a terminal, a bar in a notebook, plain lines elsewhere.

Lines go to standard error.
"""

from __future__ import annotations

import html
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from normwise.records import Settings, Study, Trial
from normwise.report.live import Ahead
from normwise.study.plan import total_setups
from normwise.study.racing import race
from normwise.study.tuning import tuning


def live_line(console: Console, said: str) -> Progress:
    """Make the live line of trials: how many are done, for how long, what is said of them and what is being done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("trials"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn(f"{said}  [dim]{{task.fields[doing]}}[/dim]"),
        console=console,
        transient=True,
    )


class Live:
    """A context manager around the live line that a terminal has; ``_live`` is ``None`` elsewhere."""

    _live: Progress | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()


class Display(Live):
    """Shows how far a study is; a context manager."""

    def __init__(self, settings: Settings, workers: int = 1, stream: TextIO | None = None) -> None:
        self.settings = settings
        self.workers = workers
        self._console = Console(file=stream or sys.stderr)
        self._said = ""
        self._bar_of_notebook = None if stream else notebook_output()
        if self._console.is_terminal:
            self._live = live_line(self._console, "{task.fields[left]}  {task.fields[best]}")
            self._bar = self._live.add_task("", total=total_setups(settings), left="", best="", doing="")

    def update(self, trials: Sequence[Trial], doing: str | None) -> None:
        """Show the state of the study."""
        left, best = time_left(self.settings, trials, self.workers), best_so_far(self.settings, trials)
        total = total_setups(self.settings, trials)
        if self._live:
            self._live.update(self._bar, completed=len(trials), total=total, left=left, best=best, doing=doing or "")
            return
        line = ", ".join(part for part in (f"{len(trials)} of {total} trials done", left, best) if part)
        if doing and doing.startswith("waiting"):
            line += f"; {doing}"
        if line != self._said:
            self._said = line
            if self._bar_of_notebook:
                bar = f'<progress value="{len(trials)}" max="{total}"></progress> {html.escape(line)}'
                self._bar_of_notebook.update({"text/html": bar, "text/plain": line}, raw=True)
                return
            print(line, file=self._console.file, flush=True)


def notebook_output() -> Any:
    """An output of the running cell that can be changed; ``None`` where no notebook's kernel runs this."""
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    return ipython.display.display({"text/plain": ""}, raw=True, display_id=True)


def time_left(settings: Settings, trials: Sequence[Trial], workers: int = 1) -> str:
    """Say how long a study goes on, as far as can be told."""
    left = seconds_left(settings, trials) / workers
    if not left:
        return ""
    return f"about {left / 60:.0f} min left" if left > 90 else f"about {max(left, 1):.0f} s left"


def seconds_left(settings: Settings, trials: Sequence[Trial]) -> float:
    """Estimate the training left: each open trial takes as long as its like have taken; 0 where that is not known."""
    if not trials or len(trials) >= total_setups(settings, trials):
        return 0.0
    length = {"tune": settings.tune_share, "final": 1.0}
    full = [(t.setup.method, t.setup.batch_size, t.seconds / length[t.setup.stage]) for t in trials]
    overall = statistics.fmean(seconds for _, _, seconds in full)
    done = Counter((t.setup.stage, t.setup.method, t.setup.batch_size) for t in trials)
    left = 0.0
    for batch_size in settings.batch_sizes:
        state = race(settings, trials, batch_size)
        tunes = Counter(setup.method for setup in tuning(settings, trials, batch_size).setups)
        for method in settings.methods:
            like = [s for m, b, s in full if (m, b) == (method, batch_size)]
            like = like or [s for _, b, s in full if b == batch_size] or [overall]
            open_tunes = tunes[method] - done["tune", method, batch_size]
            open_finals = state.most(method) - done["final", method, batch_size]
            left += (open_tunes * length["tune"] + open_finals) * statistics.fmean(like)
    return left


def ahead(study: Study) -> Ahead:
    """Tell a live page what is still to be done."""
    return Ahead(total_setups(study.settings, study.trials), seconds_left(study.settings, study.trials))


def best_so_far(settings: Settings, trials: Sequence[Trial]) -> str:
    """Name the leading method of each batch size, by its final trials or, before there are any, its best tuning one."""
    found = []
    for batch_size in settings.batch_sizes:
        here = [t for t in trials if t.setup.batch_size == batch_size]
        finals: dict[str, list[float]] = {}
        for t in here:
            if t.setup.stage == "final":
                finals.setdefault(t.setup.method, []).append(t.valid_score)
        if finals:
            method, scores = max(finals.items(), key=lambda item: statistics.fmean(item[1]))
            found.append(f"b{batch_size}: {method} {statistics.fmean(scores):.3f}")
        elif here:
            best = max(here, key=lambda t: t.valid_score)
            found.append(f"b{batch_size}: {best.setup.method} {best.valid_score:.3f}")
    return "best so far " + ", ".join(found) if found else ""

"""What the callbacks share: a watch that opens when training begins and closes when it ends, however it ends."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from normwise.errors import InputError
from normwise.findings import SEVERITIES, Diagnosis
from normwise.nn._checks import number_given
from normwise.probe.scalars import MetricsWriter, Scalars
from normwise.probe.watching import watch


class WatchedTraining:
    """Opens and closes the watch; the callbacks say when."""

    def __init__(self, every: int = 16, report: Callable[[Diagnosis], Any] | None = print) -> None:
        super().__init__()
        number_given(every, "every", least=1, whole=True)
        if report is not None and not callable(report):
            raise InputError(f"report is {type(report).__name__}, expected a function of a diagnosis, or None")
        self.every, self.report = every, report
        self.diagnosis: Diagnosis | None = None
        self._watch: watch | None = None
        self._scalars: Scalars | None = None

    def _begin(self, model: nn.Module, steps: float, writer: MetricsWriter | None) -> None:
        """Open the watch for a run of so many steps, where that is known."""
        self._stop(failed=True)
        known = int(steps) if 1 <= steps < float("inf") else None
        self._scalars = None if writer is None else Scalars(writer)
        self._watch = watch(model, every=self.every, run_length=known, writer=self._scalars)
        self._watch.__enter__()
        # Not every trainer tells its callbacks that training failed: then the hooks go with the callback.
        weakref.finalize(self, self._watch._stack.close)

    def _stop(self, failed: bool) -> watch | None:
        watched, self._watch = self._watch, None
        if watched is not None:
            watched.__exit__(Exception if failed else None)
        return watched

    def _end(self, reports: bool, failed: bool = False) -> None:
        """Close the watch and judge what it saw; the rank that ``reports`` tells of it."""
        watched = self._stop(failed)
        if watched is None:
            return
        try:
            self.diagnosis = watched.diagnosis()
        except InputError:  # no training pass was seen, of which the watch has warned
            return
        if reports:
            found = Counter(finding.severity for finding in self.diagnosis.findings)
            if self._scalars is not None:
                counts = {f"normwise/findings/{severity}": float(found[severity]) for severity in SEVERITIES}
                self._scalars.log_metrics(counts, watched.run().steps)
            if self.report is not None:
                self.report(self.diagnosis)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks cannot be pickled, nor what ties a callback to its trainer (Lightning sets ``log``): a copy begins anew.
        kept = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return kept | {"_watch": None, "_scalars": None, "_trainer": None}

"""Run claims: their experiments through the study's store and trainer, in the order that :mod:`.schedule` says.

An experiment is a study of its own in ``FOLDER/experiments/NAME``, so that what several claims rest on is run once and
a run that was stopped goes on at the trial where it was. What is run next follows from the finished trials alone, so
helpers come to the same stages and share their trials.
"""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from normwise import devices, outcomes, report
from normwise.claims.claim import Arm, Claim, Experiment, Runs
from normwise.claims.judging import outcome_of
from normwise.claims.keeping import TRIALS, read_trials, write_trials
from normwise.claims.library import CLAIMS, claims_named
from normwise.claims.progress import Display
from normwise.claims.schedule import Stage, due, stages, time_left
from normwise.errors import InputError
from normwise.files import check_folder, make_folder, write_own
from normwise.outcomes import Outcome, load_claims
from normwise.records import Setup, Trial, dumps
from normwise.study.children import helpers
from normwise.study.compute import PLAIN, Compute
from normwise.study.machine import machine, versions
from normwise.study.store import Store
from normwise.study.worker import trainer_of

STORED, PAGE = "claims.json", "claims.html"


def run(
    names: str | Sequence[str] = "all",
    *,
    quick: bool = False,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    workers: int = 1,
    minutes: float | None = None,
    device: str | torch.device = devices.AUTO,
    precision: str | int = "32",
    progress: bool = True,
    command: str | None = None,
) -> outcomes.Claims:
    """Put claims to the test.

    Seeds are added in stages while a hypothesis is undecided, up to 20; see ``claims/statistics.py``.

    Args:
        names: of claims, see ``CLAIMS``; ``"all"`` for each.
        quick: short training and few seeds: shows what you get, decides little.
        out: a folder to keep the runs in, which makes them resumable, and to write ``claims.json``, ``claims.html`` and
            ``trials.json.gz`` to after each stage; claims that it holds already stay. Where it holds but the last of
            these, of another machine, those trials are not run again. Default none.
        fresh: run again what the folder already holds.
        workers: processes that share the work.
        minutes: begin no trial after so many; what is then undecided says what it would take, and the same call with
            the same ``out`` goes on. Default no limit.
        device: what to train on, as for :func:`normwise.compare`: a folder keeps to one kind of device.
        precision: likewise, ``"32"``, ``"bf16"`` or ``"16"``.
        progress: show it on standard error.
        command: what to record as the command that makes this.

    Returns:
        The outcomes, in the order of the claims' numbers.

    Raises:
        InputError: there is no such claim.
        StoreError: the folder cannot be used.

    Example:
        >>> run("covariate", progress=False)
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: unknown claim 'covariate': ...
    """
    chosen = claims_named([names] if isinstance(names, str) else list(names))
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be above 0, got {minutes}")
    asked = devices.asked(device)
    compute = Compute(devices.resolve(device), str(precision))
    with ExitStack() as stack:
        stack.enter_context(devices.current(compute.device))
        folder = None if out is None else Path(out)
        check_folder(folder, "claims", (STORED, PAGE))
        kept = None if folder is None else folder
        if folder is None and workers > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normwise-")))
        bench = Bench(experiments_of(chosen), quick, folder, fresh, _end(minutes), compute)
        if folder is not None:
            ids = [claim.name for claim in chosen]
            job = partial(_help, ids, quick, folder.resolve(), minutes, compute.precision)
            shares = [devices.share(asked, turn) for turn in range(1, workers)]
            stack.enter_context(helpers([partial(job, name) for name, _ in shares], [of for _, of in shares]))
        display = stack.enter_context(Display()) if progress else None
        record = _record(kept, command or _python_command(chosen, quick), compute)
        while True:
            record = _with(record, [outcome_of(claim, bench.runs(), quick) for claim in chosen])
            if kept is not None:
                save(record, kept)
                write_trials(bench.runs(), kept / TRIALS)
            ahead = stages(chosen, bench.runs(), quick)
            if display:
                display.stage(ahead, record.outcomes, time_left(ahead, bench.runs(), quick))
            if not ahead or bench.over():
                return record
            bench.work(ahead[0], display.trial if display else None)


class Bench:
    """The experiments of a run: their tasks, settings, stores and trials."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        quick: bool,
        folder: Path | None,
        fresh: bool = False,
        end: float | None = None,
        compute: Compute = PLAIN,
    ) -> None:
        self._end = end
        self._tasks = {e.name: e.task().on(compute) for e in experiments}
        self.settings = {e.name: e.settings(self._tasks[e.name], quick) for e in experiments}
        self._places = {
            e.name: None if folder is None else folder / "experiments" / _label(e, quick) for e in experiments
        }
        # Opened at once: a folder that cannot be used, or holds other settings, is refused before anything is run.
        self._stores = {e.name: Store(self._places[e.name], self.settings[e.name], fresh) for e in experiments}
        if folder is not None and not fresh:
            for name, trials in read_trials(folder / TRIALS, self.settings).items():
                self._stores[name].add(trials)
        self._trials = {name: store.trials() for name, store in self._stores.items()}

    def runs(self) -> Runs:
        """All trials that are finished."""
        return Runs(self._trials, self.settings)

    def over(self) -> bool:
        """Whether the time for new trials is up."""
        return self._end is not None and time.monotonic() >= self._end

    def work(self, stage: Stage, on_change: Callable[[Mapping[str, Sequence[Trial]], str], None] | None = None) -> None:
        """Run what is open of a stage."""
        for experiment in stage.claim.experiments:
            seeds = {arm: n for arm, n in stage.seeds.items() if arm.experiment == experiment.name}
            if seeds:
                self._run(experiment, seeds, on_change)

    def _run(
        self,
        experiment: Experiment,
        seeds: Mapping[Arm, int],
        on_change: Callable[[Mapping[str, Sequence[Trial]], str], None] | None,
    ) -> None:
        name, task = experiment.name, self._tasks[experiment.name]
        settings = self.settings[name]

        def told(trials: list[Trial], doing: str | None) -> None:
            self._trials[name] = trials
            if on_change:
                on_change(self._trials, f"{name} {doing or ''}")

        def wanted(trials: list[Trial]) -> list[Setup]:
            return [] if self.over() else due(settings, seeds, trials)

        train = trainer_of(task, settings, experiment.memory)
        self._trials[name] = self._stores[name].work(train, wanted, told, floor=task.floor)


def experiments_of(claims: Sequence[Claim]) -> list[Experiment]:
    """List the experiments of claims, each once."""
    return list({e.name: e for claim in claims for e in claim.experiments}.values())


def save(record: outcomes.Claims, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``claims.json`` and ``claims.html``; each is replaced whole or not at all."""
    folder = make_folder(folder)
    stored, page = folder / STORED, folder / PAGE
    check_folder(folder, "claims", (STORED, PAGE))
    write_own(stored, dumps(record), "claims")
    write_own(page, report.claims_html(record), "claims", page=True)
    return stored, page


def _help(names: list[str], quick: bool, folder: Path, minutes: float | None, precision: str, device: str) -> None:
    """What a helper process does: the same stages, of which it takes trials that nobody else has."""
    claims = claims_named(names)
    compute = Compute(devices.resolve(device), precision)
    with devices.current(compute.device):
        bench = Bench(experiments_of(claims), quick, folder, end=_end(minutes), compute=compute)
        while (ahead := stages(claims, bench.runs(), quick)) and not bench.over():
            bench.work(ahead[0])


def _end(minutes: float | None) -> float | None:
    return None if minutes is None else time.monotonic() + 60 * minutes


def _record(folder: Path | None, command: str, compute: Compute) -> outcomes.Claims:
    """What the folder holds already, or an empty record."""
    stored = None if folder is None else folder / STORED
    before = load_claims(stored).outcomes if stored is not None and stored.exists() else []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return outcomes.Claims(now, command, versions(), machine(1, compute), [o for o in before if o.name in CLAIMS])


def _with(record: outcomes.Claims, judged: Sequence[Outcome]) -> outcomes.Claims:
    found = {o.name: o for o in [*record.outcomes, *judged]}
    return outcomes.Claims(
        record.created, record.command, record.versions, record.machine, sorted(found.values(), key=lambda o: o.number)
    )


def _label(experiment: Experiment, quick: bool) -> str:
    return experiment.name + "-quick" * quick


def _python_command(chosen: Sequence[Claim], quick: bool) -> str:
    return f"normwise.claims.run({[claim.name for claim in chosen]}{', quick=True' * quick})"

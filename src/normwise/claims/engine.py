"""Run claims: their experiments through the study's store and trainer, their hypotheses to verdicts.

An experiment is a study of its own in ``FOLDER/experiments/NAME``, so that what several claims rest on is run once and
a run that was stopped goes on where it was. Helpers go round the same experiments from other starting points and meet
in the stores.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from normwise import outcomes, report
from normwise.claims.claim import Claim, Experiment, Part, Runs, UnmeasuredError
from normwise.claims.library import CLAIMS, claims_named
from normwise.claims.progress import Display
from normwise.claims.statistics import estimate, judge, together
from normwise.errors import InputError
from normwise.files import check_folder, make_folder, write_own
from normwise.outcomes import UNDECIDED, Answer, Outcome, load_claims
from normwise.records import Trial, dumps
from normwise.study.children import helpers
from normwise.study.machine import machine, versions
from normwise.study.plan import due, total_cells
from normwise.study.store import Store
from normwise.study.worker import trainer_of

T = TypeVar("T")

STORED, PAGE = "claims.json", "claims.html"


def run(
    names: str | Sequence[str] = "all",
    *,
    quick: bool = False,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> outcomes.Claims:
    """Put claims to the test.

    Args:
        names: of claims, see ``CLAIMS``; ``"all"`` for each.
        quick: short training and few seeds: shows what you get, decides little.
        out: a folder to keep the runs in, which makes them resumable, and to write ``claims.json`` and ``claims.html``
            to after each claim; claims that it holds already stay. Default none.
        fresh: run again what the folder already holds.
        workers: processes that share the work.
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
    with ExitStack() as stack:
        folder = None if out is None else Path(out)
        check_folder(folder, "claims", (STORED, PAGE))
        kept = None if folder is None else folder
        if folder is None and workers > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normwise-")))
        bench = Bench(experiments_of(chosen), quick, folder, fresh)
        if folder is not None:
            ids = [claim.name for claim in chosen]
            stack.enter_context(
                helpers([partial(_help, ids, quick, folder.resolve(), k, workers) for k in range(1, workers)])
            )
        display = stack.enter_context(Display(bench.total, chosen)) if progress else None
        record = _record(kept, command or _python_command(chosen, quick))
        for claim in chosen:
            record = _with(record, _outcome(claim, bench, display))
            if kept is not None:
                save(record, kept)
    return record


class Bench:
    """The experiments of a run: their tasks, settings and stores."""

    def __init__(
        self, experiments: Sequence[Experiment], quick: bool, folder: Path | None, fresh: bool = False
    ) -> None:
        self.quick = quick
        self._tasks = {e.name: e.task() for e in experiments}
        self.settings = {e.name: e.settings(self._tasks[e.name], quick) for e in experiments}
        self._places = {
            e.name: None if folder is None else folder / "experiments" / _label(e, quick) for e in experiments
        }
        # Opened at once: a folder that cannot be used, or holds other settings, is refused before anything is run.
        self._stores = {e.name: Store(self._places[e.name], self.settings[e.name], fresh) for e in experiments}
        self.total = sum(total_cells(s) for s in self.settings.values())

    def trials(
        self, experiment: Experiment, on_change: Callable[[list[Trial], str | None], None] | None = None
    ) -> list[Trial]:
        """Run what is open of an experiment and give all its trials."""
        settings, task = self.settings[experiment.name], self._tasks[experiment.name]
        train = trainer_of(task, settings, experiment.memory)
        store, told = self._stores[experiment.name], filter(None, [on_change])
        return store.work(train, partial(due, settings), *told, floor=task.floor)


def experiments_of(claims: Sequence[Claim]) -> list[Experiment]:
    """List the experiments of claims, each once."""
    return list({e.name: e for claim in claims for e in claim.experiments}.values())


def outcome_of(claim: Claim, runs: Runs, quick: bool) -> Outcome:
    """Judge a claim by its runs."""
    answers = [answer_of(part, runs) for part in claim.parts]
    figures, missing = _drawn(claim.figures, runs)
    galleries, more = _drawn(claim.galleries, runs)
    trials = [t for e in claim.experiments for t in runs.trials_of[e.name]]
    return Outcome(
        number=claim.number,
        name=claim.name,
        title=claim.title,
        claim=claim.claim,
        source=claim.source,
        verdict=together(a.verdict for a in answers if a.decides),
        answers=answers,
        figures=figures,
        galleries=galleries,
        experiments={e.name: runs.settings_of[e.name] for e in claim.experiments},
        trials=len(trials),
        lost=sum(t.state != "complete" for t in trials),
        seconds=sum(t.seconds for t in trials),
        code=_code(claim, quick),
        quick=quick,
        how=claim.how,
        notes=[*claim.notes, *missing, *more],
    )


def answer_of(part: Part, runs: Runs) -> Answer:
    """Measure one hypothesis and judge it; what cannot be measured is undecided and says why."""
    values: list[float] = []
    interval, verdict, note = None, UNDECIDED, ""
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            measured = [float(v) for v in part.measure(runs)]
        interval = estimate(measured, part.ratio)
        values, verdict = measured, judge(interval, part.at_least, part.at_most)
    except (UnmeasuredError, InputError) as error:
        note = str(error)
    return Answer(
        statement=part.statement,
        verdict=verdict,
        values=values,
        estimate=interval,
        at_least=part.at_least,
        at_most=part.at_most,
        unit=part.unit.name,
        factor=part.unit.factor,
        ratio=part.ratio,
        published=part.published,
        decides=part.decides,
        note=note,
    )


def save(record: outcomes.Claims, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``claims.json`` and ``claims.html``; each is replaced whole or not at all."""
    folder = make_folder(folder)
    stored, page = folder / STORED, folder / PAGE
    check_folder(folder, "claims", (STORED, PAGE))
    write_own(stored, dumps(record), "claims")
    write_own(page, report.claims_html(record), "claims", page=True)
    return stored, page


def _outcome(claim: Claim, bench: Bench, display: Display | None) -> Outcome:
    trials = {}
    for experiment in claim.experiments:
        trials[experiment.name] = bench.trials(experiment, display.watch(claim, experiment) if display else None)
    outcome = outcome_of(claim, Runs(trials, {name: bench.settings[name] for name in trials}), bench.quick)
    if display:
        display.judged(outcome)
    return outcome


def _drawn(drawings: Sequence[Callable[[Runs], T]], runs: Runs) -> tuple[list[T], list[str]]:
    """Make what can be drawn, and say what cannot."""
    drawn, missing = [], []
    for draw in drawings:
        try:
            drawn.append(draw(runs))
        except UnmeasuredError as error:
            missing.append(f"A figure is missing: {error}.")
    return drawn, missing


def _help(names: list[str], quick: bool, folder: Path, turn: int, workers: int) -> None:
    """What a helper process does: the same experiments, beginning elsewhere."""
    experiments = experiments_of(claims_named(names))
    bench = Bench(experiments, quick, folder)
    start = len(experiments) * turn // workers
    for experiment in experiments[start:] + experiments[:start]:
        bench.trials(experiment)


def _record(folder: Path | None, command: str) -> outcomes.Claims:
    """What the folder holds already, or an empty record."""
    stored = None if folder is None else folder / STORED
    before = load_claims(stored).outcomes if stored is not None and stored.exists() else []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return outcomes.Claims(now, command, versions(), machine(1), [o for o in before if o.name in CLAIMS])


def _with(record: outcomes.Claims, outcome: Outcome) -> outcomes.Claims:
    found = {o.name: o for o in record.outcomes} | {outcome.name: outcome}
    return outcomes.Claims(
        record.created, record.command, record.versions, record.machine, sorted(found.values(), key=lambda o: o.number)
    )


def _label(experiment: Experiment, quick: bool) -> str:
    return experiment.name + "-quick" * quick


def _code(claim: Claim, quick: bool) -> str:
    options = ", quick=True" * quick
    return (
        "from normwise import claims\n\n"
        f'outcome = claims.run("{claim.name}"{options}, out="my-claims").outcomes[0]\n'
        "for answer in outcome.answers:\n"
        "    print(answer.verdict, answer.estimate, answer.statement)\n"
    )


def _python_command(chosen: Sequence[Claim], quick: bool) -> str:
    return f"normwise.claims.run({[claim.name for claim in chosen]}{', quick=True' * quick})"

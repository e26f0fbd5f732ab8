"""Whether an advice holds on the user's data: a short paired comparison, within a given time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from normwise import records
from normwise.advice import Advice, Check, Ranked
from normwise.errors import InputError
from normwise.nn.own import Given
from normwise.records import Setup
from normwise.study.comparison import make_settings
from normwise.study.compute import PLAIN, Compute
from normwise.study.plan import due
from normwise.study.stored import draw_up
from normwise.study.tasks import make_task
from normwise.study.tasks.base import DEFAULT_LRS, Task
from normwise.study.trial import Trainer
from normwise.surgery.running import deep_copy

# The best-ranked methods that take part, their learning rates and seeds, the steps of a first taste, and those below
# which a run says nothing.
_CHECKED, _LRS, _SEEDS, _TASTE, _LEAST_STEPS = 3, (0.04, 0.2), 3, 6, 30
# Samples that it scores by at most; the share of the time that it plans for, as machines do not keep their pace, and
# what first tastes may take of all.
_SCORED, _OF_THE_TIME, _FOR_TASTES = 500, 0.85, 0.1


def check_by_training(
    model: nn.Module,
    advice: Advice,
    data: Any,
    end: float,
    own: Mapping[str, Given] | None = None,
    how: Mapping[str, Any] | None = None,
    compute: Compute = PLAIN,
) -> Check:
    """Train fresh copies of a model briefly, paired, under the best-ranked methods and those that it has.

    It is over at ``end`` of ``time.perf_counter``: steps are as many as a first taste says that there is time for, no
    trial begins later, and a round of seeds that is not finished by then does not count.
    """
    began, b = time.perf_counter(), advice.situation.batch_size
    possible = [r for r in advice.ranking if r.refused is None]
    wanted = {*advice.situation.current, *(own or {})}
    methods = [r.spec for i, r in enumerate(possible) if i < _CHECKED or r.method in wanted]
    task = make_task(partial(_fresh, model), data, **(how or {}))
    task = dataclasses.replace(task, elsewhere=_exempted(possible), own=own or {})
    splits = task.splits._replace(**{
        name: getattr(task.splits, name).take(slice(_SCORED)) for name in ("valid", "test")
    })
    task = dataclasses.replace(task, splits=splits).on(compute)
    rates = _LRS if task.lrs == DEFAULT_LRS else task.lrs[:2]
    if not rates:
        raise InputError("your optimizer's function names no learning rate: give it a default, as in lr=0.1")
    steps = _steps_until(end, task, methods, b, rates)
    if steps < _LEAST_STEPS:
        headline = f"the time allows {steps} steps a run, too few to say anything: give more"
        return Check(time.perf_counter() - began, methods, headline, None, None)
    epochs = steps * b / task.splits.train.size
    settings = make_settings(task, methods, [b], _SEEDS, rates, epochs)
    trials = _trained_until(end, Trainer(task, {b: steps}, measure_memory=False), settings)
    done = [seed for seed in settings.seeds if sum(t.setup.seed == seed for t in trials) == len(methods)]
    if len(done) < 2:
        return Check(time.perf_counter() - began, methods, "the time ran out, too early to say anything", None, None)
    kept = [t for t in trials if t.setup.stage == "tune" or t.setup.seed in done]
    study = draw_up(dataclasses.replace(settings, seeds=done), {}, kept)
    verdict, best = study.verdicts[0], advice.best.spec
    standing = next(s for s in study.standings if s.method == best)
    behind = standing.behind.value if standing.behind else 0.0
    held = best in verdict.tied if verdict.outcome in records.DECIDED else None
    return Check(time.perf_counter() - began, methods, verdict.headline, held, behind)


def _steps_until(end: float, task: Task, methods: Sequence[str], batch_size: int, rates: Sequence[float]) -> int:
    """How long each trial may be, so that all of them fit in."""

    def taste(method: str, steps: int) -> records.Trial:
        return Trainer(task, {batch_size: steps}, measure_memory=False)(Setup("tune", method, batch_size, rates[0], 0))

    # A single step says how many the others can be given to try.
    once = taste(methods[0], 1).seconds
    tried = max(1, min(_TASTE, int(_FOR_TASTES * (end - time.perf_counter()) / max(once * len(methods), 1e-6))))
    tastes = []
    for method in methods:
        if time.perf_counter() + once > end:
            return 0
        tastes.append(taste(method, tried))
    per_step = sum(t.step_seconds or 0.0 for t in tastes)
    # A trial is scored at six points and twice at its end; a taste at each of its few steps.
    beside = sum(t.seconds - t.steps * (t.step_seconds or 0.0) for t in tastes) * 8 / (2 + tried)
    left = _OF_THE_TIME * (end - time.perf_counter()) / (len(rates) + _SEEDS)
    return max(0, int((left - beside) / max(per_step, 1e-6)))


def _trained_until(end: float, trainer: Trainer, settings: records.Settings) -> list[records.Trial]:
    """The trials that were trained in time: first those that choose learning rates, then seed by seed."""
    trials: list[records.Trial] = []
    while waiting := [c for c in due(settings, trials) if c.key not in {t.setup.key for t in trials}]:
        if time.perf_counter() > end:
            break
        trials.append(trainer(waiting[0]))
    return trials


def _fresh(model: nn.Module) -> nn.Module:
    """A copy that starts anew: every module that can reset its parameters does."""
    copy = deep_copy(model).cpu()  # where the weights are drawn
    for module in copy.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return copy


def _exempted(ranking: Sequence[Ranked]) -> dict[str, dict[str, str]]:
    """Method → the places that cannot have it → what they get instead, as the advised code does."""
    return {r.spec: {e.place: e.use for e in r.exemptions} for r in ranking}

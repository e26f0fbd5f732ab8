"""A study, arranged for reading: its methods in order, one group per batch size, mixtures averaged over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass

from normwise import records
from normwise.records import Mixture, Standing, Study, Trial, Verdict
from normwise.report._formats import unique

UNDECIDED = dict(zip(records.UNDECIDED, ("No run came through", "No learning shown", "No difference"), strict=True))


@dataclass(frozen=True)
class Group:
    """All that is known at one batch size; ``verdict`` is None until there is one."""

    batch_size: int
    verdict: Verdict | None
    standings: list[Standing]

    @property
    def advised(self) -> Standing | None:
        """The standing of the advised method."""
        return next((s for s in self.standings if self.verdict and s.method == self.verdict.use), None)

    @property
    def undecided(self) -> str:
        """Why nothing can be advised, as a heading; empty where a method is."""
        if self.verdict and self.verdict.outcome:
            return UNDECIDED.get(self.verdict.outcome, "")
        lost = bool(self.standings) and all(s.runs and s.diverged == s.runs for s in self.standings)
        return UNDECIDED["lost"] if lost else ""

    def mark(self, standing: Standing) -> str:
        """Say how a standing relates to the best: "best", "tied", "stopped" or nothing."""
        if self.undecided:
            return ""
        if self.verdict and standing.method == self.verdict.best:
            return "best"
        return "tied" if standing.tied else "stopped" if standing.stopped else ""


@dataclass(frozen=True)
class Blend:
    """A method's mixing weights at one batch size, each layer averaged over ``runs`` runs; layers in order."""

    method: str
    batch_size: int
    runs: int
    layers: list[Mixture]


@dataclass(frozen=True)
class Regret:
    """What one method would cost as the only one ever used: how far behind the best it is at each batch size.

    ``behind`` is on validation, by batch size, 0 where the method is the best; ``mean`` and ``worst`` are over them.
    """

    method: str
    behind: dict[int, float]

    @property
    def mean(self) -> float:
        """The average over the batch sizes."""
        return statistics.fmean(self.behind.values())

    @property
    def worst(self) -> int:
        """The batch size at which the method is furthest behind."""
        return max(self.behind, key=lambda size: self.behind[size])


def methods_of(study: Study) -> list[str]:
    """List every method that a study names, in the settings' order."""
    return unique([
        *study.settings.methods,
        *(s.method for s in study.standings),
        *(t.setup.method for t in study.trials),
        *(v.use for v in study.verdicts),
    ])


def groups_of(study: Study) -> list[Group]:
    """Arrange standings and verdicts by batch size, in the settings' order."""
    sizes = dict.fromkeys([*study.settings.batch_sizes, *(s.batch_size for s in study.standings)])
    verdicts = {v.batch_size: v for v in study.verdicts}
    groups = [Group(b, verdicts.get(b), [s for s in study.standings if s.batch_size == b]) for b in sizes]
    return [g for g in groups if g.standings or g.verdict]


def regrets_of(study: Study) -> list[Regret]:
    """Tell what each method costs if it is used at every batch size, least first; only of those that ran at all."""
    behind: dict[str, dict[int, float]] = defaultdict(dict)
    for s in study.standings:
        behind[s.method][s.batch_size] = s.behind.value if s.behind else 0.0
    sizes = {s.batch_size for s in study.standings}
    found = [Regret(method, of) for method, of in behind.items() if of.keys() == sizes]
    return sorted(found, key=lambda r: r.mean) if len(found) > 1 else []


def shared_cautions(study: Study) -> list[str]:
    """Keep the cautions that all of several verdicts carry, which are then said once for all."""
    if len(study.verdicts) < 2:
        return []
    return [c for c in study.verdicts[0].cautions if all(c in v.cautions for v in study.verdicts[1:])]


def finals_of(study: Study) -> list[Trial]:
    """Keep the trials that are compared."""
    return [t for t in study.trials if t.setup.stage == "final"]


def blends_of(study: Study) -> list[Blend]:
    """Average the mixing weights of each layer over the complete final runs of a method at a batch size."""
    runs: dict[tuple[str, int], list[Trial]] = defaultdict(list)
    for trial in finals_of(study):
        if trial.state == "complete" and trial.mixtures:
            runs[trial.setup.method, trial.setup.batch_size].append(trial)
    return [Blend(method, size, len(trials), _average(trials)) for (method, size), trials in runs.items()]


def _average(trials: list[Trial]) -> list[Mixture]:
    """Average layer by layer; layers are the same when name and members are."""
    layers: dict[tuple[str, tuple[str, ...]], list[Mixture]] = defaultdict(list)
    for trial in trials:
        for mixture in trial.mixtures:
            layers[mixture.layer, tuple(mixture.members)].append(mixture)
    return [
        Mixture(layer, list(members), _mean([m.mean_weights for m in same]), _mean([m.var_weights for m in same]))
        for (layer, members), same in layers.items()
    ]


def _mean(rows: list[list[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]

"""What a claim is made of: experiments (what is trained), parts (hypotheses and their measures) and figures.

All of them are values; :mod:`normwise.claims.engine` runs and judges them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from normwise.claims.statistics import LOOKS, QUICK_LOOKS, look_at
from normwise.errors import NormwiseError
from normwise.outcomes import Figure, Gallery
from normwise.records import Settings, Trial
from normwise.study.comparison import SEARCH, make_settings
from normwise.study.tasks import Task
from normwise.study.tuning import chosen_lrs

# A rate that only a lucky seed survives must not be chosen.
TUNE_SEEDS = 3
T = TypeVar("T")


class UnmeasuredError(NormwiseError):
    """A trial did not give the number that a measure asks for."""


class Unit(NamedTuple):
    """How a number is written: multiplied by ``factor``, followed by ``name``."""

    name: str = ""
    factor: float = 1.0


POINTS = Unit("points", 100.0)
PERCENT = Unit("%", 100.0)
TIMES = Unit("×")
PLAIN = Unit()


class Arm(NamedTuple):
    """What gets more seeds as one: a method at a batch size of an experiment."""

    experiment: str
    method: str
    batch_size: int


@dataclass(frozen=True)
class Experiment:
    """A study as part of a claim: a task under methods, batch sizes and seeds; several claims may rest on one.

    ``lrs``, by default the task's, hold at batch size 32 and are scaled for others, as in :func:`normwise.compare`;
    each method is tuned over them on ``TUNE_SEEDS`` seeds apart, and beyond them while the best lies at an end, unless
    there is only one. ``steps`` and ``quick_steps`` are optimizer steps, or batch size → steps. Seeds are added at
    ``LOOKS`` while a hypothesis is undecided. A quick run uses the middle rate untuned and few seeds. ``memory``
    measures a step's peak; the training is then of no interest.

    Example:
        >>> from normwise.study.tasks import load_task
        >>> Experiment("mine", lambda: load_task("digits"), ("batch",), lrs=(0.1,)).name
        'mine'
    """

    name: str
    task: Callable[[], Task]
    methods: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (32,)
    lrs: tuple[float, ...] | None = None
    steps: int | Mapping[int, int] = 300
    quick_steps: int | Mapping[int, int] = 60
    memory: bool = False

    @property
    def arms(self) -> list[Arm]:
        """Every method at every batch size."""
        return [Arm(self.name, method, size) for size in self.batch_sizes for method in self.methods]

    def settings(self, task: Task, quick: bool) -> Settings:
        """Fix what is run.

        Args:
            task: what :attr:`task` gave.
            quick: fewer seeds and steps, no tuning.

        Returns:
            The study's settings, whose seeds are all that may be used.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> task = load_task("digits")
            >>> Experiment("mine", lambda: task, ("batch",), lrs=(0.1,)).settings(task, quick=False).lrs
            {'32': [0.1]}
        """
        rates = task.lrs if self.lrs is None else self.lrs
        lrs = (rates[len(rates) // 2],) if quick else rates
        steps = self.quick_steps if quick else self.steps
        samples = task.splits.train.size
        epochs = {b: (steps if isinstance(steps, int) else steps[b]) / (samples // b) for b in self.batch_sizes}
        made = make_settings(task, self.methods, self.batch_sizes, looks_of(quick)[-1], lrs, epochs, quick)
        first, tuned = made.tune_seeds[0], len(lrs) > 1
        seeds = list(range(first, first + TUNE_SEEDS)) if tuned else []
        return dataclasses.replace(made, task=self.name, tune_seeds=seeds, search=SEARCH if tuned else 0)


def looks_of(quick: bool) -> tuple[int, ...]:
    """The numbers of seeds at which a run is judged."""
    return QUICK_LOOKS if quick else LOOKS


class Runs:
    """The final trials of a claim's experiments, read by measures and figures: one number per seed, paired.

    ``read`` are the arms that were asked for.

    Args:
        trials: experiment → its trials.
        settings: experiment → its settings.

    Example:
        >>> Runs({}, {}).trials_of
        {}
    """

    def __init__(self, trials: Mapping[str, Sequence[Trial]], settings: Mapping[str, Settings]) -> None:
        self.trials_of = dict(trials)
        self.settings_of = dict(settings)
        self.read: set[Arm] = set()
        self._seeds: int | None = None
        self._arms: dict[Arm, dict[int, Trial]] = {}
        for name, found in self.trials_of.items():
            chosen = chosen_lrs(self.settings_of[name], found)
            for setup, trial in ((t.setup, t) for t in found if t.setup.stage == "final"):
                # Those at another rate are of before the search went on.
                if setup.lr == chosen.get((setup.method, setup.batch_size)):
                    self._arms.setdefault(Arm(name, setup.method, setup.batch_size), {})[setup.seed] = trial

    def finished(self, arm: Arm) -> list[Trial]:
        """Give an arm's trials up to the first seed that is missing.

        Args:
            arm: which.

        Returns:
            In the order of the seeds.

        Example:
            >>> Runs({}, {}).finished(Arm("mine", "batch", 32))
            []
        """
        there, rows = self._arms.get(arm, {}), []
        for seed in self.settings_of[arm.experiment].seeds if there else []:
            if seed not in there:
                break
            rows.append(there[seed])
        return rows

    def seconds(self, arms: Iterable[Arm]) -> float:
        """Tell what a seed of these arms takes to train.

        Args:
            arms: which.

        Returns:
            Seconds, 0 where nothing is known.

        Example:
            >>> Runs({}, {}).seconds([])
            0.0
        """
        return float(sum(np.mean([t.seconds for t in self.finished(arm)] or [0.0]) for arm in arms))

    def at_look(self, read: Callable[[Runs], T]) -> tuple[T, set[Arm], int]:
        """Read on the seeds that all arms have which are read.

        Args:
            read: a measure or a figure.

        Returns:
            What it gave, the arms that it read, and the number of seeds.

        Raises:
            UnmeasuredError: there are too few trials, or one gave no number.

        Example:
            >>> Runs({}, {}).at_look(lambda runs: 1)
            (1, set(), 0)
        """
        looks = looks_of(any(s.quick for s in self.settings_of.values()))
        first = self._first(looks[0])
        found = read(first)
        if not first.read:  # a figure of published numbers
            return found, set(), 0
        seeds = look_at(min(len(self.finished(arm)) for arm in first.read), looks)
        runs = self._first(seeds)
        return read(runs), runs.read, seeds

    def _first(self, seeds: int) -> Runs:
        """The same runs, with only so many seeds and nothing read yet."""
        some = copy.copy(self)
        some.read, some._seeds = set(), seeds
        return some

    def trials(self, experiment: Experiment, method: str, batch_size: int | None = None) -> list[Trial]:
        """Give the trials of one method in the order of the seeds.

        Args:
            experiment: which.
            method: a spec among its methods.
            batch_size: may be left out where the experiment has one.

        Returns:
            One per seed.

        Raises:
            UnmeasuredError: a trial is missing.

        Example:
            >>> callable(Runs.trials)
            True
        """
        size = self.settings_of[experiment.name].batch_sizes[0] if batch_size is None else batch_size
        arm = Arm(experiment.name, method, size)
        self.read.add(arm)
        found = self.finished(arm)
        if len(found) < max(self._seeds or 0, 2):
            raise UnmeasuredError(f"{experiment.name}: {method} at batch size {size} is not finished")
        return found[: self._seeds]

    def test(self, experiment: Experiment, method: str, batch_size: int | None = None) -> np.ndarray:
        """Give the test scores; a trial that was lost has the score of guessing.

        Args:
            experiment: which.
            method: a spec among its methods.
            batch_size: may be left out where the experiment has one.

        Returns:
            (seeds,) scores.

        Example:
            >>> callable(Runs.test)
            True
        """
        return np.array([t.test_score for t in self.trials(experiment, method, batch_size)])

    def valid(self, experiment: Experiment, method: str, batch_size: int | None = None) -> np.ndarray:
        """Give the validation scores, to choose by.

        Args:
            experiment: which.
            method: a spec among its methods.
            batch_size: may be left out where the experiment has one.

        Returns:
            (seeds,) scores.

        Example:
            >>> callable(Runs.valid)
            True
        """
        return np.array([t.valid_score for t in self.trials(experiment, method, batch_size)])

    def seen(self, experiment: Experiment, method: str, *path: str, batch_size: int | None = None) -> np.ndarray:
        """Give what the experiment's observer noted.

        Args:
            experiment: which.
            method: a spec among its methods.
            *path: keys into the trials' ``observed``.
            batch_size: may be left out where the experiment has one.

        Returns:
            (seeds, ...) numbers.

        Example:
            >>> callable(Runs.seen)
            True
        """
        return np.array(self.lists(experiment, method, *path, batch_size=batch_size), dtype=float)

    def lists(self, experiment: Experiment, method: str, *path: str, batch_size: int | None = None) -> list[Any]:
        """Give what the experiment's observer noted, as it is: series may differ in length.

        Args:
            experiment: which.
            method: a spec among its methods.
            *path: keys into the trials' ``observed``.
            batch_size: may be left out where the experiment has one.

        Returns:
            One thing per seed.

        Raises:
            UnmeasuredError: a trial has no such thing.

        Example:
            >>> callable(Runs.lists)
            True
        """
        rows = []
        for trial in self.trials(experiment, method, batch_size):
            found: Any = trial.observed
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            if found is None or found == []:
                raise UnmeasuredError(f"{trial.setup.key} has no {'.'.join(path)} ({trial.reason or trial.state})")
            rows.append(found)
        return rows


@dataclass(frozen=True)
class Part:
    """A hypothesis: that a quantity, one number per seed, has a mean between two bounds.

    ``brief`` names it in the sentence that says which parts of a claim hold. An ``exact`` quantity is fixed by how the
    methods are made, not by chance: equal numbers decide at once.

    Example:
        >>> Part("It is positive", lambda runs: [1.0, 2.0], at_least=0.0).unit
        Unit(name='', factor=1.0)
    """

    statement: str
    measure: Callable[[Runs], Sequence[float] | np.ndarray]
    at_least: float | None = None
    at_most: float | None = None
    unit: Unit = PLAIN
    ratio: bool = False
    published: str = ""
    decides: bool = True
    brief: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim of the literature, as an experiment.

    ``claim`` is what is said, ``source`` where, ``how`` in a few sentences what is measured. ``parts`` are its
    hypotheses, fixed before the runs; ``figures`` and ``galleries`` draw from the runs.

    Example:
        >>> from normwise.claims import CLAIMS
        >>> CLAIMS["small-batches"].number
        4
    """

    number: int
    name: str
    title: str
    claim: str
    source: str
    how: str
    experiments: tuple[Experiment, ...]
    parts: tuple[Part, ...]
    figures: tuple[Callable[[Runs], Figure], ...] = ()
    galleries: tuple[Callable[[Runs], Gallery], ...] = ()
    notes: tuple[str, ...] = ()

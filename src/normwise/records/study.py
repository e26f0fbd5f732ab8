"""What a study is made of: settings, trials, standings, verdicts. Standard library only.

Scores are always "higher is better". Times are in seconds, memory in bytes. A number that could not be measured is
``None``, never NaN, so that the files are strict JSON.
"""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass, field

from normwise.records.plain import load_record

STUDY_VERSION = 1


# The outcomes of a batch size at which a method is advised, and those at which the runs decide nothing.
DECIDED = ("alone", "clear", "tied")


UNDECIDED = ("lost", "unlearned", "equal")


@dataclass(frozen=True)
class Point:
    """One point of a learning curve, taken after ``step`` optimizer steps."""

    step: int
    epoch: float
    train_loss: float | None
    valid_score: float | None


@dataclass(frozen=True)
class Mixture:
    """What one switchable layer learned: its members and their weights for means and for variances (each sums to 1)."""

    layer: str
    members: list[str]
    mean_weights: list[float]
    var_weights: list[float]


@dataclass(frozen=True)
class Setup:
    """One trial to run: the same setup always gives the same numbers.

    ``stage`` is ``"tune"`` (chooses the learning rate) or ``"final"`` (is compared).
    """

    stage: str
    method: str
    batch_size: int
    lr: float
    seed: int

    @property
    def key(self) -> str:
        """A stable name, unique in a study."""
        return f"{self.stage}/{self.method}/b{self.batch_size}/lr{self.lr:.6g}/s{self.seed}"


@dataclass(frozen=True)
class Trial:
    """The outcome of one setup.

    ``state`` is ``"complete"``, ``"diverged"`` (the loss or the outputs became infinite or NaN) or ``"failed"`` (the
    model raised an error, the memory did not suffice, or processes died of it); the last two carry the task's floor as
    their scores and say why in ``reason``.
    ``step_seconds`` is the median time of a training step, ``seconds`` that of the whole trial, ``peak_bytes`` the most
    memory one training step held beyond the model, its data and its optimizer. ``observed`` is what the task's
    observer saw, if it has one; ``notes`` say what else is to be known, such as steps that float16 left out.
    """

    setup: Setup = field(metadata={"once": "cell"})
    state: str
    valid_score: float
    test_score: float
    valid_loss: float | None
    test_loss: float | None
    steps: int
    step_seconds: float | None
    seconds: float
    peak_bytes: int | None
    parameters: int
    curve: list[Point] = field(default_factory=list)
    mixtures: list[Mixture] = field(default_factory=list)
    reason: str | None = None
    observed: dict[str, typing.Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def lost(cls, setup: Setup, floor: float, reason: str, seconds: float = 0.0) -> Trial:
        """A trial of which nothing is known but why it failed."""
        return cls(setup, "failed", floor, floor, None, None, 0, None, seconds, None, 0, reason=reason)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; ``level`` is the nominal coverage, 0.95 unless told otherwise."""

    value: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class StepCost:
    """What a training step costs with one method, measured after the trials in turn with the other methods.

    ``seconds`` are the median times of successive blocks of steps, each block taken in the same seconds as those of the
    other methods; ``peak_bytes`` is as for a :class:`Trial`.
    """

    method: str
    batch_size: int
    seconds: list[float]
    peak_bytes: int | None


@dataclass(frozen=True)
class Standing:
    """How one method did at one batch size, over the seeds of the final stage.

    ``diverged`` and ``tune_diverged`` count the trials that did not complete, failed ones included.

    ``behind`` and ``behind_test`` are the paired differences (best − this method), seed by seed, on validation and
    test; ``None`` for the best itself. ``tied`` says that the validation interval does not exclude zero (the best is
    tied with itself). ``probability_best`` is the share of bootstrap resamples in which the method has the highest
    validation mean. ``step_interval`` is that of the step's time, where steps were timed in turn: see
    :class:`StepCost`.
    """

    method: str
    batch_size: int
    lr: float
    lr_at_edge: bool
    runs: int
    diverged: int
    tune_diverged: int
    valid: Interval
    test: Interval
    behind: Interval | None
    behind_test: Interval | None
    tied: bool
    probability_best: float
    step_seconds: float | None
    peak_bytes: int | None
    parameters: int
    stopped: bool = False
    step_interval: Interval | None = None


@dataclass(frozen=True)
class Verdict:
    """Which method to use at one batch size.

    ``best`` has the highest validation mean, ``use`` is the advice: the best where it is clear, else the cheapest of
    the ``tied``. ``confidence`` is the share of bootstrap resamples in which ``use`` is at most the settings'
    ``tolerance`` behind the method that is highest in that resample: how little it costs to choose it;
    ``probability_best`` the share in which it is the highest itself. ``why`` holds full sentences. ``outcome`` is one
    of ``DECIDED``, where ``use`` is advised, or of ``UNDECIDED``, where nothing is; older studies do not have it.
    ``lr_decided`` says that the choice of a learning rate may have decided: a method's scores at rates that the search
    does not tell apart differ by more than the advised method and its rival.
    """

    batch_size: int
    use: str
    best: str
    clear: bool
    tied: list[str]
    confidence: float
    headline: str
    why: list[str]
    cautions: list[str] = field(default_factory=list)
    outcome: str = ""
    probability_best: float | None = None
    lr_decided: bool = False


@dataclass(frozen=True)
class Settings:
    """All that fixes a study's numbers; two studies with equal settings have equal setups.

    In a ``race`` a method stops once it is clearly behind. A trial that chooses a learning rate has ``tune_share`` of a
    final one's length. Each trial is trained on so many ``devices``, in parallel over its batches' samples. ``floor``
    is what no training scores: guessing, a constant prediction or the untrained model. ``search`` says how many rates
    beyond either end of ``lrs`` are tried, for all methods alike, while the best of some method lies at that end. The
    last ``tune_ties`` of the ``tune_seeds`` are for the two best rates of each method alone, where these are near.
    ``same_as`` are methods that were asked for and not trained: method → the one of ``methods`` that makes the same
    network. ``own`` holds the methods of one's own among ``methods``, with what tells whether their code is still the
    same. ``device`` is the kind of device, ``precision`` one of ``"32"``, ``"bf16"`` and ``"16"``, ``compile`` whether
    models are compiled, ``num_workers`` how many processes read a data set ahead, which changes no number.
    """

    task: str
    methods: list[str]
    batch_sizes: list[int]
    seeds: list[int]
    tune_seeds: list[int]
    lrs: dict[str, list[float]]
    epochs: dict[str, float]
    score_name: str
    optimizer: str
    schedule: str
    splits: dict[str, int]
    model: str
    tolerance: float = 0.005
    quick: bool = False
    race: bool = False
    tune_share: float = 1.0
    devices: int = 1
    notes: list[str] = field(default_factory=list)
    floor: float | None = None
    search: int = 0
    tune_ties: int = 0
    same_as: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "32"
    compile: bool = False
    num_workers: int = 0


@dataclass(frozen=True)
class Study:
    """A whole comparison as it is stored in ``study.json``.

    ``lrs`` and ``epochs`` of the settings are keyed by the batch size as text (JSON has no other keys). ``machine`` and
    ``versions`` are name → value; ``command`` reproduces the study. ``standings`` come best first within a batch size.
    """

    title: str
    created: str
    command: str
    settings: Settings
    versions: dict[str, str]
    machine: dict[str, str]
    trials: list[Trial]
    standings: list[Standing]
    verdicts: list[Verdict]
    seconds: float
    finished: bool = True
    version: int = STUDY_VERSION
    costs: list[StepCost] = field(default_factory=list)


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a ``study.json``.

    Args:
        path: the file.

    Returns:
        The study.

    Raises:
        StoreError: the file cannot be read, is not a study, or is of a newer version than this normwise knows.

    Example:
        >>> load_study("nowhere.json")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot read the study nowhere.json: No such file or directory
    """
    return load_record(path, Study, "study", STUDY_VERSION)

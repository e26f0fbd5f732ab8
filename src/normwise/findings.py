"""Records of what was found out about one model: its facts, what was measured, what is wrong. Standard library only.

As in :mod:`normwise.records` a number that could not be measured is ``None``, never NaN.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from normwise.errors import InputError
from normwise.records import dumps, keys_of, load_record
from normwise.results import Result, counted

SEVERITIES = ("info", "warning", "error")
DIAGNOSIS_VERSION = 1


@dataclass(frozen=True)
class NormFacts:
    """One normalization layer, as a dry run met it.

    ``order`` is its place among the norms and weighted layers in the order in which they first ran, ``None`` where it
    did not run; ``calls`` counts its runs in one pass. ``shape`` is that of its input, ``spatial`` the sizes of the
    axes that are neither sample nor channel. ``samples`` is how many rows of axis 0 a step on ``batch_size`` samples
    gives it, ``elements`` how many values then stand behind the statistic that it divides by, on one device, in
    training (of a mix: the smallest member's); ``None`` where it did not run. ``masked`` says that it is told of
    padding, ``after`` names the module whose output it takes as it is, ``alone`` says that nothing else takes that
    output. ``affine`` layers have a weight or bias; ``dropout`` names the dropout that ran between the norm before and
    this one; ``channels_at`` is the axis of the channels where a layer norm normalizes over another one.
    ``drift`` is, of a layer that runs at every step
    of a loop, the share of its input's variance that is between the steps' means: 0 where all steps are alike; ``None``
    elsewhere.

    Example:
        >>> NormFacts(["bn"], "BatchNorm2d", "batch", order=1, calls=1, channels=8, elements=512).name
        'bn'
    """

    names: list[str]
    type: str
    method: str
    order: int | None
    calls: int
    channels: int
    shape: list[int] = field(default_factory=list)
    spatial: list[int] = field(default_factory=list)
    samples: int | None = None
    elements: int | None = None
    eps: float = 0.0
    momentum: float | None = None
    num_groups: int | None = None
    per_token: bool = False
    tracked: bool = False
    frozen: bool = False
    synced: bool = False
    masked: bool = False
    after: str | None = None
    alone: bool = False
    affine: bool = True
    dropout: str | None = None
    channels_at: int | None = None
    drift: float | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def elements_of(self, pool: str, num_groups: int = 1, samples: int | None = None) -> int | None:
        """How many values would stand behind a statistic of another method at this place.

        Args:
            pool: ``"batch"``, ``"layer"``, ``"group"`` or ``"instance"``.
            num_groups: of a group norm.
            samples: rows of axis 0; default as many as ``batch_size`` gives.

        Returns:
            The number; ``None`` where the layer did not run.

        Raises:
            InputError: an unknown pool.

        Example:
            >>> norm = NormFacts(["bn"], "", "batch", 0, 1, channels=8, spatial=[4, 4], samples=2)
            >>> [norm.elements_of(pool) for pool in ("batch", "layer", "instance")]
            [32, 128, 16]
        """
        if self.samples is None:
            return None
        space = math.prod(self.spatial)
        counts = {
            "batch": (self.samples if samples is None else samples) * space,
            "layer": self.channels * space,
            "group": self.channels // num_groups * space,
            "instance": space,
        }
        if pool not in counts:
            raise InputError(f"unknown pool {pool!r}: expected one of {', '.join(counts)}")
        return counts[pool]


@dataclass(frozen=True)
class WeightFacts:
    """One layer with a weight matrix or kernel: convolution, linear, recurrent, attention.

    ``order`` and ``calls`` as in :class:`NormFacts`; ``shape`` is that of its (first) output, ``fan_in`` how many
    numbers each of its outputs is made from. ``normalized_by`` names the norm that takes its output as it is.

    Example:
        >>> WeightFacts(["fc"], "Linear", 0, 1, shape=[2, 10], bias=True).name
        'fc'
    """

    names: list[str]
    type: str
    order: int | None
    calls: int
    shape: list[int] = field(default_factory=list)
    bias: bool = False
    weight_norm: bool = False
    normalized_by: str | None = None
    fan_in: int | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True)
class ModelFacts:
    """What one dry run of a model tells about it.

    ``kinds`` holds all that apply of ``generative``, ``recurrent``, ``attention``, ``conv`` and ``mlp`` (none of the
    others); ``architecture`` is the first of them in that order. ``generative`` models make images: from a code, or
    with the channels of those that came in. ``activations`` counts calls by name, ``residual_adds`` the additions of
    two activations of one shape, ``concatenations`` how often activations are put side by side, ``attentions`` the
    calls of attention. ``depth`` is the number of weighted layers that ran. The example held ``example_size``
    samples; ``batch_size`` are meant. ``padded`` is the share of sequence positions that are padding, as far as the
    inputs tell; ``None`` where they hold no sequence. ``tokens`` says that sequences of integers come in, which stand
    for words or the like.

    Example:
        >>> ModelFacts("Net", "conv", ["conv"], batch_size=8, example_size=2).normalized
        False
    """

    model: str
    architecture: str
    kinds: list[str]
    batch_size: int
    example_size: int
    parameters: int = 0
    depth: int = 0
    inputs: list[list[int]] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    norms: list[NormFacts] = field(default_factory=list)
    weights: list[WeightFacts] = field(default_factory=list)
    activations: dict[str, int] = field(default_factory=dict)
    residual_adds: int = 0
    concatenations: int = 0
    attentions: int = 0
    upsamplings: int = 0
    dropout: float = 0.0
    padded: float | None = None
    tokens: bool = False

    @property
    def normalized(self) -> bool:
        """Whether any normalization layer ran."""
        return any(norm.calls for norm in self.norms)


@dataclass(frozen=True)
class Finding:
    """Something about a layer that a person should know; ``severity`` is one of ``SEVERITIES``.

    ``message`` says what was found, ``effect`` what it does to training, ``fix`` is code that mends it and ``command``
    the same on the command line, where there is one. ``changes`` is how far the fix, tried on a copy, moves the outputs
    in evaluation: the root mean square of the change over that of the outputs; ``None`` where that was not measured.
    ``evidence`` holds the numbers that the message rests on.

    Example:
        >>> print(Finding("bn1", "warning", "never-updated", "its running statistics never saw data"))
        warning  bn1: its running statistics never saw data
    """

    layer: str
    severity: str
    code: str
    message: str
    evidence: dict[str, float] = field(default_factory=dict)
    effect: str = ""
    fix: str = ""
    command: str = ""
    changes: float | None = None

    def __str__(self) -> str:
        """One line."""
        return f"{self.severity:<7}  {self.layer or 'the model'}: {self.message}"

    @property
    def price(self) -> str:
        """What the fix does to the outputs, in words; empty where that was not measured."""
        if self.changes is None or not self.fix:
            return ""
        if self.changes < 1e-5:
            return "the fix leaves the outputs in evaluation as they are"
        return f"the fix moves the outputs in evaluation by {self.changes:.2g} of their size"


def worst(findings: Iterable[Finding]) -> str | None:
    """Give the highest severity among findings.

    Args:
        findings: any.

    Returns:
        One of ``SEVERITIES``; ``None`` without findings.

    Example:
        >>> worst([Finding("a", "info", "x", ""), Finding("b", "error", "y", "")])
        'error'
    """
    return max((f.severity for f in findings), key=SEVERITIES.index, default=None)


def fails(findings: Iterable[Finding], severity: str) -> bool:
    """Whether there is a finding of a severity or a higher one.

    Args:
        findings: any.
        severity: one of ``SEVERITIES``.

    Returns:
        Whether there is.

    Raises:
        InputError: an unknown severity.

    Example:
        >>> fails([Finding("a", "warning", "x", "")], "info")
        True
    """
    if severity not in SEVERITIES:
        raise InputError(f"unknown severity {severity!r}: expected one of {', '.join(SEVERITIES)}")
    highest = worst(findings)
    return highest is not None and SEVERITIES.index(highest) >= SEVERITIES.index(severity)


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity, keeping the order among equals.

    Args:
        findings: any.

    Returns:
        The errors, the warnings, the infos.

    Example:
        >>> [f.layer for f in gravest_first([Finding("a", "info", "x", ""), Finding("b", "error", "y", "")])]
        ['b', 'a']
    """
    return sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))


@dataclass(frozen=True)
class NormTrace:
    """What was measured at one normalization layer, over the sampled forward passes.

    Of statistics over the batch per channel, of others over their own pools. Distances of means are root mean squares
    over the channels in units of the running standard deviation, with the sampling noise taken off; ``var_factor`` is
    the typical factor between batch and running variances. ``scatter`` is how far batch means scatter about their
    average, in standard deviations: the noise that a small batch brings. ``shift`` is how far the mean moved from the
    first sample to the last. ``gain`` is what evaluation gains in score where this layer alone takes batch statistics.

    ``calls`` is the largest number of runs in one pass; ``apart_mean`` and ``apart_var`` are how far the statistics of
    these runs are from the first's. ``ran`` is false where it ran in no pass at all. ``near_eps`` and ``constant``
    count channels (or the share of pools, times the channels) in all samples: of the first kind those whose output eps
    makes small although the weight does not, ``near_min`` being their smallest variance. ``initial`` says that weight
    and bias are what layers start with. ``dropout_factor`` is its input's variance with dropout off over that with it
    on, ``dropout_running`` the same over the running variance. ``broken_outputs`` counts the gradients that came to it
    as NaN or infinity. ``broken_gradients`` counts, of ``heard`` sampled passes, those in which a finite gradient came
    to the layer and left it as NaN or infinity; ``recomputed`` those whose backward pass updated the running statistics
    again. ``updates`` counts updates of the running statistics while watched, ``leftover`` is the share that their
    initial values still have. ``held`` layers are meant to stay (frozen, or all parameters without gradients);
    ``moved_what`` of them moved by up to ``moved``.
    """

    layer: NormFacts
    training: bool = True
    samples: int = 0
    calls: int = 0
    elements: int | None = None
    near_eps: int = 0
    constant: int = 0
    nonfinite: int = 0
    skipped: int = 0
    var_min: float | None = None
    near_min: float | None = None
    initial: bool = False
    ran: bool = True
    apart_mean: float | None = None
    apart_var: float | None = None
    dropout_factor: float | None = None
    dropout_running: float | None = None
    heard: int = 0
    broken_gradients: int = 0
    broken_outputs: int = 0
    recomputed: int = 0
    scatter: float | None = None
    mean_gap: float | None = None
    var_factor: float | None = None
    gain: float | None = None
    shift: float | None = None
    weight_max: float | None = None
    weight_median: float | None = None
    weight_growth: float | None = None
    held: bool = False
    moved: float | None = None
    moved_what: str | None = None
    updates: int | None = None
    leftover: float | None = None
    decay: float = 0.0
    mixing_decay: float = 0.0


@dataclass(frozen=True)
class WeightTrace:
    """What was measured at one weighted layer.

    ``gradient`` is the norm of the loss's gradient at its output (the median over samples). ``inputs`` counts the
    channels that came in, ``dead`` those that were 0 in every sample, ``seen`` the values behind that, per channel.
    ``cosine`` and ``change`` compare the gradient of its parameters before and after one update of all layers before it
    (Santurkar et al. 2018, arXiv 1805.11604): the angle's cosine, and the distance over the length before.
    ``moved_mean`` and ``moved_std`` are how far the distribution of its output moves by one update of all layers, on
    the same batch, in units of its standard deviation (Ioffe & Szegedy 2015, arXiv 1502.03167). ``weight_max`` is its
    largest ``|weight|``, ``weight_growth`` that over what it was when watching began.
    """

    layer: WeightFacts
    gradient: float | None = None
    inputs: int = 0
    dead: int = 0
    seen: int = 0
    cosine: float | None = None
    change: float | None = None
    moved_mean: float | None = None
    moved_std: float | None = None
    weight_max: float | None = None
    weight_growth: float | None = None
    decay: float = 0.0


@dataclass(frozen=True)
class RunTrace:
    """How the model was run while it was looked at.

    ``passes`` counts training passes, ``sampled`` those that were measured, ``steps`` the optimizer's steps,
    ``micro_batches`` the passes per step. ``repeated`` counts passes of a tensor that the same step had already seen;
    ``training_in_evaluation`` names norms that trained inside a model in evaluation mode, ``blind_passes`` counts
    passes in training mode without gradients. ``run_length`` is the number of steps that the whole run will have, where
    known; ``overhead`` the seconds that looking took. ``optimizer`` and ``decay`` describe the optimizer that was seen.
    ``blind_steps`` counts the steps in which blind passes occurred; ``fresh`` says that the optimizer had not stepped
    yet, ``loss_before`` and ``loss_after`` are around the step that was tried. ``nonfinite_gradients`` names
    parameters whose gradient was not finite.
    """

    passes: int = 0
    sampled: int = 0
    steps: int = 0
    micro_batches: float = 1.0
    repeated: int = 0
    training_in_evaluation: list[str] = field(default_factory=list)
    blind_passes: int = 0
    run_length: int | None = None
    overhead: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    decay: float = 0.0
    ranks: int = 1
    blind_steps: int = 0
    fresh: bool = False
    loss_before: float | None = None
    loss_after: float | None = None
    nonfinite_gradients: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Gap:
    """Evaluation by running statistics against the same by batch statistics, dropout off in both; higher is better.

    ``score`` names what is compared: ``"accuracy"`` or ``"-loss"``; ``drift`` is how far the outputs differ, relative;
    ``chance`` is the accuracy of always naming the most frequent class.
    """

    score: str | None
    running: float | None
    batch: float | None
    drift: float | None
    samples: int
    chance: float | None = None

    @property
    def lost(self) -> float | None:
        """How much score the running statistics cost."""
        return None if self.running is None or self.batch is None else self.batch - self.running


@dataclass(frozen=True)
class TokenNorm:
    """What one pass showed of a layer that normalizes each token.

    ``role`` says where it stands (see :class:`TokenTrace`), ``dtype`` in what type its input came. It scales by
    ``offset`` + weight; ``weight_median``, ``weight_spread`` (the standard deviation) and ``weight_below`` (the share
    below 0) are of the weight itself, ``scale_size`` is the largest size of the scale. ``input_size`` is the root mean
    square of its input, ``largest_channel`` the channel with the largest, ``outlier`` how many times the typical
    channel's that is, ``outlier_share`` its share of the mean square. In 16 bits ``statistics_error`` is how far the
    scale that a token is multiplied by is off, relative, and ``zero_token`` says that a token of zeros becomes NaN or
    infinite.
    """

    name: str
    role: str | None
    dtype: str
    eps: float
    offset: float = 0.0
    weight_median: float | None = None
    weight_spread: float | None = None
    weight_below: float | None = None
    scale_size: float | None = None
    input_size: float | None = None
    largest_channel: int | None = None
    outlier: float | None = None
    outlier_share: float | None = None
    statistics_error: float | None = None
    zero_token: bool = False


@dataclass(frozen=True)
class AttentionTrace:
    """What one pass showed of one attention.

    ``makers`` are the layers that make its queries and keys, ``norms`` the norms on their way. ``largest`` is the
    largest size of its logits, ``saturated`` the share of queries with nearly all their weight (99 %) on one key.
    """

    makers: list[str]
    norms: list[str]
    head_size: int
    largest: float
    saturated: float


@dataclass(frozen=True)
class TokenTrace:
    """What one pass in evaluation showed of a model of tokens.

    ``placement`` is ``"pre"`` (x + f(norm(x))), ``"post"`` (norm(x + f(x))), ``"sandwich"`` (x + norm(f(norm(x)))),
    ``"branch end"`` (x + norm(f(x))), ``"mixed"``, or ``None`` where no residual addition has a norm. ``stream`` holds
    the root mean squares of the residual stream after each addition.
    """

    placement: str | None
    norms: list[TokenNorm] = field(default_factory=list)
    attentions: list[AttentionTrace] = field(default_factory=list)
    stream: list[float] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """What is wrong with a model's normalization, and all that was measured to say so; ``print`` it for a table.

    Example:
        >>> Diagnosis("2026-01-01", ModelFacts("Net", "conv", ["conv"], 2, 2), RunTrace()).worst is None
        True
    """

    created: str
    facts: ModelFacts
    run: RunTrace
    norms: list[NormTrace] = field(default_factory=list)
    weights: list[WeightTrace] = field(default_factory=list)
    gap: Gap | None = None
    findings: list[Finding] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    version: int = DIAGNOSIS_VERSION
    tokens: TokenTrace | None = None

    _kind: ClassVar[str] = "diagnosis"
    _newest: ClassVar[int] = DIAGNOSIS_VERSION

    def _headline(self) -> str:
        return f"of {self.facts.model}: {counted(finding.severity for finding in self.findings)}"

    def _rows(self) -> list[dict[str, Any]]:
        wanted = ("severity", "code", "layer", "message", "effect", "fix")
        return [{key: asdict(finding)[key] for key in wanted} for finding in gravest_first(self.findings)]

    @property
    def worst(self) -> str | None:
        """The highest severity among the findings; ``None`` without any."""
        return worst(self.findings)

    def fails(self, severity: str) -> bool:
        """Whether there is a finding of this severity or a higher one; see :func:`fails`."""
        return fails(self.findings, severity)

    def of(self, code: str) -> list[Finding]:
        """The findings with a code."""
        return [finding for finding in self.findings if finding.code == code]

    def to_json(self) -> str:
        """Strict JSON, which :func:`load_diagnosis` reads back."""
        return dumps(self)

    def __str__(self) -> str:
        """Every finding with its effect and its fix, the gravest first."""
        ran = f"{self.run.sampled} of {self.run.passes} passes measured"
        head = f"{self.facts.model}: {len(self.norms)} normalization layers, {ran}"
        placement = None if self.tokens is None else self.tokens.placement
        if placement is not None:
            head += f", blocks of placement {placement}"
        lines = [head]
        for f in gravest_first(self.findings):
            lines += [str(f), *(f"         {line}" for line in _said(f) if line)]
        return "\n".join(lines if self.findings else [head, "no findings"])


def _said(finding: Finding) -> list[str]:
    return [finding.effect, finding.price, *finding.fix.splitlines(), finding.command]


def is_diagnosis(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a diagnosis, and not a study.

    Args:
        path: the file.

    Returns:
        Whether it is JSON with a diagnosis's fields; ``False`` as well for what cannot be read.

    Example:
        >>> is_diagnosis("nowhere.json")
        False
    """
    return {"facts", "run", "findings"} <= keys_of(path)


def load_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """Read a diagnosis that was written with ``to_json``.

    Args:
        path: the file.

    Returns:
        The diagnosis.

    Raises:
        StoreError: the file cannot be read, is no diagnosis, or of a newer version than this normwise knows.

    Example:
        >>> load_diagnosis("nowhere.json")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot read the diagnosis nowhere.json: No such file or directory
    """
    return load_record(path, Diagnosis, "diagnosis", DIAGNOSIS_VERSION)

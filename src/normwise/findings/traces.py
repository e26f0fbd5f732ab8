"""What was measured while a model trained or was tried. Standard library only.

As in :mod:`normwise.records` a number that could not be measured is ``None``, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from normwise.findings.facts import NormFacts, WeightFacts


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

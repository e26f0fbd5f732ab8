"""The rules of the advice, as data: when each applies, what it is worth to each method, and where that is known from.

Points are about points of accuracy: 0 is the best that can be expected, −3 says three points below it. A rule gives its
full effect where ``strength`` is 1 and none where it is 0. ``fires`` and ``silent`` are situations that test it. To add
a rule: a row here; the ranking, the docs' table and the tests read ``RULES``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from normwise.advice.situation import FEW_FEATURES, Place, Situation

METHODS = ("batch", "layer", "group", "instance", "switchable", "weight", "none")

# Images per device → top-1 % of ResNet-50 on ImageNet (8 devices): batch, group and switchable norm, in that order.
IMAGENET = {
    32: (76.4, 75.9, 76.9),
    16: (76.3, 75.8, 76.7),
    8: (75.2, 76.0, 76.7),
    4: (72.7, 75.8, 75.9),
    2: (65.3, 75.9, 75.6),
}
# Fewer values than this behind a statistic make it a poor estimate: its relative error is √(2 / (m − 1)), here 37 %.
ENOUGH_VALUES = 16
# From this share of variance between the steps of a sequence on, one average for all steps is off for most of them.
DRIFT = 0.2


@dataclass(frozen=True)
class Rule:
    """One row of ``RULES``; ``when`` says in words what ``strength`` computes.

    Example:
        >>> rule = next(rule for rule in RULES if rule.name == "recurrent")
        >>> rule.strength(Situation("recurrent", ["recurrent"], batch_size=16))
        1.0
    """

    name: str
    when: str
    strength: Callable[[Situation], float]
    effects: Mapping[str, float]
    text: str
    source: str
    fires: Mapping[str, Any]
    silent: Mapping[str, Any]


def _at(conditions: bool) -> float:
    return 1.0 if conditions else 0.0


def _convolutional(s: Situation) -> bool:
    return s.architecture in {"conv", "generative"}


def _pooling(s: Situation) -> list[Place]:
    """The places whose layers do not look at one position alone."""
    return [p for p in s.places if not p.per_token]


def _vectors(s: Situation) -> bool:
    return s.architecture == "mlp"


def _imagenet_loss(s: Situation) -> float:
    """How much further batch norm is behind the best than at 32 images a device, in points of the published table."""
    b = min(max(s.few, 2), 32)
    low = max(size for size in IMAGENET if size <= b)
    high = min(size for size in IMAGENET if size >= b)
    share = 0.0 if low == high else math.log2(b / low) / math.log2(high / low)
    behind = {size: max(IMAGENET[size]) - IMAGENET[size][0] for size in (low, high, 32)}
    return max(0.0, (1 - share) * behind[low] + share * behind[high] - behind[32])


def _recognizes(s: Situation) -> float:
    """How far tables about recognizing images say something: not of networks that redraw them."""
    return (1 - _styles(s)) * _at(_convolutional(s))


def _small_images(s: Situation) -> float:
    # The table's largest loss, at 2 images, counts as 1.
    share = _imagenet_loss(s) / _imagenet_loss(Situation("conv", ["conv"], 2))
    return share * _recognizes(s)


def _is_thin(s: Situation, place: Place) -> bool:
    return place.values("batch") * s.devices < ENOUGH_VALUES


def _mostly_thin(s: Situation) -> bool:
    """Whether few values are the rule in a model; else the few places that have few are exempted."""
    return 2 * sum(_is_thin(s, p) for p in s.places) > len(s.places)


def _few_values(s: Situation) -> float:
    """0 with enough values behind the batch statistic of the middle place, 1 with two."""
    if not _mostly_thin(s):
        return 0.0
    m = statistics.median_low(p.values("batch") * s.devices for p in s.places)
    return min(1.0, math.log2(ENOUGH_VALUES / max(m, 2)) / math.log2(ENOUGH_VALUES / 2))


def _saturated_depth(s: Situation) -> float:
    return min(1.0, s.saturating / 8) if s.saturating >= 3 and "recurrent" not in s.kinds else 0.0


def _deep(s: Situation) -> float:
    fed_forward = (_convolutional(s) or _vectors(s)) and s.task != "restoration"
    return min(1.0, (s.depth - 4) / 4) if s.depth > 4 and fed_forward else 0.0


def _attends_to_measurements(s: Situation) -> bool:
    # What is as wide as the model when it comes in has been made by something else: from words, most likely.
    widened = s.features is not None and bool(s.places) and s.features < s.places[0].channels
    return "attention" in s.kinds and "conv" not in s.kinds and not s.tokens and widened


def _deep_plain(s: Situation) -> float:
    if s.depth < 8 or s.residual:
        return 0.0
    of_kind = (s.few >= ENOUGH_VALUES) / 3 if _vectors(s) else _recognizes(s) * (0.5 if _keeps_centred(s) else 1.0)
    return min(1.0, (s.depth - 6) / 4) * of_kind


def _keeps_centred(s: Situation) -> bool:
    """Whether convolutions pass through functions that take 0 to 0 and are odd: what is centred stays so."""
    return _convolutional(s) and s.saturating >= 3 and 2 * s.centred > s.saturating


def _few_features(s: Situation) -> float:
    if not s.has_few_features:
        return 0.0
    # A statistic over many positions takes away their level and leaves their shape.
    return 0.2 if _convolutional(s) else 1.0


def _drifts(s: Situation) -> float:
    # Padding makes steps differ too, which means nothing.
    return 0.0 if s.variable_length else min(1.0, s.drift / DRIFT)


def _styles(s: Situation) -> float:
    if s.task is not None:
        return _at(s.task == "stylization")
    # Images that come out with the size of those that came in.
    return 0.5 * _at(s.architecture == "generative")


def _place(space: int, samples: int, channels: int = 16) -> list[Place]:
    return [Place("norm", channels, [space, space] if space > 1 else [], samples)]


_CONV: Mapping[str, Any] = {"architecture": "conv", "kinds": ["conv"], "batch_size": 32, "depth": 5}
_SERIES: Mapping[str, Any] = {
    "architecture": "attention", "kinds": ["attention"], "batch_size": 32, "places": _place(1, 32, channels=48),
}  # fmt: skip
_MLP: Mapping[str, Any] = {"architecture": "mlp", "kinds": ["mlp"], "batch_size": 32, "depth": 5}

RULES: tuple[Rule, ...] = (
    Rule(
        "unnormalized",
        "two or more weighted layers; in full from four",
        lambda s: min(1.0, s.depth / 4) if s.depth >= 2 else 0.0,
        {"none": -3.0, "weight": -2.5},
        "Without normalized activations training is slower and more sensitive to the learning rate; weight norm helps "
        "less than normalizing data does.",
        "Ioffe & Szegedy 2015, arXiv 1502.03167; Gitman & Ginsburg 2017, arXiv 1709.08145",
        fires=_CONV,
        silent={**_CONV, "depth": 1},
    ),
    Rule(
        "unnormalized-deep",
        "more than four weighted layers, without attention or recurrence, and not for restoration; in full from eight",
        _deep,
        {"none": -15.0, "weight": -12.0},
        "With depth, whatever one layer adds to or takes from the scale multiplies; without an initialization made for "
        "it, such a network hardly trains.",
        "Ioffe & Szegedy 2015, arXiv 1502.03167; Zhang et al. 2019, arXiv 1901.09321; size: results/advice.json",
        fires={**_CONV, "depth": 10},
        silent={**_CONV, "depth": 4},
    ),
    Rule(
        "images-full-batch",
        "convolutions that do not redraw images; in full from 32 samples a step, fading out towards 2 as batch norm "
        "does in the published table",
        lambda s: _recognizes(s) - _small_images(s),
        {"switchable": 0.0, "batch": -0.5, "group": -1.0, "layer": -2.2, "instance": -5.3},
        "At 32 images per device a learned mix was best on ImageNet; batch, group, layer and instance norm were 0.5, "
        "1.0, 2.2 and 5.3 points behind it.",
        "Luo et al. 2019, arXiv 1806.10779, table 1; Wu & He 2018, arXiv 1803.08494, section 4.1",
        fires=_CONV,
        silent={**_CONV, "batch_size": 2},
    ),
    Rule(
        "images-small-batch",
        "likewise; in full at 2 samples a step or fewer, fading out towards 32",
        _small_images,
        {"switchable": 0.0, "batch": -4.0, "layer": -2.0, "group": -2.0, "instance": -4.8},
        "With few images per device batch norm estimates from too few: on ImageNet it loses 1.5 points at 8 and 10.3 "
        "at 2 images; methods that look at one sample do not, and a learned mix leans on what is reliable.",
        "Luo et al. 2019, arXiv 1806.10779, table 1; Wu & He 2018, arXiv 1803.08494, table 2",
        fires={**_CONV, "batch_size": 2},
        silent=_MLP,
    ),
    Rule(
        "large-batch",
        "convolutions or linear layers only, and more than 32 samples a step; in full from 64",
        lambda s: min(1.0, math.log2(s.few / 32)) if s.few > 32 and (_convolutional(s) or _vectors(s)) else 0.0,
        {"switchable": -0.8},
        "With many samples a step the batch's statistics are as good as exact; what a mix adds to them helps no more.",
        "Wu & He 2018, arXiv 1803.08494, section 4.1; size: results/advice.json",
        fires={**_CONV, "batch_size": 128},
        silent=_CONV,
    ),
    Rule(
        "one-sample",
        "convolutions, and a single sample a step",
        lambda s: _at(_convolutional(s) and s.few == 1),
        {"batch": -20.0},
        "With one sample a step batch norm trains on each image's own statistics and evaluates with averages over "
        "images, which the network has never seen.",
        "Luo et al. 2019, arXiv 1806.10779, table 1 (fails at 8 × 1); size: results/advice.json",
        fires={**_CONV, "batch_size": 1},
        silent={**_CONV, "batch_size": 2},
    ),
    Rule(
        "few-values",
        "fewer than 16 values behind the batch statistics of most layers; in full at two",
        _few_values,
        {"batch": -10.0, "switchable": -1.5},
        "Only a few values stand behind a batch statistic; a variance from m values is off by about √(2 / (m − 1)), "
        "and evaluation uses another one than training did. A learned mix leans less on it.",
        "Ioffe 2017, arXiv 1702.03275; Wu & He 2018, arXiv 1803.08494; Luo et al. 2019, arXiv 1806.10779, table 1",
        fires={**_MLP, "batch_size": 4, "places": _place(1, 4)},
        silent={**_CONV, "places": _place(8, 32)},
    ),
    Rule(
        "deep-plain",
        "eight or more weighted layers with convolutions and no shortcuts; in full from ten; half with tanhs between "
        "them, a third with linear layers only and 16 samples a step or more",
        _deep_plain,
        {"switchable": -3.0, "layer": -3.0, "group": -3.0, "instance": -3.0},
        "With depth, and without shortcuts, all samples fall onto one direction; statistics over the batch keep them "
        "apart, those of single samples and a mix with them do so less.",
        "Daneshmand et al. 2020, arXiv 2003.01652; Labatie et al. 2021, arXiv 2106.03743; size: results/advice.json",
        fires={**_CONV, "depth": 11},
        silent={**_CONV, "depth": 50, "residual": 16},
    ),
    Rule(
        "few-features",
        f"the first layer makes its outputs from {FEW_FEATURES} numbers or fewer; a fifth with convolutions",
        _few_features,
        {"layer": -12.0, "group": -10.0, "instance": -10.0, "switchable": -5.0},
        "All outputs of a layer that sees one or a few numbers grow and shrink with them, so a statistic over one "
        "sample's outputs is a measure of these numbers, and dividing by it takes away what they say. Statistics over "
        "the batch leave the differences between samples.",
        "Ulyanov et al. 2016, arXiv 1607.08022 (what instance norm removes); Labatie et al. 2021, arXiv 2106.03743; "
        "size: results/advice.json",
        fires={"architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 16, "features": 1},
        silent={"architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 16, "features": 12},
    ),
    Rule(
        "vectors",
        "linear layers only",
        lambda s: _at(_vectors(s)),
        {"switchable": 0.0, "batch": -0.4, "layer": -1.8, "group": -1.8, "instance": -6.0},
        "Between linear layers the batch shows what differs between samples, which methods that look at one sample "
        "only remove.",
        "Ioffe & Szegedy 2015, arXiv 1502.03167; Labatie et al. 2021, arXiv 2106.03743",
        fires=_MLP,
        silent=_CONV,
    ),
    Rule(
        "saturating-depth",
        "three or more sigmoids, tanhs and the like in a row of layers that is not recurrent; in full from eight; a "
        "quarter where they are tanhs between convolutions",
        lambda s: _saturated_depth(s) * (0.25 if _keeps_centred(s) else 1.0),
        {"none": -20.0, "weight": -20.0, "instance": -15.0, "group": -15.0, "layer": -15.0},
        "Sigmoid and tanh layers saturate where their inputs drift, and with depth all samples fall onto one "
        "direction. Statistics over the batch keep samples apart; those of one sample cannot.",
        "Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.2.2; Daneshmand et al. 2020, arXiv 2003.01652; size: "
        "results/advice.json",
        fires={**_MLP, "saturating": 10},
        silent={**_MLP, "saturating": 1},
    ),
    Rule(
        "saturating-mix",
        "likewise, but not with tanhs between convolutions",
        lambda s: 0.0 if _keeps_centred(s) else _saturated_depth(s),
        {"switchable": -8.0},
        "A mix starts with half or two thirds of statistics of single samples, which let samples fall together again.",
        "Daneshmand et al. 2020, arXiv 2003.01652; size: results/advice.json",
        fires={**_MLP, "saturating": 10},
        silent={**_CONV, "saturating": 1},
    ),
    Rule(
        "recurrent",
        "a recurrent layer, or a loop over plain ones",
        lambda s: _at("recurrent" in s.kinds),
        {
            "layer": 0.0,
            "batch": -4.0,
            "switchable": -1.0,
            "instance": -5.0,
            "group": -0.5,
            "weight": -0.5,
            "none": -1.0,
        },
        "Statistics over the batch change from step to step of a sequence; layer norm is the same at each step and at "
        "any batch size.",
        "Ba et al. 2016, arXiv 1607.06450; Cooijmans et al. 2017, arXiv 1603.09025",
        fires={"architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 16},
        silent=_CONV,
    ),
    Rule(
        "recurrent-gates",
        "a loop over plain layers that is normalized already, not token by token, and whose steps are alike",
        lambda s: (
            _at("recurrent" in s.kinds and bool(s.current) and not all(p.per_token for p in s.places))
            * (1.0 - _drifts(s))
        ),
        {"group": 0.75, "switchable": 2.5},
        "The products of a cell are several gates side by side, each with a scale of its own, which one statistic for "
        "all of them misses; in a recurrent cell that was searched a learned mix was better than any single method.",
        "Luo et al. 2019, arXiv 1806.10779, section 4 (ENAS); size: results/advice.json",
        fires={
            "architecture": "recurrent",
            "kinds": ["recurrent"],
            "batch_size": 16,
            "current": ["batch"],
            "places": _place(1, 16),
        },
        silent={"architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 16},
    ),
    Rule(
        "recurrent-drift",
        f"a loop whose steps differ in their means; in full from a share of {DRIFT:.0%} of the variance",
        _drifts,
        {"batch": -15.0, "switchable": -3.0},
        "What comes into a layer at one step of the sequence is distributed otherwise than at the next, and averages "
        "over all steps, which batch statistics need in evaluation, fit none of them.",
        "Cooijmans et al. 2017, arXiv 1603.09025, section 3; size: results/advice.json",
        fires={"architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 16, "drift": 0.3},
        silent={"architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 16, "drift": 0.0},
    ),
    Rule(
        "attention",
        "attention",
        lambda s: _at("attention" in s.kinds),
        {"batch": -4.0, "group": -2.0, "instance": -5.0, "switchable": -2.0, "weight": -3.0, "none": -6.0},
        "Transformers are trained with layer norm per token; over their activations batch statistics vary widely.",
        "Vaswani et al. 2017, arXiv 1706.03762; Shen et al. 2020, arXiv 2003.07845",
        fires={"architecture": "attention", "kinds": ["attention"], "batch_size": 32},
        silent=_CONV,
    ),
    Rule(
        "attention-measurements",
        "attention over series of measurements: a first layer widens them; no words or the like come in, and no "
        "convolution cuts patches",
        lambda s: _at(_attends_to_measurements(s)),
        {"batch": 3.5, "switchable": 2.5},
        "What is said against batch statistics in transformers was found on text; on series of measurements, which "
        "have outliers, they did better than layer norm, and a learned mix leaves the choice open.",
        "Zerveas et al. 2021, arXiv 2010.02803, section 3.1; size: results/advice.json",
        fires={**_SERIES, "features": 12},
        silent={**_SERIES, "features": 48},
    ),
    Rule(
        "padding",
        "batches are padded and no layer is told of it",
        lambda s: _at(s.variable_length and not s.masked),
        {"batch": -2.0, "switchable": -1.0},
        "Batches are padded and the layers are not told: padding enters the batch's statistics. Give them mask= or "
        "lengths=.",
        "pytorch/pytorch issues 70529 and 81985",
        fires={**_CONV, "variable_length": True},
        silent={**_CONV, "variable_length": True, "masked": True},
    ),
    Rule(
        "padding-in-samples",
        "likewise, and layers pool over positions",
        lambda s: _at(s.variable_length and not s.masked and any(math.prod(p.spatial) > 1 for p in _pooling(s))),
        {"instance": -1.0, "group": -1.0, "layer": -1.0},
        "Padding also enters the statistics of a sample that are pooled over its positions.",
        "pytorch/pytorch issues 70529 and 30414",
        fires={**_CONV, "variable_length": True, "places": _place(8, 32)},
        silent={**_CONV, "variable_length": True, "places": _place(1, 32)},
    ),
    Rule(
        "style",
        "the task is stylization; half as much where no task is told and images come out",
        _styles,
        {
            "batch": -6.0,
            "group": -2.0,
            "layer": -8.0,
            "switchable": -1.4,
            "weight": -20.0,
            "none": -20.0,
            "instance": 0.0,
        },
        "The contrast of each image is to be replaced: instance norm removes it, and an image's result does not depend "
        "on the others in the batch.",
        "Ulyanov et al. 2016, arXiv 1607.08022; Huang & Belongie 2017, arXiv 1703.06868; size: results/advice.json",
        fires={"architecture": "generative", "kinds": ["generative", "conv"], "batch_size": 4, "task": "stylization"},
        silent=_CONV,
    ),
    Rule(
        "contrast-matters",
        "the task is restoration",
        lambda s: _at(s.task == "restoration"),
        {"batch": -4.0, "instance": -6.0, "group": -3.0, "layer": -3.0, "switchable": -3.0, "none": 3.0, "weight": 3.0},
        "Super-resolution and restoration must keep the range that normalization removes.",
        "Lim et al. 2017, arXiv 1707.02921; Yu et al. 2018, arXiv 1808.08718",
        fires={**_CONV, "task": "restoration"},
        silent=_CONV,
    ),
)


@dataclass(frozen=True)
class Veto:
    """A reason why a method cannot be used at a place: too few values for it to leave anything of the data.

    Example:
        >>> VETOES[0].forbids(Situation("mlp", ["mlp"], batch_size=1), Place("bn", 8, [], 1))
        True
    """

    method: str
    forbids: Callable[[Situation, Place], bool]
    text: str
    source: str


VETOES: tuple[Veto, ...] = (
    Veto(
        "batch",
        lambda s, p: p.values("batch") * s.devices < 2,
        "one value per channel and step: batch norm would give its bias whatever comes in",
        "torch.nn.BatchNorm1d's own error; pytorch/pytorch issue 4534",
    ),
    Veto(
        "batch",
        lambda s, p: _is_thin(s, p) and not _mostly_thin(s),
        f"fewer than {ENOUGH_VALUES} values behind a batch statistic, while most places have more",
        "Ioffe 2017, arXiv 1702.03275",
    ),
    Veto(
        "instance",
        lambda s, p: p.values("instance") < 2,
        "one value per channel and sample: instance norm would give its bias whatever comes in",
        "torch.nn.InstanceNorm2d's own error; pytorch/pytorch issue 45687",
    ),
    Veto(
        "group",
        lambda s, p: p.values("layer") < 4,
        "no group count leaves more than one value to a group",
        "pytorch/opacus issue 567",
    ),
    Veto(
        "layer",
        lambda s, p: p.values("layer") < 2,
        "one value per sample: layer norm would give its bias whatever comes in",
        "Ba et al. 2016, arXiv 1607.06450",
    ),
    Veto(
        "switchable",
        lambda s, p: s.few < 2 and p.values("instance") < 2,
        "one value per channel in the batch and in an instance: of the mix only layer norm is left",
        "Luo et al. 2019, arXiv 1806.10779",
    ),
)

"""What the advice looks at, as data: when each thing applies, how much, and what papers say of it.

A rule's ``strength`` is a number from 0 to 1 computed from measured facts. What it is worth to each method is learned
from trained networks (:mod:`normwise.advice.learning`), not set here. ``sides`` are the methods that its text speaks
for (+1) or against (-1): it is told as a reason only where what was learned agrees. A rule without a text only helps
to predict. ``fires`` and ``silent`` are situations that test it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from normwise.advice.situation import FEW_FEATURES, Place, Situation

# Fewer values than this behind a statistic make it a poor estimate: its relative error is √(2 / (m − 1)), here 37 %.
ENOUGH_VALUES = 16
# From this share of variance between the steps of a sequence on, one average for all steps is off for most of them.
DRIFT = 0.2
# A plain network of so many weighted layers is called deep.
DEEP = 8


@dataclass(frozen=True)
class Rule:
    """One row of ``RULES``; ``when`` says in words what ``strength`` computes.

    Example:
        >>> rule = next(rule for rule in RULES if rule.name == "one-sample")
        >>> rule.strength(Situation("conv", ["conv"], batch_size=1, places=[Place("bn", 8, [4, 4], 1)]))
        1.0
    """

    name: str
    when: str
    strength: Callable[[Situation], float]
    fires: Mapping[str, Any]
    silent: Mapping[str, Any]
    text: str = ""
    source: str = ""
    sides: Mapping[str, int] = field(default_factory=dict)


def strengths(situation: Situation) -> list[float]:
    """How much each rule applies.

    Args:
        situation: the model's.

    Returns:
        A number from 0 to 1 for each of ``RULES``.

    Example:
        >>> len(strengths(Situation("conv", ["conv"], batch_size=2))) == len(RULES)
        True
    """
    return [float(rule.strength(situation)) for rule in RULES]


def _pooling(s: Situation) -> list[Place]:
    """The places that look at more than one position, or all where there are none."""
    return [p for p in s.places if not p.per_token] or s.places


def _space(place: Place) -> int:
    return 1 if place.per_token else math.prod(place.spatial)


def _share(s: Situation, holds: Callable[[Place], bool]) -> float:
    return sum(map(holds, s.places)) / len(s.places) if s.places else 0.0


def _over_space(s: Situation, axes: int) -> float:
    """The share of places over a map with so many axes."""
    return _share(s, lambda p: not p.per_token and len(p.spatial) == axes and _space(p) > 1)


def _vectors(s: Situation) -> float:
    return _share(s, lambda p: _space(p) == 1)


def _few_samples(s: Situation) -> float:
    """0 from 32 samples on, 1 at one."""
    return min(1.0, max(0.0, math.log2(32 / s.few) / 5))


def _values(s: Situation) -> float:
    """What stands behind the batch statistic of the middle place."""
    rows = [p.values("batch") * s.devices for p in _pooling(s)]
    return statistics.median_low(rows) if rows else s.few


def _looped(s: Situation) -> float:
    return _share(s, lambda p: p.looped)


def _deep(s: Situation) -> float:
    return min(1.0, math.log2(max(s.depth, 1)) / 4)


def has_shortcuts(s: Situation) -> bool:
    """Whether earlier activations are added to later ones or put beside them."""
    return s.residual > 0 or s.concatenations > 0


def _deep_plain(s: Situation) -> float:
    plain = s.depth >= DEEP and not has_shortcuts(s) and "recurrent" not in s.kinds and "attention" not in s.kinds
    return min(1.0, (s.depth - DEEP + 2) / 4) if plain else 0.0


def _saturating(s: Situation) -> float:
    return min(1.0, s.saturating / 8) if s.saturating >= 3 and "recurrent" not in s.kinds else 0.0


def _centred(s: Situation) -> float:
    return _saturating(s) if 2 * s.centred > s.saturating else 0.0


def _drifts(s: Situation) -> float:
    # Padding makes steps differ too, which means nothing.
    return 0.0 if s.variable_length else min(1.0, s.drift / DRIFT)


def _place(*spatial: int, samples: int = 16, **more: Any) -> list[Place]:
    return [Place("norm", 16, list(spatial), samples, **more)]


_CONV: Mapping[str, Any] = {
    "architecture": "conv", "kinds": ["conv"], "batch_size": 64, "depth": 5, "places": _place(8, 8, samples=64),
}  # fmt: skip
_SERIES: Mapping[str, Any] = {**_CONV, "places": _place(50, samples=64)}
_MLP: Mapping[str, Any] = {
    "architecture": "mlp", "kinds": ["mlp"], "batch_size": 64, "depth": 5, "places": _place(samples=64),
}  # fmt: skip
_LOOP: Mapping[str, Any] = {
    "architecture": "recurrent", "kinds": ["recurrent"], "batch_size": 64, "places": _place(samples=64, looped=True),
}  # fmt: skip
_ATTENTION: Mapping[str, Any] = {
    "architecture": "attention", "kinds": ["attention"], "batch_size": 64, "places": _place(20, per_token=True),
}  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule(
        "small-batch-images",
        "norms over maps with two spatial axes, and fewer than 32 samples a step; in full at one",
        lambda s: _few_samples(s) * _over_space(s, 2),
        fires={**_CONV, "batch_size": 2},
        silent={**_SERIES, "batch_size": 2},
        text="Each batch statistic is of {few} samples. On ImageNet (ResNet-50, not measured here) batch norm lost "
        "1.5 points at 8 images a device and 10.3 at 2 against group norm and a learned mix, which hold at "
        "small batches.",
        source="Luo et al. 2019, arXiv 1806.10779, table 1; Wu & He 2018, arXiv 1803.08494, table 2",
        sides={"batch": -1, "group": 1, "switchable": 1},
    ),
    Rule(
        "small-batch",
        "fewer than 32 samples a step; in full at one",
        _few_samples,
        fires={**_SERIES, "batch_size": 2},
        silent=_SERIES,
        text="Each batch statistic is of {few} samples, and evaluation uses averages over all of them.",
        source="Ioffe 2017, arXiv 1702.03275",
        sides={"batch": -1},
    ),
    Rule(
        "one-sample",
        "norms over maps, and a single sample a step",
        lambda s: (s.few == 1) * (1 - _vectors(s)),
        fires={**_CONV, "batch_size": 1},
        silent={**_CONV, "batch_size": 2},
        text="With one sample a step batch norm trains on each sample's own statistics and evaluates with averages "
        "over samples, which the network has never seen.",
        source="Luo et al. 2019, arXiv 1806.10779, table 1 (fails at 8 × 1)",
        sides={"batch": -1},
    ),
    Rule(
        "few-values",
        "fewer than 16 values behind the batch statistics of most layers; in full at one",
        lambda s: min(1.0, max(0.0, math.log2(ENOUGH_VALUES / max(_values(s), 1)) / 4)),
        fires={**_MLP, "batch_size": 4, "places": _place(samples=4)},
        silent=_CONV,
        text="Only {values} values stand behind a batch statistic; a variance from m values is off by about √(2 / (m"
        " − 1)).",
        source="Ioffe 2017, arXiv 1702.03275; Wu & He 2018, arXiv 1803.08494",
        sides={"batch": -1},
    ),
    Rule(
        "vectors",
        "the share of norms that see one position at a time",
        _vectors,
        fires=_MLP,
        silent=_CONV,
        text="A norm over one sample's vector removes what differs between samples in level and size; one over the "
        "batch keeps it.",
        source="Ioffe & Szegedy 2015, arXiv 1502.03167; Labatie et al. 2021, arXiv 2106.03743",
        sides={"batch": 1, "layer": -1, "group": -1},
    ),
    Rule("images", "the share of norms over two spatial axes", lambda s: _over_space(s, 2), _CONV, _SERIES),
    Rule("series", "the share of norms over one spatial axis", lambda s: _over_space(s, 1), _SERIES, _CONV),
    Rule(
        "loop",
        "the share of norms that run at every step of a loop",
        _looped,
        fires=_LOOP,
        silent={**_MLP, "kinds": ["recurrent"]},
        text="The norm runs at each step of a loop, and statistics over the batch differ from step to step; layer "
        "norm is the same at each step and at any batch size.",
        source="Ba et al. 2016, arXiv 1607.06450; Cooijmans et al. 2017, arXiv 1603.09025",
        sides={"layer": 1, "batch": -1},
    ),
    Rule(
        "drift",
        f"norms in a loop whose steps differ in their means; in full from a share of {DRIFT:.0%} of the variance",
        _drifts,
        fires={**_LOOP, "drift": 0.3},
        silent={**_LOOP, "drift": 0.3, "variable_length": True},
        text="Of the variance that comes into a norm in the loop, {drift:.0%} is between its steps, and averages "
        "over all steps, which batch statistics need in evaluation, fit none of them.",
        source="Cooijmans et al. 2017, arXiv 1603.09025, section 3",
        sides={"batch": -1, "switchable": -1},
    ),
    Rule(
        "attention",
        "attention",
        lambda s: "attention" in s.kinds,
        fires=_ATTENTION,
        silent=_CONV,
        text="Transformers are trained with layer norm or RMS norm per token.",
        source="Vaswani et al. 2017, arXiv 1706.03762; Zhang & Sennrich 2019, arXiv 1910.07467",
        sides={"layer": 1, "rms": 1},
    ),
    Rule(
        "last-axis",
        "the share of norms with the channels on the last axis, each position by itself",
        lambda s: _share(s, lambda p: p.per_token),
        fires=_ATTENTION,
        silent=_CONV,
        text="Each norm sees one token: RMS norm does what layer norm does without taking the mean, and a tanh or an "
        "erf of each value has been found to serve in their place.",
        source="Zhang & Sennrich 2019, arXiv 1910.07467; Zhu et al. 2025, arXiv 2503.10622; Chen et al. 2025, arXiv "
        "2512.10938",
        sides={"rms": 1, "dyt": 1, "derf": 1},
    ),
    Rule(
        "tokens",
        "sequences of words, characters or the like come in",
        lambda s: s.tokens,
        fires={**_ATTENTION, "tokens": True},
        silent=_ATTENTION,
        text="Words come in, or the like, and statistics over a batch of text vary widely from step to step.",
        source="Shen et al. 2020, arXiv 2003.07845",
        sides={"batch": -1},
    ),
    Rule("recurrent", "a recurrent layer, or a loop over plain ones", lambda s: "recurrent" in s.kinds, _LOOP, _CONV),
    Rule(
        "depth",
        "the logarithm of the number of weighted layers; in full from 16",
        _deep,
        fires=_CONV,
        silent={**_CONV, "depth": 1},
        text="With {depth} weighted layers, whatever one layer adds to or takes from the scale multiplies; a network "
        "without normalized activations trains more slowly and depends more on its learning rate.",
        source="Ioffe & Szegedy 2015, arXiv 1502.03167; Gitman & Ginsburg 2017, arXiv 1709.08145",
        sides={"none": -1, "weight": -1},
    ),
    Rule(
        "deep-plain",
        f"{DEEP} or more weighted layers, in which no earlier activation is added or put beside a later one, and "
        "neither loops nor attention",
        _deep_plain,
        fires={**_CONV, "depth": 11},
        silent={**_CONV, "depth": 50, "concatenations": 16},
        text="In {depth} layers without shortcuts all samples fall onto one direction; statistics over the batch "
        "keep them apart, those of single samples do so less.",
        source="Daneshmand et al. 2020, arXiv 2003.01652; Labatie et al. 2021, arXiv 2106.03743",
        sides={"batch": 1, "layer": -1, "group": -1, "instance": -1, "none": -1, "weight": -1},
    ),
    Rule(
        "shortcuts",
        "earlier activations are added or put beside later ones",
        has_shortcuts,
        {**_CONV, "residual": 3},
        _CONV,
    ),
    Rule(
        "saturating-depth",
        "three or more sigmoids, tanhs and the like, outside of loops; in full from eight",
        _saturating,
        fires={**_MLP, "saturating": 10},
        silent={**_MLP, "saturating": 1},
        text="{saturating} sigmoids, tanhs or the like saturate where their inputs drift, and with depth all samples"
        " fall onto one direction; statistics over the batch keep samples apart.",
        source="Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.2.2; Daneshmand et al. 2020, arXiv 2003.01652",
        sides={"batch": 1, "none": -1, "weight": -1, "instance": -1, "group": -1, "layer": -1, "switchable": -1},
    ),
    Rule(
        "centred",
        "likewise, most of which take 0 to 0",
        _centred,
        {**_MLP, "saturating": 8, "centred": 8},
        {**_MLP, "saturating": 8},
    ),
    Rule(
        "few-features",
        f"norms over vectors, and a first layer that makes its outputs from {FEW_FEATURES} numbers or fewer",
        lambda s: s.has_few_features * _vectors(s),
        fires={**_LOOP, "features": 1},
        silent={**_LOOP, "features": 12},
        text="The first layer makes all its outputs from {features} numbers, so a statistic over one sample's "
        "outputs measures these, and dividing by it takes away what they say.",
        source="Labatie et al. 2021, arXiv 2106.03743",
        sides={"layer": -1, "rms": -1, "group": -1, "instance": -1, "switchable": -1},
    ),
    Rule(
        "padding",
        "batches are padded and no layer is told of it",
        lambda s: s.variable_length and not s.masked,
        fires={**_SERIES, "variable_length": True},
        silent={**_SERIES, "variable_length": True, "masked": True},
        text="Batches are padded and the layers are not told: padding enters the batch's statistics. Give them mask="
        " or lengths=.",
        source="pytorch/pytorch issues 70529 and 81985",
        sides={"batch": -1},
    ),
    Rule(
        "images-out",
        "images come out, or a value for each pixel",
        lambda s: (
            s.task in {"segmentation", "reconstruction", "stylization", "restoration"}
            or (s.task is None and s.architecture == "generative")
        ),
        fires={**_CONV, "task": "segmentation"},
        silent=_CONV,
    ),
    Rule(
        "style",
        "the task is stylization",
        lambda s: s.task == "stylization",
        fires={**_CONV, "task": "stylization"},
        silent={**_CONV, "task": "segmentation"},
        text="The contrast of each image is to be replaced: instance norm removes it, and an image's result does not"
        " depend on the others in the batch.",
        source="Ulyanov et al. 2016, arXiv 1607.08022; Huang & Belongie 2017, arXiv 1703.06868",
        sides={"instance": 1, "batch": -1, "layer": -1, "none": -1, "weight": -1},
    ),
    Rule(
        "contrast-matters",
        "the task is restoration",
        lambda s: s.task == "restoration",
        fires={**_CONV, "task": "restoration"},
        silent=_CONV,
        text="Super-resolution and restoration must keep the range that normalization removes.",
        source="Lim et al. 2017, arXiv 1707.02921; Yu et al. 2018, arXiv 1808.08718",
        sides={"none": 1, "weight": 1, "batch": -1, "instance": -1, "group": -1, "layer": -1, "switchable": -1},
    ),
    Rule(
        "other-task",
        "the task is detection or generation",
        lambda s: s.task in {"detection", "generation"},
        fires={**_CONV, "task": "detection"},
        silent=_CONV,
    ),
    Rule(
        "volumes",
        "norms over three spatial axes",
        lambda s: _over_space(s, 3),
        {**_CONV, "places": _place(4, 4, 4)},
        _CONV,
    ),
)


def told(rule: Rule, situation: Situation) -> str:
    """A rule's text with the numbers of a situation."""
    s = situation
    text = rule.text.format(
        few=s.few, values=_values(s), depth=s.depth, drift=s.drift, saturating=s.saturating, features=s.features
    )
    return (
        text
        .replace(" 1 samples", " 1 sample")
        .replace(" 1 values stand", " 1 value stands")
        .replace(" 1 numbers", " 1 number")
    )


# The methods that there is evidence on.
METHODS = tuple(dict.fromkeys(method for rule in RULES for method in rule.sides))

"""What a choice of normalization depends on, put together from a model's facts and what its user tells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from normwise.errors import InputError
from normwise.findings import ModelFacts, WeightFacts
from normwise.pools import elements_behind

# What a model is for, where its structure does not tell.
TASKS = (
    "classification",
    "regression",
    "reconstruction",
    "segmentation",
    "detection",
    "language",
    "stylization",
    "generation",
    "restoration",
)
# Layers that go over a sequence by themselves.
RECURRENT = ("RNN", "LSTM", "GRU", "LayerNormLSTM", "LayerNormGRU")
# A first layer that sees no more numbers than this has little but their size to pass on.
FEW_FEATURES = 4
CENTRED = ("tanh", "softsign", "hardtanh")
SATURATING = (*CENTRED, "sigmoid", "hardsigmoid")


@dataclass(frozen=True)
class Place:
    """Where a normalization is, or could be: its channels, spatial sizes and rows of axis 0 per step on one device.

    ``per_token`` layers have the channels on the last axis and normalize each position by itself; ``looped`` ones run
    at every step of a loop; ``method`` is what stands there now, ``None`` where nothing does.

    Example:
        >>> Place("0", channels=8, spatial=[4, 4], samples=2).values("batch")
        32
    """

    name: str
    channels: int
    spatial: list[int]
    samples: int
    per_token: bool = False
    looped: bool = False
    method: str | None = None

    def values(self, pool: str, num_groups: int = 1) -> int:
        """How many values stand behind a statistic of a method at this place.

        Args:
            pool: ``"batch"``, ``"layer"``, ``"group"`` or ``"instance"``.
            num_groups: of a group norm.

        Returns:
            The number.

        Example:
            >>> Place("0", 8, [4, 4], 2).values("group", num_groups=2)
            64
        """
        return elements_behind(self.samples, self.channels, math.prod(self.spatial), num_groups)[pool]


@dataclass(frozen=True)
class Situation:
    """All that the advice looks at.

    ``batch_size`` counts samples per step and device; ``devices`` train together; ``accumulate`` batches make a step.
    ``saturating`` counts the calls of sigmoids, tanhs and their like between layers in one pass, ``centred`` those of
    them that take 0 to 0, ``depth`` the weighted layers; ``residual`` the additions of activations, ``concatenations``
    how often they are put side by side. ``features`` is how many numbers an output of the first layer is made from,
    ``tokens`` whether sequences of words or the like come in. ``drift`` is the largest of
    :class:`normwise.findings.NormFacts`. ``current`` names the methods that the model uses now; ``closed`` the
    recurrent layers that loop inside, so that no norm can be put there.

    Example:
        >>> Situation("conv", ["conv"], batch_size=2).few
        2
    """

    architecture: str
    kinds: list[str]
    batch_size: int
    devices: int = 1
    accumulate: int = 1
    task: str | None = None
    variable_length: bool = False
    masked: bool = False
    depth: int = 1
    saturating: int = 0
    centred: int = 0
    residual: int = 0
    concatenations: int = 0
    features: int | None = None
    drift: float = 0.0
    tokens: bool = False
    places: list[Place] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)

    @property
    def few(self) -> int:
        """Samples behind a batch statistic: those of all devices, which synced statistics share."""
        return self.batch_size * self.devices

    @property
    def has_few_features(self) -> bool:
        """Whether the first layer makes its outputs from ``FEW_FEATURES`` numbers or fewer, as far as is known."""
        return self.features is not None and self.features <= FEW_FEATURES

    @property
    def least_batch(self) -> int | None:
        """The fewest values behind a batch statistic anywhere, over all devices; ``None`` where no place is known."""
        return min((p.values("batch") * self.devices for p in self.places), default=None)


def situation_of(
    facts: ModelFacts,
    *,
    task: str | None = None,
    devices: int = 1,
    accumulate: int = 1,
    variable_length: bool = False,
) -> Situation:
    """Put a situation together.

    Args:
        facts: of a dry run.
        task: one of ``TASKS``, if known.
        devices: that train together.
        accumulate: batches per optimizer step.
        variable_length: whether samples differ in length, so that batches are padded.

    Returns:
        The situation.

    Raises:
        InputError: an unknown task, or a count below 1.

    Example:
        >>> situation_of(ModelFacts("Net", "conv", ["conv"], batch_size=8, example_size=2), devices=4).few
        32
    """
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}, or none")
    for name, count in (("devices", devices), ("accumulate", accumulate)):
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")
    return Situation(
        architecture=facts.architecture,
        kinds=list(facts.kinds),
        batch_size=facts.batch_size,
        devices=devices,
        accumulate=accumulate,
        task=task,
        variable_length=variable_length or bool(facts.padded),
        masked=any(norm.masked for norm in facts.norms),
        depth=facts.depth,
        saturating=sum(facts.activations.get(name, 0) for name in SATURATING),
        centred=sum(facts.activations.get(name, 0) for name in CENTRED),
        residual=facts.residual_adds,
        concatenations=facts.concatenations,
        features=next((w.fan_in for w in facts.weights if w.calls), None),
        tokens=facts.tokens,
        drift=max((norm.drift or 0.0 for norm in facts.norms), default=0.0),
        places=_places(facts),
        current=_current(facts),
        closed={w.name: w.type for w in facts.weights if w.calls and w.type in RECURRENT},
    )


def _current(facts: ModelFacts) -> list[str]:
    """The methods of the layers that ran, in their order; recurrent layers of this package hold layer norms."""
    inside = ["layer" for w in facts.weights if w.calls and w.type in RECURRENT and w.type.startswith("LayerNorm")]
    return list(dict.fromkeys([*(norm.method for norm in facts.norms if norm.calls), *inside]))


def _places(facts: ModelFacts) -> list[Place]:
    """The normalization layers that ran; without any, the outputs of the hidden weighted layers that others take."""
    norms = [
        Place(n.name, n.channels, list(n.spatial), n.samples, n.per_token, n.drift is not None, n.method)
        for n in facts.norms
        if n.samples is not None and n.channels
    ]
    if norms:
        return norms
    scale = facts.batch_size / max(facts.example_size, 1)
    hidden = [w for w in facts.weights if w.calls and len(w.shape) >= 2][:-1]
    return [_place_behind(w, scale) for w in hidden if w.type not in (*RECURRENT, "MultiheadAttention")]


def _place_behind(weight: WeightFacts, scale: float) -> Place:
    # A convolution puts the channels on axis 1, all else on the last.
    samples, rest = max(1, round(weight.shape[0] * scale)), weight.shape[1:]
    if weight.type.startswith("Conv") or len(rest) == 1:
        return Place(weight.name, rest[0], rest[1:], samples)
    return Place(weight.name, rest[-1], rest[:-1], samples, per_token=True)

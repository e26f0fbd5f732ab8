"""What one dry run tells of a model: its layers and what they see. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from normwise.errors import InputError
from normwise.pools import elements_behind


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
        samples = self.samples if samples is None else samples
        counts = elements_behind(samples, self.channels, math.prod(self.spatial), num_groups)
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

"""What a method is: a small value with options, learned tensors and traits, and a function from moments to a map.

Whatever another part of the library wants to know of a method it asks here, and never goes by a name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from normwise.core.formula import PARTS, POOLS, Context, batch_moments, standardize
from normwise.core.moments import Affine, Moments
from normwise.errors import InputError
from normwise.pools import groups_for


class Learned(NamedTuple):
    """A learned tensor of a method, beside weight and bias: ``size`` values, by default one a channel.

    All begin at ``start``; a layer keeps them ``within`` two bounds, if any.

    Example:
        >>> Learned(start=0.5).shape(channels=3)
        (3,)
    """

    start: float = 1.0
    size: int | None = None
    within: tuple[float, float] | None = None

    def shape(self, channels: int) -> tuple[int]:
        """Give its shape for a number of channels."""
        return (channels if self.size is None else self.size,)


class Mix(NamedTuple):
    """A mix of pools, which native kernels compute as a whole.

    The weights are the learned tensors ``mean_weight`` and ``var_weight``: logits of a softmax, or without ``logits``
    shares that sum to 1.

    Example:
        >>> Mix(("instance", "layer")).logits
        True
    """

    pools: tuple[str, ...]
    logits: bool = True


@dataclass(frozen=True)
class Method:
    """A method of normalization: derive from it, and give :meth:`affine`.

    Options are fields of the dataclass, learned tensors stand in ``learned`` and reach :meth:`affine` as keyword
    arguments, and what others must know are the traits below. Most follow from ``pools``, the names of the statistics
    that the method rests on: ``"instance"``, ``"layer"``, ``"group"``, ``"batch"``.

    Attributes:
        name: what users write; by default the class's name in small letters.
        summary: what it does, in a line; by default the first line of the docstring.
        paper: where it is from.
        pools: the statistics that it reads.
        learned: its learned tensors beside weight and bias, by name.
        on_weights: it acts on weights and not on activations.
        reads_reference: it reads the running averages in training, too.
        only_affine: weight and bias are all there is to it.
        unit_length: vectors come out with length 1, whatever their number of channels.
        per_token: each position is normalized by itself, as if it were a sample; ``None``: where channels come last.
        weight_start: what a layer's weight starts as.
        curve: ``None``, or a function of the elements alone, ``(x, **learned)``: then only weight and bias follow.

    Example:
        >>> class Halved(Method):
        ...     "Instance norm to a standard deviation of 1/2."
        ...     pools = ("instance",)
        ...     def affine(self, cells, given):
        ...         whole = standardize(cells, given)
        ...         return whole._replace(scale=whole.scale / 2)
        >>> Halved().name, Halved().rests_on, Halved().over_samples
        ('halved', 'instance', False)
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = "-"
    on_weights: ClassVar[bool] = False
    reads_reference: ClassVar[bool] = False
    only_affine: ClassVar[bool] = False
    unit_length: ClassVar[bool] = False
    per_token: ClassVar[bool | None] = False
    weight_start: ClassVar[float] = 1.0
    curve: ClassVar[Callable[..., Tensor] | None] = None
    pools: ClassVar[tuple[str, ...]] = ()
    learned: ClassVar[Mapping[str, Learned]] = MappingProxyType({})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        if "summary" not in vars(cls):
            cls.summary = (cls.__doc__ or cls.name).strip().splitlines()[0]

    def affine(self, cells: Moments, given: Context, *args: Any, **learned: Any) -> Affine:
        """Make the map ``y = (x − center) · scale + shift`` of the cells' moments, each part broadcastable to (N, C).

        Args:
            cells: the moments of every x[n, c]; not to be read where :meth:`reads_cells` says so.
            given: weight, bias, eps and stored moments.
            *args: none.
            **learned: the learned tensors, by name.

        Returns:
            The map. Nothing is to be changed: running averages are kept by the caller.
        """
        raise NotImplementedError(f"{type(self).__name__} has no function affine(cells, given)")

    # Traits. Each has a rule that holds for most methods; others say what is so.

    @property
    def over_samples(self) -> bool:
        """Whether samples see each other: in training each one's result depends on the batch."""
        return "batch" in self.pools

    @property
    def tracks(self) -> bool:
        """Whether running averages can be kept."""
        return self.over_samples

    @property
    def running(self) -> bool:
        """Whether layers keep running averages unless told otherwise."""
        return self.over_samples

    @property
    def tracks_samples(self) -> bool:
        """Whether running averages are those of each sample's own moments."""
        return self.tracks and not self.over_samples

    @property
    def synced(self) -> bool:
        """Whether processes can share its statistics: it takes the batch's from :func:`batch_moments`."""
        return self.over_samples

    @property
    def rests_on(self) -> str | None:
        """The pool that is refused where it holds a single element, so that nothing is divided by a deviation of 0."""
        return self.pools[0] if len(self.pools) == 1 else None

    @property
    def per_channel(self) -> bool:
        """Whether the mean that it subtracts is each channel's own: what was added to a channel before is taken off."""
        return bool(self.pools) and {*self.pools} <= {"batch", "instance"}

    @property
    def centres(self) -> bool:
        """Whether a mean is subtracted."""
        return bool(self.pools)

    @property
    def mixes(self) -> bool:
        """Whether it is a mix of several pools, which may come down to one of them."""
        return len(self.pools) > 1 and self.mix(stored=True) is not None

    @property
    def needs_space(self) -> bool:
        """Whether a channel of a sample has to have several elements: (N, C) leaves nothing to normalize over."""
        return self.pools == ("instance",) or self.rests_on == "instance"

    @property
    def grouped(self) -> bool:
        """Whether the number of groups is an option of it."""
        return hasattr(self, "num_groups")

    @property
    def folds(self) -> bool:
        """Whether stored statistics make it one fixed map per channel, which a neighbouring layer can take over."""
        return self.curve is None and not self.reads_cells(stored=True)

    @property
    def centred(self) -> bool | None:
        """For kernels over single rows: whether the row's mean is taken off; ``None`` where it is another formula."""
        return None

    def by_position(self, axis: int) -> bool:
        """Whether each position is normalized by itself.

        Args:
            axis: where the channels are, 1 or -1.

        Returns:
            What ``per_token`` says for that axis.
        """
        return axis == -1 if self.per_token is None else self.per_token

    def mix(self, stored: bool) -> Mix | None:
        """The mix of pools that the method is; ``None`` where it is more than that.

        Args:
            stored: whether there is a population.

        Returns:
            The mix, or ``None``.
        """
        return None

    def reads_cells(self, stored: bool) -> bool:
        """Whether the input's own moments are read; ``stored``: running averages stand in for the batch's.

        Args:
            stored: whether there is a population.

        Returns:
            Whether :meth:`affine` may look at ``cells``.
        """
        return bool(self.pools) and not (stored and self.pools == ("batch",))

    def groups(self, channels: int) -> int:
        """Give the number of groups: the option ``num_groups`` where the method has one and it is set.

        Args:
            channels: C.

        Returns:
            G; where the option is ``None``, what :func:`groups_for` chooses, and 1 without such an option.
        """
        chosen: int | None = getattr(self, "num_groups", 1)
        return groups_for(channels) if chosen is None else chosen

    def pooled(self, name: str, cells: Moments, given: Context) -> Moments:
        """Give the statistics of one pool.

        Args:
            name: ``"instance"``, ``"layer"``, ``"group"`` or ``"batch"``.
            cells: moments per cell, (N, C).
            given: ``population`` and ``exchange`` are read, for ``"batch"``.

        Returns:
            Moments that broadcast to (N, C), weighted by element counts.
        """
        return POOLS[name](cells, given, self.groups(cells.mean.shape[1]))

    def terms(self, given: Context, pooled: Moments) -> Context:
        """Give the weight, bias and eps of the formula, where these are not just the given ones.

        Args:
            given: as for :meth:`affine`.
            pooled: the pool's moments, of which only the type and the number of elements count.

        Returns:
            The context to standardize with.
        """
        return given

    def track(self, cells: Moments, given: Context) -> Moments:
        """Give the moments (1, C) that running averages follow: the batch's, unless a method says otherwise.

        Args:
            cells: moments per cell, (N, C).
            given: as for :meth:`affine`.

        Returns:
            The moments.
        """
        return batch_moments(cells, given)

    def taking(self, options: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
        """Give the method with those options that are its own, and the rest of them.

        Args:
            options: any.

        Returns:
            A method of the same class, and the options that it does not have.
        """
        own = {f.name for f in dataclasses.fields(self) if f.init} & options.keys()
        rest = {name: value for name, value in options.items() if name not in own}
        return dataclasses.replace(self, **{name: options[name] for name in own}) if own else self, rest

    def __str__(self) -> str:
        """Give the name with those options that are not the defaults, as :func:`method_named` reads it."""
        options = [f for f in dataclasses.fields(self) if f.init and getattr(self, f.name) != f.default]
        told = ", ".join(f"{f.name}={_written(getattr(self, f.name))}" for f in options)
        return f"{self.name}({told})" if told else self.name


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Pooled(Method):
    """One pool's mean and deviation, y = weight · (x − μ) / √(σ² + eps) + bias.

    ``parts``, as of :func:`standardize`, is an option where a class makes it a field.

    Example:
        >>> import torch
        >>> class Scaled(Pooled):
        ...     pools, parts = ("layer",), "scale"
        >>> Scaled().affine(Moments(torch.full((1, 1), 2.0), torch.zeros(1, 1)), Context(eps=0.0)).scale
        tensor([[0.5000]])
    """

    parts = "both"

    def __post_init__(self) -> None:
        if self.parts not in PARTS:
            raise InputError(f"unknown parts {self.parts!r}: expected one of {', '.join(PARTS)}")

    @property
    def rests_on(self) -> str | None:  # noqa: D102
        return None if self.parts == "scale" else super().rests_on

    @property
    def per_channel(self) -> bool:  # noqa: D102
        return self.parts != "scale" and super().per_channel

    @property
    def centres(self) -> bool:  # noqa: D102
        return self.parts != "scale"

    def mix(self, stored: bool) -> Mix | None:  # noqa: D102
        plain = self.parts == "both" and type(self).affine is Pooled.affine
        return Mix(self.pools) if plain else None

    @property
    def centred(self) -> bool | None:  # noqa: D102
        plain = self.pools == ("layer",) and type(self).affine is Pooled.affine
        return {"both": True, "scale": False}.get(self.parts) if plain else None

    def affine(self, cells: Moments, given: Context) -> Affine:
        """Standardize by the pool."""
        (pool,) = self.pools
        m = self.pooled(pool, cells, given)
        return standardize(m, self.terms(given, m), self.parts)

"""The methods: how each makes an affine map of the cells' moments. A method is a few lines; ``METHODS`` is the family.

Adding one is a function in this package, a row in ``METHODS`` and a formula in ``tests/oracles.py``. The family's
tests, the command line's choices and the docs' table all read ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normwise.core.moments import Affine, Moments
from normwise.errors import InputError
from normwise.methods.family import (
    PARTS,
    POOLS,
    Inputs,
    _track_batch,
    _track_instance,
    _track_switchable,
    batch,
    defined_members,
    elements_behind,
    group,
    instance,
    known_members,
    known_variance,
    layer,
    none,
    standardize,
    switchable,
)
from normwise.methods.relatives import (
    _track_ghosts,
    batch_instance,
    batch_renorm,
    filter_response,
    ghost_batch,
    mean_only_batch,
)

__all__ = [
    "METHODS",
    "PARTS",
    "POOLS",
    "Inputs",
    "Method",
    "batch",
    "batch_instance",
    "batch_renorm",
    "defined_members",
    "elements_behind",
    "filter_response",
    "ghost_batch",
    "group",
    "instance",
    "known_members",
    "known_variance",
    "layer",
    "mean_only_batch",
    "method_named",
    "none",
    "standardize",
    "switchable",
]


def _always(p: Inputs) -> bool:
    return True


def _never(p: Inputs) -> bool:
    return False


def _without_population(p: Inputs) -> bool:
    return p.population is None


def _beyond_population(p: Inputs) -> bool:
    return p.population is None or p.over != ("batch",)


def _only_batch(p: Inputs) -> tuple[str, ...]:
    return ("batch",)


def _only_layer(p: Inputs) -> tuple[str, ...]:
    return ("layer",)


def _only_group(p: Inputs) -> tuple[str, ...]:
    return ("group",)


def _instance_or_population(p: Inputs) -> tuple[str, ...]:
    # A population stands in the place of the pool over samples.
    return ("instance",) if p.population is None else ("batch",)


def _members_asked_for(p: Inputs) -> tuple[str, ...]:
    return p.over


@dataclass(frozen=True)
class Method:
    """A row of ``METHODS``.

    ``pools`` names the axes over which moments are shared. ``reads_cells`` tells whether the input's own moments are
    needed at all: in evaluation a batch norm saves that pass. ``running`` says whether running averages are kept by
    default and ``track`` what they follow, ``None`` where a method can keep none; ``reads_reference`` hands them to the
    method in training, too. ``parameters`` are the learned ones beside weight and bias. ``rests_on`` names the pool
    whose size is checked, so that nothing is divided by the deviation of a single element; ``None`` where that harms
    nobody. ``on_weights`` marks methods that act on weights, not on activations. ``members`` names the ``POOLS`` that a
    method is a mix of, which the native kernels compute as a whole; ``None`` where it is more than a mix.

    Example:
        >>> METHODS["batch"].running
        True
    """

    name: str
    function: Callable[[Moments, Inputs], Affine]
    pools: str
    summary: str
    paper: str
    reads_cells: Callable[[Inputs], bool] = _always
    running: bool = False
    track: Callable[[Moments, Inputs], Moments] | None = None
    parameters: tuple[str, ...] = ()
    rests_on: str | None = None
    reads_reference: bool = False
    on_weights: bool = False
    members: Callable[[Inputs], tuple[str, ...]] | None = None


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("none", none, "nothing", "no normalization", "-", reads_cells=_never),
        Method(
            "batch",
            batch,
            "samples and space, per channel",
            "per channel over the batch; running averages in evaluation",
            "Ioffe & Szegedy 2015, arXiv 1502.03167",
            reads_cells=_without_population,
            running=True,
            track=_track_batch,
            rests_on="batch",
            members=_only_batch,
        ),
        Method(
            "layer",
            layer,
            "channels and space, per sample",
            "per sample over all channels; the batch does not matter",
            "Ba et al. 2016, arXiv 1607.06450",
            rests_on="layer",
            members=_only_layer,
        ),
        Method(
            "weight",
            none,
            "nothing",
            "weights split into length and direction; activations untouched",
            "Salimans & Kingma 2016, arXiv 1602.07868",
            reads_cells=_never,
            parameters=("g", "v"),
            on_weights=True,
        ),
        Method(
            "instance",
            instance,
            "space, per sample and channel",
            "per sample and channel; removes contrast",
            "Ulyanov et al. 2016, arXiv 1607.08022",
            reads_cells=_without_population,
            track=_track_instance,
            rests_on="instance",
            members=_instance_or_population,
        ),
        Method(
            "group",
            group,
            "space and the channels of a group, per sample",
            "per sample over groups of channels; holds at small batches",
            "Wu & He 2018, arXiv 1803.08494",
            rests_on="group",
            members=_only_group,
        ),
        Method(
            "switchable",
            switchable,
            "a learned mix of instance, layer and batch",
            "each layer learns its own mix of instance, layer and batch",
            "Luo et al. 2019, arXiv 1806.10779",
            reads_cells=_beyond_population,
            running=True,
            track=_track_switchable,
            parameters=("mean_weight", "var_weight"),
            members=_members_asked_for,
        ),
        Method(
            "batch_renorm",
            batch_renorm,
            "samples and space, per channel",
            "batch norm that trains on what evaluation will see: corrected towards the running averages",
            "Ioffe 2017, arXiv 1702.03275",
            reads_cells=_without_population,
            running=True,
            track=_track_batch,
            rests_on="batch",
            reads_reference=True,
        ),
        Method(
            "ghost_batch",
            ghost_batch,
            "some samples and space, per channel",
            "batch norm over small parts of a large batch",
            "Hoffer et al. 2017, arXiv 1705.08741",
            reads_cells=_without_population,
            running=True,
            track=_track_ghosts,
            rests_on="batch",
        ),
        Method(
            "mean_only_batch",
            mean_only_batch,
            "samples and space, per channel",
            "batch norm without the division; goes with weight norm",
            "Salimans & Kingma 2016, arXiv 1602.07868",
            reads_cells=_without_population,
            running=True,
            track=_track_batch,
            rests_on="batch",
        ),
        Method(
            "batch_instance",
            batch_instance,
            "a learned mix of batch and instance, per channel",
            "each channel learns how much contrast to remove",
            "Nam & Kim 2018, arXiv 1805.07925",
            running=True,
            track=_track_batch,
            parameters=("gate",),
            rests_on="instance",
        ),
        Method(
            "filter_response",
            filter_response,
            "space, per sample and channel",
            "per sample and channel by the root mean square, without a mean",
            "Singh & Krishnan 2019, arXiv 1911.09737",
        ),
    )
}


def method_named(name: str) -> Method:
    """Look a method up.

    Args:
        name: a key of ``METHODS``.

    Returns:
        Its row.

    Raises:
        InputError: there is no such method; the message lists those there are.

    Example:
        >>> method_named("group").paper
        'Wu & He 2018, arXiv 1803.08494'
    """
    try:
        return METHODS[name]
    except KeyError:
        raise InputError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}") from None

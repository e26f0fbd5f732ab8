"""The methods: how each makes an affine map of the cells' moments. A method is a few lines; ``METHODS`` is the family.

Adding one is a class in a file of this package, its place in ``METHODS`` and a formula in ``tests/oracles.py``.
Whatever else knows methods reads ``METHODS`` and asks a method's traits.
"""

from __future__ import annotations

import dataclasses

from normwise.core.formula import PARTS, POOLS, Context, batch_moments, standardize, with_parameters
from normwise.core.method import Learned, Method, Mix, Pooled
from normwise.errors import InputError
from normwise.methods.batch import Batch, BatchRenorm, GhostBatch, MeanOnlyBatch
from normwise.methods.plain import NoNorm, WeightNorm
from normwise.methods.sample import BatchInstance, FilterResponse, Group, Instance, Layer
from normwise.methods.spec import parse_spec
from normwise.methods.switchable import VARIANCES, Switchable, known_members
from normwise.methods.token import L2, RMS, Derf, DyT
from normwise.pools import elements_behind, groups_for

__all__ = [
    "L2",
    "METHODS",
    "PARTS",
    "POOLS",
    "RMS",
    "VARIANCES",
    "Batch",
    "BatchInstance",
    "BatchRenorm",
    "Context",
    "Derf",
    "DyT",
    "FilterResponse",
    "GhostBatch",
    "Group",
    "Instance",
    "Layer",
    "Learned",
    "MeanOnlyBatch",
    "Method",
    "Mix",
    "NoNorm",
    "Pooled",
    "Switchable",
    "WeightNorm",
    "batch_moments",
    "elements_behind",
    "groups_for",
    "known_members",
    "method_named",
    "parse_spec",
    "standardize",
    "with_parameters",
]

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        NoNorm(),
        Batch(),
        Layer(),
        WeightNorm(),
        Instance(),
        Group(),
        Switchable(),
        BatchRenorm(),
        GhostBatch(),
        MeanOnlyBatch(),
        BatchInstance(),
        FilterResponse(),
        RMS(),
        L2(),
        DyT(),
        Derf(),
    )
}


_OTHER = Method()


def traits_of(name: str) -> Method:
    """The method of a name; for what is none of the family, one without traits."""
    return METHODS.get(name, _OTHER)


def method_named(given: str | Method | type[Method]) -> Method:
    """Look a method up.

    Args:
        given: a key of ``METHODS``, with options if others than the defaults are wanted; a method, or its class, is
            taken as it is.

    Returns:
        The method.

    Raises:
        InputError: there is no such method, or no such option of it; the message lists those there are.

    Example:
        >>> method_named("group").paper
        'Wu & He 2018, arXiv 1803.08494'
        >>> str(method_named("group(num_groups=4)"))
        'group(num_groups=4)'
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, type) and issubclass(given, Method):
        return given()
    return METHODS[given] if given in METHODS else _read(given)


def _read(text: str) -> Method:
    name, options = parse_spec(text)
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    method = METHODS[name]
    known = [f.name for f in dataclasses.fields(method) if f.init]
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}: it takes {', '.join(known) or 'none'}")
    return dataclasses.replace(method, **options) if options else method

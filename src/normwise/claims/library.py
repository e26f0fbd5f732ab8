"""All claims, by name in the order of their numbers. A new one is a :class:`Claim` in one of these modules."""

from __future__ import annotations

from collections.abc import Sequence

from normwise.claims import (
    about_batch,
    about_batch_needs,
    about_others,
    about_sequences,
    about_style,
    about_switchable,
    about_tokens,
)
from normwise.claims.claim import Claim
from normwise.errors import InputError
from normwise.study.tasks import nearest

_MODULES = (about_batch, about_batch_needs, about_others, about_sequences, about_style, about_switchable, about_tokens)

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in sorted((claim for module in _MODULES for claim in module.CLAIMS), key=lambda claim: claim.number)
}


def claims_named(names: Sequence[str]) -> list[Claim]:
    """Look claims up."""
    if not names:
        raise InputError(f"no claim given: expected all or some of {', '.join(CLAIMS)}")
    for name in names:
        if name != "all" and name not in CLAIMS:
            raise InputError(f"unknown claim {name!r}: {nearest(name, list(CLAIMS))}Known are all, {', '.join(CLAIMS)}")
    return [claim for claim in CLAIMS.values() if "all" in names or claim.name in names]

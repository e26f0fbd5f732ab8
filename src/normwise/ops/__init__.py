"""The kernels under the whole family: ``moments``, ``apply``, ``grad_sums``, ``grad_input``.

Each runs natively where the library is built and takes the tensor, else in plain torch. :mod:`normwise.ops.native` also
has whole normalizations, forward and backward, for the methods that are mixes of pooled moments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normwise.ops import native, reference
from normwise.ops.environment import describe_environment
from normwise.ops.reference import ACTIVATIONS, accumulation_dtype, activate

__all__ = [
    "ACTIVATIONS",
    "accumulation_dtype",
    "activate",
    "apply",
    "describe_environment",
    "grad_input",
    "grad_sums",
    "moments",
    "native",
    "reference",
]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`normwise.ops.reference.moments` without a mask, natively where that is possible."""
    return (native if native.supports(x) else reference).moments(x)


def apply(x: Tensor, *args: Any) -> Tensor:
    """:func:`normwise.ops.reference.apply`, natively where that is possible."""
    return (native if native.supports(x) else reference).apply(x, *args)


def grad_sums(g: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """:func:`normwise.ops.reference.grad_sums`, natively where that is possible."""
    return (native if native.supports(x) else reference).grad_sums(g, x, *args)


def grad_input(g: Tensor, x: Tensor, *args: Any) -> Tensor:
    """:func:`normwise.ops.reference.grad_input`, natively where that is possible."""
    return (native if native.supports(x) else reference).grad_input(g, x, *args)

"""The kernels under the whole family: ``moments``, ``apply``, ``grad_sums``, ``grad_input``.

Each runs natively where the library is built and takes the tensor, else in plain torch. :mod:`normwise.ops.fused` has
whole normalizations, forward and backward, for the methods that are mixes of pooled moments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normwise.ops import fused, native, reference
from normwise.ops.environment import describe_environment
from normwise.ops.reference import ACTIVATIONS, accumulation_dtype, activate, known_activation

__all__ = [
    "ACTIVATIONS",
    "accumulation_dtype",
    "activate",
    "apply",
    "describe_environment",
    "fused",
    "grad_input",
    "grad_sums",
    "known_activation",
    "moments",
    "native",
    "reference",
]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every cell: :func:`normwise.ops.reference.moments` without a mask."""
    return (native if native.supports(x) else reference).moments(x)


def apply(x: Tensor, *args: Any) -> Tensor:
    """Normalize: :func:`normwise.ops.reference.apply`."""
    return (native if native.supports(x) else reference).apply(x, *args)


def grad_sums(g: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Sum the gradient: :func:`normwise.ops.reference.grad_sums`."""
    return (native if native.supports(x) else reference).grad_sums(g, x, *args)


def grad_input(g: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Give the gradient of the input: :func:`normwise.ops.reference.grad_input`."""
    return (native if native.supports(x) else reference).grad_input(g, x, *args)

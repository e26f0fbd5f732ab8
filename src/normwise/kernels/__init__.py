"""The kernels under the whole family: ``moments``, ``apply``, ``grad_sums``, ``grad_input``.

Each runs natively where the library is built and takes the tensor, else in plain torch.
:mod:`normwise.kernels.cpu.fused` has whole normalizations, forward and backward, for mixes of pooled moments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normwise.kernels import reference
from normwise.kernels.cpu import fused, native
from normwise.kernels.environment import describe_environment
from normwise.kernels.reference import ACTIVATIONS, accumulation_dtype, activate, known_activation

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
    """Mean and variance of every cell: :func:`normwise.kernels.reference.moments` without a mask."""
    return (native if native.supports(x) else reference).moments(x)


def apply(x: Tensor, *args: Any) -> Tensor:
    """Normalize: :func:`normwise.kernels.reference.apply`."""
    return (native if native.supports(x) else reference).apply(x, *args)


def grad_sums(g: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Sum the gradient: :func:`normwise.kernels.reference.grad_sums`."""
    return (native if native.supports(x) else reference).grad_sums(g, x, *args)


def grad_input(g: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Give the gradient of the input: :func:`normwise.kernels.reference.grad_input`."""
    return (native if native.supports(x) else reference).grad_input(g, x, *args)

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
    """Mean and variance of every cell: :func:`normwise.ops.reference.moments` without a mask.

    Args:
        x: (N, C, ...).

    Returns:
        ``(mean, var)``, both (N, C).

    Example:
        >>> import torch
        >>> [t.item() for t in moments(torch.tensor([[[1.0, 3.0]]]))]
        [2.0, 1.0]
    """
    return (native if native.supports(x) else reference).moments(x)


def apply(x: Tensor, *args: Any) -> Tensor:
    """Normalize: :func:`normwise.ops.reference.apply`.

    Args:
        x: (N, C, ...).
        *args: its other arguments.

    Returns:
        A tensor like ``x``.

    Example:
        >>> import torch
        >>> cell = torch.tensor([[2.0]])
        >>> apply(torch.tensor([[[1.0, 3.0]]]), cell, cell, torch.zeros(1, 1))
        tensor([[[-2.,  2.]]])
    """
    return (native if native.supports(x) else reference).apply(x, *args)


def grad_sums(g: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Sum the gradient: :func:`normwise.ops.reference.grad_sums`.

    Args:
        g: the gradient of the output.
        x: the input.
        *args: its other arguments.

    Returns:
        ``(S1, S2)``, both (N, C).

    Example:
        >>> import torch
        >>> x, one, zero = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1), torch.zeros(1, 1)
        >>> [s.item() for s in grad_sums(x, x, 2 * one, zero, one, zero)]
        [4.0, 2.0]
    """
    return (native if native.supports(x) else reference).grad_sums(g, x, *args)


def grad_input(g: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Give the gradient of the input: :func:`normwise.ops.reference.grad_input`.

    Args:
        g: the gradient of the output.
        x: the input.
        *args: its other arguments.

    Returns:
        A tensor like ``x``.

    Example:
        >>> import torch
        >>> x, one, zero = torch.ones(1, 1, 2), torch.ones(1, 1), torch.zeros(1, 1)
        >>> grad_input(x, x, one, one, 3 * one, zero, 4 * one, zero)
        tensor([[[5., 5.]]])
    """
    return (native if native.supports(x) else reference).grad_input(g, x, *args)

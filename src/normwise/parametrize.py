"""Methods that act on weights, as parametrizations of ``torch.nn.utils.parametrize``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from normwise.errors import InputError


class WeightNorm(torch.nn.Module):
    """The parametrization w = g · v / ‖v‖; see :func:`weight_norm`.

    Example:
        >>> WeightNorm(dim=0, eps=1e-12)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
        tensor([[2.]])
    """

    def __init__(self, dim: int | None, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Join magnitude and direction."""
        norm = self._norm(v)
        # A direction of no length gives a weight of 0 and finite gradients, never 0 / 0.
        return (v * (g.to(norm.dtype) / torch.where(norm > self.eps, norm, 1.0))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split a weight into magnitude and direction."""
        norm = self._norm(weight)
        # A row of zeros gets some direction: with g = 0 it stays exactly zero, and can still learn to be something.
        direction = torch.where(norm > self.eps, weight, torch.ones_like(weight))
        return norm.to(weight.dtype), direction

    def _norm(self, v: Tensor) -> Tensor:
        # In float32 at least: the sum of squares of a long float16 row overflows.
        v = v if v.dtype == torch.float64 else v.float()
        axes = tuple(a for a in range(v.ndim) if self.dim is None or a != self.dim % v.ndim)
        return torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()

    def extra_repr(self) -> str:
        """Describe the parametrization in ``print(model)``."""
        return f"dim={self.dim}, eps={self.eps}"


def weight_norm(
    module: torch.nn.Module, name: str = "weight", dim: int | None = 0, eps: float = 1e-12
) -> torch.nn.Module:
    """Split a weight into magnitude g and direction v (Salimans & Kingma 2016, arXiv 1602.07868).

    Formula: w = g · v / ‖v‖, the norm taken over all axes but ``dim``, in float32 at least. g and v become
    ``module.parametrizations.<name>.original0`` and ``original1``, the keys of ``torch.nn.utils.parametrizations``.
    A row of zeros stays zero with finite gradients, where torch's gives NaN; ``torch.nn.utils.parametrize
    .remove_parametrizations`` undoes it.

    Args:
        module: holds the weight; changed in place.
        name: the parameter's name.
        dim: the axis along which each slice has its own magnitude; ``None`` for one magnitude of the whole weight.
        eps: a direction no longer than this counts as having no length.

    Returns:
        The module.

    Raises:
        InputError: there is no such parameter, or it has no such axis, or eps is negative.

    Example:
        >>> layer = weight_norm(torch.nn.Linear(4, 3))
        >>> layer.parametrizations.weight.original0.shape
        torch.Size([3, 1])
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        names = ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"
        raise InputError(f"{type(module).__name__} has no parameter {name!r}; it has: {names}")
    if dim is not None and not -weight.ndim <= dim < weight.ndim:
        raise InputError(f"dim={dim} is no axis of {name!r}, whose shape is {tuple(weight.shape)}")
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    parametrize.register_parametrization(module, name, WeightNorm(dim, eps), unsafe=True)
    return module

"""Weight standardization and spectral norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

from normwise.errors import InputError
from normwise.nn._checks import model_given
from normwise.nn._convolutions import TRANSPOSED
from normwise.parametrize._copies import held_weight, make_copyable


class WeightStandardization(torch.nn.Module):
    """The parametrization w = (v − μ) / √(σ² + eps), per output unit; see :func:`weight_standardization`.

    Example:
        >>> WeightStandardization(eps=0.0)(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    def __init__(self, eps: float, axis: int = 0) -> None:
        super().__init__()
        self.eps, self.axis = eps, axis

    def forward(self, v: Tensor) -> Tensor:
        """Standardize; in float32 at least."""
        values = v if v.dtype == torch.float64 else v.float()
        var, mean = torch.var_mean(values, [a for a in range(v.ndim) if a != self.axis], correction=0, keepdim=True)
        return ((values - mean) * torch.rsqrt(var + self.eps)).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight as it is: what it was standardized from cannot be known."""
        return weight

    def extra_repr(self) -> str:
        """Describe the parametrization in ``print(model)``."""
        return f"eps={self.eps}, axis={self.axis}"


def weight_standardization(module: torch.nn.Module, name: str = "weight", eps: float = 1e-5) -> torch.nn.Module:
    """Standardize a layer's weights, each output unit's on its own (Qiao et al. 2019, arXiv 1903.10520).

    Formula: w[o] = (v[o] − μ[o]) / √(σ²[o] + eps), moments over all that goes into unit o. The layer's output changes;
    the paper puts a group norm behind it. v becomes ``module.parametrizations.<name>.original``.

    Args:
        module: a linear or convolution layer, or any that holds a weight with outputs on the first axis; changed in
            place.
        name: the parameter's name.
        eps: added to the variance.

    Returns:
        The module.

    Raises:
        InputError: there is no such parameter, or its units have a single weight, which would become 0.

    Example:
        >>> layer = weight_standardization(torch.nn.Conv2d(3, 8, 3))
        >>> layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
        tensor(True)
    """
    model_given(module, "weight_standardization")
    weight = held_weight(module, name)
    # Transposed convolutions hold their outputs on the second axis.
    axis = 1 if isinstance(module, TRANSPOSED) else 0
    if weight.numel() <= weight.shape[axis]:
        raise InputError(f"{name!r} of shape {tuple(weight.shape)} has one weight a unit: standardized, it would be 0")
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        raise InputError("a grouped transposed convolution keeps its units apart on no single axis: not supported")
    parametrize.register_parametrization(module, name, WeightStandardization(eps, axis), unsafe=True)
    make_copyable(module)
    return module


def spectral_norm(
    module: torch.nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> torch.nn.Module:
    """Divide a weight by its largest singular value (Miyato et al. 2018, arXiv 1802.05957): torch's, made copyable.

    Formula: w = v / σ(v), the weight taken as a matrix with ``dim`` as its rows and σ estimated by power iterations,
    which go on by ``n_power_iterations`` at each forward pass in training. v becomes
    ``module.parametrizations.<name>.original``, and state dicts are those of
    ``torch.nn.utils.parametrizations.spectral_norm``.

    Args:
        module: holds the weight; changed in place.
        name: the parameter's name.
        n_power_iterations: at each forward pass in training.
        eps: keeps the iterated vectors from a norm of 0.
        dim: the axis of the output units; default 1 for transposed convolutions, else 0.

    Returns:
        The module.

    Raises:
        InputError: there is no such parameter.

    Example:
        >>> layer = spectral_norm(torch.nn.Linear(5, 3), n_power_iterations=50)
        >>> torch.linalg.matrix_norm(layer.weight, 2) < 1.01
        tensor(True)
    """
    model_given(module, "spectral_norm")
    held_weight(module, name)
    parametrizations.spectral_norm(module, name, n_power_iterations, eps, dim)
    make_copyable(module)
    return module

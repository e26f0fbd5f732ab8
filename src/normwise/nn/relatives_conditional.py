"""Normalization whose weight and bias come from somewhere else: a class, a style, an embedding, another image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normwise import kernels
from normwise.core.checks import refuse_nested
from normwise.errors import InputError
from normwise.functional import normalize, real_elements
from normwise.methods import Batch, Instance, Method
from normwise.nn._eps import Eps
from normwise.nn._state import TrackingNorm, boundary, checked_size


class ConditionalNorm(TrackingNorm):
    """What the conditional layers share; use :class:`ConditionalBatchNorm` or :class:`ConditionalInstanceNorm`.

    Formula: y[n] = (weight + Δw[n]) · x̂[n] + (bias + Δb[n]), where x̂ is normalized by the method and (Δw, Δb) come from
    the condition: a row of a table, or a linear map of features. They start at 0, so the layer starts unconditional.
    """

    method: Method
    eps = Eps(guards=True)

    def __init__(
        self,
        num_features: int,
        num_conditions: int | None = None,
        condition_features: int | None = None,
        *,
        activation: str | None = None,
        skip_nonfinite: bool = True,
        **options: Any,
    ) -> None:
        if (num_conditions is None) == (condition_features is None):
            raise InputError("give num_conditions, for integers, or condition_features, for vectors: one of them")
        tracks = options.pop("track_running_stats", True) and self.method.running
        super().__init__(checked_size(num_features), track_running_stats=tracks, **options)
        self._guard(skip_nonfinite)
        self.activation = kernels.known_activation(activation)
        like: dict[str, Any] = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.condition: torch.nn.Embedding | torch.nn.Linear
        if num_conditions is not None:
            self.condition = torch.nn.Embedding(num_conditions, 2 * num_features, **like)
        else:
            self.condition = torch.nn.Linear(condition_features or 0, 2 * num_features, **like)
        for parameter in self.condition.parameters():
            torch.nn.init.zeros_(parameter)

    @boundary
    def forward(
        self, input: Tensor, condition: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Normalize ``input`` (N, C, ...) given one condition a sample."""
        self._check(input, condition)
        # In the parameters' type: under autocast the map gives half precision.
        delta = self.condition(condition).to(self.condition.weight.dtype)
        weight, bias = delta.chunk(2, 1)
        weight = weight + (1 if self.weight is None else self.weight)
        bias = bias if self.bias is None else bias + self.bias
        options = {"activation": self.activation, "mask": mask, "lengths": lengths, "weight": weight, "bias": bias}
        return self._normalize(input, self.method, self.momentum, counts=True, **options)

    def _check(self, input: Tensor, condition: Tensor) -> None:
        refuse_nested(input)
        N, table = input.shape[0], isinstance(self.condition, torch.nn.Embedding)
        shape = (N,) if table else (N, self.condition.weight.shape[1])
        if tuple(condition.shape) != shape or condition.is_floating_point() == table:
            kind = "integers" if table else "floats"
            raise InputError(
                f"expected one condition a sample, {kind} of shape {shape}, got {condition.dtype} of shape "
                f"{tuple(condition.shape)}"
            )


class ConditionalBatchNorm(ConditionalNorm, _BatchNorm):
    """Conditional batch normalization (de Vries et al. 2017, arXiv 1707.03017); see :class:`ConditionalNorm`.

    Example:
        >>> layer = ConditionalBatchNorm(3, condition_features=7)
        >>> layer(torch.randn(4, 3, 5, 5), torch.randn(4, 7)).shape
        torch.Size([4, 3, 5, 5])
    """

    method = Batch()


class ConditionalInstanceNorm(ConditionalNorm):
    """Conditional instance normalization (Dumoulin et al. 2017, arXiv 1610.07629); see :class:`ConditionalNorm`.

    Example:
        >>> layer = ConditionalInstanceNorm(3, num_conditions=10)
        >>> layer(torch.randn(4, 3, 5, 5), torch.tensor([0, 9, 1, 1])).shape
        torch.Size([4, 3, 5, 5])
    """

    method = Instance()


class AdaptiveInstanceNorm(torch.nn.Module):
    """Adaptive instance normalization (Huang & Belongie 2017, arXiv 1703.06868): take a style's moments on.

    Formula: y = σ(style) · (x − μ(x)) / √(σ²(x) + eps) + μ(style), moments per sample and channel, σ(style) =
    √(σ²(style) + eps). Nothing is learned; gradients reach both inputs.

    Args:
        eps: added to the variances.

    Raises:
        InputError: content and style that differ in samples or channels.

    Example:
        >>> content, style = torch.randn(2, 3, 8, 8), 5 + 2 * torch.randn(2, 3, 6, 6)
        >>> y = AdaptiveInstanceNorm()(content, style)
        >>> torch.allclose(y.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
        True
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    @boundary
    def forward(
        self, content: Tensor, style: Tensor, mask: Tensor | None = None, style_mask: Tensor | None = None
    ) -> Tensor:
        """Give ``content`` (N, C, ...) the moments of ``style`` (N, C, ...), whose spatial sizes may differ."""
        if content.shape[:2] != style.shape[:2]:
            came = f"{tuple(content.shape)} and {tuple(style.shape)}"
            raise InputError(f"content and style must agree in samples and channels, got {came}")
        mean, var = kernels.reference.moments(style, real_elements(style, style_mask))
        weight, bias = torch.sqrt(var + self.eps), mean
        return normalize(content, Instance(), weight=weight, bias=bias, eps=self.eps, mask=mask)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"eps={self.eps}"

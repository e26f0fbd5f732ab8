"""Batch normalization with torch's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normwise.functional import normalize
from normwise.nn._state import check_dim, count_batch, uses_running


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    _dims: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation

    def _check_input_dim(self, input: Tensor) -> None:
        check_dim(input, self._dims)

    def forward(self, input: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        momentum = count_batch(self)
        return normalize(
            input,
            "batch",
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            running_mean=self.running_mean,
            running_var=self.running_var,
            use_running=uses_running(self),
            momentum=momentum,
            activation=self.activation,
            mask=mask,
            lengths=lengths,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L); everything else as in :class:`BatchNorm2d`.

    Example:
        >>> BatchNorm1d(3)(torch.randn(8, 3)).shape
        torch.Size([8, 3])
    """

    _dims = (2, 3)


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """Batch normalization of (N, C, H, W) (Ioffe & Szegedy 2015, arXiv 1502.03167), a drop-in for torch's class.

    Formula: y = weight · (x − μ[c]) / √(σ²[c] + eps) + bias, with the moments of the batch in training and the running
    averages in evaluation. The biased variance normalizes, the unbiased one enters ``running_var``.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the *new* batch in the running averages; ``None`` for their plain mean over all batches.
        affine: whether ``weight`` and ``bias`` (C,) are learned.
        track_running_stats: whether running averages are kept; without them evaluation uses the batch.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: whether ``bias`` is learned where ``affine`` is.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, fused into the layer.

    Raises:
        ValueError: the input has another number of axes, or one value per channel in training.

    Example:
        >>> layer = BatchNorm2d(3)
        >>> y = layer(torch.randn(8, 3, 5, 5))
        >>> y.mean((0, 2, 3)).abs().max() < 1e-5
        tensor(True)
    """

    _dims = (4,)


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W); everything else as in :class:`BatchNorm2d`.

    Example:
        >>> BatchNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
        torch.Size([2, 3, 4, 4, 4])
    """

    _dims = (5,)

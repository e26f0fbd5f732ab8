"""Batch normalization with torch's names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise import kernels
from normwise.core.route import exporting
from normwise.methods import Batch
from normwise.nn._eps import eps_of
from normwise.nn._state import LazyNorm, TrackingNorm, boundary, check_dim

# The name in this module, which is what the check below looks up.
torch.fx.wrap("check_dim")


class _BatchNorm(TrackingNorm, torch.nn.modules.batchnorm._BatchNorm):
    method = Batch()
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
        skip_nonfinite: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._guard(skip_nonfinite)
        self.activation = kernels.known_activation(activation)

    def _check_input_dim(self, input: Tensor) -> None:
        check_dim(input, self._dims)

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        self._check_eps()
        if mask is lengths is None:
            y = self._at_once(input, (0,), counts=True)
            if y is not None:
                return y
            # Torch's layer reads its counter for a cumulative average, which cannot be written into a graph.
            if exporting() and not (self.training and self.momentum is None):
                return kernels.activate(self._by_torch(input), self.activation)
        options = {"activation": self.activation, "mask": mask, "lengths": lengths}
        return self._normalize(input, self.method, self.momentum, counts=True, **options)

    def _by_torch(self, input: Tensor) -> Tensor:
        """As torch's forward pass, which the exporters know."""
        mean, var, tracks = self.running_mean, self.running_var, self.training and self.track_running_stats
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running = (mean, var) if tracks or not self.training else (None, None)
        by_batch, momentum = self.training or mean is None, 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(input, *running, self.weight, self.bias, by_batch, momentum, eps_of(self))

    def _check_eps(self) -> None:
        eps = eps_of(self)
        if self.training and eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
        if eps < 0:
            raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")


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

    Under ``torch.func`` transforms (``vmap``, ``grad``, ``jacrev``) a training layer normalizes by the batch and moves
    only running averages that the transforms were given as arguments, one for each batch, as in an ensemble
    (``stack_module_state``). While a model is exported the layer computes by torch's own operator.

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
        skip_nonfinite: leave a batch whose statistics are not finite out of the running averages, count it in
            ``num_batches_skipped`` and warn once. Without it one such batch spoils them for ever, as in torch.

    Raises:
        ValueError: the input has another number of axes, or one value per channel in training.
        RuntimeError: the input's channels or dtype do not go with the parameters.

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


class LazyBatchNorm1d(LazyNorm, torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """:class:`BatchNorm1d` that learns ``num_features`` from its first input.

    Example:
        >>> layer = LazyBatchNorm1d()
        >>> _ = layer(torch.randn(8, 3))
        >>> layer
        BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(LazyNorm, torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """:class:`BatchNorm2d` that learns ``num_features`` from its first input.

    Example:
        >>> layer = LazyBatchNorm2d()
        >>> _ = layer(torch.randn(2, 3, 5, 5))
        >>> layer.num_features
        3
    """

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(LazyNorm, torch.nn.LazyBatchNorm3d, BatchNorm3d):
    """:class:`BatchNorm3d` that learns ``num_features`` from its first input.

    Example:
        >>> layer = LazyBatchNorm3d()
        >>> _ = layer(torch.randn(2, 3, 4, 4, 4))
        >>> layer.num_features
        3
    """

    cls_to_become = BatchNorm3d

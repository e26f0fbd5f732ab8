"""Instance normalization with torch's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normwise.errors import InputError
from normwise.functional import normalize


class _InstanceNorm(torch.nn.modules.instancenorm._InstanceNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)  # type: ignore[arg-type]
        self.activation = activation

    def forward(self, input: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        if mask is None and lengths is None:
            return super().forward(input)
        self._check_input_dim(input)
        axis = input.dim() - self._get_no_batch_dim()
        if input.size(axis) != self.num_features:
            raise InputError(f"expected {self.num_features} channels on axis {axis}, got {tuple(input.shape)}")
        if axis == 1:
            return self._apply_instance_norm(input, mask, lengths)
        mask, lengths = (None if t is None else t.unsqueeze(0) for t in (mask, lengths))
        return self._apply_instance_norm(input.unsqueeze(0), mask, lengths).squeeze(0)

    # torch's forward checks the input and adds a missing batch axis; only the computation is replaced.
    def _apply_instance_norm(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        use_input = self.training or not self.track_running_stats
        return normalize(
            input,
            "instance",
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            running_mean=self.running_mean,
            running_var=self.running_var,
            use_running=not use_input,
            momentum=0.0 if self.momentum is None else self.momentum,
            activation=self.activation,
            mask=mask,
            lengths=lengths,
        )


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """Instance normalization of (N, C, L) or (C, L); everything else as in :class:`InstanceNorm2d`.

    Example:
        >>> InstanceNorm1d(3)(torch.randn(8, 3, 9)).shape
        torch.Size([8, 3, 9])
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """Instance normalization of (N, C, H, W) or (C, H, W) (Ulyanov et al. 2016, arXiv 1607.08022), a drop-in.

    Formula: y = weight · (x − μ[n,c]) / √(σ²[n,c] + eps) + bias. With ``track_running_stats=True`` evaluation uses the
    running averages, which makes it a batch norm; that is torch's behaviour and rarely what is wanted.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the new batch in the running averages, if kept; ``None`` means 0.
        affine: whether ``weight`` and ``bias`` (C,) are learned; off by default, as in torch.
        track_running_stats: whether running averages are kept.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: whether ``bias`` is learned where ``affine`` is.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, fused into the layer.

    Raises:
        ValueError: the input has another number of axes, or a single spatial element, whose variance is 0.

    Example:
        >>> y = InstanceNorm2d(3)(torch.randn(2, 3, 5, 5))
        >>> y.mean((2, 3)).abs().max() < 1e-5
        tensor(True)
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W); everything else as in :class:`InstanceNorm2d`.

    Example:
        >>> InstanceNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
        torch.Size([2, 3, 4, 4, 4])
    """

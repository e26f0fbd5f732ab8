"""Instance normalization with torch's names."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise import kernels
from normwise.core.checks import refuse_nested
from normwise.core.route import exporting
from normwise.functional import normalize
from normwise.methods import Instance
from normwise.nn._eps import eps_of
from normwise.nn._state import LazyNorm, TrackingNorm, boundary

# The name in this module, which is what the forward pass below looks up.
torch.fx.wrap("normalize")


class _InstanceNorm(TrackingNorm, torch.nn.modules.instancenorm._InstanceNorm):
    method = Instance()

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
        skip_nonfinite: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)  # type: ignore[arg-type]
        self._guard(skip_nonfinite)
        self.activation = kernels.known_activation(activation)

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        unbatched = self._get_no_batch_dim()
        _check_input(input, unbatched, self.num_features, self.affine)
        if not self.training and self.track_running_stats and self.running_mean is self.running_var is None:
            raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
        # As in torch, averages that are no longer tracked are not used either.
        tracks = self.training and self.track_running_stats
        by_input = not (self.training or self.track_running_stats) and self.running_mean is not None
        if mask is lengths is None:
            if type(input) is Tensor and input.dim() > unbatched and not by_input:
                stored = not self.training and self.running_mean is not None
                y = None if tracks else self._at_once(input, (0 if stored else input.shape[1],), counts=False)
                if y is not None:
                    return y
            if exporting():
                return kernels.activate(self._by_torch(input, unbatched), self.activation)
        x: Any
        x, mask, lengths = (_with_batch_axis(t, input, unbatched) for t in (input, mask, lengths))
        options: dict[str, Any] = {"activation": self.activation, "mask": mask, "lengths": lengths}
        if by_input:
            y = normalize(x, self.method, weight=self.weight, bias=self.bias, eps=eps_of(self), **options)
            return _without_batch_axis(y, input, unbatched)
        # Torch's instance norm never counts its batches, and takes a momentum of None for 0.
        y = self._normalize(x, self.method, self.momentum, counts=False, **options)
        return _without_batch_axis(y, input, unbatched)

    def _by_torch(self, input: Tensor, unbatched: int) -> Tensor:
        """As torch's forward pass, which the exporters know."""
        x: Any = _with_batch_axis(input, input, unbatched)
        by_input = self.training or not self.track_running_stats
        running, momentum = (self.running_mean, self.running_var), 0.0 if self.momentum is None else self.momentum
        y = F.instance_norm(x, *running, self.weight, self.bias, by_input, momentum, eps_of(self))
        return _without_batch_axis(y, input, unbatched)


@torch.fx.wrap
def _check_input(x: Tensor, unbatched: int, num_features: int, affine: bool) -> None:
    """Refuse or, where nothing depends on them, warn of wrong sizes in torch's words."""
    refuse_nested(x)
    if x.dim() not in (unbatched, unbatched + 1):
        raise ValueError(f"expected {unbatched}D or {unbatched + 1}D input (got {x.dim()}D input)")
    axis = x.dim() - unbatched
    if x.shape[axis] == num_features:
        return
    if affine:
        raise ValueError(
            f"expected input's size at dim={axis} to match num_features ({num_features}), but got: {x.shape[axis]}."
        )
    warnings.warn(
        f"input's size at dim={axis} does not match num_features. You can silence this warning by not passing in "
        "num_features, which is not used because affine=False",
        stacklevel=4,
    )


@torch.fx.wrap
def _with_batch_axis(t: Tensor | None, input: Tensor, unbatched: int) -> Tensor | None:
    return t.unsqueeze(0) if t is not None and input.dim() == unbatched else t


@torch.fx.wrap
def _without_batch_axis(y: Tensor, input: Tensor, unbatched: int) -> Tensor:
    return y.squeeze(0) if input.dim() == unbatched else y


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
        skip_nonfinite: leave a batch whose statistics are not finite out of the running averages, count it in
            ``num_batches_skipped`` and warn once.

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


class LazyInstanceNorm1d(LazyNorm, torch.nn.LazyInstanceNorm1d, InstanceNorm1d):
    """:class:`InstanceNorm1d` that learns ``num_features`` from its first input, which must be a batch.

    Example:
        >>> layer = LazyInstanceNorm1d(affine=True)
        >>> _ = layer(torch.randn(2, 3, 9))
        >>> layer.num_features
        3
    """

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(LazyNorm, torch.nn.LazyInstanceNorm2d, InstanceNorm2d):
    """:class:`InstanceNorm2d` that learns ``num_features`` from its first input, which must be a batch.

    Example:
        >>> layer = LazyInstanceNorm2d(affine=True)
        >>> _ = layer(torch.randn(2, 3, 5, 5))
        >>> layer.num_features
        3
    """

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(LazyNorm, torch.nn.LazyInstanceNorm3d, InstanceNorm3d):
    """:class:`InstanceNorm3d` that learns ``num_features`` from its first input, which must be a batch.

    Example:
        >>> layer = LazyInstanceNorm3d(affine=True)
        >>> _ = layer(torch.randn(2, 3, 4, 4, 4))
        >>> layer.num_features
        3
    """

    cls_to_become = InstanceNorm3d

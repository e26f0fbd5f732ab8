"""Layers for the relatives of the six. Each takes (N, C, ...) with any number of spatial axes, and masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normwise import methods
from normwise.core.method import Method
from normwise.core.route import exporting
from normwise.errors import InputError
from normwise.functional import normalize, real_elements
from normwise.nn._state import boundary, checked_size
from normwise.nn.norm import Norm


class BatchRenorm(Norm, _BatchNorm):
    """Batch renormalization (Ioffe 2017, arXiv 1702.03275); see :class:`normwise.methods.BatchRenorm`.

    It starts as batch norm, and over the first ``warmup`` batches the limits grow linearly from (1, 0) to (``r_max``,
    ``d_max``), because running averages mean little at first.

    Args:
        num_features: C.
        r_max: the most by which the scale may differ from batch norm's, at least 1.
        d_max: the most by which the mean may differ, in standard deviations.
        warmup: batches until the limits are reached.
        **options: as for :class:`Norm`.

    Raises:
        InputError: limits that make no sense.

    Example:
        >>> BatchRenorm(3)(torch.randn(8, 3, 5, 5)).shape
        torch.Size([8, 3, 5, 5])
    """

    method: methods.BatchRenorm

    def __init__(
        self, num_features: int, r_max: float = 3.0, d_max: float = 5.0, warmup: int = 1000, **options: Any
    ) -> None:
        super().__init__(methods.BatchRenorm(r_max, d_max), num_features, **options)
        if r_max < 1 or d_max < 0 or warmup < 0:
            raise InputError(f"expected r_max >= 1, d_max >= 0 and warmup >= 0, got {r_max}, {d_max} and {warmup}")
        self.warmup = warmup

    def _method(self) -> Method:
        if not self.warmup or self.num_batches_tracked is None:
            return self.method
        grown, method = (self.num_batches_tracked / self.warmup).clamp(max=1), self.method
        return methods.BatchRenorm(1 + (method.r_max - 1) * grown, method.d_max * grown)


class GhostBatchNorm(Norm, _BatchNorm):
    """Ghost batch normalization (Hoffer et al. 2017, arXiv 1705.08741); see :class:`normwise.methods.GhostBatch`.

    The running averages follow the mean of the ghosts' moments, once a batch.

    Args:
        num_features: C.
        ghost_size: samples that share statistics, at least 2.
        **options: as for :class:`Norm`.

    Raises:
        InputError: a ghost of fewer than 2 samples.

    Example:
        >>> GhostBatchNorm(3, ghost_size=4)(torch.randn(8, 3, 5)).shape
        torch.Size([8, 3, 5])
    """

    def __init__(self, num_features: int, ghost_size: int = 32, **options: Any) -> None:
        if ghost_size < 2:
            raise InputError(f"ghost_size must be at least 2 samples, got {ghost_size}; for 1 use instance norm")
        super().__init__(methods.GhostBatch(ghost_size), num_features, **options)


class MeanOnlyBatchNorm(Norm, _BatchNorm):
    """Mean-only batch normalization, to go with weight norm (Salimans & Kingma 2016, arXiv 1602.07868).

    Example:
        >>> MeanOnlyBatchNorm(3)(torch.randn(8, 3)).mean(0).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(methods.MeanOnlyBatch(), num_features, **options)


class BatchInstanceNorm(Norm, _BatchNorm):
    """Batch-instance normalization (Nam & Kim 2018, arXiv 1805.07925); see :class:`normwise.methods.BatchInstance`.

    ``gate`` (C,) starts at 1, which is batch norm, and is kept within [0, 1]. The paper lets it learn faster than the
    rest.

    Example:
        >>> BatchInstanceNorm(3)(torch.randn(8, 3, 5, 5)).shape
        torch.Size([8, 3, 5, 5])
    """

    gate: torch.nn.Parameter

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(methods.BatchInstance(), num_features, **options)


class FilterResponseNorm(Norm):
    """Filter response normalization (Singh & Krishnan 2019, arXiv 1911.09737), and its thresholded activation.

    Formula: y = weight · x / √(mean(x²) + eps) + bias over each cell; with ``tlu=True`` then max(y, threshold), with a
    learned ``threshold`` (C,) that starts at 0, in place of the network's own ReLU.

    Args:
        num_features: C.
        eps: added to the mean square.
        tlu: whether the thresholded linear unit follows.
        **options: as for :class:`Norm`.

    Raises:
        InputError: ``tlu`` and another activation.

    Example:
        >>> FilterResponseNorm(3, tlu=True)(torch.randn(8, 3, 5, 5)).min() >= 0
        tensor(True)
    """

    def __init__(self, num_features: int, eps: float = 1e-6, *, tlu: bool = False, **options: Any) -> None:
        super().__init__(methods.FilterResponse(), num_features, eps, **options)
        if tlu and self.activation is not None:
            raise InputError(f"tlu is an activation itself: drop it, or activation={self.activation!r}")
        like: dict[str, Any] = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.threshold = torch.nn.Parameter(torch.zeros(num_features, **like)) if tlu else None

    def reset_parameters(self) -> None:
        """Set weight to 1, bias and threshold to 0."""
        super().reset_parameters()
        if self._parameters.get("threshold") is not None:
            torch.nn.init.zeros_(self.threshold)  # type: ignore[arg-type]

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``, and apply the threshold where there is one; padding stays 0."""
        y = super().forward(input, mask=mask, lengths=lengths)
        if self.threshold is None:
            return y
        y = torch.maximum(y, self.threshold.to(y.dtype).reshape(1, -1, *(1,) * (y.ndim - 2)))
        keep = real_elements(input, mask, lengths)
        return y if keep is None else torch.where(keep, y, 0)


class FrozenBatchNorm(torch.nn.Module):
    """Batch normalization by fixed statistics and a fixed affine: all four are buffers, nothing ever moves.

    Its ``state_dict`` has the keys of a batch norm, so that one loads. Neither ``train()`` nor an optimizer touches it.

    Args:
        num_features: C.
        eps: added to the variance.
        device: of the buffers.
        dtype: of the buffers.

    Example:
        >>> frozen = FrozenBatchNorm(3)
        >>> _ = frozen.load_state_dict(torch.nn.BatchNorm2d(3).state_dict())
        >>> list(frozen.parameters())
        []
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features, self.eps = checked_size(num_features), eps
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((num_features,), float(value), device=device, dtype=dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; exported, by torch's own operator."""
        if mask is None and lengths is None and exporting():
            stored = (self.running_mean, self.running_var, self.weight, self.bias)
            return torch.nn.functional.batch_norm(input, *stored, training=False, eps=self.eps)
        return normalize(
            input,
            methods.Batch(),
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            running_mean=self.running_mean,
            running_var=self.running_var,
            use_running=True,
            mask=mask,
            lengths=lengths,
        )

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"{self.num_features}, eps={self.eps}"

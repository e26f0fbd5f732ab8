"""Group normalization with torch's name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise import kernels
from normwise.core.last_axes import layer_norm
from normwise.core.route import at_once, exporting
from normwise.errors import InputError
from normwise.functional import normalize
from normwise.methods import Group, Layer, groups_for
from normwise.nn._axis import ChannelAxis
from normwise.nn._eps import Eps, eps_of
from normwise.nn._state import affine_of, boundary

# The name in this module, which is what the forward pass below looks up.
torch.fx.wrap("normalize")
torch.fx.wrap("layer_norm")


def check_groups(name: str, channels: int, num_groups: int) -> None:
    """Refuse a group count that does not divide the channels, and name one that does."""
    if num_groups >= 1 and channels % num_groups == 0:
        return
    choice = f": {groups_for(channels, max(num_groups, 1))} would do" if channels > 0 else ""
    raise InputError(f"{name} ({channels}) must be divisible by num_groups ({num_groups}){choice}")


class GroupNorm(torch.nn.GroupNorm):
    """Group normalization of (N, C, ...) (Wu & He 2018, arXiv 1803.08494), a drop-in for torch's class.

    Formula: y = weight · (x − μ[n,g]) / √(σ²[n,g] + eps) + bias with g the group of channel c. ``num_groups=1`` is
    layer norm over a convolutional map, ``num_groups=num_channels`` is instance norm.

    Args:
        num_groups: G, a divisor of C; :func:`groups_for` chooses one.
        num_channels: C.
        eps: added to the variance.
        affine: whether ``weight`` and ``bias`` (C,) are learned.
        device: of the parameters.
        dtype: of the parameters.
        bias: whether ``bias`` is learned where ``affine`` is.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, fused into the layer.

    A group of one element has variance 0 and comes out as ``bias``, whatever the data. For several samples torch
    computes that, and so does this layer; for one it is an error.

    Raises:
        ValueError: C is not divisible, or there is one sample and a group holds one element.
        RuntimeError: the input has fewer than two axes.

    Example:
        >>> GroupNorm(2, 6)(torch.randn(4, 6, 5, 5)).shape
        torch.Size([4, 6, 5, 5])
    """

    activation: str | None = None
    eps = Eps()

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_groups("num_channels", num_channels, num_groups)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)
        self.activation = kernels.known_activation(activation)

    @property
    def method(self) -> Group:
        """The method, with the layer's options."""
        return Group(self.num_groups)

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        if mask is lengths is None:
            affine = affine_of(self)
            if affine is not None and type(input) is Tensor:
                y = at_once(input, (self.num_groups,), *affine, eps_of(self), self.activation)
                if y is not None:
                    return y
            if exporting():
                parameters = (self.weight, self.bias, eps_of(self))
                return kernels.activate(F.group_norm(input, self.num_groups, *parameters), self.activation)
        return normalize(
            input,
            self.method,
            weight=self.weight,
            bias=self.bias,
            eps=eps_of(self),
            activation=self.activation,
            mask=mask,
            lengths=lengths,
        )


class AnyLayerNorm(ChannelAxis, GroupNorm):
    """Layer normalization that finds its channels (Ba et al. 2016, arXiv 1607.06450): of maps, and of tokens.

    Where C is the size of axis 1, as in convolutional maps (N, C, ...), this is ``GroupNorm(1, C)``, over all channels
    and positions of a sample; where it is that of the last axis, as in transformers (N, ..., C), ``LayerNorm(C)``, over
    the channels of each position.

    Args:
        num_features: C.
        eps: added to the variance.
        affine: whether ``weight`` and ``bias`` (C,) are learned.
        device: of the parameters.
        dtype: of the parameters.
        **options: ``bias`` and ``activation`` as for :class:`GroupNorm`.

    Raises:
        InputError: both axes have the size C, and what the layer met before does not say which it is.
        RuntimeError: neither has.

    Example:
        >>> norm = AnyLayerNorm(6)
        >>> tokens, maps = torch.randn(2, 5, 6), torch.randn(2, 6, 5, 5)
        >>> torch.testing.assert_close(norm(tokens), torch.nn.LayerNorm(6)(tokens))
        >>> torch.testing.assert_close(norm(maps), torch.nn.GroupNorm(1, 6)(maps))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(1, num_features, eps, affine, device, dtype, **options)

    @property
    def method(self) -> Layer:  # type: ignore[override]
        """The method, with the layer's options."""
        return _LAYER

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        if input.ndim <= 2 or self._channel_axis(input, self.num_channels) == 1:
            return super().forward(input, mask, lengths)
        if mask is lengths is None:
            parameters = (self.weight, self.bias, eps_of(self))
            return layer_norm(input, (self.num_channels,), *parameters, self.activation)
        options: dict[str, Any] = {"weight": self.weight, "bias": self.bias, "mask": mask, "lengths": lengths}
        return normalize(input, _LAYER, axis=-1, eps=eps_of(self), activation=self.activation, **options)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"{self.num_channels}, eps={eps_of(self)}, affine={self.affine}, bias={self.bias is not None}"


_LAYER = Layer()

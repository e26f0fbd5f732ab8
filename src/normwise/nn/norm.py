"""A layer for any method, with what the method learns and, where it keeps any, running averages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normwise import kernels
from normwise.core.method import Method
from normwise.core.moments import transforming
from normwise.methods import method_named
from normwise.nn._axis import ChannelAxis, checked_axis
from normwise.nn._eps import Eps
from normwise.nn._state import TrackingNorm, boundary, checked_size


class Norm(ChannelAxis, TrackingNorm):
    """A layer of any method, for (N, C, ...) or (N, ..., C) with any number of spatial axes.

    Formula: the method's, see its class; ``weight`` and ``bias`` (C,) go with it as with torch's layers. The method's
    learned tensors are parameters of the layer under their names. A method over samples keeps running averages, and is
    found by what looks for batch norms (``update_bn``, weight-decay filters).

    Args:
        method: a :class:`normwise.methods.Method`, its class, or a name with options as ``"group(num_groups=8)"``.
        num_features: C.
        eps: added to the variance.
        momentum: weight of the *new* batch in the running averages; ``None`` for their plain mean over all batches.
        affine: whether ``weight`` and ``bias`` are learned.
        track_running_stats: whether running averages are kept, where the method has any.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: whether ``bias`` is learned where ``affine`` is.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, fused into the layer.
        skip_nonfinite: as in :class:`normwise.nn.BatchNorm2d`.
        axis: where the channels stand, 1 or -1. ``None`` is 1, and for methods that may normalize each token by itself
            (``per_token``) the axis of size C; an input with two such axes is refused, unless the layer has met others.

    Raises:
        InputError: there is no such method, option or axis, or no such number of channels.

    Example:
        >>> from normwise.methods import BatchInstance
        >>> layer = Norm(BatchInstance(), 3)
        >>> [name for name, _ in layer.named_parameters()]
        ['weight', 'bias', 'gate']
        >>> layer(torch.randn(8, 3, 5, 5)).shape
        torch.Size([8, 3, 5, 5])
    """

    method: Method
    eps = Eps(guards=True)

    def __new__(cls, method: Any = None, *args: Any, **options: Any) -> Norm:
        """Make a batch norm by class of what is one by method."""
        over_samples = cls is Norm and method is not None and method_named(method).over_samples
        return super().__new__(NormOverSamples if over_samples else cls)

    def __init__(
        self,
        method: str | Method | type[Method],
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
        axis: int | None = None,
    ) -> None:
        self.method = method_named(method)
        self.axis = 1 if axis is None and self.method.per_token is False else checked_axis(axis)
        tracks = track_running_stats and self.method.running
        super().__init__(checked_size(num_features), eps, momentum, affine, tracks, device, dtype, bias=bias)
        self._guard(skip_nonfinite)
        self.activation = kernels.known_activation(activation)
        for name, one in self.method.learned.items():
            values = torch.full(one.shape(num_features), one.start, device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(values))

    def reset_parameters(self) -> None:
        """Set all that is learned to its start, weight to 1 and bias to 0, and forget the running averages."""
        super().reset_parameters()
        if self.weight is not None and self.method.weight_start != 1:
            torch.nn.init.constant_(self.weight, self.method.weight_start)
        for name, one in self.method.learned.items():
            if name in self._parameters:
                torch.nn.init.constant_(self._parameters[name], one.start)  # type: ignore[arg-type]

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        options: dict[str, Any] = {"activation": self.activation, "mask": mask, "lengths": lengths, **self._learned()}
        if self.axis != 1:
            options["axis"] = self._channel_axis(input, self.num_features)
        return self._normalize(input, self._method(), self.momentum, counts=True, **options)

    def _method(self) -> Method:
        """The method for this batch."""
        return self.method

    def _learned(self) -> dict[str, Tensor]:
        """The method's learned tensors, within their bounds."""
        found = {name: getattr(self, name) for name in self.method.learned}
        if self.training:
            for name, t in found.items():
                bounds = self.method.learned[name].within
                if bounds is not None and transforming():
                    # The value is clipped all the same; its gradient is as that of one within.
                    found[name] = t + (t.clamp(*bounds) - t).detach()
                elif bounds is not None:
                    # Clipping after each step would need a hook on the optimizer. ``.data``, because a second forward
                    # pass before the backward pass finds it clipped already and must not count as a change.
                    t.data.clamp_(*bounds)
        return found

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        told = super().extra_repr()
        return f"{self.method}, {told}" if type(self) in (Norm, NormOverSamples) else told


class NormOverSamples(Norm, _BatchNorm):
    """What :class:`Norm` is for methods over samples."""

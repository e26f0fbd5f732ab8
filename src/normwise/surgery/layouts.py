"""Layers that can take the place of others: for any number of axes, channels last, with the old layer's activation.

Their state_dict keys are those of the plain layers, so that a converted model's checkpoint differs from the original's
only where the method differs. Each takes the plain layer's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from normwise import nn
from normwise.functional import normalize
from normwise.methods import METHODS, Method, NoNorm
from normwise.nn.batchnorm import _BatchNorm
from normwise.nn.factory import classes_of
from normwise.nn.instancenorm import _InstanceNorm

# By its name in this module, where the forward passes below look it up.
torch.fx.wrap("normalize")


class Adapted(torch.nn.Module):
    """What the layers of this module share: ``layout`` and the children that follow the normalization.

    ``layout`` is ``"first"`` for (N, C, ...) or ``"last"`` for (N, ..., C). A subclass says in ``_compute`` how it
    normalizes (N, C, ...).
    """

    layout: str = "first"

    def adapt(self, layout: str, tail: Iterable[tuple[str, torch.nn.Module]] = ()) -> Adapted:
        """Set the layout, and the modules that follow under the names they had."""
        self.layout = layout
        for name, module in tail:
            self.add_module(name, module)
        return self

    def forward(self, input: Tensor, **masks: Tensor | None) -> Tensor:
        """Normalize ``input``, then apply what follows."""
        y = self._compute(_channels_first(input, self.layout), **masks)
        y = _as_before(y, input, self.layout)
        for module in self.tail():
            y = module(y)
        return y

    def tail(self) -> Iterable[torch.nn.Module]:
        """What follows the normalization."""
        return self.children()

    def _compute(self, x: Tensor, **masks: Tensor | None) -> Tensor:
        return super().forward(x, **masks)


@torch.fx.wrap
def _channels_first(x: Tensor, layout: str) -> Tensor:
    """(N, ..., C) as (N, C, L); (N, C) has no axis to move."""
    if layout == "first" or x.ndim == 2:
        return x
    return x.flatten(1, -2).transpose(1, 2)


@torch.fx.wrap
def _as_before(y: Tensor, x: Tensor, layout: str) -> Tensor:
    if layout == "first" or x.ndim == 2:
        return y
    return y.transpose(1, 2).reshape(x.shape)


class AtAxis(Adapted):
    """What takes its channels where they are: layers that treat each position by itself."""

    axis: int | None

    def adapt(self, layout: str, tail: Iterable[tuple[str, torch.nn.Module]] = ()) -> Adapted:
        """Set the layout, and the modules that follow under the names they had."""
        self.axis = -1 if layout == "last" else 1
        return super().adapt(layout, tail)

    def forward(self, input: Tensor, **masks: Tensor | None) -> Tensor:
        """Normalize ``input``, then apply what follows."""
        y = self._compute(input, **masks)
        for module in self.tail():
            y = module(y)
        return y


class LayerNormNd(AtAxis, nn.LayerNorm):
    """Layer normalization of each position, over its channels."""

    def __init__(self, num_features: int, affine: bool = True, **options: Any) -> None:
        super().__init__(num_features, elementwise_affine=affine, **options)


class RMSNormNd(AtAxis, nn.RMSNorm):  # type: ignore[misc]
    """Root-mean-square normalization of each position, over its channels."""

    def __init__(self, num_features: int, affine: bool = True, **options: Any) -> None:
        super().__init__(num_features, elementwise_affine=affine, **options)


class BatchNormNd(Adapted, _BatchNorm):
    """Batch normalization of any number of axes, none but the channels included."""

    _dims = (2, 3, 4, 5)


class InstanceNormNd(Adapted, _InstanceNorm):
    """Instance normalization of any number of axes; always with a batch axis: (N, C) is refused, it is not (C, L)."""

    def _compute(self, x: Tensor, **masks: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"activation": self.activation, **masks}
        return self._normalize(x, self.method, 0.0 if self.momentum is None else self.momentum, False, **options)


class GroupNormNd(Adapted, nn.GroupNorm):
    """Group normalization where channels may come last; with one group, layer normalization."""


class SwitchableNormNd(Adapted, nn.SwitchableNorm):
    """Switchable normalization of any number of axes."""

    _dims = (2, 3, 4, 5)


# Equal to nothing: torch's encoder layers compute two layer norms of the same eps by themselves.
NO_EPS = math.nan


class ChannelAffine(Adapted):
    """What is left of a normalization layer when the normalization is taken out: y = weight · x + bias, per channel.

    It keeps a network's function where that can be kept (an evaluated batch norm *is* such a map), and the place where
    another method can be put back. ``method`` is ``"none"``, or ``"weight"`` where weight norm took over.
    """

    eps = NO_EPS

    def __init__(
        self,
        num_features: int,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        method: str = NoNorm.name,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.activation = activation
        self.method = method
        kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = torch.nn.Parameter(torch.ones(num_features, **kwargs)) if affine else None
        self.bias = torch.nn.Parameter(torch.zeros(num_features, **kwargs)) if affine and bias else None

    def _compute(self, x: Tensor, **masks: Tensor | None) -> Tensor:
        if self.weight is None and self.bias is None and self.activation is None:
            return x
        return normalize(x, NoNorm(), weight=self.weight, bias=self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"{self.num_features}, affine={self.weight is not None}, method={self.method!r}"


class OwnNormNd(Adapted):
    """A layer of one's own where channels come last, or with what the old layer did afterwards."""

    eps = NO_EPS

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def tail(self) -> Iterable[torch.nn.Module]:
        """What follows the normalization."""
        return (module for module in self.children() if module is not self.layer)

    def _compute(self, x: Tensor, **masks: Tensor | None) -> Tensor:
        return self.layer(x, **masks)


def core(module: torch.nn.Module) -> torch.nn.Module:
    """The layer that normalizes."""
    return module.layer if isinstance(module, OwnNormNd) else module


# What takes the place of the layers of a class. The relatives, which take any number of axes already, need no more.
_FOR: dict[type[torch.nn.Module], type[Adapted]] = {
    _BatchNorm: BatchNormNd,
    _InstanceNorm: InstanceNormNd,
    nn.GroupNorm: GroupNormNd,
    nn.RMSNorm: RMSNormNd,
    nn.SwitchableNorm: SwitchableNormNd,
    torch.nn.Identity: ChannelAffine,
}


def _adapted(method: Method) -> type[Adapted]:
    """The class that takes another layer's place by a method; those of the relatives are made here."""
    plain = classes_of(method)[0]
    known = next((adapted for kind, adapted in _FOR.items() if issubclass(plain, kind)), None)
    if known is not None:
        return known
    name = f"{plain.__name__}Nd"
    base = Adapted if method.per_token is False else AtAxis
    doc = f"{plain.__name__} where channels may come last, and with what the old layer did afterwards."
    # A name in the module, so that layers pickle.
    made = globals()[name] = type(name, (base, plain), {"__module__": __name__, "__doc__": doc})
    return made


CLASSES = {name: _adapted(method) for name, method in METHODS.items()}

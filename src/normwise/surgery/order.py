"""What a layer is to become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normwise.methods import METHODS, Method, traits_of
from normwise.nn.own import Given, as_method
from normwise.surgery.description import NormLayer


@dataclass(frozen=True)
class Order:
    """What to build: the method, options of its layers, and how a switchable mix is to start.

    ``affine`` asks for a weight and bias even where the old layer has none. ``share`` is the old method's initial share
    in a switchable mix. ``own`` is the method itself if it is one's own, ``to`` being what it is called.
    """

    to: str
    options: Mapping[str, Any] = field(default_factory=dict)
    affine: bool = False
    share: float | None = None
    own: Given | None = None

    @property
    def traits(self) -> Method:
        """The method; where one's own says nothing of itself, one without traits."""
        if self.own is not None:
            return as_method(self.own) or traits_of(self.to)
        return METHODS[self.to].taking(self.options)[0]


def by_position(layer: NormLayer, order: Order) -> bool:
    """Whether the new layer treats each position by itself."""
    if order.traits.per_token is None:
        return layer.channel_axis == -1 or layer.per_token
    return order.traits.per_token

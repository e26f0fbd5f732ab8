"""Where a layer stands: what its input is, and how many values stand behind each of its statistics."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from normwise.methods import Method, elements_behind
from normwise.surgery.description import NormLayer


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a layer is called with."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    return x if isinstance(x, Tensor) else None


def sizes_of(layer: NormLayer, shape: list[int]) -> tuple[int, int, list[int]]:
    """Samples, channels and spatial sizes of a layer's input."""
    if layer.channel_axis == -1:
        return (shape[0] if len(shape) > 1 else 1), shape[-1], shape[1:-1]
    if layer.takes_single(len(shape)):
        return 1, shape[0], shape[1:]
    return shape[0], (shape[1] if len(shape) > 1 else 1), shape[2:]


def elements_of_layer(layer: NormLayer, module: nn.Module, samples: int, spatial: list[int]) -> int | None:
    """How many values stand behind the statistic that a layer divides by, in training, on one device."""
    channels = layer.channels
    own = getattr(module, "method", None)
    method = own if isinstance(own, Method) else layer.traits
    if not method.pools:
        return None
    if layer.per_token:
        # Layers over several trailing axes count all of them; one without parameters may not know its channels.
        return math.prod(getattr(module, "normalized_shape", (channels,))) or None
    samples = min(samples, getattr(method, "ghost_size", samples))
    counts = elements_behind(samples, max(channels, 1), math.prod(spatial), layer.num_groups or 1)
    if method.rests_on is not None:
        return counts[method.rests_on]
    # Members of a single element take no part.
    members = [counts[pool] for pool in method.pools]
    return min((n for n in members if n > 1), default=max(members))

"""Where a layer stands: what its input is, and how many values stand behind each of its statistics."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from normwise.methods import METHODS, Inputs, elements_behind
from normwise.surgery.description import NormLayer

# Methods outside METHODS, and those that take the statistic of one pool although they are defined for any input.
_POOL = {"rms": "layer", "conditional": "instance", "batch_instance": "instance", "filter_response": "instance"}


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a layer is called with."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    return x if isinstance(x, Tensor) else None


def sizes_of(layer: NormLayer, shape: list[int]) -> tuple[int, int, list[int]]:
    """Samples, channels and spatial sizes of a layer's input."""
    if layer.channel_axis == -1:
        return (shape[0] if len(shape) > 1 else 1), shape[-1], shape[1:-1]
    if layer.method == "instance" and layer.dim is not None and len(shape) == layer.dim + 1:
        return 1, shape[0], shape[1:]
    return shape[0], (shape[1] if len(shape) > 1 else 1), shape[2:]


def elements_of_layer(layer: NormLayer, module: nn.Module, samples: int, spatial: list[int]) -> int | None:
    """How many values stand behind the statistic that a layer divides by, in training, on one device."""
    channels = layer.channels
    if layer.per_token:
        # Layers over several trailing axes count all of them.
        return math.prod(getattr(module, "normalized_shape", (channels,)))
    if layer.method == "ghost_batch":
        samples = min(samples, getattr(module, "ghost_size", samples))
    counts = elements_behind(Inputs(num_groups=layer.num_groups or 1), samples, max(channels, 1), math.prod(spatial))
    if layer.method == "switchable":
        # Members of a single element take no part.
        members = [counts[pool] for pool in getattr(module, "over", ("instance", "layer", "batch"))]
        return min((n for n in members if n > 1), default=max(members))
    row = METHODS.get(layer.method)
    pool = _POOL.get(layer.method) or (row.rests_on if row is not None else None)
    return None if pool is None else counts[pool]

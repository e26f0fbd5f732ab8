"""Where a layer stands: what its input is, and how many values stand behind each of its statistics."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from normwise.methods import METHODS, Inputs, elements_behind
from normwise.surgery.layers import NormLayer

# Methods outside METHODS, and those that take the statistic of one pool although they are defined for any input.
_POOL = {"rms": "layer", "conditional": "instance", "batch_instance": "instance", "filter_response": "instance"}


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a layer is called with.

    Args:
        args: of a forward hook.
        kwargs: of a forward hook.

    Returns:
        The first argument; ``None`` where that is no tensor.

    Example:
        >>> import torch
        >>> input_of((), {"input": torch.zeros(2)}).shape
        torch.Size([2])
    """
    x = args[0] if args else next(iter(kwargs.values()), None)
    return x if isinstance(x, Tensor) else None


def sizes_of(layer: NormLayer, shape: list[int]) -> tuple[int, int, list[int]]:
    """Samples, channels and spatial sizes of a layer's input.

    Args:
        layer: its description.
        shape: of the input.

    Returns:
        ``(N, C, spatial)``; N is 1 for an unbatched input.

    Example:
        >>> from normwise.surgery.layers import describe
        >>> sizes_of(describe(nn.BatchNorm2d(3)), [8, 3, 4, 5])
        (8, 3, [4, 5])
        >>> sizes_of(describe(nn.LayerNorm(6)), [8, 10, 6])
        (8, 6, [10])
    """
    if layer.channel_axis == -1:
        return (shape[0] if len(shape) > 1 else 1), shape[-1], shape[1:-1]
    if layer.method == "instance" and layer.dim is not None and len(shape) == layer.dim + 1:
        return 1, shape[0], shape[1:]
    return shape[0], (shape[1] if len(shape) > 1 else 1), shape[2:]


def elements_of_layer(layer: NormLayer, module: nn.Module, samples: int, spatial: list[int]) -> int | None:
    """How many values stand behind the statistic that a layer divides by, in training, on one device.

    Args:
        layer: its description.
        module: the layer.
        samples: rows of axis 0.
        spatial: sizes of the other axes.

    Returns:
        The number, of a mix the smallest member's; ``None`` for a layer that takes no statistic.

    Example:
        >>> from normwise.surgery.layers import describe
        >>> norm = nn.GroupNorm(2, 8)
        >>> elements_of_layer(describe(norm), norm, samples=4, spatial=[3, 3])
        36
    """
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

"""The lines of Python that put a method into a model, and what its layers must be told there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from normwise.advice.records import Exemption
from normwise.advice.situation import Situation

# A group of fewer values than this says little but the signs of what is in it.
GROUP_VALUES = 8
# The usual number of groups (Wu & He 2018, arXiv 1803.08494).
GROUPS = 32


def options_for(method: str, situation: Situation) -> dict[str, Any]:
    """What a method's layers are to be told in this situation, beyond their defaults.

    Group norm gets fewer groups where the usual 32 would leave less than eight values to a group. A switchable mix
    leaves out the batch where a step sees one sample (so its paper says), and instances where they are single values.

    Args:
        method: its name.
        situation: with its places.

    Returns:
        Options for :func:`normwise.convert` and :func:`normwise.norm_layer`.

    Example:
        >>> from normwise.advice.situation import Place
        >>> vectors = Situation("mlp", ["mlp"], 4, places=[Place("1", 64, [], 4)])
        >>> options_for("group", vectors), options_for("switchable", vectors)
        ({'num_groups': 8}, {'over': ['layer', 'batch']})
    """
    places = [p for p in situation.places if not p.per_token]
    if not places:
        return {}
    if method == "group" and any(p.values("group", usual_groups(p.channels)) < GROUP_VALUES for p in places):
        return {"num_groups": _groups([p.channels for p in places], min(p.values("layer") for p in places))}
    if method == "switchable":
        over = ["instance", "layer", "batch"]
        if situation.few == 1:
            over.remove("batch")
        if all(p.values("instance") == 1 for p in places):
            over.remove("instance")
        return {"over": over} if len(over) < 3 else {}
    return {}


def usual_groups(channels: int) -> int:
    """The groups that a layer takes by itself: 32, or the divisor next to it that leaves two channels to a group."""
    divisors = [g for g in range(1, max(channels // 2, 1) + 1) if channels % g == 0]
    return min(divisors, key=lambda g: (abs(g - GROUPS), -g))


def _groups(channels: Sequence[int], values: int) -> int:
    """The most groups that divide all widths, leave two channels to each and enough values to the smallest."""
    common, most = math.gcd(*channels), max(min(channels) // 2, 1)
    return max(g for g in range(1, most + 1) if common % g == 0 and (g == 1 or values // g >= GROUP_VALUES))


def code_for(method: str, options: dict[str, Any], exemptions: Sequence[Exemption], situation: Situation) -> str:
    """The lines that put a method into a model.

    Args:
        method: its name.
        options: of its layers.
        exemptions: the places that get another method.
        situation: the model's.

    Returns:
        Python, which assumes ``model``.

    Example:
        >>> bare = Situation("conv", ["conv"], batch_size=8)
        >>> code_for("weight", {}, [], bare)
        'normwise.weight_normalize(model)'
        >>> code_for("group", {"num_groups": 4}, [], Situation("conv", ["conv"], 8, current=["batch"]))
        'normwise.convert(model, "group", num_groups=4)'
    """
    told = "".join(f", {key}={value!r}" for key, value in options.items())
    if not situation.current:
        return _for_bare(method, told, situation)
    lines = []
    there = situation.current == [method] and not options
    if there and not exemptions:
        lines.append("# the model uses it already")
    elif not there:
        rest = f", where=lambda name, layer: name not in {_names(exemptions)}" if exemptions else ""
        lines.append(f'normwise.convert(model, "{method}"{rest}{told})')
    for use in dict.fromkeys(e.use for e in exemptions):
        places = _names([e for e in exemptions if e.use == use])
        lines.append(f'normwise.convert(model, "{use}", where=lambda name, layer: name in {places})')
    if situation.devices > 1 and method in {"batch", "switchable"}:
        lines.append("normwise.sync(model)")
    return "\n".join(lines)


def _names(exemptions: Sequence[Exemption]) -> str:
    return "{" + ", ".join(repr(e.place) for e in exemptions) + "}"


def _for_bare(method: str, told: str, situation: Situation) -> str:
    """For a model without normalization: nothing to convert, so what to write where."""
    if method == "none":
        return "# the model as it is"
    if method == "weight":
        return "normwise.weight_normalize(model)"
    if method == "layer" and situation.architecture == "recurrent":
        return "# in the place of nn.LSTM and nn.GRU: normwise.nn.LayerNormLSTM, normwise.nn.LayerNormGRU"
    where = "# norm(channels) behind each hidden convolution or linear layer"
    return f'norm = normwise.norm_layer("{method}"{told})  {where}'

"""The lines of Python that put a method into a model, and what its layers must be told there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from normwise.advice.records import Exemption
from normwise.advice.situation import Place, Situation
from normwise.pools import groups_for

# A group of fewer values than this says little but the signs of what is in it.
GROUP_VALUES = 8

# The methods whose statistics processes can share.
OVER_SAMPLES = {"batch", "switchable"}

# The methods that normalize each token by itself.
OF_TOKENS = ("layer", "rms", "dyt", "derf")

# What an LSTM or GRU of torch is made with.
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


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
    if method == "group" and any(p.values("group", groups_for(p.channels)) < GROUP_VALUES for p in places):
        return {"num_groups": _groups([p.channels for p in places], min(p.values("layer") for p in places))}
    if method == "switchable":
        over = ["instance", "layer", "batch"]
        if situation.few == 1:
            over.remove("batch")
        if all(p.values("instance") == 1 for p in places):
            over.remove("instance")
        return {"over": over} if len(over) < 3 else {}
    return {}


def _groups(channels: Sequence[int], values: int) -> int:
    """The most groups that divide all widths, leave two channels to each and enough values to the smallest."""
    common, most = math.gcd(*channels), max(min(channels) // 2, 1)
    return max(g for g in range(1, most + 1) if common % g == 0 and (g == 1 or values // g >= GROUP_VALUES))


def code_for(method: str, options: dict[str, Any], exemptions: Sequence[Exemption], situation: Situation) -> str:
    """The lines that put a method into a model.

    Args:
        method: its name, or ``"as_is"``.
        options: of its layers.
        exemptions: the places that get another method.
        situation: the model's.

    Returns:
        Python, which assumes ``model`` and changes it; a comment where nothing is to change.

    Example:
        >>> bare = Situation("conv", ["conv"], batch_size=8)
        >>> code_for("weight", {}, [], bare)
        'normwise.weight_normalize(model)'
        >>> code_for("group", {"num_groups": 4}, [], Situation("conv", ["conv"], 8, current=["batch"]))
        'normwise.convert(model, "group", num_groups=4)'
    """
    told = "".join(f", {key}={value!r}" for key, value in options.items())
    there = method == "as_is" or (situation.current or ["none"]) == [method]
    if there and not options and not exemptions:
        lines = ["# the model stays as it is"]
    elif not situation.current:
        return _into_bare(method, told, exemptions, situation)
    else:
        lines = []
        if not there or options:
            rest = f", where=lambda name, layer: name not in {_names(exemptions)}" if exemptions else ""
            lines.append(f'normwise.convert(model, "{method}"{rest}{told})')
        for use in dict.fromkeys(e.use for e in exemptions):
            places = _names([e for e in exemptions if e.use == use])
            lines.append(f'normwise.convert(model, "{use}", where=lambda name, layer: name in {places})')
    return "\n".join(lines + _shared(method, situation))


def _shared(method: str, situation: Situation) -> list[str]:
    """What processes need that train together with a method over samples."""
    return ["normwise.sync(model)"] if situation.devices > 1 and method in OVER_SAMPLES else []


def _names(exemptions: Sequence[Exemption]) -> str:
    return "{" + ", ".join(repr(e.place) for e in exemptions) + "}"


def _into_bare(method: str, told: str, exemptions: Sequence[Exemption], situation: Situation) -> str:
    """For a model without normalization: put each layer and a norm of its output in the place of the layer."""
    if method == "weight":
        return "normwise.weight_normalize(model)"
    lines = ["import torch", "import normwise", ""]
    elsewhere = {e.place: e.use for e in exemptions}
    behind = [(p, elsewhere.get(p.name, method)) for p in situation.places]
    for p, use in behind:
        if use != "none":
            norm = _norm(use, told if use == method else "", p)
            lines.append(_instead(p.name, f"torch.nn.Sequential(model.get_submodule({p.name!r}), {norm})"))
    if method == "layer":
        for name, kind in situation.closed.items():
            told = ", ".join(f"{of}=old.{of}" for of in _RECURRENT)
            lines += [f"old = model.get_submodule({name!r})", _instead(name, f"normwise.nn.LayerNorm{kind}({told})")]
    return "\n".join(lines + _shared(method, situation))


def _norm(method: str, told: str, place: Place) -> str:
    if place.per_token:
        return f'normwise.norm_layer("{method}", axis=-1)({place.channels})'
    dim = max(len(place.spatial), 1)
    return f'normwise.norm_layer("{method}", dim={dim}{told})({place.channels})'


def _instead(name: str, new: str) -> str:
    # The model itself can be such a layer, which nothing but the variable holds.
    return f"model.set_submodule({name!r}, {new})" if name else f"model = {new}"

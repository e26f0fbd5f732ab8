"""Checkpoints of the published switchable norm, brought to our names, shapes and conventions.

What is known of them: weight and bias are (1, C, 1, 1), 1d (1, C), 3d (1, C, 1, 1, 1); the running averages are
(1, C, 1), 1d (1, C), and started at 0; mixing weights stand in the order instance, layer, batch, without batch where
that was left out, and layer, batch in 1d; the instance variance is unbiased. Anything else is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from normwise.errors import DataError, InputError, NormwiseWarning
from normwise.methods import Switchable
from normwise.nn._checks import model_given
from normwise.nn._loading import load_tensors
from normwise.nn.switchable import SwitchableNorm, switchable_layers

_KEYS = {"weight", "bias", "mean_weight", "var_weight", "running_mean", "running_var"}
# Spatial axes and number of mixing weights → the members, in the published order.
_ALL = Switchable.over
_MEMBERS = {(0, 2): _ALL[1:], (2, 2): _ALL[:2], (2, 3): _ALL, (3, 2): _ALL[:2], (3, 3): _ALL}

Source = str | os.PathLike[str] | Mapping[str, Any]


def read_published(source: Source) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Read a published checkpoint into our names and shapes.

    Args:
        source: a file (read with ``weights_only=True``) or what was in it: a state dict, or one under ``state_dict``.

    Returns:
        The state dict, without ``module.`` before its names, and the members of each switchable layer by its name.

    Raises:
        DataError: the file cannot be read, or holds something that is not known of published checkpoints.

    Example:
        >>> one = torch.ones(1, 4, 1, 1)
        >>> checkpoint = {"module.n.weight": one, "module.n.bias": one, "module.n.mean_weight": torch.ones(2)}
        >>> state, members = read_published({"state_dict": checkpoint | {"module.n.var_weight": torch.ones(2)}})
        >>> members, state["n.weight"].shape
        ({'n': ('instance', 'layer')}, torch.Size([4]))
    """
    state = _without_prefix(_tensors(source))
    layers = sorted({name.rpartition(".")[0] for name in state if name.rpartition(".")[2] == "mean_weight"})
    if not layers:
        raise DataError("the checkpoint holds no switchable layer: none of its names ends in 'mean_weight'")
    members = {}
    for layer in layers:
        dot = f"{layer}." if layer else ""
        entries = {name: value for name, value in state.items() if name.rpartition(".")[0] == layer}
        own = {name[len(dot) :]: value for name, value in entries.items()}
        members[layer], converted = _converted(layer, own)
        for name in entries:
            del state[name]
        state |= {dot + key: value for key, value in converted.items()}
    return state, members


def load_published(model: torch.nn.Module, source: Source, *, momentum: float | None = None) -> list[str]:
    """Load a published checkpoint into a model built with our switchable layers, so that it computes the same.

    Each switchable layer must mix the members that the checkpoint's does, in any order. Its ``variance`` becomes
    ``"official"``. A checkpoint does not record the momentum: it matters only if training goes on.

    Args:
        model: has the checkpoint's architecture; changed in place.
        source: as in :func:`read_published`.
        momentum: the published setting, the fraction of the running averages that is *kept* (0.9 for the 2d layer,
            0.997 for the 1d and 3d ones): the layers get torch's, 1 minus it. Default: the layers keep theirs.

    Returns:
        The names of the switchable layers that were loaded.

    Raises:
        DataError: the checkpoint cannot be read, or does not fit the model; the model is left as it was.
        InputError: a momentum outside 0 to 1.

    Example:
        >>> from normwise.nn import SwitchableNorm2d
        >>> entry = {"weight": torch.ones(1, 4, 1, 1), "bias": torch.zeros(1, 4, 1, 1)}
        >>> entry |= {"mean_weight": torch.ones(3), "var_weight": torch.ones(3)}
        >>> entry |= {"running_mean": torch.zeros(1, 4, 1), "running_var": torch.ones(1, 4, 1)}
        >>> model = torch.nn.Sequential(SwitchableNorm2d(4))
        >>> load_published(model, {f"0.{key}": value for key, value in entry.items()}, momentum=0.9)
        ['0']
        >>> model[0].variance, round(model[0].momentum, 3)
        ('official', 0.1)
    """
    if momentum is not None and not 0 <= momentum <= 1:
        raise InputError(f"momentum is the kept fraction, 0 to 1, got {momentum!r}")
    model_given(model, "load_published")
    state, members = read_published(source)
    layers = dict(switchable_layers(model))
    missing, foreign = sorted(set(layers) - set(members)), sorted(set(members) - set(layers))
    if missing or foreign:
        raise DataError(
            f"the checkpoint's switchable layers are not the model's: only in the model {missing or 'none'}, only in "
            f"the checkpoint {foreign or 'none'}. Build the model with normwise's switchable layers at the same places"
        )
    for name, layer in layers.items():
        _fit(name, layer, members[name], state)
    _check_fits(model, state)
    model.load_state_dict(state)
    for layer in layers.values():
        layer.variance = "official"
        if momentum is not None:
            layer.momentum = 1 - momentum
    return list(layers)


def _tensors(source: Source) -> dict[str, Tensor]:
    if isinstance(source, Mapping):
        data: Any = source
    else:
        try:
            data = load_tensors(source)
        except DataError as error:
            if not os.path.isfile(source):
                raise
            raise DataError(f"{source} is no checkpoint that can be loaded safely: {error}") from error
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping):
        raise DataError(f"a checkpoint is a dict of tensors, or has one under 'state_dict'; got {type(data).__name__}")
    strange = [str(name) for name, value in data.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise DataError(f"a state dict holds tensors only, but these are none: {', '.join(strange[:5])}")
    return dict(data)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefixed = [name.startswith("module.") for name in state]
    if not any(prefixed):
        return state
    if not all(prefixed):
        raise DataError("some names begin with 'module.' and some do not: this is no checkpoint of a wrapped model")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _converted(layer: str, own: dict[str, Tensor]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """One layer's members and entries, in our shapes."""

    def refuse(what: str) -> DataError:
        return DataError(f"layer {layer!r} is no published switchable norm that normwise knows: {what}")

    unknown = sorted(set(own) - _KEYS)
    missing = sorted({"weight", "bias", "mean_weight", "var_weight"} - set(own))
    if unknown or missing:
        raise refuse(f"unknown entries {unknown or 'none'}, missing entries {missing or 'none'}")
    shape = tuple(own["weight"].shape)
    spatial, mixing = len(shape) - 2, tuple(own["mean_weight"].shape)
    members = _MEMBERS.get((spatial, mixing[0])) if len(mixing) == 1 else None
    if members is None or shape != (1, shape[1], *(1,) * spatial):
        raise refuse(f"weight has the shape {shape} and mean_weight {mixing}")
    C = shape[1]
    expected = {"weight": shape, "bias": shape, "mean_weight": mixing, "var_weight": mixing}
    if "batch" in members:
        expected |= dict.fromkeys(("running_mean", "running_var"), (1, C) if spatial == 0 else (1, C, 1))
    got = {key: tuple(value.shape) for key, value in own.items()}
    if got != expected:
        raise refuse(f"expected the shapes {expected}, got {got}")
    converted = {key: value.reshape(-1) for key, value in own.items()}
    if "batch" in members:
        converted["num_batches_tracked"] = torch.tensor(0)
        if not converted["running_mean"].any() and not converted["running_var"].any():
            warnings.warn(
                f"layer {layer!r} was never trained: its running variance is still 0. It gets mean 0 and variance 1",
                NormwiseWarning,
                stacklevel=4,
            )
            converted["running_var"] = torch.ones_like(converted["running_var"])
    return members, converted


def _fit(name: str, layer: SwitchableNorm, members: tuple[str, ...], state: dict[str, Tensor]) -> None:
    """Bring one layer's mixing weights to the order of the model's layer."""
    if (
        set(layer.over) != set(members)
        or layer.sparsity is not None
        or ("batch" in members) != layer.track_running_stats
    ):
        raise DataError(
            f"layer {name!r} mixes {', '.join(members)} by softmax in the checkpoint; build the model's with "
            f"over={members!r}, and neither sparse=True nor track_running_stats=False"
        )
    order = [members.index(member) for member in layer.over]
    dot = f"{name}." if name else ""
    for key in ("mean_weight", "var_weight"):
        state[dot + key] = state[dot + key][order]


def _check_fits(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    wanted = model.state_dict()
    missing, foreign = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    misshapen = [name for name in sorted(set(wanted) & set(state)) if wanted[name].shape != state[name].shape]
    faults = {"missing in the checkpoint": missing, "not in the model": foreign, "of another shape": misshapen}
    told = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in faults.items() if names)
    if told:
        raise DataError(f"the checkpoint does not fit the model; {told}")

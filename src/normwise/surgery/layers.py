"""Find the normalization layers of a model by type and behaviour, never by their names.

Names can be wrong (one network calls its layer norms ``bn1``), and types as well: ``timm.layers.LayerNorm2d`` is a
``torch.nn.LayerNorm`` that normalizes another axis. So a class that is not torch's own or ours is tested: a copy with
random parameters runs on random input and is compared with the formula that the class stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace as with_changes
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize

from normwise import nn
from normwise.errors import InputError
from normwise.methods import METHODS, RMS, Batch, Group, Instance, Layer, Switchable
from normwise.nn._axis import ChannelAxis
from normwise.nn._checks import model_given
from normwise.nn._eps import stored_eps
from normwise.nn.factory import Identity, classes_of
from normwise.nn.norm import NormOverSamples
from normwise.nn.own import in_family, name_of
from normwise.nn.relatives_conditional import AdaptiveInstanceNorm, ConditionalNorm
from normwise.surgery import behaviour, layouts
from normwise.surgery.description import NormLayer, agrees, is_ours
from normwise.surgery.running import unwrapped

Where = str | Callable[[str, torch.nn.Module], bool] | None


class Found(NamedTuple):
    """A layer in a model: every name it is registered under, the module, its description."""

    names: list[str]
    module: torch.nn.Module
    layer: NormLayer


def describe(module: torch.nn.Module) -> NormLayer | None:
    """Describe a module if it is a normalization layer.

    torch's, our and timm's classes are known, frozen batch norms and hand-written layer or RMS norms are recognized by
    what they compute. A subclass whose ``forward`` computes something else is described with a ``problem``.

    Args:
        module: any module; it is not run and not changed (a copy may be).

    Returns:
        The description, or ``None`` where the module is no normalization layer.

    Example:
        >>> describe(torch.nn.BatchNorm2d(3)).method
        'batch'
        >>> describe(torch.nn.ReLU()) is None
        True
    """
    model_given(module, "describe")
    module = unwrapped(module)  # what was compiled by itself
    layer = _by_type(module)
    if layer is not None:
        if type(module) in _EXACT and "forward" not in vars(module):
            return layer
        return _proven(module, layer) or (layer.per_token and behaviour.read(module)) or _unproven(module, layer)
    if type(module).__module__.startswith("torch.nn."):
        return None
    layer = None if isinstance(module, torch.jit.ScriptModule) else _by_structure(module)
    return behaviour.read(module) if layer is None else _proven(module, layer)


def find(model: torch.nn.Module) -> list[Found]:
    """Find every normalization layer of a model, a shared one once under all its names.

    Args:
        model: any module, itself included (under the name ``""``).

    Returns:
        The layers in the order of registration.

    Raises:
        InputError: it is no module, or a scripted one.

    Example:
        >>> norm = torch.nn.BatchNorm1d(3)
        >>> [found.names for found in find(torch.nn.Sequential(norm, torch.nn.ReLU(), norm))]
        [['0', '2']]
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted model shows no layers to change: take the model that it was scripted from")
    model_given(model, "find")
    seen: dict[int, Found | None] = {}
    inside: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in seen:
            # What computes a weight is no layer of the model, and a data-parallel wrapper is not the layer inside.
            weights = isinstance(module, parametrize.ParametrizationList)
            taken = weights or id(module) in inside or isinstance(module, DataParallel | DistributedDataParallel)
            layer = None if taken else describe(module)
            seen[id(module)] = None if layer is None else Found([], module, layer)
            if layer is not None or weights:
                inside.update(id(child) for child in module.modules())
        found = seen[id(module)]
        if found is not None:
            found.names.append(name)
    return [found for found in seen.values() if found is not None]


# "norm", or an "ln" of its own, in the name of a class or attribute; not "normal", and not NoLayerNorm or NormFree.
_SAYS_NORM = re.compile(r"[Nn]orm(?!al(?!i[sz]))|NORM|(^|_)ln(_|\d|$)")
_SAYS_NONE = re.compile(r"(No|Without)[A-Z]?[a-z]*Norm|Norm(alizer)?Free")


def not_understood(model: torch.nn.Module, found: Iterable[Found] | None = None) -> list[tuple[str, torch.nn.Module]]:
    """Modules whose class or attribute is called a norm, and of which nothing shows that they are one."""
    layers = find(model) if found is None else list(found)
    known = {id(part) for f in layers for part in f.module.modules()}
    known |= {
        id(part) for m in model.modules() if isinstance(m, parametrize.ParametrizationList) for part in m.modules()
    }
    unknown: list[tuple[str, torch.nn.Module]] = []
    # From the inside: what holds an unknown norm is named after it as often as not.
    for name, module in reversed(list(model.named_modules())):
        if not any(id(part) in known for part in module.modules()) and _claims(name, module):
            known.add(id(module))
            unknown.append((name, module))
    return unknown[::-1]


def _claims(name: str, module: torch.nn.Module) -> bool:
    home = type(module).__module__
    if home.startswith(("torch.nn.", "torch.ao.", "normwise.")) or isinstance(module, torch.nn.Sequential):
        return False
    called = (type(module).__name__, name.rpartition(".")[2])
    return any(_SAYS_NORM.search(_SAYS_NONE.sub("", word)) for word in called) and not behaviour.passes_through(module)


def chosen(model: torch.nn.Module, where: Where = None) -> Iterator[Found]:
    """Find the normalization layers that are meant by ``where``, a shared one if any of its names is."""
    for found in find(model):
        if where is None or any(matches(where, name, found.module) for name in found.names):
            yield found


def matches(where: str | Callable[[str, torch.nn.Module], bool], name: str, module: torch.nn.Module) -> bool:
    """Whether a pattern of names or a predicate means a module."""
    if isinstance(where, str):
        return fnmatchcase(name, where)
    if not callable(where):
        raise InputError(f"where must be a name pattern or a predicate (name, layer) -> bool, got {where!r}")
    return where(name, module)


def replace(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> torch.nn.Module:
    """Put ``new`` wherever ``old`` is registered in a model."""
    if model is old:
        return new
    for parent, name in _places(model, old):
        parent._modules[name] = new
    return model


def exchanged(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> Callable[[], None]:
    """:func:`replace` one module by another; gives what takes that back."""
    places = list(_places(model, old))
    replace(model, old, new)

    def back() -> None:
        for parent, name in places:
            parent._modules[name] = old

    return back


def _places(model: torch.nn.Module, wanted: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """Every parent and name under which a module is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is wanted:
                yield parent, name


_EXACT: set[type] = {
    *(getattr(torch.nn, f"{kind}{d}d") for kind in ("BatchNorm", "InstanceNorm") for d in (1, 2, 3)),
    *(getattr(nn, f"{kind}{d}d") for kind in ("BatchNorm", "InstanceNorm", "SwitchableNorm") for d in (1, 2, 3)),
    *(torch.nn.SyncBatchNorm, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm),
    *(nn.Norm, NormOverSamples, nn.GroupNorm, nn.AnyLayerNorm, nn.LayerNorm, nn.RMSNorm, layouts.LayerNormNd),
    *(kind for method in METHODS.values() for kind in classes_of(method) if kind is not Identity),
    *layouts.CLASSES.values(),
}

_DIMS: dict[type, int] = {
    **{getattr(torch.nn, f"{kind}{d}d"): d for kind in ("BatchNorm", "InstanceNorm") for d in (1, 2, 3)},
    **{getattr(nn, f"SwitchableNorm{d}d"): d for d in (1, 2, 3)},
}


def _by_type(module: torch.nn.Module) -> NormLayer | None:
    """What a module's class says that it is."""
    if isinstance(module, layouts.ChannelAffine):
        return _common(module, module.method, module.num_features, eps=0.0)
    if isinstance(module, nn.SwitchableNorm):
        return _common(module, Switchable.name, module.num_features, num_groups=module.num_groups)
    if isinstance(module, nn.Norm):
        thresholded = "it thresholds its output (tlu=True)" if getattr(module, "threshold", None) is not None else None
        name = module.method.name if in_family(module.method) else name_of(module.method)
        offset = getattr(module.method, "offset", 0.0)
        return _common(module, name, module.num_features, offset=offset, **{"problem": thresholded} | _place(module))
    if isinstance(module, ConditionalNorm | AdaptiveInstanceNorm):
        return NormLayer("conditional", 0, stored_eps(module.eps), problem="its weight and bias come from a condition")
    if isinstance(module, _BatchNorm):
        return _common(module, Batch.name, module.num_features)
    if isinstance(module, _InstanceNorm):
        return _common(module, Instance.name, module.num_features)
    if isinstance(module, torch.nn.GroupNorm):
        place = _place(module) if isinstance(module, nn.AnyLayerNorm) else {}
        return _common(module, _group_method(module), module.num_channels, num_groups=module.num_groups, **place)
    if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        method = Layer.name if isinstance(module, torch.nn.LayerNorm) else RMS.name
        shape = tuple(module.normalized_shape)
        several = f"its weight has one entry per element of {shape}, not one per channel"
        channels, problem = (shape[0], None) if len(shape) == 1 else (shape[0], several)
        stored = stored_eps(module.eps)
        eps = torch.finfo(_dtype(module)).eps if stored is None else stored
        place = _place(module) if isinstance(module, ChannelAxis) else {"channel_axis": -1}
        known = {"eps": eps, "offset": getattr(module, "offset", 0.0), "problem": problem}
        return _common(module, method, channels, **known | place | {"per_token": True})
    return None


def _place(module: ChannelAxis) -> dict[str, Any]:
    """Where one of our layers has its channels, and whether it normalizes each position by itself."""
    axis, method = module.known_axis, getattr(module, "method", None)
    if axis is None and not isinstance(module, nn.AnyLayerNorm):
        return {"problem": "it finds its channels by its input and has seen none yet; run the model once first"}
    by_position = method is None or (bool(method.pools) and method.by_position(axis or 1))
    return {"per_token": by_position} | ({"channel_axis": -1} if axis == -1 else {})


def _group_method(module: torch.nn.GroupNorm) -> str:
    # By behaviour: one group is layer norm, a group per channel is instance norm.
    if module.num_groups == 1:
        return Layer.name
    return Instance.name if module.num_groups == module.num_channels else Group.name


def _common(module: torch.nn.Module, method: str, channels: int, **known: Any) -> NormLayer:
    """Read what layers name alike; ``known`` says the rest."""
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    problem = known.pop("problem", None)
    if parametrize.is_parametrized(module):
        problem = "it is parametrized (torch.nn.utils.parametrize); remove the parametrizations first"
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        problem = "it is lazy and does not know its channels yet; run the model once first"
    values = {name: getattr(module, name, None) for name in names} if problem is None else {}
    tail = tuple((n, m) for n, m in module.named_children() if not isinstance(m, torch.nn.Identity))
    fields: dict = {
        "eps": stored_eps(getattr(module, "eps", 0.0)),
        "momentum": getattr(module, "momentum", 0.1),
        "synced": isinstance(module, torch.nn.SyncBatchNorm) or getattr(module, "sync", None) is not None,
        "dim": next((d for cls, d in _DIMS.items() if isinstance(module, cls)), None),
        "activation": getattr(module, "activation", None) if is_ours(module) else None,
        "offset": _offset(module) if is_ours(module) else 0.0,
        "channel_axis": -1 if getattr(module, "layout", None) == "last" else 1,
    }
    if isinstance(module, layouts.Adapted):
        fields["dim"] = None
    return NormLayer(method, channels, problem=problem, tail=tail, **fields | values | known)


def _offset(module: torch.nn.Module) -> float:
    """What one of our layers, or its method, adds to its weight."""
    return float(getattr(module, "offset", getattr(getattr(module, "method", None), "offset", 0.0)))


def _dtype(module: torch.nn.Module) -> torch.dtype:
    weight = getattr(module, "weight", None)
    return torch.float32 if weight is None else weight.dtype


def _by_structure(module: torch.nn.Module) -> NormLayer | None:
    """A batch norm of stored statistics, by its tensors; to be proven by running it."""
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    floats = {name: tensor for name, tensor in own.items() if name != "num_batches_tracked"}
    if set(floats) != {"weight", "bias", "running_mean", "running_var"}:
        return None
    if any(t.ndim != 1 or t.shape != floats["weight"].shape for t in floats.values()):
        return None
    return _common(module, Batch.name, len(floats["weight"]), eps=behaviour.small_number(module), frozen=True)


def _proven(module: torch.nn.Module, layer: NormLayer) -> NormLayer | None:
    """The reading of a module that its output agrees with, if there is one."""
    if layer.problem is not None:
        return None
    readings = [reading for reading in _readings(layer) if agrees(module, reading)]
    if not readings:
        return None
    dims = {reading.dim for reading in readings if reading.frozen == readings[0].frozen}
    return readings[0] if len(dims) == 1 else with_changes(readings[0], dim=None)


def _readings(layer: NormLayer) -> list[NormLayer]:
    """What a layer of this kind may be; the likeliest first."""
    if layer.per_token:
        methods = dict.fromkeys((layer.method, Layer.name, RMS.name))
        ways = [(method, axis) for method in methods for axis in (-1, 1)]
        return [with_changes(layer, method=method, channel_axis=axis) for method, axis in ways]
    if layer.frozen:
        return [with_changes(layer, dim=dim, frozen=frozen) for frozen in (True, False) for dim in (2, 1, 3)]
    return [layer]


def _unproven(module: torch.nn.Module, layer: NormLayer) -> NormLayer:
    doubt = f"{type(module).__qualname__}.forward does not compute {layer.method} norm alone"
    return with_changes(layer, problem=layer.problem or doubt)

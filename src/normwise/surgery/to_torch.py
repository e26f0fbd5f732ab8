"""Turn every layer into torch's own class: for tools that look up exact types, and to go on without normwise."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

import normwise.nn as ours
from normwise.errors import InputError, NormwiseWarning
from normwise.methods import METHODS
from normwise.nn._axis import ChannelAxis
from normwise.nn.factory import Identity
from normwise.parametrize._copies import inject
from normwise.surgery import layouts
from normwise.surgery.build import build
from normwise.surgery.carry import HOOKS, carry_hooks
from normwise.surgery.exchange import spatial_axes
from normwise.surgery.fold import _Activation
from normwise.surgery.layers import Found, Where, find, matches, replace
from normwise.surgery.order import Order
from normwise.surgery.running import deep_copy, evaluating, run_on, unwrapped
from normwise.surgery.weights import parametrized, plain_weight, why_no_plain_weight

_DIMS = (1, 2, 3)
_KINDS = ("BatchNorm", "InstanceNorm")
_NAMES = [f"{lazy}{kind}{d}d" for lazy in ("", "Lazy") for kind in _KINDS for d in _DIMS]
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    **{getattr(ours, name): getattr(nn, name) for name in (*_NAMES, "GroupNorm", "LayerNorm", "RMSNorm")},
    Identity: nn.Identity,
}
# Surgery's layers for any number of axes, of which torch has a class for each number.
_BY_AXES = {layouts.BatchNormNd: "BatchNorm", layouts.InstanceNormNd: "InstanceNorm"}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
# What our layers hold beside what torch's do.
_EXTRAS = (
    *("activation", "skip_nonfinite", "sync", "layout", "num_batches_skipped", "_skipped", "_warned"),
    *("axis", "offset", "_found", "_together"),
)
_HOMES = ("normwise.nn.", "normwise.surgery.")


@dataclass(frozen=True)
class Returned:
    """What :func:`to_torch` did: each changed module's name, the class that it had and the one that it has.

    Example:
        >>> print(Returned([("bn1", "BatchNorm2d", "torch.nn.BatchNorm2d")]))
        1 module became torch's own
          bn1  BatchNorm2d -> torch.nn.BatchNorm2d
    """

    layers: list[tuple[str, str, str]]

    def __str__(self) -> str:
        """Give a table."""
        count = len(self.layers)
        lines = [f"{count} module{' became' if count == 1 else 's became'} torch's own"]
        return "\n".join([*lines, *(f"  {name or '(model)'}  {was} -> {now}" for name, was, now in self.layers)])

    def to_dict(self) -> dict[str, Any]:
        """Give plain data."""
        return {"to": "torch", "layers": [dict(zip(("name", "was", "now"), row, strict=True)) for row in self.layers]}


def to_torch(
    model: nn.Module,
    *,
    where: Where = None,
    harden: bool = False,
    example_inputs: Any = None,
    copy: bool = False,
    report: Callable[[Returned], object] | None = None,
) -> nn.Module:
    """Make every layer torch's own class, with the same weights, ``state_dict`` keys and outputs.

    For tools that look up exact types (quantization, TorchScript, Opacus, captum), and to leave normwise: the
    ``state_dict`` loads into the network as it would be written with torch's layers.

    =================================================  ==========================================================
    normwise's                                         becomes
    =================================================  ==========================================================
    batch, instance, group, layer and RMS norms, lazy  the ``torch.nn`` class of the same name, the same object
    ``activation=``, what timm's layers hold after     ``nn.Sequential(norm=..., activation=...)``; the keys of
                                                       its ``state_dict`` stay those of the layer alone
    synced layers                                      plain ones, whose statistics are each process's own
    :func:`normwise.weight_norm`                       torch's parametrization, with the same g and v
    ``convert``'s layers for any number of axes        the class for the axes that ``example_inputs`` show
    switchable norm                                    refused; with ``harden``, the member of the greatest share
    weight standardization                             refused; with ``harden``, the standardized weight
    all others                                         refused: torch has no class that computes the same
    =================================================  ==========================================================

    Formula: unchanged. Layers that do not become a ``Sequential`` stay the same objects of another class, so sharing,
    hooks, mode, ``requires_grad``, dtype, device and an optimizer's parameters stay; hooks of a layer with an
    activation move to the ``Sequential``. Torch's layers take no ``mask=`` or ``lengths=``, and a batch that is not
    finite enters their running averages. Tools that read parameters by ``named_parameters`` see ``norm.`` in the names.

    Args:
        model: changed in place.
        where: a name pattern such as ``"backbone.*"`` or a predicate ``(name, module) -> bool``; default all.
        harden: let what torch has no class for become what comes nearest, as in the table. A
            :class:`NormwiseWarning` says where a switchable layer's choice was no clear one.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones; run only where the number of axes
            has to be seen.
        copy: leave ``model`` alone and change a deep copy.
        report: called with the :class:`Returned`: ``print``, or a list's ``append``.

    Returns:
        The model, or the copy; the ``Sequential`` where the model itself is a layer with an activation.

    Raises:
        InputError: torch has no class for a layer, or it cannot be known which; all such layers are named, and nothing
            has been changed.

    Example:
        >>> from normwise.nn import BatchNorm2d
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4), BatchNorm2d(4, activation="relu"))
        >>> to_torch(model)[2]
        Sequential(
          (norm): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
          (activation): ReLU()
        )
        >>> type(model[1]) is nn.BatchNorm2d, list(model.state_dict())[-1]
        (True, '2.num_batches_tracked')
    """
    model = deep_copy(model) if copy else model
    plan = _Plan(unwrapped(model), where, harden, example_inputs)
    if plan.refused:
        raise InputError(
            f"torch has no class for {len(plan.refused)} of the modules of {type(model).__name__}; nothing was "
            "changed:\n  " + "\n  ".join(plan.refused) + "\nTake another method there first (normwise.convert), or "
            "leave them out with where="
        )
    done = [(f"{name}.{weight}".lstrip("."), *plain_weight(module, weight)) for name, module, weight in plan.weights]
    for name, module, new, cls in plan.steps:
        was = type(module).__qualname__
        model = model if new is module else replace(model, module, new)
        now = _become(new, cls)
        model = model if now is new else replace(model, new, now)
        done.append((name, was, _title(now)))
    if report is not None:
        report(Returned(done))
    return model


class _Plan:
    """What is to become of each module, found out before anything is changed."""

    def __init__(self, body: nn.Module, where: Where, harden: bool, example_inputs: Any) -> None:
        self.body, self.harden, self.inputs = body, harden, example_inputs
        self.steps: list[tuple[str, nn.Module, nn.Module, type[nn.Module]]] = []
        self.weights: list[tuple[str, nn.Module, str]] = []
        self.refused: list[str] = []
        self._axes: Mapping[int, set[int]] | None = None
        self._found: dict[nn.Module, Found] | None = None
        inside: set[nn.Module] = set()
        for name, module in body.named_modules():
            if where is not None and not matches(where, name, module):
                continue
            self._look_at_weights(name, module)
            if module not in inside and _is_ours(module):
                self._look_at(name, module)
                inside.update(module.children())  # what a layer holds goes where the layer goes

    def _look_at_weights(self, name: str, module: nn.Module) -> None:
        for weight in parametrized(module):
            reason = why_no_plain_weight(module, weight, self.harden)
            if reason is None:
                self.weights.append((name, module, weight))
            else:
                self.refused.append(f"{name}.{weight}".lstrip(".") + f": {reason}")

    def _look_at(self, name: str, module: nn.Module) -> None:
        try:
            new = self._hardened(module, name)
            self.steps.append((name, module, new, self._class_for(new, module)))
        except InputError as reason:
            self.refused.append(f"{name or 'the model itself'}: {_kind(module).__qualname__}, {reason}")

    def _class_for(self, layer: Any, old: nn.Module) -> type[nn.Module]:
        kind = _kind(layer)
        if _is_lazy(layer) and layer.activation and (layer._forward_hooks or len(layer._forward_pre_hooks) > 1):
            raise InputError("lazy and with hooks after its activation; run the model once first")
        if isinstance(layer, ChannelAxis):
            return _class_at_axis(layer)
        if kind in _CLASSES:
            return _CLASSES[kind]
        if kind is _Activation:
            return type(_ACTIVATIONS[layer.activation]())
        if isinstance(layer, layouts.Adapted):
            return self._class_of_adapted(kind, layer, old)
        raise InputError(_why_not(layer))

    def _class_of_adapted(self, kind: type, layer: Any, old: nn.Module) -> type[nn.Module]:
        if kind is layouts.ChannelAffine and layer.weight is None and layer.bias is None:
            return nn.Identity
        if kind is layouts.GroupNormNd and layer.layout == "first":
            return nn.GroupNorm
        if kind not in _BY_AXES:
            raise InputError(_why_not(layer))
        if layer.layout != "first":
            raise InputError("whose channels are the last axis, and torch's are the second")
        axes = self._spatial(old)
        if not axes:
            raise InputError("takes any number of axes: give example_inputs that run it")
        if len(axes) > 1:
            raise InputError(f"is run with {' and '.join(map(str, sorted(axes)))} spatial axes, and torch's take one")
        return getattr(nn, f"{_BY_AXES[kind]}{max(axes.pop(), 1)}d")

    def _spatial(self, layer: nn.Module) -> set[int]:
        """The numbers of spatial axes that a layer is run with."""
        if self._axes is None:
            self._axes = {}
            if self.inputs is not None:
                with evaluating(self.body):
                    self._axes = spatial_axes(find(self.body), lambda: run_on(self.body, self.inputs))
        return set(self._axes.get(id(layer), ()))

    def _hardened(self, module: nn.Module, name: str) -> nn.Module:
        """The plain layer that a switchable one chose, not yet in the model; any other module itself."""
        if not isinstance(module, ours.SwitchableNorm):
            return module
        if not self.harden:
            raise InputError("a mix of several methods; give harden=True for the one of the greatest share")
        if self._found is None:
            self._found = {found.module: found for found in find(self.body)}
        layer = self._found[module].layer
        if layer.problem is not None:
            raise InputError(layer.problem)
        means, variances = module.shares()
        best = int((means + variances).argmax())
        member, share = module.over[best], min(means[best].item(), variances[best].item())
        if share < 0.75:
            _warn_unclear(name, member, share)
        options = {"num_groups": module.num_groups} if METHODS[member].grouped else {}
        return build(module, layer, Order(member, options), self._spatial(module), None).module


def _class_at_axis(layer: Any) -> type[nn.Module]:
    """Torch's class for a layer that finds its channels, or is told where they are."""
    axis = layer.known_axis
    if isinstance(layer, ours.AnyLayerNorm):
        if axis is None:
            raise InputError("finds its channels by its input and has met none that tells: run the model once first")
        return nn.GroupNorm if axis == 1 else nn.LayerNorm
    if isinstance(layer, ours.LayerNorm | ours.RMSNorm):
        if axis != -1:
            raise InputError("normalizes the channels of each position at axis 1, and torch's at the last axis")
        if getattr(layer, "offset", 0) or (isinstance(layer, ours.RMSNorm) and "bias" in layer._parameters):
            raise InputError("has an offset or a bias, and torch's has none")
        return nn.LayerNorm if isinstance(layer, ours.LayerNorm) else nn.RMSNorm
    raise InputError(_why_not(layer))


def _is_ours(module: nn.Module) -> bool:
    return any(f"{cls.__module__}.".startswith(_HOMES) for cls in type(module).__mro__)


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.lazy.LazyModuleMixin)


def _kind(module: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(module)


def _title(module: nn.Module) -> str:
    inner = f"({', '.join(type(m).__name__ for m in module)})" if isinstance(module, nn.Sequential) else ""
    return f"torch.nn.{_kind(module).__qualname__}{inner}"


def _why_not(layer: nn.Module) -> str:
    if isinstance(layer, ours.FrozenBatchNorm):
        return "torchvision.ops.FrozenBatchNorm2d takes its state_dict, or fold it away (normwise.fold)"
    if not type(layer).__module__.startswith("normwise."):
        return "a subclass of normwise's, which may compute something else"
    return "which torch has not"


def _warn_unclear(name: str, member: str, share: float) -> None:
    warnings.warn(
        f"layer {name or 'the model itself'!r} becomes {member} norm, which had a share of {share:.2f} only: its "
        "output changes, see normwise.harden for how far",
        NormwiseWarning,
        stacklevel=6,
    )


def _become(module: Any, cls: type[nn.Module]) -> nn.Module:
    """Change a module's class where it stands; gives what is to stand there, with an activation a Sequential."""
    if isinstance(module, _Activation):
        return _retyped(module, cls, vars(_ACTIVATIONS[module.activation]()))
    after = OrderedDict(module.named_children()) if isinstance(module, layouts.Adapted) else OrderedDict()
    module._modules = OrderedDict((n, m) for n, m in module._modules.items() if n not in after)
    if getattr(module, "activation", None) is not None:
        after = OrderedDict([(_free("activation", after), _ACTIVATIONS[module.activation]()), *after.items()])
        after[next(iter(after))].train(module.training)
    norm = _retyped(module, cls, {})
    return _joined(norm, after) if after else norm


def _free(name: str, taken: Mapping[str, nn.Module]) -> str:
    while name in taken:
        name += "_"
    return name


def _retyped(module: Any, cls: type[nn.Module], more: Mapping[str, Any]) -> nn.Module:
    """The same object of torch's class, without what only ours has."""
    for name in _EXTRAS:
        vars(module).pop(name, None)
        module._buffers.pop(name, None)
        module._non_persistent_buffers_set.discard(name)
    for name, value in more.items():
        vars(module).setdefault(name, value)
    if cls is nn.LayerNorm:  # of what kept its size under another name
        vars(module).setdefault("normalized_shape", (vars(module).get("num_channels"),))
        vars(module).setdefault("elementwise_affine", vars(module).get("affine"))
    steps = module._modules.get("parametrizations", ())
    module.__class__ = cls
    if steps:
        inject(module, steps)
    return module


def _joined(norm: nn.Module, after: Mapping[str, nn.Module]) -> nn.Sequential:
    """The norm and what follows as one module, with the hooks of the layer and the keys that it had."""
    joined = nn.Sequential(OrderedDict([(_free("norm", after), norm), *after.items()]))
    joined.training = norm.training
    # What torch's encoder layer compares before it computes both norms itself, from weight, bias and eps alone.
    joined.eps = float("nan")  # type: ignore[assignment]
    if not _is_lazy(norm):  # whose hooks are its own
        carry_hooks(norm, joined)
        fresh = vars(nn.Module())
        for name in HOOKS:
            object.__setattr__(norm, name, fresh[name])
    joined.register_state_dict_post_hook(_shorten)
    joined.register_load_state_dict_pre_hook(_lengthen)
    return joined


def _shorten(module: nn.Module, state: Any, prefix: str, _: Any) -> None:
    """``bn.norm.weight`` as ``bn.weight``."""
    inner = f"{prefix}{next(iter(module._modules))}."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)
    state._metadata[prefix[:-1]] = dict(state._metadata[inner[:-1]])


def _lengthen(module: nn.Module, state: Any, prefix: str, *_: Any) -> None:
    """``bn.weight`` as ``bn.norm.weight``."""
    first = next(iter(module._modules))
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key[len(prefix) :]
        if rest.split(".")[0] not in module._modules:
            state[f"{prefix}{first}.{rest}"] = state.pop(key)

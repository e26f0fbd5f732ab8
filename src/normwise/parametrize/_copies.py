"""Copies and pickles of models whose weights are computed: by parametrizations, or by torch's older hooks.

Torch's deep copies of a parametrized module share one class with it, so that removing a parametrization from one takes
the weight's property from the other, too. What a hook computed belongs to a graph and cannot be copied at all.
:func:`deep_copy` gives each copy a class of its own, and has its hooks compute anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm as _SpectralNormHook
from torch.nn.utils.weight_norm import WeightNorm as _WeightNormHook

from normwise.errors import InputError, described


def deep_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares nothing with the model, classes of parametrized modules included."""
    computed = [(module, name, compute) for module in model.modules() for name, compute in _computed(module)]
    memo = _prepared(model, {(id(module), name) for module, name, _ in computed})
    try:
        # Without a graph: scripted parts clone their tensors, whose gradients would go to the model's.
        with torch.no_grad():
            twin = copy.deepcopy(model, memo)
    except Exception as error:  # whatever the parts of a foreign model raise
        raise InputError(_refusal(model, error)) from error
    _check_apart(model, twin)
    for part in {id(m): m for m in memo.values() if isinstance(m, nn.Module)}.values():
        if id(part) not in memo:  # else it gave itself as its copy, and is the caller's
            own_class(part)
    for module, name, compute in computed:
        part = memo[id(module)]
        setattr(part, name, compute(part))
        refresh(part)
    return twin


def _prepared(model: torch.nn.Module, computed: set[tuple[int, str]]) -> dict[int, Any]:
    """Copies, for ``deepcopy``, of what it cannot copy and what is computed anew or has no values yet."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [value for name, value in vars(module).items() if (id(module), name) in computed]
        held += getattr(module, "_flat_weights", []) if isinstance(module, nn.RNNBase) else []
        memo |= {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
        lazy = [t for t in module._buffers.values() if isinstance(t, nn.parameter.UninitializedBuffer)]
        memo |= {id(t): _uninitialized(t) for t in lazy}
    return memo


def _uninitialized(like: Tensor) -> Tensor:
    make: Any = nn.parameter.UninitializedBuffer
    return make(like.requires_grad, like.device, like.dtype)


def _check_apart(model: torch.nn.Module, twin: torch.nn.Module) -> None:
    """Refuse a copy that holds memory of the model, or that tore apart what a scripted part shares with another."""
    users: dict[int, set[bool]] = {}
    for (name, part), other in zip(model.named_modules(), twin.modules(), strict=False):
        own, others = (set(filter(None, map(_memory, _tensors(m)))) for m in (part, other))
        scripted = isinstance(part, torch.jit.ScriptModule)
        for memory in own:
            users.setdefault(memory, set()).add(scripted)
        reason = None
        if part is other or own & others:
            reason = "shares its tensors with its deep copy"
        elif any(len(users[memory]) > 1 for memory in own):
            reason = "shares a tensor between a scripted part and one that is not, which a deep copy would untie"
        if reason is not None:
            title = f"{name!r} ({_kind(part)}) in {_kind(model)}" if name else _kind(model)
            raise InputError(f"{title} {reason}; the model was left as it is: take that part out, or work in place")
        if scripted:
            for ours, theirs in zip(part.parameters(recurse=False), other.parameters(recurse=False), strict=True):
                theirs.requires_grad_(ours.requires_grad)


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _memory(tensor: Tensor) -> int:
    """Where a tensor's values are; 0 for one that has none."""
    if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a subclass without memory of its own
        return 0


def _kind(module: torch.nn.Module) -> str:
    return str(getattr(module, "original_name", type(module).__name__))


def own_class(module: torch.nn.Module) -> None:
    """Give a parametrized module a class that no other module has."""
    if parametrize.is_parametrized(module):
        shared: Any = type(module)
        body = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared)(shared.__name__, shared.__bases__, body)


def _computed(module: torch.nn.Module) -> Iterator[tuple[str, Callable[[torch.nn.Module], Tensor]]]:
    """The weights that torch's hooks set before each forward pass, and how to compute each for a module."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, _WeightNormHook):
            yield hook.name, hook.compute_weight
        elif isinstance(hook, _SpectralNormHook):
            yield hook.name, partial(hook.compute_weight, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod):
            yield hook._tensor_name, hook.apply_mask


def _refusal(model: torch.nn.Module, error: Exception) -> str:
    """Which part of a model cannot be copied, and why."""
    name, part = "", model
    while True:
        child = next(((n, c) for n, c in part.named_children() if not _copies(c)), None)
        if child is None:
            break
        name, part = f"{name}.{child[0]}".lstrip("."), child[1]
    title = f"{name!r} ({type(part).__name__}) in {type(model).__name__}" if name else type(model).__name__
    graph = [name for name, value in {**vars(part), **part._buffers}.items() if _of_a_graph(value)]
    if graph:
        return (
            f"{title} holds {graph[0]!r}, a tensor that belongs to a graph, which cannot be copied; the model was left "
            "as it is: detach that tensor first"
        )
    reason = f"cannot be deep-copied ({described(error)})"
    return f"{title} {reason}; the model was left as it is: take that part out, or work in place"


def _of_a_graph(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_leaf
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(isinstance(item, Tensor) and not item.is_leaf for item in items)


def _copies(module: torch.nn.Module) -> bool:
    try:
        deep_copy(module)
    except InputError:
        return False
    return True


def make_copyable(module: torch.nn.Module) -> None:
    """Let a parametrized module be copied and pickled, by building its class anew."""
    cls: Any = type(module)
    cls.__reduce_ex__, cls.__setstate__ = _reduce, _restore
    # Torch's deepcopy shares the class: removing a parametrization from the copy breaks the original.
    if "__deepcopy__" in cls.__dict__:
        del cls.__deepcopy__


def _reduce(module: torch.nn.Module, protocol: int) -> tuple[Any, ...]:
    base = parametrize.type_before_parametrizations(module)
    state = dict(module.__dict__)
    for scratch in ("_flat_weights", "_flat_weight_refs"):
        # Computed weights, which belong to a graph and cannot be copied; gathered again in the copy.
        state.pop(scratch, None)
    return _rebuild, (base, tuple(module.parametrizations)), state  # type: ignore[arg-type]


def _rebuild(base: type[torch.nn.Module], names: tuple[str, ...]) -> torch.nn.Module:
    module = base.__new__(base)
    torch.nn.Module.__init__(module)
    inject(module, names)
    return module


def inject(module: torch.nn.Module, names: Iterable[str]) -> None:
    """Let a module whose class was set anew compute its parametrized weights again; torch has no public way to."""
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    make_copyable(module)


def _restore(module: torch.nn.Module, state: dict[str, Any]) -> None:
    module.__dict__.update(state)
    refresh(module)


def refresh(module: torch.nn.Module) -> None:
    """Have torch's recurrent layers gather their weights anew: they keep a list, which still holds the old ones."""
    if isinstance(module, nn.RNNBase):
        with torch.no_grad():
            module._init_flat_weights()


def held_weight(module: torch.nn.Module, name: str, title: str | None = None) -> Tensor:
    """The module's weight; ``title`` is what errors call the module."""
    title = title or type(module).__name__
    weight = getattr(module, name, None) if isinstance(name, str) else None
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InputError(f"{title} has no {name!r} before its first forward pass: run one first")
    if not isinstance(weight, Tensor):
        names = ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"
        raise InputError(f"{title} has no parameter {name!r}; it has: {names}")
    return weight

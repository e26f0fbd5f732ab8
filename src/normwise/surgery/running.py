"""Running a user's model on a user's batches: what a batch means, and how to leave the model as it was.

Public functions work on the caller's model or on a copy; lazy layers are settled by a dry run, in a copy only.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normwise import devices
from normwise.arguments.data import named_pair
from normwise.core.reading import on_host, unequal
from normwise.devices import keeping_random_state as keeping_random_state
from normwise.errors import InputError, blaming
from normwise.kernels.reference import widened
from normwise.nn._checks import model_given
from normwise.parametrize._copies import deep_copy as deep_copy

# What ``forward`` calls its argument where that is a whole batch of named items.
_WHOLE = {"batch", "data", "sample", "samples", "example", "examples", "inputs", "items", "features"}

Forward = Callable[[nn.Module, Any], Any]
Run = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Left:
    """A layer that an operation left as it was, and why."""

    layer: str
    reason: str


def feed(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch as loaders give them, targets ignored.

    A tensor is the input. Of a tuple or list as many items are passed as ``forward`` takes without defaults, at least
    one: (input, target) runs on the input. Of a mapping those entries are passed by name that ``forward`` knows. Where
    it knows none and takes one argument, that is the one input beside a target, or else, and where it is called
    ``batch`` or the like, the mapping. Tensors are moved to the model's device.
    """
    return run_on(model, inputs_of(model, batch))


def inputs_of(model: nn.Module, batch: Any) -> Any:
    """What of a batch a model is run on, as :func:`feed` has it."""
    required, names, any_name = _signature(model)
    if isinstance(batch, Mapping):
        known = dict(batch) if any_name else {k: v for k, v in batch.items() if k in names}
        if known and all(name in known for name in required):
            return known
        if len(required) == 1 and not known:
            pair = None if required[0] in _WHOLE else named_pair(batch)
            return (batch,) if pair is None or isinstance(pair[0], Mapping) else (pair[0],)
        raise InputError(
            f"cannot feed a batch with keys {', '.join(map(str, batch))} to {type(model).__name__}.forward, which "
            f"needs {', '.join(required)}: give forward=lambda model, batch: model(...)"
        )
    if isinstance(batch, (tuple, list)):
        if len(batch) < max(1, len(required)):
            raise InputError(
                f"cannot feed a batch of {len(batch)} item(s) to {type(model).__name__}.forward, which needs "
                f"{', '.join(required)}: give forward=lambda model, batch: model(...)"
            )
        return tuple(batch[: max(1, len(required))])
    return batch


def targets_of(model: nn.Module, batch: Any) -> Any:
    """What of a batch :func:`feed` does not give to the model: the target."""
    rest: Any = None
    if isinstance(batch, Mapping):
        rest = next((batch[name] for name in ("target", "targets", "label", "labels", "y") if name in batch), None)
    elif isinstance(batch, (tuple, list)):
        left = batch[max(1, len(_signature(model)[0])) :]
        rest = left[0] if len(left) == 1 else left or None
    return devices.move(rest, devices.of(model))


def run_on(model: nn.Module, example_inputs: Any) -> Any:
    """Run a model on example inputs: a tuple holds all positional arguments, a mapping the named ones."""
    inputs = devices.move(example_inputs, devices.of(model))
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable]], before: bool = False) -> Iterator[None]:
    """Call ``hook(module, args, kwargs, output)`` when a module has run, or without output before it does."""
    with ExitStack() as stack:
        for module, hook in hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(hook, with_kwargs=True).remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for a while; every module's own mode comes back, whatever happens.

    The flags are set without calling ``eval()``: some modules rebuild themselves there.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def drift(before: Any, after: Any) -> float | None:
    """How far outputs moved: the root mean square of the change over that of what was there."""
    old, new = tensors_in(before), tensors_in(after)
    if [t.shape for t in old] != [t.shape for t in new]:
        raise InputError(
            f"outputs of different structure: {[tuple(t.shape) for t in old]} and {[tuple(t.shape) for t in new]}"
        )
    if not old:
        return None
    moved = [(widened(a) - widened(b)).square().sum() for a, b in zip(new, old, strict=True)]
    sums = [t.item() for t in on_host([*moved, *(widened(t).square().sum() for t in old)])]
    change, size = sum(sums[: len(old)]), sum(sums[len(old) :])
    if not math.isfinite(change):
        return math.inf
    return math.sqrt(change / size) if size else (math.inf if change else 0.0)


def tensors_in(value: Any) -> list[Tensor]:
    """Collect the tensors of a nested output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif hasattr(value, "to_tuple"):
        value = value.to_tuple()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [t for item in value for t in tensors_in(item)] if isinstance(value, (tuple, list)) else []


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model inside ``torch.compile`` and data-parallel wrappers.

    A compiled graph does not see hooks that are added later, and a wrapper synchronizes at every forward pass.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches a module run, or changes what goes in or comes out."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _signature(model: nn.Module) -> tuple[list[str], set[str], bool]:
    """What ``forward`` takes: names without default, all names, and whether any name will do."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty]
    return required, {p.name for p in named}, any(p.kind == p.VAR_KEYWORD for p in parameters)


def working_copy(model: nn.Module, copy: bool, caller: str, run: Run | None = None) -> nn.Module:
    """The model, or with ``copy`` a copy; ``run`` gives it data where the operation is going to run it."""
    model_given(model, caller)
    if run is not None and not copy:
        refuse_lazy(model, caller)
    model = deep_copy(model) if copy else model
    if run is not None:
        settle(model, run)
    return model


def settled(model: nn.Module, run: Run) -> nn.Module:
    """The model; where it has lazy layers, a copy in which a dry run has settled them."""
    if not uninitialized(model):
        return model
    model = deep_copy(unwrapped(model))
    settle(model, run)
    return model


def placed(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The model where it is to run: itself if it lies there or is spread over several devices, else a copy."""
    home = devices.of(model)
    if home is None or (place := devices.resolve(device, home)) == home:
        return model
    return deep_copy(model).to(place)


def settle(model: nn.Module, run: Run) -> None:
    """Have lazy layers learn their sizes from a dry run, in which nothing else changes."""
    if not uninitialized(model):
        return
    title = type(model).__name__
    failed = f"{title} has lazy layers, and does not run on the given data to settle them"
    with blaming(failed), evaluating(model), keeping_random_state():
        run(model)
    left = uninitialized(model)
    if left:
        raise InputError(f"{title} has lazy layers that its forward pass does not reach: {', '.join(left[:4])}")


def refuse_lazy(model: nn.Module, caller: str) -> None:
    """Refuse a model whose lazy layers do not know their sizes."""
    names = uninitialized(model)
    if names:
        raise InputError(
            f"{caller}: {type(model).__name__} has lazy layers that have seen no data yet "
            f"({', '.join(names[:4])}{', …' * (len(names) > 4)}): run one batch first, model(batch)"
        )


def uninitialized(model: nn.Module) -> list[str]:
    """The layers that hold parameters or buffers without a size."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if any(map(nn.parameter.is_lazy, (*module._parameters.values(), *module._buffers.values())))
    ]


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Give a model back as it was, whatever a forward pass leaves in it: values, attributes, hooks, caches."""
    parts = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    attributes = [(m, type(m), dict(vars(m))) for m in parts]
    held = {id(v): v for m in parts for v in vars(m).values() if isinstance(v, dict | list | set)}
    contents = [(container, container.copy()) for container in held.values()]
    tensors = [t for t in (*model.parameters(), *model.buffers()) if not (nn.parameter.is_lazy(t) or t.is_meta)]
    values = [(t, t.detach().clone(), t.requires_grad) for t in tensors]
    try:
        yield
    finally:
        for module, kind, kept in attributes:
            if type(module) is not kind:
                module.__class__ = kind
            vars(module).clear()
            vars(module).update(kept)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        with torch.no_grad():
            moved = unequal([(tensor, value) for tensor, value, _ in values])
            for (tensor, value, learns), changed in zip(values, moved, strict=True):
                if changed:
                    tensor.copy_(value)
                if tensor.requires_grad != learns and tensor.is_leaf:
                    tensor.requires_grad_(learns)

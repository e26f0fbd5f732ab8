"""What public functions work on: the caller's model or a copy, with lazy layers settled by a dry run in a copy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from normwise.errors import InputError, blaming
from normwise.nn._checks import model_given
from normwise.surgery.running import deep_copy, evaluating, unwrapped

Run = Callable[[nn.Module], Any]


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
def keeping_random_state() -> Iterator[None]:
    """Give the random generators of the CPU and of the current accelerator back as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


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
            for tensor, value, learns in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
                if tensor.requires_grad != learns and tensor.is_leaf:
                    tensor.requires_grad_(learns)

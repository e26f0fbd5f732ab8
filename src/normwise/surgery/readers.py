"""Weight and bias of a norm over tokens, given to the linear layers that read it; read from one observed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normwise.surgery.absorb import absorb_before, remembered, why_not
from normwise.surgery.flow import SAME, Reading
from normwise.surgery.graph import Unprovable
from normwise.surgery.layers import Found, exchanged
from normwise.surgery.running import has_hooks


def readers_of(reading: Reading, found: Found) -> list[tuple[str, nn.Linear]]:
    """The linear layers that alone use a norm's result."""
    layer, name = found.layer, found.names[0]
    if layer.problem is not None:
        raise Unprovable(layer.problem)
    if layer.channel_axis != -1 or layer.tail or layer.activation or has_hooks(found.module):
        raise Unprovable("it does more than normalize the last axis, or has hooks")
    calls = reading.calls(name)
    if len(calls) != 1:
        raise Unprovable(f"it ran {len(calls)} times in the pass" if calls else "it did not run in the pass")
    if calls[0] in reading.flow.results:
        raise Unprovable("its result leaves the model")
    modules = dict(reading.flow.model.named_modules())
    waiting, readers = list(reading.users[calls[0]]), {}
    while waiting:
        index = waiting.pop()
        step = reading.steps[index]
        if index in reading.flow.results and step.module is None:
            raise Unprovable("its result leaves the model")
        module = modules.get(step.module or "")
        if step.module is None and step.name in SAME and reading.users[index]:
            waiting += reading.users[index]
            continue
        if not isinstance(module, nn.Linear):
            raise Unprovable(f"{step.module or step.name} uses its result, too, and is no linear layer")
        reason = why_not(module)
        if reason is not None:
            raise Unprovable(f"{step.module} {reason}")
        if len(reading.calls(step.module or "")) != 1 or module.in_features != layer.channels:
            raise Unprovable(f"{step.module} is shared, or takes its result in another shape")
        readers[step.module or ""] = module
    if not readers:
        raise Unprovable("its result leaves the model")
    held = [id(p) for m in modules.values() for p in m._parameters.values() if p is not None]
    for reader, module in readers.items():
        if any(held.count(id(p)) > 1 for p in module._parameters.values() if p is not None):
            raise Unprovable(f"{reader} shares its weights with another layer")
    return list(readers.items())


def give_to_readers(model: nn.Module, found: Found, readers: list[tuple[str, nn.Linear]]) -> Callable[[], None]:
    """Let the readers take over weight and bias; gives what takes it back."""
    layer, old = found.layer, found.module
    scale: Any = layer.scale
    one = torch.ones(layer.channels, dtype=torch.float64)
    weight = one if scale is None else scale.detach().double().cpu().flatten().expand(layer.channels)
    bias = torch.zeros_like(one) if layer.bias is None else layer.bias.detach().double().cpu().flatten()
    undo = [remembered(reader) for _, reader in readers]
    for _, reader in readers:
        had = reader.bias is not None
        absorb_before(reader, weight, bias)
        if not had and layer.bias is None:
            reader._parameters["bias"] = None
    plain = nn.LayerNorm if layer.traits.centres else nn.RMSNorm
    new = plain(layer.channels, eps=layer.eps, elementwise_affine=False).train(old.training)
    undo.append(exchanged(model, old, new))

    def back() -> None:
        for step in undo:
            step()

    return back

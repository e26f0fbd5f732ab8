"""What a training step keeps in memory: saved for the backward pass, and at the peak."""

from __future__ import annotations

from typing import Any

import torch
from bench_contenders import Formula, Row, our_layer, problem, torch_layer
from torch import Tensor


def saved_bytes(layer: torch.nn.Module, x: Tensor) -> int:
    """Bytes of what autograd saves beside parameters and buffers, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    del y
    return sum(storages.values())


def peak_bytes(layer: torch.nn.Module, x: Tensor, g: Tensor) -> int:
    """The most that a step allocates at once, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], g)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure_memory(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """A switchable layer's step beside torch's batch norm and the formula."""
    row = Row("switchable", "float32", "NCHW", shape, 1)
    x, g = problem(row)
    layers = {
        "ours, switchable": our_layer("switchable", shape[1]),
        "ours, batch": our_layer("batch", shape[1]),
        "ours, batch with relu": torch.nn.Sequential(our_layer("batch", shape[1])),
        "torch.nn.BatchNorm2d": torch_layer("batch", shape[1]),
        "torch.nn.BatchNorm2d, then ReLU": torch.nn.Sequential(torch_layer("batch", shape[1]), torch.nn.ReLU()),
        "eager switchable formula": Formula("switchable", shape[1]),
    }
    layers["ours, batch with relu"][0].activation = "relu"
    size = x.numel() * x.itemsize
    return [
        {
            "layer": name,
            "shape": list(shape),
            "saved": saved_bytes(layer, x) / size,
            "peak": peak_bytes(layer, x, g) / size,
            "unit": "tensors of x's size",
        }
        for name, layer in layers.items()
    ]

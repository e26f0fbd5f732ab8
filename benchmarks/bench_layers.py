"""Layer by layer beside torch.nn: with tensors so small that Python is most of the time, and in evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from bench_timing import microseconds, take_turns, times_ours
from torch import Tensor

import normwise.nn as ours

IMAGES = ((2, 32, 4, 4), (32, 64, 28, 28))
# Our class, torch's (of switchable norm it has none), its arguments, and the shapes to try.
LAYERS: list[tuple[str, str, Callable[[tuple[int, ...]], tuple[int, ...]], tuple[tuple[int, ...], ...]]] = [
    ("BatchNorm1d", "BatchNorm1d", lambda shape: (shape[1],), ((16, 32), (256, 1024))),
    ("BatchNorm2d", "BatchNorm2d", lambda shape: (shape[1],), IMAGES),
    ("GroupNorm", "GroupNorm", lambda shape: (8, shape[1]), IMAGES),
    ("InstanceNorm2d", "InstanceNorm2d", lambda shape: (shape[1],), IMAGES),
    ("LayerNorm", "LayerNorm", lambda shape: (shape[-1],), ((2, 4, 32), (32, 128, 256))),
    ("RMSNorm", "RMSNorm", lambda shape: (shape[-1],), ((2, 4, 32), (32, 128, 256))),
    ("SwitchableNorm2d", "BatchNorm2d", lambda shape: (shape[1],), IMAGES),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the layer and of its input
USES = ("training", "evaluation", "evaluation with gradients")


def call(layer: torch.nn.Module, use: str, x: Tensor, g: Tensor) -> Callable[[], object]:
    """Forward, and where gradients are wanted backward."""
    layer.train(use == "training")
    leaves = [x, *layer.parameters()]
    if use == "evaluation":
        return torch.no_grad()(lambda: layer(x))
    return lambda: torch.autograd.grad(layer(x), leaves, g)


def measure_layers(seconds: float) -> list[dict[str, Any]]:
    """In torch's contiguous format, on one thread."""
    torch.set_num_threads(1)
    found = []
    for dtype, (name, theirs, arguments, shapes) in itertools.product(DTYPES, LAYERS):
        for shape in shapes:
            torch.manual_seed(0)
            x, g = torch.randn(shape).to(DTYPES[dtype]).requires_grad_(), torch.randn(shape).to(DTYPES[dtype])
            for use in USES:
                layers = {
                    "ours": getattr(ours, name)(*arguments(shape)).to(DTYPES[dtype]),
                    "torch": getattr(torch.nn, theirs)(*arguments(shape)).to(DTYPES[dtype]),
                }
                rounds = take_turns({who: call(layer, use, x, g) for who, layer in layers.items()}, seconds)
                found.append({
                    **{"layer": name, "torch": theirs, "dtype": dtype, "shape": list(shape), "use": use},
                    "rounds": len(rounds),
                    "microseconds": {who: microseconds(rounds, who) for who in layers},
                    "times_ours": times_ours(rounds, "torch"),
                })
    return found

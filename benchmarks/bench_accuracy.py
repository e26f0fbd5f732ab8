"""How far results are from the float64 formula, beside torch's own layer on the same input."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from bench_contenders import LAYOUTS, Formula, our_layer, torch_layer
from torch import Tensor

SHAPE = (8, 64, 28, 28)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def errors(layer: torch.nn.Module, x: Tensor, g: Tensor, truth: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """The largest error of y, and of dx relative to the largest dx."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    dx = torch.autograd.grad(y, leaf, g)[0]
    size = truth[1].abs().max().clamp_min(1e-300)
    return (y.double() - truth[0]).abs().max().item(), ((dx.double() - truth[1]).abs().max() / size).item()


def measure_accuracy() -> list[dict[str, Any]]:
    """Every method, dtype and layout, at means 0, 1e3, 1e6 and deviations 1, 1e-3."""
    found = []
    cases = product(("batch", "layer", "instance", "group"), DTYPES, LAYOUTS, (0.0, 1e3, 1e6), (1.0, 1e-3))
    for method, dtype, layout, mean, std in cases:
        torch.manual_seed(0)
        x = mean + std * torch.randn(SHAPE, dtype=torch.float64)
        if mean > torch.finfo(dtype).max:
            continue
        x, g = (t.to(dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, torch.randn(SHAPE)))
        leaf = x.double().requires_grad_()
        y = Formula(method, SHAPE[1]).double()(leaf)
        truth = (y.detach(), torch.autograd.grad(y, leaf, g.double())[0])
        ours = errors(our_layer(method, SHAPE[1]), x, g, truth)
        theirs = errors(torch_layer(method, SHAPE[1]), x, g, truth)
        found.append({
            **{"method": method, "dtype": str(dtype)[6:], "layout": layout, "mean": mean, "std": std},
            **{"y": ours[0], "torch_y": theirs[0], "dx": ours[1], "torch_dx": theirs[1]},
        })
    return found

"""How far results are from the float64 formula, beside torch's own layer on the same input."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from bench_contenders import LAYOUTS, Formula, our_layer, torch_layer
from torch import Tensor

from normwise import nn

SHAPE, POSITIONS = (8, 64, 28, 28), (512, 256)
LAST_AXIS = "last axis"  # in the place of a layout
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def errors(layer: torch.nn.Module, x: Tensor, g: Tensor, truth: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """The largest error of y, and of dx relative to the largest dx."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    dx = torch.autograd.grad(y, leaf, g)[0]
    size = truth[1].abs().max().clamp_min(1e-300)
    return (y.double() - truth[0]).abs().max().item(), ((dx.double() - truth[1]).abs().max() / size).item()


def contenders(method: str, dtype: torch.dtype, layout: str) -> tuple[torch.nn.Module, ...]:
    """The formula, our layer and torch's."""
    if layout != LAST_AXIS:
        formula = Formula(method, SHAPE[1]).double()
        return formula, our_layer(method, SHAPE[1]), torch_layer(method, SHAPE[1])
    ours, theirs = (getattr(package, method)(POSITIONS[-1]) for package in (nn, torch.nn))
    # Torch's RMS norm takes no parameters of another type than the input's.
    return OverLastAxis(method), ours.to(dtype), theirs.to(dtype)


def measure_accuracy() -> list[dict[str, Any]]:
    """Every method, dtype and layout, at means 0, 1e3, 1e6 and deviations 1, 1e-3."""
    found = []
    methods = product(("batch", "layer", "instance", "group"), DTYPES, LAYOUTS)
    last_axis = product(("LayerNorm", "RMSNorm"), DTYPES, [LAST_AXIS])
    for (method, dtype, layout), mean, std in product([*methods, *last_axis], (0.0, 1e3, 1e6), (1.0, 1e-3)):
        if mean > torch.finfo(dtype).max:
            continue
        torch.manual_seed(0)
        shape = POSITIONS if layout == LAST_AXIS else SHAPE
        x, g = mean + std * torch.randn(shape, dtype=torch.float64), torch.randn(shape)
        x, g = (t.to(dtype).contiguous(memory_format=LAYOUTS.get(layout, torch.contiguous_format)) for t in (x, g))
        formula, ours, theirs = contenders(method, dtype, layout)
        leaf = x.double().requires_grad_()
        y = formula(leaf)
        truth = (y.detach(), torch.autograd.grad(y, leaf, g.double())[0])
        (our_y, our_dx), (torch_y, torch_dx) = errors(ours, x, g, truth), errors(theirs, x, g, truth)
        found.append({
            **{"method": method, "dtype": str(dtype)[6:], "layout": layout, "mean": mean, "std": std},
            **{"y": our_y, "torch_y": torch_y, "dx": our_dx, "torch_dx": torch_dx},
        })
    return found


class OverLastAxis(torch.nn.Module):
    """The formula of layer norm or RMS norm, with the default eps of their layers."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.centered = method == "LayerNorm"
        self.eps = 1e-5 if self.centered else torch.finfo(torch.float32).eps

    def forward(self, x: Tensor) -> Tensor:
        values = x - x.mean(-1, keepdim=True) if self.centered else x
        return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.eps)

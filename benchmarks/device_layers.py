"""Operators and errors of the layers on a device without kernels of ours, on the tests' pretend accelerator.

What torch's kernels give there is what those of its CPU give: a GPU's may differ. Writes results/device-layers.json.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import pretend  # noqa: E402
from normwise import nn  # noqa: E402
from normwise.kernels import describe_environment  # noqa: E402

SHAPE = (8, 16, 14, 14)
MEANS = (0.0, 1e3, 1e6)
C = SHAPE[1]
Build = Callable[[], torch.nn.Module]
# A layer of ours, and torch's where there is one.
LAYERS: dict[str, tuple[Build, Build | None]] = {
    "BatchNorm2d": (lambda: nn.BatchNorm2d(C), lambda: torch.nn.BatchNorm2d(C)),
    "BatchNorm2d, skip_nonfinite=False": (
        lambda: nn.BatchNorm2d(C, skip_nonfinite=False),
        lambda: torch.nn.BatchNorm2d(C),
    ),
    "BatchNorm2d with relu": (
        lambda: nn.BatchNorm2d(C, activation="relu"),
        lambda: torch.nn.Sequential(torch.nn.BatchNorm2d(C), torch.nn.ReLU()),
    ),
    "GroupNorm": (lambda: nn.GroupNorm(4, C), lambda: torch.nn.GroupNorm(4, C)),
    "InstanceNorm2d, affine": (
        lambda: nn.InstanceNorm2d(C, affine=True),
        lambda: torch.nn.InstanceNorm2d(C, affine=True),
    ),
    "LayerNorm": (lambda: nn.LayerNorm(SHAPE[2:]), lambda: torch.nn.LayerNorm(SHAPE[2:])),
    "SwitchableNorm2d": (lambda: nn.SwitchableNorm2d(C), None),
    "SwitchableNorm2d, sparse": (lambda: nn.SwitchableNorm2d(C, sparse=True), None),
    "BatchRenorm": (lambda: nn.BatchRenorm(C), None),
    "BatchInstanceNorm": (lambda: nn.BatchInstanceNorm(C), None),
    "GhostBatchNorm": (lambda: nn.GhostBatchNorm(C, ghost_size=4), None),
}


def step(layer: torch.nn.Module, x: Tensor, g: Tensor) -> tuple[list[Tensor], pretend.Counts, pretend.Counts]:
    """Result, gradients of the input and the weight, and what forward and backward took."""
    x = x.detach().requires_grad_()
    with pretend.counting() as forward:
        y = layer(x)
    with pretend.counting() as backward:
        y.backward(g)
    weight = next(layer.parameters())
    found = [t.detach().cpu().double() for t in (y, x.grad, weight.grad) if t is not None]
    layer.zero_grad()
    return found, forward, backward


def operators(layer: torch.nn.Module, device: torch.device) -> list[int]:
    layer.to(device)
    x, g = torch.randn(SHAPE, device=device), torch.randn(SHAPE, device=device)
    step(layer, x, g)
    _, forward, backward = step(layer, x, g)
    assert not forward.reads + backward.reads
    return [forward.operators.total(), backward.operators.total()]


def errors(layer: torch.nn.Module, mean: float, device: torch.device) -> list[float]:
    """The largest errors of y, dx and dweight, relative to the largest of each."""
    torch.manual_seed(0)
    x, g = torch.randn(SHAPE) + mean, torch.randn(SHAPE)
    exact, *_ = step(copy.deepcopy(layer).double(), x.double(), g.double())
    found, *_ = step(copy.deepcopy(layer).to(device), x.to(device), g.to(device))
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]


def rows(device: torch.device) -> list[dict[str, Any]]:
    found = []
    for name, (build, torchs) in LAYERS.items():
        row: dict[str, Any] = {"layer": name, "operators": operators(build(), device)}
        row["torch_operators"] = None if torchs is None else operators(torchs(), device)
        # At the kink of an activation the smallest error of y turns a whole gradient off.
        exact = "relu" not in name
        row["errors"] = {f"{mean:g}": errors(build(), mean, device) for mean in MEANS} if exact else None
        found.append(row)
        print(row)
    return found


if __name__ == "__main__":
    settings = {"shape": SHAPE, "dtype": "float32", "errors": ["y", "dx", "dweight"], "command": "make device-layers"}
    stored = {"settings": settings, "environment": describe_environment(), "rows": rows(pretend.install())}
    (ROOT / "results" / "device-layers.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

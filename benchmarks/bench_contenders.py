"""Who is compared: our layers, torch's, the plain formulas (eager and compiled), and the limit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import normwise.nn as ours

METHODS = ("batch", "layer", "instance", "group", "switchable")
# Of the input. The layer is float32, as under autocast; in the rows "-cast" it is cast as well, as by model.bfloat16().
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bfloat16-cast": torch.bfloat16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = ((32, 64, 56, 56), (32, 512, 14, 14), (2, 256, 56, 56), (32, 2048, 7, 7), (64, 32, 8, 8))
GROUPS = 32
# Reads and writes of a tensor of x's size that training needs at least: see the README.
MOVES = {"batch": 8, "switchable": 8, "layer": 5, "instance": 5, "group": 5}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    method: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    threads: int

    def __str__(self) -> str:
        return f"{self.method} {self.dtype} {self.layout} {'x'.join(map(str, self.shape))} {self.threads}t"

    @property
    def layer_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype] if self.dtype.endswith("-cast") else torch.float32

    @property
    def megabytes(self) -> float:
        size = DTYPES[self.dtype].itemsize
        for n in self.shape:
            size *= n
        return size / 1e6


def our_layer(method: str, channels: int) -> torch.nn.Module:
    return {
        "batch": lambda: ours.BatchNorm2d(channels),
        "layer": lambda: ours.GroupNorm(1, channels),
        "instance": lambda: ours.InstanceNorm2d(channels, affine=True),
        "group": lambda: ours.GroupNorm(GROUPS, channels),
        "switchable": lambda: ours.SwitchableNorm2d(channels),
    }[method]()


def torch_layer(method: str, channels: int) -> torch.nn.Module:
    """Torch's layer; for the switchable mix, of which it has none, its batch norm."""
    return {
        "batch": lambda: torch.nn.BatchNorm2d(channels),
        "layer": lambda: torch.nn.GroupNorm(1, channels),
        "instance": lambda: torch.nn.InstanceNorm2d(channels, affine=True),
        "group": lambda: torch.nn.GroupNorm(GROUPS, channels),
        "switchable": lambda: torch.nn.BatchNorm2d(channels),
    }[method]()


class Formula(torch.nn.Module):
    """The method's formula as one writes it down, in eager torch."""

    def __init__(self, method: str, channels: int) -> None:
        super().__init__()
        self.method, self.groups = method, {"layer": 1, "group": GROUPS, "instance": channels}.get(method, 0)
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        if method == "switchable":
            self.mean_weight = torch.nn.Parameter(torch.ones(3))
            self.var_weight = torch.nn.Parameter(torch.ones(3))
            self.register_buffer("running_mean", torch.zeros(1, channels, 1))
            self.register_buffer("running_var", torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, self.weight.dtype))
        if self.method == "switchable":
            y = self._switchable(x.reshape(*x.shape[:2], -1)).reshape(x.shape)
        elif self.method == "batch":
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
            y = (x - mean) * torch.rsqrt(var + 1e-5)
        else:
            cells = x.reshape(x.shape[0], self.groups, -1)
            var, mean = torch.var_mean(cells, 2, correction=0, keepdim=True)
            y = ((cells - mean) * torch.rsqrt(var + 1e-5)).reshape(x.shape)
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(dtype)

    def _switchable(self, x: Tensor) -> Tensor:
        """Arxiv 1806.10779, eq. 3-5, with the shortcut from instance moments to the others."""
        mean_in, var_in = x.mean(2, keepdim=True), x.var(2, keepdim=True, correction=0)
        square = var_in + mean_in**2
        mean_ln, mean_bn = mean_in.mean(1, keepdim=True), mean_in.mean(0, keepdim=True)
        var_ln, var_bn = square.mean(1, keepdim=True) - mean_ln**2, square.mean(0, keepdim=True) - mean_bn**2
        with torch.no_grad():
            self.running_mean.mul_(0.9).add_(0.1 * mean_bn)
            self.running_var.mul_(0.9).add_(0.1 * var_bn)
        w, v = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = w[0] * mean_in + w[1] * mean_ln + w[2] * mean_bn
        var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn
        return (x - mean) / (var + 1e-5).sqrt()


def problem(row: Row, mean: float = 0.3, std: float = 1.5) -> tuple[Tensor, Tensor]:
    """An input that wants a gradient, and the gradient of the output."""
    torch.manual_seed(0)
    x, g = (
        (mean + std * torch.randn(row.shape)).to(DTYPES[row.dtype]).contiguous(memory_format=LAYOUTS[row.layout])
        for _ in range(2)
    )
    return x.requires_grad_(), g


def step(layer: torch.nn.Module, x: Tensor, g: Tensor) -> Callable[[], object]:
    """Training forward and backward, without the accumulation of gradients, which is nobody's."""
    leaves = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), leaves, g)


def contenders(row: Row, compiled: torch.nn.Module | None) -> dict[str, Callable[[], object]]:
    """Name → something to time. ``clone`` and ``copy`` are what the limit is made of; ``traffic`` is another."""
    x, g = problem(row)
    plain, target = x.detach(), torch.empty_like(x)
    channels, cast = row.shape[1], row.layer_dtype
    runs = {
        "ours": step(our_layer(row.method, channels).to(cast), x, g),
        "torch": step(torch_layer(row.method, channels).to(cast), x, g),
        "clone": plain.clone,
        "copy": lambda: target.detach().copy_(plain),
        "traffic": traffic(row, plain, g),
    }
    if row.method == "switchable":
        runs["formula"] = step(Formula(row.method, channels).to(cast), x, g)
    if compiled is not None:
        runs["compiled"] = step(compiled, x, g)
    return runs


def traffic(row: Row, x: Tensor, g: Tensor) -> Callable[[], object]:
    """The minimal moves once more, between the four tensors of a step: they need not fit the cache that one fits."""

    reads_twice = MOVES[row.method] == 8
    part = len(x) if reads_twice else len(x) // 2

    def run() -> None:
        y = x.clone()
        if reads_twice:
            y.copy_(x)
        g.clone()[:part].copy_(x[:part])

    return run


def compiled_formula(row: Row) -> torch.nn.Module:
    """The plain formula through torch.compile, for this row's shape."""
    torch._dynamo.reset()
    return torch.compile(copy.deepcopy(Formula(row.method, row.shape[1])))


def limit(row: Row, clone: float, move: float) -> float:
    """The time of the minimal moves: two outputs are new memory, the other moves are not."""
    return 2 * clone + (MOVES[row.method] / 2 - 2) * move

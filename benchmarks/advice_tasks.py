"""The tasks that the advice is measured on: small, on real data, from one sample a step to 64, plain to odd.

A random third of them, drawn here by a fixed seed before any outcome was known, is kept out while rules are written.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor, nn

from normwise.nn import NormFactory
from normwise.study import load_task
from normwise.study.tasks import Task, make_task
from normwise.study.tasks.images import ConvNet, digits, fashion_mnist


class Block(nn.Module):
    """A residual block: two normalized convolutions; the shortcut is the input, or a 1 × 1 convolution of it."""

    def __init__(self, norm: NormFactory, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 3, stride, 1), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1), norm(width)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def residual(norm: NormFactory, width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1),
        norm(width),
        nn.ReLU(),
        Block(norm, width, width, 1),
        Block(norm, width, 2 * width, 2),
        Block(norm, 2 * width, 2 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def plain(norm: NormFactory, widths: tuple[int, ...] = (16, 32, 32)) -> nn.Module:
    return ConvNet(norm, channels=1, classes=10, widths=widths)


def deep(
    norm: NormFactory, activation: type[nn.Module], depth: int, width: int, inputs: int, classes: int
) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), norm(width, dim=1), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def deep_conv(norm: NormFactory, activation: type[nn.Module], depth: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(width if i else 1, width, 3, 1 + (i == depth // 2), 1), norm(width), activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def table(load: Callable[..., Any]) -> tuple[Any, Any]:
    x, y = load(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y


def on_digits(model: Callable[..., nn.Module]) -> Task:
    return replace(make_task(model, digits(), name="digits"), threads=1)


def on_fashion(model: Callable[..., nn.Module]) -> Task:
    splits = fashion_mnist(train=2000, valid=1000)
    splits = splits._replace(test=splits.test.take(slice(2000)))
    return replace(make_task(model, splits, name="Fashion-MNIST"), threads=1)


def on_table(load: Callable[..., Any], inputs: int, classes: int) -> Task:
    model = partial(deep, activation=nn.ReLU, depth=4, width=32, inputs=inputs, classes=classes)
    return replace(make_task(model, table(load), name="table"), threads=1)


@dataclass(frozen=True)
class Case:
    """One task of the grid: how to make it, the batch size, the steps to train, and what its user would tell."""

    make: Callable[[], Task]
    batch_size: int
    steps: int
    told: dict[str, Any]


def case(make: Callable[[], Task], batch_size: int, steps: int, **told: Any) -> Case:
    return Case(make, batch_size, steps, told)


WIDE, NARROW = (48, 96, 96), (6, 12, 12)


def on_deep(activation: type[nn.Module], depth: int) -> Task:
    return on_digits(partial(deep, activation=activation, depth=depth, width=48, inputs=64, classes=10))


def on_deep_conv(activation: type[nn.Module]) -> Task:
    return on_digits(partial(deep_conv, activation=activation, depth=8, width=16))


CASES: dict[str, Case] = {
    "digits-plain-1": case(lambda: on_digits(plain), 1, 500),
    "digits-plain-2": case(lambda: on_digits(plain), 2, 400),
    "digits-plain-8": case(lambda: on_digits(plain), 8, 250),
    "digits-narrow-16": case(lambda: on_digits(partial(plain, widths=NARROW)), 16, 200),
    "digits-narrow-64": case(lambda: on_digits(partial(plain, widths=NARROW)), 64, 120),
    "digits-wide-4": case(lambda: on_digits(partial(plain, widths=WIDE)), 4, 250),
    "digits-residual-2": case(lambda: on_digits(residual), 2, 400),
    "digits-residual-32": case(lambda: on_digits(residual), 32, 120),
    "fashion-plain-2": case(lambda: on_fashion(plain), 2, 500),
    "fashion-plain-32": case(lambda: on_fashion(plain), 32, 160),
    "fashion-residual-4": case(lambda: on_fashion(residual), 4, 350),
    "fashion-residual-16": case(lambda: on_fashion(residual), 16, 200),
    "fashion-residual-64": case(lambda: on_fashion(residual), 64, 100),
    "digits-sigmoid-10-32": case(lambda: on_deep(nn.Sigmoid, 10), 32, 250),
    "digits-tanh-20-32": case(lambda: on_deep(nn.Tanh, 20), 32, 250),
    "digits-sigmoid-6-4": case(lambda: on_deep(nn.Sigmoid, 6), 4, 500),
    "digits-sigmoid-conv-16": case(lambda: on_deep_conv(nn.Sigmoid), 16, 250),
    "digits-tanh-conv-2": case(lambda: on_deep_conv(nn.Tanh), 2, 400),
    "cancer-mlp-16": case(lambda: on_table(load_breast_cancer, 30, 2), 16, 200),
    "wine-mlp-4": case(lambda: on_table(load_wine, 13, 3), 4, 200),
    "vowels-2": case(lambda: load_task("japanese-vowels"), 2, 400, variable_length=True),
    "vowels-16": case(lambda: load_task("japanese-vowels"), 16, 150, variable_length=True),
    "austen-16": case(lambda: load_task("austen"), 16, 150, task="language"),
    "textures-4": case(lambda: load_task("textures"), 4, 60, task="stylization"),
}  # fmt: skip

HELD_OUT = frozenset(random.Random(20260115).sample(sorted(CASES), len(CASES) // 3))

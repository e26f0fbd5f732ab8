"""What the claims' experiments train: small models on real images, varied where a claim asks for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normwise.nn import NormFactory, set_sparsity
from normwise.study.data import Splits
from normwise.study.optimize import Steps, warm_sgd
from normwise.study.tasks import MakeModel, Task, load_task
from normwise.study.tasks.images import ConvNet

# As few samples as a measurement of memory needs.
_FEW = {"train": 320, "valid": 32, "test": 32}


@functools.cache
def digits() -> Task:
    """Give scikit-learn's digits with the reference model."""
    return load_task("digits")


@functools.cache
def fashion() -> Task:
    """Give a little of Fashion-MNIST, whose images have a common size, with the reference model."""
    task = load_task("fashion-mnist")
    parts = {name: getattr(task.splits, name).take(slice(size)) for name, size in _FEW.items()}
    return dataclasses.replace(task, splits=Splits(**parts), source=None)


def even_convnet(norm: NormFactory) -> nn.Module:
    """Build a convolutional network whose layers have 16 channels each, so that 16 groups are instance norm."""
    return ConvNet(norm, channels=1, classes=10, widths=(16, 16, 16))


class DeepNet(nn.Sequential):
    """Fully connected layers of 32 units in a row, each normalized before its activation, with Glorot's start."""

    def __init__(self, norm: NormFactory, depth: int, activation: type[nn.Module], inputs: int = 64) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in [inputs] + [32] * (depth - 1):
            layers += [_glorot(width, 32), norm(32, dim=1), activation()]
        super().__init__(*layers, _glorot(32, 10))


def _glorot(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Jitter(nn.Module):
    """Shifts and scales each channel by new random numbers in every training step, as Santurkar et al. 2018 did.

    y = x · exp(a) + b with a, b drawn from normal distributions of deviation ``strength``, per channel and step;
    identity in evaluation.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        """Disturb ``x`` in training."""
        if not self.training:
            return x
        shape = (1, x.shape[1], *[1] * (x.ndim - 2))
        a, b = (self.strength * torch.randn(shape, dtype=x.dtype, device=x.device) for _ in range(2))
        return x * a.exp() + b


def jittered(make_model: MakeModel, strength: float) -> MakeModel:
    """Put a :class:`Jitter` behind every normalization layer of a model."""

    def make(norm: NormFactory) -> nn.Module:
        def disturbed(num_features: int, dim: int | None = None, **more: Any) -> nn.Module:
            return nn.Sequential(norm(num_features, dim, **more), Jitter(strength))

        return make_model(disturbed)

    return make


def scaled(make_model: MakeModel, factor: float) -> MakeModel:
    """Multiply the initial weights of a model's convolutions and linear layers."""

    def make(norm: NormFactory) -> nn.Module:
        model = make_model(norm)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.weight.mul_(factor)
        return model

    return make


def variant(base: Callable[[], Task], **changes: object) -> Callable[[], Task]:
    """Give a task with some fields changed, made when it is asked for."""

    def make() -> Task:
        task = base()
        given = dict(changes)
        wrap = given.pop("wrap", None)
        if wrap is not None:
            given["make_model"] = wrap(task.make_model)  # type: ignore[operator]
        return dataclasses.replace(task, **given)  # type: ignore[arg-type]

    return make


class Sharpening:
    """A schedule that also takes a model's sparse switchable layers from a mix to one method.

    The least distance from an even mix is 0 for the first fifth of the steps, then rises to 1 at four fifths.
    """

    def __init__(self, model: nn.Module, rest: Steps, total: int) -> None:
        self._model, self._rest, self._total = model, rest, total
        self._done = 0

    def step(self) -> None:
        """Go on by one step."""
        self._rest.step()
        self._done += 1
        set_sparsity(self._model, min(max((self._done / self._total - 0.2) / 0.6, 0.0), 1.0))


def sharpening_sgd(model: nn.Module, lr: float, steps: int) -> tuple[Steps, Steps]:
    """Make the study's optimizer with a :class:`Sharpening` schedule."""
    optimizer, schedule = warm_sgd(model, lr, steps)
    return optimizer, Sharpening(model, schedule, steps)

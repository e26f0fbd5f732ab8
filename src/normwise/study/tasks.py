"""What is trained: a model, its data, its loss and its score."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.nn import NormFactory, norm_layer
from normwise.study.data import FASHION_FOLDER, Part, Splits, as_part, digits, fashion_mnist, split

DATASETS = ("digits", "fashion-mnist")


class MakeModel(Protocol):
    """Builds a new, freshly initialized model, taking its normalization layers from ``norm(channels)``."""

    def __call__(self, norm: NormFactory, /) -> nn.Module:
        """Build a model."""
        ...


@dataclass(frozen=True)
class Task:
    """A model, its data and how a result is scored; higher scores are better.

    ``floor`` is what a diverged trial scores: what guessing would. ``steps`` is the length of a default trial at batch
    size 2; ``threads`` are torch's while a trial runs (``None`` leaves them), one being fastest for small models.
    ``source`` is what :func:`load_task` makes the same task from, if anything.

    Example:
        >>> load_task("digits").score_name
        'accuracy'
    """

    name: str
    splits: Splits
    make_model: MakeModel
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    score_name: str
    floor: float
    steps: int = 1000
    quick_steps: int = 250
    threads: int | None = None
    source: str | None = None

    @property
    def dim(self) -> int:
        """Spatial axes of the inputs, for ``norm``: 1 for (N, C) and (N, C, L), 2 for images, 3 for volumes."""
        return min(max(self.splits.train.inputs.ndim - 2, 1), 3)

    def norm(self, method: str) -> NormFactory:
        """Give the factory that a model of this task takes its layers from.

        Args:
            method: a key of ``METHODS``.

        Returns:
            ``norm(channels) -> Module``.

        Example:
            >>> load_task("digits").norm("instance")(3)
            InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=True, ...)
        """
        return norm_layer(method, dim=self.dim)

    def describe_model(self) -> str:
        """Describe the model, with a fingerprint of its structure and data, so that two studies can be told apart.

        Returns:
            One line.

        Example:
            >>> load_task("digits").describe_model()
            'ConvNet, ... parameters without normalization (fingerprint ...)'
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.make_model(self.norm("none"))
        count = sum(p.numel() for p in model.parameters())
        digest = hashlib.sha256(f"{model!r}{self.splits.fingerprint()}".encode()).hexdigest()[:8]
        return f"{type(model).__name__}, {count:,} parameters without normalization (fingerprint {digest})"


class ConvNet(nn.Sequential):
    """The reference model for small images: convolutions of 3 × 3, each normalized, halving the image twice.

    Narrow for its task on purpose, so that methods differ.

    Args:
        norm: gives the normalization layers.
        channels: of the input.
        classes: of the output.
        widths: channels of each convolution.

    Example:
        >>> ConvNet(norm_layer("batch"), channels=1, classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, norm: NormFactory, channels: int, classes: int, widths: tuple[int, ...] = (16, 32, 32)) -> None:
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            # Halved where the width grows, and once more before the last convolution.
            stride = 2 if (i and width > widths[i - 1]) or i == len(widths) - 1 else 1
            convolution = nn.Conv2d(channels, width, 3, stride, padding=1)
            # He's initialization: it is what gives the model without normalization a fair chance.
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, norm(width), nn.ReLU()]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def small_convnet(norm: NormFactory) -> nn.Module:
    """Build the reference model of the embedded tasks: one input channel, ten classes.

    Args:
        norm: gives the normalization layers.

    Returns:
        The model.

    Example:
        >>> len(small_convnet(norm_layer("none")))
        12
    """
    return ConvNet(norm, channels=1, classes=10)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of samples whose largest output is that of their class.

    Args:
        outputs: (N, K, ...) scores per class.
        targets: (N, ...) class numbers.

    Returns:
        A number from 0 to 1.

    Example:
        >>> accuracy(torch.eye(3), torch.tensor([0, 1, 0]))
        0.666...
    """
    return (outputs.argmax(1) == targets).double().mean().item()


def r_squared(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained, R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², not below 0.

    Args:
        outputs: of the targets' shape.
        targets: real values.

    Returns:
        A number from 0 to 1.

    Example:
        >>> r_squared(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        1.0
    """
    outputs, targets = outputs.double(), targets.double()
    spread = (targets - targets.mean(0)).square().sum()
    return (1 - (targets - outputs).square().sum() / spread.clamp_min(1e-300)).clamp_min(0).item()


def load_task(name: str) -> Task:
    """Give a named task with its reference model.

    Args:
        name: ``"digits"``, ``"fashion-mnist"`` or ``"fashion-mnist:FOLDER"``.

    Returns:
        The task.

    Raises:
        InputError: there is no such task; the message names the nearest.

    Example:
        >>> load_task("digts")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: unknown data set 'digts': did you mean 'digits'? Known are digits, fashion-mnist
    """
    kind, _, folder = name.partition(":")
    if name == "digits":
        return _classification(name, digits(), small_convnet, source=name, steps=640, quick_steps=100, threads=1)
    if kind == "fashion-mnist":
        splits = fashion_mnist(folder or FASHION_FOLDER)
        return _classification(kind, splits, small_convnet, source=name, steps=2000, quick_steps=100, threads=1)
    raise InputError(f"unknown data set {name!r}: {nearest(name, DATASETS)}Known are {', '.join(DATASETS)}")


def make_task(make_model: MakeModel, data: Any, name: str = "own data") -> Task:
    """Make a task of the user's model and data: classification for whole-number targets, else regression.

    Args:
        make_model: ``make_model(norm)`` builds a fresh model.
        data: the name of a data set, :class:`Splits`, or ``(inputs, targets)``, which are split 60/20/20.
        name: of the task.

    Returns:
        The task.

    Raises:
        InputError: ``make_model`` cannot be called, or the data are of another form.

    Example:
        >>> task = make_task(small_convnet, (torch.zeros(100, 1, 8, 8), torch.arange(100) % 10))
        >>> task.score_name, task.floor
        ('accuracy', 0.1)
    """
    if not callable(make_model):
        raise InputError(f"make_model must be a function of norm that builds a model, got {type(make_model).__name__}")
    if isinstance(data, str):
        return _classification(data, load_task(data).splits, make_model)
    if isinstance(data, tuple) and len(data) == 3:
        splits = Splits(*(as_part(x, y, part) for part, (x, y) in zip(Splits._fields, data, strict=True)))
    elif isinstance(data, tuple) and len(data) == 2:
        splits = split(*data)
    else:
        raise InputError(
            f"data must be a name ({', '.join(DATASETS)}), Splits(train, valid, test) or (inputs, targets), "
            f"got {type(data).__name__}"
        )
    if splits.train.targets.is_floating_point():
        return Task(name, splits, make_model, nn.functional.mse_loss, r_squared, "R²", floor=0.0)
    return _classification(name, splits, make_model)


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Say which known name comes nearest to a mistyped one.

    Args:
        name: what came.
        known: what there is.

    Returns:
        A question ending in a space, or nothing.

    Example:
        >>> nearest("bacth", ["batch", "layer"])
        "did you mean 'batch'? "
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _classification(name: str, splits: Splits, make_model: MakeModel, **options: Any) -> Task:
    floor = _commonest_share(splits.valid)
    return Task(name, splits, make_model, nn.functional.cross_entropy, accuracy, "accuracy", floor, **options)


def _commonest_share(part: Part) -> float:
    """What always guessing the commonest class scores."""
    return part.targets.unique(return_counts=True)[1].max().item() / part.targets.numel()

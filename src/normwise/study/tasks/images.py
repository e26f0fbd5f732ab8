"""Small images: scikit-learn's digits and Fashion-MNIST, with a narrow convolutional network."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from normwise.errors import DataError, MissingDependencyError
from normwise.nn import NormFactory
from normwise.study.data import Part, Splits, split
from normwise.study.tasks.base import Task, classification

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
_IDX_UBYTE = 0x08


class ConvNet(nn.Sequential):
    """The reference model for small images: convolutions of 3 × 3, each normalized, halving the image twice.

    Narrow for its task on purpose, so that methods differ.
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
    """Build the reference model of the embedded tasks: one input channel, ten classes."""
    return ConvNet(norm, channels=1, classes=10)


def digits() -> Splits:
    """Read scikit-learn's digits: 1,797 images of 8 × 8, ten classes, embedded in the package."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("the digits need scikit-learn: pip install 'normwise[compare]'") from error
    images, labels = load_digits(return_X_y=True)
    return split(images.reshape(-1, 1, 8, 8) / 16, labels)


def fashion_mnist(folder: str | Path = FASHION_FOLDER, train: int = 12_000, valid: int = 4_000) -> Splits:
    """Read Fashion-MNIST's IDX files, as the Debian package ``dataset-fashion-mnist`` installs them.

    Training and validation are drawn from the 60,000 training images, the same ones each time; the test part is the
    data set's own. Inputs are standardized by the mean and deviation of the training part.
    """
    folder = Path(folder)
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        raise DataError(
            f"no Fashion-MNIST in {folder}: expected train-images-idx3-ubyte.gz and its three companions; install "
            "them with 'apt-get install dataset-fashion-mnist' or name their folder: --data fashion-mnist:FOLDER"
        )
    images, labels = _fashion_part(folder, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = [(images[i], labels[i]) for i in (order[:train], order[train : train + valid])]
    # In float64: the last bits of a float32 sum depend on the number of threads, and with them the data's fingerprint.
    pixels = parts[0][0].double()
    mean, deviation = pixels.mean().item(), pixels.std().item()
    return Splits(*(Part((x - mean) / deviation, y) for x, y in (*parts, _fashion_part(folder, "t10k"))))


def _fashion_part(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    images = _read_idx(folder / f"{name}-images-idx3-ubyte.gz", axes=3)
    labels = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz", axes=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels in '{name}'")
    return images.float().unsqueeze(1) / 255, labels.long()


def _read_idx(path: Path, axes: int) -> Tensor:
    """Read an IDX file of bytes: two zero bytes, the type, the number of axes, their sizes (big-endian), the data."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    header = 4 + 4 * axes
    if len(raw) < header or raw[:4] != bytes((0, 0, _IDX_UBYTE, axes)):
        raise DataError(f"{path} is not an IDX file of bytes with {axes} axes")
    shape = np.frombuffer(raw, ">u4", axes, offset=4).tolist()
    if len(raw) - header != int(np.prod(shape)):
        raise DataError(f"{path} is cut short: {len(raw) - header} bytes for the shape {shape}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def digits_task(source: str) -> Task:
    """The embedded task: scikit-learn's digits."""
    return classification(source, digits(), small_convnet, source=source, steps=640, quick_steps=100, threads=1)


def fashion_task(source: str) -> Task:
    """Fashion-MNIST."""
    name, _, folder = source.partition(":")
    splits = fashion_mnist(folder or FASHION_FOLDER)
    return classification(name, splits, small_convnet, source=source, steps=2000, quick_steps=100, threads=1)

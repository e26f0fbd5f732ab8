"""Data with separate training, validation and test parts, from packages or from the user's tensors."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normwise.errors import DataError, InputError, MissingDependencyError

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
_IDX_UBYTE = 0x08


class Part(NamedTuple):
    """Inputs (N, ...) and targets (N, ...) of one part of a data set.

    Example:
        >>> len(Part(torch.zeros(5, 1, 8, 8), torch.zeros(5)).inputs)
        5
    """

    inputs: Tensor
    targets: Tensor

    def take(self, index: Tensor | slice) -> Part:
        """Select samples.

        Args:
            index: positions, a mask or a slice.

        Returns:
            The part with those samples.

        Example:
            >>> Part(torch.arange(3), torch.arange(3)).take(torch.tensor([2])).inputs
            tensor([2])
        """
        return Part(self.inputs[index], self.targets[index])


class Splits(NamedTuple):
    """The parts a comparison needs: it trains on ``train``, chooses on ``valid`` and reports ``test``.

    Example:
        >>> part = Part(torch.zeros(4, 3), torch.zeros(4))
        >>> Splits(part, part, part).sizes()
        {'train': 4, 'valid': 4, 'test': 4}
    """

    train: Part
    valid: Part
    test: Part

    def sizes(self) -> dict[str, int]:
        """Count the samples of each part.

        Returns:
            Name → count.

        Example:
            >>> part = Part(torch.zeros(4, 3), torch.zeros(4))
            >>> Splits(part, part, part).sizes()["train"]
            4
        """
        return {name: len(part.inputs) for name, part in zip(self._fields, self, strict=True)}

    def fingerprint(self) -> str:
        """Name the content: equal data gives equal names, on every machine.

        Returns:
            Eight hexadecimal digits.

        Example:
            >>> part = Part(torch.zeros(4, 3), torch.zeros(4))
            >>> len(Splits(part, part, part).fingerprint())
            8
        """
        digest = hashlib.sha256()
        for part in self:
            for tensor in part:
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


def split(inputs: Any, targets: Any) -> Splits:
    """Split data 60/20/20 into training, validation and test, with each class in proportion.

    The split depends on the targets only, never on the machine or on torch's global seed.

    Args:
        inputs: (N, ...) tensor or array.
        targets: (N,) class numbers, or (N, ...) real values.

    Returns:
        The parts.

    Raises:
        InputError: the lengths differ or there are too few samples.

    Example:
        >>> split(torch.zeros(100, 1, 8, 8), torch.arange(100) % 2).sizes()
        {'train': 60, 'valid': 20, 'test': 20}
    """
    whole = as_part(inputs, targets, "the data")
    if len(whole.inputs) < 10:
        raise InputError(f"{len(whole.inputs)} samples are too few to split into training, validation and test")
    order = torch.randperm(len(whole.inputs), generator=torch.Generator().manual_seed(0))
    if not whole.targets.is_floating_point():
        # Dealt out class by class, every fifth sample: the classes stay in proportion without counting them.
        order = order[torch.argsort(whole.targets[order].reshape(len(order), -1)[:, 0], stable=True)]
    turn = torch.arange(len(order)) % 5
    train, valid, test = (whole.take(order[mask]) for mask in (turn > 1, turn == 0, turn == 1))
    return Splits(train, valid, test)


def as_part(inputs: Any, targets: Any, name: str) -> Part:
    """Check one part's inputs and targets and turn arrays into tensors.

    Args:
        inputs: (N, ...) tensor or array; float64 becomes float32.
        targets: (N, ...) likewise.
        name: what to call it in an error.

    Returns:
        The part.

    Raises:
        InputError: something other than tensors or arrays, unequal lengths, or non-finite inputs.

    Example:
        >>> as_part(np.zeros((4, 3)), [0, 1, 0, 1], "train").inputs.dtype
        torch.float32
    """
    try:
        x, y = (torch.as_tensor(t) for t in (inputs, targets))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected tensors or arrays of inputs and targets: {error}") from error
    x, y = (t.float() if t.dtype == torch.float64 else t for t in (x, y))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise InputError(f"{name}: inputs {tuple(x.shape)} and targets {tuple(y.shape)} differ in length")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise InputError(f"{name}: the inputs contain NaN or infinite values; clean them first")
    return Part(x, y if y.is_floating_point() else y.long())


def digits() -> Splits:
    """Read scikit-learn's digits: 1,797 images of 8 × 8, ten classes, embedded in the package.

    Returns:
        The parts, with inputs (N, 1, 8, 8) from 0 to 1.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> digits().sizes()
        {'train': 1077, 'valid': 360, 'test': 360}
    """
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

    Args:
        folder: where the four ``*-ubyte.gz`` files are.
        train: images to train on.
        valid: images to choose on.

    Returns:
        The parts, with inputs (N, 1, 28, 28).

    Raises:
        DataError: a file is missing or is not what it should be.

    Example:
        >>> fashion_mnist("nowhere")
        Traceback (most recent call last):
        ...
        normwise.errors.DataError: no Fashion-MNIST in nowhere: ...
    """
    folder = Path(folder)
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        raise DataError(
            f"no Fashion-MNIST in {folder}: expected train-images-idx3-ubyte.gz and its three companions; install "
            "them with 'apt-get install dataset-fashion-mnist' or name their folder: --data fashion-mnist:FOLDER"
        )
    whole, test = (_fashion_part(folder, name) for name in ("train", "t10k"))
    order = torch.randperm(len(whole.inputs), generator=torch.Generator().manual_seed(0))
    parts = [whole.take(order[:train]), whole.take(order[train : train + valid]), test]
    mean, deviation = parts[0].inputs.mean(), parts[0].inputs.std()
    return Splits(*(Part((part.inputs - mean) / deviation, part.targets) for part in parts))


def _fashion_part(folder: Path, name: str) -> Part:
    images = _read_idx(folder / f"{name}-images-idx3-ubyte.gz", axes=3)
    labels = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz", axes=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels in '{name}'")
    return Part(images.float().unsqueeze(1) / 255, labels.long())


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

"""Data with separate training, validation and test parts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normwise import devices
from normwise.errors import InputError

# One tensor, or several that belong together sample by sample: a padded batch and its lengths, say.
Values = Tensor | tuple[Tensor, ...]
# Which samples make a batch, and the seed of what is drawn while they are read.
Wanted = tuple[Tensor, int]
# Of a data set that stays on the device, in bytes.
_KEPT = 2**30


class Part(NamedTuple):
    """Inputs and targets of one part of a data set, each (N, ...) or a tuple of such.

    A model is called as ``model(*inputs)`` where the inputs are a tuple, else as ``model(inputs)``.

    Example:
        >>> part = Part((torch.zeros(5, 12, 29), torch.arange(5) + 7), torch.zeros(5))
        >>> part.size, part.take(slice(2)).inputs[1]
        (5, tensor([7, 8]))
    """

    inputs: Values
    targets: Values

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(tensors_of(self.inputs)[0])

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
        return Part(_taken(self.inputs, index), _taken(self.targets, index))

    def sketch(self) -> Iterator[Tensor]:
        """Give the content to tell data sets apart by: all of it.

        Yields:
            Tensors.

        Example:
            >>> len(list(Part(torch.arange(3), torch.arange(3)).sketch()))
            2
        """
        yield from (*tensors_of(self.inputs), *tensors_of(self.targets))

    def load(self, seed: int = 0) -> Part:
        """Give the samples themselves; they are there already.

        Args:
            seed: of what a data set draws when it is read.

        Returns:
            The part.

        Example:
            >>> Part(torch.arange(3), torch.arange(3)).load().size
            3
        """
        return self

    def batches(self, size: int) -> Iterator[Part]:
        """Go through the samples in order, the last batch being what is left.

        Args:
            size: samples a batch.

        Yields:
            The batches.

        Example:
            >>> [batch.size for batch in Part(torch.arange(5), torch.arange(5)).batches(2)]
            [2, 2, 1]
        """
        for start in range(0, self.size, size):
            yield self.take(slice(start, start + size))


class Samples:
    """One part of a torch data set of the user's, read when it is needed."""

    def __init__(self, dataset: Any, collate: Callable | None = None, index: Tensor | None = None) -> None:
        self.dataset = dataset
        self.collate = collate
        self.index = torch.arange(len(dataset)) if index is None else index

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.index)

    def take(self, index: Tensor | slice) -> Samples:
        """Select samples, without reading them."""
        return Samples(self.dataset, self.collate, self.index[index])

    def load(self, seed: int = 0) -> Any:
        """Read the samples as one batch.

        What the data set draws at random while it is read depends on ``seed`` only, and moves no generator of the
        program's.
        """
        from torch.utils.data import default_collate

        with _drawing(seed):
            samples = [self.dataset[i] for i in self.index.tolist()]
            batch = (self.collate or default_collate)(samples)
        if any(not t.is_cpu for t in _leaves(batch)):
            batch = devices.move(batch, devices.CPU)  # where models are built and what is drawn is drawn
        if isinstance(batch, tuple | list) and len(batch) == 2:
            pair = [tuple(v) if isinstance(v, list) else v for v in batch]
            if all(isinstance(t, Tensor) for v in pair for t in (v if isinstance(v, tuple) else (v,))):
                return Part(*pair)
        return batch

    def batches(self, size: int) -> Iterator[Samples]:
        """Go through the samples in order, the last batch being what is left."""
        for start in range(0, self.size, size):
            yield self.take(slice(start, start + size))

    def sketch(self) -> Iterator[Tensor]:
        """Give some of the content to tell data sets apart by: sixteen samples, evenly spread, and the size."""
        yield torch.tensor(self.size)
        for i in range(min(self.size, 16)):
            yield from _leaves(self.take(slice(i * self.size // min(self.size, 16), None)).take(slice(1)).load())


class Sent:
    """One part of the data that goes to a device batch by batch, when it is read."""

    def __init__(self, part: Part | Samples, device: torch.device) -> None:
        self.part, self.device = part, device

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.part.size

    def take(self, index: Tensor | slice) -> Sent:
        """Select samples, without reading them."""
        return Sent(self.part.take(index), self.device)

    def load(self, seed: int = 0) -> Any:
        """Read the samples as one batch, on the device."""
        return devices.move(self.part.load(seed), self.device)

    def batches(self, size: int) -> Iterator[Sent]:
        """Go through the samples in order, the last batch being what is left."""
        return (Sent(piece, self.device) for piece in self.part.batches(size))

    def sketch(self) -> Iterator[Tensor]:
        """Give some of the content to tell data sets apart by."""
        return self.part.sketch()


def on_device(splits: Splits, device: torch.device, augmented: bool) -> Splits:
    """Splits whose batches come on a device; small tensors are brought there once and stay, if nothing changes them."""
    parts: list[Part | Samples | Sent] = list(splits)
    tensors = [t for part in splits if isinstance(part, Part) for t in part.sketch()]
    small = sum(t.numel() * t.element_size() for t in tensors) <= _KEPT
    for i, part in enumerate(splits):
        if isinstance(part, Part) and small and not (augmented and part is splits.train):
            parts[i] = Part(*(_to(values, device) for values in part))
        else:
            parts[i] = Sent(part, device)
    return Splits(*parts)  # type: ignore[arg-type]


def _to(values: Values, device: torch.device) -> Values:
    return tuple(t.to(device) for t in values) if isinstance(values, tuple) else values.to(device)


def read(part: Part | Samples | Sent, wanted: Iterable[Wanted], num_workers: int = 0) -> Iterator[Any]:
    """Read batches one after the other; of a user's data set, processes may read ahead. The batches are the same."""
    source, device = (part.part, part.device) if isinstance(part, Sent) else (part, None)
    if not num_workers or isinstance(source, Part):
        for index, seed in wanted:
            yield part.take(index).load(seed)
        return
    pin = device is not None and devices.pins(device)
    # A generator of its own: the loader draws from it, and the program's draws must stay those of a run without.
    loader: Any = torch.utils.data.DataLoader(
        _Reading(source),
        batch_size=None,
        sampler=wanted,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield devices.move(batch, device)


class _Reading(torch.utils.data.Dataset[Any]):
    """Batches by which samples they hold."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, wanted: Wanted) -> Any:
        index, seed = wanted
        return self._samples.take(index).load(seed)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Let torch, NumPy and Python draw from a seed for a while."""
    kept, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(kept)
            random.setstate(python)


def _leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _leaves(value)


def tensors_of(values: Values) -> tuple[Tensor, ...]:
    """Give one or several tensors as several."""
    return values if isinstance(values, tuple) else (values,)


def run(model: nn.Module, inputs: Values) -> Any:
    """Call a model on one input or several; of outputs that hold ``logits``, as those of transformers, give these."""
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return getattr(outputs, "logits", outputs)


def of_tokens(inputs: Any) -> bool:
    """Whether inputs are sequences of tokens, whole numbers (N, L), and maybe what belongs to them: a mask, lengths."""
    if not isinstance(inputs, Tensor | tuple):
        return False
    first = tensors_of(inputs)[0]
    return first.ndim == 2 and first.dtype in (torch.int32, torch.int64)


def _taken(values: Values, index: Tensor | slice) -> Values:
    return tuple(t[index] for t in values) if isinstance(values, tuple) else values[index]


class Splits(NamedTuple):
    """The parts a comparison needs: it trains on ``train``, chooses on ``valid`` and reports ``test``.

    Example:
        >>> part = Part(torch.zeros(4, 3), torch.zeros(4))
        >>> Splits(part, part, part).sizes()
        {'train': 4, 'valid': 4, 'test': 4}
    """

    train: Part | Samples
    valid: Part | Samples
    test: Part | Samples

    def sizes(self) -> dict[str, int]:
        """Count the samples of each part.

        Returns:
            Name → count.

        Example:
            >>> part = Part(torch.zeros(4, 3), torch.zeros(4))
            >>> Splits(part, part, part).sizes()["train"]
            4
        """
        return {name: part.size for name, part in zip(self._fields, self, strict=True)}

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
            for tensor in part.sketch():
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


def split(inputs: Any, targets: Any) -> Splits:
    """Split data 60/20/20 into training, validation and test, with each class in proportion.

    The split depends on the targets only, never on the machine or on torch's global seed.
    """
    whole = as_part(inputs, targets, "the data")
    if whole.size < 10:
        raise InputError(f"{whole.size} samples are too few to split into training, validation and test")
    order = torch.randperm(whole.size, generator=torch.Generator().manual_seed(0))
    if isinstance(whole.targets, Tensor) and not whole.targets.is_floating_point():
        # Dealt out class by class, every fifth sample: the classes stay in proportion without counting them.
        order = order[torch.argsort(whole.targets[order].reshape(len(order), -1)[:, 0], stable=True)]
    turn = torch.arange(len(order)) % 5
    train, valid, test = (whole.take(order[mask]) for mask in (turn > 1, turn == 0, turn == 1))
    return Splits(train, valid, test)


def as_part(inputs: Any, targets: Any, name: str) -> Part:
    """Check one part's inputs and targets and turn arrays into tensors."""
    x, y = (_as_values(values, name) for values in (inputs, targets))
    lengths = {len(t) if t.ndim else None for t in (*tensors_of(x), *tensors_of(y))}
    if None in lengths or len(lengths) != 1:
        raise InputError(f"{name}: inputs {_shapes(x)} and targets {_shapes(y)} differ in length")
    if not all(bool(torch.isfinite(t).all()) for t in tensors_of(x) if t.is_floating_point()):
        raise InputError(f"{name}: the inputs contain NaN or infinite values; clean them first")
    return Part(x, _whole(y))


def _as_values(values: Any, name: str) -> Values:
    """Tensors of what came; a tuple is several where it holds arrays, else one array of numbers."""
    if isinstance(values, tuple) and values and all(getattr(v, "ndim", 0) for v in values):
        return tuple(_as_tensor(v, name) for v in values)
    return _as_tensor(values, name)


def _as_tensor(values: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected tensors or arrays of inputs and targets: {error}") from error
    # Where it is trained is the comparison's affair; what is drawn is drawn on the CPU.
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).cpu()


def _whole(targets: Values) -> Values:
    """Class numbers as torch's losses want them."""
    if isinstance(targets, tuple):
        return tuple(t if t.is_floating_point() else t.long() for t in targets)
    return targets if targets.is_floating_point() else targets.long()


def _shapes(values: Values) -> str:
    return " and ".join(str(tuple(t.shape)) for t in tensors_of(values))

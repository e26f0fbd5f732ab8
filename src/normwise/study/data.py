"""Data with separate training, validation and test parts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normwise import devices
from normwise.arguments.data import as_table, named_pair
from normwise.errors import InputError
from normwise.surgery.running import inputs_of, run_on

# One tensor, or several that belong together sample by sample, in order or by name: padded inputs and their lengths.
Values = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
# Which samples make a batch, and the seed of what is drawn while they are read.
Wanted = tuple[Tensor, int]


class Part(NamedTuple):
    """Inputs and targets of one part of a data set, each (N, ...), or several of such in a tuple or by name.

    A model is called as ``model(*inputs)`` where the inputs are a tuple, with those that its ``forward`` knows where
    they have names, else as ``model(inputs)``.

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


class Samples(torch.utils.data.Dataset[Any]):
    """One part of a torch data set of the user's, read when it is needed."""

    def __init__(
        self, dataset: Any, collate: Callable | None = None, index: Tensor | None = None, paired: bool = False
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.paired = paired  # batches of named items become inputs and targets
        self.index = torch.arange(len(dataset)) if index is None else index

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.index)

    def take(self, index: Tensor | slice) -> Samples:
        """Select samples, without reading them."""
        return Samples(self.dataset, self.collate, self.index[index], self.paired)

    def as_pairs(self) -> Samples:
        """The same, whose batches of named items, or of several tensors, are inputs and targets."""
        return Samples(self.dataset, self.collate, self.index, paired=True)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> Any:
        return self.dataset[int(self.index[number])]

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
        return (pair_of(batch) or batch) if self.paired else batch

    def batches(self, size: int) -> Iterator[Samples]:
        """Go through the samples in order, the last batch being what is left."""
        for start in range(0, self.size, size):
            yield self.take(slice(start, start + size))

    def sketch(self) -> Iterator[Tensor]:
        """Give some of the content to tell data sets apart by: sixteen samples, evenly spread, and the size."""
        yield torch.tensor(self.size)
        for i in range(min(self.size, 16)):
            yield from _leaves(self.take(slice(i * self.size // min(self.size, 16), None)).take(slice(1)).load())


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


def pair_of(batch: Any) -> Part | None:
    """Inputs and target of a batch of named items, or of several tensors, the last of which is the target."""
    if isinstance(batch, Mapping):
        found = named_pair(batch)
        return None if found is None else Part(*found)
    if isinstance(batch, tuple | list) and len(batch) > 2 and all(isinstance(value, Tensor) for value in batch):
        return Part(tuple(batch[:-1]), batch[-1])
    return None


def tensors_of(values: Values) -> tuple[Tensor, ...]:
    """Give one or several tensors as several."""
    if isinstance(values, Mapping):
        return tuple(values.values())
    return values if isinstance(values, tuple) else (values,)


def run(model: nn.Module, inputs: Values) -> Any:
    """Call a model on one input or several; of outputs that hold ``logits``, as those of transformers, give these."""
    outputs = run_on(model, given_to(model, inputs))
    return getattr(outputs, "logits", outputs)


def given_to(model: nn.Module, inputs: Values) -> Any:
    """The inputs as a model takes them: of those with names, what its ``forward`` knows."""
    if not isinstance(inputs, Mapping):
        return inputs
    given = inputs_of(model, inputs)
    if isinstance(given, Mapping):
        return given
    raise InputError(
        f"{type(model).__name__}.forward knows none of the inputs {', '.join(inputs)}: call its parameters so, or "
        "give a loss(model, batch) of your own"
    )


def of_tokens(inputs: Any) -> bool:
    """Whether inputs are sequences of tokens, whole numbers (N, L), and maybe what belongs to them: a mask, lengths."""
    if not isinstance(inputs, Tensor | tuple | Mapping):
        return False
    first = tensors_of(inputs)[0]
    return first.ndim == 2 and first.dtype in (torch.int32, torch.int64)


def _taken(values: Values, index: Tensor | slice) -> Values:
    return each(values, lambda t: t[index])


def each(values: Values, change: Callable[[Tensor], Tensor]) -> Values:
    """Change one or several tensors."""
    if isinstance(values, Mapping):
        return {name: change(t) for name, t in values.items()}
    return tuple(map(change, values)) if isinstance(values, tuple) else change(values)


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
    """Split tensors or arrays 60/20/20, see :func:`dealt`."""
    return dealt(as_part(inputs, targets, "the data"))


def dealt(whole: Part | Samples) -> Splits:
    """Deal data out 60/20/20 to training, validation and test.

    Classes stay in proportion where they are known before the samples are read. The split depends on the targets only,
    never on the machine or on torch's global seed.
    """
    if whole.size < 10:
        raise InputError(f"{whole.size} samples are too few to split into training, validation and test")
    turn = torch.arange(whole.size) % 5
    return Splits(*(_chosen(whole, mask) for mask in (turn > 1, turn == 0, turn == 1)))


def completed(train: Part | Samples, valid: Part | Samples | None, test: Part | Samples | None) -> Splits:
    """Make the parts that are missing: validation of a fifth of the training part, test of half of the validation."""
    if valid is None and test is None:
        return dealt(train)
    if valid is None:
        if train.size < 5:
            raise InputError(f"{train.size} training samples are too few to keep some of them for validation")
        turn = torch.arange(train.size) % 5
        train, valid = (_chosen(train, mask) for mask in (turn > 0, turn == 0))
    elif test is None:
        if valid.size < 2:
            raise InputError(f"{valid.size} samples are too few to validate and to test on")
        valid, test = (_chosen(valid, torch.arange(valid.size) % 2 == k) for k in (0, 1))
    return Splits(train, valid, test)  # type: ignore[arg-type]


def _chosen(part: Part | Samples, mask: Tensor) -> Any:
    """The samples of a fixed shuffle at these places; class by class, so that the classes stay in proportion."""
    order = torch.randperm(part.size, generator=torch.Generator().manual_seed(0))
    targets = part.targets if isinstance(part, Part) else None
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        order = order[torch.argsort(targets[order].reshape(len(order), -1)[:, 0], stable=True)]
    return part.take(order[mask])


def as_part(inputs: Any, targets: Any, name: str) -> Part:
    """Check one part's inputs and targets, tensors or arrays, and give them the types that training wants."""
    x, y = (each(values, _trainable) for values in as_table(inputs, targets, name).pair())
    if not all(bool(torch.isfinite(t).all()) for t in tensors_of(x) if t.is_floating_point()):
        raise InputError(f"{name}: the inputs contain NaN or infinite values; clean them first")
    # Class numbers as torch's losses want them.
    return Part(x, each(y, lambda t: t if t.is_floating_point() else t.long()))


def _trainable(tensor: Tensor) -> Tensor:
    # Where it is trained is the comparison's affair; what is drawn is drawn on the CPU.
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).cpu()

"""The forms in which people have their data: tensors, data sets and loaders of torch, by name or in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from normwise.errors import InputError
from normwise.study.data import Part, Samples, Splits, as_part, split
from normwise.study.tasks.language import language_data

_ALIASES = {"val": "valid", "validation": "valid"}
_EXPECTED = (
    "(inputs, targets); a torch Dataset; a row of token ids; or train, valid and test, as Splits, a tuple or a "
    "dict, each (inputs, targets), a Dataset or a DataLoader"
)


def splits_of(data: Any, collate: Callable | None = None) -> Splits:
    """Turn what people hand over into training, validation and test parts."""
    if isinstance(data, Mapping):
        named = {_ALIASES.get(str(name), str(name)): part for name, part in data.items()}
        missing = [name for name in Splits._fields if name not in named]
        if missing:
            raise InputError(f"the data lack {', '.join(missing)}: they have {', '.join(map(str, data)) or 'nothing'}")
        data = tuple(named[name] for name in Splits._fields)
    if isinstance(data, tuple | list) and len(data) == 3 and not isinstance(data[0], torch.Tensor):
        return _nonempty(Splits(*(_part(p, name, collate) for name, p in zip(Splits._fields, data, strict=True))))
    if isinstance(data, tuple | list) and len(data) == 2 and not _is_dataset(data[0]):
        return split(*data)
    if isinstance(data, torch.Tensor) and data.ndim == 1 and not data.is_floating_point():
        return language_data(data)
    if _is_dataset(data) or _is_loader(data):
        return _dealt(_part(data, "the data", collate))
    raise InputError(f"cannot use data of type {type(data).__name__}: expected {_EXPECTED}")


def _part(value: Any, name: str, collate: Callable | None) -> Part | Samples:
    if isinstance(value, Samples):
        return value
    if isinstance(value, tuple | list) and len(value) == 2 and not _is_dataset(value[0]):
        inputs, targets = value
        return as_part(inputs, targets, name)
    if _is_loader(value):
        # Batch sizes and the order are the comparison's own: the same for every method.
        return _part(value.dataset, name, collate or value.collate_fn)
    if _is_dataset(value):
        if isinstance(value, torch.utils.data.IterableDataset) or not hasattr(value, "__len__"):
            raise InputError(f"{name}: {type(value).__name__} cannot be read by number; give a data set with a length")
        return Samples(value, collate)
    raise InputError(f"{name} is a {type(value).__name__}: expected (inputs, targets), a Dataset or a DataLoader")


def _dealt(part: Part | Samples) -> Splits:
    """Split by a fixed shuffle: of classes nothing is known before the samples are read."""
    if part.size < 10:
        raise InputError(f"{part.size} samples are too few to split into training, validation and test")
    order = torch.randperm(part.size, generator=torch.Generator().manual_seed(0))
    turn = torch.arange(part.size) % 5
    return Splits(*(part.take(order[mask]) for mask in (turn > 1, turn == 0, turn == 1)))


def _nonempty(splits: Splits) -> Splits:
    for name, size in splits.sizes().items():
        if not size:
            raise InputError(f"the {name} part has no samples")
    return splits


def _is_dataset(value: Any) -> bool:
    if isinstance(value, torch.Tensor | tuple | list | str | Mapping) or hasattr(value, "__array__"):
        return False
    return isinstance(value, torch.utils.data.Dataset) or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _is_loader(value: Any) -> bool:
    return isinstance(value, torch.utils.data.DataLoader)

"""Data in every form in which people have them, read into a few: tables, data sets, batches, parts, rows of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from normwise.arguments.lookup import called
from normwise.errors import InputError, blaming
from normwise.nn._checks import came

# What a batch's target is called where its items have names.
TARGETS = ("target", "targets", "label", "labels", "y")
# Samples of a batch where the data are samples and nobody said how many.
BATCH = 32
# Tokens of a window where the data are a row of them.
WINDOW = 64
FORMS = (
    "(inputs, targets) or a dict of tensors or arrays, a Dataset, a DataLoader, a list of batches, a Lightning data "
    "module, a Hugging Face dataset, a row of token ids, a text such as 'my_project.py:make_data', or train, valid and "
    "test as a dict or tuple of these"
)
WHOLE = "the data"
_PARTS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
# The hooks of a Lightning data module, and the stage that each needs.
_HOOKS = {"train": ("fit", "train_dataloader"), "valid": ("fit", "val_dataloader"), "test": ("test", "test_dataloader")}


@dataclass(frozen=True)
class Table:
    """Whole data, a row a sample: columns by name, or in order, the first ``inputs`` of which go into the model."""

    columns: dict[str, Tensor] | tuple[Tensor, ...]
    inputs: int = 1

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.all[0])

    @property
    def all(self) -> tuple[Tensor, ...]:
        """The columns."""
        return tuple(self.columns.values()) if isinstance(self.columns, dict) else self.columns

    def take(self, index: Tensor) -> Any:
        """A batch of these rows, as a loader would give it; a single input needs no name."""
        if isinstance(self.columns, dict) and isinstance(self.pair()[0], dict):
            return {name: column[index] for name, column in self.columns.items()}
        columns = self.columns if isinstance(self.columns, tuple) else self.pair()
        return _one_or_more(tuple(column[index] for column in columns if column is not None))

    def pair(self) -> tuple[Any, Any]:
        """The inputs and the targets."""
        if isinstance(self.columns, dict):
            return named_pair(self.columns) or (self.columns if len(self.columns) > 1 else self.all[0], None)
        inputs, targets = self.columns[: self.inputs], self.columns[self.inputs :]
        return _one_or_more(inputs), _one_or_more(targets)


@dataclass(frozen=True)
class Records:
    """A data set whose samples are read one by one."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.dataset)

    def take(self, index: Tensor) -> Any:
        """A batch of these samples."""
        with blaming("reading a batch failed"):
            return (self.collate or default_collate)([self.dataset[i] for i in index.tolist()])


@dataclass(frozen=True)
class Ready:
    """Batches, one after the other, from whatever gives them."""

    source: Iterable[Any]


@dataclass(frozen=True)
class Parts:
    """Parts by their names: train, valid, test, each in a form of its own."""

    named: dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """A row of token ids."""

    ids: Tensor


Form = Table | Records | Ready | DataLoader | Parts | Tokens


def read(data: Any, name: str = WHOLE, collate: Callable | None = None, parts: Iterable[str] = _HOOKS) -> Form:
    """Tell which form data have; of a Lightning data module only the ``parts`` that are wanted are made."""
    if isinstance(data, Form):
        return data
    if isinstance(data, str) and ":" in data:
        return read(called(data), data, collate, parts)
    if _is_datamodule(data):
        return Parts(_of_datamodule(data, parts))
    if _is_hugging_face(data):
        return _of_hugging_face(data, collate)
    if isinstance(data, Mapping):
        return _of_mapping(data, name)
    if isinstance(data, tuple | list):
        return _of_sequence(data, name, collate)
    if _is_array(data):
        return _of_array(_tensor(data, name))
    if isinstance(data, IterableDataset):
        return DataLoader(data, BATCH, collate_fn=collate, generator=torch.Generator())
    if isinstance(data, Dataset):
        return Records(data, collate)
    if isinstance(data, str | bytes | type | torch.nn.Module) or not (_is_sized(data) or isinstance(data, Iterable)):
        of = "" if name == WHOLE else f"{name}: "
        raise InputError(f"{of}cannot use {came(data)} as data: expected {FORMS}")
    return _of_items(data, name, collate) if _is_sized(data) else Ready(data)


def batches_of(data: Any, size: int | None = None, name: str = WHOLE) -> Iterable[Any]:
    """Data as batches, one after the other: of parts those of the training part, of samples ``size`` (32) at once.

    Samples come in a fixed order that is shuffled, as those of one class often lie together. What a loader or a list
    gives comes as it is, and what can be read but once stays so.
    """
    form = read(data, name, parts=("train",))
    if isinstance(form, Parts):
        return batches_of(form.named["train"], size, "train")
    if isinstance(form, Ready):
        return form.source
    if isinstance(form, Tokens):
        form = Table(windows(form.ids))
    if isinstance(form, DataLoader):
        return form
    return _Dealt(form, size or BATCH)


class _Dealt:
    """Samples in batches of nearly equal sizes, so that the last is never a single one."""

    def __init__(self, form: Table | Records, size: int) -> None:
        self._form, self._count = form, -(-form.size // size)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self._form.size, generator=torch.Generator().manual_seed(0))
        return (self._form.take(index) for index in order.tensor_split(self._count)) if self._count else iter(())

    def __len__(self) -> int:
        return self._count


def windows(ids: Tensor, window: int = WINDOW) -> tuple[Tensor, Tensor]:
    """Cut a row of tokens into windows, each with its successors as targets."""
    count = (len(ids) - 1) // window
    inputs, targets = (ids[i : i + count * window].reshape(count, window) for i in (0, 1))
    return inputs, targets


def named_pair(batch: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The inputs and the target of items with names: one input alone, several by their names; else ``None``."""
    target = next((name for name in TARGETS if isinstance(batch.get(name), Tensor)), None)
    inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != target}
    if target is None or not inputs:
        return None
    return (inputs if len(inputs) > 1 else next(iter(inputs.values()))), batch[target]


def joined(batches: Iterable[Any], name: str) -> Table | Records:
    """The samples of batches: in tensors where these fit together, else one by one."""
    given = list(batches)
    if not given:
        raise InputError(f"{name}: an empty list: expected {FORMS}")
    trees = [torch.utils._pytree.tree_flatten(batch) for batch in given]
    columns = list(zip(*(leaves for leaves, _ in trees), strict=False))
    if len({len(leaves) for leaves, _ in trees}) != 1 or not all(isinstance(v, Tensor) for c in columns for v in c):
        raise InputError(f"{name}: the batches of the list hold more than tensors, or differ: give a Dataset instead")
    rebuilt = torch.utils._pytree.tree_unflatten
    if all(len({value.shape[1:] for value in column}) == 1 for column in columns):
        whole = rebuilt([torch.cat(column) for column in columns], trees[0][1])
        if isinstance(whole, Tensor):
            return Table((whole,))
        form = read(tuple(whole) if isinstance(whole, list) else whole, name)
        if isinstance(form, Table):
            return form
    return Records([
        rebuilt([value[i] for value in leaves], tree) for leaves, tree in trees for i in range(len(leaves[0]))
    ])


def _of_mapping(data: Mapping[Any, Any], name: str) -> Form:
    """Parts, or columns by name."""
    data = {str(key): value for key, value in data.items() if value is not None}
    if not any(key in _PARTS for key in data):
        if data and all(_is_array(value) for value in data.values()):
            return _table({key: _tensor(value, name) for key, value in data.items()}, name)
        told = ", ".join(data) or "nothing"
        raise InputError(f"the data lack train: they have {told}; expected {FORMS}")
    parts = {_PARTS[key]: value for key, value in data.items() if key in _PARTS}
    missing = [part for part in _HOOKS if part not in parts]
    if "train" in missing or (missing and len(parts) < len(data) and not _is_hugging_face(parts["train"])):
        raise InputError(f"the data lack {', '.join(missing)}: they have {', '.join(data)}")
    return Parts(parts)


def _of_sequence(data: tuple | list, name: str, collate: Callable | None) -> Form:
    """A pair and more columns, or parts, which are tuples; samples, or batches."""
    if data and all(map(_is_array, data)):
        return _of_arrays(data, name)
    if isinstance(data, tuple) and len(data) == 2 and not any(map(_is_dataset, data)):
        return as_table(*data, name)
    if isinstance(data, tuple) and len(data) in (2, 3):
        return Parts(dict(zip(_HOOKS, data, strict=False)))
    return _of_items(data, name, collate)


def _of_items(data: Any, name: str, collate: Callable | None) -> Form:
    """What can be read by number: batches, or samples, as its first item tells."""
    with blaming(f"{name} failed"):
        return Records(data, collate) if len(data) and _is_sample(data[0]) else Ready(data)


def _of_hugging_face(data: Any, collate: Callable | None) -> Form:
    """A data set of the datasets package, which gives tensors if it is asked to; one that streams has no length."""
    if (getattr(data, "format", None) or {}).get("type") is None:
        data = data.with_format("torch")
    if hasattr(data, "__len__"):
        return Records(data, collate)
    return DataLoader(data, BATCH, collate_fn=collate, generator=torch.Generator())


def _of_arrays(data: tuple | list, name: str) -> Form:
    """Columns of one table, or batches: several of one kind, such as the pieces of a tensor that was split."""
    columns = tuple(_tensor(value, name) for value in data)
    alike = len({(column.dtype, column.ndim) for column in columns}) == 1
    equal = len({len(column) for column in columns}) == 1
    pair = isinstance(data, tuple) and len(data) < 3 and equal
    if alike and not pair:
        return Ready(columns if isinstance(data, tuple) else list(columns))
    return _table(columns, name, max(len(columns) - 1, 1))


def as_table(inputs: Any, targets: Any, name: str) -> Table:
    """Inputs and targets, either of which may be several."""
    if isinstance(inputs, Mapping):
        named = {str(key): _tensor(value, name) for key, value in inputs.items()}
        return _table(named | {TARGETS[0]: _tensor(targets, name)}, name)
    first, last = (tuple(_tensor(v, name) for v in _several(values)) for values in (inputs, targets))
    return _table(first + last, name, len(first))


def _several(values: Any) -> list[Any]:
    """Several arrays, or one of numbers in lists."""
    return list(values) if isinstance(values, tuple | list) and values and all(map(_is_array, values)) else [values]


def _table(columns: Any, name: str, inputs: int = 1) -> Table:
    table = Table(columns, inputs)
    if len({len(column) if column.ndim else None for column in table.all}) != 1 or not table.all[0].ndim:
        x, y = (_shapes(columns[:inputs]), _shapes(columns[inputs:])) if isinstance(columns, tuple) else ("", "")
        what = f"inputs {x} and targets {y}" if x else f"the columns {', '.join(columns)}: {_shapes(table.all)}"
        raise InputError(f"{name}: {what} differ in length")
    return table


def _of_array(tensor: Tensor) -> Form:
    """A row of tokens; rows of features, a sample each; or batches along axis 0."""
    if tensor.ndim == 1 and not tensor.is_floating_point():
        return Tokens(tensor)
    return Table((tensor,)) if tensor.ndim == 2 else Ready(tensor)


def _of_datamodule(module: Any, parts: Iterable[str]) -> dict[str, Any]:
    """The loaders of a Lightning data module."""
    title, made, stages = type(module).__name__, {}, []
    with blaming(f"{title} failed"):
        if callable(getattr(module, "prepare_data", None)):
            module.prepare_data()
        for part in parts:
            stage, hook = _HOOKS[part]
            if not _is_written(module, hook):
                continue
            if stage not in stages and callable(getattr(module, "setup", None)):
                module.setup(stage)
            stages.append(stage)
            loader = getattr(module, hook)()
            made[part] = loader[0] if isinstance(loader, list | tuple) and len(loader) == 1 else loader
    if "train" not in made:
        raise InputError(f"{title} has no train_dataloader of its own")
    return {part: loader for part, loader in made.items() if loader is not None}


def _is_datamodule(value: Any) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, n, None)) for n in ("train_dataloader", "setup"))


def _is_written(module: Any, hook: str) -> bool:
    """Whether a hook is the user's: Lightning's own only raise."""
    home = getattr(inspect.unwrap(getattr(type(module), hook, None) or len), "__module__", None) or ""
    return hasattr(module, hook) and not home.startswith(("lightning.", "pytorch_lightning."))


def _is_hugging_face(value: Any) -> bool:
    return not isinstance(value, type | Mapping) and all(
        hasattr(value, name) for name in ("column_names", "features", "with_format")
    )


def _is_array(value: Any) -> bool:
    """Whether something is a tensor or an array with an axis of samples, also one of pandas."""
    return not isinstance(value, type | np.generic) and (
        (isinstance(value, Tensor) or hasattr(value, "__array__")) and getattr(value, "ndim", 0) > 0
    )


def _is_dataset(value: Any) -> bool:
    if isinstance(value, Tensor | tuple | list | str | Mapping) or hasattr(value, "__array__"):
        return False
    return isinstance(value, Dataset | DataLoader) or _is_hugging_face(value) or _is_sized(value)


def _is_sized(value: Any) -> bool:
    """Whether something can be read by number."""
    sized = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return sized and not isinstance(value, type | str | bytes | torch.nn.Module)


def _is_sample(value: Any) -> bool:
    """Whether something is a single sample and no batch: it holds a number where a batch has an axis."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        is_column = isinstance(value, list) and all(isinstance(item, int | float | str) for item in value)
        return not is_column and any(map(_is_sample, value))
    return isinstance(value, int | float | np.generic) or getattr(value, "ndim", None) == 0


def _tensor(value: Any, name: str) -> Tensor:
    """A tensor as it is; anything else in torch's default precision."""
    if isinstance(value, Tensor):
        return value
    try:
        tensor = torch.as_tensor(np.asarray(value) if hasattr(value, "__array__") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected tensors or arrays of inputs and targets: {error}") from error
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def _one_or_more(values: tuple[Tensor, ...]) -> Any:
    return values if len(values) > 1 else values[0] if values else None


def _shapes(values: tuple[Tensor, ...]) -> str:
    return " and ".join(str(tuple(value.shape)) for value in values)

"""The data that people hand over as training, validation and test parts, whose samples can be read by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from normwise.arguments.data import FORMS, WHOLE, Form, Parts, Ready, Records, Table, Tokens, joined, read
from normwise.errors import InputError
from normwise.study.data import Part, Samples, Splits, as_part, completed
from normwise.study.tasks.language import language_data


def splits_of(data: Any, collate: Callable | None = None) -> Splits:
    """Turn what people hand over into training, validation and test parts; those that are missing are split off."""
    form = read(data, collate=collate)
    if isinstance(form, Tokens):
        return language_data(form.ids)
    given = form.named if isinstance(form, Parts) else {WHOLE: form}
    parts = {
        name: value if isinstance(value, Samples) else _part(read(value, name, collate), name, collate)
        for name, value in given.items()
    }
    for name, part in parts.items():
        if not part.size:
            raise InputError(f"the {name} part has no samples")
    train = parts["train"] if isinstance(form, Parts) else parts[WHOLE]
    return completed(train, parts.get("valid"), parts.get("test"))


def _part(form: Form, name: str, collate: Callable | None) -> Part | Samples:
    if isinstance(form, Ready):
        if not isinstance(form.source, list | tuple | Tensor | Iterator):
            raise InputError(f"{name}: {type(form.source).__name__} cannot be read by number: expected {FORMS}")
        form = joined(form.source, name)
    if isinstance(form, Table):
        inputs, targets = form.pair()
        if targets is None:
            raise InputError(f"{name} has inputs and no targets: give a tuple (inputs, targets)")
        return as_part(inputs, targets, name)
    if isinstance(form, DataLoader):
        # Batch sizes and the order are the comparison's own: the same for every method.
        collate = collate or form.collate_fn
        form = Records(form.dataset, collate)
    if not isinstance(form, Records):
        raise InputError(f"{name} is a row of tokens, or in parts itself: expected {FORMS}")
    if isinstance(form.dataset, IterableDataset) or not hasattr(form.dataset, "__len__"):
        kind = type(form.dataset).__name__
        raise InputError(f"{name}: {kind} cannot be read by number; give a data set with a length")
    return Samples(form.dataset, form.collate)

"""Records as plain data: to JSON and back, with the type of every field checked. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing

from normwise.errors import StoreError
from normwise.files import read_json

R = typing.TypeVar("R")


def to_dict(record: object) -> dict:
    """Turn a record into plain lists, dicts, strings and numbers.

    Args:
        record: any dataclass of this module.

    Returns:
        A dict that :func:`from_dict` turns back into an equal record.

    Raises:
        TypeError: ``record`` is not a dataclass.

    Example:
        >>> from normwise.records import Point
        >>> to_dict(Point(step=1, epoch=0.5, train_loss=2.0, valid_score=None))
        {'step': 1, 'epoch': 0.5, 'train_loss': 2.0, 'valid_score': None}
    """
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"to_dict expects a record, got {type(record).__name__}")
    return dataclasses.asdict(record)


def from_dict(cls: type[R], data: object) -> R:
    """Build a record from what :func:`to_dict` gave, checking every field's type.

    Unknown fields are ignored (a newer normwise may have written them); missing ones take their default.

    Args:
        cls: the record's class.
        data: a dict, as read from JSON.

    Returns:
        The record.

    Raises:
        StoreError: a field is missing or of the wrong type; the message names it.

    Example:
        >>> from normwise.records import Interval
        >>> from_dict(Interval, {"value": 1.0, "low": 0.5, "high": 1.5})
        Interval(value=1.0, low=0.5, high=1.5, level=0.95)
    """
    return _build(cls, data, cls.__name__)


def dumps(record: object) -> str:
    """Give a record's JSON text; strict JSON, keys in the order of the fields.

    Args:
        record: any dataclass of this module.

    Returns:
        The text, ending in a newline.

    Raises:
        ValueError: a number is NaN or infinite.

    Example:
        >>> from normwise.records import Interval
        >>> print(dumps(Interval(1.0, 0.5, 1.5)), end="")
        {
          "value": 1.0,
          "low": 0.5,
          "high": 1.5,
          "level": 0.95
        }
    """
    return json.dumps(to_dict(record), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def load_record(path: str | os.PathLike[str], cls: type[R], noun: str, newest: int) -> R:
    """Read a record that has a version number from a JSON file.

    Args:
        path: the file.
        cls: the record's class.
        noun: what to call it in errors.
        newest: the highest version that can be read.

    Returns:
        The record.

    Raises:
        StoreError: the file cannot be read, is no such record, or is of a newer version than this normwise knows.

    Example:
        >>> load_record("nowhere.json", dict, "study", newest=1)
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot read the study nowhere.json: No such file or directory
    """
    try:
        data = read_json(path)
    except OSError as error:
        raise StoreError(f"cannot read the {noun} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path} is not a {noun}: it is not JSON ({error})") from error
    version = data.get("version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise StoreError(f"{path} is not a {noun}: it has no version number")
    if version > newest:
        raise StoreError(f"{path} has version {version}, this normwise reads up to {newest}: upgrade normwise")
    return from_dict(cls, data)


def keys_of(path: str | os.PathLike[str]) -> set[str]:
    """The top-level keys of a JSON file, to tell what kind of record it holds.

    Args:
        path: the file.

    Returns:
        The keys; none for what cannot be read or is no JSON object.

    Example:
        >>> keys_of("nowhere.json")
        set()
    """
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return set()
    return set(data) if isinstance(data, dict) else set()


def _build(kind: typing.Any, data: object, where: str) -> typing.Any:
    """Turn plain data into ``kind``: a record, a list, a dict, an optional or a scalar."""
    if dataclasses.is_dataclass(kind):
        return _build_record(kind, data, where)
    if kind is typing.Any:
        return data
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if data is None else _build(arguments[0], data, where)
    if origin is list:
        return [_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, data, where))]
    if origin is dict:
        return {str(k): _build(arguments[1], v, f"{where}[{k!r}]") for k, v in _expect(dict, data, where).items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            data = float(data)
        except OverflowError:
            raise StoreError(f"{where} is too large a number") from None
    value = _expect(kind, data, where)
    if kind is float and not math.isfinite(value):
        raise StoreError(f"{where} is {value}: numbers must be finite")
    return value


def _build_record(kind: typing.Any, data: object, where: str) -> typing.Any:
    values = _expect(dict, data, where)
    hints = typing.get_type_hints(kind)
    given = {}
    for f in dataclasses.fields(kind):
        name = f.name if f.name in values else f.metadata.get("once")  # what older files call it
        if name in values:
            given[f.name] = _build(hints[f.name], values[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise StoreError(f"{where} has no field {f.name!r}")
    return kind(**given)


def _expect(kind: type, data: object, where: str) -> typing.Any:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise StoreError(f"{where} should be {kind.__name__}, got {type(data).__name__}")
    return data

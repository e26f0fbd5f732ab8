"""Load what torch saved without running code from it, and name what a refused file would have run."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from normwise.errors import DataError

# What plain checkpoints of tensors name.
_PLAIN = re.compile(r"torch\.(_utils\._rebuild\w+|\w+Storage|\w+Tensor|Size|device|[a-z]+\d*)|collections\.OrderedDict")
_NAMED = 4


def load_tensors(source: str | os.PathLike[str]) -> Any:
    """Read a file of ``torch.save`` with ``weights_only=True``, on the CPU."""
    path = Path(source)
    if not path.is_file():
        raise DataError(f"cannot read the checkpoint {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    try:
        # Not by its name, whose suffix torch would go by.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's words about archives, which the error says better
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"cannot read the checkpoint {path}: {error.strerror or _short(error)}") from error
    except MemoryError as error:
        raise DataError(f"cannot read the checkpoint {path}: out of memory, or damaged") from error
    except Exception as error:  # torch.load raises what its unpickler meets
        raise DataError(_refusal(path, error)) from error


def _refusal(path: Path, error: Exception) -> str:
    """Say why a file was not loaded. Torch's own text is not quoted where it advises to load the file all the same."""
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, which is not run: save model.state_dict() instead"
    if names := blocked_names(path, str(error)):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return (
            f"{path} holds more than tensors and is not loaded, because that could run code: it names "
            f"{', '.join(names[:_NAMED])}{more}; have its owner save model.state_dict() instead"
        )
    why = "its content ends or changes where it should not" if _advises(error) else f"{type(error).__name__}: {error}"
    return f"cannot read the checkpoint {path}: damaged, or not of the kind that its name says ({_short(why)})"


def blocked_names(path: Path, said: str = "") -> list[str]:
    """The functions and classes that a pickled file would call, other than those that make tensors."""
    names: dict[str, None] = {}
    with contextlib.suppress(Exception):  # of a damaged file what comes before the damage is named
        for stream in _pickles(path):
            with contextlib.suppress(Exception):
                for name in _globals(stream):
                    names.setdefault(name)
    found = [name for name in names if not _PLAIN.fullmatch(name)]
    return found or re.findall(r"GLOBAL ([\w.]+)", said)[:1]


def _pickles(path: Path) -> Iterator[bytes]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl") and archive.getinfo(name).file_size < 1 << 28:
                    yield archive.read(name)
        return
    with path.open("rb") as file:
        # Torch's older format is several pickles, one after the other.
        for _ in range(8):
            start, text = file.tell(), file.read(1 << 24)
            end = start
            with contextlib.suppress(ValueError, pickle.UnpicklingError):
                for _, _, position in pickletools.genops(text):
                    end = start + (position or 0) + 1
            yield text
            if end <= start:
                return
            file.seek(end)


def _globals(stream: bytes) -> Iterator[str]:
    """Every name that a pickle looks up."""
    texts: list[str] = []
    kept: dict[object, str] = {}
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in ("GLOBAL", "INST"):
            yield _full(*str(argument).split(" ", 1))
        elif operation.name == "STACK_GLOBAL" and len(texts) >= 2:
            yield _full(*texts[-2:])
        elif operation.name == "MEMOIZE":
            if texts:
                kept[len(kept)] = texts[-1]
        elif operation.name in ("BINGET", "LONG_BINGET", "GET") and argument in kept:
            texts.append(kept[argument])
        elif isinstance(argument, str):
            texts.append(argument)


def _full(module: str, name: str) -> str:
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _advises(error: Exception) -> bool:
    return "weights_only" in str(error)


def _short(text: object) -> str:
    return " ".join(str(text).split())[:200]

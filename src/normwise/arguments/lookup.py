"""What texts stand for: ``module:callable`` or ``path.py:callable``.

Whatever the user's own code raises here becomes an :class:`InputError` that says where it came from: on the command
line that is one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from normwise.errors import InputError, blaming

SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


def is_checkpoint(word: str) -> bool:
    """Whether a word names a checkpoint file and not a callable: a file that is there and no Python, or would be."""
    path = Path(word)
    return path.suffix != ".py" and (path.is_file() or (":" not in word and not SUFFIXES.isdisjoint(path.suffixes)))


def called(spec: str) -> Any:
    """What the named callable gives."""
    function = resolved(spec)
    with blaming(f"{spec} failed"):
        return function()


def resolved(spec: str) -> Callable[..., Any]:
    """The callable that a name stands for."""
    found = looked_up(spec)
    if not callable(found):
        raise InputError(f"{spec!r} is a {type(found).__name__}, expected something to call")
    return found


def looked_up(spec: str) -> Any:
    """What a name stands for."""
    home, colon, name = spec.rpartition(":")
    if is_checkpoint(spec):
        raise InputError(f"{spec!r} is a file of weights: expected what builds the model, module:callable, before it")
    if not colon or not home or not name:
        raise InputError(f"cannot find {spec!r}: expected module:callable or path.py:callable")
    with blaming(f"cannot find {spec!r}"):
        found: Any = _from_file(Path(home)) if home.endswith(".py") else _from_module(home)
        for part in name.split("."):
            found = getattr(found, part)
    return found


def _from_module(name: str) -> Any:
    # A console command does not look where it was called, as python -m does.
    with _looking_in(Path.cwd()):
        return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"cannot find {path}: no such file")
    return _loaded(path.resolve(), path.stat().st_mtime_ns)


@lru_cache
def _loaded(path: Path, changed: int) -> Any:
    """Run a file once, however many of its callables are named."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Models pickle and dataclasses resolve by their module's name; its folder is where it looks for its neighbours.
    sys.modules.setdefault(path.stem, module)
    with _looking_in(path.parent):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _looking_in(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))

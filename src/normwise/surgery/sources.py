"""Where models and data of the command line come from: ``module:callable`` or ``path.py:callable``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normwise.errors import DataError, InputError, NormwiseError

if TYPE_CHECKING:
    import torch

    from normwise.surgery.checkpoint import Checkpoint


def model_from(spec: str, checkpoint: Path | None) -> tuple[torch.nn.Module, Checkpoint | None]:
    """Build a model and load its weights.

    Args:
        spec: ``module:callable`` or ``path.py:callable``.
        checkpoint: a file of weights, or ``None``.

    Returns:
        The model, and the checkpoint in the form in which it came.

    Raises:
        InputError: there is no such callable, it failed, or gave no model.

    Example:
        >>> model_from("torch.nn:Identity", None)
        (Identity(), None)
    """
    import torch

    from normwise.surgery.checkpoint import load, load_into

    # Before the model, which may be slow to build.
    stored = None if checkpoint is None else load(checkpoint)
    model = called(spec)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{spec} gave {type(model).__name__}, expected a torch.nn.Module")
    return model, None if stored is None else load_into(model, stored)


def batches_from(spec: str) -> list[Any]:
    """All batches that a callable gives.

    Args:
        spec: as for :func:`called`.

    Returns:
        The batches.

    Raises:
        DataError: there is none.

    Example:
        >>> batches_from("builtins:list")
        Traceback (most recent call last):
        ...
        normwise.errors.DataError: builtins:list gave no batches
    """
    batches = list(called(spec))
    if not batches:
        raise DataError(f"{spec} gave no batches")
    return batches


def called(spec: str) -> Any:
    """What the named callable gives.

    Args:
        spec: ``module:callable`` or ``path.py:callable``.

    Returns:
        What it returned.

    Raises:
        InputError: there is no such callable, or it failed.
        NormwiseError: what it raised itself.

    Example:
        >>> called("builtins:dict")
        {}
    """
    function = resolved(spec)
    try:
        return function()
    except NormwiseError:
        raise
    except Exception as error:
        raise InputError(f"{spec} failed: {type(error).__name__}: {error}") from error


def resolved(spec: str) -> Callable[..., Any]:
    """The callable that a name stands for.

    Args:
        spec: ``module:callable`` or ``path.py:callable``.

    Returns:
        The callable.

    Raises:
        InputError: there is no such callable.
        NormwiseError: what its module raised.

    Example:
        >>> resolved("math:sqrt")(4.0)
        2.0
    """
    home, colon, name = spec.rpartition(":")
    if not colon or not home or not name:
        raise InputError(f"cannot find {spec!r}: expected module:callable or path.py:callable")
    try:
        found: Any = _from_file(Path(home)) if home.endswith(".py") else _from_module(home)
        for part in name.split("."):
            found = getattr(found, part)
    except NormwiseError:
        raise
    except Exception as error:
        raise InputError(f"cannot find {spec!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise InputError(f"{spec!r} is a {type(found).__name__}, expected something to call")
    return found


def _from_module(name: str) -> Any:
    # A console command does not look where it was called, as python -m does.
    with _looking_in(Path.cwd()):
        return importlib.import_module(name)


def random_inputs(shape: str | None) -> Any:
    """Standard normal data of a shape given as text; the same at every call.

    Args:
        shape: as given with ``--input-shape``; ``None`` gives ``None``.

    Returns:
        The tensor.

    Raises:
        InputError: not a shape.

    Example:
        >>> random_inputs("2,3").shape
        torch.Size([2, 3])
    """
    import torch

    if shape is None:
        return None
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        raise InputError(f"--input-shape {shape!r}: expected sizes separated by commas, such as 1,3,224,224") from None
    if min(sizes) < 1:
        raise InputError(f"--input-shape {shape!r}: sizes must be at least 1")
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch.

    Args:
        batch: of (input, target) the first is taken; a mapping is left as it is.

    Returns:
        What a model takes.

    Example:
        >>> inputs_of((1, 2))
        1
    """
    return batch[0] if isinstance(batch, tuple | list) else batch


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

"""Where models and data of the command line come from: ``module:callable`` or ``path.py:callable``.

Whatever the user's own code raises here becomes an :class:`InputError` that says where it came from: on the command
line that is one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normwise.errors import DataError, InputError, NormwiseError

if TYPE_CHECKING:
    import torch

    from normwise.surgery.checkpoint import Checkpoint


FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_checkpoint(word: str) -> bool:
    """Whether a word names a checkpoint file and not a callable.

    Args:
        word: as it was typed.

    Returns:
        Whether it does.

    Example:
        >>> is_checkpoint("model.pt"), is_checkpoint("nets.py:model")
        (True, False)
    """
    return word.endswith(FILES) and ":" not in word


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


class Batches:
    """The batches that a callable gives, as often as they are asked for; on a terminal they are counted.

    What can be read only once (a generator) is made anew by another call.

    Args:
        spec: ``module:callable`` or ``path.py:callable``, called without arguments.

    Raises:
        DataError: it gives no batches.
        InputError: it cannot be found, fails, or gives nothing that can be iterated over.

    Example:
        >>> Batches("builtins:str")
        Traceback (most recent call last):
        ...
        normwise.errors.DataError: builtins:str gave no batches
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        source = called(spec)
        try:
            once = iter(source) is source
        except TypeError:
            raise InputError(f"{spec} gave {type(source).__name__}, expected batches to iterate over") from None
        self._source = None if once else source
        self._passes = 0
        with _blamed(f"{spec} failed"):
            self.first = next(iter(source), None)
        if self.first is None:
            raise DataError(f"{spec} gave no batches")

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        self._passes += 1
        with _blamed(f"{self.spec} failed"):
            batches = iter(called(self.spec) if self._source is None else self._source)
        began, count, end = time.monotonic(), 0, object()
        try:
            while True:
                with _blamed(f"{self.spec} failed after {count} batches"):
                    batch = next(batches, end)
                if batch is end:
                    return
                count += 1
                _show(f"pass {self._passes}, batch {count}, {time.monotonic() - began:.0f} s")
                yield batch
        finally:
            _show("")

    def feed(self, model: torch.nn.Module, batch: Any) -> Any:
        """Run a model on a batch.

        Args:
            model: the model.
            batch: one of these.

        Returns:
            The model's output.
        """
        from normwise.surgery.running import feed

        with _blamed(f"{type(model).__name__} failed on a batch of {self.spec}"):
            return feed(model, batch)


def example_inputs(model: torch.nn.Module, shape: str | None, batches: Batches | None = None) -> Any:
    """What to run a model on to see what it gives: its first batch, or random data; tried before it is relied on.

    Args:
        model: the model.
        shape: of random data, such as ``"1,3,224,224"``.
        batches: go first.

    Returns:
        A tensor, a tuple of arguments or a mapping of named ones; ``None`` without both.

    Raises:
        InputError: the shape cannot be read, or the model fails on it.

    Example:
        >>> import torch
        >>> example_inputs(torch.nn.ReLU(), "2,3").shape
        torch.Size([2, 3])
    """
    from normwise.surgery.running import evaluating, inputs_of, run_on

    if batches is None and shape is None:
        return None
    inputs = random_inputs(shape) if batches is None else inputs_of(model, batches.first)
    what = f"--input-shape {shape}" if batches is None else f"the first batch of {batches.spec}"
    with evaluating(model), _blamed(f"{type(model).__name__} failed on {what}"):
        run_on(model, inputs)
    return inputs


def called(spec: str) -> Any:
    """What the named callable gives.

    Args:
        spec: ``module:callable`` or ``path.py:callable``.

    Returns:
        What it returned.

    Raises:
        InputError: there is no such callable, or it failed.

    Example:
        >>> called("builtins:dict")
        {}
    """
    function = resolved(spec)
    with _blamed(f"{spec} failed"):
        return function()


def resolved(spec: str) -> Callable[..., Any]:
    """The callable that a name stands for.

    Args:
        spec: ``module:callable`` or ``path.py:callable``.

    Returns:
        The callable.

    Raises:
        InputError: there is no such callable.

    Example:
        >>> resolved("math:sqrt")(4.0)
        2.0
    """
    home, colon, name = spec.rpartition(":")
    if not colon or not home or not name:
        raise InputError(f"cannot find {spec!r}: expected module:callable or path.py:callable")
    with _blamed(f"cannot find {spec!r}"):
        found: Any = _from_file(Path(home)) if home.endswith(".py") else _from_module(home)
        for part in name.split("."):
            found = getattr(found, part)
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


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Say what failed, in one line, where the user's code raises."""
    try:
        yield
    except NormwiseError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        text = text if len(text) <= 300 else f"{text[:300]} …"
        raise InputError(f"{what}: {type(error).__name__}{': ' * bool(text)}{text}") from error


def _show(text: str) -> None:
    """Progress, where somebody may be looking."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

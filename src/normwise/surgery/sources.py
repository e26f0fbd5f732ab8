"""Where models and data of the command line come from: ``module:callable`` or ``path.py:callable``.

Whatever the user's own code raises here becomes an :class:`InputError` that says where it came from: on the command
line that is one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normwise.errors import DataError, InputError, blaming

if TYPE_CHECKING:
    import torch

    from normwise.surgery.checkpoint import Checkpoint


SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


def is_checkpoint(word: str) -> bool:
    """Whether a word names a checkpoint file and not a callable: a file that is there and no Python, or would be."""
    path = Path(word)
    return path.suffix != ".py" and (path.is_file() or (":" not in word and not SUFFIXES.isdisjoint(path.suffixes)))


def model_from(spec: str, checkpoint: Path | None) -> tuple[torch.nn.Module, Checkpoint | None]:
    """Build a model and load its weights."""
    import torch

    from normwise.surgery.checkpoint import load_into

    # Before the model, which may be slow to build.
    stored = None if checkpoint is None else weights_from(checkpoint)
    model = called(spec)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{spec} gave {type(model).__name__}, expected a torch.nn.Module")
    return model, None if stored is None else load_into(model, stored)


def weights_from(path: str | Path) -> Checkpoint:
    """Read a checkpoint; where its weights are an entry among others, say on standard error which was taken."""
    from normwise.surgery.checkpoint import load, shown

    stored = load(path)
    if stored.nest is not None:
        print(f"{path}: the weights under {shown(stored.nest)!r}", file=sys.stderr)
    return stored


class Batches:
    """The batches that a callable gives, as often as they are asked for; on a terminal they are counted.

    What can be read only once (a generator) is made anew by another call.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        source = called(spec)
        if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
            raise InputError(f"{spec} gave {type(source).__name__}, expected batches to iterate over")
        with blaming(f"{spec} failed"):
            once = iter(source) is source
        self._source = None if once else source
        self._passes = 0
        with blaming(f"{spec} failed"):
            self.first = next(iter(source), None)
        if self.first is None:
            raise DataError(f"{spec} gave no batches")

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        self._passes += 1
        with blaming(f"{self.spec} failed"):
            batches = iter(called(self.spec) if self._source is None else self._source)
        began, count, end = time.monotonic(), 0, object()
        try:
            while True:
                with blaming(f"{self.spec} failed after {count} batches"):
                    batch = next(batches, end)
                if batch is end:
                    return
                count += 1
                _show(f"pass {self._passes}, batch {count}, {time.monotonic() - began:.0f} s")
                yield batch
        finally:
            _show("")

    def feed(self, model: torch.nn.Module, batch: Any) -> Any:
        """Run a model on a batch."""
        from normwise.surgery.running import feed

        with blaming(f"{type(model).__name__} failed on a batch of {self.spec}"):
            return feed(model, batch)


def example_inputs(model: torch.nn.Module, shape: str | None, batches: Batches | None = None) -> Any:
    """What to run a model on to see what it gives: its first batch, or random data; tried before it is relied on."""
    from normwise.surgery.running import evaluating, inputs_of, run_on

    if batches is None and shape is None:
        return None
    inputs = random_inputs(shape) if batches is None else inputs_of(model, batches.first)
    what = f"--input-shape {shape}" if batches is None else f"the first batch of {batches.spec}"
    with evaluating(model), blaming(f"{type(model).__name__} failed on {what}"):
        run_on(model, inputs)
    return inputs


def called(spec: str) -> Any:
    """What the named callable gives."""
    function = resolved(spec)
    with blaming(f"{spec} failed"):
        return function()


def resolved(spec: str) -> Callable[..., Any]:
    """The callable that a name stands for."""
    found = _looked_up(spec)
    if not callable(found):
        raise InputError(f"{spec!r} is a {type(found).__name__}, expected something to call")
    return found


def specs(text: str) -> list[str]:
    """Split methods at the commas that stand in no parentheses."""
    return [spec.strip() for spec in re.split(r",(?![^()]*\))", text) if spec.strip()]


def is_own(method: str) -> bool:
    """Whether a text names a method of one's own, ``path.py:NAME`` or ``module:NAME``, and none of the library's."""
    return ":" in method.partition("(")[0]


def method_from(text: str) -> Any:
    """What :func:`normwise.norm_layer` takes for a text: for ``path.py:NAME(options)`` what stands there.

    That is a method, a class of methods, or what builds a layer; options behind it go to the class, or to each layer.
    """
    if not is_own(text):
        return text
    from normwise.methods import Method
    from normwise.nn.own import builder

    address, _, inside = text.partition("(")
    found = _looked_up(address.strip())
    positional, options = _arguments(text, inside)
    is_class = isinstance(found, type) and issubclass(found, Method)
    if is_class:
        with blaming(f"cannot make {text}"):
            return found(*positional, **options)
    if positional or (options and isinstance(found, Method)):
        raise InputError(f"{text}: {address} takes no options here: expected a class of methods, or options by name")
    with blaming(f"cannot use {text}"):
        return found if isinstance(found, Method) else partial(builder(found), **options) if options else builder(found)


def _arguments(text: str, inside: str) -> tuple[list[Any], dict[str, Any]]:
    """What stands in the parentheses, ``0.3, eps=0.1)``: values, and options by name."""
    from normwise.methods.spec import parse_spec, value_of

    if inside and not inside.rstrip().endswith(")"):
        raise InputError(f"cannot read the method {text!r}: expected path.py:NAME, or path.py:NAME(option=value, ...)")
    pieces = [piece for piece in inside.rstrip()[:-1].split(",") if piece.strip()]
    by_name = ",".join(piece for piece in pieces if "=" in piece)
    return [value_of(piece.strip()) for piece in pieces if "=" not in piece], parse_spec(f"own({by_name})")[1]


def _looked_up(spec: str) -> Any:
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


def random_inputs(shape: str | None) -> Any:
    """Standard normal data of a shape given as text; the same at every call."""
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


def _show(text: str) -> None:
    """Progress, where somebody may be looking."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

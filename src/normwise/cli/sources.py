"""Where models, weights and data of the command line come from."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normwise.arguments.lookup import called
from normwise.errors import DataError, InputError, blaming

if TYPE_CHECKING:
    import torch

    from normwise.surgery.checkpoint import Checkpoint


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


def data_of(spec: str) -> Any:
    """The data that a text names: a data set that has a name, a file of text, or what a callable gives."""
    from normwise.study.tasks.own import named_splits

    return named_splits(spec) or called(spec)


class Batches:
    """The batches of the data that a text names, as often as they are asked for; on a terminal they are counted.

    What can be read only once (a generator) is made anew by another call.
    """

    def __init__(self, spec: str, size: int | None = None) -> None:
        self.spec, self._size = spec, size
        source = self._read()
        with blaming(f"{spec} failed"):
            once = iter(source) is source
        self._source = None if once else source
        self._passes = 0
        with blaming(f"{spec} failed"):
            self.first = next(iter(source), None)
        if self.first is None:
            raise DataError(f"{spec} gave no batches")

    def _read(self) -> Any:
        from normwise.arguments.data import batches_of

        return batches_of(data_of(self.spec), self._size, self.spec)

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        self._passes += 1
        with blaming(f"{self.spec} failed"):
            batches = iter(self._read() if self._source is None else self._source)
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
    if batches is not None:
        inputs, what = inputs_of(model, batches.first), f"the first batch of {batches.spec}"
    else:
        inputs, what = random_inputs(model, shape or ""), f"--input-shape {shape}"
    with evaluating(model), blaming(f"{type(model).__name__} failed on {what}"):
        run_on(model, inputs)
    return inputs


def random_inputs(model: torch.nn.Module, shape: str) -> Any:
    """Random data of a shape given as text, the same at every call: numbers, or token ids for an embedding."""
    import torch

    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        raise InputError(f"--input-shape {shape!r}: expected sizes separated by commas, such as 1,3,224,224") from None
    if min(sizes) < 1:
        raise InputError(f"--input-shape {shape!r}: sizes must be at least 1")
    generator = torch.Generator().manual_seed(0)
    weighted = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    first = next(weighted, None)
    if isinstance(first, torch.nn.Embedding):
        return torch.randint(0, first.num_embeddings, sizes, generator=generator)
    return torch.randn(sizes, generator=generator)


def _show(text: str) -> None:
    """Progress, where somebody may be looking."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

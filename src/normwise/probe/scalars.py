"""Scalars for TensorBoard, or for whatever else takes ``add_scalar``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from normwise.errors import InputError, MissingDependencyError
from normwise.findings import NormFacts, WeightFacts
from normwise.probe.meters import NormMeter, WeightMeter

_NORM = ("elements", "var_min", "scatter", "mean_gap", "var_factor", "shift", "weight_max", "near_eps")


class Writer(Protocol):
    """What scalars are written to."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: Any = None, /) -> Any:
        """Take one value."""
        ...


class Scalars:
    """Writes what the meters hold."""

    def __init__(self, writer: Writer | str | os.PathLike[str]) -> None:
        self._own = isinstance(writer, str | os.PathLike)
        self._writer: Any = _tensorboard(os.fspath(writer)) if isinstance(writer, str | os.PathLike) else writer
        if not self._own:
            _check(writer)

    def write(
        self, step: int, norms: Mapping[int, NormMeter], weights: Mapping[int, WeightMeter], names: Mapping[int, str]
    ) -> None:
        """Write every number that there is, under ``normwise/<layer>/<what>``."""
        for key, norm in norms.items():
            layer = norm.found.layer
            facts = NormFacts([names[key]], "", layer.method, None, 0, layer.channels)
            trace = asdict(norm.trace(facts))
            self._add(names[key], {what: trace[what] for what in _NORM}, step)
        for key, weight in weights.items():
            seen = weight.trace(WeightFacts([names[key]], "", None, 0))
            latest = weight.gradients[-1] if weight.gradients else None
            self._add(names[key], {"gradient": latest, "dead": seen.dead if seen.inputs else None}, step)

    def close(self) -> None:
        """Close a writer that was opened here."""
        if self._own:
            self._writer.close()

    def _add(self, layer: str, values: Mapping[str, float | None], step: int) -> None:
        for what, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"normwise/{layer or 'model'}/{what}", value, step)


def _tensorboard(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("scalars for TensorBoard need it: pip install 'normwise[tensorboard]'") from error
    try:
        return SummaryWriter(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write scalars to {folder}: {getattr(error, 'strerror', None) or error}") from error


def _check(writer: Any) -> None:
    """See now what would fail at the first sampled step."""
    expected = "expected a folder for TensorBoard, or an object with add_scalar(tag, value, step)"
    if isinstance(writer, type):
        raise InputError(f"writer is the class {writer.__name__}, {expected}: give one of it")
    add = getattr(writer, "add_scalar", None)
    if not callable(add):
        raise InputError(f"writer is {type(writer).__name__}, {expected}")
    try:
        inspect.signature(add).bind("tag", 0.0, 0)
    except TypeError as error:
        raise InputError(
            f"the add_scalar of {type(writer).__name__} does not take these ({error}): {expected}"
        ) from None
    except ValueError:
        return  # Nothing is known of its parameters.

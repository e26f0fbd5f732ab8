"""Scalars for TensorBoard, Weights & Biases, MLflow, Lightning's loggers, or whatever else takes them."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from normwise.errors import InputError, MissingDependencyError, NormwiseWarning, described
from normwise.findings import NormFacts, WeightFacts
from normwise.probe.meters import NormMeter, WeightMeter

_NORM = ("elements", "var_min", "scatter", "mean_gap", "var_factor", "shift", "weight_max", "near_eps")
# What every tracker allows in a name; MLflow refuses others.
_FORBIDDEN = re.compile(r"[^/\w.\- :]")
_STEP = "normwise/step"
_EXPECTED = (
    "expected a folder for TensorBoard, or an object with log_metrics(metrics, step), add_scalar(tag, value, step) or "
    "log(values, step=step)"
)

Sink = Callable[[dict[str, float], int], Any]


class MetricsWriter(Protocol):
    """Takes all values of a step: a logger of Lightning, the module ``mlflow``, an object of one's own."""

    def log_metrics(self, metrics: dict[str, float], /, step: int) -> Any:
        """Take the values of one step, by their names."""
        ...


class ScalarWriter(Protocol):
    """Takes one value after the other: TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: Any = None, /) -> Any:
        """Take one value."""
        ...


class LogWriter(Protocol):
    """Takes all values of a step: a run of Weights & Biases, or an ``Accelerator``."""

    def log(self, values: dict[str, Any], /, step: int | None = None) -> Any:
        """Take the values of one step, by their names."""
        ...


Writer = MetricsWriter | ScalarWriter | LogWriter


class Scalars:
    """Writes what the meters hold."""

    def __init__(self, writer: Writer | str | os.PathLike[str]) -> None:
        self._opened = _tensorboard(os.fspath(writer)) if isinstance(writer, str | os.PathLike) else None
        self._sink: Sink | None = sink_of(self._opened or writer)

    def write(
        self, step: int, norms: Mapping[int, NormMeter], weights: Mapping[int, WeightMeter], names: Mapping[int, str]
    ) -> None:
        """Write every number that there is, under ``normwise/<layer>/<what>``."""
        values: dict[str, float] = {}
        for key, norm in norms.items():
            layer = norm.found.layer
            facts = NormFacts([names[key]], "", layer.method, None, 0, layer.channels)
            trace = asdict(norm.trace(facts))
            values |= _tagged(names[key], {what: trace[what] for what in _NORM})
        for key, weight in weights.items():
            seen = weight.trace(WeightFacts([names[key]], "", None, 0))
            latest = weight.gradients[-1] if weight.gradients else None
            values |= _tagged(names[key], {"gradient": latest, "dead": seen.dead if seen.inputs else None})
        self.log_metrics(values, step)

    def log_metrics(self, metrics: dict[str, float], /, step: int) -> None:
        """Write values by their names."""
        try:
            if self._sink is not None and metrics:
                self._sink(metrics, step)
        except Exception as error:  # a tracker that fails must not end hours of training
            self._sink = None
            warnings.warn(f"no more scalars are written: {described(error)}", NormwiseWarning, stacklevel=2)

    def close(self) -> None:
        """Close a writer that was opened here."""
        if self._opened is not None:
            self._opened.close()


def sink_of(writer: Any) -> Sink:
    """See now what would fail at the first sampled step, and give what takes the values of a step."""
    if isinstance(writer, type):
        raise InputError(f"writer is the class {writer.__name__}, {_EXPECTED}: give one of it")
    if _takes(writer, "log_metrics", {}, step=0):
        return lambda values, step: writer.log_metrics(values, step=step)
    if _takes(writer, "add_scalar", "tag", 0.0, 0):
        return lambda values, step: [writer.add_scalar(tag, value, step) for tag, value in values.items()]
    if callable(getattr(writer, "define_metric", None)):
        return _weights_and_biases(writer)
    if _takes(writer, "log", {}, step=0):
        return lambda values, step: writer.log(values, step=step)
    raise InputError(f"writer is {type(writer).__name__}, {_EXPECTED}")


def _tagged(layer: str, values: Mapping[str, float | None]) -> dict[str, float]:
    place = f"normwise/{_FORBIDDEN.sub('_', layer) or 'model'}"
    return {f"{place}/{what}": float(value) for what, value in values.items() if value is not None}


def _takes(writer: Any, name: str, *args: Any, **kwargs: Any) -> bool:
    """Whether the writer has such a method; one that does not take what it is to be given is refused."""
    method = getattr(writer, name, None)
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except TypeError as error:
        said = f"the {name} of {type(writer).__name__} does not take these ({error}): {_EXPECTED}"
        raise InputError(said) from None
    except ValueError:  # nothing is known of its parameters; tensors and numbers have a logarithm
        return name != "log"
    return True


def _weights_and_biases(run: Any) -> Sink:
    """A run has one counter of its own for all that is logged: the step goes along as a value, as its axis."""
    try:
        run.define_metric(_STEP)
        run.define_metric("normwise/*", step_metric=_STEP)
    except Exception as error:  # no run was started, or it is finished
        raise InputError(f"writer is a run that takes no values ({described(error)}): give wandb.init(...)") from error
    return lambda values, step: run.log({**values, _STEP: step})


def _tensorboard(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("scalars for TensorBoard need it: pip install 'normwise[tensorboard]'") from error
    try:
        return SummaryWriter(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write scalars to {folder}: {getattr(error, 'strerror', None) or error}") from error

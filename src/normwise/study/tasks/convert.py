"""Methods for models that are written with layers of their own: each is converted to the method under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from normwise.errors import InputError
from normwise.nn import parse_spec
from normwise.nn.own import Given, name_of
from normwise.surgery import convert, find
from normwise.surgery.conversion import Record

AS_IS = "as_is"


def converted(
    model: nn.Module, method: Given, examples: Any = None, elsewhere: Mapping[str, str] | None = None
) -> nn.Module:
    """Convert a model's normalization layers to a method; what cannot be converted stays."""
    return model if method == AS_IS else _convert(model, method, examples, elsewhere or {})[0]


def own_methods(model: nn.Module) -> Counter[str]:
    """Count the normalization layers of a model by method."""
    return Counter(found.layer.method for found in find(model))


def conversion_note(
    model: nn.Module, method: Given, examples: Any = None, elsewhere: Mapping[str, str] | None = None
) -> str:
    """Say what is converted for a method."""
    if method == AS_IS:
        kinds = Counter(type(found.module).__name__ for found in find(model))
        return "the model's own layers, " + _counted(kinds)
    try:
        _, record = _convert(model, method, examples, elsewhere or {})
    except Exception as error:  # The trials fail for the same reason, and the study says so.
        return f"cannot be converted ({error})"
    done = Counter(f"{r.old} → {r.new}" for r in record.replaced)
    parts = [_counted(done)] if done else []
    parts += [f"weight norm on {len(record.weights)} weights"] if record.weights else []
    parts += [f"{use} at {layer}" for layer, use in (elsewhere or {}).items()]
    parts += [f"left {left.layer or type(model).__name__}: {left.reason}" for left in record.left]
    return "; ".join(parts)


def _convert(model: nn.Module, method: Given, examples: Any, elsewhere: Mapping[str, str]) -> tuple[nn.Module, Record]:
    to, options = parse_spec(method) if isinstance(method, str) else (method, {})
    options.pop("init", None)  # Of weight norm; the data come later.
    before = own_methods(model)
    for layer, use in elsewhere.items():
        convert(model, use, where=lambda found, _, layer=layer: found == layer, allow_leak=True)  # type: ignore[misc]
    # Without exceptions it is not asked where, for weight norm counts weights by their names.
    where = (lambda found, _: found not in elsewhere) if elsewhere else None
    # Whether it looks ahead is asked of the whole study.
    done = convert(model, to, where=where, example_inputs=examples, strict=False, allow_leak=True, **options)
    refused = {left.layer: left.reason for left in done.record.left}
    if not done.record.replaced and not done.record.weights and set(before) != {name_of(to)}:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in refused.items()) or "nothing to convert"
        raise InputError(f"no layer can be converted to {name_of(to)}: {reasons}")
    return done.model, done.record


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} ({number})" for kind, number in kinds.items()) or "none"

"""Methods of one's own: what else than a name may say which layers to build, and how each is called."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch

from normwise.errors import InputError, blaming, shown_path
from normwise.methods import METHODS, Method, method_named
from normwise.nn._checks import came

# What says which layers to build: the name of a method, with options or not; a method; or what builds a layer.
Given = str | Method | type[Method] | Callable[..., torch.nn.Module]
# What builds a layer of a number of channels, for a number of spatial axes, with more options.
Build = Callable[[int, int, dict[str, Any]], torch.nn.Module]

_LONGEST = 60
# A width that most layers can have, to see what an unnamed function builds.
_WIDTH = 64


def builder(given: Any) -> Callable[..., torch.nn.Module]:
    """Check that something may build layers."""
    if isinstance(given, torch.nn.Module) or not callable(given):
        raise InputError(
            f"expected the name of a method, one of {', '.join(METHODS)}, a Method, or a callable that builds a layer "
            f"for a number of channels, as in lambda channels: MyLayer(channels); got {came(given)}"
        )
    return given


def layers_by(given: Callable[..., torch.nn.Module], options: dict[str, Any]) -> Build:
    """Build by a callable, to which ``dim`` and what a network passes on (``eps``, ``device``) go if it takes them."""
    named, any_ = _taken(builder(given))

    def build(num_features: int, dim: int, more: dict[str, Any]) -> torch.nn.Module:
        passed = {name: value for name, value in more.items() if any_ or name in named}
        passed |= {"dim": dim} if "dim" in named else {}
        with blaming(f"{name_of(given)} failed to build a layer for {num_features} channels"):
            layer = given(num_features, **options | passed)
        if not isinstance(layer, torch.nn.Module):
            where = place_of_definition(given)
            raise InputError(
                f"{name_of(given)} gave {came(layer)} for {num_features} channels, expected a torch.nn.Module"
                + (f" (at {where})" if where else "")
            )
        place = {name: more[name] for name in ("device", "dtype") if more.get(name) is not None and name not in passed}
        return layer.to(**place) if place else layer

    return build


def named(givens: Iterable[Given], reserved: Container[str] = ()) -> dict[str, Given]:
    """Give each method a name that no other has; what is given twice counts once.

    ``reserved`` names are those of the library, which only a text may mean.
    """
    found: dict[str, Given] = {}
    for given in givens:
        base = name_of(given)
        if in_family(given):
            given = base
        name, count = base, 1
        while (name in found and not _same(found[name], given)) or (name in reserved and not isinstance(given, str)):
            count += 1
            name = f"{base} #{count}"
        found[name] = given
    return found


def in_family(given: Any) -> bool:
    """Whether something is a method of ``METHODS``, with options or not, or the class of one."""
    kind = given if isinstance(given, type) else type(given)
    return any(kind is type(method) for method in METHODS.values())


def as_method(given: Any) -> Method | None:
    """The method that something is: an object, a class, or a name of ours; ``None`` for other callables."""
    kind = isinstance(given, str | Method) or (isinstance(given, type) and issubclass(given, Method))
    return method_named(given) if kind else None


def name_of(given: Any) -> str:
    """Name a method as its user knows it: ``group(num_groups=4)``, ``MyMethod(0.3)``, ``my_layer``."""
    if isinstance(given, str):
        head, parenthesis, rest = given.partition("(")
        return head.strip() + parenthesis + "".join(rest.split())
    if in_family(given):
        return str(method_named(given))
    if isinstance(given, Method):
        options = {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if f.init}
        # A single option needs no name.
        args, options = (tuple(options.values()), {}) if len(options) == 1 else ((), options)
        return _called(type(given).__name__, args, options)
    if isinstance(given, functools.partial):
        return _called(name_of(given.func), given.args, given.keywords)
    name = getattr(given, "__name__", None)
    if name == "<lambda>":
        name = _built_by(given) or "lambda"
    return _cut(name or _value(given))


def place_of_definition(given: Any) -> str | None:
    """``FILE:LINE`` of a function or class, of a method's or object's class; ``None`` where there is no source."""
    given = given.func if isinstance(given, functools.partial) else given
    given = given if isinstance(given, type) or hasattr(given, "__code__") else type(given)
    with contextlib.suppress(OSError, TypeError):
        file, line = inspect.getsourcefile(given), inspect.getsourcelines(given)[1]
        return None if file is None else f"{shown_path(file)}:{max(line, 1)}"
    return None


def _called(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """A call as it is written."""
    shown = [*map(_value, args), *(f"{option}={_value(value)}" for option, value in options.items())]
    return _cut(f"{name}({', '.join(shown)})" if shown else name)


def _value(value: Any) -> str:
    """A value without its address in memory, which the next process would not know."""
    plain = type(value).__repr__ is object.__repr__
    return getattr(value, "__name__", None) or (type(value).__name__ if plain else repr(value))


def _cut(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _built_by(function: Callable[..., Any]) -> str | None:
    """The class of what an unnamed function builds."""
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
        layer = function(_WIDTH)
        return type(layer).__name__ if isinstance(layer, torch.nn.Module) else None
    return None


def _same(one: Any, other: Any) -> bool:
    if one is other or type(one) is not type(other):
        return one is other
    with contextlib.suppress(Exception):  # options that cannot be compared, as tensors
        return isinstance(one, str | Method) and bool(one == other)
    return False


def _taken(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of a function's arguments, and whether it takes any others."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), False
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)

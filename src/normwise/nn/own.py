"""Methods of one's own: what else than a name may say which layers to build, and how each is called."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from normwise import ops
from normwise.errors import InputError, blaming, shown_path
from normwise.methods import METHODS, Method
from normwise.nn._checks import came
from normwise.nn._eps import Eps
from normwise.nn._state import TrackingNorm, boundary, checked_size

if TYPE_CHECKING:
    from normwise.nn.factory import NormFactory

# What says which layers to build: the name of a method, with options or not; a method; or what builds a layer.
Given = str | Method | Callable[..., torch.nn.Module]

_LONGEST = 60
# A width that most layers can have, to see what an unnamed function builds.
_WIDTH = 64


class MethodNorm(TrackingNorm):
    """The layer of a method of one's own: weight, bias and what else the method learns, all per channel.

    It keeps running averages if the method does, and takes (N, C, ...) with any number of spatial axes.
    """

    eps = Eps(guards=True)

    def __init__(
        self,
        method: Method,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        skip_nonfinite: bool = True,
    ) -> None:
        super().__init__(checked_size(num_features), eps, momentum, affine, method.running, device, dtype, bias=bias)
        self._guard(skip_nonfinite)
        self.method = method
        self.activation = ops.known_activation(activation)
        for name in method.parameters:
            self.register_parameter(name, torch.nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)))

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        learned = [getattr(self, name) for name in self.method.parameters]
        options = {"activation": self.activation, "mask": mask, "lengths": lengths}
        options |= {"extra": learned[0]} if learned else {}
        return self._normalize(input, self.method, self.momentum, counts=True, **options)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"{name_of(self.method)}, {super().extra_repr()}"


def own_layers(given: Method | Callable[..., torch.nn.Module], dim: int, options: dict[str, Any]) -> NormFactory:
    """Make the factory of a method's layers, or of those that a callable ``channels -> Module`` builds.

    ``dim`` and what a network passes on (``eps``, ``device``) reach a callable that takes them.
    """
    if isinstance(given, type) and issubclass(given, Method):
        given, options = given(**options), {}
    build = partial(MethodNorm, given) if isinstance(given, Method) else builder(given)
    named, any_ = _taken(build)
    default_dim = dim

    def norm(num_features: int, dim: int | None = None, **more: Any) -> torch.nn.Module:
        passed = {name: value for name, value in more.items() if any_ or name in named}
        passed |= {"dim": default_dim if dim is None else dim} if "dim" in named else {}
        with blaming(f"{name_of(given)} failed to build a layer for {num_features} channels"):
            layer = build(num_features, **options | passed)
        if not isinstance(layer, torch.nn.Module):
            where = place_of_definition(given)
            raise InputError(
                f"{name_of(given)} gave {came(layer)} for {num_features} channels, expected a torch.nn.Module"
                + (f" (at {where})" if where else "")
            )
        place = {name: more[name] for name in ("device", "dtype") if more.get(name) is not None and name not in passed}
        return layer.to(**place) if place else layer

    return norm


def builder(given: Any) -> Callable[..., torch.nn.Module]:
    """Check that something may build layers."""
    if isinstance(given, torch.nn.Module) or not callable(given):
        raise InputError(
            f"expected the name of a method, one of {', '.join(METHODS)}, a Method, or a callable that builds a layer "
            f"for a number of channels, as in lambda channels: MyLayer(channels); got {came(given)}"
        )
    return given


def named(givens: Iterable[Given], reserved: Container[str] = ()) -> dict[str, Given]:
    """Give each method a name that no other has; what is given twice counts once.

    ``reserved`` names are those of the library, which only a text may mean.
    """
    found: dict[str, Given] = {}
    for given in givens:
        base = name_of(given)
        if isinstance(given, Method) and METHODS.get(given.name) is given:
            given = base  # one of ours
        name, count = base, 1
        while (name in found and not _same(found[name], given)) or (name in reserved and not isinstance(given, str)):
            count += 1
            name = f"{base} #{count}"
        found[name] = given
    return found


def name_of(given: Any) -> str:
    """Name a method as its user knows it: ``group(num_groups=4)``, ``MyMethod(0.3)``, ``my_layer``."""
    if isinstance(given, str):
        head, parenthesis, rest = given.partition("(")
        return head.strip() + parenthesis + "".join(rest.split())
    if isinstance(given, Method):
        options = options_of(given)
        # A single option needs no name.
        args, options = (tuple(options.values()), {}) if len(options) == 1 else ((), options)
        return _cut(given.name) if type(given) is Method else _called(type(given).__name__, args, options)
    if isinstance(given, functools.partial):
        return _called(name_of(given.func), given.args, given.keywords)
    name = getattr(given, "__name__", None)
    if name == "<lambda>":
        name = _built_by(given) or "lambda"
    return _cut(name or _value(given))


def options_of(method: Method) -> dict[str, Any]:
    """What a method of one's own was told: its fields beside those that every method has."""
    return {name: value for name, value in vars(method).items() if name not in Method.__dataclass_fields__}


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
        if isinstance(one, Method) and type(one) is not Method:
            return bool(options_of(one) == options_of(other))
        return isinstance(one, str | Method) and bool(one == other)
    return False


def _taken(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of a function's arguments, and whether it takes any others."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), False
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)

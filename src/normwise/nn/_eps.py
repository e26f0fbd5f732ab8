"""What keeps a layer with an activation, or with another formula, from passing for a plain one.

Tools that fuse or convert layers read a layer's weight, bias, statistics and eps and compute its formula themselves;
whatever else the layer does is lost without a word. They know layers by their class, or by those attributes alone, so
no choice of classes stops them all, and one that did would break ``update_bn`` and weight-decay filters. But nobody
computes the formula without eps. So eps is no float where the formula is not all: torch's kernels refuse it by its
type. Where an activation follows, calculating with it is an error that says why, and comparing it (as torch's encoder
layer does, before it takes its fast path) finds it equal to nothing, also where another method stands in the place of a
layer norm; else it calculates as its number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

from normwise.errors import InputError


def _calculating(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda eps, other: operation(eps.value, stored_eps(other))


class eps_of_a_layer_that_is_more_than_batch_norm:  # noqa: N801 (torch's errors name the type: it says what is wrong)
    """The eps of a layer that keeps a batch norm's tensors and computes something else; ``value`` is the number."""

    def __init__(self, value: float | None, layer: str) -> None:
        self.value, self.layer = value, layer

    def __eq__(self, other: object) -> bool:
        return bool(self.value == stored_eps(other))

    def __hash__(self) -> int:
        return hash(self.value)

    def __float__(self) -> float:
        return float(self.value)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return repr(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    __add__ = __radd__ = _calculating(operator.add)
    __mul__ = __rmul__ = _calculating(operator.mul)
    __sub__, __rsub__ = _calculating(operator.sub), _calculating(lambda a, b: b - a)
    __truediv__, __rtruediv__ = _calculating(operator.truediv), _calculating(lambda a, b: b / a)
    __pow__, __rpow__ = _calculating(operator.pow), _calculating(lambda a, b: b**a)
    __lt__, __le__ = _calculating(operator.lt), _calculating(operator.le)
    __gt__, __ge__ = _calculating(operator.gt), _calculating(operator.ge)


class eps_of_a_layer_in_the_place_of_a_layer_norm(eps_of_a_layer_that_is_more_than_batch_norm):  # noqa: N801
    """The eps of another method over tokens: equal to nothing, see above."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(self.value)


class eps_of_a_layer_with_an_activation(eps_of_a_layer_in_the_place_of_a_layer_norm):  # noqa: N801
    """The eps of a layer whose formula an activation follows: equal to nothing, see above."""

    def __init__(self, value: float | None, layer: str, activation: str) -> None:
        super().__init__(value, layer)
        self.activation = activation

    def _refuse(self, *_: object) -> NoReturn:
        raise InputError(
            f"this {self.layer} applies {self.activation} after its formula, which whoever computes with its weight, "
            "bias and eps would lose. Call the layer, or bring it to torch's own classes first with "
            "normwise.to_torch(model); the number is in eps.value"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __float__ = _refuse


class Eps:
    """The attribute ``eps`` of our layers: the number, or what refuses to be one."""

    def __init__(self, guards: bool = False) -> None:
        self.guards = guards

    def __set_name__(self, owner: Any, name: str) -> None:
        # Torch's tracer takes constants through the attribute, and other attributes as they are stored.
        owner.__constants__ = [constant for constant in owner.__constants__ if constant != name]

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        try:
            value = layer.__dict__["eps"]
        except KeyError:
            raise AttributeError(f"{type(layer).__name__} has no eps yet") from None
        activation, name = layer.__dict__.get("activation"), type(layer).__name__
        if activation is not None:
            return eps_of_a_layer_with_an_activation(value, name, activation)
        # Also what is no batch norm by its place, however it was put there.
        if getattr(layer, "layout", "first") == "last" or (self.guards and getattr(layer, "axis", 1) != 1):
            return eps_of_a_layer_in_the_place_of_a_layer_norm(value, name)
        return eps_of_a_layer_that_is_more_than_batch_norm(value, name) if self.guards else value

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__["eps"] = stored_eps(value)


def stored_eps(value: Any) -> Any:
    """The number, whether or not an activation follows."""
    return value.value if isinstance(value, eps_of_a_layer_that_is_more_than_batch_norm) else value


def eps_of(layer: Any) -> Any:
    """The number that a layer adds to its variance."""
    return layer.__dict__["eps"]

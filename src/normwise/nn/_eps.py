"""What keeps a layer with an activation from passing for one without.

Tools that fuse or convert layers read a layer's weight, bias, statistics and eps and compute its formula themselves;
whatever else the layer does is lost without a word. They know layers by their class, or by those attributes alone, so no
choice of classes stops them all, and one that did would break ``update_bn`` and weight-decay filters. But nobody
computes the formula without eps. So eps is no number where the formula is not all: calculating with it is an error that
says why, and comparing it (as torch's encoder layer does, before it takes its fast path) finds it equal to nothing.
"""

from __future__ import annotations

from typing import Any, NoReturn

from normwise.errors import InputError


class eps_of_a_layer_with_an_activation:  # noqa: N801 (torch's errors name the type, which has to say what is wrong)
    """The eps of a layer whose formula an activation follows; ``value`` is the number."""

    def __init__(self, value: float | None, activation: str, layer: str) -> None:
        self.value, self.activation, self.layer = value, activation, layer

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def _refuse(self, *_: object) -> NoReturn:
        raise InputError(
            f"this {self.layer} applies {self.activation} after its formula, so whoever computes the formula from "
            "weight, bias and eps would lose the activation. Call the layer, or split it first with "
            "normwise.to_torch(model); its number is in eps.value"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __abs__ = __float__ = __int__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse


class Eps:
    """The attribute ``eps`` of our layers: the number, or what refuses to be one where an activation follows."""

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
        activation = layer.__dict__.get("activation")
        return (
            value if activation is None else eps_of_a_layer_with_an_activation(value, activation, type(layer).__name__)
        )

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__["eps"] = stored_eps(value)


def stored_eps(value: Any) -> Any:
    """The number, whether or not an activation follows."""
    return value.value if isinstance(value, eps_of_a_layer_with_an_activation) else value


def eps_of(layer: Any) -> Any:
    """The number that a layer adds to its variance."""
    return layer.__dict__["eps"]

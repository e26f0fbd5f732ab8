"""Where tensors come from while a model runs: who made them, which axis holds their channels, who else takes them."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# What keeps every value in its place, so that channels stay on their axis.
_SAME_PLACE = {
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "dropout", "alpha_dropout", "feature_dropout"),
    *("contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "double", "type_as", "abs", "square"),
}
_COMBINING = {"add", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "mul", "__mul__", "__rmul__", "__imul__"}
_SWAPS = {"transpose", "swapaxes", "swapdims"}


@dataclass
class _Mark:
    tensor: weakref.ref[Tensor]
    version: int
    maker: str | None
    axis: int | None


class Lineage:
    """Marks on tensors, as long as they live and nobody writes into them."""

    def __init__(self) -> None:
        self.uses: Counter[str] = Counter()
        self._marks: dict[int, _Mark] = {}
        self._dropped: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def mark(self, tensor: Tensor, maker: str | None, axis: int | None) -> None:
        """Say who made a tensor, and on which axis its channels are."""
        self._marks[id(tensor)] = _Mark(weakref.ref(tensor), tensor._version, maker, axis)

    def maker(self, tensor: Tensor) -> str | None:
        """The module whose output a tensor is, as it is."""
        mark = self._of(tensor)
        return None if mark is None else mark.maker

    def axis(self, tensor: Tensor) -> int | None:
        """The axis of its channels, where known."""
        mark = self._of(tensor)
        return None if mark is None else mark.axis

    def drop(self, value: Any, dropout: str) -> None:
        """Say that dropout of this name is in what made a tensor, or those of a tuple, since the last norm."""
        for tensor in _flat(value):
            self._dropped[id(tensor)] = weakref.ref(tensor), dropout

    def dropout_of(self, value: Any) -> str | None:
        """The dropout that made a tensor, or one of a tuple, what it is."""
        for tensor in _flat(value):
            ref, dropout = self._dropped.get(id(tensor), (None, ""))
            if ref is not None and ref() is tensor:
                return dropout
        return None

    def makers(self, value: Any) -> list[str]:
        """Who made a tensor, or those of a tuple."""
        return [maker for tensor in _flat(value) if (maker := self.maker(tensor)) is not None]

    def follow(
        self, name: str, args: tuple, kwargs: dict[str, Any] | None, axes: list[int | None], result: Any
    ) -> None:
        """Carry the channels' axis over a function; ``axes`` are those of its tensors before it ran."""
        if not isinstance(result, Tensor) or not axes:
            return
        axis = _axis_after(name, args, kwargs or {}, axes, result)
        if self._of(result) is None and axis is not None:
            self.mark(result, None, axis)

    def axes_of(self, args: tuple) -> list[int | None]:
        """The channels' axes of the tensors among arguments; empty where none is known."""
        axes = [self.axis(tensor) for tensor in args if isinstance(tensor, Tensor) and tensor.ndim > 1]
        return axes if any(axis is not None for axis in axes) else []

    def _of(self, tensor: Tensor) -> _Mark | None:
        mark = self._marks.get(id(tensor))
        return mark if mark is not None and mark.tensor() is tensor and mark.version == tensor._version else None


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _flat(item)] if isinstance(value, tuple | list) else []


def _axis_after(name: str, args: tuple, kwargs: dict[str, Any], axes: list[int | None], result: Tensor) -> int | None:
    first, plain = axes[0], name.rstrip("_") if not name.startswith("__") else name
    if plain in _COMBINING:
        return first if len(set(axes)) == 1 else None
    if not args or not isinstance(args[0], Tensor) or first is None:
        return None
    n = args[0].ndim
    if plain in _SAME_PLACE:
        return first if result.shape == args[0].shape else None
    if plain in _SWAPS and len(args) == 3:
        a, b = (int(i) % n for i in args[1:3])
        return {a: b, b: a}.get(first, first)
    if plain == "permute":
        order = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        return [int(i) % n for i in order].index(first) if len(order) == n else None
    if plain == "flatten":
        start = int(args[1] if len(args) > 1 else kwargs.get("start_dim", 0))
        return first if first < start % n else None
    return None

"""Where a layer's channels stand: as told, or as the shape of the input says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normwise.errors import InputError

# From this many axes on, an input is a map or a volume, whose layers all see their channels in the same place more
# often than not; a mistake between channels and tokens would let a model see what comes later.
_MAPS = 4
# What the layers of a factory know in common where one of them took axis 1 because no shape told.
_TAKEN = 0


def checked_axis(axis: int | None) -> int | None:
    """Refuse what is no place for channels."""
    if axis not in (None, 1, -1):
        raise InputError(f"axis says where the channels stand: expected 1, -1 or None (by the shape), got {axis!r}")
    return axis


class ChannelAxis:
    """What the layers share that find their channels at axis 1 or at the last axis."""

    axis: int | None = None
    # Where the channels were found, by this layer and by all layers of one norm_layer.
    _found: frozenset[int] = frozenset()
    _together: Any = None

    def _channel_axis(self, x: Tensor, channels: int) -> int:
        """Give 1 or -1; in (N, C), which is both, -1."""
        if self.axis is not None:
            return self.axis
        first, last = x.ndim > 2 and x.shape[1] == channels, x.shape[-1] == channels
        if first and last:
            return self._known(x, channels)
        if not (first or last):
            raise RuntimeError(
                f"expected {channels} channels at axis 1 or at the last axis, got an input of shape {tuple(x.shape)}"
            )
        axis = 1 if first else -1
        if not torch.compiler.is_compiling() and x.ndim > 2 and axis not in self._found:
            self._found = self._found | {axis}
            if self._together is not None and x.ndim >= _MAPS:
                if axis == -1 and _TAKEN in self._together:
                    raise InputError(
                        f"channels come last in an input of shape {tuple(x.shape)}, and an earlier layer, whose input "
                        "had as many values at axis 1 as at the last, took them to be at axis 1: say axis=-1, as in "
                        'norm_layer("layer", axis=-1)'
                    )
                self._together.add(axis)
        return axis

    @property
    def known_axis(self) -> int | None:
        """Where the channels are, as told or as found so far; ``None`` where that is not known."""
        return self.axis if self.axis is not None or len(self._found) != 1 else next(iter(self._found))

    def _known(self, x: Tensor, channels: int) -> int:
        """Where the channels were before, if in one place only; those of maps are at axis 1 where nothing tells."""
        maps = x.ndim >= _MAPS
        for found in (self._found, (self._together or frozenset()) - {_TAKEN} if maps else None):
            if found:
                if len(found) == 1:
                    (axis,) = found
                    return axis
                break
        else:
            if maps:
                if self._together is not None:
                    self._together.add(_TAKEN)
                return 1
        raise InputError(
            f"an input of shape {tuple(x.shape)} has {channels} values at axis 1 and at the last axis, and either may "
            "be the channels: say axis=-1 (tokens, channels last) or axis=1 (maps, channels first), as in "
            'norm_layer("layer", axis=-1)'
        )

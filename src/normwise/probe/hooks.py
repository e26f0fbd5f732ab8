"""The hooks that measure one pass: on a model's layers, and on the gradients that come back to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from normwise.nn._convolutions import CONVOLUTIONS
from normwise.probe.log import Log
from normwise.probe.meters import NormMeter, WeightMeter
from normwise.probe.places import input_of
from normwise.surgery.running import tensors_in


class Hooks:
    """Hooks for the meters of norms and weighted layers, which are known by their modules' ids."""

    def __init__(
        self, norms: Mapping[int, NormMeter], weighted: Mapping[int, nn.Module], weights: Mapping[int, WeightMeter]
    ) -> None:
        self._norms, self._weighted, self._weights = norms, weighted, weights
        self._log: Log | None = None
        self._at, self._on = 0, ExitStack()
        self.overhead, self.came_back = 0.0, False

    def put_on(self, log: Log | None, at: int) -> None:
        """Measure from now on, in pass number ``at``; the log surveys the model beside."""
        self._log, self._at = log, at
        if log is not None:
            self._on.enter_context(log)
        for key, norm in self._norms.items():
            self._measure(norm.found.module, self._look_at_norm(key), norm.hear_output)
        for key, module in self._weighted.items():
            self._measure(module, self._look_at_input(key), self._hear(key))

    def late(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Measure a layer that is called by itself: what is put on now comes too late for this run."""
        key = id(module)
        if self._log is not None and (key in self._norms or key in self._weighted):
            self._log.before(key)(module, args, kwargs)
        if key in self._norms:
            self._look_at_norm(key)(module, args, kwargs)
        if key in self._weighted:
            self._look_at_input(key)(module, args, kwargs)

    def take_off(self) -> None:
        """Measure no more; gradients that come back later are still heard."""
        self._on.close()

    def _measure(self, module: nn.Module, look: Callable[..., None], hear: Callable[[Tensor], None]) -> None:
        def listen(_: nn.Module, args: tuple, output: Any) -> None:
            made = tensors_in(output)
            if made and made[0].requires_grad:
                made[0].register_hook(hear)

        self._on.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        self._on.callback(module.register_forward_hook(listen).remove)

    def _look_at_norm(self, key: int) -> Callable[..., None]:
        meter = self._norms[key]

        def look(x: Tensor, kwargs: dict[str, Any]) -> None:
            meter.look(x, kwargs, ranks() if meter.found.layer.synced else 1, self._at)
            if x.requires_grad:
                x.register_hook(meter.hear_input)

        return self._looking(look)

    def _look_at_input(self, key: int) -> Callable[..., None]:
        axis = 1 if isinstance(self._weighted[key], CONVOLUTIONS) else -1
        return self._looking(lambda x, _: self._weights[key].look(x, axis))

    def _looking(self, look: Callable[[Tensor, dict[str, Any]], None]) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            begun = time.perf_counter()
            x = input_of(args, kwargs)
            if x is not None:
                look(x, kwargs)
            self.overhead += time.perf_counter() - begun

        return hook

    def _hear(self, key: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            begun = time.perf_counter()
            self.came_back = True
            self._weights[key].hear(gradient)
            self.overhead += time.perf_counter() - begun

        return hook


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

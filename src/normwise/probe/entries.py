"""Where training enters a model: its ``forward``, or parts of it that somebody calls by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

Begin = Callable[[nn.Module, tuple, dict[str, Any]], None]
End = Callable[[nn.Module, tuple, dict[str, Any], Any], None]


class Entries:
    """Calls back around each outermost run of a module of a model, whichever module that is.

    Parts that ran inside the whole model lose their hooks, so that training through ``forward`` is watched at one
    place. Runs within a backward pass (activation checkpointing) do not count.
    """

    def __init__(self, model: nn.Module, layers: Collection[int], begin: Begin, end: End) -> None:
        self._model, self._begin, self._end = model, begin, end
        self._layers = layers
        self._handles: dict[int, list[Any]] = {}
        self._open: list[nn.Module] = []
        self.ran: set[int] = set()

    def open(self) -> None:
        """Put the hooks on."""
        for module in self._model.modules():
            if module is self._model or any(id(part) in self._layers for part in module.modules()):
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after, with_kwargs=True, always_call=True)
                self._handles[id(module)] = [before, after]

    def close(self) -> None:
        """Take the hooks off."""
        self._drop(set(self._handles))

    def _drop(self, keys: set[int]) -> None:
        for key in keys & self._handles.keys():
            for handle in self._handles.pop(key):
                handle.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if _in_backward():
            return
        self.ran.add(id(module))
        self._open.append(module)
        if len(self._open) == 1:
            self._begin(module, args, kwargs)
            # Last in line, behind the hooks that ``begin`` may have put on this very module.
            handles = self._handles[id(module)]
            handles[1].remove()
            handles[1] = module.register_forward_hook(self._after, with_kwargs=True, always_call=True)

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if _in_backward() or not self._open or self._open[-1] is not module:
            return
        self._open.pop()
        if not self._open:
            self._end(module, args, kwargs, output)
            if module is self._model and output is not None:
                self._drop(self.ran - {id(module)})


def _in_backward() -> bool:
    # The engine's number of the backward pass that runs now; where a torch has no such function, hooks count as ever.
    current = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1

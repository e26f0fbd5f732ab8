"""Weights that are kept as length and direction, whoever split them: this package, torch, or torch's older hook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm as TorchWeightNorm  # what torch's weight_norm registers
from torch.nn.utils.weight_norm import WeightNorm as _WeightNormHook

from normwise.parametrize._copies import own_class, refresh
from normwise.parametrize._weight_norm import WeightNorm, put_on, stop_splitting

KINDS = (WeightNorm, TorchWeightNorm)


class Split:
    """A weight that is kept as length g and direction v, in one of three ways: ours, torch's, torch's older hook.

    ``keys`` are those of g and v in the module's state_dict, ``norm`` joins and splits values.
    """

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name = module, name
        parts = module.parametrizations[name]
        self._ours = isinstance(parts[0], WeightNorm)
        self.norm = parts[0] if self._ours else WeightNorm(parts[0].dim, eps=0.0)
        self.g, self.v = parts.original0, parts.original1
        self.keys = (f"parametrizations.{name}.original0", f"parametrizations.{name}.original1")

    def join(self) -> None:
        """Make it a plain weight, a new parameter."""
        # A copy that the user made shares the class, and its weight would go.
        own_class(self.module)
        parametrize.remove_parametrizations(self.module, self.name)
        stop_splitting(self.module, self.name)
        self._settle()

    def again(self) -> None:
        """Undo :meth:`join`: the same parameters are back."""
        if self._ours:
            put_on(self.module, self.name, self.norm)
        else:
            put_on_torchs: Any = torch.nn.utils.parametrizations.weight_norm  # whose dim may be None, whatever it says
            put_on_torchs(self.module, self.name, self.norm.dim)
        parts = self.module.parametrizations[self.name]
        parts.original0, parts.original1 = self.g, self.v

    def _settle(self) -> None:
        # Torch makes a buffer of a weight that nothing is to learn.
        weight = getattr(self.module, self.name).detach()
        self.module._buffers.pop(self.name, None)
        setattr(self.module, self.name, Parameter(weight, requires_grad=self.v.requires_grad))
        refresh(self.module)


class _Hooked(Split):
    """By ``torch.nn.utils.weight_norm``, whose hook computes the weight before each forward pass."""

    def __init__(self, module: Any, hook: _WeightNormHook) -> None:
        self.module, self.name, self._hook = module, hook.name, hook
        self.keys = (f"{hook.name}_g", f"{hook.name}_v")
        self.g, self.v = (module._parameters[key] for key in self.keys)
        self.norm = WeightNorm(hook.dim, eps=0.0)

    def join(self) -> None:
        torch.nn.utils.remove_weight_norm(self.module, self.name)
        self._settle()

    def again(self) -> None:
        del self.module._parameters[self.name]
        for key, part in zip(self.keys, (self.g, self.v), strict=True):
            self.module.register_parameter(key, part)
        setattr(self.module, self.name, self._hook.compute_weight(self.module))
        self.module.register_forward_pre_hook(self._hook)
        refresh(self.module)


def splits(module: torch.nn.Module) -> Iterator[Split]:
    """Find the weight norms of one module, whoever put them on, without those of its children."""
    lists: Any = getattr(module, "parametrizations", {})
    for name in list(lists):
        if len(lists[name]) == 1 and isinstance(lists[name][0], KINDS):
            yield Split(module, name)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, _WeightNormHook):
            yield _Hooked(module, hook)

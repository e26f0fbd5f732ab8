"""What an optimizer does to normalization: its learning rate, and weight decay where it does harm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_MIXING = ("mean_weight", "var_weight")


class Decays:
    """The optimizers that step on a model, and the weight decay that each of its parameters gets."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._parameters = {id(p) for p in model.parameters()}
        self._optimizers: dict[int, torch.optim.Optimizer] = {}
        self._foreign: set[int] = set()
        if optimizer is not None:
            self._optimizers[id(optimizer)] = optimizer

    def notice(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimizer in if it holds a parameter of the model."""
        if id(optimizer) in self._optimizers or id(optimizer) in self._foreign:
            return
        if any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"]):
            self._optimizers[id(optimizer)] = optimizer
        else:
            self._foreign.add(id(optimizer))

    def knows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer is one of the model's."""
        return id(optimizer) in self._optimizers

    def of(self, norm: nn.Module) -> dict[str, float]:
        """The weight decay on a norm's weight and bias, and on its mixing weights."""
        own = dict(norm.named_parameters(recurse=False))
        mixing = {id(p) for name, p in own.items() if name in _MIXING}
        plain = {id(p) for p in own.values()} - mixing
        return {"decay": self._highest(plain), "mixing_decay": self._highest(mixing)}

    def on(self, module: nn.Module) -> float:
        """The highest weight decay on a layer's matrices and kernels."""
        return self._highest({id(p) for p in module.parameters() if p.ndim >= 2})

    @property
    def fresh(self) -> bool:
        """Whether there are optimizers whose steps depend on those before, and none has stepped yet."""
        known = self._optimizers.values()
        recalls = any(g.get("momentum") or "betas" in g or "alpha" in g for o in known for g in o.param_groups)
        return recalls and not any(optimizer.state for optimizer in known)

    def _highest(self, wanted: set[int]) -> float:
        return max(
            (
                float(group.get("weight_decay", 0.0))
                for optimizer in self._optimizers.values()
                for group in optimizer.param_groups
                if any(id(p) in wanted for p in group["params"])
            ),
            default=0.0,
        )

    def summary(self) -> dict[str, Any]:
        """Name, highest learning rate and decay of the optimizers, as :class:`normwise.findings.RunTrace` has them."""
        if not self._optimizers:
            return {}
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        return {
            "optimizer": type(next(iter(self._optimizers.values()))).__name__,
            "lr": max(float(group.get("lr", 0.0)) for group in groups),
            "decay": max(float(group.get("weight_decay", 0.0)) for group in groups),
        }

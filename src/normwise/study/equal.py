"""Methods that make the same network of a model, found by running them: each network is trained once."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normwise.records import Settings, Setup
from normwise.study.tasks.base import Task
from normwise.study.tasks.convert import AS_IS
from normwise.study.trial import build_model, isolated

# What differs by less, relative to its size, differs by rounding.
ROUNDING = 1e-4
_SAMPLES = 4


def without_equals(task: Task, settings: Settings) -> Settings:
    """Keep one of the methods that make the same network, and note which others it stands for.

    The same are those with the same parameters whose losses and gradients agree, in training and in evaluation. Of a
    model as it was written and the method that it was written with, the method is kept.
    """
    batch = task.splits.train.take(slice(_SAMPLES)).load()
    kept: dict[str, _Behaviour | None] = {}
    same_as: dict[str, str] = {}
    for method in sorted(settings.methods, key=lambda m: m == AS_IS):
        shown = _behaviour(task, method, batch)
        twin = next((other for other, of in kept.items() if shown and of and shown.agrees(of)), None)
        if twin is None:
            kept[method] = shown
        else:
            same_as[method] = twin
    notes = [
        f"{method} and {twin} make the same network (losses and gradients agree to rounding): trained once, as {twin}."
        for method, twin in same_as.items()
    ]
    methods = [m for m in settings.methods if m in kept]
    return dataclasses.replace(settings, methods=methods, same_as=same_as, notes=[*settings.notes, *notes])


class _Behaviour(NamedTuple):
    """The shapes of a model's parameters, and its loss and gradients, projected, in training and in evaluation."""

    shapes: list[torch.Size]
    shown: list[Tensor]

    def agrees(self, other: _Behaviour) -> bool:
        """Whether it is that of the same network."""
        return self.shapes == other.shapes and all(
            bool((a - b).norm() <= ROUNDING * a.norm()) for a, b in zip(self.shown, other.shown, strict=True)
        )


def _behaviour(task: Task, method: str, batch: Any) -> _Behaviour | None:
    """What a fresh model under a method does; nothing where it fails, which its trials will tell."""
    shown: list[Tensor] = []
    with isolated(task):
        try:
            model = build_model(task, Setup("final", method, _SAMPLES, 0.0, 0))
            parameters = list(model.parameters())
            _shake(parameters)
            for training in (True, False):
                torch.manual_seed(0)
                model.train(training).zero_grad()
                loss = task.loss_of(model, batch)
                loss.backward()
                shown += [loss.detach().reshape(1), _projected(parameters)]
        except Exception:
            return None
    return _Behaviour([p.shape for p in parameters], shown)


def _projected(parameters: list[nn.Parameter]) -> Tensor:
    """Each gradient's product with random numbers: what differs in it shows, and several models need little memory."""
    generator = torch.Generator().manual_seed(1)
    return torch.stack([
        torch.zeros(())
        if p.grad is None
        else (p.grad.cpu().double() * torch.randn(p.shape, generator=generator)).sum().float()
        for p in parameters
    ])


@torch.no_grad()
def _shake(parameters: list[nn.Parameter]) -> None:
    """Move parameters off their first values: a weight of 0 hides all that lies before it."""
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        spread = float(p.std()) if p.numel() > 1 else 0.0
        p.add_(0.3 * (spread or 0.3) * torch.randn(p.shape, generator=generator).to(p))

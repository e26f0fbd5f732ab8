"""How a trial's model is optimized unless its task says otherwise."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

OPTIMIZER = "SGD, momentum 0.9, no weight decay"
ADAM = "Adam, no weight decay"
ADAMW = "AdamW, betas 0.9 and 0.95, weight decay 0.1 on matrices, gradients clipped to norm 1"
SCHEDULE = "linear warm-up over the first 5 % of the steps, then cosine to 0"

_WARM_UP = 0.05


class Steps(Protocol):
    """What is told to go on: an optimizer, or a schedule of its learning rate."""

    def step(self) -> object:
        """Go on by one step."""
        ...


class SGD:
    """v ← 0.9 · v + ∇, w ← w − lr · v, as ``torch.optim.SGD``, whose construction imports a compiler for seconds.

    With a scaler of gradients it takes the scale off and leaves a step out by itself, on the device: torch's optimizers
    have the host read whether they should.
    """

    _step_supports_amp_scaling = True
    # Only while torch.amp.GradScaler calls step.
    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.lr = lr
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._velocities: list[Tensor | None] = [None] * len(self._parameters)

    @property
    def param_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """The parameters, where torch's scaler looks for them."""
        return [{"params": self._parameters}]

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        scaled = hasattr(self, "found_inf")
        for i, parameter in enumerate(self._parameters):
            gradient, velocity = parameter.grad, self._velocities[i]
            if gradient is None:
                continue
            if scaled:
                gradient = gradient / self.grad_scale
                velocity = torch.zeros_like(gradient) if velocity is None else velocity
                left_out = self.found_inf > 0
                velocity = torch.where(left_out, velocity, 0.9 * velocity + gradient)
                parameter.sub_(torch.where(left_out, 0.0, self.lr * velocity))
            else:
                velocity = gradient.clone() if velocity is None else velocity.mul_(0.9).add_(gradient)
                parameter.sub_(velocity, alpha=self.lr)
            self._velocities[i] = velocity


class WarmCosine:
    """Sets an :class:`SGD`'s learning rate to lr · :func:`schedule`."""

    def __init__(self, optimizer: SGD, lr: float, total: int) -> None:
        self._optimizer, self._lr, self._total, self._done = optimizer, lr, total, -1
        self.step()

    def step(self) -> None:
        """Set the rate of the next step."""
        self._done += 1
        self._optimizer.lr = self._lr * schedule(self._done, self._total)


class PerEpoch:
    """A schedule that goes on at the end of each pass over the training data instead of after each step."""

    def __init__(self, schedule: Steps) -> None:
        self.schedule = schedule

    def step(self) -> None:
        """Do nothing."""

    def end_epoch(self) -> None:
        """Go on."""
        self.schedule.step()


def warm_sgd(model: nn.Module, lr: float, steps: int) -> tuple[Steps, Steps]:
    """Make the optimizer and the schedule that tasks have by default."""
    optimizer = SGD(model, lr)
    return optimizer, WarmCosine(optimizer, lr, steps)


def warm_adam(model: nn.Module, lr: float, steps: int) -> tuple[Steps, Steps]:
    """Make Adam with the same schedule, for tasks on which SGD is slow."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return optimizer, warm_cosine(optimizer, steps)


class ClippedAdamW(torch.optim.AdamW):
    """AdamW after the gradients' norm was cut to 1, as language models are trained."""

    def step(self, closure: Any = None) -> Any:
        """Clip and change the parameters by their gradients."""
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


def warm_adamw(model: nn.Module, lr: float, steps: int) -> tuple[Steps, Steps]:
    """Make :class:`ClippedAdamW` with the same schedule; norms, biases and other vectors do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = ClippedAdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.95))
    return optimizer, warm_cosine(optimizer, steps)


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int) -> Steps:
    """Make the schedule of :func:`schedule` for an optimizer of torch."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_factor, steps))


def _factor(total: int, step: int) -> float:
    return schedule(step, total)


def schedule(step: int, total: int) -> float:
    """The learning rate's factor: a linear warm-up over the first 5 % of the steps, then a cosine to 0."""
    warm_up = max(1, round(_WARM_UP * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(total - warm_up, 1)))

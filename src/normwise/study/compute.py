"""What a trial computes on, and how: device, precision, compilation, and who reads the data."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normwise import devices
from normwise.errors import InputError
from normwise.records import Settings
from normwise.study.optimize import Steps

# Of the models that a study holds at once: in training, in evaluation, and at each size of a batch.
_GRAPHS = 64
_TOLD = {"32": "float32", "bf16": "bfloat16 by autocast", "16": "float16 by autocast"}


@dataclass(frozen=True)
class Compute:
    """On which device, in which precision, whether by torch.compile, and how many processes read a data set ahead."""

    device: torch.device = devices.CPU
    precision: str = "32"
    compile: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        devices.autocast(self.device, self.precision)  # refuses one that there is not
        if not isinstance(self.num_workers, int) or isinstance(self.num_workers, bool) or self.num_workers < 0:
            raise InputError(f"num_workers must be a whole number of at least 0, got {self.num_workers!r}")

    @classmethod
    def of(cls, settings: Settings) -> Compute:
        """What a study asks for, in this process."""
        return cls(devices.resolve(settings.device), settings.precision, settings.compile, settings.num_workers)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the host itself."""
        return self.device.type == "cpu"

    def settings(self) -> dict[str, Any]:
        """The fields of :class:`Settings` that say the same, on whichever device of the kind."""
        return {**dataclasses.asdict(self), "device": self.device.type}

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the precision: the forward pass and the loss."""
        return devices.autocast(self.device, self.precision)

    def settle(self, model: nn.Module) -> nn.Module:
        """Put a model that was built on the CPU where it is trained."""
        model.to(self.device)
        if self.compile:
            torch.compiler.reset()  # of graphs of earlier trials
            # Beyond the limit torch would go on without compiling, and the models of all methods share their code.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
            model.compile()
        return model

    def told(self) -> dict[str, str]:
        """For those who read a study: what it ran on."""
        return {
            "device": devices.name(self.device),
            "precision": _TOLD[self.precision],
            "compiled": "by torch.compile" if self.compile else "no",
        }

    def notes(self) -> list[str]:
        """The same as a line, where it is not plain training on the CPU."""
        if dataclasses.replace(self, num_workers=0) == PLAIN:
            return []
        told = self.told()
        return [f"Trained on {told['device']}, {told['precision']}{', by torch.compile' * self.compile}."]


PLAIN = Compute()


class Stepper:
    """Takes the gradients of a loss and steps an optimizer; with float16 by torch's scaler of gradients.

    The scaler leaves a step out whose gradients are not finite; ``skipped`` counts those, on the device.
    """

    def __init__(self, optimizer: Steps, compute: Compute) -> None:
        self._optimizer = optimizer
        self._scaler: torch.amp.GradScaler | None = None
        if compute.precision == "16":
            if not hasattr(optimizer, "param_groups"):
                kind = type(optimizer).__name__
                raise InputError(f"precision 16 scales gradients, for which {kind} is no torch.optim.Optimizer")
            self._scaler = torch.amp.GradScaler(compute.device.type)
            self._one = torch.ones((), device=compute.device)
            self._skipped = torch.zeros((), device=compute.device)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self) -> None:
        """Go on by one step."""
        if self._scaler is None:
            self._optimizer.step()
            return
        before = self._scaler.scale(self._one)
        self._scaler.step(self._optimizer)  # type: ignore[arg-type]
        self._scaler.update()
        # The scale comes down after a step that was left out, and then alone.
        self._skipped += self._scaler.scale(self._one) < before

    def skipped(self) -> int:
        """How many steps were left out; reads the device."""
        return 0 if self._scaler is None else int(self._skipped)

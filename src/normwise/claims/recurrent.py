"""Recurrent networks that normalize in every step, for the claim about sequences."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normwise.nn import NormFactory
from normwise.study.optimize import ADAM, warm_adam
from normwise.study.tasks import MakeModel, Task, load_task
from normwise.study.tasks.language import shortened

# Characters of a window: each one is a step of the recurrence, and what a trial takes is proportional to them.
_WINDOW = 32
_EVALUATED = 256


class RecurrentNet(nn.Module):
    """h[t] = tanh(norm(W x[t] + U h[t−1] + b)), one layer for all steps, which sees the (N, C) states of a batch."""

    def __init__(self, norm: NormFactory, inputs: int, outputs: int, width: int = 48, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.into = nn.Linear(inputs, width)
        self.recur = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.recur.weight)
        self.norm = norm(width, dim=1)
        self.head = nn.Linear(width, outputs)

    def states(self, x: Tensor, going: Tensor | None = None) -> Tensor:
        """Give the states (N, L, C) of sequences (N, C, L); ``going`` (N, L) marks real frames."""
        drive = self.into(x.transpose(1, 2))
        state, states = x.new_zeros(len(x), drive.shape[2]), []
        for t in range(drive.shape[1]):
            mask = {} if going is None or not self.masked else {"mask": going[:, t]}
            state = self.norm(drive[:, t] + self.recur(state), **mask).tanh()
            states.append(state)
        return torch.stack(states, 1)


class SpeakerNet(RecurrentNet):
    """Reads a padded sequence and tells its class from the state at its last real frame."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Give a score per class."""
        going = torch.arange(x.shape[2], device=x.device) < lengths.unsqueeze(1)
        return self.head(self.states(x, going)[torch.arange(len(x)), lengths - 1])


class WriterNet(RecurrentNet):
    """Reads characters and gives the scores of the next at every position."""

    def __init__(self, norm: NormFactory, inputs: int, outputs: int, width: int = 96) -> None:
        super().__init__(norm, inputs, outputs, width)
        self.embedding = nn.Embedding(outputs, inputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give (N, V, L) scores."""
        return self.head(self.states(self.embedding(tokens).transpose(1, 2))).transpose(1, 2)


def speakers(masked: bool) -> Callable[[], Task]:
    """Give the Japanese vowels with a recurrent network."""
    return functools.partial(_recurrent, "japanese-vowels", functools.partial(_speaker_net, masked=masked))


def writing() -> Task:
    """Give Jane Austen's novels, in windows of 32 characters, with a recurrent network."""
    task = _recurrent("austen", _writer_net)
    return dataclasses.replace(task, splits=shortened(task.splits, _WINDOW, _EVALUATED))


def _recurrent(name: str, make_model: MakeModel) -> Task:
    return dataclasses.replace(
        load_task(name), make_model=make_model, optimizer=warm_adam, optimizer_name=ADAM, source=None
    )


def _speaker_net(norm: NormFactory, masked: bool) -> nn.Module:
    return SpeakerNet(norm, 12, 9, masked=masked)


def _writer_net(norm: NormFactory) -> nn.Module:
    return WriterNet(norm, 32, 128)

"""A character language model on Jane Austen's novels."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from normwise.errors import DataError
from normwise.nn import NormFactory
from normwise.study.data import Part, Samples, Splits, tensors_of
from normwise.study.optimize import ADAM, warm_adam
from normwise.study.tasks.base import Task
from normwise.study.tasks.scores import class_loss

# The public-domain texts, as Project Gutenberg and the R package janeaustenr give them: one file a novel.
_SHIPPED = Path(__file__).with_name("austen.zip")
# Trained on three novels, chosen on another, tested on the fifth: no sentence of a novel is on two sides. Persuasion is
# not among them.
_NOVELS = {
    "train": ("emma", "mansfieldpark", "prideprejudice"),
    "valid": ("northangerabbey",),
    "test": ("sensesensibility",),
}
_WINDOW = 64
_DILATIONS = (1, 2, 4, 8)
# Windows of the validation and test novels, evenly spread: some 40,000 characters each.
_EVALUATED = 640
# Instance norm has no meaning for single tokens; 128 channels in the usual 32 groups would leave 4 to a group.
_METHODS = ("none", "batch", "layer", "weight", "group(num_groups=8)", "switchable(over=layer+batch)")


def austen(folder: str | Path | None = None) -> tuple[Splits, str]:
    """Read Jane Austen's novels as windows of 64 characters, each to predict its successor."""
    place = Path(folder) if folder else zipfile.Path(_SHIPPED)
    novels = {name: _novel(place / f"{name}.txt") for names in _NOVELS.values() for name in names}
    texts = {part: "\n".join(novels[name] for name in names) for part, names in _NOVELS.items()}
    characters = "".join(sorted(set(texts["train"]))) + "\ufffd"
    parts = {part: _windows(text, characters) for part, text in texts.items()}
    return Splits(parts["train"], *(_spread(parts[part], _EVALUATED) for part in ("valid", "test"))), characters


def austen_task(source: str) -> Task:
    """Predict the next character; scored by minus the bits per character."""
    name, _, folder = source.partition(":")
    splits, characters = austen(folder)
    return Task(
        name,
        splits,
        CharacterNet,
        class_loss,
        minus_bits,
        "−bits per character",
        floor=-_entropy(splits.valid, len(characters)),
        optimizer=warm_adam,
        optimizer_name=ADAM,
        methods=_METHODS,
        lrs=(0.008, 0.032, 0.128),
        source=source,
        steps=1000,
        quick_steps=150,
        threads=1,
    )


def minus_bits(outputs: Tensor, targets: Tensor) -> float:
    """Minus the bits that a character takes on average under the model's predictions."""
    return -class_loss(outputs, targets).item() / math.log(2)


class CharacterNet(nn.Module):
    """The reference model: causal convolutions over 31 characters with shortcuts, normalized token by token.

    A norm that pools over positions would tell each character about those that follow, which are what is to be
    predicted. So the layers see (N · L, C), the tokens of all windows as samples.
    """

    def __init__(self, norm: NormFactory, characters: int = 128, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for dilation in _DILATIONS:
            convolution = nn.Conv1d(width, width, 3, dilation=dilation)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            self.convolutions.append(convolution)
            self.norms.append(norm(width, dim=1))
        self.head = nn.Conv1d(width, characters, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give (N, V, L) scores of the next character for (N, L) character numbers."""
        x = self.embedding(tokens).transpose(1, 2)
        for dilation, convolution, norm in zip(_DILATIONS, self.convolutions, self.norms, strict=True):
            # Padded on the left only: a position sees itself and what came before.
            before = nn.functional.pad(x, (2 * dilation, 0))
            y = convolution(before).transpose(1, 2)
            y = norm(y.reshape(-1, y.shape[2])).reshape(y.shape).transpose(1, 2)
            x = x + y.relu()
        return self.head(x)


def _novel(path: Path | zipfile.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        wanted = ", ".join(f"{name}.txt" for names in _NOVELS.values() for name in names)
        raise DataError(
            f"no novels in {path.parent}: cannot read {path.name} ({getattr(error, 'strerror', None) or error}); "
            f"expected {wanted} in UTF-8, or name no folder for the texts that come with normwise: --data austen"
        ) from error


def _windows(text: str, characters: str) -> Part:
    unknown = len(characters) - 1
    number = {character: i for i, character in enumerate(characters)}
    tokens = torch.tensor([number.get(character, unknown) for character in text])
    count = (len(tokens) - 1) // _WINDOW
    starts = tokens[: count * _WINDOW].reshape(count, _WINDOW)
    return Part(starts, tokens[1 : count * _WINDOW + 1].reshape(count, _WINDOW))


def _spread(part: Part, count: int) -> Part:
    return part.take(torch.arange(count) * part.size // count)


def _entropy(part: Part | Samples, characters: int) -> float:
    """What guessing by the characters' shares takes, in bits."""
    (targets,) = tensors_of(part.load().targets)
    shares = targets.flatten().bincount(minlength=characters).double()
    shares = shares[shares > 0] / shares.sum()
    return -(shares * shares.log2()).sum().item()

"""Language models: windows of tokens, each to predict its successor, and a small decoder to compare methods in."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normwise.arguments.data import WINDOW
from normwise.arguments.data import windows as cut
from normwise.arguments.loss import by_class
from normwise.errors import DataError, InputError
from normwise.study.data import Part, Samples, Splits, of_tokens, run, tensors_of
from normwise.study.evaluate import at_once
from normwise.study.tasks.scores import class_loss

# What is compared and tried by default where tokens predict the next one; the rates suit AdamW at 32 windows a step.
METHODS_OF_TOKENS = ("none", "layer", "rms", "dyt", "derf")
RATES_OF_TOKENS = (0.001, 0.004, 0.016)
# Shares of a text that are trained on and chosen on; the rest is tested on. Parts in a row share no sentence.
_TRAINED, _CHOSEN = 0.8, 0.1
# Windows of the validation and test parts, evenly spread: enough to tell methods apart, and soon run.
EVALUATED = 640


def language_data(text: Any, window: int = WINDOW) -> Splits:
    """Make windows of a text, each token to predict the next: the first 80 % train, then 10 % choose and 10 % test.

    Args:
        text: a file of text, taken byte by byte (256 tokens), a file of token ids (``.npy``), or a tensor, an array or
            a list of ids in a row.
        window: tokens a sample.

    Returns:
        Inputs and targets (N, window) of each part; validation and test hold 640 windows at most, evenly spread.

    Raises:
        InputError: the text is no row of whole numbers, or too short for ten windows.
        DataError: the file cannot be read.

    Example:
        >>> splits = language_data(torch.arange(2000) % 50, window=16)
        >>> splits.sizes()
        {'train': 99, 'valid': 12, 'test': 12}
    """
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise InputError(f"window must be a whole number of at least 1, got {window!r}")
    tokens = _read(Path(text)) if isinstance(text, str | os.PathLike) else torch.as_tensor(text)
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InputError(f"a text is a row of whole numbers, got {tokens.dtype} of shape {tuple(tokens.shape)}")
    tokens = tokens.long()
    if len(tokens) < 20 * window:
        raise InputError(f"a text of {len(tokens)} tokens is too short for windows of {window}: 20 windows are needed")
    if int(tokens.min()) < 0:
        raise InputError(f"token ids begin at 0, got {int(tokens.min())}")
    ends = int(_TRAINED * len(tokens)), int((_TRAINED + _CHOSEN) * len(tokens))
    train, valid, test = (windows(part, window) for part in tokens.tensor_split(ends))
    return Splits(train, spread(valid, EVALUATED), spread(test, EVALUATED))


def language_source(source: str) -> Splits:
    """Read what ``FILE`` or ``FILE:WINDOW`` names."""
    place, colon, window = source.rpartition(":")
    return language_data(place, int(window)) if colon and window.isdigit() else language_data(source)


def windows(tokens: Tensor, window: int) -> Part:
    """Cut a row of tokens into windows, each with its successors as targets."""
    return Part(*cut(tokens, window))


def spread(part: Part, count: int) -> Part:
    """Take so many samples of a part, evenly spread, or all that there are."""
    count = min(count, part.size)
    return part.take(torch.arange(count) * part.size // count)


def shortened(splits: Splits, window: int, evaluated: int) -> Splits:
    """Cut windows to their first tokens, and take so many to evaluate on, evenly spread."""
    parts = [part.load() for part in splits]
    train, *others = (Part(*(tensors_of(v)[0][:, :window] for v in (p.inputs, p.targets))) for p in parts)
    return Splits(train, *(spread(part, evaluated) for part in others))


def predicts_next(part: Any) -> bool:
    """Whether a part is language data: whole numbers, and each target is the input that comes next."""
    if not isinstance(part, Part) or not of_tokens(part.inputs) or not of_tokens(part.targets):
        return False
    inputs, targets = tensors_of(part.inputs)[0], tensors_of(part.targets)[0]
    if inputs.shape != targets.shape or inputs.shape[1] < 2:
        return False
    known = targets[:, :-1] >= 0  # less than 0: padding that the loss leaves out
    return bool(known.any()) and bool((targets[:, :-1] == inputs[:, 1:])[known].all())


def minus_bits(outputs: Tensor, targets: Tensor) -> float:
    """Minus the bits that a token takes on average under the model's predictions."""
    return -class_loss(outputs, targets).item() / math.log(2)


@dataclass(frozen=True)
class Perplexity:
    """Minus exp of the mean cross-entropy of a part's tokens, batch by batch; targets below 0 are left out."""

    def __call__(self, model: nn.Module, part: Part | Samples) -> float:
        """Give the score of a part."""
        losses, counts = [], []
        for piece in part.batches(at_once(part)):
            batch = piece.load()
            (targets,) = tensors_of(batch.targets)
            outputs = by_class(run(model, batch.inputs), targets)
            losses.append(nn.functional.cross_entropy(outputs.float(), targets, reduction="sum"))
            counts.append((targets >= 0).sum().float())
        # Read together, as each reading makes the host wait for the device; added here, as some have no float64.
        total, count = map(sum, torch.stack([torch.stack(losses), torch.stack(counts)]).tolist())
        return -math.exp(min(total / max(count, 1), 700.0))


def guessing_bits(targets: Tensor, tokens: int) -> float:
    """What guessing by the tokens' shares takes, in bits."""
    shares = targets[targets >= 0].bincount(minlength=tokens).double()
    shares = shares[shares > 0] / shares.sum()
    return -(shares * shares.log2()).sum().item()


def _read(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            return torch.as_tensor(np.load(path, allow_pickle=False))
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}; expected a text, or token ids in a row as .npy") from error

"""A character language model on Jane Austen's novels."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from normwise.errors import DataError
from normwise.study.data import Splits, tensors_of
from normwise.study.optimize import ADAMW, warm_adamw
from normwise.study.tasks.base import Task
from normwise.study.tasks.decoder import Decoder
from normwise.study.tasks.language import (
    EVALUATED,
    METHODS_OF_TOKENS,
    RATES_OF_TOKENS,
    WINDOW,
    guessing_bits,
    minus_bits,
    spread,
    windows,
)
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


def austen(folder: str | Path | None = None) -> tuple[Splits, str]:
    """Read Jane Austen's novels as windows of 64 characters, each to predict its successor."""
    place = Path(folder) if folder else zipfile.Path(_SHIPPED)
    novels = {name: _novel(place / f"{name}.txt") for names in _NOVELS.values() for name in names}
    texts = {part: "\n".join(novels[name] for name in names) for part, names in _NOVELS.items()}
    characters = "".join(sorted(set(texts["train"]))) + "\ufffd"
    parts = {part: windows(_numbered(text, characters), WINDOW) for part, text in texts.items()}
    return Splits(parts["train"], *(spread(parts[part], EVALUATED) for part in ("valid", "test"))), characters


def austen_task(source: str, placement: str = "pre") -> Task:
    """Predict the next character by a decoder with its norms so placed; scored by minus the bits per character."""
    name, _, folder = source.partition(":")
    splits, characters = austen(folder)
    (targets,) = tensors_of(splits.valid.load().targets)
    return Task(
        name,
        splits,
        partial(Decoder, tokens=len(characters), placement=placement),
        class_loss,
        minus_bits,
        "−bits per character",
        floor=-guessing_bits(targets, len(characters)),
        optimizer=warm_adamw,
        optimizer_name=ADAMW,
        methods=METHODS_OF_TOKENS,
        lrs=RATES_OF_TOKENS,
        source=source,
        steps=3000,
        quick_steps=150,
        threads=1,
    )


def _novel(path: Path | zipfile.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        wanted = ", ".join(f"{name}.txt" for names in _NOVELS.values() for name in names)
        raise DataError(
            f"no novels in {path.parent}: cannot read {path.name} ({getattr(error, 'strerror', None) or error}); "
            f"expected {wanted} in UTF-8, or name no folder for the texts that come with normwise: --data austen"
        ) from error


def _numbered(text: str, characters: str) -> Tensor:
    unknown = len(characters) - 1
    number = {character: i for i, character in enumerate(characters)}
    return torch.tensor([number.get(character, unknown) for character in text])

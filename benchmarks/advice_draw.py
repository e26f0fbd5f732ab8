"""Tasks drawn by a seed from a space of 1,447 settings: some to write rules on, fresh ones to prove them.

The space is data. A draw that proves rules is written down together with them, before any of its settings is trained;
git's history has the order. Once its outcome has been seen and a rule was changed it proves nothing more: its tasks are
then among those that rules were written on. No setting is drawn twice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from advice_data import (
    digit_parts,
    fashion_parts,
    mnist_parts,
    novel_parts,
    photo_parts,
    power_parts,
    row_parts,
    table_parts,
    topic_parts,
    vowel_parts,
)
from advice_nets import AttentionNet, CharacterNet, FrameNet, GatedNet, deep_mlp, plain, residual
from advice_tasks import ADAM, ALONE, SEVEN, VECTORS, Setting, pictures
from torch import nn

from normwise.study import Splits, Task
from normwise.study.optimize import ADAM as ADAM_NAME
from normwise.study.optimize import warm_adam
from normwise.study.tasks.base import classification


@dataclass(frozen=True)
class Draw:
    """``counts`` tasks of each family, trained ``longer`` times the steps that their family has by default.

    The seed is the number of a paper on normalization, used for one draw only.
    """

    seed: int
    counts: dict[str, int]
    held_out: bool = False
    seeds: int = 3
    longer: float = 1.0


DRAWS = (
    # Proved the first rules; an outcome of it led to new ones.
    Draw(
        1803_08494,
        {"images": 6, "saturating": 2, "sequences": 2, "attention": 2, "tables": 2, "stylization": 1},
    ),
    # To write rules on.
    Draw(1806_10779, {"images": 5, "saturating": 4, "sequences": 5, "attention": 3, "tables": 3}),
    Draw(
        1607_06450,
        {"images": 8, "saturating": 4, "sequences": 4, "attention": 4, "tables": 3, "stylization": 1},
    ),
    # To prove the rules. Of more seeds and longer trainings: among three seeds of the shortest, chance alone takes more
    # than the half point that the advice may miss by.
    Draw(
        1502_03167,
        {"images": 7, "saturating": 3, "sequences": 4, "attention": 3, "tables": 3, "stylization": 1},
        held_out=True,
        seeds=5,
        longer=2.0,
    ),
)

IMAGES: dict[str, Callable[[], Splits]] = {
    "digits": digit_parts, "fashion": fashion_parts, "mnist": mnist_parts, "photos": photo_parts,
}  # fmt: skip
TABLES = ("satimage", "segment", "penbased", "letter", "texture", "spambase", "phoneme", "magic", "optdigits")
TEXTS = {"topics": topic_parts, "novels": novel_parts}
FRAMES: dict[str, Callable[[], Splits]] = {
    "vowels": vowel_parts, "power": power_parts, "rows": lambda: row_parts(mnist_parts()),
}  # fmt: skip
NETS: dict[str, Callable[..., nn.Module]] = {
    "thin": partial(plain, widths=(8, 16, 16)),
    "narrow": partial(plain, widths=(16, 32, 32)),
    "wide": partial(plain, widths=(32, 64, 64)),
    "middle": partial(plain, widths=(16, 16, 32, 32, 32, 32)),
    "deep": partial(plain, widths=(16, 16, 16, 16, 32, 32, 32, 32, 32, 32)),
    "residual": residual,
    "residual-deep": partial(residual, widths=(16, 16, 16, 32, 32, 32)),
}


@dataclass(frozen=True)
class Family:
    """Settings of a kind, each one choice along every axis; ``make`` gives the setting of a choice."""

    axes: dict[str, tuple[Any, ...]]
    make: Callable[..., Setting]


def classes(parts: Splits) -> int:
    return max(int(part.targets.max()) for part in parts) + 1  # type: ignore[union-attr]


def vectors(width: int) -> tuple[str, ...]:
    """Eight values to a group, as the advice has it."""
    return tuple(f"group(num_groups={width // 8})" if m.startswith("group") else m for m in VECTORS)


def _images(data: str, net: str, batch: int) -> Setting:
    def make() -> Task:
        parts = IMAGES[data]()
        sizes = {"channels": parts.train.inputs.shape[1], "classes": classes(parts)}  # type: ignore[union-attr]
        return classification("images", parts, lambda norm: NETS[net](norm, **sizes), threads=1)

    return Setting(make, batch, 600, ALONE if batch == 1 else SEVEN)


def _saturating(data: str, activation: str, net: str, depth: int, batch: int) -> Setting:
    def make() -> Task:
        parts = IMAGES[data]()
        shape = parts.train.inputs.shape[1:]  # type: ignore[union-attr]
        if net == "linear":
            sizes = {"inputs": shape.numel(), "depth": depth, "activation": activation, "classes": classes(parts)}
            return classification("images", parts, lambda norm: deep_mlp(norm, **sizes), threads=1)
        widths = (16,) + (32,) * (depth // 2 - 1)
        options = {"widths": widths, "activation": activation, "channels": shape[0], "classes": classes(parts)}
        return classification("images", parts, lambda norm: plain(norm, **options), threads=1)

    return Setting(make, batch, 800, VECTORS if net == "linear" else SEVEN, kind="saturating")


def _sequences(data: str, net: str, width: int, batch: int) -> Setting:
    def make() -> Task:
        if data in TEXTS:
            parts, characters = TEXTS[data]()
            if net == "gated":
                build = partial(GatedNet, inputs=characters, outputs=characters, width=width, tokens=True)
            else:
                build = partial(CharacterNet, characters=characters, width=width)
        else:
            parts = FRAMES[data]()
            inputs = (x[0] if isinstance(x := parts.train.inputs, tuple) else x).shape[1]
            build = partial(
                GatedNet if net == "gated" else FrameNet, inputs=inputs, outputs=classes(parts), width=width
            )
        return classification("sequences", parts, lambda norm: build(norm), threads=1)

    methods = vectors(3 * width) if net == "gated" else vectors(width) if data in TEXTS else SEVEN
    rates = (0.16, 0.64) if data in TEXTS else (0.08, 0.32)
    return Setting(make, batch, 300, methods, rates, kind="sequences", variable_length=data == "vowels")


def _attention(data: str, depth: int, first: bool, width: int, batch: int) -> Setting:
    def make() -> Task:
        if data in TEXTS:
            parts, inputs = TEXTS[data]()
            outputs, length = inputs, 32
        else:
            parts = FRAMES[data]()
            x = parts.train.inputs
            _, inputs, length = (x[0] if isinstance(x, tuple) else x).shape
            outputs = classes(parts)
        sizes = {"inputs": inputs, "outputs": outputs, "length": length, "tokens": data in TEXTS}
        return classification(
            "attention", parts, lambda norm: AttentionNet(norm, **sizes, depth=depth, width=width, first=first),
            threads=1, optimizer=warm_adam, optimizer_name=ADAM_NAME,
        )  # fmt: skip

    return Setting(make, batch, 600, vectors(width), ADAM, kind="attention", variable_length=data == "vowels")


def _tables(data: str, depth: int, width: int, batch: int) -> Setting:
    def make() -> Task:
        parts = table_parts(data)
        sizes = {"inputs": parts.train.inputs.shape[1], "classes": classes(parts)}  # type: ignore[union-attr]
        return classification(
            "tables",
            parts,
            lambda norm: deep_mlp(norm, depth=depth, activation="relu", width=width, **sizes),
            threads=1,
        )

    return Setting(make, batch, 1600, vectors(width), kind="tables")


def _stylization(style: str, batch: int) -> Setting:
    return Setting(partial(pictures, style), batch, 110, SEVEN, ADAM, "stylization", about="stylization")


SPACE: dict[str, Family] = {
    "images": Family({"data": tuple(IMAGES), "net": tuple(NETS), "batch": (1, 2, 4, 8, 16, 32, 64)}, _images),
    "saturating": Family(
        {
            "data": tuple(IMAGES), "activation": ("sigmoid", "tanh"), "net": ("linear", "convolutions"),
            "depth": (6, 8, 12, 16), "batch": (2, 4, 8, 16, 32, 64),
        },
        _saturating,
    ),
    "sequences": Family(
        {
            "data": (*TEXTS, *FRAMES), "net": ("gated", "convolutions"), "width": (32, 48, 64),
            "batch": (2, 4, 8, 16, 32),
        },
        _sequences,
    ),
    "attention": Family(
        {
            "data": (*TEXTS, *FRAMES), "depth": (1, 2, 3), "first": (True, False), "width": (32, 48),
            "batch": (2, 4, 8, 16, 32),
        },
        _attention,
    ),
    "tables": Family(
        {"data": TABLES, "depth": (2, 4, 8), "width": (32, 64, 128), "batch": (4, 8, 16, 32, 64)}, _tables
    ),
    "stylization": Family({"style": ("gravel", "brick", "grass"), "batch": (1, 2, 4, 8)}, _stylization),
}  # fmt: skip
# Settings of the space that the rules were written on, by their choices.
SEEN = {
    *(("images", "digits", "narrow", b) for b in (1, 2, 4, 16, 64)),
    *(("images", "fashion", "narrow", b) for b in (1, 4, 32)),
    *(("images", "fashion", "wide", b) for b in (2, 16, 64)),
    *(("images", "digits", "residual", b) for b in (2, 32)),
    *(("images", "fashion", "residual", b) for b in (1, 8, 64)),
    ("images", "digits", "deep", 8),
    ("images", "fashion", "deep", 16),
    ("saturating", "digits", "sigmoid", "linear", 6, 32),
    ("saturating", "digits", "tanh", "linear", 12, 2),
    ("saturating", "digits", "tanh", "linear", 16, 8),
    ("saturating", "fashion", "tanh", "linear", 12, 64),
    ("saturating", "fashion", "sigmoid", "convolutions", 8, 4),
    ("sequences", "topics", "gated", 64, 8),
    *(("sequences", "vowels", "gated", 48, b) for b in (4, 32)),
    ("stylization", "gravel", 2),
    ("stylization", "brick", 4),
}  # fmt: skip


def size() -> int:
    """How many settings the space has."""
    return sum(len(list(itertools.product(*family.axes.values()))) for family in SPACE.values())


def drawn() -> dict[str, Setting]:
    """The tasks of all draws: choices along each axis, those seen or drawn already being drawn again."""
    taken, settings = set(SEEN), {}
    for draw in DRAWS:
        generator = random.Random(draw.seed)
        for name, count in draw.counts.items():
            family, wanted = SPACE[name], len(settings) + count
            while len(settings) < wanted:
                choice = tuple(generator.choice(options) for options in family.axes.values())
                if (name, *choice) not in taken:
                    taken.add((name, *choice))
                    setting = family.make(**dict(zip(family.axes, choice, strict=True)))
                    settings["-".join(map(str, (name, *choice)))] = replace(
                        setting,
                        kind=name,
                        held_out=draw.held_out,
                        seeds=draw.seeds,
                        steps=round(draw.longer * setting.steps),
                    )
    return settings

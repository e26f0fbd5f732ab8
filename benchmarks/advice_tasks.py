"""The tasks of the advice benchmark, and which third of them no rule may be fitted to."""

from __future__ import annotations

import dataclasses
import itertools
import pydoc_data.topics
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from advice_nets import GatedNet, deep_mlp, plain, residual
from torch import nn

from normwise.study import Part, Splits, Task, load_task
from normwise.study.tasks.base import classification
from normwise.study.tasks.images import digits, fashion_mnist

SEVEN = ("none", "batch", "layer", "weight", "instance", "group", "switchable")
# At one sample a step the paper of switchable norm drops the batch from the mix.
ALONE = (*SEVEN, "switchable(over=instance+layer)")
# For inputs (N, C): the usual 32 groups would leave two values to a group, and an instance is a single value.
VECTORS = ("none", "batch", "layer", "weight", "instance", "group(num_groups=8)", "switchable(over=layer+batch)")
LRS, THREE = (0.06, 0.25), (0.02, 0.08, 0.32)
# Drawn before any outcome was seen; the rules were written with the other tasks' outcomes at hand.
SPLIT_SEED = 1806_10779


@dataclass(frozen=True)
class Setting:
    """A task at a batch size; ``steps`` are those that it would have at batch size 2, as everywhere.

    ``shape`` of an example, without the axis of samples, is what the advice is asked about.
    """

    make: Callable[[], Task]
    batch_size: int
    steps: int
    methods: tuple[str, ...] = SEVEN
    lrs: tuple[float, ...] = LRS
    kind: str = "images"
    variable_length: bool = False
    about: str | None = None


@cache
def digit_parts() -> Splits:
    return digits()


@cache
def fashion_parts() -> Splits:
    """2,000 images to train on, at half size, and 2,000 of the test set's."""
    parts = fashion_mnist(train=2000, valid=600)
    small = (Part(nn.functional.avg_pool2d(p.inputs, 2), p.targets) for p in parts)
    return Splits(*(part.take(slice(2000)) for part in small))


def images(parts: Callable[[], Splits], net: Callable[..., nn.Module], *args: object, **options: object) -> Task:
    make = partial(net, *args, **options) if not args else lambda norm: net(norm, *args, **options)
    return classification("images", parts(), make, threads=1)


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


def topics() -> Task:
    splits, characters = topic_parts()
    return classification(
        "text", splits, lambda norm: GatedNet(norm, characters, characters, width=64, tokens=True), threads=1
    )


def vowels(recurrent: bool = True) -> Task:
    task = load_task("japanese-vowels")
    return dataclasses.replace(task, make_model=lambda norm: GatedNet(norm, 12, 9)) if recurrent else task


def novels() -> Task:
    """The character model, scored by how many characters it foretells."""
    task = load_task("austen")
    splits = Splits(task.splits.train, *(part.take(slice(None, None, 2)) for part in task.splits[1:]))
    like = classification("novels", splits, task.make_model)
    return dataclasses.replace(task, splits=splits, score=like.score, score_name="accuracy", floor=like.floor)


def pictures(style: str) -> Task:
    return load_task(f"textures:{style}")


NARROW, WIDE, DEEP = (16, 32, 32), (32, 64, 64), (16, 16, 16, 16, 32, 32, 32, 32, 32, 32)


def _d(net: Callable[..., nn.Module], *args: object) -> Callable[[], Task]:
    return lambda: images(digit_parts, net, *args)


def _f(net: Callable[..., nn.Module], *args: object) -> Callable[[], Task]:
    return lambda: images(fashion_parts, net, *args)


ADAM = (0.002, 0.008)

SETTINGS: dict[str, Setting] = {
    "digits-narrow-1": Setting(_d(plain, NARROW), 1, 1000, ALONE),
    "digits-narrow-2": Setting(_d(plain, NARROW), 2, 1000),
    "digits-narrow-4": Setting(_d(plain, NARROW), 4, 1000),
    "digits-narrow-16": Setting(_d(plain, NARROW), 16, 1000),
    "digits-narrow-64": Setting(_d(plain, NARROW), 64, 1000),
    "digits-residual-2": Setting(_d(residual), 2, 700),
    "digits-residual-32": Setting(_d(residual), 32, 700),
    "digits-deep-8": Setting(_d(plain, DEEP), 8, 700),
    "fashion-narrow-1": Setting(_f(plain, NARROW), 1, 1000, ALONE),
    "fashion-narrow-4": Setting(_f(plain, NARROW), 4, 1000),
    "fashion-narrow-32": Setting(_f(plain, NARROW), 32, 1000),
    "fashion-wide-2": Setting(_f(plain, WIDE), 2, 700),
    "fashion-wide-16": Setting(_f(plain, WIDE), 16, 700),
    "fashion-wide-64": Setting(_f(plain, WIDE), 64, 700),
    "fashion-residual-1": Setting(_f(residual), 1, 600, ALONE),
    "fashion-residual-8": Setting(_f(residual), 8, 600),
    "fashion-residual-64": Setting(_f(residual), 64, 600),
    "fashion-deep-16": Setting(_f(plain, DEEP), 16, 500),
    "digits-sigmoid-32": Setting(_d(deep_mlp, 64, 6, "sigmoid"), 32, 1400, VECTORS, kind="saturating"),
    "digits-tanh-2": Setting(_d(deep_mlp, 64, 12, "tanh"), 2, 900, VECTORS, kind="saturating"),
    "digits-tanh-8": Setting(_d(deep_mlp, 64, 16, "tanh"), 8, 900, VECTORS, kind="saturating"),
    "fashion-tanh-64": Setting(_f(deep_mlp, 196, 12, "tanh"), 64, 1200, VECTORS, kind="saturating"),
    "fashion-sigmoid-4": Setting(_f(plain, (16, 32, 32, 32), "sigmoid"), 4, 800, kind="saturating"),
    "vowels-recurrent-4": Setting(vowels, 4, 300, VECTORS, THREE, kind="sequences", variable_length=True),
    "vowels-recurrent-32": Setting(vowels, 32, 400, VECTORS, THREE, kind="sequences", variable_length=True),
    "vowels-conv-16": Setting(partial(vowels, False), 16, 600, kind="sequences", variable_length=True),
    "topics-recurrent-8": Setting(topics, 8, 360, VECTORS, (0.16, 0.64), kind="sequences"),
    "novels-conv-8": Setting(novels, 8, 260, VECTORS, ADAM, kind="sequences"),
    "gravel-2": Setting(partial(pictures, "gravel"), 2, 150, SEVEN, (0.002, 0.008), "stylization", about="stylization"),
    "brick-4": Setting(partial(pictures, "brick"), 4, 150, SEVEN, (0.002, 0.008), "stylization", about="stylization"),
}


def held_out() -> list[str]:
    """A third of the tasks, by a seeded draw over their names."""
    return sorted(random.Random(SPLIT_SEED).sample(sorted(SETTINGS), len(SETTINGS) // 3))

"""The thirty tasks that the rules of the advice were first written on; ``advice_draw.py`` has those that were drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from advice_data import digit_parts, fashion_parts, topic_parts
from advice_nets import GatedNet, deep_mlp, plain, residual
from torch import nn

from normwise.study import Splits, Task, load_task
from normwise.study.tasks.base import classification

SEVEN = ("none", "batch", "layer", "weight", "instance", "group", "switchable")
# At one sample a step the paper of switchable norm drops the batch from the mix.
ALONE = (*SEVEN, "switchable(over=instance+layer)")
# For inputs (N, C): the usual 32 groups would leave two values to a group, and an instance is a single value.
VECTORS = ("none", "batch", "layer", "weight", "instance", "group(num_groups=8)", "switchable(over=layer+batch)")
LRS, THREE = (0.06, 0.25), (0.02, 0.08, 0.32)


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
    held_out: bool = False
    seeds: int = 3


def images(parts: Callable[[], Splits], net: Callable[..., nn.Module], *args: object, **options: object) -> Task:
    make = partial(net, *args, **options) if not args else lambda norm: net(norm, *args, **options)
    return classification("images", parts(), make, threads=1)


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

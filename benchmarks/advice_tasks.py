"""The tasks of the advice benchmark: families of a kind of data and a kind of network, in a balanced order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import advice_data as data
import advice_nets as nets
from torch import nn

from normwise.study import Splits, Task, load_task
from normwise.study.optimize import ADAM, warm_adam
from normwise.study.tasks.base import classification
from normwise.study.tasks.decoder import Decoder
from normwise.study.tasks.language import METHODS_OF_TOKENS
from normwise.study.tasks.scores import mean_iou, r_squared, squared_error

SEVEN = ("none", "batch", "layer", "weight", "instance", "group", "switchable")
WARM = {"optimizer": warm_adam, "optimizer_name": ADAM, "lrs": (0.001, 0.004, 0.016)}


@dataclass(frozen=True)
class Setting:
    """A task: what ``data`` and which kind of ``net`` it has, and what the net is usually ``written`` with.

    ``width`` is that of the narrowest norm over vectors, ``None`` where norms have space to look at; ``of_tokens``
    whether methods of tokens are what is compared; ``about`` is what the advice is told of the task, ``steps`` those at
    16 samples a step, and ∛(16 / b) times as many at b.
    """

    family: str
    data: str
    net: str
    batch_size: int
    steps: int
    make: Callable[[], Task]
    written: str = "batch"
    width: int | None = None
    about: str = "classification"
    of_tokens: bool = False

    @property
    def name(self) -> str:
        """The key of its outcome."""
        return f"{self.family}: {self.data}, {self.batch_size}"

    @property
    def methods(self) -> tuple[str, ...]:
        """Those with a meaning here, with the options that the advice would give: an instance is no single value."""
        if self.of_tokens:
            return METHODS_OF_TOKENS
        if self.width is None:
            return SEVEN
        return (
            "none",
            "batch",
            "layer",
            "weight",
            f"group(num_groups={self.width // 8})",
            "switchable(over=layer+batch)",
        )


def classes(parts: Splits) -> int:
    return max(int(part.targets.max()) for part in parts) + 1  # type: ignore[union-attr]


def frames(parts: Splits) -> int:
    """How many numbers a frame has."""
    x = parts.train.inputs  # type: ignore[union-attr]
    return (x[0] if isinstance(x, tuple) else x).shape[1]


IMAGES: dict[str, Callable[[], Splits]] = {
    "digits": data.digit_parts, "fashion": data.fashion_parts, "mnist": data.mnist_parts, "photos": data.photo_parts,
}  # fmt: skip


def image_task(name: str, build: Callable[..., nn.Module]) -> Task:
    parts = IMAGES[name]()
    sizes = {"channels": parts.train.inputs.shape[1], "classes": classes(parts)}  # type: ignore[union-attr]
    return classification(name, parts, lambda norm: build(norm, **sizes), threads=1)


def autoencoder_task(name: str) -> Task:
    parts = data.own_targets(IMAGES[name]())
    _, channels, size, _ = parts.train.inputs.shape  # type: ignore[union-attr]
    size -= size % 4
    parts = Splits(*(data.Part(p.inputs[..., :size, :size], p.targets[..., :size, :size]) for p in parts))  # type: ignore[call-overload]
    make = partial(nets.autoencoder, channels=channels, size=size)
    return Task(name, parts, lambda norm: make(norm), squared_error, r_squared, "R²", floor=0.0, threads=1)


def segmentation_task() -> Task:
    task = classification("mosaics", data.mosaic_parts(), lambda norm: nets.UNet(norm, 1, 3), threads=1)
    return dataclasses.replace(task, score=mean_iou, score_name="mean IoU", floor=0.0)


def series(name: str) -> Splits:
    return data.vowel_parts() if name == "vowels" else data.row_parts(data.mnist_parts()) if name == "rows" else (
        data.series_parts(name)
    )  # fmt: skip


def coarse(parts: Splits, most: int = 25) -> Splits:
    """At most so many frames, each the mean of some, where a loop in Python goes over them."""
    pool = lambda x: nn.functional.avg_pool1d(x, -(-x.shape[2] // most))  # noqa: E731
    return Splits(*(p if isinstance(p.inputs, tuple) else data.Part(pool(p.inputs), p.targets) for p in parts))  # type: ignore[union-attr]


def series_task(name: str, build: Callable[..., nn.Module], **options: Any) -> Task:
    parts = coarse(series(name)) if build is nets.GatedNet else series(name)
    sizes = {"inputs": frames(parts), "outputs": classes(parts)}
    return classification(name, parts, lambda norm: build(norm, **sizes), threads=1, **options)


def attention_task(name: str) -> Task:
    x = series(name).train.inputs  # type: ignore[union-attr]
    length = (x[0] if isinstance(x, tuple) else x).shape[2]
    return series_task(name, partial(nets.AttentionNet, length=length, depth=2, width=48), **WARM)


def table_task(name: str, depth: int) -> Task:
    small = name in ("breast_cancer", "wine", "diabetes")
    parts = data.small_table_parts(name) if small else data.table_parts(name)
    numbers = parts.train.targets.is_floating_point()  # type: ignore[union-attr]
    outputs = 1 if numbers else classes(parts)
    make = partial(nets.deep_mlp, inputs=frames(parts), depth=depth, activation="relu", width=64, classes=outputs)
    if numbers:
        return Task(name, parts, lambda norm: make(norm), squared_error, r_squared, "R²", floor=0.0, threads=1)
    return classification(name, parts, lambda norm: make(norm), threads=1)


def text_task(name: str, build: Callable[..., nn.Module], **options: Any) -> Task:
    parts, characters = data.topic_parts() if name == "topics" else data.novel_parts()
    parts = Splits(*(data.Part(p.inputs[:, :20], p.targets[:, :20]) for p in parts))  # type: ignore[call-overload]
    return classification(name, parts, lambda norm: build(norm, characters), threads=1, **options)


def style_task(name: str) -> Task:
    return load_task(f"textures:{name}")


def images(net: str, build: Callable[..., nn.Module], steps: int, *cases: tuple[str, int]) -> list[Setting]:
    kind = "colour" if cases[0][0] == "photos" else "images"
    return [
        Setting(f"{kind}, {net}", name, net, b, steps, partial(image_task, name, build)) for name, b in cases
    ]  # fmt: skip


def over_time(name: str) -> tuple[tuple[int, ...], int]:
    """Widths and stride that suit a series' length."""
    return ((16, 32, 32, 64), 4) if name in ("ACSF1", "OSULeaf") else ((32, 32, 64), 2)


def series_convolutional(name: str, batch_size: int, shortcuts: bool) -> Setting:
    widths, stride = over_time(name)
    build = partial(nets.SeriesNet, widths=widths, stride=stride, shortcuts=shortcuts)
    net = "residual over time" if shortcuts else "convolutional over time"
    return Setting(f"series, {net}", name, net, batch_size, 220, partial(series_task, name, build))


PLAIN, DEEP = partial(nets.plain, widths=(16, 32, 64)), partial(nets.plain, widths=(16, 16, 32, 32, 64, 64, 64))
RESIDUAL = partial(nets.residual, widths=(16, 16, 32, 32))


def table(name: str, batch_size: int, depth: int) -> Setting:
    return Setting("tables, linear", name, "linear", batch_size, 300, partial(table_task, name, depth), width=64)


def series_recurrent(name: str, batch_size: int, steps: int) -> Setting:
    make = partial(series_task, name, nets.GatedNet)
    return Setting("series, recurrent", name, "recurrent", batch_size, steps, make, "layer", 144)


def series_attention(name: str, batch_size: int) -> Setting:
    make = partial(attention_task, name)
    return Setting("series, attention", name, "attention", batch_size, 150, make, "layer", 48)


def text_attention(name: str, batch_size: int) -> Setting:
    make = partial(text_task, name, lambda norm, k: nets.AttentionNet(norm, k, k, 20, tokens=True), **WARM)
    return Setting("text, attention", name, "attention", batch_size, 150, make, "layer", 48)


def encoder(name: str, batch_size: int) -> Setting:
    """The transformer over time again, to compare methods of tokens in."""
    make = partial(attention_task, name)
    return Setting("series, encoder", name, "attention", batch_size, 150, make, "layer", 48, of_tokens=True)


def decoder(name: str, batch_size: int) -> Setting:
    make = partial(text_task, name, lambda norm, k: Decoder(norm, k, 48), **WARM)
    return Setting("text, decoder", name, "decoder", batch_size, 250, make, "rms", 48, of_tokens=True)


def text_recurrent(name: str, batch_size: int) -> Setting:
    make = partial(text_task, name, lambda norm, k: nets.GatedNet(norm, k, k, 64, tokens=True))
    return Setting("text, recurrent", name, "recurrent", batch_size, 90, make, "layer", 192)


def text_convolutional(name: str, batch_size: int) -> Setting:
    net, make = "causal convolutions", partial(text_task, name, nets.CharacterNet)
    return Setting(f"text, {net}", name, net, batch_size, 150, make, "layer", 64)


def autoencoding(name: str, batch_size: int) -> Setting:
    make = partial(autoencoder_task, name)
    return Setting("images, autoencoder", name, "autoencoder", batch_size, 250, make, about="reconstruction")


def segmenting(batch_size: int) -> Setting:
    family = "pictures, segmentation"
    return Setting(family, "mosaics", "segmentation", batch_size, 100, segmentation_task, about="segmentation")


def stylizing(name: str, batch_size: int) -> Setting:
    family, make = "pictures, stylization", partial(style_task, name)
    return Setting(family, name, "stylization", batch_size, 50, make, "instance", about="stylization")


FAMILIES: list[list[Setting]] = [
    images("convolutional", PLAIN, 400, ("digits", 4), ("fashion", 16), ("mnist", 2), ("fashion", 64), ("mnist", 16)),
    [
        series_recurrent("vowels", 16, 100), series_recurrent("BasicMotions", 4, 60), series_recurrent("rows", 64, 200),
        series_recurrent("ItalyPowerDemand", 16, 100),
    ],
    [
        table("letter", 16, 4), table("diabetes", 4, 3), table("spambase", 64, 4), table("breast_cancer", 4, 4),
        table("satimage", 64, 8), table("magic", 4, 6),
    ],
    [
        series_convolutional(name, b, False)
        for name, b in (
            ("BasicMotions", 4), ("ACSF1", 16), ("OSULeaf", 4), ("ItalyPowerDemand", 2), ("OSULeaf", 64),
        )
    ],
    [text_attention("novels", 16), text_attention("topics", 4)],
    [
        autoencoding(name, b)
        for name, b in (("fashion", 16), ("digits", 4), ("photos", 16), ("mnist", 64), ("mnist", 2))
    ],
    images("residual", RESIDUAL, 240, ("photos", 8), ("photos", 64), ("photos", 2)),
    [segmenting(b) for b in (4, 16, 2)],
    images("concatenating", nets.DenseNet, 120, ("fashion", 16), ("digits", 4), ("mnist", 64)),
    [series_convolutional(name, b, True) for name, b in (("ACSF1", 4), ("BasicMotions", 16), ("OSULeaf", 16))],
    images("residual", RESIDUAL, 240, ("mnist", 4), ("digits", 16), ("fashion", 64), ("fashion", 4)),
    images("convolutional", DEEP, 240, ("photos", 16), ("photos", 4), ("photos", 64)),
    [text_convolutional("topics", 4), text_convolutional("novels", 16)],
    [stylizing("gravel", 2), stylizing("brick", 4)],
    [text_recurrent("topics", 16), text_recurrent("novels", 4)],
    [
        series_attention("BasicMotions", 4), series_attention("vowels", 16), series_attention("rows", 64),
        series_attention("ItalyPowerDemand", 16),
    ],
    [encoder("vowels", 16), encoder("BasicMotions", 4), encoder("rows", 64), encoder("ItalyPowerDemand", 16)],
    [decoder("topics", 4), decoder("novels", 16), decoder("topics", 64)],
]  # fmt: skip
# One of each family, then the next of each: wherever the collection stops, the families are balanced.
SETTINGS = {s.name: s for turn in zip_longest(*FAMILIES) for s in turn if s is not None}

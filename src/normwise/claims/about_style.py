"""Claim 9: what is said of instance norm and stylization."""

from __future__ import annotations

import base64
import dataclasses
import struct
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normwise.claims.claim import TIMES, Claim, Experiment, Part, Runs, UnmeasuredError
from normwise.claims.figures import bars
from normwise.claims.observers import Modes, Watch, watching
from normwise.outcomes import Gallery
from normwise.study.data import run, tensors_of
from normwise.study.tasks import Task, load_task
from normwise.study.tasks.textures import StyleLoss


class Stylized(Watch):
    """What a stylization network does to photographs it was not trained on.

    ``style`` and ``content`` are the two parts of its loss; ``contrast`` is how much its output changes when the
    photograph's contrast is halved, as the root mean square difference in units of the output's deviation. The run of
    the first seed also keeps ``pictures``, PNG files as base64.
    """

    @torch.no_grad()
    def result(self) -> dict[str, Any]:
        """Redraw the test photographs, as they are and at half their contrast."""
        model, (photographs,) = self.spare().eval(), tensors_of(self.task.splits.test.load().inputs)
        drawn, pale = run(model, photographs), run(model, half_contrast(photographs))
        found: dict[str, Any] = {
            "style": self._part(drawn, photographs, 1.0),
            "content": self._part(drawn, photographs, 0.0),
            "contrast": ((pale - drawn).square().mean().sqrt() / drawn.std()).item(),
        }
        if self.setup.seed == 0:
            photograph = whole(photographs)
            pictures = (photograph, half_contrast(photograph))
            found["pictures"] = {
                "before": [png(picture[0]) for picture in pictures],
                "after": [png(run(model, picture)[0]) for picture in pictures],
            }
        return found

    def _part(self, drawn: Tensor, photographs: Tensor, style_weight: float) -> float:
        loss = self.task.loss
        assert isinstance(loss, StyleLoss)
        before = loss.style_weight
        try:
            loss.style_weight = style_weight
            return loss(drawn, photographs).item()
        finally:
            loss.style_weight = before


def half_contrast(pictures: Tensor) -> Tensor:
    """Draw each picture's colours half way to their mean."""
    return pictures.lerp(pictures.mean((2, 3), keepdim=True), 0.5)


def whole(pieces: Tensor) -> Tensor:
    """Join pieces of a photograph, which overlap by half, to a square of twice their side."""
    side = pieces.shape[-1]
    first = pieces[0]
    # A row's first piece repeats the lower half of the one above it.
    row = next(
        (k for k in range(3, len(pieces)) if torch.equal(pieces[k][..., : side // 2, :], first[..., side // 2 :, :])),
        None,
    )
    if row is None or 2 * row + 2 >= len(pieces):
        raise ValueError("the pieces do not form a square of twice their side")
    return torch.cat([torch.cat([pieces[k], pieces[k + 2]], -1) for k in (0, 2 * row)], -2).unsqueeze(0)


def png(picture: Tensor) -> str:
    """Write a picture as a PNG file in base64."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    height, width, _ = pixels.shape
    # Each line says how it is filtered: 2 is the difference to the line above, which packs better.
    above = [b"\0" * 3 * width, *(line.tobytes() for line in pixels[:-1])]
    lines = (
        b"\x02" + bytes((a - b) % 256 for a, b in zip(line.tobytes(), before, strict=True))
        for line, before in zip(pixels, above, strict=True)
    )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(lines), 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


_METHODS = ("none", "batch", "instance")
# Pieces to score by: enough of them for a whole picture.
_SCORED = 31


def _stylization() -> Task:
    task = load_task("textures:gravel")
    few = {name: getattr(task.splits, name).take(slice(_SCORED)) for name in ("valid", "test")}
    return dataclasses.replace(task, splits=task.splits._replace(**few), observe=watching(Stylized, Modes), source=None)


STYLE = Experiment("style", _stylization, _METHODS, batch_sizes=(4,), lrs=(0.002, 0.008), steps=120, quick_steps=30)


def _first_pictures(runs: Runs, method: str) -> dict[str, list[str]]:
    trial = runs.trials(STYLE, method)[0]
    if "pictures" not in trial.observed:
        raise UnmeasuredError(f"{trial.setup.key} kept no pictures ({trial.reason or trial.state})")
    return trial.observed["pictures"]


def _pictures(runs: Runs) -> Gallery:
    # Only the first seed keeps pictures.
    kept = {m: _first_pictures(runs, m) for m in _METHODS}
    rows = ["a photograph", "the same at half its contrast"]
    pictures = [
        [kept["instance"]["before"][k], *(kept[m]["after"][k] for m in reversed(_METHODS))] for k in range(len(rows))
    ]
    return Gallery(
        "A photograph that was not trained on, redrawn as gravel",
        ["photograph", "instance norm", "batch norm", "no normalization"],
        rows,
        pictures,
    )


def _rows(runs: Runs, key: str) -> list[tuple[str, str, np.ndarray]]:
    names = {"none": "no normalization", "batch": "batch norm", "instance": "instance norm"}
    return [(names[m], m, runs.seen(STYLE, m, key)) for m in _METHODS]


STYLIZATION = Claim(
    number=9,
    name="stylization",
    title="Instance norm suits stylization",
    claim="Instance norm removes the contrast of the content image, which should not matter for a style, treats each "
    "image by itself, and gives better stylizations than batch norm.",
    source="Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022",
    how="Small stylization networks redraw pieces of photographs in the manner of gravel, four at a time, each "
    "method at its own learning rate. The losses are measured on a photograph that was not trained on. Half the "
    "contrast means colours half way to the picture's mean; the change of the output is a root mean square in units of "
    "the output's deviation.",
    experiments=(STYLE,),
    parts=(
        Part(
            "Halving a photograph's contrast changes its output by at most 0.1 deviations",
            lambda runs: runs.seen(STYLE, "instance", "contrast"),
            brief="contrast removed",
            at_most=0.1,
            published="0 after the first layer, by construction",
        ),
        Part(
            "That is at most half as much as with batch norm",
            lambda runs: runs.seen(STYLE, "instance", "contrast") / runs.seen(STYLE, "batch", "contrast"),
            brief="more so than by batch norm",
            at_most=0.5,
            unit=TIMES,
            ratio=True,
        ),
        Part(
            "The output for an image does not depend on the rest of the batch, in training either",
            lambda runs: runs.seen(STYLE, "instance", "neighbour_gap"),
            brief="each image by itself",
            at_most=1e-4,
            published="0, by construction",
            exact=True,
        ),
        Part(
            "After equal steps its style loss is at most 0.95 times that of batch norm",
            lambda runs: runs.seen(STYLE, "instance", "style") / runs.seen(STYLE, "batch", "style"),
            brief="lower style loss",
            at_most=0.95,
            unit=TIMES,
            ratio=True,
            published="lower, in a figure",
        ),
        Part(
            "With batch norm it does depend on it, by at least 0.01 deviations",
            lambda runs: runs.seen(STYLE, "batch", "neighbour_gap"),
            at_least=0.01,
            decides=False,
        ),
    ),
    figures=(
        lambda runs: bars("Style loss after equal steps", "", _rows(runs, "style")),
        lambda runs: bars("Change of the output when the contrast is halved", "deviations", _rows(runs, "contrast")),
    ),
    galleries=(_pictures,),
)

CLAIMS = (STYLIZATION,)

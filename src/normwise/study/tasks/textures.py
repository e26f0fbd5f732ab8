"""Texture stylization: a small network redraws photographs in the manner of a texture."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from normwise.errors import InputError, MissingDependencyError
from normwise.nn import NormFactory
from normwise.study.data import Part, Splits, tensors_of
from normwise.study.optimize import ADAM, warm_adam
from normwise.study.tasks.base import Task

STYLES = ("gravel", "brick", "grass")
# Every photograph is on one side only.
_PHOTOS = {"train": ("astronaut", "coffee", "cat"), "valid": ("rocket",), "test": ("motorcycle",)}
_CROP = 48


def textures() -> Splits:
    """Cut scikit-image's photographs into pieces of 48 × 48: five photographs, three to train on."""
    parts = (torch.cat([_pieces(_image(photo)) for photo in _PHOTOS[part]]) for part in Splits._fields)
    return Splits(*(Part(pieces, pieces) for pieces in parts))


def textures_task(source: str) -> Task:
    """Stylize photographs; scored by minus the loss of style and content on photographs not trained on."""
    name, _, style = source.partition(":")
    if style and style not in STYLES:
        raise InputError(f"unknown texture {style!r}: expected one of {', '.join(STYLES)}, as in textures:brick")
    splits, loss = textures(), StyleLoss(_pieces(_image(style or STYLES[0])))
    return Task(
        f"{name} ({style or STYLES[0]})",
        splits,
        StylizationNet,
        loss,
        loss.score,
        "−(style + content loss)",
        # Where nothing is redrawn: the content is whole, the style missed.
        floor=loss.score(*(tensors_of(values)[0] for values in splits.valid.load())),
        optimizer=warm_adam,
        optimizer_name=ADAM,
        lrs=(0.0005, 0.002, 0.008),
        source=source,
        steps=240,
        quick_steps=60,
        threads=1,
    )


class StyleLoss(nn.Module):
    """How far pictures are from a texture's look and from their own content, by fixed random filters.

    The filters are drawn once from a fixed seed: their correlations describe textures about as well as those of a
    trained network's first layers (Ustyuzhaninov et al. 2016, arXiv 1606.00021), and need no download. At three scales
    F = relu(filters * picture) and G = F Fᵀ / positions. Style: ‖G − G*‖² / ‖G*‖², averaged over the scales, G* being
    the texture's. Content: ‖F − F°‖² / ‖F°‖² at the middle scale, F° being the photograph's.
    """

    filters: Tensor

    def __init__(self, style: Tensor, filters: int = 48, style_weight: float = 0.5) -> None:
        super().__init__()
        self.style_weight = style_weight
        drawn = torch.randn(filters, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        drawn -= drawn.mean((1, 2, 3), keepdim=True)  # Blind to brightness, which says nothing of a texture.
        self.register_buffer("filters", drawn / drawn.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
        grams = [_gram(features).mean(0) for features in self._features(style)]
        self._names = [f"gram{k}" for k in range(len(grams))]
        for name, gram in zip(self._names, grams, strict=True):
            self.register_buffer(name, gram)  # goes along to a device

    def forward(self, outputs: Tensor, photographs: Tensor) -> Tensor:
        """Give the loss of outputs (N, 3, H, W) redrawn from photographs of the same shape."""
        drawn, kept = self._features(outputs), self._features(photographs)
        style = sum(
            (_gram(features) - gram).square().sum((1, 2)).mean() / gram.square().sum()
            for features, gram in zip(drawn, map(self.get_buffer, self._names), strict=True)
        ) / len(drawn)
        content = (drawn[1] - kept[1]).square().mean() / kept[1].square().mean()
        return self.style_weight * style + (1 - self.style_weight) * content

    def score(self, outputs: Tensor, photographs: Tensor) -> float:
        """Give minus the loss."""
        return -self(outputs, photographs).item()

    def _features(self, pictures: Tensor) -> list[Tensor]:
        found, scaled = [], pictures
        for _ in range(3):
            found.append(nn.functional.conv2d(scaled, self.filters).relu())
            scaled = nn.functional.avg_pool2d(scaled, 2)
        return found


class StylizationNet(nn.Sequential):
    """The reference model: convolutions that halve the picture, two residual blocks, and the way back up.

    The shape of the networks of Johnson et al. 2016 (arXiv 1603.08155) on which instance norm was introduced, small.
    """

    def __init__(self, norm: NormFactory, width: int = 12) -> None:
        super().__init__(
            _convolution(3, width, 5), norm(width), nn.ReLU(),
            _convolution(width, 2 * width, 3, stride=2), norm(2 * width), nn.ReLU(),
            _Residual(norm, 2 * width),
            _Residual(norm, 2 * width),
            nn.Upsample(scale_factor=2),
            _convolution(2 * width, width, 3), norm(width), nn.ReLU(),
            _convolution(width, 3, 5), nn.Sigmoid(),
        )  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, norm: NormFactory, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(width, width, 3), norm(width), nn.ReLU(), _convolution(width, width, 3), norm(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    # Mirrored, so that the frame does not show in the result.
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, padding_mode="reflect")


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _pieces(picture: Tensor) -> Tensor:
    """Cut (3, H, W) into pieces that overlap by half."""
    _, height, width = picture.shape
    corners = product(range(0, height - _CROP + 1, _CROP // 2), range(0, width - _CROP + 1, _CROP // 2))
    return torch.stack([picture[:, y : y + _CROP, x : x + _CROP] for y, x in corners])


def _image(name: str) -> Tensor:
    """Read one of scikit-image's pictures at half size: (3, H, W) from 0 to 1; grey ones three times the same."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingDependencyError("the textures need scikit-image: pip install 'normwise[textures]'") from error
    raw = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    pixels = torch.from_numpy(np.ascontiguousarray(raw)).float() / 255
    picture = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels[:, :, :3].permute(2, 0, 1)
    return nn.functional.avg_pool2d(picture, 2)

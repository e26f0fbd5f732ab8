"""The networks of the advice benchmark: small, of many kinds, each with ``norm(channels)`` where a norm goes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from normwise.nn import NormFactory

SATURATING = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def he(convolution: nn.Conv2d) -> None:
    """What gives a network without normalization a fair chance."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]


def plain(
    norm: NormFactory, widths: tuple[int, ...], activation: str = "relu", channels: int = 1, classes: int = 10
) -> nn.Module:
    """Convolutions of 3 × 3, halving the image where the width grows and at the end, then the average and a class."""
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        stride = 2 if (i and width > widths[i - 1]) or i == len(widths) - 1 else 1
        convolution = nn.Conv2d(channels, width, 3, stride, padding=1)
        if activation == "relu":
            he(convolution)
        layers += [convolution, norm(width), SATURATING.get(activation, nn.ReLU)()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Block(nn.Module):
    """Two convolutions beside a shortcut; the shortcut is pooled and widened with zeros where the image is halved."""

    def __init__(self, norm: NormFactory, channels: int, width: int) -> None:
        super().__init__()
        self.more, self.stride = width - channels, 2 if width > channels else 1
        first = nn.Conv2d(channels, width, 3, self.stride, padding=1)
        second = nn.Conv2d(width, width, 3, padding=1)
        he(first)
        he(second)
        self.body = nn.Sequential(first, norm(width), nn.ReLU(), second, norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.more:
            x = nn.functional.avg_pool2d(x, self.stride, ceil_mode=True)
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.more))
        return (x + y).relu()


def residual(
    norm: NormFactory, widths: tuple[int, ...] = (16, 16, 32, 32), channels: int = 1, classes: int = 10
) -> nn.Module:
    """A convolution, then a residual block per further width."""
    stem = nn.Conv2d(channels, widths[0], 3, padding=1)
    he(stem)
    blocks = [Block(norm, a, b) for a, b in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(stem, norm(widths[0]), nn.ReLU(), *blocks, *head)


def deep_mlp(
    norm: NormFactory, inputs: int, depth: int, activation: str, width: int = 64, classes: int = 10
) -> nn.Module:
    """Linear layers with one activation, torch's own initialization."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), norm(width, dim=1), SATURATING.get(activation, nn.ReLU)()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, classes))


class GatedNet(nn.Module):
    """A gated recurrent net (Cho et al. 2014, arXiv 1406.1078) whose two products are each normalized at every step.

    ``tokens`` embeds characters and gives scores at every position; else the last real frame gives a class.
    """

    def __init__(self, norm: NormFactory, inputs: int, outputs: int, width: int = 48, tokens: bool = False) -> None:
        super().__init__()
        self.width, self.tokens = width, tokens
        self.embedding = nn.Embedding(inputs, width) if tokens else None
        self.into = nn.Linear(width if tokens else inputs, 3 * width, bias=False)
        self.back = nn.Linear(width, 3 * width, bias=False)
        self.norm_into, self.norm_back = norm(3 * width, dim=1), norm(3 * width, dim=1)
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.embedding(x).transpose(1, 2) if self.embedding is not None else x
        h = x.new_zeros(len(x), self.width)
        states = []
        for frame in x.unbind(2):
            z, r, n = (self.norm_into(self.into(frame)) + self.bias).chunk(3, 1)
            hz, hr, hn = self.norm_back(self.back(h)).chunk(3, 1)
            z, r = (z + hz).sigmoid(), (r + hr).sigmoid()
            h = z * h + (1 - z) * (n + r * hn).tanh()
            states.append(h)
        if self.tokens:
            return self.head(torch.stack(states, 1)).transpose(1, 2)
        every = torch.stack(states, 1)
        last = every[torch.arange(len(x)), -1 if lengths is None else lengths - 1]
        return self.head(last)


class AttentionNet(nn.Module):
    """A transformer (Vaswani et al. 2017, arXiv 1706.03762) of four heads, normalized token by token.

    ``tokens`` embeds characters, looks back only and gives scores at every position; else the mean over the real frames
    gives a class. ``first`` normalizes what goes into a branch, else the sum that comes out of it.
    """

    def __init__(
        self,
        norm: NormFactory,
        inputs: int,
        outputs: int,
        length: int,
        depth: int = 2,
        width: int = 48,
        first: bool = True,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        self.tokens, self.first = tokens, first
        self.into = nn.Embedding(inputs, width) if tokens else nn.Linear(inputs, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        self.mixes = nn.ModuleList(Mix(width, causal=tokens) for _ in range(depth))
        self.turns = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(norm(width, dim=1) for _ in range(2 * depth + first))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.into(x if self.tokens else x.transpose(1, 2)) + self.places
        real = None if lengths is None else torch.arange(x.shape[1]) < lengths[:, None]
        for i, (mix, turn) in enumerate(zip(self.mixes, self.turns, strict=True)):
            if self.first:
                x = x + mix(self._norm(2 * i, x), real)
                x = x + turn(self._norm(2 * i + 1, x))
            else:
                x = self._norm(2 * i, x + mix(x, real))
                x = self._norm(2 * i + 1, x + turn(x))
        x = self._norm(-1, x) if self.first else x
        if self.tokens:
            return self.head(x).transpose(1, 2)
        if real is None:
            return self.head(x.mean(1))
        return self.head((x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True))

    def _norm(self, i: int, x: Tensor) -> Tensor:
        """Tokens are the samples."""
        return self.norms[i](x.reshape(-1, x.shape[2])).reshape(x.shape)


class Mix(nn.Module):
    """Attention of four heads."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal, self.into, self.out = causal, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.into(x).reshape(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mask = None if real is None else real[:, None, None, :]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class CharacterNet(nn.Module):
    """Causal convolutions over 15 characters with shortcuts, normalized token by token as a transformer would be."""

    def __init__(self, norm: NormFactory, characters: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=d) for d in (1, 2, 4))
        self.norms = nn.ModuleList(norm(width, dim=1) for _ in self.convolutions)
        self.head = nn.Conv1d(width, characters, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            before = nn.functional.pad(x, (2 * convolution.dilation[0], 0))
            y = convolution(before).transpose(1, 2)
            x = x + norm(y.reshape(-1, y.shape[2])).reshape(y.shape).transpose(1, 2).relu()
        return self.head(x)


class FrameNet(nn.Module):
    """Convolutions over time, each normalized over whole sequences, the mean over the frames, a class."""

    def __init__(self, norm: NormFactory, inputs: int, outputs: int, depth: int = 3, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            convolution = nn.Conv1d(inputs, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, norm(width, dim=1), nn.ReLU()]
            inputs = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.body(x).mean(2))


class DenseNet(nn.Module):
    """Each convolution sees all that came before it in its stage, side by side (Huang et al., arXiv 1608.06993)."""

    def __init__(self, norm: NormFactory, channels: int, classes: int, growth: int = 12, depth: int = 3) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.stages = nn.ModuleList()
        for _ in range(2):
            stage = nn.ModuleList()
            for _ in range(depth):
                stage.append(nn.Sequential(norm(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1)))
                width += growth
            self.stages.append(stage)
        self.last, self.head = norm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            for layer in stage:
                x = torch.cat([x, layer(x)], 1)
            x = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
        return self.head(self.last(x).relu().mean((2, 3)))


def twice(norm: NormFactory, channels: int, width: int) -> nn.Module:
    """Two normalized convolutions."""
    first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    he(first)
    he(second)
    return nn.Sequential(first, norm(width), nn.ReLU(), second, norm(width), nn.ReLU())


class UNet(nn.Module):
    """A class for each pixel; each scale sees what it saw on the way down (Ronneberger et al., arXiv 1505.04597)."""

    def __init__(self, norm: NormFactory, channels: int, classes: int, width: int = 12) -> None:
        super().__init__()
        self.down1, self.down2 = twice(norm, channels, width), twice(norm, width, 2 * width)
        self.bottom = twice(norm, 2 * width, 2 * width)
        self.up2, self.up1 = twice(norm, 4 * width, width), twice(norm, 2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        low = nn.functional.interpolate(self.bottom(nn.functional.max_pool2d(two, 2)), scale_factor=2.0)
        low = nn.functional.interpolate(self.up2(torch.cat([two, low], 1)), scale_factor=2.0)
        return self.head(self.up1(torch.cat([one, low], 1)))


def autoencoder(norm: NormFactory, channels: int, size: int, code: int = 24, width: int = 16) -> nn.Module:
    """Convolutions down to a code, and back up to the picture."""
    small = size // 4
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, padding=1), norm(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, padding=1), norm(2 * width), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(code), nn.Linear(code, 2 * width * small * small),
        nn.Unflatten(1, (2 * width, small, small)), norm(2 * width), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, padding=1), norm(width), nn.ReLU(),
        nn.ConvTranspose2d(width, channels, 4, 2, padding=1),
    )  # fmt: skip


class SeriesNet(nn.Module):
    """Convolutions over time with a stride each, beside shortcuts if asked for; the mean over time, a class."""

    def __init__(
        self, norm: NormFactory, inputs: int, outputs: int, widths: tuple[int, ...], stride: int, shortcuts: bool
    ) -> None:
        super().__init__()
        self.layers, self.beside = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            convolution = nn.Conv1d(inputs, width, 7, stride, padding=3)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            self.layers.append(nn.Sequential(convolution, norm(width, dim=1), nn.ReLU()))
            self.beside.append(nn.Conv1d(inputs, width, 1, stride) if shortcuts else nn.Identity())
            inputs = width
        self.shortcuts, self.head = shortcuts, nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer, beside in zip(self.layers, self.beside, strict=True):
            x = layer(x) + beside(x) if self.shortcuts else layer(x)
        return self.head(x.mean(2))

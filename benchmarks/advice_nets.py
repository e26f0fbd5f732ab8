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


def plain(norm: NormFactory, widths: tuple[int, ...], activation: str = "relu") -> nn.Module:
    """Convolutions of 3 × 3, halving the image where the width grows and at the end, then the average and a class."""
    layers: list[nn.Module] = []
    channels = 1
    for i, width in enumerate(widths):
        stride = 2 if (i and width > widths[i - 1]) or i == len(widths) - 1 else 1
        convolution = nn.Conv2d(channels, width, 3, stride, padding=1)
        if activation == "relu":
            he(convolution)
        layers += [convolution, norm(width), SATURATING.get(activation, nn.ReLU)()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


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


def residual(norm: NormFactory, widths: tuple[int, ...] = (16, 16, 32, 32)) -> nn.Module:
    """A convolution, then a residual block per further width."""
    stem = nn.Conv2d(1, widths[0], 3, padding=1)
    he(stem)
    blocks = [Block(norm, a, b) for a, b in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
    return nn.Sequential(stem, norm(widths[0]), nn.ReLU(), *blocks, *head)


def deep_mlp(norm: NormFactory, inputs: int, depth: int, activation: str, width: int = 64) -> nn.Module:
    """Linear layers with a saturating activation, torch's own initialization."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), norm(width, dim=1), SATURATING[activation]()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, 10))


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

"""Tensors of more than 2^31 elements, forward and backward, in both layouts: ``make large`` (14 GB of memory, minutes).

The input repeats one small tile, so what every element must come out as is known from the tile.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from bench_contenders import our_layer
from torch import Tensor

METHODS = ("batch", "layer", "instance", "group", "switchable")
SHAPE = (2, 32, 32, 1050000)  # 2.15e9 elements
TILE = 1000


def build(last: bool) -> tuple[Tensor, Tensor]:
    """The input, and the tile (N, C, TILE) that it repeats."""
    torch.manual_seed(0)
    N, C, H, W = SHAPE
    tile = (3 + torch.randn(N, C, TILE)).bfloat16()
    x = torch.empty(SHAPE, dtype=torch.bfloat16, memory_format=torch.channels_last if last else torch.contiguous_format)
    x.view(N, C, H, W // TILE, TILE).copy_(tile[:, :, None, None])
    return x.requires_grad_(), tile


def check(method: str, last: bool) -> float:
    """The largest error of y and dx at the first and the last elements, against the tile's own result."""
    x, tile = build(last)
    small = tile[:, :, None].double().requires_grad_()
    expected = our_layer(method, SHAPE[1]).double()(small)
    weights = torch.linspace(-1, 1, SHAPE[1], dtype=torch.float64)[:, None, None]
    expected_grad = torch.autograd.grad(expected, small, (expected * weights).detach())[0]
    y = our_layer(method, SHAPE[1])(x)
    worst = compare(y, expected)
    with torch.no_grad():
        y.mul_(weights.bfloat16())  # y becomes its own gradient: there is no memory to waste
    edge, g = torch.autograd.graph.get_gradient_edge(y), y.detach()
    del y
    (dx,) = torch.autograd.grad(edge, x, g)
    return max(worst, compare(dx, expected_grad))


def compare(big: Tensor, tile: Tensor) -> float:
    ends = (big[:, :, 0, :TILE], big[:, :, -1, -TILE:])
    return max((end.double() - tile[:, :, 0]).abs().max().item() for end in ends)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    given = parser.parse_args()
    failed = 0
    for last in (False, True):
        for method in given.methods:
            begin = time.perf_counter()
            error = check(method, last)
            bad = not error < 0.05  # bfloat16 near 4
            failed += bad
            layout = "channels-last" if last else "NCHW"
            print(
                f"{method:<10} {layout:<13} largest error {error:.4f}  {time.perf_counter() - begin:.0f} s"
                f"{'  WRONG' if bad else ''}",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())

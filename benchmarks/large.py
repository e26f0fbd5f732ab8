"""Tensors of more than 2^31 elements, forward and backward, in both layouts and over the last axis: ``make large``.

Takes 14 GB of memory and some minutes.
The input repeats one small tile, so what every element must come out as is known from the tile.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

import torch
from bench_contenders import our_layer
from torch import Tensor

import normwise.nn as ours

METHODS = ("batch", "layer", "instance", "group", "switchable")
LAST_AXIS = ("LayerNorm", "RMSNorm")
SHAPE = (2, 32, 32, 1050000)  # 2.15e9 elements
POSITIONS, FEATURES = 2_099_200, 1024  # as many
TILE = 1000


def build(last: bool) -> tuple[Tensor, Tensor]:
    """The input, and the tile (N, C, TILE) that it repeats."""
    torch.manual_seed(0)
    N, C, H, W = SHAPE
    tile = (3 + torch.randn(N, C, TILE)).bfloat16()
    x = torch.empty(SHAPE, dtype=torch.bfloat16, memory_format=torch.channels_last if last else torch.contiguous_format)
    x.view(N, C, H, W // TILE, TILE).copy_(tile[:, :, None, None])
    return x.requires_grad_(), tile


def errors(
    make: Callable[[], torch.nn.Module],
    x: Tensor,
    tile: Tensor,
    weights: Tensor,
    off: Callable[[Tensor, Tensor], float],
) -> float:
    """How far y and dx are off the tile's own, where the output times ``weights`` is its own gradient."""
    small = tile.double().requires_grad_()
    expected = make().double()(small)
    expected_grad = torch.autograd.grad(expected, small, (expected * weights).detach())[0]
    y = make()(x)
    error = off(y, expected)
    with torch.no_grad():
        y.mul_(weights.bfloat16())  # there is no memory to waste
    edge, g = torch.autograd.graph.get_gradient_edge(y), y.detach()
    del y
    return max(error, off(torch.autograd.grad(edge, x, g)[0], expected_grad))


def slopes(count: int) -> Tensor:
    return torch.linspace(-1, 1, count, dtype=torch.float64)


def check(method: str, last: bool) -> float:
    """The largest error of y and dx at the first and the last elements, against the tile's own result."""
    x, tile = build(last)
    weights = slopes(SHAPE[1])[:, None, None]
    return errors(lambda: our_layer(method, SHAPE[1]), x, tile[:, :, None], weights, compare)


def check_last_axis(name: str) -> float:
    """The same over the last axis."""
    torch.manual_seed(0)
    tile = (3 + torch.randn(64, FEATURES)).bfloat16()
    x = tile.repeat(POSITIONS // 64, 1).requires_grad_()

    def off(big: Tensor, right: Tensor) -> float:
        return max((end.double() - right).abs().max().item() for end in (big[:64], big[-64:]))

    return errors(lambda: getattr(ours, name)(FEATURES, eps=1e-5), x, tile, slopes(FEATURES), off)


def compare(big: Tensor, tile: Tensor) -> float:
    ends = (big[:, :, 0, :TILE], big[:, :, -1, -TILE:])
    return max((end.double() - tile[:, :, 0]).abs().max().item() for end in ends)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=(*METHODS, *LAST_AXIS), choices=(*METHODS, *LAST_AXIS))
    given = parser.parse_args()
    cases = {
        (method, layout): functools.partial(check, method, layout == "channels-last")
        for layout in ("NCHW", "channels-last")
        for method in METHODS
    } | {(name, "last axis"): functools.partial(check_last_axis, name) for name in LAST_AXIS}
    failed = 0
    for (method, layout), run in cases.items():
        if method not in given.methods:
            continue
        begin = time.perf_counter()
        error = run()
        bad = not error < 0.05  # bfloat16 near 4
        failed += bad
        print(
            f"{method:<10} {layout:<13} largest error {error:.4f}  {time.perf_counter() - begin:.0f} s"
            f"{'  WRONG' if bad else ''}",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())

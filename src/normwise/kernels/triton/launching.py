"""How a tensor is laid out in memory, how it is cut into tiles, and the one place that launches kernels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from normwise.kernels.operators import channels_last, dense_strides

# Elements of a tile: 16 for each of 128 threads.
TILE = 2048
# Channels of a tile of channels-last data: what is next to each other is at least a whole line of the cache.
CHANNELS = 64
# About so many programs keep the largest devices busy.
PROGRAMS = 1024
# More pieces than this would take longer to merge than they save.
PIECES = 64
# Of a thread: 64k of them are enough for two programs of 8 warps.
REGISTERS = 128


def power(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def of_dtype(dtype: torch.dtype) -> Any:
    """The type in which a kernel sums what is of ``dtype``."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@dataclass(frozen=True)
class View:
    """``x`` as rows of tiles: cells of M elements, or joined, channels of all samples.

    ``columns`` says that channels lie next to each other. Rows are cut into S pieces of T tiles of R rows, B elements.
    """

    x: Tensor
    N: int
    C: int
    M: int
    columns: bool
    joined: bool
    R: int
    B: int
    S: int
    T: int

    @classmethod
    def of(cls, x: Tensor, joined: bool = False) -> View:
        """Look at ``x``, copied first if it is laid out in neither of the two ways."""
        if x.ndim < 2:
            raise RuntimeError(f"normwise: expected at least 2 axes, got {x.ndim}")
        N, C, M = x.shape[0], x.shape[1], prod(x.shape[2:])
        # Where all samples are treated alike, those of channels-last data may as well be one.
        columns = M == 1 or channels_last(x)
        if joined and columns:
            N, M = 1, N * M
        over = N if joined and not columns else 1
        rows = C if joined or columns else N * C
        R = min(power(rows), CHANNELS) if columns else min(power(rows), max(1, TILE // power(M)))
        B = min(power(M), max(1, TILE // R))
        blocks = -(-C // R) * N if columns else -(-rows // R)
        tiles = over * -(-M // B)
        # Pieces of some tiles each, of as many as leave programs enough.
        T = max(1, min(PIECES, tiles * blocks // PROGRAMS), -(-tiles // PIECES))
        return cls(matching(x, dense_strides(x)), N, C, M, columns, joined, R, B, -(-tiles // T), T)

    @property
    def dtype(self) -> torch.dtype:
        """The type of sums."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.C if self.joined else self.N * self.C

    @property
    def tiles(self) -> int:
        """How many tiles a row is cut into."""
        return (self.N if self.joined and not self.columns else 1) * -(-self.M // self.B)

    @property
    def elements(self) -> int:
        """How many elements a row has."""
        return self.M * (self.N if self.joined else 1)

    @property
    def programs(self) -> int:
        """One a block of rows and piece."""
        blocks = self.N * -(-self.C // self.R) if self.columns else -(-self.rows // self.R)
        return blocks * self.S

    @property
    def sizes(self) -> tuple[int, ...]:
        """What kernels take of this: N, C, M, tiles, S, T."""
        return self.N, self.C, self.M, self.tiles, self.S, self.T

    @property
    def tile(self) -> dict[str, Any]:
        """The same, of what they are compiled for."""
        return {"COLUMNS": self.columns, "ACC": of_dtype(self.x.dtype), "R": self.R, "B": self.B}

    @property
    def warps(self) -> int:
        """Groups of threads a program."""
        return 4

    def empty_like(self) -> Tensor:
        """A tensor for results, in the memory format of ``x``."""
        return torch.empty_like(self.x)

    def like(self, g: Tensor) -> Tensor:
        """A gradient, laid out as ``x``."""
        if g.shape != self.x.shape or g.dtype != self.x.dtype:
            came = f"{g.dtype} {tuple(g.shape)} and {self.x.dtype} {tuple(self.x.shape)}"
            raise RuntimeError(f"normwise: gradient and input differ in shape or type: {came}")
        return matching(g, self.x.stride())


def matching(t: Tensor, strides: Sequence[int]) -> Tensor:
    """``t`` with the given strides of a dense layout; a copy where it has others."""
    if all(size == 1 or have == want for size, have, want in zip(t.shape, t.stride(), strides, strict=True)):
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def limited() -> dict[str, int]:
    """Say how many registers a thread may take: unasked, NVIDIA's assembler keeps values in memory instead."""
    return {} if torch.version.hip else {"maxnreg": REGISTERS}


def launch(kernel: Any, programs: int, *args: Any, warps: int = 4, **options: Any) -> None:
    """Run a kernel on the device of its tensors."""
    device = next(a.device for a in args if isinstance(a, Tensor))
    other = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if other else nullcontext():
        run(kernel, programs, args, {**options, "num_warps": warps})


def run(kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """What tests put another function in the place of, to count launches."""
    kernel[(programs,)](*args, **options)

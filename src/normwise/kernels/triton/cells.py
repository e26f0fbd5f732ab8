"""The four kernels of the cells, and the moments of pieces of rows from which all others begin."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from normwise.kernels.cpu.native import CODES
from normwise.kernels.triton.launching import View, launch, limited
from normwise.kernels.triton.tiles import (
    apply_tiles,
    gradient_tiles,
    moments_of,
    piece_of,
    rows_of,
    store_two,
    sums_of,
)


@triton.jit
def piece_moments(
    x_ptr, pieces_ptr, N, C, M, tiles, S, T, rows,
    COLUMNS: tl.constexpr, JOINED: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Mean (two numbers) and variance of each of the S pieces, of T tiles, that rows are cut into: (3, S, rows)."""
    pid = tl.program_id(0)
    s, begin, end = piece_of(pid, tiles, S, T)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, JOINED, R)
    hi, lo, var = moments_of(x_ptr, begin, end, first, live, C, M, COLUMNS, ACC, B)
    store_two(pieces_ptr, hi, lo, s, S, rows, n * C + c, live)
    tl.store(pieces_ptr + (2 * tl.cast(S, tl.int64) + s) * rows + n * C + c, var, live)


@triton.jit
def given(ptr, n, c, live, of_sample, of_channel):
    """The values of a tensor that broadcasts to (N, C)."""
    return tl.load(ptr + n * of_sample + c * of_channel, live, 0.0)


@triton.jit
def cell_apply(
    x_ptr, y_ptr, center_ptr, scale_ptr, shift_ptr, strides, N, C, M, tiles, S, T,
    slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """``act((x − center) · scale + shift)``."""
    pid = tl.program_id(0)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, False, R)
    center = given(center_ptr, n, c, live, strides[0], strides[1])
    scale = given(scale_ptr, n, c, live, strides[2], strides[3])
    shift = given(shift_ptr, n, c, live, strides[4], strides[5])
    _, begin, end = piece_of(pid, tiles, S, T)
    none = tl.zeros_like(center)
    apply_tiles(x_ptr, y_ptr, begin, end, first, live, center, none, scale, shift, C, M, slope, ACT, COLUMNS, ACC, B)


@triton.jit
def cell_grad_sums(
    g_ptr, x_ptr, sums_ptr, mean_ptr, center_ptr, scale_ptr, shift_ptr, strides, N, C, M, tiles, S, T,
    slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The two sums of each piece of each cell: (2, S, N, C)."""
    pid = tl.program_id(0)
    s, begin, end = piece_of(pid, tiles, S, T)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, False, R)
    mean = given(mean_ptr, n, c, live, strides[0], strides[1])
    center = given(center_ptr, n, c, live, strides[2], strides[3])
    scale = given(scale_ptr, n, c, live, strides[4], strides[5])
    shift = given(shift_ptr, n, c, live, strides[6], strides[7])
    none = tl.zeros_like(center)
    one, two = sums_of(
        g_ptr, x_ptr, begin, end, first, live, mean, none, center, none, scale, shift, C, M,
        slope, ACT, COLUMNS, ACC, R, B,
    )  # fmt: skip
    store_two(sums_ptr, one, two, s, S, tl.cast(N, tl.int64) * C, n * C + c, live)


@triton.jit
def cell_grad_input(
    g_ptr, x_ptr, dx_ptr, mean_ptr, center_ptr, scale_ptr, shift_ptr, grad_mean_ptr, grad_var_ptr, strides,
    N, C, M, tiles, S, T,
    slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """``scale · g + (2 · grad_var / M) · (x − mean) + grad_mean / M``."""
    pid = tl.program_id(0)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, False, R)
    mean = given(mean_ptr, n, c, live, strides[0], strides[1])
    center = given(center_ptr, n, c, live, strides[2], strides[3])
    scale = given(scale_ptr, n, c, live, strides[4], strides[5])
    shift = given(shift_ptr, n, c, live, strides[6], strides[7])
    offset = given(grad_mean_ptr, n, c, live, strides[8], strides[9]) / tl.cast(M, ACC)
    tilt = given(grad_var_ptr, n, c, live, strides[10], strides[11]) * 2 / tl.cast(M, ACC)
    # Where the variance overflowed its gradient is 0, and the deviation may have overflowed, too.
    mean = tl.where(tilt == 0, 0.0, mean)
    _, begin, end = piece_of(pid, tiles, S, T)
    none = tl.zeros_like(center)
    gradient_tiles(
        g_ptr, x_ptr, dx_ptr, begin, end, first, live, mean, none, center, none, scale, shift, tilt, offset, C, M,
        slope, ACT, False, COLUMNS, ACC, B,
    )  # fmt: skip


def pieces(view: View) -> Tensor:
    """Launch :func:`piece_moments`."""
    found = view.x.new_empty((3, view.S, view.rows), dtype=view.dtype)
    options = {**view.tile, "JOINED": view.joined}
    launch(piece_moments, view.programs, view.x, found, *view.sizes, view.rows, warps=view.warps, **options)
    return found


def _per_cell(view: View, *tensors: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
    """Tensors that broadcast to (N, C), and their strides."""
    wide = [t.to(view.dtype).expand(view.N, view.C) for t in tensors]
    return wide, tuple(stride for t in wide for stride in t.stride())


def apply(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None = None, slope: float = 0.01
) -> Tensor:
    """Normalize: ``act((x − center) · scale + shift)``, as :func:`normwise.kernels.reference.apply`."""
    view = View.of(x)
    y = view.empty_like()
    cells, strides = _per_cell(view, center, scale, shift)
    if x.numel():
        options = {**view.tile, "slope": slope, "ACT": CODES[activation]}
        launch(cell_apply, view.programs, view.x, y, *cells, strides, *view.sizes, warps=view.warps, **options)
    return y


def grad_sums(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """S1 = Σ g and S2 = Σ g · (x − mean) per cell, as :func:`normwise.kernels.reference.grad_sums`."""
    view = View.of(x)
    cells, strides = _per_cell(view, mean, center, scale, shift)
    sums = x.new_zeros((2, view.S, view.N, view.C), dtype=view.dtype)
    if x.numel():
        options = {**view.tile, "slope": slope, "ACT": CODES[activation]}
        args = (view.like(g), view.x, sums, *cells, strides, *view.sizes)
        launch(cell_grad_sums, view.programs, *args, warps=view.warps, **options)
    return sums[0].sum(0), sums[1].sum(0)


def grad_input(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor:
    """``scale · g + (2 · grad_var / M) · (x − mean) + grad_mean / M``; see the reference."""
    view = View.of(x)
    dx = view.empty_like()
    cells, strides = _per_cell(view, mean, center, scale, shift, grad_mean, grad_var)
    if x.numel():
        options = {**view.tile, "slope": slope, "ACT": CODES[activation]}
        args = (view.like(g), view.x, dx, *cells, strides, *view.sizes)
        launch(cell_grad_input, view.programs, *args, warps=view.warps, **options, **limited())
    return dx

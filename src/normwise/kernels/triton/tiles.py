"""What all kernels share: tiles of R rows and B elements, and the loops over them.

A *row* is what a program keeps one set of values for: a cell x[n, c], or joined, a channel of all samples. Contiguous
and channels-last tensors differ in the steps between elements only, and in the shape of the tiles that are read well.
Offsets are of 64 bits. Sums are about a value of the data, and means are held as two numbers, ``hi + lo``: one float32
would lose the digits of a large mean.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activated(z, slope: tl.constexpr, ACT: tl.constexpr):
    """The activation. NaN stays NaN."""
    if ACT == 1:
        z = tl.where(z < 0, 0.0, z)
    elif ACT == 2:
        z = tl.where(z > 0, z, z * slope)
    elif ACT == 3:
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def through(g, z, slope: tl.constexpr, ACT: tl.constexpr):
    """The gradient in front of the activation."""
    if ACT == 1:
        g = tl.where(z > 0, g, 0.0)
    elif ACT == 2:
        g = tl.where(z > 0, g, g * slope)
    elif ACT == 3:
        s = tl.sigmoid(z)
        g = g * (s + z * s * (1 - s))
    return g


@triton.jit
def two_sum(a, b):
    """``a + b`` as the nearest number and what rounding took."""
    hi = a + b
    of_b = hi - a
    return hi, (a - (hi - of_b)) + (b - of_b)


@triton.jit
def halves(t, ACC: tl.constexpr):
    """A float64 mean as two numbers of the accumulation type."""
    hi = t.to(ACC)
    return hi, (t - hi.to(tl.float64)).to(ACC)


@triton.jit
def rows_of(block, N, C, M, COLUMNS: tl.constexpr, JOINED: tl.constexpr, R: tl.constexpr):
    """Of a block of rows: sample, channel, whether there is such a row, and where its first element lies."""
    i = tl.arange(0, R)
    if COLUMNS:
        blocks = tl.cdiv(C, R)
        c = (block % blocks) * R + i
        n = (block // blocks).to(tl.int64) + c.to(tl.int64) * 0
        return n, c, c < C, n * M * C + c
    elif JOINED:
        c = block * R + i
        return c.to(tl.int64) * 0, c, c < C, c.to(tl.int64) * M
    else:
        row = block.to(tl.int64) * R + i
        return row // C, (row % C).to(tl.int32), row < N * C, row * M


@triton.jit
def piece_of(pid, tiles, S, T):
    """The piece of its rows that a program works on: its number, its first tile, and the one after its last."""
    s = pid % S
    begin = s * T
    return s, begin, tl.minimum(begin + T, tiles)


@triton.jit
def store_two(ptr, one, two, s, S, rows, row, live):
    """Store two numbers of a piece of each row: (2, S, rows)."""
    to = ptr + s.to(tl.int64) * rows + row
    tl.store(to, one, live)
    tl.store(to + tl.cast(S, tl.int64) * rows, two, live)


@triton.jit
def tile_at(t, first, live, C, M, COLUMNS: tl.constexpr, B: tl.constexpr):
    """The offsets of tile ``t`` of some rows, and which of them are elements."""
    blocks = tl.cdiv(M, B)
    m = (t % blocks) * B + tl.arange(0, B)
    step = m.to(tl.int64)
    if COLUMNS:
        step = step * C
    start = first + (t // blocks).to(tl.int64) * M * C
    return start[:, None] + step[None, :], live[:, None] & (m < M)[None, :]


@triton.jit
def elements_before(t, M, B: tl.constexpr):
    """How many elements of a row lie before tile ``t``."""
    blocks = tl.cdiv(M, B)
    return (t // blocks).to(tl.int64) * M + tl.minimum((t % blocks) * B, M)


@triton.jit
def moments_of(x_ptr, begin, end, first, live, C, M, COLUMNS: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr):
    """Mean, as two numbers, and variance of some tiles of each row, about the mean of the first of them."""
    at, real = tile_at(begin, first, live, C, M, COLUMNS, B)
    x = tl.load(x_ptr + at, real, 0.0).to(ACC)
    about = tl.sum(tl.where((tl.arange(0, B) == 0)[None, :], x, 0.0), 1)
    count = (elements_before(begin + 1, M, B) - elements_before(begin, M, B)).to(ACC)
    about += tl.sum(tl.where(real, x - about[:, None], 0.0), 1) / count
    d = tl.where(real, x - about[:, None], 0.0)
    sums, squares = d, d * d
    for t in range(begin + 1, end):
        at, real = tile_at(t, first, live, C, M, COLUMNS, B)
        d = tl.where(real, tl.load(x_ptr + at, real, 0.0).to(ACC) - about[:, None], 0.0)
        sums += d
        squares += d * d
    count = (elements_before(end, M, B) - elements_before(begin, M, B)).to(ACC)
    off = tl.sum(sums, 1) / count
    var = tl.sum(squares, 1) / count - off * off
    hi, lo = two_sum(about, off)
    return hi, lo, tl.where(var < 0, 0.0, var)


@triton.jit
def apply_tiles(
    x_ptr, y_ptr, begin, end, first, live, hi, lo, scale, shift, C, M,
    slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write ``act((x − center) · scale + shift)``."""
    shift -= lo * scale  # as good as to subtract it from each x − hi: it is less than what rounding takes of hi
    for t in range(begin, end):
        at, real = tile_at(t, first, live, C, M, COLUMNS, B)
        x = tl.load(x_ptr + at, real, 0.0).to(ACC)
        z = (x - hi[:, None]) * scale[:, None] + shift[:, None]
        tl.store(y_ptr + at, activated(z, slope, ACT).to(y_ptr.dtype.element_ty), real)


@triton.jit
def sums_of(
    g_ptr, x_ptr, begin, end, first, live, about, about_lo, hi, lo, scale, shift, C, M,
    slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """S1 = Σ g and S2 = Σ g · (x − about) of each row, ``g`` taken back through the activation."""
    shift -= lo * scale
    ones, twos = tl.zeros((R, B), ACC), tl.zeros((R, B), ACC)
    for t in range(begin, end):
        at, real = tile_at(t, first, live, C, M, COLUMNS, B)
        x = tl.load(x_ptr + at, real, 0.0).to(ACC)
        g = tl.load(g_ptr + at, real, 0.0).to(ACC)
        if ACT:
            g = through(g, (x - hi[:, None]) * scale[:, None] + shift[:, None], slope, ACT)
        ones += tl.where(real, g, 0.0)
        twos += tl.where(real, g * (x - about[:, None]), 0.0)
    one = tl.sum(ones, 1)
    return one, tl.sum(twos, 1) - about_lo * one


@triton.jit
def gradient_tiles(
    g_ptr, x_ptr, dx_ptr, begin, end, first, live, about, about_lo, hi, lo, scale, shift, tilt, offset, C, M,
    slope: tl.constexpr, ACT: tl.constexpr, FLAT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """Write ``scale · g + tilt · (x − about) + offset``, or if FLAT ``scale · g``."""
    shift -= lo * scale
    offset -= tilt * about_lo
    for t in range(begin, end):
        at, real = tile_at(t, first, live, C, M, COLUMNS, B)
        g = tl.load(g_ptr + at, real, 0.0).to(ACC)
        if ACT or not FLAT:
            x = tl.load(x_ptr + at, real, 0.0).to(ACC)
            if ACT:
                g = through(g, (x - hi[:, None]) * scale[:, None] + shift[:, None], slope, ACT)
            dx = scale[:, None] * g
            if not FLAT:
                dx += tilt[:, None] * (x - about[:, None]) + offset[:, None]
        else:
            dx = scale[:, None] * g
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), real)


@triton.jit
def parameter(ptr, n, c, live, per_sample, otherwise: tl.constexpr, ACC: tl.constexpr):
    """The values of weight or bias of some rows; ``per_sample`` is C where they differ between samples, else 0."""
    if ptr is None:
        return tl.full(c.shape, otherwise, ACC)
    else:
        return tl.load(ptr + n * per_sample + c, live, 0.0).to(ACC)


@triton.jit
def parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC: tl.constexpr):
    """Weight and bias of some rows."""
    weight = parameter(w_ptr, n, c, live, per_sample, 1.0, ACC)
    return weight, parameter(b_ptr, n, c, live, per_sample, 0.0, ACC)


@triton.jit
def standardized(hi, lo, var, eps: tl.constexpr):
    """Center and reciprocal of the deviation. Where the variance overflowed both are 0: nothing is left of ``x``."""
    rstd = 1.0 / tl.sqrt(var + eps)
    return tl.where(rstd == 0, 0.0, hi), tl.where(rstd == 0, 0.0, lo), rstd


@triton.jit
def mapped(hi, lo, var, w_ptr, b_ptr, n, c, live, per_sample, eps: tl.constexpr, ACC: tl.constexpr):
    """What is made of the moments of some rows: center, reciprocal of the deviation, scale and shift."""
    hi, lo, rstd = standardized(hi, lo, var, eps)
    weight, bias = parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC)
    return hi, lo, rstd, rstd * weight, bias


@triton.jit
def is_finite(t):
    """Whether numbers are finite: of others the difference is NaN."""
    return (t - t) == 0


@triton.jit
def moved(ptr, c, live, batch, momentum, ACC: tl.constexpr):
    """Running averages moved towards a batch, in the type in which they are kept."""
    old = tl.load(ptr + c, live, 0.0).to(ACC)
    return (old + tl.cast(momentum, ACC) * (batch - old)).to(ptr.dtype.element_ty)


@triton.jit
def count(ptr, one):
    """Add to a counter, if there is one."""
    if ptr is not None:
        tl.store(ptr, tl.load(ptr) + one)

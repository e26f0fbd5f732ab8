"""Instance, group and layer norm in one launch: a program holds whole groups, on chip where they fit.

A tile has R rows of channels, of R / K2 groups, and B elements. A group that is larger than a tile is read again, from
the second-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normwise.kernels.reference import accumulation_dtype
from normwise.kernels.triton.launching import CHANNELS, View, launch, limited, power
from normwise.kernels.triton.tiles import activated, halves, parameters, standardized, through, two_sum

# The most elements that a program of 8 warps holds without spilling: 32 a thread forward, 16 each of two backward.
HELD, HELD_BACKWARD = 8192, 4096
# Elements of a tile of what is read again, 8 a thread: their sums are held beside them. And the largest group for which
# that is worth it: half a megabyte of float32, of which a second-level cache of 50 MB holds a hundred.
LOOPED, LARGEST = 2048, 131072
# Channels next to each other that are read without waste: 32 bytes or more.
LINE = 16
# With fewer programs most of a large device would be idle, unless there is little to do.
FEWEST = 128


@triton.jit
def sums_by_group(t, K2: tl.constexpr, R: tl.constexpr):
    """Sums over the rows of each group, given back for every row."""
    groups = tl.sum(tl.reshape(t, (R // K2, K2)), 1)
    return tl.reshape(tl.broadcast_to(groups[:, None], (R // K2, K2)), (R,))


@triton.jit
def group_rows(pid, part, G, K, M, COLUMNS: tl.constexpr, EXACT: tl.constexpr, K2: tl.constexpr, R: tl.constexpr):
    """Of a program's rows: sample, group, channel, whether there is such a row, where it and its group begin."""
    i = tl.arange(0, R)
    blocks = tl.cdiv(G, R // K2)
    n = (pid // blocks).to(tl.int64)
    g = (pid % blocks) * (R // K2) + i // K2
    k = part * K2 + i % K2
    c = g * K + k
    live = (g < G) & (k < K)
    if EXACT:
        # The same where K is K2, and the compiler sees that channels are neighbours.
        c = (pid % blocks) * R + i
        live = c < G * K
    start = n * M * G * K
    if COLUMNS:
        return n, g, c, live, start + c, start + g * K
    else:
        return n, g, c, live, start + c.to(tl.int64) * M, start + g.to(tl.int64) * K * M


@triton.jit
def group_tile(m0, first, live, C, M, COLUMNS: tl.constexpr, B: tl.constexpr):
    """The offsets of a tile that begins at element ``m0`` of each row, and which of them are elements."""
    m = m0 + tl.arange(0, B)
    step = m.to(tl.int64)
    if COLUMNS:
        step = step * C
    return first[:, None] + step[None, :], live[:, None] & (m < M)[None, :]


@triton.jit
def sample_forward(
    x_ptr, y_ptr, moments_ptr, w_ptr, b_ptr, N, G, K, M, per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    HELD: tl.constexpr, EXACT: tl.constexpr, K2: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Normalize, and store the moments: (2, N, G) in float64."""
    pid = tl.program_id(0)
    C = G * K
    n, g, c, live, first, group = group_rows(pid, 0, G, K, M, COLUMNS, EXACT, K2, R)
    elements = tl.cast(K, ACC) * tl.cast(M, ACC)
    about = tl.load(x_ptr + group, g < G, 0.0).to(ACC)
    at, real = group_tile(0, first, live, C, M, COLUMNS, B)
    x = tl.load(x_ptr + at, real, 0.0).to(ACC)
    known = tl.cast(tl.minimum(K, K2), ACC) * tl.cast(tl.minimum(M, B), ACC)
    about += sums_by_group(tl.sum(tl.where(real, x - about[:, None], 0.0), 1), K2, R) / known
    if HELD:
        d = tl.where(real, x - about[:, None], 0.0)
        off = sums_by_group(tl.sum(d, 1), K2, R) / elements
        d = tl.where(real, d - off[:, None], 0.0)
        var = sums_by_group(tl.sum(d * d, 1), K2, R) / elements
    else:
        sums, squares = tl.zeros((R, B), ACC), tl.zeros((R, B), ACC)
        for part in range(0, tl.cdiv(K, K2)):
            n, g, c, live, first, _ = group_rows(pid, part, G, K, M, COLUMNS, EXACT, K2, R)
            for m0 in range(0, M, B):
                at, real = group_tile(m0, first, live, C, M, COLUMNS, B)
                x = tl.load(x_ptr + at, real, 0.0, eviction_policy="evict_last").to(ACC)
                d = tl.where(real, x - about[:, None], 0.0)
                sums += d
                squares += d * d
        off = sums_by_group(tl.sum(sums, 1), K2, R) / elements
        var = sums_by_group(tl.sum(squares, 1), K2, R) / elements - off * off
        var = tl.where(var < 0, 0.0, var)
    hi, lo = two_sum(about, off)
    leads = (g < G) & (tl.arange(0, R) % K2 == 0)
    to = moments_ptr + n * G + g
    tl.store(to, hi.to(tl.float64) + lo.to(tl.float64), leads)
    tl.store(to + tl.cast(N, tl.int64) * G, var.to(tl.float64), leads)
    hi, lo, rstd = standardized(hi, lo, var, eps)
    if HELD:
        weight, bias = parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC)
        z = (x - hi[:, None] - lo[:, None]) * (rstd * weight)[:, None] + bias[:, None]
        tl.store(y_ptr + at, activated(z, slope, ACT).to(y_ptr.dtype.element_ty), real)
    else:
        for part in range(0, tl.cdiv(K, K2)):
            n, g, c, live, first, _ = group_rows(pid, part, G, K, M, COLUMNS, EXACT, K2, R)
            weight, bias = parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC)
            for m0 in range(0, M, B):
                at, real = group_tile(m0, first, live, C, M, COLUMNS, B)
                x = tl.load(x_ptr + at, real, 0.0, eviction_policy="evict_first").to(ACC)
                z = (x - hi[:, None] - lo[:, None]) * (rstd * weight)[:, None] + bias[:, None]
                tl.store(y_ptr + at, activated(z, slope, ACT).to(y_ptr.dtype.element_ty), real)


@triton.jit
def standardized_tile(
    g_ptr, x_ptr, at, real, hi, lo, rstd, weight, bias, slope: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr
):
    """A tile of (x − mean) / deviation, and of the gradient in front of the activation."""
    x = tl.load(x_ptr + at, real, 0.0).to(ACC)
    g = tl.load(g_ptr + at, real, 0.0).to(ACC)
    normal = (x - hi[:, None] - lo[:, None]) * rstd[:, None]
    if ACT:
        g = tl.where(real, through(g, normal * weight[:, None] + bias[:, None], slope, ACT), 0.0)
    return tl.where(real, normal, 0.0), g


@triton.jit
def sample_backward(
    g_ptr, x_ptr, dx_ptr, moments_ptr, w_ptr, b_ptr, sums_ptr, N, G, K, M, per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
    HELD: tl.constexpr, EXACT: tl.constexpr, K2: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and of each cell's weight and bias: (2, N, C)."""
    pid = tl.program_id(0)
    C = G * K
    cells = tl.cast(N, tl.int64) * C
    n, g, c, live, first, _ = group_rows(pid, 0, G, K, M, COLUMNS, EXACT, K2, R)
    elements = tl.cast(K, ACC) * tl.cast(M, ACC)
    hi, lo = halves(tl.load(moments_ptr + n * G + g, g < G, 0.0), ACC)
    var = tl.load(moments_ptr + tl.cast(N, tl.int64) * G + n * G + g, g < G, 0.0).to(ACC)
    hi, lo, rstd = standardized(hi, lo, var, eps)
    if HELD:
        weight, bias = parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC)
        at, real = group_tile(0, first, live, C, M, COLUMNS, B)
        normal, of_z = standardized_tile(g_ptr, x_ptr, at, real, hi, lo, rstd, weight, bias, slope, ACT, ACC)
        one, two = tl.sum(of_z, 1), tl.sum(of_z * normal, 1)
        tl.store(sums_ptr + n * C + c, two, live)
        tl.store(sums_ptr + cells + n * C + c, one, live)
        of_mean = sums_by_group(tl.where(live, one * weight, 0.0), K2, R) / elements
        of_var = sums_by_group(tl.where(live, two * weight, 0.0), K2, R) / elements
        dx = rstd[:, None] * (of_z * weight[:, None] - of_mean[:, None] - normal * of_var[:, None])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), real)
    else:
        of_mean, of_var = tl.zeros((R,), ACC), tl.zeros((R,), ACC)
        for part in range(0, tl.cdiv(K, K2)):
            n, g, c, live, first, _ = group_rows(pid, part, G, K, M, COLUMNS, EXACT, K2, R)
            weight, bias = parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC)
            ones, twos = tl.zeros((R, B), ACC), tl.zeros((R, B), ACC)
            for m0 in range(0, M, B):
                at, real = group_tile(m0, first, live, C, M, COLUMNS, B)
                normal, of_z = standardized_tile(g_ptr, x_ptr, at, real, hi, lo, rstd, weight, bias, slope, ACT, ACC)
                ones += of_z
                twos += of_z * normal
            one, two = tl.sum(ones, 1), tl.sum(twos, 1)
            tl.store(sums_ptr + n * C + c, two, live)
            tl.store(sums_ptr + cells + n * C + c, one, live)
            of_mean += tl.where(live, one * weight, 0.0)
            of_var += tl.where(live, two * weight, 0.0)
        of_mean = sums_by_group(of_mean, K2, R) / elements
        of_var = sums_by_group(of_var, K2, R) / elements
        for part in range(0, tl.cdiv(K, K2)):
            n, g, c, live, first, _ = group_rows(pid, part, G, K, M, COLUMNS, EXACT, K2, R)
            weight, bias = parameters(w_ptr, b_ptr, n, c, live, per_sample, ACC)
            for m0 in range(0, M, B):
                at, real = group_tile(m0, first, live, C, M, COLUMNS, B)
                normal, of_z = standardized_tile(g_ptr, x_ptr, at, real, hi, lo, rstd, weight, bias, slope, ACT, ACC)
                dx = rstd[:, None] * (of_z * weight[:, None] - of_mean[:, None] - normal * of_var[:, None])
                tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), real)


@triton.jit
def sum_samples(from_ptr, weight_ptr, bias_ptr, N, C, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """Sum the cells' gradients of weight and bias, (2, N, C), over the samples."""
    c = tl.program_id(0) * R + tl.arange(0, R)
    live = c < C
    one, two = tl.zeros((B, R), ACC), tl.zeros((B, R), ACC)
    for start in range(0, N, B):
        n = start + tl.arange(0, B)
        at = from_ptr + n.to(tl.int64)[:, None] * C + c[None, :]
        real = (n < N)[:, None] & live[None, :]
        one += tl.load(at, real, 0.0)
        two += tl.load(at + tl.cast(N, tl.int64) * C, real, 0.0)
    tl.store(weight_ptr + c, tl.sum(one, 0).to(weight_ptr.dtype.element_ty), live)
    tl.store(bias_ptr + c, tl.sum(two, 0).to(bias_ptr.dtype.element_ty), live)


@dataclass(frozen=True)
class Grouping:
    """How groups are cut into tiles."""

    held: bool
    exact: bool
    K2: int
    R: int
    B: int
    programs: int

    @classmethod
    def of(cls, view: View, groups: int, held: int) -> Grouping | None:
        """The tiles of groups of channels; ``None`` where these had better be read twice, by several programs."""
        K, M = view.C // groups, view.M
        K2, B = power(K), power(M)
        # Of channels-last data a program takes so many groups that reads are without waste.
        few = min(power(groups), max(1, LINE // K2)) if view.columns else 1
        fits = K2 * B * few <= held
        if fits:
            few = max(few, min(power(groups), held // 4 // (K2 * B)))
        elif few * K * M > LARGEST:
            return None
        else:
            K2 = min(K2, CHANNELS if view.columns else max(1, LOOPED // B))
            B = min(B, LOOPED // (K2 * few))
        programs = view.N * -(-groups // few)
        if programs < FEWEST and few * K * M > 32 * LOOPED:
            return None
        return cls(fits, K2 == K, K2, K2 * few, B, programs)

    @property
    def options(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        limit = {} if self.held else limited()
        return {"HELD": self.held, "EXACT": self.exact, "K2": self.K2, "R": self.R, "B": self.B, **limit}

    @property
    def warps(self) -> int:
        """Groups of threads, of 8 elements each where 8 of them suffice."""
        return min(8, max(1, self.R * self.B // 256))


def per_sample(view: View, *parameters: Tensor | None) -> int:
    """C where parameters differ between samples, else 0; they are checked, too."""
    shapes = {tuple(t.shape) for t in parameters if t is not None}
    for shape in shapes - {(view.C,), (1, view.C), (view.N, view.C)}:
        raise RuntimeError(f"normwise: expected {view.C} values, one a channel, or as many a sample, got {shape}")
    return view.C if view.N > 1 and any(len(shape) == 2 and shape[0] == view.N for shape in shapes) else 0


def alike(view: View, samples: int, *parameters: Tensor | None) -> list[Tensor | None]:
    """The parameters in one piece, and all of them by sample if one is."""
    shape = (view.N, view.C) if samples else (view.C,)
    return [None if t is None else t.expand(shape if samples else t.shape).contiguous() for t in parameters]


def gradients_of(view: View, found: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias from those of each cell, (2, N, C): in one launch."""
    results = []
    for t, of_cells in zip(parameters, found, strict=True):
        whole = t is not None and t.ndim == 2 and t.shape[0] == view.N
        results.append(
            of_cells.to(t.dtype, copy=True) if t is not None and whole else empty_parameter(view.x, t, view.C)
        )
    rest = [t if t.ndim == 1 or t.shape[0] == 1 < view.N else found.new_empty(view.C) for t in results]
    if any(a is b for a, b in zip(rest, results, strict=True)):
        R = min(power(view.C), 32)
        B = min(power(view.N), 32)
        options = {"ACC": view.tile["ACC"], "R": R, "B": B}
        launch(sum_samples, -(-view.C // R), found, *rest, view.N, view.C, **options)
    weight, bias = results
    return weight, bias


def empty_parameter(x: Tensor, t: Tensor | None, size: int) -> Tensor:
    """A tensor for a parameter's gradient; one of some size where there is no parameter."""
    if t is None:
        return x.new_empty(size, dtype=accumulation_dtype(x.dtype))
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def sample_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, code: int, slope: float
) -> tuple[Tensor, Tensor] | None:
    """Normalize groups of channels; ``None`` where they do not fit."""
    view = View.of(x)
    grouping = Grouping.of(view, groups, HELD)
    if grouping is None:
        return None
    y, moments = view.empty_like(), x.new_empty((2, view.N, groups), dtype=torch.float64)
    samples = per_sample(view, weight, bias)
    sizes = (view.N, groups, view.C // groups, view.M, samples)
    options = {"eps": eps, "slope": slope, "ACT": code, "COLUMNS": view.columns, "ACC": view.tile["ACC"]}
    args = (view.x, y, moments, *alike(view, samples, weight, bias), *sizes)
    launch(sample_forward, grouping.programs, *args, warps=grouping.warps, **options, **grouping.options)
    return y, moments


def sample_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    code: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The gradients of x, weight and bias; ``None`` where groups do not fit."""
    view = View.of(x)
    grouping = Grouping.of(view, groups, HELD_BACKWARD)
    if grouping is None:
        return None
    dx, found = view.empty_like(), x.new_empty((2, view.N, view.C), dtype=view.dtype)
    samples = per_sample(view, weight, bias)
    sizes = (view.N, groups, view.C // groups, view.M, samples)
    options = {"eps": eps, "slope": slope, "ACT": code, "COLUMNS": view.columns, "ACC": view.tile["ACC"]}
    args = (view.like(g), view.x, dx, moments.contiguous(), *alike(view, samples, weight, bias), found, *sizes)
    launch(sample_backward, grouping.programs, *args, warps=grouping.warps, **options, **grouping.options)
    return dx, *gradients_of(view, found, weight, bias)

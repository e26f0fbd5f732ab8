"""Batch norm in two launches each way: sums of each channel's pieces, and what they give where x is read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normwise.kernels.triton.cells import pieces
from normwise.kernels.triton.launching import TILE, View, launch, power
from normwise.kernels.triton.sample import alike, empty_parameter, gradients_of, per_sample
from normwise.kernels.triton.tiles import (
    apply_tiles,
    count,
    elements_before,
    gradient_tiles,
    halves,
    is_finite,
    mapped,
    moved,
    piece_of,
    rows_of,
    store_two,
    sums_of,
    two_sum,
)


@triton.jit
def pooled_pieces(
    pieces_ptr, row, live, rows, M, tiles, S, T, ACC: tl.constexpr, B: tl.constexpr, S2: tl.constexpr
):  # fmt: skip
    """Merge the pieces (3, S, rows) of some rows by the law of total variance, about the first piece's mean."""
    s = tl.arange(0, S2)
    real = live[:, None] & (s < S)[None, :]
    at = pieces_ptr + s.to(tl.int64)[None, :] * rows + row[:, None]
    plane = tl.cast(S, tl.int64) * rows
    hi, lo = tl.load(at, real, 0.0), tl.load(at + plane, real, 0.0)
    var = tl.load(at + 2 * plane, real, 0.0)
    last = tl.minimum((s + 1) * T, tiles)
    elements = elements_before(last, M, B) - elements_before(tl.minimum(s * T, tiles), M, B)
    share = (elements.to(ACC) / elements_before(tiles, M, B).to(ACC))[None, :]
    about = tl.load(pieces_ptr + row, live, 0.0)
    d = tl.where(real, (hi - about[:, None]) + lo, 0.0)
    off = tl.sum(d * share, 1)
    d -= off[:, None]
    hi, lo = two_sum(about, off)
    return hi, lo, tl.sum(tl.where(real, share * (var + d * d), 0.0), 1)


@triton.jit
def move_running(
    pieces_ptr, mean_ptr, var_ptr, skipped_ptr, tracked_ptr, momentum, N, C, M, rows, piece_M, tiles, S, T,
    ACC: tl.constexpr, B: tl.constexpr, S2: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Move running averages towards the batch; if ``skipped`` counts such batches, not towards one that is not finite.

    All channels decide that, so one program does it for all.
    """
    elements = tl.cast(N, tl.int64) * M
    unbiased = elements.to(ACC) / tl.maximum(elements - 1, 1).to(ACC)
    fine = tl.full((R,), 1, tl.int1)
    for start in range(0, C, R):
        c = start + tl.arange(0, R)
        live = c < C
        hi, lo, var = pooled_pieces(pieces_ptr, c, live, rows, piece_M, tiles, S, T, ACC, B, S2)
        mean = moved(mean_ptr, c, live, hi + lo, momentum, ACC).to(ACC)
        spread = moved(var_ptr, c, live, var * unbiased, momentum, ACC).to(ACC)
        fine = fine & (~live | (is_finite(var) & is_finite(mean) & is_finite(spread)))
    moves = tl.min(fine.to(tl.int32), 0)
    if skipped_ptr is None:
        moves = moves * 0 + 1
    for start in range(0, C, R):
        c = start + tl.arange(0, R)
        live = (c < C) & (moves == 1)
        hi, lo, var = pooled_pieces(pieces_ptr, c, live, rows, piece_M, tiles, S, T, ACC, B, S2)
        mean = moved(mean_ptr, c, live, hi + lo, momentum, ACC)
        spread = moved(var_ptr, c, live, var * unbiased, momentum, ACC)
        tl.store(mean_ptr + c, mean, live)
        tl.store(var_ptr + c, spread, live)
    count(skipped_ptr, 1 - moves)
    count(tracked_ptr, moves)


@triton.jit
def batch_apply(
    x_ptr, y_ptr, pieces_ptr, stored_mean_ptr, stored_var_ptr, moments_ptr, w_ptr, b_ptr, running_mean_ptr,
    running_var_ptr, skipped_ptr, tracked_ptr, momentum, N, C, M, tiles, S, T, per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, STORED: tl.constexpr, COLUMNS: tl.constexpr,
    JOINED: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr, S2: tl.constexpr,
):  # fmt: skip
    """Normalize by the moments of the pieces, or by stored ones; store the moments: (2, 1, C) in float64."""
    pid = tl.program_id(0)
    if running_mean_ptr is not None and pid == tl.num_programs(0) - 1:
        move_running(
            pieces_ptr, running_mean_ptr, running_var_ptr, skipped_ptr, tracked_ptr, momentum, N, C, M,
            C, M, tiles, S, T, ACC, B, S2, R,
        )  # fmt: skip
    else:
        s, begin, end = piece_of(pid, tiles, S, T)
        n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, JOINED, R)
        if STORED:
            hi, lo = halves(tl.load(stored_mean_ptr + c, live, 0.0).to(tl.float64), ACC)
            var = tl.load(stored_var_ptr + c, live, 1.0).to(ACC)
        else:
            hi, lo, var = pooled_pieces(pieces_ptr, c, live, C, M, tiles, S, T, ACC, B, S2)
        leads = live & (n == 0) & (s == 0)
        tl.store(moments_ptr + c, hi.to(tl.float64) + lo.to(tl.float64), leads)
        tl.store(moments_ptr + C + c, var.to(tl.float64), leads)
        hi, lo, _, scale, shift = mapped(hi, lo, var, w_ptr, b_ptr, n, c, live, per_sample, eps, ACC)
        apply_tiles(x_ptr, y_ptr, begin, end, first, live, hi, lo, scale, shift, C, M, slope, ACT, COLUMNS, ACC, B)


@triton.jit
def from_moments(
    moments_ptr, w_ptr, b_ptr, n, c, live, C, per_sample, eps: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Center, reciprocal of the deviation, scale and shift of some channels."""
    mean, mean_lo = halves(tl.load(moments_ptr + c, live, 0.0), ACC)
    var = tl.load(moments_ptr + C + c, live, 1.0).to(ACC)
    return mapped(mean, mean_lo, var, w_ptr, b_ptr, n, c, live, per_sample, eps, ACC)


@triton.jit
def batch_grad_sums(
    g_ptr, x_ptr, sums_ptr, moments_ptr, w_ptr, b_ptr, N, C, M, tiles, S, T, per_sample, rows,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, JOINED: tl.constexpr,
    ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias of each piece of a row: (2, S, rows)."""
    pid = tl.program_id(0)
    s, begin, end = piece_of(pid, tiles, S, T)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, JOINED, R)
    hi, lo, rstd, scale, shift = from_moments(moments_ptr, w_ptr, b_ptr, n, c, live, C, per_sample, eps, ACC)
    one, two = sums_of(
        g_ptr, x_ptr, begin, end, first, live, hi, lo, hi, lo, scale, shift, C, M, slope, ACT, COLUMNS, ACC, R, B
    )  # fmt: skip
    store_two(sums_ptr, tl.where(rstd == 0, 0.0, rstd * two), one, s, S, rows, n * C + c, live)


@triton.jit
def batch_grad_input(
    g_ptr, x_ptr, dx_ptr, sums_ptr, moments_ptr, w_ptr, b_ptr, of_weight_ptr, of_bias_ptr, N, C, M, tiles, S, T,
    per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, STORED: tl.constexpr, COLUMNS: tl.constexpr,
    JOINED: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr, S2: tl.constexpr,
):  # fmt: skip
    """The gradient of x; of joined rows those of weight and bias, too."""
    pid = tl.program_id(0)
    piece, begin, end = piece_of(pid, tiles, S, T)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, JOINED, R)
    hi, lo, rstd, scale, shift = from_moments(moments_ptr, w_ptr, b_ptr, n, c, live, C, per_sample, eps, ACC)
    tilt, offset = tl.zeros((R,), ACC), tl.zeros((R,), ACC)
    if of_weight_ptr is not None:
        s = tl.arange(0, S2)
        real = live[:, None] & (s < S)[None, :]
        at = sums_ptr + s.to(tl.int64)[None, :] * C + c[:, None]
        two = tl.sum(tl.load(at, real, 0.0), 1)
        one = tl.sum(tl.load(at + tl.cast(S, tl.int64) * C, real, 0.0), 1)
        leads = live & (piece == 0)
        tl.store(of_weight_ptr + c, two.to(of_weight_ptr.dtype.element_ty), leads)
        tl.store(of_bias_ptr + c, one.to(of_bias_ptr.dtype.element_ty), leads)
        if not STORED:
            elements = (tl.cast(N, tl.int64) * M).to(ACC)
            tilt = -scale * rstd * two / elements
            offset = -scale * one / elements
    gradient_tiles(
        g_ptr, x_ptr, dx_ptr, begin, end, first, live, hi, lo, hi, lo, scale, shift, tilt, offset, C, M,
        slope, ACT, STORED, COLUMNS, ACC, B,
    )  # fmt: skip


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    training: bool,
    running: Sequence[Any],
    momentum: float,
    code: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Normalize channels of all samples, by their own moments or stored ones; parameters of training are by channel."""
    view = View.of(x, joined=training)
    samples = per_sample(view, weight, bias)
    y, moments = view.empty_like(), x.new_empty((2, 1, view.C), dtype=torch.float64)
    found, stored = (pieces(view), (None, None)) if training else (None, running[:2])
    moves = running if training and running[0] is not None else (None,) * 4
    args = (
        view.x,
        y,
        found,
        *stored,
        moments,
        *alike(view, samples, weight, bias),
        *moves,
        momentum,
        *view.sizes,
        samples,
    )
    options = {"eps": eps, "slope": slope, "ACT": code, "STORED": not training, "JOINED": training, "S2": power(view.S)}
    programs = view.programs + (moves[0] is not None)
    launch(batch_apply, programs, *args, warps=merging_warps(view), **options, **view.tile)
    return y, moments


def merging_warps(view: View) -> int:
    """Groups of threads where pieces are merged: twice as many where a program merges 64 pieces of 64 channels."""
    return view.warps * (1 + (view.R * power(view.S) > TILE))


def batch_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    training: bool,
    of_parameters: bool,
    code: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    of_samples = per_sample(View.of(x), weight, bias)
    view = View.of(x, joined=not of_samples)
    g, dx, moments = view.like(g), view.empty_like(), moments.contiguous()
    parameters = alike(view, of_samples, weight, bias)
    options = {"eps": eps, "slope": slope, "ACT": code, "JOINED": view.joined, **view.tile}
    of_weight, of_bias = (empty_parameter(x, t, view.C) for t in (weight, bias))
    sums = None
    if training or of_parameters:
        sums = x.new_empty((2, view.S, view.rows), dtype=view.dtype)
        args = (g, view.x, sums, moments, *parameters, *view.sizes, of_samples, view.rows)
        launch(batch_grad_sums, view.programs, *args, warps=view.warps, **options)
    into = (of_weight, of_bias) if sums is not None and view.joined else (None, None)
    args = (g, view.x, dx, sums, moments, *parameters, *into, *view.sizes, of_samples)
    options |= {"STORED": not training, "S2": power(view.S)}
    launch(batch_grad_input, view.programs, *args, warps=merging_warps(view), **options)
    if sums is None:
        return dx, of_weight.zero_(), of_bias.zero_()
    if not view.joined:
        return dx, *gradients_of(view, sums.sum(1).view(2, view.N, view.C), weight, bias)
    return dx, of_weight, of_bias

"""Mixes of pools, and single pools that fit no program, in three launches, and four backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normwise.kernels.triton.batch import move_running
from normwise.kernels.triton.cells import pieces
from normwise.kernels.triton.launching import View, launch, limited
from normwise.kernels.triton.pools import (
    POOLS,
    about_of,
    cell_gradients,
    mixed,
    pool_gradients,
    pool_moments,
    pools_before,
    share_gradient,
)
from normwise.kernels.triton.sample import alike, empty_parameter, per_sample
from normwise.kernels.triton.tiles import (
    apply_tiles,
    gradient_tiles,
    mapped,
    piece_of,
    rows_of,
    store_two,
    sums_of,
)


@triton.jit
def map_of(
    pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, w_ptr, b_ptr, n, c, live, N, C, per_sample,
    eps: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr, LOGITS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Center, scale and shift of some cells by the mix."""
    hi, lo, var, _, _ = mixed(
        pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, n, c, live, N, C, K, FIRST, LOGITS, ACC
    )  # fmt: skip
    hi, lo, _, scale, shift = mapped(hi, lo, var, w_ptr, b_ptr, n, c, live, per_sample, eps, ACC)
    return hi, lo, scale, shift


@triton.jit
def mix_apply(
    x_ptr, y_ptr, pooled_ptr, w_ptr, b_ptr, mean_weight_ptr, var_weight_ptr, running_mean_ptr, running_var_ptr,
    skipped_ptr, tracked_ptr, momentum, groups, N, C, M, tiles, S, T, per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr,
    BATCH: tl.constexpr, LOGITS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """Normalize by the mix; the last program moves the running averages, if there are any."""
    pid = tl.program_id(0)
    if running_mean_ptr is not None and pid == tl.num_programs(0) - 1:
        batch = pooled_ptr + 3 * pools_before(groups, BATCH, N, C)
        move_running(
            batch, running_mean_ptr, running_var_ptr, skipped_ptr, tracked_ptr, momentum, N, C, M,
            C, 1, 1, 1, 1, ACC, 1, 1, 64,
        )  # fmt: skip
    else:
        n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, False, R)
        hi, lo, scale, shift = map_of(
            pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, w_ptr, b_ptr, n, c, live, N, C, per_sample,
            eps, K, FIRST, LOGITS, ACC,
        )  # fmt: skip
        _, begin, end = piece_of(pid, tiles, S, T)
        apply_tiles(x_ptr, y_ptr, begin, end, first, live, hi, lo, scale, shift, C, M, slope, ACT, COLUMNS, ACC, B)


@triton.jit
def mix_grad_sums(
    g_ptr, x_ptr, sums_ptr, pooled_ptr, w_ptr, b_ptr, mean_weight_ptr, var_weight_ptr, groups,
    N, C, M, tiles, S, T, per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr,
    LOGITS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """S1 = Σ g and S2 = Σ g · (x − about) of each piece of each cell: (2, S, N, C)."""
    pid = tl.program_id(0)
    s, begin, end = piece_of(pid, tiles, S, T)
    n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, False, R)
    hi, lo, scale, shift = map_of(
        pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, w_ptr, b_ptr, n, c, live, N, C, per_sample,
        eps, K, FIRST, LOGITS, ACC,
    )  # fmt: skip
    about, about_lo = about_of(pooled_ptr, groups, n, c, live, N, C)
    one, two = sums_of(
        g_ptr, x_ptr, begin, end, first, live, about, about_lo, hi, lo, scale, shift, C, M,
        slope, ACT, COLUMNS, ACC, R, B,
    )  # fmt: skip
    store_two(sums_ptr, one, two, s, S, tl.cast(N, tl.int64) * C, n * C + c, live)


@triton.jit
def mix_grad_input(
    g_ptr, x_ptr, dx_ptr, pooled_ptr, pool_sums_ptr, share_sums_ptr, w_ptr, b_ptr, mean_weight_ptr, var_weight_ptr,
    of_mean_weight_ptr, of_var_weight_ptr, share_programs, groups, N, C, M, tiles, S, T, per_sample,
    eps: tl.constexpr, slope: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr,
    LOGITS: tl.constexpr, STORED: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """The gradient of x; the last program has those of the shares, if any are learned."""
    pid = tl.program_id(0)
    learned: tl.constexpr = mean_weight_ptr is not None or var_weight_ptr is not None
    if learned and pid == tl.num_programs(0) - 1:
        if mean_weight_ptr is not None:
            share_gradient(
                share_sums_ptr, mean_weight_ptr, of_mean_weight_ptr, groups, N, C, K, FIRST, LOGITS, ACC
            )  # fmt: skip
        if var_weight_ptr is not None:
            share_gradient(
                share_sums_ptr + share_programs, var_weight_ptr, of_var_weight_ptr, groups, N, C, K, FIRST, LOGITS, ACC
            )  # fmt: skip
    else:
        n, c, live, first = rows_of(pid // S, N, C, M, COLUMNS, False, R)
        hi, lo, scale, shift = map_of(
            pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, w_ptr, b_ptr, n, c, live, N, C, per_sample,
            eps, K, FIRST, LOGITS, ACC,
        )  # fmt: skip
        about, about_lo = about_of(pooled_ptr, groups, n, c, live, N, C)
        of_mean, of_var = cell_gradients(
            pool_sums_ptr, pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, about, about_lo, n, c, live, N, C,
            K, FIRST, LOGITS, STORED, ACC,
        )  # fmt: skip
        tilt = 2 * of_var / tl.cast(M, ACC)
        # Where the variance overflowed its gradient is 0, and the deviation may have overflowed, too.
        about, about_lo = tl.where(tilt == 0, 0.0, about), tl.where(tilt == 0, 0.0, about_lo)
        _, begin, end = piece_of(pid, tiles, S, T)
        gradient_tiles(
            g_ptr, x_ptr, dx_ptr, begin, end, first, live, about, about_lo, hi, lo, scale, shift, tilt,
            of_mean / tl.cast(M, ACC), C, M, slope, ACT, False, COLUMNS, ACC, B,
        )  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """Members of a mix among the pools that are taken: ``pools``, about the first of which gradients are summed."""

    pools: tuple[int, ...]
    members: int

    @classmethod
    def of(cls, view: View, groups: Sequence[int], one_pool: bool = False) -> Mix:
        """The pools of some members; ``one_pool`` says that its moments are all that is kept."""
        if len(groups) > 4 or len({*groups}) < len(groups) or any(G and view.C % G for G in groups):
            raise RuntimeError(f"normwise: {view.C} channels cannot be mixed over the groups {list(groups)}")
        own = one_pool or (groups[0] == view.C)
        return cls(tuple(groups) if own else (view.C, *groups), len(groups))

    @property
    def first(self) -> int:
        """The place of the first member among the pools."""
        return len(self.pools) - self.members

    @property
    def options(self) -> dict[str, int]:
        """What kernels are compiled for."""
        return {"K": self.members, "FIRST": self.first}

    def programs(self, view: View, pools: Sequence[int]) -> int:
        """Of the light kernels, one a few pools."""
        each = POOLS.value
        return sum(-(-(view.N * G if G else view.C) // each) for G in pools)

    def pooled(
        self, view: View, found: Tensor | None, saved: Tensor | None, moments: Tensor | None, population: Sequence[Any]
    ) -> Tensor:
        """Pool what was found in pieces, or the saved moments of the first pool."""
        result = view.x.new_empty(3 * sum(view.N * G if G else view.C for G in self.pools), dtype=view.dtype)
        # What was saved of one pool within a sample is all that there is: its groups stand for cells.
        channels = view.C if saved is None else self.pools[0]
        sizes = (view.N, channels, view.M, view.tiles, view.S if saved is None else 1, view.T)
        options = {"LISTS": len(self.pools), "ACC": view.tile["ACC"], "B": view.B}
        args = (found, saved, result, moments, *population, self.pools, *sizes)
        launch(pool_moments, self.programs(view, self.pools), *args, **options, **limited())
        return result


def mix_norm(
    x: Tensor,
    groups: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Sequence[Any],
    running: Sequence[Any],
    momentum: float,
    code: int,
    slope: float,
    one_pool: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalize by a mix of pools, or by ``one_pool`` within a sample."""
    view = View.of(x)
    mix = Mix.of(view, groups, one_pool)
    samples = per_sample(view, weight, bias)
    y, moments = view.empty_like(), x.new_empty((2, view.N, mix.pools[0]), dtype=torch.float64)
    pooled = mix.pooled(view, pieces(view), None, moments, population)
    moves = running if running[0] is not None and 0 in groups else (None,) * 4
    learned = (*alike(view, samples, weight, bias), *of_members(mean_weight, var_weight, len(groups)))
    args = (view.x, y, pooled, *learned, *moves, momentum, mix.pools, *view.sizes, samples)
    options = {"eps": eps, "slope": slope, "ACT": code, "LOGITS": logits, **mix.options, **view.tile}
    options["BATCH"] = mix.pools.index(0) if 0 in mix.pools else 0
    launch(mix_apply, view.programs + (moves[0] is not None), *args, warps=view.warps, **options)
    return y, moments


def mix_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    groups: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Sequence[Any],
    code: int,
    slope: float,
    one_pool: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and of all parameters."""
    view = View.of(x)
    mix = Mix.of(view, groups, one_pool)
    g, dx = view.like(g), view.empty_like()
    samples = per_sample(view, weight, bias)
    learned = (*alike(view, samples, weight, bias), *of_members(mean_weight, var_weight, len(groups)))
    pooled = mix.pooled(view, None, moments.contiguous(), None, population)
    options = {"eps": eps, "LOGITS": logits, "ACC": view.tile["ACC"], **mix.options}
    heavy = {**options, "slope": slope, "ACT": code, **view.tile}
    sums = x.new_empty((2, view.S, view.N, view.C), dtype=view.dtype)
    args = (g, view.x, sums, pooled, *learned, mix.pools, *view.sizes, samples)
    launch(mix_grad_sums, view.programs, *args, warps=view.warps, **heavy, **limited())

    lists = mix.pools if 0 in mix.pools else (*mix.pools, 0)
    programs = mix.programs(view, lists)
    pool_sums = x.new_empty(2 * sum(view.N * G if G else view.C for G in mix.pools), dtype=view.dtype)
    share_sums = x.new_empty((2, programs), dtype=view.dtype)
    cells = x.new_empty((2, view.N, view.C), dtype=view.dtype) if samples else None
    results = [empty_parameter(x, None if t is None or whole(view, t) else t, view.C) for t in (weight, bias)]
    sizes = (view.N, view.C, view.S, samples)
    args = (sums, pooled, *learned, lists, pool_sums, share_sums, cells, *results, *sizes)
    launch(pool_gradients, programs, *args, LISTS=len(lists), **options)

    of_shares = [
        x.new_zeros(len(groups), dtype=view.dtype if t is None else t.dtype) for t in (mean_weight, var_weight)
    ]
    args = (
        g,
        view.x,
        dx,
        pooled,
        pool_sums,
        share_sums,
        *learned,
        *of_shares,
        programs,
        mix.pools,
        *view.sizes,
        samples,
    )
    extra = mean_weight is not None or var_weight is not None
    heavy["STORED"] = population[0] is not None
    launch(mix_grad_input, view.programs + extra, *args, warps=view.warps, **heavy)
    if cells is not None:
        results = [
            c.to(t.dtype, copy=True) if t is not None and whole(view, t) else r
            for t, c, r in zip((weight, bias), cells, results, strict=True)
        ]
    return dx, results[0], results[1], of_shares[0], of_shares[1]


def whole(view: View, t: Tensor) -> bool:
    """Whether a parameter has values for each of several samples."""
    return t.ndim == 2 and t.shape[0] == view.N > 1


def of_members(*weights: Tensor | int | None) -> list[Tensor | None]:
    """A mix's weights, checked and in one piece."""
    *tensors, members = weights
    for t in tensors:
        if isinstance(t, Tensor) and t.numel() != members:
            raise RuntimeError(f"normwise: expected {members} weights of a mix, got {t.numel()}")
    return [t.contiguous() if isinstance(t, Tensor) else None for t in tensors]

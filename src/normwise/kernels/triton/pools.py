"""The light work of a mix, on what is known of the cells: pools of moments, their mix, and the gradients of both.

``groups`` lists pools: numbers of groups within a sample, or 0 for the pool over samples. The first is the pool about
whose means gradients are summed: the cells themselves, or the one pool that there is. A mix has K members, of which
member k is pool ``k + FIRST``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normwise.kernels.triton.tiles import elements_before, halves, is_finite, parameter, two_sum

# Pools and cells of a tile of the light kernels.
POOLS, CELLS = tl.constexpr(8), tl.constexpr(64)


@triton.jit
def pools_in(G, N, C):
    """How many pools there are, and how many cells each has."""
    G = tl.cast(G, tl.int32)
    some = tl.maximum(G, 1)
    return tl.where(G == 0, C, N * some), tl.where(G == 0, N, C // some)


@triton.jit
def pool_with(G, C, n, c):
    """Which pool a cell is in."""
    G = tl.cast(G, tl.int32)
    return tl.where(G == 0, c, n * G + c // (C // tl.maximum(G, 1)))


@triton.jit
def pools_before(groups, j: tl.constexpr, N, C):
    """How many pools are listed before the j-th list."""
    before = tl.cast(0, tl.int64)
    for i in tl.static_range(j):
        before += pools_in(groups[i], N, C)[0]
    return before


@triton.jit
def share_of(ptr, k: tl.constexpr, K: tl.constexpr, LOGITS: tl.constexpr, ACC: tl.constexpr):
    """A member's share: equal ones, those given, or the softmax of those given."""
    if ptr is None:
        return tl.full((), 1.0 / K, ACC)
    else:
        i = tl.arange(0, 4)
        w = tl.load(ptr + i, i < K, float("-inf")).to(ACC)
        if LOGITS:
            w = tl.exp(w - tl.max(w, 0))
            w = w / tl.sum(w, 0)
        return tl.sum(tl.where(i == k, w, 0.0), 0)


@triton.jit
def mixed(
    pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, n, c, live, N, C,
    K: tl.constexpr, FIRST: tl.constexpr, LOGITS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The mixed mean, as two numbers, and variance of some cells, and the first member's mean and variance."""
    base = tl.zeros(c.shape, ACC)
    delta, var, first_var = base, base, base
    for k in tl.static_range(K):
        pools = pools_in(groups[k + FIRST], N, C)[0]
        at = pooled_ptr + 3 * pools_before(groups, k + FIRST, N, C) + pool_with(groups[k + FIRST], C, n, c)
        hi, lo = tl.load(at, live, 0.0), tl.load(at + pools, live, 0.0)
        member_var = tl.load(at + 2 * pools, live, 0.0)
        if k == 0:
            base, first_var = hi, tl.where(is_finite(member_var), member_var, 0.0)
        a, b = share_of(mean_weight_ptr, k, K, LOGITS, ACC), share_of(var_weight_ptr, k, K, LOGITS, ACC)
        # A member without a share has none in what overflowed either.
        delta += tl.where(a == 0, 0.0, a * ((hi - base) + lo))
        var += tl.where(b == 0, 0.0, b * member_var)
    hi, lo = two_sum(base, delta)
    return hi, lo, var, base, first_var


@triton.jit
def about_of(pooled_ptr, groups, n, c, live, N, C):
    """The means, as two numbers, about which gradients are summed."""
    at = pooled_ptr + pool_with(groups[0], C, n, c)
    return tl.load(at, live, 0.0), tl.load(at + pools_in(groups[0], N, C)[0], live, 0.0)


@triton.jit
def chosen_pools(pid, groups, N, C, LISTS: tl.constexpr):
    """Which list a program works on: its place, its G, pools listed before it, and the program's place in it."""
    which, G = tl.cast(0, tl.int32), tl.cast(groups[0], tl.int32)
    before, start, block = tl.cast(0, tl.int64), tl.cast(0, tl.int32), tl.cast(pid, tl.int32)
    listed = before
    for j in tl.static_range(LISTS):
        pools = pools_in(groups[j], N, C)[0]
        here = pid >= start
        which = tl.where(here, j, which)
        G = tl.where(here, tl.cast(groups[j], tl.int32), G)
        before = tl.where(here, listed, before)
        block = tl.where(here, pid - start, block)
        start += tl.cdiv(pools, POOLS)
        listed += pools
    return which, G, before, block


@triton.jit
def pool_moments(
    pieces_ptr, saved_ptr, pooled_ptr, moments_ptr, population_mean_ptr, population_var_ptr, groups,
    N, C, M, tiles, S, T, LISTS: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pool the cells' moments, given in pieces or as they were saved, by the law of total variance."""
    which, G, before, block = chosen_pools(tl.program_id(0), groups, N, C, LISTS)
    pools, size = pools_in(G, N, C)
    p = block * POOLS + tl.arange(0, POOLS)
    live = p < pools
    rows = tl.cast(N, tl.int64) * C
    plane = tl.cast(S, tl.int64) * rows
    first = tl.where(G == 0, p, p * size).to(tl.int64)
    step = tl.where(G == 0, C, 1)
    if saved_ptr is None:
        about = tl.load(pieces_ptr + first, live, 0.0)
        whole = elements_before(tiles, M, B).to(ACC)
    else:
        about = tl.load(saved_ptr + first, live, 0.0).to(ACC)
        whole = tl.full((), 1.0, ACC)
    sums, off = tl.zeros((POOLS, CELLS), ACC), tl.zeros((POOLS,), ACC)
    # Twice: the mean, and what varies about it.
    for turn in tl.static_range(2):
        sums = tl.zeros((POOLS, CELLS), ACC)
        for k0 in range(0, size, CELLS):
            k = k0 + tl.arange(0, CELLS)
            real = live[:, None] & (k < size)[None, :]
            at = first[:, None] + k.to(tl.int64)[None, :] * step
            for s in range(0, S):
                if saved_ptr is None:
                    from_ptr = pieces_ptr + s * rows + at
                    hi, lo = tl.load(from_ptr, real, 0.0), tl.load(from_ptr + plane, real, 0.0)
                    last = elements_before(tl.minimum((s + 1) * T, tiles), M, B)
                    share = (last - elements_before(s * T, M, B)).to(ACC) / whole
                else:
                    hi, lo = halves(tl.load(saved_ptr + at, real, 0.0), ACC)
                    share = whole
                d = (hi - about[:, None]) + lo
                if turn == 0:
                    sums += tl.where(real, share * d, 0.0)
                else:
                    d -= off[:, None]
                    if saved_ptr is None:
                        var = tl.load(pieces_ptr + 2 * plane + s * rows + at, real, 0.0)
                    else:
                        var = tl.load(saved_ptr + rows + at, real, 0.0).to(ACC)
                    sums += tl.where(real, share * (var + d * d), 0.0)
        if turn == 0:
            off = tl.sum(sums, 1) / size.to(ACC)
    var = tl.sum(sums, 1) / size.to(ACC)
    hi, lo = two_sum(about, off)
    if population_mean_ptr is not None:
        stored = live & (G == 0)
        mean, mean_lo = halves(tl.load(population_mean_ptr + p, stored, 0.0).to(tl.float64), ACC)
        hi, lo = tl.where(G == 0, mean, hi), tl.where(G == 0, mean_lo, lo)
        var = tl.where(G == 0, tl.load(population_var_ptr + p, stored, 0.0).to(ACC), var)
    to = pooled_ptr + 3 * before + p
    tl.store(to, hi, live)
    tl.store(to + pools, lo, live)
    tl.store(to + 2 * pools, var, live)
    if moments_ptr is not None:
        kept = live & (which == 0)
        tl.store(moments_ptr + p, hi.to(tl.float64) + lo.to(tl.float64), kept)
        tl.store(moments_ptr + pools + p, var.to(tl.float64), kept)


@triton.jit
def pool_gradients(
    sums_ptr, pooled_ptr, w_ptr, b_ptr, mean_weight_ptr, var_weight_ptr, groups, pool_sums_ptr, share_sums_ptr,
    cells_ptr, of_weight_ptr, of_bias_ptr, N, C, S, per_sample,
    K: tl.constexpr, FIRST: tl.constexpr, LISTS: tl.constexpr, LOGITS: tl.constexpr, ACC: tl.constexpr,
    eps: tl.constexpr,
):  # fmt: skip
    """Sum over each pool what the gradients of its mixed mean and variance are; weight's and bias's over samples.

    What a program has of a member's share is stored in ``share_sums``, (2, programs).
    """
    pid = tl.program_id(0)
    which, G, before, block = chosen_pools(pid, groups, N, C, LISTS)
    pools, size = pools_in(G, N, C)
    p = block * POOLS + tl.arange(0, POOLS)
    live = p < pools
    rows = tl.cast(N, tl.int64) * C
    of_mean, of_var = tl.zeros((POOLS, CELLS), ACC), tl.zeros((POOLS, CELLS), ACC)
    of_weight, of_bias = tl.zeros((POOLS, CELLS), ACC), tl.zeros((POOLS, CELLS), ACC)
    mean_share, var_share = tl.zeros((POOLS, CELLS), ACC), tl.zeros((POOLS, CELLS), ACC)
    # The list after the members' is there for weight and bias only.
    pooled = pooled_ptr + 3 * before + p
    member = live & (which < K + FIRST)
    hi, lo, var = (
        tl.load(pooled, member, 0.0),
        tl.load(pooled + pools, member, 0.0),
        tl.load(pooled + 2 * pools, member, 0.0),
    )
    for k0 in range(0, size, CELLS):
        k = k0 + tl.arange(0, CELLS)
        real = live[:, None] & (k < size)[None, :]
        cell = tl.where(G == 0, k.to(tl.int64)[None, :] * C + p[:, None], p.to(tl.int64)[:, None] * size + k[None, :])
        n, c = cell // C, (cell % C).to(tl.int32)
        one, two = tl.zeros((POOLS, CELLS), ACC), tl.zeros((POOLS, CELLS), ACC)
        for s in range(0, S):
            one += tl.load(sums_ptr + s * rows + cell, real, 0.0)
            two += tl.load(sums_ptr + (S + s) * rows + cell, real, 0.0)
        center, center_lo, spread, base, first_var = mixed(
            pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, n, c, real, N, C, K, FIRST, LOGITS, ACC
        )  # fmt: skip
        about, about_lo = about_of(pooled_ptr, groups, n, c, real, N, C)
        rstd = 1.0 / tl.sqrt(spread + eps)
        normal = rstd * (two + ((about - center) + (about_lo - center_lo)) * one)
        # Where the variance overflowed y does not depend on the weight.
        normal = tl.where(real & (rstd != 0), normal, 0.0)
        scale = rstd * parameter(w_ptr, n, c, real, per_sample, 1.0, ACC)
        grad_mean = tl.where(real, -scale * one, 0.0)
        grad_var = -0.5 * scale * rstd * normal
        of_mean += grad_mean
        of_var += grad_var
        of_weight += normal
        of_bias += one
        if mean_weight_ptr is not None:
            # Shares of a softmax sum to 1: about the first member's moments nothing is lost of large ones.
            mean = (hi[:, None] - base) + lo[:, None] if LOGITS else hi[:, None] + lo[:, None]
            mean_share += tl.where(grad_mean == 0, 0.0, grad_mean * mean)
        if var_weight_ptr is not None:
            more = var[:, None] - first_var if LOGITS else var[:, None] + first_var * 0
            var_share += tl.where(grad_var == 0, 0.0, grad_var * more)
        if cells_ptr is not None and which == 0:
            tl.store(cells_ptr + cell, normal, real)
            tl.store(cells_ptr + rows + cell, one, real)
    to = pool_sums_ptr + 2 * before + p
    tl.store(to, tl.sum(of_mean, 1), member)
    tl.store(to + pools, tl.sum(of_var, 1), member)
    channels = live & (G == 0)
    tl.store(of_weight_ptr + p, tl.sum(of_weight, 1).to(of_weight_ptr.dtype.element_ty), channels)
    tl.store(of_bias_ptr + p, tl.sum(of_bias, 1).to(of_bias_ptr.dtype.element_ty), channels)
    tl.store(share_sums_ptr + pid, tl.sum(tl.sum(mean_share, 1), 0))
    tl.store(share_sums_ptr + tl.num_programs(0) + pid, tl.sum(tl.sum(var_share, 1), 0))


@triton.jit
def share_gradient(
    share_sums_ptr, weight_ptr, to_ptr, groups, N, C,
    K: tl.constexpr, FIRST: tl.constexpr, LOGITS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of a mix's weights from what programs had of it."""
    i = tl.arange(0, 4)
    grad, shares = tl.zeros((4,), ACC), tl.zeros((4,), ACC)
    start = tl.cast(0, tl.int32)
    for j in tl.static_range(K + FIRST):
        programs = tl.cdiv(pools_in(groups[j], N, C)[0], POOLS)
        if j >= FIRST:
            sums = tl.zeros((128,), ACC)
            for begin in range(0, programs, 128):
                one = begin + tl.arange(0, 128)
                sums += tl.load(share_sums_ptr + start + one, one < programs, 0.0)
            grad = tl.where(i == j - FIRST, tl.sum(sums, 0), grad)
            shares = tl.where(i == j - FIRST, share_of(weight_ptr, j - FIRST, K, LOGITS, ACC), shares)
        start += programs
    if LOGITS:
        grad = shares * (grad - tl.sum(shares * grad, 0))
    tl.store(to_ptr + i, grad.to(to_ptr.dtype.element_ty), i < K)


@triton.jit
def cell_gradients(
    pool_sums_ptr, pooled_ptr, groups, mean_weight_ptr, var_weight_ptr, about, about_lo, n, c, live, N, C,
    K: tl.constexpr, FIRST: tl.constexpr, LOGITS: tl.constexpr, STORED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of the cells' means and variances: of P cells a pool, 1/P of the pool's, and through its spread."""
    of_mean, of_var = tl.zeros(c.shape, ACC), tl.zeros(c.shape, ACC)
    for k in tl.static_range(K):
        pools, size = pools_in(groups[k + FIRST], N, C)
        before = pools_before(groups, k + FIRST, N, C)
        p = pool_with(groups[k + FIRST], C, n, c)
        # A population that stands in the batch's place has no gradient.
        real = live & ((tl.cast(groups[k + FIRST], tl.int32) != 0) | (not STORED))
        at = pool_sums_ptr + 2 * before + p
        share = share_of(var_weight_ptr, k, K, LOGITS, ACC) / size.to(ACC)
        v = share * tl.load(at + pools, real, 0.0)
        hi, lo = (
            tl.load(pooled_ptr + 3 * before + p, live, 0.0),
            tl.load(pooled_ptr + 3 * before + pools + p, live, 0.0),
        )
        of_var += v
        share = share_of(mean_weight_ptr, k, K, LOGITS, ACC) / size.to(ACC)
        of_mean += share * tl.load(at, real, 0.0) + tl.where(v == 0, 0.0, 2 * v * ((about - hi) + (about_lo - lo)))
    return of_mean, of_var

"""Moment space: what is known of an input after one pass over it, and how that is pooled and mixed.

Pooling is by the law of total variance, Var = E[σ²] + Var[μ], never by E[x²] − E[x]², which cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Means and biased variances, each over ``elements`` values.

    ``mean`` and ``var`` broadcast to (N, C). ``elements`` is one number where all cells are of equal size,
    else a tensor that broadcasts to (N, C): cells of a padded sequence weigh as much as they hold.
    """

    mean: Tensor
    var: Tensor
    elements: int | Tensor = 1


class Affine(NamedTuple):
    """What a method makes of the moments: ``y = (x − center) · scale + shift``, each broadcastable to (N, C)."""

    center: Tensor
    scale: Tensor
    shift: Tensor


def pool(cells: Moments, dim: int) -> Moments:
    """Moments of the union of all cells along one axis, which stays with size 1.

    Formula: n = Σ nᵢ, μ = Σ (nᵢ/n) μᵢ, σ² = Σ (nᵢ/n) (σᵢ² + (μᵢ − μ)²).
    """
    mean, var, count = cells
    if not isinstance(count, Tensor):
        size = mean.shape[dim]
        if size == 0:
            empty = mean.sum(dim, keepdim=True)
            return Moments(empty, empty, 0)
        # About the first cell, so that equal means pool to exactly themselves: a constant input has variance 0. Halved,
        # and divided before they are summed, as differences and sums of large means could overflow.
        half = mean / 2
        first = half.narrow(dim, 0, 1)
        pooled = 2 * (first + ((half - first) / size).sum(dim, keepdim=True))
        return Moments(pooled, (var + (mean - pooled).square()).mean(dim, keepdim=True), count * size)
    count = count.expand_as(mean)
    total = count.sum(dim, keepdim=True)
    share = count.to(mean.dtype) / total.clamp_min(1).to(mean.dtype)
    pooled = (share * mean).sum(dim, keepdim=True)
    return Moments(pooled, (share * (var + (mean - pooled).square())).sum(dim, keepdim=True), total)


def pool_groups(cells: Moments, num_groups: int) -> Moments:
    """Moments over the channels of each group of a sample, given back for every channel."""
    N, C = cells.mean.shape
    if num_groups == 1:
        return pool(cells, 1)
    if num_groups == C:
        return cells

    def split(t: Tensor) -> Tensor:
        return t.expand(N, C).reshape(N * num_groups, C // num_groups)

    def join(t: Tensor) -> Tensor:
        return t.expand(-1, C // num_groups).reshape(N, C)

    mean, var, count = cells
    pooled = pool(Moments(split(mean), split(var), split(count) if isinstance(count, Tensor) else count), 1)
    count = join(pooled.elements) if isinstance(pooled.elements, Tensor) else pooled.elements
    return Moments(join(pooled.mean), join(pooled.var), count)


def mix(members: Sequence[Moments], mean_weights: Tensor, var_weights: Tensor) -> Moments:
    """Weighted means of means and of variances, as switchable normalization takes them.

    Formula: μ = Σₖ wₖ μₖ and σ² = Σₖ w′ₖ σ²ₖ. The spread *between* the members' means is left out on purpose: that is
    the paper's definition (arXiv 1806.10779, eq. 3), not a pool.
    """
    # About the first member, so that equal means mix to exactly themselves though rounded shares may not sum to 1.
    # Halved, as differences of large means could overflow.
    first = members[0].mean / 2
    mean = 2 * (first + sum(w * (m.mean / 2 - first) for w, m in zip(mean_weights.unbind(), members, strict=True)))
    var, overflowed = torch.zeros_like(first), torch.zeros_like(first, dtype=torch.bool)
    for w, m in zip(var_weights.unbind(), members, strict=True):
        # Apart from the sum: the product with a share of 0, or a gradient of 0, would be NaN.
        infinite = torch.isinf(m.var)
        var = var + w * torch.where(infinite, 0, m.var)
        overflowed = overflowed | (infinite & (w != 0))
    return Moments(mean, torch.where(overflowed, torch.inf, var), 1)


def sparsemax(logits: Tensor) -> Tensor:
    """Project onto the simplex (Martins & Astudillo 2016, arXiv 1602.02068): small shares are exactly 0.

    Formula: argmin ‖p − z‖ over p ≥ 0, Σ p = 1, which is pₖ = max(zₖ − τ, 0) with τ such that Σ p = 1.
    """
    # Counted from the largest, so that a large common offset costs no digits.
    z = logits - logits.detach().amax(-1, keepdim=True)
    ordered = z.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    ranks = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    support = (ordered * ranks > excess).sum(-1, keepdim=True)
    threshold = excess.gather(-1, support - 1) / support
    return (z - threshold).relu()


def sparsestmax(logits: Tensor, sparsity: float | Tensor) -> Tensor:
    """Project onto the simplex without a disc about its centre (Shao et al. 2019, arXiv 1903.03793).

    Formula: argmin ‖p − z‖ over p ≥ 0, Σ p = 1, ‖p − 1/K‖ ≥ r, with r = sparsity · √((K − 1)/K). A radius of 0 is
    :func:`sparsemax`, the full radius leaves only the corners: one share of 1. Equal logits have no direction in which
    to leave the centre and stay equal.
    """
    K = logits.shape[-1]
    squared_radius = torch.as_tensor(sparsity, dtype=logits.dtype, device=logits.device) ** 2 * ((K - 1) / K)
    p = sparsemax(logits)
    support = torch.ones_like(p)
    # Out of the disc; where that leaves the simplex, back onto the face that was crossed and out of the disc in it.
    for _ in range(K - 1):
        size = support.sum(-1, keepdim=True)
        # A few roundings too far, so that the full radius ends beyond the corner, at exact zeros.
        radius = (squared_radius - (1 / size - 1 / K)).clamp_min(0).sqrt() * (1 + 8 * torch.finfo(p.dtype).eps)
        offset = (p - 1 / size) * support
        distance = offset.square().sum(-1, keepdim=True)
        inside = (distance < radius.square()) & (distance > 0)
        stretch = radius * torch.where(inside, distance, 1).rsqrt()
        p = sparsemax(torch.where(inside, (1 / size + offset * stretch) * support + (support - 1), p))
        support = (p.detach() > 0).to(p.dtype)
    return p


def unbiased(m: Moments) -> Tensor:
    """The unbiased estimate of the variance, σ² · n / (n − 1); one element alone gives 0."""
    if not isinstance(m.elements, Tensor):
        return m.var * (m.elements / max(m.elements - 1, 1))
    elements = m.elements.to(m.var.dtype)
    return m.var * (elements / (elements - 1).clamp_min(1))


def readable(t: Tensor) -> bool:
    """Tell whether reading a number off a tensor costs nothing: neither a device nor a tracer has to be asked."""
    return (
        not torch.compiler.is_compiling()
        and type(t) is Tensor
        and t.is_cpu
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.jit.is_tracing()
        and not transforming()
    )


def transforming() -> bool:
    """Tell whether a ``torch.func`` transform is running: tensors have no values, and only arguments may change.

    Returns:
        Whether one is.

    Example:
        >>> transforming()
        False
    """
    # By type, not `is not None`: the compiler, which must follow this, never takes the stack's top for None.
    return isinstance(torch._C._functorch.peek_interpreter_stack(), torch._C._functorch.CInterpreter)


def may_move(running: Sequence[Tensor | None], batch: Sequence[Tensor | None]) -> bool:
    """Tell whether ``torch.func`` transforms, if any are running, let a batch move running averages in place.

    They have no side effects, so the averages must be arguments of every one of them; and where ``vmap`` runs over many
    batches there must be as many averages, as in an ensemble (``torch.func.stack_module_state``).
    """
    if not transforming():
        return True
    if torch.compiler.is_compiling():
        # The compiler follows no more than this: of gradients within a compiled ensemble averages stay.
        return all(t is None or torch._C._functorch.is_batchedtensor(t) for t in running)
    known, needed = ([_levels(t) for t in tensors if t is not None] for tensors in (running, batch))
    return all(
        interpreter.level() in own
        for interpreter in torch._C._functorch.get_interpreter_stack() or ()
        if interpreter.key() != torch._C._functorch.TransformType.Vmap or any(interpreter.level() in t for t in needed)
        for own in known
    )


def _levels(t: Tensor) -> set[int]:
    """The transforms that a tensor is wrapped for."""
    found = set()
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        found.add(torch._C._functorch.maybe_get_level(t))
        t = torch._C._functorch.get_unwrapped(t)
    return found


def countable(t: Tensor) -> bool:
    """Tell whether what a tensor says may be counted in another that no transform and no graph knows of."""
    if transforming() or torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or type(t).__torch_dispatch__ is Tensor.__torch_dispatch__


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    batch: Moments,
    momentum: float | Tensor,
    skipped: Tensor | None = None,
    tracked: Tensor | None = None,
) -> None:
    """Move the running averages towards a batch: ``running ← (1 − momentum) · running + momentum · batch``.

    As in torch, ``momentum`` is the weight of the *new* batch and the variance enters unbiased. Where the elements are
    counted by a tensor (padding, several processes), a statistic of fewer than two leaves the averages as they are.
    With ``skipped`` a batch whose moments are not all finite, or that would take an average beyond what its type holds,
    leaves them as they are and is counted there, without the host waiting for a device; ``tracked`` counts the others.
    """
    # In float32 at least, whatever the buffers' type: of float16 the largest number is 65504.
    dtype = torch.promote_types(running_var.dtype, torch.float32)
    if isinstance(batch.elements, Tensor):
        momentum = (batch.elements > 1).reshape(-1).to(dtype) * momentum
    new = [t.detach().reshape(-1).to(dtype) for t in (batch.mean, unbiased(batch))]
    # Expanded: a tensor without axes would be read for its number.
    weight = momentum.to(dtype).expand_as(new[0]) if isinstance(momentum, Tensor) else momentum
    averages = [running_mean, running_var]
    moved = [r.to(dtype).lerp(t, weight).to(r.dtype) for r, t in zip(averages, new, strict=True)]
    counts: int | Tensor = 1
    if skipped is not None:
        finite = torch.linalg.vector_norm(torch.stack(moved), torch.inf) < torch.inf  # NaN is not less
        if not readable(finite):
            counts = finite
            moved = [torch.where(finite, t, r) for r, t in zip(averages, moved, strict=True)]
            if countable(finite):
                skipped.add_(~finite)
        elif not finite.item():
            skipped.add_(1)
            return
    if tracked is not None:
        tracked.add_(counts)
    for average, value in zip(averages, moved, strict=True):
        average.copy_(value)

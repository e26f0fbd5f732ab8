"""The problem set on which native operators are tested, and the float64 formulas that say what must come out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.kernels import serving

# By kind, since a layout means nothing to what has no spatial axes, and no value to what has no elements.
SHAPES = {
    "spatial": [
        (2, 3, 5, 7),
        (2, 4, 9),
        (2, 3, 4, 5, 6),
        (2, 300, 3),
        (3, 5, 67, 67),
        # As wide as one or two pairs of registers, for each type and instruction set.
        *((2, channels, 3, 7) for channels in (8, 32, 64)),
    ],
    # Bundles of samples, pieces of bundles, vectors of several blocks.
    "flat": [(4, 6), (7, 36), (150, 48), (3, 2500)],
    "hardly any": [(1, 1, 1, 1), (0, 3, 4, 4), (3, 2, 0)],
}
if serving.INTERPRETED:
    # Of the kernels in Triton: one tile and several, of channels and of elements. Programs take milliseconds each.
    SHAPES["spatial"] = [(2, 3, 5, 7), (2, 4, 9), (2, 3, 4, 5, 6), (2, 66, 3), (2, 3, 47, 47), (2, 8, 3, 7)]
    SHAPES["flat"] = [(4, 6), (7, 36), (3, 70)]
TOLERANCE = {
    torch.float32: 3e-6,
    torch.float64: 1e-13,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}  # relative to the result's size
ACTIVATIONS = [None, "relu", "leaky_relu", "silu"]
SLOPE = 0.2


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def permuted(x: Tensor) -> Tensor:
    """Cells in one piece, their spatial axes the other way round."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if x.ndim > 3 else x.contiguous()


LAYOUTS = {"contiguous": Tensor.contiguous, "channels_last": channels_last, "permuted": permuted, "strided": strided}


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, mean: float = 0.5, std: float = 2.0
) -> list[Tensor]:
    """x and g of the given kind, then center, scale, shift, gmean, gvar of (N, C)."""
    torch.manual_seed(sum(shape))
    full = [LAYOUTS[layout]((mean + std * torch.randn(shape, dtype=torch.float64)).to(dtype)) for _ in range(2)]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return full + [torch.randn(shape[:2], dtype=acc) for _ in range(5)]


def wide(t: Tensor, x: Tensor) -> Tensor:
    return t.double().reshape(t.shape + (1,) * (x.ndim - 2))


def spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def elements(x: Tensor) -> int:
    return max(1, x[0, 0].numel()) if x.numel() else 1


def oracle_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double().flatten(2) if x.ndim > 2 else x.double()[..., None]
    count = max(1, x.shape[2])
    mean = x.sum(2) / count
    return mean, (x - mean[..., None]).square().sum(2) / count


def activate(z: Tensor, activation: str | None) -> Tensor:
    return {None: lambda z: z, "relu": F.relu, "leaky_relu": lambda z: F.leaky_relu(z, SLOPE), "silu": F.silu}[
        activation
    ](z)


def oracle_apply(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None) -> Tensor:
    return activate((x.double() - wide(center, x)) * wide(scale, x) + wide(shift, x), activation)


def masked_gradient(
    g: Tensor, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, activation: str | None
) -> Tensor:
    z = ((x.double() - wide(center, x)) * wide(scale, x) + wide(shift, x)).requires_grad_()
    return torch.autograd.grad(activate(z, activation), z, g.double())[0]


def oracle_group(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, activation: str | None) -> Tensor:
    cells = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(cells, 2, correction=0, keepdim=True)
    y = ((cells - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    if weight is not None:
        y = y * wide(weight.expand(x.shape[0], -1), x) + wide(bias.expand(x.shape[0], -1), x)
    return activate(y, activation)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, slack: float = 1.0) -> None:
    assert actual.shape == expected.shape
    if actual.numel():
        assert not actual.isnan().any()
        size = max(1.0, expected.abs().max().item())
        assert (actual.double() - expected).abs().max().item() <= TOLERANCE[dtype] * size * slack


def rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A result as the kernels round it: Triton's interpreter cuts float32 off where devices round to bfloat16."""
    if serving.INTERPRETED and dtype == torch.bfloat16:
        t = (t.float().view(torch.int32) & -(2**16)).view(torch.float32)
    return t.to(dtype)


def same_format(y: Tensor, x: Tensor, layout: str) -> None:
    assert y.dtype == x.dtype
    if layout == "strided":
        assert y.is_contiguous()
    elif x.numel():
        assert y.stride() == x.stride()


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value a factor, such that any two values of two factors meet in some row: far fewer than all rows."""
    sizes = [len(values) for values in factors]
    open_pairs = {
        ((i, a), (j, b))
        for i, j in combinations(range(len(sizes)), 2)
        for a in range(sizes[i])
        for b in range(sizes[j])
    }
    rows = []
    while open_pairs:
        row = _closing_many(open_pairs, sizes)
        open_pairs -= set(combinations(row.items(), 2))
        rows.append(tuple(values[row[i]] for i, values in enumerate(factors)))
    return rows


def _closing_many(open_pairs: set[tuple[Any, ...]], sizes: list[int]) -> dict[int, int]:
    """A row, as factor → number of its value: the first open pair and, one factor after the other, the most others."""
    row = dict(min(open_pairs))

    def closes(pick: tuple[int, int]) -> int:
        return sum(tuple(sorted([pick, other])) in open_pairs for other in row.items())

    for factor, size in enumerate(sizes):
        if factor not in row:
            row[factor] = max(((factor, value) for value in range(size)), key=closes)[1]
    return dict(sorted(row.items()))


def problems(whole: bool, **more: Sequence[Any]) -> list[tuple[Any, ...]]:
    """(shape, dtype, layout, *more): of each kind of shape, all of the grid or any two values together."""
    choose = (lambda *factors: [*product(*factors)]) if whole else pairwise
    return [
        row for shapes in SHAPES.values() for row in choose(shapes, [*TOLERANCE], [*LAYOUTS], *map(list, more.values()))
    ]


def on_every_problem(test: Callable[..., None] | None = None, **more: Sequence[Any]) -> Any:
    """Run a test on the problem set, crossed with factors of its own: ``@on_every_problem(activation=ACTIVATIONS)``.

    Any two values meet; with ``EVERY_PROBLEM=1`` in the environment (``make grid``) all of them do. With
    ``ONE_PROBLEM_IN=8`` it is one row in eight of these.
    """
    rows = problems(bool(os.environ.get("EVERY_PROBLEM")), **more)[:: int(os.environ.get("ONE_PROBLEM_IN", "1"))]
    names = ["-".join(str(value).removeprefix("torch.") for value in row) for row in rows]
    mark = pytest.mark.parametrize(("shape", "dtype", "layout", *more), rows, ids=names)
    return mark(test) if test else mark

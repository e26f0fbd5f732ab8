"""What a method's function draws on besides its inputs gets its gradient, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import normwise
from normwise.core.moments import Affine, Moments, pool
from normwise.methods import Context, Method, standardize


@dataclass(frozen=True, eq=False)
class Scaled(Method):
    """Over the batch, with a scale of its own."""

    tensor: Tensor
    pools = ("batch",)

    def affine(self, cells: Moments, given: Context) -> Affine:
        own = standardize(pool(cells, 0), given)
        return own._replace(scale=own.scale * self.tensor)


@dataclass(frozen=True, eq=False)
class Shifted(Method):
    """Within a sample, with a shift of its own."""

    tensor: Tensor
    pools = ("instance",)

    def affine(self, cells: Moments, given: Context) -> Affine:
        own = standardize(cells, given)
        return own._replace(shift=own.shift + self.tensor.square())


def centered(tensor: Tensor) -> Method:
    """A method whose class closes over a tensor."""

    class Centered(Method):
        pools = ("layer",)

        def affine(self, cells: Moments, given: Context) -> Affine:
            own = standardize(pool(cells, 1), given)
            return own._replace(center=own.center * tensor)

    return Centered()


@pytest.mark.parametrize("make", [Scaled, Shifted, centered])
@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("kind", ["parameter", "made of one"])
def test_what_is_closed_over_learns(make: Callable, of_input: bool, kind: str) -> None:
    parameter = nn.Parameter(torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64))
    weight = nn.Parameter(torch.full((3,), 1.25, dtype=torch.float64))
    x = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(of_input)

    def result(parameter: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        method = make(parameter if kind == "parameter" else 2 * parameter)
        return normwise.normalize(x, method, weight=weight, activation="silu")

    y = result(parameter, weight, x)
    y.pow(3).sum().backward()
    assert parameter.grad.abs().min() > 0
    assert weight.grad.abs().min() > 0
    leaves = (parameter, weight, x)
    assert torch.autograd.gradcheck(result, leaves)
    assert torch.autograd.gradgradcheck(result, leaves)
    with torch.no_grad():
        torch.testing.assert_close(result(*leaves), y)


def test_changing_it_before_the_backward_pass_is_an_error_as_elsewhere() -> None:
    learned = nn.Parameter(torch.ones(3))
    x = torch.randn(4, 3, 5, requires_grad=True)
    y = normwise.normalize(x, Scaled(learned))
    with torch.no_grad():
        learned.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_wants_no_gradient_leaves_the_fused_way_open() -> None:
    x = torch.randn(4, 3, 5, requires_grad=True)
    y = normwise.normalize(x, Scaled(torch.ones(3)))
    assert "Fused" in type(y.grad_fn).__name__

"""Layer norm over the last axes: torch's kernel under a graph of ours, in C++ and in Python."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.testing._internal.two_tensor import TwoTensor

from normwise.nn import LayerNorm
from normwise.nn.layernorm import layer_norm


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) for shape in ((3, 4, 5), (5,), (5,))]


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return layer_norm(x, (5,), weight, bias, 1e-5)


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,)], ids=str)
def test_three_orders_of_derivatives_are_those_of_the_formula(autograd: str, wanted: tuple[int, ...]) -> None:
    def orders(function) -> list[Tensor]:
        tensors = [t.requires_grad_(i in wanted) for i, t in enumerate(inputs())]
        leaves = [tensors[i] for i in wanted]
        y = function(*tensors)
        found, value = [y], y.pow(3).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            found += grads
            value = sum(g.pow(3).sum() for g in grads)
        return found

    torch.testing.assert_close(orders(ours), orders(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)], ids=str)
def test_torchs_bits_and_gradients(autograd: str, dtype: torch.dtype, given: tuple[bool, bool]) -> None:
    def run(function) -> list[Tensor]:
        x, *parameters = inputs(dtype)
        x.requires_grad_()
        parameters = [t.requires_grad_() if here else None for t, here in zip(parameters, given, strict=True)]
        y = function(x, *parameters)
        return [y, *torch.autograd.grad(y.pow(2).sum(), [t for t in (x, *parameters) if t is not None])]

    expected = run(lambda x, weight, bias: F.layer_norm(x, (5,), weight, bias, 1e-5))
    assert all(torch.equal(a, b) for a, b in zip(run(ours), expected, strict=True))


def test_other_kinds_of_tensors_meet_operators_that_they_know() -> None:
    x, weight, bias = (t.requires_grad_() for t in inputs())
    y = ours(TwoTensor(x, x), weight, bias)
    assert "LayerNormFunction" in type(y.grad_fn).__name__
    torch.testing.assert_close(y.a, ours(x, weight, bias))


def test_in_cpp_there_is_no_python_in_the_graph(autograd: str) -> None:
    y = LayerNorm(5)(torch.randn(3, 5))
    assert ("LayerNormFunction" in type(y.grad_fn).__name__) == (autograd == "Python")


@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_the_backward_pass_compiles(autograd: str) -> None:
    expected = [t.requires_grad_() for t in inputs()]
    plain(*expected).pow(2).sum().backward()
    leaves = [t.requires_grad_() for t in inputs()]
    with compiled_autograd._enable(torch.compile(backend="eager")):
        ours(*leaves).pow(2).sum().backward()
    torch.testing.assert_close([t.grad for t in leaves], [t.grad for t in expected])

"""Layer norm and RMS norm over the last axes: by native kernels under a graph in C++ and in Python, and by torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.testing._internal.two_tensor import TwoTensor

from normwise.core.last_axes import layer_norm, rms_norm
from normwise.kernels.cpu import native
from normwise.nn import LayerNorm, RMSNorm


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) for shape in ((3, 4, 5), (5,), (5,))]


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, centered: bool = True) -> Tensor:
    centred = x - x.mean(-1, keepdim=True) if centered else x
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return layer_norm(x, (5,), weight, bias, 1e-5)


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest, leave_kernels_out: Callable[[], None]) -> None:
    """Whose kernels compute."""
    if request.param == "torch":
        leave_kernels_out()
    elif not native.available():
        pytest.skip(native.why_not() or "")


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,)], ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "layer and silu"])
@pytest.mark.usefixtures("kernels")
def test_three_orders_of_derivatives_are_those_of_the_formula(
    autograd: str, wanted: tuple[int, ...], kind: str
) -> None:
    if kind == "rms" and 2 in wanted:
        wanted = wanted[:-1] or (0,)  # it has no bias

    def rms(formula):
        return lambda x, weight, bias: formula(x, weight)

    functions = {
        "layer": (ours, plain),
        "rms": (
            rms(lambda x, weight: rms_norm(x, (5,), weight, 1e-5)),
            rms(lambda x, weight: plain(x, weight, None, centered=False)),
        ),
        "layer and silu": (lambda *t: layer_norm(t[0], (5,), *t[1:], 1e-5, "silu"), lambda *t: F.silu(plain(*t))),
    }[kind]

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

    torch.testing.assert_close(*map(orders, functions))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("centered", [True, False])
def test_no_further_from_the_formula_than_torch(
    dtype: torch.dtype, given: tuple[bool, bool], mean: float, centered: bool
) -> None:
    if (dtype == torch.bfloat16 and mean) or (not centered and given[1]):
        pytest.skip("values far from 0 are all the same in bfloat16, and RMS norm has no bias")
    torch.manual_seed(0)
    drawn = [(torch.randn(200, 96) + mean).to(dtype), torch.randn(96).to(dtype), torch.randn(96).to(dtype)]

    def run(function, dtype: torch.dtype) -> list[Tensor]:
        tensors = [
            t.to(dtype).clone().requires_grad_() if here else None
            for t, here in zip(drawn, (True, *given), strict=True)
        ]
        y = function(*tensors)
        return [y, *torch.autograd.grad(y.pow(2).sum(), [t for t in tensors if t is not None])]

    expected = run(lambda *t: plain(*t, centered=centered), torch.float64)
    if centered:
        pair = (lambda *t: layer_norm(t[0], (96,), *t[1:], 1e-5), lambda *t: F.layer_norm(t[0], (96,), *t[1:], 1e-5))
    else:
        pair = (lambda x, w, b: rms_norm(x, (96,), w, 1e-5), lambda x, w, b: F.rms_norm(x, (96,), w, 1e-5))
    for mine, theirs, right in zip(run(pair[0], dtype), run(pair[1], dtype), expected, strict=True):
        error, torchs = ((t.double() - right).square().mean().sqrt() for t in (mine, theirs))
        # Rounding of the results apart, which both must do.
        assert error <= 1.05 * torchs + torch.finfo(dtype).eps / 8 * right.square().mean().sqrt()


@pytest.mark.parametrize("order", ["contiguous", "channels last", "transposed"])
def test_the_activation_saves_nothing_of_the_size_of_the_input(order: str) -> None:
    if not native.available():
        pytest.skip(native.why_not() or "")
    for layer in (LayerNorm((3, 5, 4), activation="silu"), RMSNorm((3, 5, 4), activation="relu")):
        x, saved = torch.randn(8, 3, 5, 4), []
        if order == "channels last":
            x = x.contiguous(memory_format=torch.channels_last)
        if order == "transposed":
            x = torch.randn(8, 3, 4, 5).mT

        def keep(t: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            layer(x.requires_grad_())
        assert sum(size >= x.numel() for size in saved) == 1  # x itself


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_kinds_of_tensors_meet_operators_that_they_know() -> None:
    x, weight, bias = (t.requires_grad_() for t in inputs())
    y = ours(TwoTensor(x, x), weight, bias)
    assert "Fused" in type(y.grad_fn).__name__
    torch.testing.assert_close(y.a, ours(x, weight, bias))
    ragged = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)])
    with torch.no_grad():
        for y, x in zip(LayerNorm(5)(ragged).unbind(), ragged.unbind(), strict=True):
            torch.testing.assert_close(y, LayerNorm(5)(x))


def test_a_parameter_is_normalized_like_any_tensor() -> None:
    x = torch.randn(4, 5) + 1e5
    for layer in (LayerNorm(5), RMSNorm(5)):
        assert torch.equal(layer(torch.nn.Parameter(x)), layer(x))


def test_vmap_of_any_order_of_axes() -> None:
    x = torch.randn(2, 2, 3, 4, 5).permute(0, 1, 3, 4, 2)
    for layer in (LayerNorm(3), RMSNorm(3)):
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


def test_in_cpp_there_is_no_python_in_the_graph(autograd: str) -> None:
    y = LayerNorm(5)(torch.randn(3, 5))
    assert ("Fused" in type(y.grad_fn).__name__) == (autograd == "Python")


@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_the_backward_pass_compiles(autograd: str) -> None:
    expected = [t.requires_grad_() for t in inputs()]
    plain(*expected).pow(2).sum().backward()
    leaves = [t.requires_grad_() for t in inputs()]
    with compiled_autograd._enable(torch.compile(backend="eager")):
        ours(*leaves).pow(2).sum().backward()
    torch.testing.assert_close([t.grad for t in leaves], [t.grad for t in expected])

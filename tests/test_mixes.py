"""Mixes of pools: autograd in C++ and in Python give the same numbers, and both the gradients of the composite."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd

import fused
from normwise.core import autograd as core_autograd
from normwise.core.autograd import Cells
from normwise.core.moments import Moments
from normwise.core.route import MixCall, whole
from normwise.kernels.cpu import native
from normwise.methods import METHODS, Context

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "")
needs_graph = pytest.mark.skipif(not native.differentiates(), reason=native.why_not_differentiable() or "")

C = 6
POOLS = {"batch": 0, "layer": 1, "group": 3, "instance": C}
MIXES = [("batch",), ("layer",), ("group",), ("instance",), ("instance", "layer", "batch"), ("group", "batch")]


def inputs_of(over: tuple[str, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(0)
    given = {"x": torch.randn(4, C, 5, 3), "weight": torch.rand(C), "bias": torch.randn(C)}
    if len(over) > 1:
        given |= {"mean_weight": torch.randn(len(over)), "var_weight": torch.randn(len(over))}
    return {name: t.to(dtype) for name, t in given.items()}


def mixed(over: tuple[str, ...], given: dict[str, Tensor], *rest: Any) -> Tensor:
    names = ("x", "weight", "bias", "mean_weight", "var_weight")
    x, *parameters = (given.get(name) for name in names)
    assert x is not None
    population, activation = rest or (None, "silu")
    call = MixCall(tuple(POOLS[name] for name in over), *parameters, True, 1e-5, population, None)
    return whole(x, call, activation, 0.01)


def composed(over: tuple[str, ...], given: dict[str, Tensor], *rest: Any) -> Tensor:
    population, activation = rest or (None, "silu")
    method, _ = METHODS["switchable" if len(over) > 1 else over[0]].taking({"num_groups": 3, "over": over})
    context = Context(population=population and Moments(*population))
    tensors = [given.get(name) for name in ("x", "weight", "bias", *method.learned)]
    reads = method.reads_cells(population is not None)
    return Cells(method, context, None, activation, 0.01, reads=reads).formula(tensors)


def derivatives(function: Any, given: dict[str, Tensor], wanted: list[str]) -> list[Tensor]:
    """The result, its gradients and theirs."""
    leaves = {name: t.clone().requires_grad_(name in wanted) for name, t in given.items()}
    by = [leaves[name] for name in wanted]
    y = function(leaves)
    plain = torch.autograd.grad(y.pow(2).sum(), by, retain_graph=True)
    first = torch.autograd.grad(y.pow(2).sum(), by, create_graph=True)
    torch.testing.assert_close(plain, first)
    return [y, *first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), by)]


@pytest.mark.parametrize("over", MIXES, ids="+".join)
def test_every_order_of_derivative_is_that_of_the_composite(over: tuple[str, ...], autograd: str) -> None:
    given = inputs_of(over)
    for wanted in ([*given], ["x"], [name for name in given if name != "x"]):
        actual = derivatives(lambda leaves: mixed(over, leaves), given, wanted)
        torch.testing.assert_close(actual, derivatives(lambda leaves: composed(over, leaves), given, wanted))


def test_a_population_stands_in_for_the_batch(autograd: str) -> None:
    over, given, population = ("layer", "batch"), inputs_of(("layer", "batch")), (torch.randn(1, C), torch.rand(1, C))
    rest = (tuple(t.double() for t in population), "relu")
    actual = derivatives(lambda leaves: mixed(over, leaves, *rest), given, [*given])
    torch.testing.assert_close(actual, derivatives(lambda leaves: composed(over, leaves, *rest), given, [*given]))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_averages_that_stand_alone_are_those_of_the_forward_pass(autograd: str, activation: str | None) -> None:
    """A training step on the same layer may move the buffers before the backward pass."""
    given, averages = inputs_of(("batch",)), (torch.randn(1, C).double(), torch.rand(1, C).double())
    for wanted in ([*given], ["x"], ["weight"], ["bias"]):
        expected = derivatives(lambda leaves: composed(("batch",), leaves, averages, activation), given, wanted)

        def moving(leaves: dict[str, Tensor]) -> Tensor:
            buffers = [t[0].clone() for t in averages]
            y = mixed(("batch",), leaves, buffers, activation)
            for t in buffers:
                t.add_(1)
            return y

        torch.testing.assert_close(derivatives(moving, given, wanted), expected)


def test_averages_in_a_mix_are_those_of_the_forward_pass(autograd: str) -> None:
    over, averages = ("layer", "batch"), (torch.randn(1, C).double(), torch.rand(1, C).double())
    given = inputs_of(over)
    x, weight, bias, *mix = (t.requires_grad_() for t in given.values())
    buffers = [t[0].clone() for t in averages]
    y = whole(x, MixCall((1, 0), weight, bias, *mix, True, 1e-5, buffers, None), None, 0.01)
    for t in buffers:
        t.add_(1)
    expected = composed(over, given, averages, None)
    leaves = [*given.values()]
    for power in (1, 2):
        grads = [torch.autograd.grad(out.pow(power).sum(), leaves, retain_graph=True) for out in (y, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("over", [("layer",), ("batch",), ("instance", "layer", "batch")], ids="+".join)
def test_a_result_without_a_gradient_gives_none(over: tuple[str, ...], autograd: str) -> None:
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    given = {name: t.requires_grad_() for name, t in inputs_of(over).items()}
    Cut.apply(mixed(over, given)).sum().backward()
    assert all(t.grad is None or not t.grad.any() for t in given.values())


@needs_graph
@pytest.mark.filterwarnings("ignore")  # torch's own, from its first use of forward mode
@pytest.mark.parametrize("learns", [True, False])
def test_a_tangent_is_not_lost_in_silence(learns: bool) -> None:
    x = inputs_of(("layer",), torch.float32)["x"].requires_grad_(learns)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward mode"):
            fused.sample_norm(dual, 1)


@pytest.mark.parametrize("over", [("layer",), ("batch",), ("instance", "layer", "batch")], ids="+".join)
def test_the_logits_of_a_lone_member_get_a_gradient_of_zero(over: tuple[str, ...], autograd: str) -> None:
    given = inputs_of(over) | {
        "mean_weight": torch.zeros(len(over)).double(),
        "var_weight": torch.zeros(len(over)).double(),
    }
    y, *found = derivatives(lambda leaves: mixed(over, leaves), given, ["x", "mean_weight", "var_weight"])
    assert torch.isfinite(y).all()
    assert len(over) > 1 or not any(found[i].any() for i in (1, 2))


@needs_graph
@pytest.mark.parametrize("over", MIXES, ids="+".join)
def test_autograd_in_cpp_and_in_python_give_the_same_bits(
    over: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs_of(over, torch.float32)
    wanted = [*given]
    in_cpp = derivatives(lambda leaves: mixed(over, leaves), given, wanted)
    monkeypatch.setattr(native, "_graph_problem", "not wanted")
    monkeypatch.setattr(native, "CALLS", {})
    in_python = derivatives(lambda leaves: mixed(over, leaves), given, wanted)
    assert "Fused" in type(in_python[0].grad_fn).__name__
    assert "Fused" not in type(in_cpp[0].grad_fn).__name__
    assert all(torch.equal(a, b) for a, b in zip(in_cpp, in_python, strict=True))


def test_changing_what_was_saved_is_an_error(autograd: str) -> None:
    for name in ("x", "weight"):
        leaves = {key: t.requires_grad_() for key, t in inputs_of(("layer",)).items()}
        copies = {key: t.clone() for key, t in leaves.items()}
        y = mixed(("layer",), copies)
        copies[name].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_second_backward_pass_needs_its_graph_kept(autograd: str) -> None:
    x = inputs_of(("layer",))["x"].requires_grad_()
    y = mixed(("layer",), {"x": x})
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_nothing_is_kept_without_gradients(autograd: str) -> None:
    given = inputs_of(("layer",))
    assert mixed(("layer",), given).grad_fn is None
    with torch.no_grad():
        assert mixed(("layer",), {"x": given["x"].requires_grad_()}).grad_fn is None
    with torch.inference_mode():
        assert mixed(("layer",), inputs_of(("layer",))).is_inference()


def test_the_input_lives_as_long_as_the_graph_and_no_longer(autograd: str) -> None:
    leaf = inputs_of(("layer",))["x"].requires_grad_()
    x = leaf * 2
    alive = weakref.ref(x)
    y = mixed(("layer",), {"x": x})
    del x
    y.sum().backward()
    del y
    gc.collect()
    assert alive() is None


def test_saved_tensor_hooks_see_what_is_kept(autograd: str) -> None:
    packed: list[Tensor] = []
    given = {name: t.requires_grad_() for name, t in inputs_of(("layer",)).items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = mixed(("layer",), given)
    assert sum(t.numel() for t in packed) < 1.2 * y.numel()
    y.sum().backward()
    assert given["x"].grad is not None


@needs_graph
def test_the_graph_of_gradients_is_asked_for_by_the_operator_itself() -> None:
    given = {name: t.requires_grad_() for name, t in inputs_of(("layer",)).items()}
    x, weight, bias = given.values()
    with torch.no_grad():
        _, moments = fused.sample_norm(x, 1, weight, bias)
        expected = fused.sample_norm_backward(x, x, moments, 1, weight, bias)
    actual = fused.sample_norm_backward(x, x, moments, 1, weight, bias)
    torch.testing.assert_close(actual, expected)
    assert all(g.requires_grad for g in actual)
    assert core_autograd._LIBRARY is not None


@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
@pytest.mark.parametrize("over", [("layer",), ("batch",), ("instance", "layer", "batch")], ids="+".join)
def test_the_backward_pass_compiles(over: tuple[str, ...], autograd: str) -> None:
    expected = {name: t.requires_grad_() for name, t in inputs_of(over).items()}
    mixed(over, expected).pow(2).sum().backward()
    leaves = {name: t.requires_grad_() for name, t in inputs_of(over).items()}
    with compiled_autograd._enable(torch.compile(backend="eager")):
        mixed(over, leaves).pow(2).sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name].grad)

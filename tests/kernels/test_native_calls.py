"""The shortest way from Python to the native operators: the same results, and out of the way of all others."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from normwise import nn
from normwise.kernels.cpu import native

pytestmark = pytest.mark.skipif(not native.CALLS, reason=native.why_not_differentiable() or "no Python.h when built")

X = torch.randn(4, 6, 5)
ONES, ZEROS = torch.ones(6), torch.zeros(6)
CALLS = {
    "sample_norm": (X, 2, ONES, ZEROS, 1e-5, 0, 0.01),
    "batch_norm": (X, ONES, ZEROS, 1e-5, True, None, None, None, None, 0.0, 3, 0.01),
    "mix_norm": (X, ONES, None, ZEROS[:2], ONES[:2], True, (1, 0), 1e-5, *[None] * 6, 0.0, 0, 0.01),
    "layer_norm": (X, 1, ONES[:5], ZEROS[:5], 1e-5, False, 1, 0.01),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("learns", [False, True])
def test_the_same_bits_as_the_operator(name: str, learns: bool) -> None:
    x, *args = CALLS[name]
    x = x.clone().requires_grad_(learns)
    mine, theirs = native.CALLS[name](x, *args), getattr(torch.ops.normwise, name)(x, *args)[0]
    assert torch.equal(mine, theirs)
    assert mine.requires_grad == learns
    if learns:
        g = torch.randn_like(x)
        assert torch.equal(*(torch.autograd.grad(y, x, g)[0] for y in (mine, theirs)))


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_the_wrong_kind(name: str) -> None:
    with pytest.raises(TypeError, match=rf"expected {len(CALLS[name])} arguments, got 1"):
        native.CALLS[name](X)
    x, *rest = CALLS[name]
    for place, argument in enumerate(rest, 1):
        if isinstance(argument, (int, float)) and not isinstance(argument, bool):
            with pytest.raises(TypeError):
                native.CALLS[name](x, *rest[: place - 1], "2", *rest[place:])


AVERAGES = (True, ZEROS.clone(), ONES.clone(), None, None, 0.1, 0, 0.01)
UNFIT = {
    "a type": ("batch_norm", X.int(), ONES, ZEROS, 1e-5, *AVERAGES),
    "no tensor": ("batch_norm", None, ONES, ZEROS, 1e-5, *AVERAGES),
    "one axis": ("batch_norm", ONES, None, None, 1e-5, *AVERAGES),
    "nothing": ("batch_norm", X[:0], ONES, ZEROS, 1e-5, *AVERAGES),
    "one value a channel": ("batch_norm", X[:1, :, 0], ONES, ZEROS, 1e-5, *AVERAGES),
    "a parameter's type": ("batch_norm", X, ONES.double(), ZEROS, 1e-5, *AVERAGES),
    "a parameter's size": ("batch_norm", X, ONES[:5], ZEROS, 1e-5, *AVERAGES),
    "a parameter's shape": ("batch_norm", X, ONES[:, None], ZEROS, 1e-5, *AVERAGES),
    "averages of another size": ("batch_norm", X, None, None, 1e-5, True, ZEROS[:5], *AVERAGES[2:]),
    "averages of two types": ("batch_norm", X.half(), None, None, 1e-5, True, ZEROS.half(), *AVERAGES[2:]),
    "averages in pieces": ("batch_norm", X, None, None, 1e-5, True, torch.zeros(12)[::2], *AVERAGES[2:]),
    "a lone average": ("batch_norm", X, None, None, 1e-5, True, None, *AVERAGES[2:]),
    "a counter's type": ("batch_norm", X, None, None, 1e-5, *AVERAGES[:3], ONES[0], *AVERAGES[4:]),
    "groups": ("sample_norm", X, 4, ONES, ZEROS, 1e-5, 0, 0.01),
    "no groups": ("sample_norm", X, 0, ONES, ZEROS, 1e-5, 0, 0.01),
    "one value a group": ("sample_norm", X[:, :, 0], 6, ONES, ZEROS, 1e-5, 0, 0.01),
    "weights of a mix": ("mix_norm", X, ONES, None, ZEROS[:3], ONES[:3], True, (1, 0), 1e-5, *[None] * 6, 0.0, 0, 0.01),
    "last axes": ("layer_norm", X, 4, None, None, 1e-5, True, 0, 0.01),
    "the last axes' shape": ("layer_norm", X, 1, ONES, None, 1e-5, True, 0, 0.01),
    "the last axes' type": ("layer_norm", X, 1, ONES[:5].double(), None, 1e-5, True, 0, 0.01),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_does_not_fit_is_refused_by_a_value_and_changes_nothing(what: str) -> None:
    name, *args = UNFIT[what]
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    assert native.CALLS[name](*args) is None
    for a, b in zip(args, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b


class Seen(TorchDispatchMode):
    """Which operators pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """What the user calls."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of forward mode
def test_not_in_the_way_of_others() -> None:
    call, (x, *rest) = native.CALLS["layer_norm"], CALLS["layer_norm"]
    for mode in (Seen(), Functions(), torch.autocast("cpu"), torch.profiler.profile()):
        with mode:
            assert call(x, *rest) is None
    assert call(x, *rest) is not None
    assert call(torch.nn.Buffer(x), *rest) is not None
    with torch.autograd.forward_ad.dual_level():
        assert call(torch.autograd.forward_ad.make_dual(x, x), *rest) is None
    assert call(x, rest[0], rest[1].to("meta"), *rest[2:]) is None
    for other in (x.to("meta"), x.to_sparse(), torch.randn(4, 6, 5).as_subclass(Subclass), "no tensor"):
        assert call(other, *rest) is None
    assert torch.func.vmap(lambda x: torch.zeros(()) if call(x, *rest) is None else x.sum())(x).any() == 0
    with torch._C._AutoDispatchBelowAutograd():  # in what autograd calls, or goes through
        assert call(x, *rest) is None
    with torch.no_grad():
        assert call(x, *rest) is not None
    with torch.inference_mode():
        assert call(torch.randn(4, 6, 5), *rest) is not None
        assert call(x, *rest) is not None


class Subclass(torch.Tensor):
    """Of a kind of its own."""


def test_what_watches_operators_goes_on_seeing_them() -> None:
    layer = nn.BatchNorm1d(6).eval()
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(X)
    assert "normwise::batch_norm" in {event.key for event in profile.key_averages()}
    with Seen() as seen, torch.no_grad():
        layer(X)
    assert [name for name in seen.names if "normwise" in name] == ["normwise::batch_norm"]


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated
def test_traced_by_operators() -> None:
    traced = torch.jit.trace(nn.GroupNorm(2, 6), X, check_trace=False)
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(traced(x), torch.nn.GroupNorm(2, 6)(x))


def test_parameters_on_another_device_are_refused() -> None:
    # The dispatcher would have their fake kernel give memory that nobody wrote to.
    for layer in (nn.LayerNorm(5), nn.RMSNorm(5), nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.SwitchableNorm1d(6)):
        with pytest.raises(RuntimeError, match=r"on device|on one device"):
            layer.to("meta")(X)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), nn.LayerNorm(5)])
def test_an_error_of_a_hook_is_not_taken_for_a_refusal(layer: torch.nn.Module) -> None:
    def full(t: torch.Tensor) -> torch.Tensor:
        if t.dtype == torch.float64:  # the moments, saved when the kernel has run
            raise RuntimeError("no room")
        return t

    with (
        torch.autograd.graph.saved_tensors_hooks(full, lambda t: t),
        pytest.raises(RuntimeError, match="no room"),
    ):
        layer(X.clone().requires_grad_())
    assert getattr(layer, "num_batches_tracked", 1) == 1


def test_nothing_is_kept() -> None:
    x, *rest = CALLS["mix_norm"]
    before = [sys.getrefcount(a) for a in (x, *rest)]
    for _ in range(100):
        native.CALLS["mix_norm"](x, *rest)
    after = [sys.getrefcount(a) for a in (x, *rest)]
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True))


def test_many_threads_at_once() -> None:
    layer = nn.GroupNorm(2, 6, activation="silu")
    inputs = [torch.randn(n, 6, 11, 13) for n in range(1, 60)]  # small ones, and some that let others run meanwhile
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(layer, inputs)]
    assert all(torch.equal(y, layer(x)) for y, x in zip(found, inputs, strict=True))

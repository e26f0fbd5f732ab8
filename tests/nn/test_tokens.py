"""Methods for tokens: their formulas at either axis, offsets in half precision, and layers that find their channels."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normwise.nn as nw
from normwise.errors import InputError
from normwise.functional import normalize
from normwise.methods import RMS, Derf, DyT, Layer, Method, method_named
from normwise.nn import norm_layer
from oracles import Parameters
from oracles_relatives import ORACLES, token_layer

FORMULAS = {**ORACLES, "layer": token_layer}
METHODS = {
    "rms": RMS(),
    "rms(offset=1)": RMS(offset=1),
    "l2": method_named("l2"),
    "layer": Layer(per_token=True),
    "dyt": DyT(),
    "derf": Derf(),
}
CHANNELS = 4


def parameters(name: str, channels: int = CHANNELS) -> Parameters:
    rng = np.random.default_rng(0)
    affine = {"weight": rng.normal(size=channels), "bias": rng.normal(size=channels)}
    return Parameters(**affine, offset=float("offset" in name), alpha=np.array([0.7]), shift=np.array([-0.2]))


def expected(name: str, x: torch.Tensor, p: Parameters, axis: int) -> torch.Tensor:
    first = x.movedim(axis, 1).numpy()
    return torch.from_numpy(FORMULAS[name.partition("(")[0]](first, p)).movedim(1, axis)


def tensors(method: Method, p: Parameters, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(getattr(p, n)).to(dtype) for n in ("weight", "bias", *method.learned)}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    axis=st.sampled_from([1, -1]),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    channels=st.integers(1, 6),
    last=st.booleans(),
)
def test_either_axis_gives_the_formula(name, axis, sizes, channels, last):
    sizes.insert(1 if axis == 1 else len(sizes), channels)
    x = torch.from_numpy(np.random.default_rng(1).normal(1.0, 2.0, sizes))
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    p, method = parameters(name, channels), METHODS[name]
    leaf = x.clone().requires_grad_()
    y = normalize(leaf, method, axis=axis, **tensors(method, p))
    torch.testing.assert_close(y, expected(name, x, p, axis), rtol=1e-9, atol=1e-9)
    assert y.is_contiguous() or not x.is_contiguous()
    y.square().sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("name", METHODS)
def test_derivatives_at_either_axis(name, axis):
    method, p = METHODS[name], parameters(name)
    x = torch.randn((2, CHANNELS, 3) if axis == 1 else (2, 3, CHANNELS), dtype=torch.float64)
    given = tensors(method, p)
    leaves = [x, *given.values()]

    def function(x, *values):
        return normalize(x, method, axis=axis, activation="silu", **dict(zip(given, values, strict=True)))

    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", METHODS)
def test_padding_touches_nothing(name):
    method, p = METHODS[name], parameters(name)
    x, lengths = torch.randn(2, 5, CHANNELS, dtype=torch.float64), torch.tensor([5, 2])
    dirty = x.masked_fill((torch.arange(5) >= lengths[:, None])[..., None], float("nan")).requires_grad_()
    y = normalize(dirty, method, axis=-1, lengths=lengths, **tensors(method, p))
    torch.testing.assert_close(y[1, :2], expected(name, x, p, -1)[1, :2])
    assert (y[1, 2:] == 0).all()
    y.sum().backward()
    assert (dirty.grad[1, 2:] == 0).all()


def test_samples_may_have_weights_of_their_own():
    x, weight = torch.randn(2, 3, CHANNELS), torch.randn(2, CHANNELS)
    y = normalize(x, "rms", axis=-1, weight=weight, bias=weight)
    torch.testing.assert_close(y, F.rms_norm(x, (CHANNELS,), eps=1e-5) * weight[:, None] + weight[:, None])


@pytest.mark.parametrize("method", ["batch", "group(num_groups=2)", "instance"])
def test_other_methods_take_their_channels_from_the_last_axis(method):
    x, running = torch.randn(3, 5, 7, CHANNELS), (torch.zeros(CHANNELS), torch.ones(CHANNELS))
    stored = {"running_mean": running[0], "running_var": running[1], "momentum": 1.0} if method == "batch" else {}
    y = normalize(x, method, axis=-1, **stored)
    torch.testing.assert_close(y, normalize(x.movedim(-1, 1).contiguous(), method).movedim(1, -1))
    assert method != "batch" or torch.allclose(running[0], x.mean((0, 1, 2)), atol=1e-6)
    with pytest.raises(InputError, match="expected 1 or -1, got 2"):
        normalize(x, method, axis=2)


@pytest.mark.parametrize("axis", [1, -1])
def test_an_offset_is_added_in_float32(axis):
    x = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.full((16,), 1e-3, dtype=torch.bfloat16)
    assert torch.equal(1 + weight, torch.ones_like(weight))  # what bfloat16 makes of it
    layer = nw.RMSNorm(16, eps=1e-6, offset=1, axis=axis, dtype=torch.bfloat16)
    assert torch.equal(layer.weight, torch.zeros_like(weight))
    layer.weight.data.copy_(weight)
    plain = x.float() * torch.rsqrt(x.float().square().mean(axis, keepdim=True) + 1e-6)
    wanted = (plain * (1 + weight.float())).bfloat16()
    assert (wanted != plain.bfloat16()).sum() > 50
    # A value that lies between two of bfloat16's may go either way by its last bit of float32.
    assert (layer(x) != wanted).sum() <= 2
    assert (normalize(x, RMS(offset=1), axis=axis, weight=weight, eps=1e-6) != wanted).sum() <= 2
    started = norm_layer("rms(offset=1)", eps=1e-6)(16, axis=axis, dtype=torch.bfloat16)
    assert (started(x) != plain.bfloat16()).sum() <= 2


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("layer", ["weight", "bias"]),
        ("rms", ["weight"]),
        ("rms(bias=True)", ["weight", "bias"]),
        ("rms(affine=False)", []),
        ("layer(affine=False)", []),
        ("l2", ["weight", "bias"]),
        ("dyt(alpha=0.2)", ["weight", "bias", "alpha"]),
        ("derf", ["weight", "bias", "alpha", "shift"]),
    ],
)
def test_layers_take_tokens_and_maps(method, names):
    build, tokens, maps = norm_layer(method), torch.randn(2, 5, 8), torch.randn(2, 8, 3, 5)
    layer = build(8)
    assert list(layer.state_dict()) == names
    row = method_named(method.replace("(bias=True)", "").replace("(affine=False)", ""))
    torch.testing.assert_close(layer(tokens), normalize(tokens, row, axis=-1))
    torch.testing.assert_close(layer(maps), normalize(maps, row))
    for told in (layer, build(8, axis=-1)):
        again = copy.deepcopy(pickle.loads(pickle.dumps(told)))
        torch.testing.assert_close(again(tokens), told(tokens))
        masked = told(tokens, lengths=torch.tensor([5, 2]))
        torch.testing.assert_close(masked[1, :2], told(tokens)[1, :2])
        assert (masked[1, 2:] == 0).all()


def test_channels_are_never_guessed():
    square = torch.randn(2, 8, 8)
    for method in ("layer", "rms", "dyt"):
        layer = norm_layer(method)(8)
        with pytest.raises(
            InputError, match=r"\(2, 8, 8\) has 8 values at axis 1 and at the last axis.*axis=-1.*axis=1"
        ):
            layer(square)
        with pytest.raises(RuntimeError, match=r"expected 8 channels at axis 1 or at the last axis"):
            layer(torch.randn(2, 3, 4))
        layer(torch.randn(2, 5, 8))
        torch.testing.assert_close(layer(square), norm_layer(method, axis=-1)(8)(square))  # as before
        layer(torch.randn(2, 8, 5))
        with pytest.raises(InputError, match="axis=-1"):  # it has met both
            layer(square)
    torch.testing.assert_close(norm_layer("layer(axis=1)")(8)(square), F.group_norm(square, 1))
    torch.testing.assert_close(norm_layer("layer")(8, axis=-1)(square), F.layer_norm(square, (8,)))
    with pytest.raises(InputError, match="expected 1, -1 or None"):
        norm_layer("rms", axis=0)(8)


def test_maps_are_read_like_those_of_the_network_before():
    build = norm_layer("rms")
    first, second = build(4), build(8)
    first(torch.randn(2, 4, 8, 8))
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(second(x), normalize(x, "rms"))
    with pytest.raises(InputError, match="axis=-1"):  # of tokens that would be a guess
        build(8)(torch.randn(2, 8, 8))


def test_maps_that_do_not_tell_have_their_channels_at_axis_1_unless_a_later_layer_knows_better():
    x = torch.randn(2, 8, 8, 8)
    build = norm_layer("layer")
    torch.testing.assert_close(build(8)(x), F.group_norm(x, 1))
    build(4)(torch.randn(2, 4, 8, 8))
    with pytest.raises(InputError, match=r"channels come last in an input of shape \(2, 8, 8, 4\).*say axis=-1"):
        build(4)(torch.randn(2, 8, 8, 4))
    torch.testing.assert_close(norm_layer("layer", axis=-1)(8)(x), F.layer_norm(x, (8,)))


def test_layers_over_positions_at_axis_1():
    x = torch.randn(2, 6, 4, 5)
    wanted = F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1)
    torch.testing.assert_close(nw.LayerNorm(6, axis=1)(x), wanted)
    torch.testing.assert_close(norm_layer("layer(per_token=True)")(6)(x), wanted)
    assert "axis=1" in repr(nw.LayerNorm(6, axis=1))
    with pytest.raises(InputError, match="one size"):
        nw.LayerNorm((6, 4), axis=1)


@pytest.mark.parametrize("method", ["layer", "rms", "rms(offset=1)", "l2", "dyt", "derf"])
def test_transforms_see_through(method):
    layer, x = norm_layer(method)(8), torch.randn(2, 5, 8)
    wanted = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), wanted)
    torch.testing.assert_close(torch.vmap(layer)(x[:, None])[:, 0], wanted)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), wanted)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), wanted)
    state = dict(layer.named_parameters())
    loss = torch.func.grad(lambda s: torch.func.functional_call(layer, s, x).square().sum())(state)
    layer(x).square().sum().backward()
    torch.testing.assert_close(loss, {name: p.grad for name, p in layer.named_parameters()})


def test_they_run_in_half_precision():
    for method in ("layer", "rms", "l2", "dyt", "derf"):
        layer, x = norm_layer(method)(16), torch.randn(2, 5, 16)
        half = copy.deepcopy(layer).bfloat16()(x.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), layer(x.bfloat16().float()), rtol=8e-3, atol=8e-3)


def test_what_a_layer_has_met_compiles_nothing_anew():
    layer, x = norm_layer("rms")(8), torch.randn(2, 5, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for call in (compiled, layer, compiled, compiled):
        call(x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

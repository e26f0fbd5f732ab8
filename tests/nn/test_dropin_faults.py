"""Torch's own faults, one test each: that torch has them is shown in passing where it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from namesakes import pair
from torch import nn

from normwise.nn import BatchNorm1d, BatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, RMSNorm, SwitchableNorm2d

SHAPE = (3, 4, 2, 3)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: BatchNorm2d(4),
    "instance": lambda: InstanceNorm2d(4, affine=True),
    "group": lambda: GroupNorm(2, 4),
    "layer": lambda: LayerNorm((4, 2, 3)),
    "rms": lambda: RMSNorm(3, eps=1e-5),
    "switchable": lambda: SwitchableNorm2d(4),
}
LAYER = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[kind]().to(dtype)
    for p in layer.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return layer


def exact(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The same layer in float64."""
    return type(layer)(**arguments(layer)).double().train()(x.double())


def arguments(layer: nn.Module) -> dict:
    names = ("num_groups", "num_channels", "num_features", "normalized_shape")
    return {n: getattr(layer, n) for n in names if hasattr(layer, n)}


def plain(kind: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The formula from scratch, in operators with derivatives of every order."""
    if kind == "rms":
        return x * (x.square().mean(-1, keepdim=True) + layer.eps).rsqrt() * layer.weight
    axes = {"batch": [0, 2, 3], "instance": [2, 3], "layer": [1, 2, 3], "group": [2, 3, 4]}
    if kind == "switchable":
        mean, var = 0, 0
        for k, name in enumerate(layer.over):
            m = x.mean(axes[name], keepdim=True)
            mean = mean + layer.mean_weight.softmax(0)[k] * m
            var = var + layer.var_weight.softmax(0)[k] * (x - m).square().mean(axes[name], keepdim=True)
    else:
        z = x.reshape(x.shape[0], 2, -1, *x.shape[2:]) if kind == "group" else x
        mean = z.mean(axes[kind], keepdim=True)
        var = (z - mean).square().mean(axes[kind], keepdim=True)
        if kind == "group":
            return (((z - mean) * (var + layer.eps).rsqrt()).reshape(x.shape)) * wide(layer.weight) + wide(layer.bias)
    y = (x - mean) * (var + layer.eps).rsqrt()
    return y * layer.weight + layer.bias if kind == "layer" else y * wide(layer.weight) + wide(layer.bias)


def wide(t: torch.Tensor) -> torch.Tensor:
    return t[:, None, None]


@LAYER
def test_derivatives_up_to_the_fourth(kind: str) -> None:  # pytorch#186256, #175754
    layer, x = made(kind), torch.randn(SHAPE, dtype=torch.float64)
    upstream = torch.randn_like(x)

    def derivatives(function: Callable) -> list[torch.Tensor]:
        leaf, found = x.clone().requires_grad_(), []
        value = (function(leaf) * upstream).sum()
        for _ in range(4):
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)
            found.append(g.detach())
            value = g.square().sum()
        return found

    for ours, right in zip(derivatives(layer), derivatives(lambda t: plain(kind, layer, t)), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-8, atol=1e-8)


def test_torchs_third_derivative_is_still_wrong() -> None:
    # When this fails torch has mended it, and our own layer norm function may go.
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    theirs, ours = nn.LayerNorm(5).double(), LayerNorm(5).double()

    def third(layer: nn.Module) -> torch.Tensor:
        value = layer(x)[:, 0].sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = g.square().sum()
        return g

    assert not torch.allclose(third(theirs), third(ours))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # raised by torch.func.jvp's own imports
@LAYER
def test_nested_forward_mode(kind: str) -> None:  # pytorch#196699, #196700
    layer, x = made(kind), torch.randn(SHAPE, dtype=torch.float64)
    u, v = torch.randn_like(x), torch.randn_like(x)

    def second(function: Callable) -> torch.Tensor:
        return torch.func.jvp(lambda t: torch.func.jvp(function, (t,), (u,))[1], (x,), (v,))[1]

    torch.testing.assert_close(second(layer), second(lambda t: plain(kind, layer, t)), rtol=1e-9, atol=1e-9)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, u)
        tangent = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(layer, (x,), (u,))[1])


@LAYER
def test_func_transforms_of_a_training_layer(kind: str) -> None:  # pytorch#85533
    layer, x = made(kind), torch.randn(SHAPE, dtype=torch.float64)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    parameters = dict(layer.named_parameters())

    def loss(params: dict, t: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, params, (t,)).square().sum()

    grads = torch.func.grad(loss)(parameters, x)
    rows = torch.func.jacrev(layer)(x)
    many = torch.func.vmap(layer)(torch.stack([x, 2 * x]))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.stack([x, 2 * x]))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())  # a transform has no side effects
    direct = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    for (name, g), expected in zip(grads.items(), direct, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(each[name][0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(many[1], layer(2 * x))
    torch.testing.assert_close(rows, torch.autograd.functional.jacobian(lambda t: plain(kind, layer, t), x))


@pytest.mark.parametrize("mean", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "switchable"])
def test_channels_last_precision_and_format(kind: str, mean: float) -> None:  # also #111824
    x = torch.randn(4, 4, 32, 32).add(mean).to(memory_format=torch.channels_last).requires_grad_()
    layer = LAYERS[kind]()
    y, right = layer(x), exact(layer, x.detach())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y - right).abs().max() < 4e-6 + 2e-7 * mean
    upstream = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, upstream)
    leaf = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(layer, leaf), leaf, upstream.double())
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert (grad - expected).abs().max() < 1e-5 + 4e-7 * mean


@pytest.mark.parametrize("shape", [(4, 2, 3), (2, 3), (3,)])
def test_layer_norm_keeps_channels_last(shape: tuple[int, ...]) -> None:
    theirs, ours = pair(nn.LayerNorm, shape)
    x = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    for grad in (False, True):
        x.requires_grad_(grad)
        y = ours(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, theirs(x))
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rows", [16_384, 262_144])
def test_long_columns(rows: int) -> None:
    x = torch.randn(rows, 3) * 2 + 5
    right = exact(BatchNorm1d(3), x)
    layer = BatchNorm1d(3)
    assert (layer(x) - right).abs().max() < 3e-6
    twin = BatchNorm1d(3).double()
    twin(x.double())
    torch.testing.assert_close(layer.running_var.double(), twin.running_var, rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    value=st.floats(-1e6, 1e6, width=32),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(2, 40)),
    kind=st.sampled_from(["batch", "instance", "group"]),
    last=st.booleans(),
)
def test_a_constant_input_gives_exactly_zero(value: float, shape: tuple[int, ...], kind: str, last: bool) -> None:
    N, C, size = shape  # pytorch#5410, #108072
    C *= 2
    layer = {"batch": BatchNorm2d(C), "instance": InstanceNorm2d(C), "group": GroupNorm(2, C)}[kind]
    x = torch.full((N, C, size, 3), value)
    y = layer(x.to(memory_format=torch.channels_last) if last else x)
    assert torch.equal(y, torch.zeros_like(y))


@pytest.mark.parametrize("rows", [2, 3, 7, 1000])
def test_a_constant_column_gives_exactly_zero(rows: int) -> None:
    y = BatchNorm1d(2)(torch.full((rows, 2), 1e4 + 1 / 3))
    assert torch.equal(y, torch.zeros_like(y))


@pytest.mark.parametrize("kind", ["batch", "instance", "group", "switchable", "layer"])
def test_huge_float32_is_right_while_the_sum_of_squares_fits_and_tracking_layers_say_so_beyond(kind: str) -> None:
    # pytorch#162489. Beyond 1.8e19 the variance is no float32, nor could running_var hold it: float64 is the way.
    x = torch.randn(4, 4, 2, 3) if kind == "layer" else torch.randn(4, 4, 8, 8)
    layer = LAYERS[kind]()
    unit = exact(type(layer)(**arguments(layer)), x * 1e3)
    torch.testing.assert_close(layer(x * 1e18).double(), unit, rtol=1e-4, atol=1e-4)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    if before.get("running_var") is not None:
        with pytest.warns(UserWarning, match="not finite"):
            layer(x * 1e30)
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    torch.testing.assert_close(type(layer)(**arguments(layer)).double()(x.double() * 1e30), unit, rtol=1e-4, atol=1e-4)


def test_tracked_instance_norm_evaluates_as_batch_norm_as_documented() -> None:  # pytorch#58843
    ours, batch = InstanceNorm2d(3, track_running_stats=True), BatchNorm2d(3, affine=False)
    x = torch.randn(4, 3, 5, 5)
    ours(x)
    batch.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), batch.eval()(x))
    assert "makes it a batch norm" in InstanceNorm2d.__doc__


def test_running_buffers_may_change_between_forward_and_backward() -> None:  # pytorch#175024, #65907
    model = nn.Sequential(nn.Conv2d(1, 3, 3), BatchNorm2d(3), nn.ReLU(), SwitchableNorm2d(3))
    for training in (True, False):
        model.train(training)
        first, second = model(torch.randn(2, 1, 8, 8)), model(torch.randn(2, 1, 8, 8))
        with torch.no_grad():
            for buffer in model.buffers():  # what DDP's broadcast does
                buffer.copy_(buffer.clone())
        (first.sum() + second.sum()).backward()


DDP = """
import os, sys, torch, torch.distributed as dist
from datetime import timedelta
from normwise.nn import BatchNorm2d
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1,
                        timeout=timedelta(seconds=900))
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), BatchNorm2d(3)))
a, b = model(torch.randn(2, 1, 8, 8)), model(torch.randn(2, 1, 8, 8))
(a.sum() + b.sum()).backward()
assert model.module[1].num_batches_tracked == 2
print("two forwards, one backward", flush=True)
os._exit(0)  # gloo's teardown can hang; the verdict is out
"""


def test_ddp_two_forwards_then_backward(tmp_path) -> None:
    command = [sys.executable, "-c", DDP, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "two forwards, one backward" in done.stdout, done.stderr

"""Every layer under what looks at it from outside: vmapped ensembles, gradients, per-sample gradients and tracers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from normwise import nn as ours
from normwise.errors import NormwiseWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the tracer's imports
    from torch.fx.experimental.proxy_tensor import make_fx

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"),
    # What the tracer itself does to make fakes of its inputs.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

MAPS = (4, 6, 3, 5)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch 1d": (lambda: ours.BatchNorm1d(6), (4, 6)),
    "batch 2d": (lambda: ours.BatchNorm2d(6), MAPS),
    "batch 2d, relu": (lambda: ours.BatchNorm2d(6, activation="relu"), MAPS),
    "batch, plain mean": (lambda: ours.BatchNorm2d(6, momentum=None), MAPS),
    "batch, untracked": (lambda: ours.BatchNorm2d(6, track_running_stats=False), MAPS),
    "batch, unguarded": (lambda: ours.BatchNorm2d(6, skip_nonfinite=False), MAPS),
    "instance": (lambda: ours.InstanceNorm2d(6, affine=True), MAPS),
    "instance, tracked": (lambda: ours.InstanceNorm2d(6, track_running_stats=True), MAPS),
    "instance, unbatched": (lambda: ours.InstanceNorm2d(6, track_running_stats=True), MAPS[1:]),
    "group": (lambda: ours.GroupNorm(2, 6), MAPS),
    "layer": (lambda: ours.LayerNorm(5), MAPS),
    "rms": (lambda: ours.RMSNorm(5), MAPS),
    "switchable": (lambda: ours.SwitchableNorm2d(6), MAPS),
    "switchable, groups": (lambda: ours.SwitchableNorm2d(6, over=("group", "batch")), MAPS),
    "switchable, sparse": (lambda: ours.SwitchableNorm2d(6, sparse=True), MAPS),
    "switchable, official": (lambda: ours.SwitchableNorm2d(6, variance="official"), MAPS),
    "batch renorm": (lambda: ours.BatchRenorm(6), MAPS),
    "ghost": (lambda: ours.GhostBatchNorm(6, ghost_size=2), MAPS),
    "mean only": (lambda: ours.MeanOnlyBatchNorm(6), MAPS),
    "batch instance": (lambda: ours.BatchInstanceNorm(6), MAPS),
    "filter response": (lambda: ours.FilterResponseNorm(6, tlu=True), MAPS),
    "frozen": (lambda: ours.FrozenBatchNorm(6), MAPS),
}
LAYER = pytest.mark.parametrize("kind", LAYERS)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
State = dict[str, Tensor]


def made(kind: str, training: bool = True, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A layer in float64 with parameters of its own, and an input."""
    torch.manual_seed(seed)
    layer, shape = LAYERS[kind][0]().double().train(training), LAYERS[kind][1]
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.4, 0.9)
    return layer, torch.randn(shape, dtype=torch.float64) * (seed + 1) + seed


def state(layer: nn.Module) -> tuple[State, State]:
    """Copies of a layer's parameters and buffers."""
    found = (layer.named_parameters(), layer.named_buffers())
    return tuple({name: value.detach().clone() for name, value in named} for named in found)


def loss(layer: nn.Module, parameters: State, buffers: State, x: Tensor) -> Tensor:
    return functional_call(layer, (parameters, buffers), (x,)).pow(3).sum()


@LAYER
@TRAINING
@pytest.mark.parametrize("what", ["output", "gradient"])
def test_an_ensemble_is_its_members(kind: str, training: bool, what: str) -> None:
    members, xs = zip(*(made(kind, training, seed) for seed in range(3)), strict=True)
    parameters, buffers = stack_module_state(list(members))
    base = copy.deepcopy(members[0])

    def one(p: State, b: State, x: Tensor) -> Tensor | State:
        if what == "gradient":
            return grad(loss, 1)(base, p, b, x)
        return functional_call(base, (p, b), (x,))

    together = vmap(one)(parameters, buffers, torch.stack(xs))
    for k, (member, x) in enumerate(zip(members, xs, strict=True)):
        alone, expected = state(member)
        y = one(alone, expected, x)
        part = {n: v[k] for n, v in together.items()} if isinstance(together, dict) else together[k]
        torch.testing.assert_close(part, y)
        torch.testing.assert_close({n: v[k] for n, v in buffers.items()}, expected)
        member(x)  # and as in an ordinary step
        torch.testing.assert_close(expected, dict(member.named_buffers()))


@pytest.mark.parametrize("kind", ["batch 2d", "instance, tracked", "batch, plain mean"])
def test_an_ensemble_moves_its_averages_as_torchs_does(kind: str) -> None:
    mine = [made(kind, seed=seed)[0] for seed in range(2)]
    # Torch's plain mean reads the count, which vmap refuses; over one batch it is this.
    options = {"momentum": mine[0].momentum or 1.0, "affine": mine[0].affine, "track_running_stats": True}
    theirs = [getattr(nn, type(m).__name__)(6, **options) for m in mine]
    x, results = made(kind)[1], []
    for layers in (mine, theirs):
        parameters, buffers = stack_module_state([layer.double() for layer in layers])
        base = layers[0]
        vmap(lambda p, b, x, base=base: functional_call(base, (p, b), (x,)), (0, 0, None))(parameters, buffers, x)
        results.append(buffers)
    assert results[0]["running_mean"].abs().min() > 0
    torch.testing.assert_close(results[0], results[1])


def test_an_ensemble_leaves_out_the_batches_that_are_not_finite() -> None:
    members, xs = zip(*(made("batch 2d", seed=seed) for seed in range(3)), strict=True)
    parameters, buffers = stack_module_state(list(members))
    xs[1][0, 0] = torch.nan
    vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)))(parameters, buffers, torch.stack(xs))
    assert buffers["num_batches_tracked"].tolist() == [1, 0, 1]
    assert buffers["running_var"].isfinite().all()


@LAYER
@TRAINING
def test_gradients_and_per_sample_gradients(kind: str, training: bool) -> None:
    layer, x = made(kind, training)
    parameters, buffers = state(layer)
    before = copy.deepcopy(buffers)
    each = vmap(grad(loss, 1), (None, None, None, 0))(layer, parameters, buffers, torch.stack([x, 2 * x]))
    torch.testing.assert_close(buffers, before)  # one average cannot follow many batches
    for k, own in enumerate((x, 2 * x)):
        leaves = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        value = loss(layer, leaves, copy.deepcopy(before), own)
        expected = torch.autograd.grad(value, list(leaves.values())) if leaves else ()
        torch.testing.assert_close([g[k] for g in each.values()], list(expected))
        captured = grad(lambda p, own=own: functional_call(layer, p, (own,)).pow(3).sum())(parameters)
        torch.testing.assert_close(list(captured.values()), list(expected))
    torch.testing.assert_close(dict(layer.named_buffers()), before)  # nor may a transform change what it was not given


@LAYER
@TRAINING
@pytest.mark.parametrize("mode", ["symbolic", *(pytest.param(m, marks=pytest.mark.long) for m in ("real", "fake"))])
def test_make_fx(kind: str, training: bool, mode: str) -> None:
    layer, x = made(kind, training)
    other = torch.randn(7, *x.shape[1:], dtype=x.dtype) if mode == "symbolic" and x.ndim > 1 else 2 * x + 1
    other = other if kind != "ghost" and "unbatched" not in kind else 2 * x + 1  # how many ghosts is part of the graph

    def step(parameters: State, buffers: State, x: Tensor) -> tuple[Tensor, ...]:
        leaves = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        x = x.detach().requires_grad_()
        y = functional_call(layer, (leaves, buffers), (x,))
        return y, *torch.autograd.grad(y.pow(3).sum(), [x, *leaves.values()])

    graph = make_fx(step, tracing_mode=mode)(*state(layer), x)
    assert not any("normwise" in str(node.target) for node in graph.graph.nodes)
    results = []
    for function in (graph, step):
        parameters, buffers = state(layer)
        results.append((function(parameters, buffers, other), buffers))
    torch.testing.assert_close(*results)


@LAYER
@TRAINING
def test_jit_trace(kind: str, training: bool) -> None:
    layer, x = made(kind, training)
    traced = torch.jit.trace(copy.deepcopy(layer), x, check_trace=False)
    layer(x)  # tracing is a step, too
    torch.testing.assert_close(traced(2 * x + 1), layer(2 * x + 1))
    torch.testing.assert_close(dict(traced.named_buffers()), dict(layer.named_buffers()))


@pytest.mark.parametrize("kind", ["batch 2d", "batch, plain mean", "switchable", "group", "layer"])
def test_a_compiled_ensemble(kind: str) -> None:
    members, xs = zip(*(made(kind, seed=seed) for seed in range(2)), strict=True)
    results, base = [], members[0]
    torch._dynamo.reset()
    for compiled in (False, True):
        run = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))
        run = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
        parameters, buffers = stack_module_state(list(members))
        results.append((run(parameters, buffers, torch.stack(xs)), buffers))
    torch.testing.assert_close(*results)


def test_a_gate_beyond_its_range_is_clipped_under_a_transform_and_comes_back() -> None:
    layer, x = made("batch instance")
    parameters, buffers = state(layer)
    parameters["gate"] = torch.linspace(-1, 2, 6, dtype=x.dtype)
    clipped = parameters | {"gate": parameters["gate"].clamp(0, 1)}
    gradients = [grad(loss, 1)(layer, p, copy.deepcopy(buffers), x) for p in (parameters, clipped)]
    torch.testing.assert_close(*gradients)
    assert gradients[0]["gate"].abs().min() > 0


def test_a_member_that_is_left_out_is_said_under_vmap_too() -> None:
    layer = ours.SwitchableNorm1d(6)
    with pytest.warns(NormwiseWarning, match="instance would rest on one element"):
        vmap(layer)(torch.randn(2, 4, 6))

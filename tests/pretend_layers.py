"""The layers on a device: the CPU's numbers, how many operators they take, and that nothing is read on the host."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import layers_of_all_kinds as kinds
import normwise.nn as norms
import pretend
from normwise.errors import NormwiseWarning
from normwise.kernels.reference import has_float64


@pytest.fixture(autouse=True)
def device() -> torch.device:
    return pretend.install()


# What others are made from.
BASES = {"AnyLayerNorm", "SwitchableNorm"}


def test_no_layer_is_missing_here() -> None:
    public = {name: getattr(norms, name) for name in norms.__all__}
    layers = {name for name, made in public.items() if isinstance(made, type) and issubclass(made, nn.Module)}
    assert layers - BASES == {name.split()[0] for name in kinds.LAYERS}


@pytest.fixture
def without_float64(device: torch.device) -> Iterator[torch.device]:
    """A device that lacks the type, as MPS does."""
    has_float64.cache_clear()
    pretend.LACKS.add(torch.float64)
    yield device
    pretend.LACKS.clear()
    has_float64.cache_clear()


@pytest.mark.parametrize("name", kinds.LAYERS)
def test_a_layer_gives_the_cpus_numbers(name: str, device: torch.device) -> None:
    expected = kinds.trained(*kinds.built(name))
    layer, given = kinds.built(name)
    there = tuple(t.to(device) if isinstance(t, torch.Tensor) else t for t in given)
    layer.to(device)
    with pretend.counting() as counts:
        found = kinds.trained(layer, there)
    assert counts.reads.total() <= 3, counts.reads  # train() and eval() look for batches that were left out
    assert expected.keys() == found.keys()
    for key, value in found.items():
        assert value.device.type == "pretend", key
        torch.testing.assert_close(
            value.cpu(), expected[key], rtol=2e-4, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", kinds.LAYERS)
def test_a_layer_needs_no_float64(name: str, without_float64: torch.device) -> None:
    layer, given = kinds.built(name)
    layer.to(without_float64)
    found = kinds.trained(layer, tuple(t.to(without_float64) if isinstance(t, torch.Tensor) else t for t in given))
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("name", kinds.LAYERS)
def test_a_layer_runs_without_values(name: str) -> None:
    layer, given = kinds.built(name)
    layer.to("meta")
    found = kinds.trained(layer, tuple(t.to("meta") if isinstance(t, torch.Tensor) else t for t in given))
    expected = kinds.trained(*kinds.built(name))
    assert {key: (t.shape, t.dtype) for key, t in found.items()} == {
        key: (t.shape, t.dtype) for key, t in expected.items()
    }


# Operators forward and backward of a step in training, views and allocations not counted: ours, and torch's own layer.
# Batch norm leaves out batches that are not finite, for which it takes 7 operators of a few numbers more than torch.
TORCHS = {
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (9, 1)),
    "BatchNorm2d as torch's": (lambda: nn.BatchNorm2d(6), (2, 1)),
    "BatchNorm2d untracked": (lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False), (1, 1)),
    "BatchNorm2d relu": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), (10, 2)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (9, 1)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), (9, 1)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (1, 1)),
    "GroupNorm leaky": (lambda: nn.Sequential(nn.GroupNorm(3, 6), nn.LeakyReLU()), (2, 2)),
    "GroupNorm of one group": (lambda: nn.GroupNorm(1, 6), (1, 1)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True), (3, 3)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6), (1, 1)),
    "LayerNorm": (lambda: nn.LayerNorm((5, 5)), (1, 1)),
    "RMSNorm": (lambda: nn.Sequential(nn.RMSNorm(6), nn.SiLU()), None),
}


@pytest.mark.parametrize("name", TORCHS)
def test_a_plain_layer_takes_no_more_operators_than_torchs(name: str, device: torch.device) -> None:
    build, stored = TORCHS[name]
    layer, given = kinds.built(name)
    torchs = operators(build(), given, device)
    ours = operators(layer, given, device)
    assert stored is None or ours == stored
    tracking = isinstance(layer, norms.BatchNorm1d | norms.BatchNorm2d | norms.BatchNorm3d) and layer.skip_nonfinite
    assert ours[0] <= torchs[0] + 7 * (tracking and layer.running_mean is not None)
    assert ours[1] <= torchs[1]
    tracks = getattr(layer, "running_mean", None) is not None
    evaluated, theirs = operators(layer.eval(), given, device), operators(build().eval(), given, device)
    # Evaluation with gradients copies the averages, which may move before the backward pass.
    assert evaluated <= (theirs[0] + tracks, theirs[1])


# The same for layers that torch has no counterpart of.
OWN = {
    "SwitchableNorm2d": (20, 19),
    "SwitchableNorm2d untracked": (12, 19),
    "SwitchableNorm3d": (20, 19),
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_of_ours_takes_few_operators(name: str, device: torch.device) -> None:
    layer, given = kinds.built(name)
    assert operators(layer, given, device) == OWN[name]


def operators(layer: nn.Module, given: tuple[Any, ...], device: torch.device) -> tuple[int, int]:
    layer.to(device)
    x = given[0].to(device).requires_grad_()
    layer(x)
    with pretend.counting() as forward:
        y = layer(x)
    gradient = torch.ones_like(y)
    with pretend.counting() as backward:
        y.backward(gradient)
    layer.zero_grad()
    assert not forward.reads + backward.reads
    return forward.operators.total(), backward.operators.total()


def test_changing_modes_reads_one_value(device: torch.device) -> None:
    layers = [
        norms.BatchNorm2d(6),
        norms.SwitchableNorm2d(6),
        norms.BatchRenorm(6),
        norms.SwitchableNorm2d(6, sparse=True),
    ]
    model = nn.Sequential(*layers).to(device)
    x = torch.randn(4, 6, 5, 5, device=device)
    for change in (model.eval, model.train, model.eval):
        with pretend.counting() as counts:
            change()
        assert counts.reads.total() == 1
        with pretend.counting() as counts:
            model(x)
        assert not counts.reads


def test_a_batch_that_is_not_finite_is_left_out_and_told(device: torch.device) -> None:
    model = nn.Sequential(norms.BatchNorm2d(2), nn.Sequential(norms.BatchNorm2d(2, momentum=None))).to(device)
    x = torch.randn(3, 2, 4, 4, device=device)
    model(x)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model(torch.where(x > 0, torch.nan, x))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.warns(NormwiseWarning, match=r"layer '0' \(BatchNorm2d\)"):
        model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()
    assert [layer.num_batches_skipped.item() for layer in (model[0], model[1][0])] == [1, 1]


TRACKING = {
    "batch": lambda: norms.BatchNorm2d(2),
    "batch, as torch's": lambda: norms.BatchNorm2d(2, skip_nonfinite=False),
    "instance": lambda: norms.InstanceNorm2d(2, affine=True, track_running_stats=True),
    "switchable": lambda: norms.SwitchableNorm2d(2),
    "renorm": lambda: norms.BatchRenorm(2),
}


@pytest.mark.parametrize("name", TRACKING)
def test_averages_that_move_before_the_backward_pass_of_an_evaluation_do_not_change_it(
    name: str, device: torch.device
) -> None:
    def gradients(moves: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = TRACKING[name]().to(device)
        x = torch.randn(3, 2, 4, 4, device=device, requires_grad=True)
        y = layer.eval()(x)
        if moves:
            before = layer.running_var.clone()
            layer.train()(5 * x.detach())
            assert not torch.equal(layer.running_var, before)
        return [g.cpu() for g in torch.autograd.grad(y.sin().sum(), (x, layer.weight))]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "SwitchableNorm2d"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_type_and_layout(name: str, dtype: torch.dtype, device: torch.device) -> None:
    layer, given = kinds.built(name)
    exact = layer(*given).detach()
    x = given[0].to(device, dtype, memory_format=torch.channels_last)
    layer.to(device)
    for autocast in (False, True):
        with torch.autocast("pretend", dtype, enabled=autocast):
            y = layer(x)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y.cpu().float(), exact, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("name", ["BatchNorm2d", "BatchNorm2d relu", "GroupNorm", "InstanceNorm2d", "SwitchableNorm2d"])
def test_second_derivatives_are_the_cpus(name: str, device: torch.device) -> None:
    layer, given = kinds.built(name)

    def twice(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0].cpu()

    expected = twice(layer, given[0])
    torch.testing.assert_close(twice(layer.to(device), given[0].to(device)), expected, rtol=1e-3, atol=1e-4)

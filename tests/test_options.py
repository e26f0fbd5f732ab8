"""Options of ``normalize`` and of the layers that make no sense are refused in words, before anything has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from normwise import functional, kernels, nn
from normwise.core.route import at_once
from normwise.errors import InputError
from normwise.functional import normalize
from normwise.kernels.cpu import native
from normwise.methods import METHODS, Group, Switchable

X = torch.randn(4, 6, 5)
ZEROS, ONES = torch.zeros(6), torch.ones(6)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("btach", {}, "unknown method 'btach': expected one of none, batch"),
        ("batch", {"activation": "gelu"}, "unknown activation 'gelu': expected one of None, 'relu'"),
        ("batch(parts=all)", {}, "unknown parts 'all': expected one of both, mean, scale"),
        ("batch(groups=2)", {}, "batch has no option 'groups': it takes parts"),
        (
            "batch",
            {"num_groups": 2},
            "batch has no learned tensor 'num_groups': it takes none. Options are the method's",
        ),
        ("switchable(variance=biased)", {}, "unknown variance 'biased': expected one of paper, official"),
        ("switchable(over=layer+btach)", {}, "expected one or more different members of instance, layer"),
        ("switchable(over=())", {}, "expected one or more different members"),
        ("switchable", {"mean_weight": torch.ones(2)}, r"mean_weight must have one value for each of .* shape \(2,\)"),
        ("switchable", {"var_weight": torch.ones(())}, "var_weight must have one value for each of instance"),
        ("batch", {"running_mean": ZEROS, "momentum": 0.1}, "got running_mean without running_var"),
        ("batch", {"running_var": ONES}, "got running_var without running_mean"),
        ("batch", {"use_running": True}, "use_running=True needs running_mean and running_var"),
        ("group", {"running_mean": ZEROS, "running_var": ONES, "momentum": 0.1}, "group .* keeps no running averages"),
        ("ghost_batch(ghost_size=0)", {}, "ghost_size counts samples, at least 1, got 0"),
    ],
)
def test_an_option_that_makes_no_sense(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalize(X, method, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.ones(3, 6)}, r"weight should have the shape \(6,\) or \(4, 6\), got \(3, 6\)"),
        ({"bias": torch.ones(())}, "bias should contain 6 elements not 1"),
        ({"running_mean": ZEROS, "running_var": torch.ones(5)}, "running_var should contain 6 elements not 5"),
        ({"method": Group(0)}, "Expected num groups to be greater than 0, got 0"),
        ({"method": Group(4)}, r"divisible by num_groups, but got input of shape \[4, 6, 5\] and num_groups=4"),
    ],
)
def test_a_tensor_of_another_size(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        normalize(X, **options)


def test_one_member_may_be_given_by_its_name() -> None:
    torch.testing.assert_close(normalize(X, "switchable(over=layer)"), normalize(X, "layer"))


@pytest.mark.parametrize(
    "build",
    [
        lambda a: nn.BatchNorm2d(6, activation=a),
        lambda a: nn.LazyBatchNorm2d(activation=a),
        lambda a: nn.InstanceNorm2d(6, activation=a),
        lambda a: nn.GroupNorm(2, 6, activation=a),
        lambda a: nn.LayerNorm(6, activation=a),
        lambda a: nn.RMSNorm(6, activation=a),
        lambda a: nn.SwitchableNorm2d(6, activation=a),
        lambda a: nn.BatchRenorm(6, activation=a),
        lambda a: nn.ConditionalBatchNorm(6, 2, activation=a),
    ],
)
def test_layers_refuse_an_unknown_activation_when_they_are_built(build: Callable[[str], torch.nn.Module]) -> None:
    build("silu")
    with pytest.raises(InputError, match="unknown activation 'gelu'"):
        build("gelu")


def test_an_activation_that_is_set_later_is_checked_when_it_is_used() -> None:
    layer = nn.BatchNorm1d(6)
    layer.activation = "gelu"
    with pytest.raises(InputError, match=r"unknown activation 'gelu'.*\[in layer BatchNorm1d\]"):
        layer(X)


@pytest.mark.parametrize(("channels", "groups", "fix"), [(12, 12, "num_groups=6 would do"), (7, 7, "num_groups=1 ")])
def test_groups_of_one_element_are_torchs_for_several_samples_and_refused_for_one(
    channels: int, groups: int, fix: str
) -> None:
    x = torch.randn(4, channels, 1, 1)
    y = nn.GroupNorm(groups, channels)(x)
    torch.testing.assert_close(y, torch.nn.GroupNorm(groups, channels)(x), rtol=0, atol=1e-4)
    assert torch.equal(y, torch.zeros_like(y))
    with pytest.raises(InputError, match=fix):
        nn.GroupNorm(groups, channels)(x[:1])
    assert nn.GroupNorm(int(fix.split("=")[1].split()[0]), channels)(x).std() > 0.1


@pytest.mark.parametrize(
    "build",
    [
        lambda n: nn.SwitchableNorm2d(n),
        lambda n: nn.SwitchableNorm2d(n, num_groups=1),
        lambda n: nn.BatchRenorm(n),
        lambda n: nn.GhostBatchNorm(n),
        lambda n: nn.MeanOnlyBatchNorm(n, affine=False, track_running_stats=False),
        lambda n: nn.BatchInstanceNorm(n),
        lambda n: nn.FilterResponseNorm(n, affine=False),
        lambda n: nn.ConditionalBatchNorm(n, num_conditions=2),
        lambda n: nn.ConditionalInstanceNorm(n, condition_features=2),
        lambda n: nn.FrozenBatchNorm(n),
    ],
)
@pytest.mark.parametrize("size", [0, -3])
def test_a_size_that_no_data_has(build: Callable[[int], torch.nn.Module], size: int) -> None:
    build(2)
    with pytest.raises(InputError, match=rf"num_features .*at least 1, got {size}"):
        build(size)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "InstanceNorm1d", "LayerNorm", "RMSNorm", "GroupNorm"])
@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_sizes_that_torch_refuses_and_takes(name: str, size: int) -> None:
    args = (1, size) if name == "GroupNorm" else (size,)
    built: list[str] = []
    for library in (torch.nn, nn):
        try:
            built.append(str(getattr(library, name)(*args)))
        except RuntimeError as problem:
            built.append(str(problem))
    assert built[0] == built[1]


@pytest.mark.parametrize(
    ("over", "shape"),
    [
        (("instance",), (4, 6)),
        (("instance",), (4, 6, 1)),
        (("batch",), (1, 6)),
        (("layer",), (4, 1)),
        (("group",), (4, 6)),
        (("instance", "group"), (4, 6)),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_mix_without_a_member_that_means_anything(
    over: tuple[str, ...], shape: tuple[int, ...], sparse: bool
) -> None:
    layer = nn.SwitchableNorm1d(shape[1], over=over, num_groups=shape[1], sparse=sparse)
    with pytest.raises(InputError, match="every member would rest on a single value"):
        layer(torch.randn(shape))
    with pytest.raises(InputError, match="every member would rest on a single value"):
        normalize(torch.randn(shape), Switchable(over, num_groups=shape[1]))
    if over == ("batch",):
        assert layer.eval()(torch.randn(shape)).std() > 0.1


@pytest.mark.skipif(not native.available(), reason=native.why_not() or "")
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["batch", "layer", "instance", "group"])
def test_the_short_way_gives_what_the_long_way_gives(
    method: str, dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(3, 6, 5, dtype=dtype), torch.rand(6).to(dtype), torch.randn(6).to(dtype)
    wide = kernels.accumulation_dtype(dtype)

    def results() -> list[torch.Tensor]:
        counts = torch.zeros(2, dtype=torch.long)
        averages = {"running_mean": torch.zeros(6, dtype=wide), "running_var": torch.ones(6, dtype=wide)}
        moving = averages | {"momentum": 0.1, "skipped": counts[0], "tracked": counts[1]}
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        given = {"weight": leaves[1], "bias": leaves[2], "activation": activation}
        row, _ = METHODS[method].taking({"num_groups": 2})
        y = normalize(leaves[0], row, **given, **(moving if method == "batch" else {}))  # type: ignore[arg-type]
        first = torch.autograd.grad(y.pow(2).sum(), leaves, create_graph=True)
        again = torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)
        fused = torch.autograd.grad(normalize(leaves[0], row, **given).sum(), leaves)  # type: ignore[arg-type]
        return [y, *first, *again, *fused, *averages.values(), counts]

    taken = []
    monkeypatch.setattr(functional, "at_once", lambda *args: taken.append(at_once(*args)) or taken[-1])
    short = results()
    assert len(taken) == 2
    assert all(y is not None for y in taken)
    monkeypatch.setattr(functional, "at_once", lambda *_: None)
    torch.testing.assert_close(short, results(), rtol=0, atol=0)


@pytest.mark.parametrize("plain", [False, True], ids=["native", "plain"])
def test_a_constant_input_mixes_to_zero(plain: bool, leave_kernels_out: Callable[[], None]) -> None:
    if plain:
        leave_kernels_out()
    layer = nn.SwitchableNorm2d(6)
    for seed in range(20):
        torch.manual_seed(seed)
        for parameter in (layer.mean_weight, layer.var_weight):
            torch.nn.init.normal_(parameter)
        y = layer(torch.full((3, 6, 5, 5), 1e4 + 1 / 3))
        assert y.abs().max() <= (0 if plain else 1e-8)  # natively the shares are float64, and sum to 1 but for 1e-16

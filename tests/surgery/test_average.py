"""States averaged by counts, against pooled data in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normwise
from normwise.errors import InputError

SIZES = [5, 40, 11]


def clients(layer: nn.Module, *shape: int):
    """One layer fed with each client's data, and one with all of it; the clients' means lie apart."""
    random = torch.Generator().manual_seed(0)
    layer = layer.double()
    data = [
        torch.randn(n, *shape, generator=random, dtype=torch.float64) * (1 + k) + 3 * k for k, n in enumerate(SIZES)
    ]
    trained = [copy.deepcopy(layer).train() for _ in SIZES]
    pooled = copy.deepcopy(layer).train()
    return trained, data, pooled


def close(state, expected):
    torch.testing.assert_close(dict(state), dict(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (nn.BatchNorm1d(3, momentum=1.0), (3,), 1),
        (nn.BatchNorm2d(3, momentum=1.0), (3, 4, 5), 20),
        (normwise.nn.BatchNorm2d(3, momentum=1.0), (3, 2, 2), 4),
        (normwise.nn.SwitchableNorm2d(3, momentum=1.0), (3, 4, 5), 20),
        (nn.Sequential(nn.BatchNorm1d(3, momentum=1.0)), (3, 7), {"0": 7}),
    ],
    ids=["per sample", "images", "ours", "switchable", "by name"],
)
def test_running_statistics_are_those_of_the_pooled_data(layer, shape, positions):
    trained, data, pooled = clients(layer, *shape)
    for client, x in zip(trained, data, strict=True):
        client(x)
    pooled(torch.cat(data))
    averaged = normwise.average_states([c.state_dict() for c in trained], SIZES, positions=positions)
    expected = pooled.state_dict()
    for key, value in averaged.items():
        if key.endswith("num_batches_tracked"):
            assert value == len(SIZES)
            assert value.dtype == torch.int64
        else:
            close({key: value}, {key: expected[key]})
    pooled.load_state_dict(averaged)


def test_calibrated_clients_equal_calibration_on_all_data():
    trained, data, pooled = clients(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), 2, 4, 4)
    for client, x in zip(trained, data, strict=True):
        normwise.calibrate(client, [x[:4], x[4:]])
    normwise.calibrate(pooled, data)
    averaged = normwise.average_states([c.state_dict() for c in trained], SIZES, positions=16)
    close(*({k: v for k, v in s.items() if "running" in k} for s in (averaged, pooled.state_dict())))


def test_tracked_instance_norms_keep_each_samples_own_variance():
    trained, data, pooled = clients(nn.InstanceNorm1d(3, momentum=1.0, track_running_stats=True), 3, 6)
    for client, x in zip(trained, data, strict=True):
        client(x)
    pooled(torch.cat(data))
    averaged = normwise.average_states([c.state_dict() for c in trained], SIZES, model=pooled)
    close(*({k: v for k, v in s.items() if "running" in k} for s in (averaged, pooled.state_dict())))


def test_weights_are_averaged_by_counts_and_keep_their_type():
    states = [
        {"w": torch.full((2,), v, dtype=kind), "steps": torch.tensor(7), "mask": torch.tensor([True])}
        for v, kind in ((1.0, torch.bfloat16), (4.0, torch.bfloat16))
    ]
    averaged = normwise.average_states(states, [1, 3])
    assert averaged["w"].tolist() == [3.25, 3.25]
    assert averaged["w"].dtype == torch.bfloat16
    assert averaged["steps"] == 7
    assert normwise.average_states(states)["w"].tolist() == [2.5, 2.5]
    averaged["mask"][0] = False
    assert bool(states[0]["mask"])  # a copy
    layers = [normwise.nn.SwitchableNorm2d(2) for _ in range(2)]
    nn.init.constant_(layers[1].mean_weight, 3.0)
    mixed = normwise.average_states([layer.state_dict() for layer in layers], [1, 1])
    assert mixed["mean_weight"].tolist() == [(1 + 3) / 2] * len(layers[0].mean_weight)
    assert normwise.average_states([{"z": torch.tensor([1 + 2j])}, {"z": torch.tensor([3 + 0j])}])["z"] == 2 + 1j


def test_what_is_equal_everywhere_stays_bit_for_bit():
    torch.manual_seed(0)
    state = nn.BatchNorm1d(50).state_dict()
    state["running_mean"], state["running_var"] = torch.randn(50), torch.rand(50)
    averaged = normwise.average_states([state] * 3, [1, 2, 30])
    assert all(torch.equal(averaged[key], state[key]) for key in ("running_mean", "weight"))
    torch.testing.assert_close(normwise.average_states([state] * 3)["running_var"], state["running_var"])


def test_clients_without_samples_or_variance_do_no_harm():
    trained, data, pooled = clients(nn.BatchNorm1d(3, momentum=1.0), 3)
    for client, x in zip(trained, data, strict=True):
        client(x)
    empty = {
        key: torch.full_like(v, float("nan")) if v.is_floating_point() else v for key, v in pooled.state_dict().items()
    }
    single = dict(
        empty, running_mean=torch.ones(3).double(), weight=torch.ones(3).double(), bias=torch.zeros(3).double()
    )
    averaged = normwise.average_states([*(c.state_dict() for c in trained), empty, single], [*SIZES, 0, 1])
    pooled(torch.cat([*data, torch.ones(1, 3).double()]))
    close(*({k: v for k, v in s.items() if "running" in k} for s in (averaged, pooled.state_dict())))


def test_what_cannot_be_averaged_says_so():
    bn, ln = nn.BatchNorm1d(3).state_dict(), nn.LayerNorm(3).state_dict()
    wrong = [
        ([], None, "empty list"),
        (bn, None, "expected a list of state dicts"),
        ([bn, nn.BatchNorm1d(3)], None, r"states\[1\] is a BatchNorm1d, expected a state dict: give model.state_dict"),
        ([bn, ln], None, r"states\[1\] is not of the same model.*lacks running_mean, running_var, num_batches_tracked"),
        ([ln, bn], None, "has besides running_mean"),
        ([bn, nn.BatchNorm1d(4).state_dict()], None, r"has \w+ as torch.float32 \(4,\), not torch.float32 \(3,\)"),
        ([bn, nn.BatchNorm1d(3).double().state_dict()], None, "torch.float64"),
        ([bn, bn], [1], "1 counts were given for 2 states"),
        ([bn, bn], [0, 0], "all counts are 0"),
        ([bn, bn], [1, -1], r"counts\[1\], a number of samples, must be at least 0"),
        ([bn, bn], [0.25, 0.75], r"counts\[0\], a number of samples, must be a whole number, got 0.25"),
        ([bn, bn], 3, "counts must be"),
        (
            [{"index": torch.tensor(1)}, {"index": torch.tensor(2)}],
            None,
            "index is a tensor of torch.int64 that differs",
        ),
        ([{"_extra_state": {"a": 1}}, {"_extra_state": {"a": 2}}], None, "cannot be averaged"),
    ]
    for states, counts, said in wrong:
        with pytest.raises(InputError, match=said):
            normwise.average_states(states, counts)

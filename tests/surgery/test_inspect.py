"""What inspection lists and finds, in models and in checkpoints."""

import json
import warnings

import pytest
import torch
from models import BNAct2d, ConvNet, Tokens, trained
from torch import nn

import normwise.nn as nw
from normwise import weight_norm
from normwise.errors import InputError
from normwise.surgery import inspect


@pytest.fixture
def net():
    torch.manual_seed(0)
    return trained(ConvNet(), torch.randn(8, 3, 8, 8))


def codes(inspection):
    return {(finding.layer, finding.severity, finding.code) for finding in inspection.findings}


def test_a_healthy_model_has_no_findings(net):
    found = inspect(net)
    assert codes(found) == set()
    assert found.worst is None
    assert not found.fails("info")
    assert [row.names for row in found.layers] == [["bn1"], ["shared"], ["head"]]
    shared = found.layers[1]
    assert (shared.type, shared.method, shared.channels, shared.eps, shared.momentum) == (
        *("BatchNorm2d", "batch", 8),
        *(1e-3, 0.3),
    )
    assert shared.batches == 6
    assert shared.variance_min == net.shared.running_var.min()
    assert "no findings" in str(found)


@pytest.mark.parametrize(
    ("tensor", "value", "expected"),
    [
        ("running_var", float("nan"), ("error", "non-finite")),
        ("running_mean", float("inf"), ("error", "non-finite")),
        ("weight", float("nan"), ("error", "non-finite")),
        ("running_var", -1.0, ("error", "negative-variance")),
        ("running_var", 1e-6, ("warning", "near-eps")),
        ("weight", 1e-9, ("info", "dead-weight")),
    ],
)
def test_each_fault_is_found_in_models_and_checkpoints(net, tensor, value, expected):
    with torch.no_grad():
        getattr(net.bn1, tensor)[2] = value
    for source in (net, net.state_dict()):
        found = inspect(source)
        assert codes(found) == {("bn1", *expected)}
        assert found.fails(expected[0])
        assert json.loads(found.to_json())["findings"][0]["code"] == expected[1]


def test_never_updated_and_immovable_statistics():
    assert codes(inspect(nn.Sequential(nn.BatchNorm2d(3)))) == {("0", "warning", "never-updated")}
    model = trained(nn.Sequential(nn.BatchNorm2d(3, momentum=None)), torch.randn(4, 3, 2, 2))
    assert codes(inspect(model)) == set()
    model[0].momentum = 0.0
    assert codes(inspect(model)) == {("0", "info", "momentum-0")}


def test_layers_of_all_kinds():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = [nn.GroupNorm(2, 4), nn.GroupNorm(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nw.SwitchableNorm2d(4)]
    found = inspect(nn.Sequential(*layers, BNAct2d(4), Doubled(4), nn.LazyBatchNorm2d()))
    assert [row.method for row in found.layers] == [
        *("group", "instance", "layer", "rms", "switchable"),
        *("batch", "batch", "batch"),
    ]
    assert {("1", "info", "group-of-one"), ("6", "info", "unproven"), ("7", "info", "unproven")} <= codes(found)


def test_a_zeroed_layer_is_a_warning():
    model = Tokens()
    nn.init.zeros_(model.norm2.weight)
    assert codes(inspect(model)) == {("norm2", "warning", "dead-weight")}


def test_checkpoints_show_what_they_can(net):
    state = nn.Sequential(net, Tokens(), nw.SwitchableNorm2d(4)).state_dict()
    rows = {row.names[0]: row.method for row in inspect(state).layers}
    layer = "layer, group or rms"
    assert rows == {
        "0.bn1": "batch",
        "0.shared": "batch",
        "0.head": "batch",
        "1.norm1": layer,
        "1.norm2": layer,
        "2": "switchable",
    }


def test_meta_models_are_listed():
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm2d(4))
    assert inspect(model).layers[0].channels == 4


def test_unknown_severity(net):
    with pytest.raises(InputError, match="unknown severity 'fatal'"):
        inspect(net).fails("fatal")


@pytest.mark.parametrize("older", [False, True])
def test_weight_norms_are_listed_in_models_and_checkpoints(older):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older way is deprecated, and still in use
        put_on = nn.utils.weight_norm if older else weight_norm
        model = nn.Sequential(put_on(nn.Conv2d(3, 4, 3)), put_on(nn.Linear(4, 2)))
    g, v = (model[0].weight_g, model[0].weight_v) if older else model[0].parametrizations.weight.parameters()
    with torch.no_grad():
        g[1] = 0
        v[2, 0, 0, 0] = float("nan")
    for found in (inspect(model), inspect(model.state_dict())):
        assert [(row.names, row.method, row.channels, row.dead) for row in found.layers] == [
            (["0"], "weight", 4, 1),
            (["1"], "weight", 2, 0),
        ]
        assert {f.code: f.message.partition(":")[0] for f in found.findings} == {
            "non-finite": "1 of 108 values of v are not finite",
            "dead-weight": "1 of 4 |weight|s are at most 0, where the median is " + f"{float(g.detach().median()):.2g}",
        }
    assert inspect(model).layers[0].type == "Conv2d"

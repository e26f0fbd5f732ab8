"""Optimizer groups: mixing weights and norms apart."""

import pytest
import torch
from torch import nn

from normwise.errors import InputError
from normwise.nn import (
    BatchNorm2d,
    LayerNormLSTM,
    SwitchableNorm2d,
    param_groups,
)


class Odd(nn.Module):
    """A norm that no type tells."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def test_groups_hold_every_parameter_once_and_no_frozen_one():
    model = nn.ModuleList([
        nn.Conv2d(3, 4, 3),
        SwitchableNorm2d(4),
        BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        LayerNormLSTM(3, 4),
        Odd(),
        nn.Linear(4, 4),
    ])
    model.append(model[0])
    model[9].weight.requires_grad_(False)
    groups = {group["name"]: group for group in param_groups(model, lr=0.2, weight_decay=0.01)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "mixing": (pytest.approx(0.02), 0.0),
        "norm": (0.2, 0.0),
        "rest": (0.2, 0.01),
    }
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    names = {id(p): name for name, p in model.named_parameters()}
    named = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert named["mixing"] == {"1.mean_weight", "1.var_weight"}
    lstm = {f"7.{name}_l0" for name in ("weight_ih", "weight_hh")}
    assert named["rest"] == {"0.weight", "0.bias", "8.scale", "9.bias"} | lstm
    taken = param_groups(model, lr=0.2, norms=(Odd,))
    assert any(p is model[8].scale for p in next(g for g in taken if g["name"] == "norm")["params"])
    torch.optim.AdamW(taken)


def test_groups_refuse_what_cannot_be_optimized():
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        param_groups(nn.ReLU(), lr=0.1)
    with pytest.raises(InputError, match="not be negative"):
        param_groups(nn.Linear(2, 2), lr=-1)

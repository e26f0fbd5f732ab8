"""Frozen layers stay frozen, and the audit says so."""

import copy
import pickle

import pytest
import torch
from torch import nn

import normwise.nn as nw
from normwise.errors import InputError, NormwiseError
from normwise.surgery.freeze import audit_frozen, freeze, frozen_layers, is_frozen, unfreeze


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4), nn.GroupNorm(2, 4))


def train_a_little(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 9, 9) + 5).square().mean().backward()
        optimizer.step()


def tracked_instance(channels):
    return nw.InstanceNorm2d(channels, affine=True, track_running_stats=True)


KINDS = [nn.BatchNorm2d, nw.BatchNorm2d, nw.SwitchableNorm2d, tracked_instance]


@pytest.mark.parametrize("norm", KINDS)
def test_frozen_layers_do_not_move_in_training_and_the_rest_does(norm):
    model = freeze(network(norm))
    conv = model[0].weight.detach().clone()
    with audit_frozen(model):
        train_a_little(model)
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert not torch.equal(conv, model[0].weight)
    assert [name for name, _ in frozen_layers(model)] == ["1", "4"]


@pytest.mark.parametrize("norm", KINDS)
def test_without_freezing_the_audit_finds_what_moved(norm):
    model = network(norm)
    audit = audit_frozen(model, where="1")
    train_a_little(model)
    moved = {m.what for m in audit.moved()}
    assert {"running_mean", "running_var", "weight", "bias"} <= moved
    assert all(m.change is not None and m.change > 0 for m in audit.moved() if m.what == "running_mean")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_stay_frozen_and_are_independent(clone):
    model = freeze(network())
    other = clone(model)
    with audit_frozen(other):
        train_a_little(other)
    unfreeze(other)
    assert other[1].training is True
    assert is_frozen(model[1])
    assert not model.train()[1].training


def test_unfreeze_gives_mode_and_requires_grad_back():
    model = network().train()
    model[1].bias.requires_grad_(False)
    unfreeze(freeze(freeze(model)))  # freezing twice must not forget the first state
    assert model[1].training
    assert model[1].weight.requires_grad
    assert not model[1].bias.requires_grad
    assert "train" not in vars(model[1])
    assert not model.eval()[1].training
    assert model.train()[1].training


def test_affine_false_leaves_the_parameters_learning():
    model = freeze(network(), affine=False)
    assert model[1].weight.requires_grad
    audit = audit_frozen(model)
    train_a_little(model)
    assert {m.what for m in audit.moved()} == {"weight", "bias"}


def test_a_gradient_left_from_before_does_not_move_a_frozen_layer():
    model = network()
    model(torch.randn(4, 3, 9, 9)).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freeze(model)
    with audit_frozen(model):
        optimizer.step()


def test_where_selects_and_takes_layers_without_statistics():
    model = freeze(network(), where=lambda name, layer: isinstance(layer, nn.GroupNorm))
    assert [name for name, _ in frozen_layers(model)] == ["5"]
    assert not model[5].weight.requires_grad
    freeze(model, where="[14]")
    unfreeze(model, where="4")
    assert [name for name, _ in frozen_layers(model)] == ["1", "5"]


def test_copy_leaves_the_model_alone():
    model = network()
    assert is_frozen(freeze(model, copy=True)[1])
    assert not is_frozen(model[1])


def test_the_audit_raises_and_names_what_moved():
    model = freeze(network())
    with pytest.raises(NormwiseError, match=r"frozen layers moved: 4\.running_var \(by up to 2\)"), audit_frozen(model):
        model[4].running_var.add_(2)


def test_the_audit_does_not_hide_an_exception_of_the_block():
    model = freeze(network())
    audit = audit_frozen(model)
    model[4].running_var.add_(2)
    audit.__exit__(KeyError)  # the block's own exception is on its way
    with pytest.raises(NormwiseError):
        audit.__exit__(None)


def test_the_audit_sees_replaced_unfrozen_and_bitwise_changes():
    model = freeze(network())
    audit = audit_frozen(model)
    model[1] = nn.BatchNorm2d(4)
    unfreeze(model, where="4")
    assert [(m.layer, m.what.split(":")[0]) for m in audit.moved()] == [("1", "removed"), ("4", "training")]
    model = freeze(network())
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    audit = audit_frozen(model)
    assert audit.moved() == []  # NaN is equal to itself here
    with torch.no_grad():
        model[4].bias.copy_(-model[4].bias)  # 0 becomes -0
    assert [(m.layer, m.what) for m in audit.moved()] == [("4", "bias")]


def test_nothing_to_freeze_or_audit_is_an_error():
    with pytest.raises(InputError, match="nothing to freeze: no normalization layer of Linear keeps"):
        freeze(nn.Linear(2, 2))
    with pytest.raises(InputError, match="no layer is frozen"):
        audit_frozen(network())


def test_an_optimizer_with_momentum_that_ran_before_does_not_move_it():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randn(4, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    freeze(model)
    with audit_frozen(model):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(4, 3, 9, 9)).square().sum().backward()
        optimizer.step()


def test_a_compiled_or_traced_model_keeps_frozen_statistics():
    model = freeze(network()).train()
    traced = torch.fx.symbolic_trace(model)
    with audit_frozen(model):
        traced(torch.randn(4, 3, 9, 9))

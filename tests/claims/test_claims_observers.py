"""What observers see, where it can be computed by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from normwise import nn as nnw
from normwise.claims import observers
from normwise.claims.tasks import Jitter, jittered, scaled, sharpening_sgd
from normwise.nn import norm_layer
from normwise.parametrize import weight_norm
from normwise.records import Setup
from normwise.study import Splits, make_task
from normwise.study.data import Part
from normwise.study.tasks.images import small_convnet

FINAL = Setup("final", "none", 32, 0.1, 0)


def task_of(inputs, targets=None, model=small_convnet):
    targets = torch.arange(len(inputs)) % 10 if targets is None else targets
    part = Part(inputs, targets)
    return make_task(model, Splits(part, part, part))


@pytest.fixture
def images():
    return torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def unchanged(model, watch):
    """Run an observer's end; the model must be as it was."""
    before, mode = copy.deepcopy(model.state_dict()), model.training
    found = watch.result()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training == mode
    assert all(p.grad is None for p in model.parameters())
    return found


def test_loss_curve_averages_what_is_there(images):
    watch = observers.LossCurve(nn.Linear(1, 1), task_of(images), FINAL)
    for k, loss in enumerate([4.0, 2.0, math.nan], 1):
        watch.step(k, loss)
    assert watch.result() == {"losses": [4.0, 3.0]}


def test_inputs_move_by_what_the_layer_before_is_moved_by(images):
    # The second layer sees x + bias: moving the bias by one deviation moves its inputs by exactly 1.
    first, second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    nn.init.ones_(first.weight), nn.init.zeros_(first.bias)
    model = nn.Sequential(first, second).train()
    watch = observers.InputDrift(model, task_of(images), FINAL)
    deviation = watch.probe().inputs.std(correction=0)
    watch.step(watch.EVERY, 1.0)
    watch.step(2 * watch.EVERY, 1.0)
    with torch.no_grad():
        first.bias.add_(deviation)
    watch.step(2 * watch.EVERY + 1, 1.0)
    watch.step(3 * watch.EVERY, 1.0)
    assert unchanged(model, watch)["drift_curve"] == pytest.approx([0.0, 1.0], abs=1e-5)


def test_gradients_are_those_of_each_layer(images):
    task = task_of(images)
    model = task.build("none")
    watch = observers.Gradients(model, task, FINAL)
    found = unchanged(model, watch)
    loss = task.loss_of(model, watch.probe())
    expected = torch.autograd.grad(loss, [m.weight for m in model if isinstance(m, nn.Conv2d)])
    assert found["gradients"] == pytest.approx([g.square().mean().sqrt().log10().item() for g in expected], abs=1e-4)
    assert found["decades"] == pytest.approx(found["gradients"][0] - found["gradients"][-1])


def test_errors_of_independent_samples_follow_the_law():
    images = torch.randn(2048, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nnw.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)).train()
    found = unchanged(model, observers.BatchErrors(model, task_of(images), FINAL))
    assert found["slopes"]["mean"] == pytest.approx(-0.5, abs=0.05)
    assert found["slopes"]["variance"] == pytest.approx(-0.5, abs=0.05)
    # 64 independent positions a sample: the error of the mean is 1/√(64 m).
    assert found["errors"]["mean"][0] == pytest.approx(1 / math.sqrt(128), rel=0.1)
    assert unchanged(model[:1], observers.BatchErrors(model[:1], task_of(images), FINAL)) == {}


def test_modes_tell_methods_apart(images):
    gaps = {}
    for method in ("layer", "batch"):
        task = task_of(images)
        model = task.build(method)
        gaps[method] = unchanged(model, observers.Modes(model, task, FINAL))
    assert max(gaps["layer"].values()) < 1e-5
    assert min(gaps["batch"].values()) > 0.01


def test_directions_are_separate_with_weight_norm_only(images):
    found = {}
    for method in ("weight", "none"):
        task = task_of(images)
        model = task.build(method)
        found[method] = unchanged(model, observers.Directions(model, task, FINAL))
    assert found["weight"]["cosine"] < 1e-4
    assert found["weight"]["rescaling"] < 1e-4
    assert found["none"]["cosine"] > 0.01
    assert found["none"]["rescaling"] > 0.1


def test_hardening_scores_and_times(images, monkeypatch):
    monkeypatch.setattr(observers.Hardening, "TURNS", 1)
    task = task_of(images)
    model = task.build("switchable")
    with torch.no_grad():
        for layer in (m for m in model if isinstance(m, nnw.SwitchableNorm2d)):
            layer.mean_weight[0] += 9
            layer.var_weight[0] += 9
    found = unchanged(model, observers.Hardening(model, task, FINAL))
    assert found["single"] == 1
    assert found["hard"] == pytest.approx(found["soft"], abs=0.02)
    assert set(found["seconds"]) == {"soft", "hard", "batch", "layer", "instance", "group"}
    assert min(found["seconds"].values()) > 0


def test_state_is_what_buffers_hold(images):
    model = nn.Sequential(nnw.BatchNorm2d(4))
    kept = sum(b.numel() * b.element_size() for b in model.buffers())
    assert observers.StateBytes(model, task_of(images), FINAL).result() == {"state_bytes": kept}
    assert kept > 2 * 4 * 4


def test_only_final_trials_are_watched_and_a_broken_model_gives_no_numbers(images):
    task = task_of(images)
    model = task.build("none")
    watch = observers.watching(observers.LossCurve, observers.Modes)
    tuning = watch(model, task, Setup("tune", "none", 32, 0.1, 0))
    tuning.step(1, 2.0)
    assert tuning.result() == {}
    final = watch(model, task, FINAL)
    final.step(1, 2.0)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    assert final.result() == {"losses": [2.0]}


def test_jitter_disturbs_training_only():
    x = torch.ones(4, 3, 5)
    layer = Jitter(0.5)
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert first.std((0, 2)).max() < 1e-6  # the whole channel moves together
    assert layer.eval()(x) is x
    model = jittered(small_convnet, 0.5)(norm_layer("batch"))
    assert sum(isinstance(m, Jitter) for m in model.modules()) == 3


def test_scaling_reaches_the_lengths_of_weight_norm():
    plain = scaled(lambda norm: nn.Sequential(nn.Linear(2, 2)), 10.0)(norm_layer("none"))
    torch.manual_seed(0)
    one = nn.Linear(2, 2)
    torch.manual_seed(0)
    ten = scaled(lambda norm: nn.Sequential(nn.Linear(2, 2)), 10.0)(norm_layer("none"))[0]
    assert torch.allclose(ten.weight, 10 * one.weight)
    lengths = weight_norm(copy.deepcopy(plain[0])).parametrizations.weight.original0
    assert torch.allclose(lengths[:, 0], plain[0].weight.norm(dim=1))


def test_sharpening_ends_with_one_method():
    layer = nnw.SwitchableNorm2d(3, sparse=True)
    with torch.no_grad():
        layer.mean_weight[1] += 0.5
        layer.var_weight[2] += 0.5
    _, schedule = sharpening_sgd(layer, 0.1, 10)
    seen = []
    for _ in range(10):
        schedule.step()
        seen.append(layer.sparsity.item())
    assert seen[1] == 0
    assert seen[-1] == 1
    assert sorted(seen) == seen
    assert np.allclose(layer.shares()[0].tolist(), [0, 1, 0])

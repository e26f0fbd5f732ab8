import dataclasses
import re

import pytest
import torch
from tiny_study import tiny_data, tiny_model
from torch import nn

from normwise.methods import METHODS
from normwise.records import Setup
from normwise.study.measure import peak_bytes
from normwise.study.optimize import SGD
from normwise.study.tasks.base import DEFAULT_METHODS
from normwise.study.trial import Trainer, build_model, data_order

ALL = tuple(METHODS)


def setup(method="batch", batch_size=8, lr=0.05, seed=3):
    return Setup("final", method, batch_size, lr, seed)


def test_default_methods_exist():
    assert set(DEFAULT_METHODS) <= set(METHODS)


def test_every_method_starts_from_the_same_weights(task):
    def initial(method):
        model = build_model(task, setup(method))
        return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    reference = initial("none")
    assert len(reference) == 2
    for method in DEFAULT_METHODS:
        for ours, theirs in zip(initial(method), reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not initial("batch")[0].equal(build_model(task, setup(seed=4))[0].weight)


def test_every_method_sees_the_same_samples_in_the_same_order(task):
    def samples(method, seed=3):
        order = data_order(task.splits.train, setup(method, seed=seed))
        return torch.cat([next(order).inputs for _ in range(20)])

    reference = samples("none")
    assert all(samples(method).equal(reference) for method in DEFAULT_METHODS)
    assert not samples("none", seed=4).equal(reference)


def test_an_epoch_shows_each_sample_at_most_once(task):
    order = data_order(task.splits.train, setup(batch_size=10))
    epoch = torch.cat([next(order).inputs for _ in range(7)]).flatten(1)
    assert len(epoch.unique(dim=0)) == 70


@pytest.mark.parametrize("method", DEFAULT_METHODS)
def test_same_setup_same_numbers(task, method):
    first, second = (Trainer(task, {8: 12})(setup(method)) for _ in range(2))
    for name in ("state", "valid_score", "test_score", "valid_loss", "test_loss", "mixtures"):
        assert getattr(first, name) == getattr(second, name)
    assert [p.train_loss for p in first.curve] == [p.train_loss for p in second.curve]
    assert first.state == "complete"
    assert first.steps == 12
    # To a few bytes: the allocator sees what else Python frees in the meantime.
    assert first.peak_bytes == pytest.approx(second.peak_bytes, rel=0.01)
    assert len(first.mixtures) == (method == "switchable")


def test_random_state_and_threads_are_left_alone(task):
    task = dataclasses.replace(task, threads=1)
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    Trainer(task, {8: 2}, measure_memory=False)(setup())
    assert torch.rand(3).equal(expected)
    assert torch.get_num_threads() == threads


def test_divergence_is_a_result(task):
    trial = Trainer(task, {8: 40})(setup("none", lr=1e30))
    assert trial.state == "diverged"
    assert trial.valid_score == trial.test_score == task.floor == pytest.approx(1 / 3, abs=0.1)
    assert "step" in trial.reason
    assert trial.valid_loss is None


def test_an_error_of_the_model_is_a_result(task):
    def fussy(norm):
        model = tiny_model(norm)
        if not isinstance(model[1], nn.Identity):
            raise ValueError("Expected more than 1 value\nper channel")
        return model

    trainer = Trainer(dataclasses.replace(task, make_model=fussy), {8: 2})
    assert trainer(setup("none")).state == "complete"
    trial = trainer(setup("batch"))
    assert trial.state == "failed"
    assert re.fullmatch(r"ValueError: Expected more than 1 value per channel \(at .*test_trial\.py:\d+\)", trial.reason)
    assert trial.valid_score == task.floor


def test_sgd_is_torchs():
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = SGD(models[0], lr=0.1), torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        x = torch.randn(4, 3)
        for model in models:
            model.zero_grad()
            model(x).square().sum().backward()
        ours.step()
        theirs.step()
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_peak_is_the_most_held_at_once():
    def step():
        first = torch.zeros(10_000)
        del first
        return torch.zeros(5_000), torch.zeros(5_000)

    assert 40_000 <= peak_bytes(step) < 42_000


def test_measuring_memory_changes_no_number(task):
    with_memory, without = (Trainer(task, {8: 5}, measure_memory=m)(setup("switchable")) for m in (True, False))
    assert with_memory.valid_loss == without.valid_loss
    assert without.peak_bytes is None


def test_tiny_data_is_deterministic():
    assert tiny_data()[0].equal(tiny_data()[0])

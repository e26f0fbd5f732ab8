"""A trial on two processes gives the numbers of one."""

import dataclasses

import pytest
import torch
from tiny_study import make_settings, tiny_model
from torch import nn

from normwise.errors import InputError
from normwise.records import Setup
from normwise.study.comparison import make_settings as checked_settings
from normwise.study.ranks import Distributed, Ranks
from normwise.study.tasks import load_task
from normwise.study.trial import Trainer
from normwise.study.worker import trainer_of


def dies(norm):
    raise SystemExit(3)


@pytest.mark.parametrize("method", ["batch", "switchable"])
def test_two_ranks_give_the_numbers_of_one(method):
    # 7: the ranks' shares differ. Real data, and long enough for running averages to matter.
    trainer, setup = Trainer(load_task("digits"), {7: 40}), Setup("final", method, 7, 0.05, 0)
    one, two = trainer(setup), Distributed(trainer, 2)(setup)
    assert two.state == one.state == "complete", two.reason
    assert two.steps == one.steps
    for name in ("valid_loss", "test_loss"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-3)
    assert two.valid_score == pytest.approx(one.valid_score, abs=0.01)
    assert [p.train_loss for p in two.curve] == pytest.approx([p.train_loss for p in one.curve], rel=1e-3)


def test_unsynced_statistics_would_show(task):
    """The test above can fail: batch norm on each rank's own share gives other numbers."""
    part = task.splits.train.take(slice(6))
    whole, halves = nn.BatchNorm2d(1)(part.inputs), [nn.BatchNorm2d(1)(x) for x in part.inputs.chunk(2)]
    assert not torch.allclose(whole, torch.cat(halves), rtol=1e-2)


def test_a_rank_that_dies_is_a_failed_trial(task):
    trainer = Trainer(dataclasses.replace(task, make_model=dies), {4: 2})
    trial = Distributed(trainer, 2)(Setup("final", "batch", 4, 0.1, 0))
    assert trial.state == "failed"
    assert "of 2 died" in trial.reason
    assert trial.valid_score == task.floor


def test_shares_are_whole():
    for size, samples in ((1, 5), (2, 5), (3, 8), (4, 4)):
        bounds = [Ranks(rank, size).bounds(samples) for rank in range(size)]
        assert [first for first, _ in bounds[1:]] == [end for _, end in bounds[:-1]]
        assert (bounds[0][0], bounds[-1][1]) == (0, samples)
        assert all(first < end for first, end in bounds)


def test_devices_are_asked_for_in_the_settings(task):
    assert isinstance(trainer_of(task, make_settings()), Trainer)
    assert isinstance(trainer_of(task, make_settings(devices=2)), Distributed)
    with pytest.raises(InputError, match="a batch of 2 cannot be shared by 4 devices"):
        checked_settings(task, batch_sizes=[2, 8], devices=4)
    with pytest.raises(InputError, match="at least 1, got 0"):
        checked_settings(task, devices=0)
    unnamed = dataclasses.replace(task, make_model=lambda norm: tiny_model(norm))
    with pytest.raises(InputError, match="several devices need a make_model that can be pickled"):
        trainer_of(unnamed, make_settings(devices=2))

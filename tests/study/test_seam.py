"""What a task may bring of its own: several inputs, losses, metrics, optimizers, augmentation, observers."""

import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch
from tiny_study import tiny_data, tiny_model
from torch import nn

from normwise.records import Setup, Trial, dumps, from_dict
from normwise.study import Part, Splits, compare
from normwise.study.data import as_part, split
from normwise.study.evaluate import evaluate
from normwise.study.tasks import Task
from normwise.study.trial import Trainer, build_model, training_batches


def setup(method="batch", seed=3):
    return Setup("final", method, 8, 0.05, seed)


class Padded(nn.Module):
    """Takes sequences and their lengths."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(3, 8, 3, padding=1), norm(8, dim=1), nn.Linear(8, 2)

    def forward(self, x, lengths):
        y = self.conv(x)
        y = self.norm(y) if isinstance(self.norm, nn.Identity) else self.norm(y, lengths=lengths)
        return self.head(y.relu().sum(2) / lengths[:, None])


@pytest.fixture
def padded():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 9, (60,), generator=generator)
    x = torch.randn(60, 3, 8, generator=generator) * (torch.arange(8) < lengths[:, None])[:, None]
    return (x, lengths), (x.sum((1, 2)) > 0).long()


def test_a_model_of_several_inputs(padded):
    study = compare(
        Padded,
        padded,
        methods=["none", "batch", "weight(init=data)"],
        batch_sizes=[8],
        seeds=2,
        lrs=[0.1],
        epochs=5,
        progress=False,
    )
    assert {t.state for t in study.trials} == {"complete"}
    assert all(t.peak_bytes for t in study.trials)
    assert study.record.settings.splits == {"train": 36, "valid": 12, "test": 12}


def test_parts_of_several_tensors(padded):
    part = as_part(*padded, "data")
    assert part.size == 60
    assert part.take(torch.tensor([5, 6])).inputs[1].equal(padded[0][1][5:7])
    assert sum(batch.size for batch in part.batches(7)) == 60
    changed = (padded[0][0], padded[0][1] + 1)
    assert split(*padded).fingerprint() != split(changed, padded[1]).fingerprint()
    with pytest.raises(ValueError, match=r"\(60, 3, 8\) and \(59,\) and targets \(60,\) differ in length"):
        as_part((padded[0][0], padded[0][1][:59]), padded[1], "data")
    with pytest.raises(ValueError, match="NaN"):
        as_part((torch.full((4, 2), float("nan")), torch.arange(4)), torch.arange(4), "data")


def test_a_fingerprint_is_the_same_as_ever():
    part = Part(torch.zeros(4, 3), torch.zeros(4))
    assert Splits(part, part, part).fingerprint() == "a08e18d6"


def test_loss_of_batches_and_metric(task):
    own = dataclasses.replace(
        task,
        loss=None,
        score=None,
        batch_loss=lambda model, batch: nn.functional.cross_entropy(model(batch.inputs), batch.targets),
        metric=lambda model, part: (model(part.inputs).argmax(1) == part.targets).double().mean(),
    )
    ours, theirs = (Trainer(t, {8: 12}, measure_memory=False)(setup()) for t in (task, own))
    assert ours.valid_score == theirs.valid_score
    assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=1e-5)
    assert [p.train_loss for p in ours.curve] == [p.train_loss for p in theirs.curve]


def test_a_metric_must_give_a_number(task):
    for value, said in ((torch.zeros(3), "expected one number"), (float("nan"), "the score is nan")):
        trial = Trainer(dataclasses.replace(task, metric=lambda model, part, v=value: v), {8: 6})(setup())
        assert said in trial.reason


def test_optimizer_and_schedule_of_the_task(task):
    made = []

    def adam(model, lr, steps):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        made.append((optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)))
        return made[-1]

    trial = Trainer(dataclasses.replace(task, optimizer=adam), {8: 12})(setup())
    assert trial.state == "complete", trial.reason
    ((_, scheduler),) = made
    assert scheduler.last_epoch == 12


def test_accumulated_batches_make_one_step(task):
    """Without normalization two batches of 8 are one of 16, in the loss and so in everything."""
    one = dataclasses.replace(task, accumulate=2)
    joined = Trainer(task, {16: 4})(Setup("final", "none", 16, 0.05, 3))
    halves = Trainer(one, {8: 4})(Setup("final", "none", 8, 0.05, 3))
    assert joined.steps == halves.steps == 4
    assert halves.valid_loss == pytest.approx(joined.valid_loss, rel=1e-5)
    assert [p.epoch for p in halves.curve] == [p.epoch for p in joined.curve]


def test_augmentation_is_paired(task):
    noisy = dataclasses.replace(
        task,
        augment=lambda batch, g: batch._replace(inputs=batch.inputs + torch.randn(batch.inputs.shape, generator=g)),
    )

    def batches(method, seed=3):
        found = training_batches(noisy, setup(method, seed))
        return torch.stack([next(found).inputs for _ in range(20)])

    assert batches("none").equal(batches("batch"))
    assert not batches("none").equal(batches("none", seed=4))
    plain = training_batches(task, setup())
    assert not batches("none")[0].equal(next(plain).inputs)


class Watch:
    def __init__(self, model, task, setup):
        self.parameters, self.losses = sum(p.numel() for p in model.parameters()), []

    def step(self, step, loss):
        assert step == len(self.losses) + 1
        self.losses.append(loss)

    def result(self):
        return {"parameters": self.parameters, "losses": [x for x in self.losses if x < 1e30]}


def test_an_observer_sees_every_step_and_is_stored(task):
    watched = dataclasses.replace(task, observe=Watch)
    trial = Trainer(watched, {8: 12})(setup())
    assert trial.observed["parameters"] == trial.parameters
    assert len(trial.observed["losses"]) == 12
    assert sum(trial.observed["losses"][:2]) / 2 == trial.curve[0].train_loss
    assert from_dict(Trial, json.loads(dumps(trial))) == trial
    unwatched = Trainer(task, {8: 12})(setup())
    assert unwatched.observed == {}
    assert unwatched.valid_loss == trial.valid_loss
    diverged = Trainer(watched, {8: 40})(Setup("final", "none", 8, 1e30, 3))
    assert diverged.state == "diverged"
    assert diverged.observed["losses"]


def test_an_observer_that_gives_no_json_loses_its_trial_only(task):
    class Bad(Watch):
        def result(self):
            return {"x": float("nan")}

    trial = Trainer(dataclasses.replace(task, observe=Bad), {8: 3})(setup())
    assert (trial.state, trial.observed) == ("failed", {})
    assert "JSON" in trial.reason


def test_methods_with_options(task):
    assert build_model(task, setup("group(num_groups=2)"))[1].num_groups == 2
    plain, first = (build_model(task, setup(method)) for method in ("weight", "weight(init=data)"))
    directions = [m[0].parametrizations.weight.original1 for m in (plain, first)]
    assert directions[0].equal(directions[1]), "the initial directions are the same"
    outputs = first[0](task.splits.train.inputs)
    assert outputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert outputs.std((0, 2, 3)).sub(1).abs().max() < 1e-2
    study = compare(
        tiny_model, tiny_data(), methods=["batch", "group( num_groups = 2 )"], batch_sizes=[4], seeds=2, lrs=[0.1],
        epochs=0.5, progress=False,
    )  # fmt: skip
    assert study.record.settings.methods == ["batch", "group(num_groups=2)"]
    assert {s.method for s in study.standings} == {"batch", "group(num_groups=2)"}
    assert "group(num_groups=2)" in study.html()


def test_tasks_are_sent_to_other_processes():
    part = Part(torch.zeros(4, 3), torch.zeros(4))
    task = Task("t", Splits(part, part, part), tiny_model, nn.functional.mse_loss, len, "s", 0.0, observe=Watch)
    assert pickle.loads(pickle.dumps(task)).observe is Watch


def test_several_outputs_are_joined(task):
    class Two(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)), x.amax((1, 2, 3))

    own = dataclasses.replace(
        task, loss=lambda outputs, targets: (outputs[0] - targets).square().mean(), score=lambda o, t: len(o[1])
    )
    score, _ = evaluate(Two(), own, task.splits.valid._replace(targets=task.splits.valid.targets.float()))
    assert score == task.splits.valid.size


def test_any_module_can_be_imported_first():
    """No circle of imports hides behind the order in which others import."""
    program = (
        "import importlib, pkgutil, sys, normwise.study as study\n"
        "for found in pkgutil.walk_packages(study.__path__, 'normwise.study.'):\n"
        "    for name in [n for n in sys.modules if n.startswith('normwise.study')]: del sys.modules[name]\n"
        "    importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

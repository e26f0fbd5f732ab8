"""On what a trial computes and how: precision, compilation, who reads the data, and that studies keep to one way."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from tiny_study import make_settings, tiny_data, tiny_model
from torch import nn

from normwise import devices
from normwise.errors import InputError
from normwise.records import Settings, Setup
from normwise.study import compare, make_task
from normwise.study.compute import Compute, Stepper
from normwise.study.data import Samples
from normwise.study.engines import Processes, RayCluster
from normwise.study.merging import union
from normwise.study.optimize import SGD
from normwise.study.stored import draw_up
from normwise.study.trial import Trainer, training_batches
from normwise.study.worker import Job

SETUP = Setup("final", "batch", 8, 0.05, 3)
GIVEN = {"methods": ["none", "batch"], "batch_sizes": [8], "seeds": 2, "epochs": 1, "lrs": [0.1], "progress": False}


class Records(torch.utils.data.Dataset):
    """Samples that are drawn anew whenever they are read."""

    images, labels = tiny_data()

    def __init__(self, first: int, last: int) -> None:
        self.numbers = range(first, last)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        n = self.numbers[i]
        return {"image": self.images[n] + 0.1 * torch.randn(1, 6, 6), "label": self.labels[n]}


PARTS = {"train": Records(0, 72), "valid": Records(72, 96), "test": Records(96, 120)}


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def trained(task, **how):
    return Trainer(task.on(Compute(**how)), {8: 12}, measure_memory=False)(SETUP)


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_lower_precision_trains_to_nearly_the_same(task, precision):
    full, lower = trained(task), trained(task, precision=precision)
    assert lower.state == "complete", lower.reason
    assert lower.valid_loss != full.valid_loss
    assert lower.valid_loss == pytest.approx(full.valid_loss, rel=0.03)


def test_autocast_is_on_in_training_and_evaluation(task):
    seen = []

    def model(norm):
        made = tiny_model(norm)
        made[0].register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))
        return made

    trained(dataclasses.replace(task, make_model=model), precision="bf16")
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}


def overflowing(model, batch, steps):
    """A loss whose gradient is too large for float16 in the first steps."""
    steps.append(None)
    model(batch.inputs)
    scale = 1e30 if len(steps) <= 2 else 1.0
    return scale * nn.functional.cross_entropy(model(batch.inputs), batch.targets)


@pytest.mark.parametrize("own", [False, True])
def test_steps_that_the_scaler_leaves_out_are_told(task, own):
    """With our optimizer, which leaves them out itself, and with torch's, which the scaler does not call."""
    made = partial(overflowing, steps=[])
    given = {"optimizer": lambda model, lr, steps: (torch.optim.SGD(model.parameters(), lr), None)} if own else {}
    task = dataclasses.replace(task, batch_loss=made, **given)
    trial = trained(task, precision="16")
    assert trial.state == "complete", trial.reason
    assert trial.notes == ["2 of 12 steps left out: their gradients were beyond float16"]
    study = draw_up(make_settings(batch_sizes=[8]), {}, [trial])
    assert "In 1 of 1 trials: 2 of 12 steps left out: their gradients were beyond float16." in study.settings.notes


def test_a_step_that_is_left_out_changes_nothing():
    model, compute = nn.Linear(3, 1), Compute(precision="16")
    ours, theirs = nn.Linear(3, 1), nn.Linear(3, 1)
    for other in (ours, theirs):
        other.load_state_dict(model.state_dict())
    steppers = {
        ours: Stepper(SGD(ours, 0.1), compute),
        theirs: Stepper(torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9), compute),
    }
    for factor in (1.0, 1e38, 1.0, 1e38, 1.0):
        before = ours.weight.detach().clone()
        for net, stepper in steppers.items():
            net.zero_grad()
            stepper.backward(factor * net(torch.ones(2, 3)).square().sum() * (1 if factor == 1 else 1e5))
            stepper.step()
        assert torch.equal(ours.weight, before) == (factor != 1)
        torch.testing.assert_close(ours.weight, theirs.weight)
    assert [stepper.skipped() for stepper in steppers.values()] == [2, 2]


def test_an_optimizer_that_cannot_be_scaled_is_refused(task):
    class Own:
        def step(self):
            pass

    trial = trained(dataclasses.replace(task, optimizer=lambda model, lr, steps: (Own(), None)), precision="16")
    assert trial.state == "failed"
    assert "Own is no torch.optim.Optimizer" in trial.reason


def test_a_schedule_goes_on_where_the_first_step_is_left_out(task):
    def optimizer(model, lr, steps):
        made = torch.optim.SGD(model.parameters(), lr)
        return made, torch.optim.lr_scheduler.LinearLR(made, 1.0, 0.1, total_iters=steps)

    task = dataclasses.replace(task, batch_loss=partial(overflowing, steps=[]), optimizer=optimizer)
    assert trained(task, precision="16").state == "complete"


# Of the tracer, making fakes of its inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_trains_alike(task, monkeypatch):
    called = []
    compile_in_place = nn.Module.compile

    def compiled(module):
        called.append(module)
        compile_in_place(module, backend="eager")  # the tracing is torch's in any case, and quick

    monkeypatch.setattr(nn.Module, "compile", compiled)
    plain, other = trained(task), trained(task, compile=True)
    assert other.state == "complete", other.reason
    assert len(called) == 1
    assert other.valid_loss == pytest.approx(plain.valid_loss, rel=1e-4)


def test_processes_that_read_ahead_change_no_number():
    task = make_task(tiny_model, PARTS, loss=loss)
    alone, ahead = trained(task), trained(task, num_workers=1)
    assert ahead.state == "complete", ahead.reason
    assert (ahead.valid_loss, ahead.curve) == (alone.valid_loss, alone.curve)


def test_reading_ahead_draws_from_no_generator_of_the_program():
    task = make_task(tiny_model, PARTS, loss=loss).on(Compute(num_workers=1))
    before = torch.get_rng_state()
    batches = training_batches(task, SETUP)
    next(batches)
    batches.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_may_give_what_lies_elsewhere():
    """What is built and drawn on the CPU is built and drawn there."""

    class Elsewhere(Records):
        def __getitem__(self, i):
            return {name: value.to("meta") for name, value in super().__getitem__(i).items()}

    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        Samples(Elsewhere(0, 4)).load()


def test_no_memory_is_a_result(task):
    def greedy(norm):
        if not isinstance(norm(4), nn.Identity):
            raise torch.OutOfMemoryError("tried to allocate 200 GiB")
        return tiny_model(norm)

    trial = trained(dataclasses.replace(task, make_model=greedy))
    assert trial.state == "failed"
    assert trial.reason.startswith("out of memory on cpu: OutOfMemoryError: tried to allocate 200 GiB")
    study = compare(data=dataclasses.replace(task, make_model=greedy), **GIVEN)
    assert study.verdicts[0].use == "none"


def test_wrong_ways_are_refused(task):
    for given, said in (
        ({"device": "cuda:9"}, "there is no device cuda:9 here: expected auto or one of "),
        ({"precision": "8"}, "precision must be one of 32, bf16, 16, got '8'"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0, got -1"),
    ):
        with pytest.raises(InputError, match=said):
            compare(data=task, **GIVEN, **given)


def test_a_study_says_how_it_was_computed_and_keeps_to_it(task, tmp_path):
    study = compare(data=task, out=tmp_path, device="cpu", precision="bf16", **GIVEN).record
    assert (study.settings.device, study.settings.precision, study.settings.compile) == ("cpu", "bf16", False)
    assert "Trained on cpu, bfloat16 by autocast." in study.settings.notes
    assert study.machine["precision"] == "bfloat16 by autocast"
    said = r"runs with cpu, precision bf16, this command with cpu, precision 32, .*: give --device cpu --precision bf16"
    with pytest.raises(InputError, match=said):
        compare(data=task, out=tmp_path, **GIVEN)
    again = compare(data=task, out=tmp_path, precision="bf16", num_workers=1, **GIVEN).record
    assert again.trials == study.trials
    other = dataclasses.replace(study, settings=dataclasses.replace(study.settings, precision="32"))
    with pytest.raises(InputError, match="the studies differ in precision: bf16 and 32"):
        union([study, other])


def test_plain_training_on_the_cpu_needs_no_note(task):
    assert not any("Trained on" in note for note in compare(data=task, device="cpu", **GIVEN).record.settings.notes)
    # As older studies have it, which do not say.
    assert {"device": "cpu", "precision": "32", "compile": False}.items() <= dataclasses.asdict(make_settings()).items()
    assert Compute.of(make_settings()) == Compute()
    assert Settings(**dataclasses.asdict(make_settings()) | Compute().settings()) == make_settings()


def test_each_worker_is_told_its_device(monkeypatch):
    monkeypatch.setattr(devices, "share", lambda asked, turn, each: (f"{asked}:{turn}", {"GPU": str(turn * each)}))
    started = []

    class Helpers:
        def __init__(self, jobs=(), environments=()):
            started.extend(zip((job.device for job in jobs), environments, strict=True))

        def __enter__(self):
            return lambda: 0

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("normwise.study.engines.helpers", Helpers)
    with Processes(3).start(Job(None, "study", device="hpu", each=2), 10):
        pass
    assert started == [("hpu:1", {"GPU": "2"}), ("hpu:2", {"GPU": "4"})]
    started.clear()
    with Processes(3).start(Job(None, "study", device="hpu", each=2), 1):
        pass
    assert started == []


def test_a_worker_of_a_ray_cluster_has_room_with_the_gpus_that_it_takes():
    assert RayCluster()._room({"CPU": 8, "GPU": 3}, gpus=1) == 3
    assert RayCluster(workers=2)._room({"CPU": 8, "GPU": 3}, gpus=1) == 2
    with pytest.raises(InputError, match="4 CPUs and 0 GPUs, too few for one worker of 1 and 1"):
        RayCluster()._room({"CPU": 4}, gpus=1)

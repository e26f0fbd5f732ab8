"""The main job on a pretend accelerator: the CPU's scores, nothing that mixes devices, and few readings on the host."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections import Counter

import pytest
import torch
from tiny_study import tiny_data, tiny_model
from torch import nn

import normwise
import pretend
from normwise import devices
from normwise.claims.observers import (
    BatchErrors,
    Directions,
    Gradients,
    Hardening,
    InputDrift,
    LossCurve,
    Modes,
    watching,
)
from normwise.claims.tasks import digits
from normwise.errors import InputError
from normwise.records import Setup
from normwise.study import compare, make_task
from normwise.study.compute import Compute
from normwise.study.data import Part
from normwise.study.reading import Sent
from normwise.study.trial import Trainer, build_model, training_batches

SHORT = {"batch_sizes": [32], "seeds": 2, "epochs": 0.1, "lrs": [0.08], "progress": False}
SETUP = Setup("final", "batch", 8, 0.05, 3)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    pretend.install()
    monkeypatch.setattr("normwise.study.costs._LEAST", 2)
    monkeypatch.setattr("normwise.study.costs._SECONDS", 0.0)
    return devices.resolve()


def test_auto_is_what_torch_reports(device: torch.device) -> None:
    assert device == torch.device("pretend", 0)
    assert devices.available() == ["pretend", "cpu"]
    assert devices.name(device) == "pretend: Pretend accelerator"
    assert devices.pins(device)
    with pytest.raises(InputError, match="there is no device pretend:4 here: expected auto or one of pretend, cpu"):
        devices.resolve("pretend:4")
    with pytest.raises(InputError, match="2 devices are to train one trial, from pretend:0 on, and there are 1 of"):
        compare(methods=["none", "batch"], devices=2, **SHORT)


def test_the_quick_main_job_gives_the_cpus_scores() -> None:
    methods = ["none", "weight(init=data)", "switchable"]
    cpu, other = (compare(methods=methods, device=where, quick=True, **SHORT).record for where in ("cpu", "auto"))
    assert [t.setup for t in other.trials] == [t.setup for t in cpu.trials]
    for ours, theirs in zip(other.trials, cpu.trials, strict=True):
        assert (ours.state, ours.steps) == ("complete", theirs.steps)
        assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=1e-4)
        assert ours.valid_score == pytest.approx(theirs.valid_score, abs=0.003)
        assert [p.train_loss for p in ours.curve] == pytest.approx([p.train_loss for p in theirs.curve], rel=1e-4)
    assert (other.settings.device, other.machine["device"]) == ("pretend", "pretend: Pretend accelerator")
    assert "Trained on pretend: Pretend accelerator, float32." in other.settings.notes
    assert {c.method for c in other.costs} == set(methods)
    # As the device's allocator has it.
    assert all(c.peak_bytes and min(c.seconds) > 0 for c in other.costs)


def reads(task, steps: int, *, method: str = "none", **how) -> Counter[str]:
    compute = Compute(devices.resolve(), **how)
    trainer = Trainer(task.on(compute), {8: steps}, measure_memory=False)
    with pretend.counting() as counts:
        trial = trainer(dataclasses.replace(SETUP, method=method))
    assert trial.state == "complete", trial.reason
    return counts.reads


def test_no_step_reads_the_device() -> None:
    """Twice as many steps read as often, but for what is told of all of them at once."""
    task = make_task(tiny_model, tiny_data())
    plain, batch = reads(task, 18), reads(task, 18, method="batch")
    assert reads(task, 36) == plain
    assert reads(task, 36, method="batch") == batch
    # Six points of the curve and the two scores at the end: loss, outputs' finiteness and score; and the losses so far.
    assert plain == {"_local_scalar_dense": 3 * 8, "copy to the CPU": 6}
    # With layers that ask in train() and eval() whether they have a batch that is not finite to tell of: once each.
    assert batch.total() == 3 * 8 + 6 + 2 * 8
    # float16 leaves steps out on the device; their number is read at the end.
    assert reads(task, 18, precision="16").total() == 3 * 8 + 6 + 1


def test_an_optimizer_of_torchs_with_float16_reads_once_a_step() -> None:
    """As the docs say: its scaler asks whether the step is to be left out."""
    task = make_task(tiny_model, tiny_data(), optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1))
    plain = reads(task, 18)
    assert reads(task, 18, precision="16").total() - plain.total() == 18 + 1
    assert plain == {"_local_scalar_dense": 3 * 8, "copy to the CPU": 6}


def test_steps_are_timed_by_waiting_for_some(device: torch.device) -> None:
    task = make_task(tiny_model, tiny_data()).on(Compute(device))
    with pretend.counting() as counts:
        trial = Trainer(task, {8: 60}, measure_memory=False)(SETUP)
    assert trial.step_seconds is not None
    assert counts.waits == 2 * 60 // 12  # before and after


def test_weights_and_data_are_those_of_the_cpu(device: torch.device) -> None:
    task = make_task(tiny_model, tiny_data())
    there = task.on(Compute(device))
    for method in ("none", "batch", "weight(init=data)"):
        setup = dataclasses.replace(SETUP, method=method)
        ours, theirs = build_model(there, setup), build_model(task, setup)
        assert devices.of(ours) == device
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a.cpu(), b)
    for _, a, b in zip(range(20), training_batches(there, SETUP), training_batches(task, SETUP), strict=False):
        assert a.inputs.device == device
        assert torch.equal(a.inputs.cpu(), b.inputs)


def test_small_data_stay_on_the_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tiny_model, tiny_data())
    kept = task.on(Compute(device))
    assert isinstance(kept.splits.train, Part)
    # One copy a pass: the order of its samples.
    with pretend.counting() as counts:
        for _ in zip(range(9), training_batches(kept, SETUP), strict=False):
            pass
    assert counts.copies == 1
    monkeypatch.setattr("normwise.study.reading._KEPT", 1000)
    assert all(isinstance(part, Sent) for part in task.on(Compute(device)).splits)
    trials = [Trainer(t, {8: 12}, measure_memory=False)(SETUP) for t in (kept, task.on(Compute(device)))]
    assert trials[0].valid_loss == trials[1].valid_loss


def test_copies_are_pinned_and_do_not_keep_the_host_waiting(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.pins(device)  # tried once
    pinned, waits = [], []
    pin, to = torch.Tensor.pin_memory, torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.shape) or pin(t))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, *how, **more: waits.append(not more.get("non_blocking")) or to(t, *how, **more)
    )
    moved = devices.move({"x": torch.ones(2), "y": [torch.ones(3)]}, device)
    assert moved["y"][0].device == device
    assert (pinned, waits) == ([(2,), (3,)], [False, False])


class Weighted(nn.Module):
    """A loss with a buffer, of batches that are dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))

    def of_batch(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch["image"]), batch["label"], weight=self.weight)


class Right:
    """A metric that is an object with a tensor."""

    def __init__(self) -> None:
        self.counted = torch.ones(1)

    def __call__(self, model: nn.Module, loader: object) -> torch.Tensor:
        right = [model(batch["image"]).argmax(1) == batch["label"] for batch in loader]
        return (torch.cat(right).float() * self.counted).mean()


class Records(torch.utils.data.Dataset):
    images, labels = tiny_data()

    def __init__(self, first: int, last: int) -> None:
        self.numbers = range(first, last)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        n = self.numbers[i]
        return {"image": self.images[n] + 0.1 * torch.randn(1, 6, 6), "label": self.labels[n]}


def augment(batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {**batch, "image": batch["image"] + 0.1 * torch.randn(batch["image"].shape, generator=generator)}


@pytest.mark.parametrize("how", [{}, {"precision": "bf16"}, {"precision": "16", "num_workers": 1}], ids=str)
def test_everything_that_is_the_users_is_where_it_belongs(device: torch.device, how: dict) -> None:
    parts = {"train": Records(0, 72), "valid": Records(72, 96), "test": Records(96, 120)}
    criterion, metric = Weighted(), Right()
    task = make_task(tiny_model, parts, loss=criterion.of_batch, metric=metric, augment=augment, accumulate=2)
    cpu, other = (Trainer(task.on(Compute(d, **how)), {8: 8})(SETUP) for d in (devices.CPU, device))
    assert other.state == "complete", other.reason
    assert other.valid_loss == pytest.approx(cpu.valid_loss, rel=1e-3 if how else 1e-4)
    assert other.valid_score == pytest.approx(cpu.valid_score, abs=0.05)
    assert other.peak_bytes
    # What was handed over stays where it was.
    assert (criterion.weight.device, metric.counted.device) == (devices.CPU, devices.CPU)


def test_a_criterion_of_torchs_with_weights(device: torch.device) -> None:
    task = make_task(tiny_model, tiny_data(), loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])))
    cpu, other = (Trainer(t, {8: 8}, measure_memory=False)(SETUP) for t in (task, task.on(Compute(device))))
    assert other.valid_loss == pytest.approx(cpu.valid_loss, rel=1e-4)


@pytest.mark.parametrize("name", ["japanese-vowels", "austen", "textures"])
def test_tasks_that_come_along(name: str, device: torch.device) -> None:
    try:
        task = normwise.study.load_task(name)
    except normwise.errors.NormwiseError as error:
        pytest.skip(f"no {name}: {error}")
    few = task.splits._replace(**{part: getattr(task.splits, part).take(slice(16)) for part in task.splits._fields})
    task = dataclasses.replace(task, splits=few)
    setup = Setup("final", "layer", 4, task.lrs[0], 0)
    cpu, other = (Trainer(t, {4: 2}, measure_memory=False)(setup) for t in (task, task.on(Compute(device))))
    assert other.state == "complete", other.reason
    assert other.valid_loss == pytest.approx(cpu.valid_loss, rel=1e-3)


def test_divergence_is_told_with_its_step(device: torch.device) -> None:
    task, setup = make_task(tiny_model, tiny_data()), dataclasses.replace(SETUP, method="none", lr=1e30)
    cpu, other = (Trainer(t, {8: 40}, measure_memory=False)(setup) for t in (task, task.on(Compute(device))))
    assert (other.state, other.reason, other.steps) == (cpu.state, cpu.reason, cpu.steps)
    assert other.state == "diverged"


def test_no_memory_is_a_result_and_the_next_trial_has_it_back(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(tiny_model, tiny_data()).on(Compute(device))
    gc.collect()
    monkeypatch.setattr(pretend.Memory, "limit", pretend.Memory.allocated + 40_000)
    trial = Trainer(task, {64: 2}, measure_memory=False)(dataclasses.replace(SETUP, batch_size=64))
    assert trial.state == "failed"
    assert trial.reason.startswith("out of memory on pretend: Pretend accelerator: OutOfMemoryError")
    monkeypatch.setattr(pretend.Memory, "limit", None)
    assert Trainer(task, {64: 2}, measure_memory=False)(dataclasses.replace(SETUP, batch_size=64)).state == "complete"


def test_studies_of_two_devices_do_not_mix(tmp_path, device: torch.device) -> None:
    task = make_task(tiny_model, tiny_data())
    given = SHORT | {"batch_sizes": [8]}
    compare(data=task, methods=["none", "batch"], out=tmp_path, device="cpu", **given)
    with pytest.raises(InputError, match=r"runs with cpu, .* this command with pretend, .* give --device cpu"):
        compare(data=task, methods=["none", "batch"], out=tmp_path, **given)


def test_claims_watch_on_the_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every observer sees what it sees on the CPU."""
    monkeypatch.setattr(InputDrift, "EVERY", 2)
    monkeypatch.setattr(Hardening, "TURNS", 1)
    monkeypatch.setattr(Hardening, "REPEATS", 1)
    watched = (LossCurve, InputDrift, Gradients, BatchErrors, Modes, Directions, Hardening)
    task = dataclasses.replace(digits(), observe=watching(*watched))
    few = {part: getattr(task.splits, part).take(slice(64)) for part in task.splits._fields}
    task = dataclasses.replace(task, splits=task.splits._replace(**few))
    setup = Setup("final", "switchable", 8, 0.05, 0)
    cpu, other = (Trainer(t, {8: 6}, measure_memory=False)(setup).observed for t in (task, task.on(Compute(device))))
    assert other.keys() == cpu.keys()
    for name in ("losses", "drift", "gradients", "mode_gap", "cosine", "soft"):
        assert other[name] == pytest.approx(cpu[name], rel=0.02, abs=1e-3), name


def test_diagnose_and_advise_run_there_and_leave_the_model_here(device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    batches = [(torch.randn(8, 1, 6, 6), torch.arange(8) % 3) for _ in range(3)]
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    here = normwise.diagnose(model, batches, loss, device="cpu")
    for forward in (None, lambda net, batch: net(batch[0])):
        with pretend.counting() as counts:
            there = normwise.diagnose(model, batches, loss, forward=forward)
        assert counts.operators.total() > 100
        assert [f.code for f in there.findings] == [f.code for f in here.findings]
    assert devices.of(model) == devices.CPU
    steps = torch.optim.SGD(model.parameters(), 0.1)
    with pretend.counting() as counts:
        normwise.diagnose(model, batches, loss, optimizer=steps)
    assert not counts.operators
    with pytest.raises(InputError, match="the optimizer's model lies on cpu, device='pretend' is another"):
        normwise.diagnose(model, batches, loss, optimizer=steps, device="pretend")
    with pretend.counting() as counts:
        advice = normwise.advise(model, batches[0][0])
    assert counts.waits > 10
    assert "What a step costs was measured on pretend: Pretend accelerator, float32." in advice.notes
    assert devices.of(model) == devices.CPU


def test_what_torch_has_no_deterministic_kernel_for_is_told(device: torch.device) -> None:
    def loss(model, batch):
        # As torch does, once a call.
        warnings.warn("nll_loss2d_forward does not have a deterministic implementation, but you set ...", stacklevel=1)
        assert torch.are_deterministic_algorithms_enabled()
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets)

    task = dataclasses.replace(make_task(tiny_model, tiny_data()), batch_loss=loss).on(Compute(device))
    trial = Trainer(task, {8: 2}, measure_memory=False)(SETUP)
    assert trial.state == "complete", trial.reason
    assert trial.notes == ["not deterministic on pretend: Pretend accelerator: nll_loss2d_forward"]
    with pytest.raises(UserWarning, match="something else"), devices.deterministic(device):
        warnings.warn("something else", stacklevel=1)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_seed_draws_the_same_again(device: torch.device) -> None:
    """Dropout on the device, and the state of its generator comes back."""

    def dropping(norm):
        return nn.Sequential(nn.Dropout(0.3), tiny_model(norm))

    task = make_task(dropping, tiny_data()).on(Compute(device))
    before = torch.get_rng_state()
    first, second = (Trainer(task, {8: 6}, measure_memory=False)(SETUP) for _ in range(2))
    assert first.valid_loss == second.valid_loss
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()

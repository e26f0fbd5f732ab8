"""The callback in real training by the Trainer of transformers."""

from __future__ import annotations

import copy
import gc
import importlib.util
import pickle
import warnings

import pytest
import torch
from torch import nn

from normwise.errors import InputError

if not importlib.util.find_spec("transformers") or not importlib.util.find_spec("accelerate"):
    pytest.skip("transformers or accelerate is not installed: see tests/real-networks.txt", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations in its own imports
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import Trainer, TrainingArguments

    from normwise.integrations.transformers import NormwiseCallback


class Net(nn.Module):
    """What the Trainer needs of a model: it gives its loss."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("out of luck")
        output = self.body(x)
        return {"loss": nn.functional.cross_entropy(output, labels), "logits": output}


def data(count: int = 128) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(6) + y, "labels": y} for y in torch.randint(3, (count,))]


def trainer(tmp_path, model: nn.Module, *callbacks, report_to: str = "none", **options) -> Trainer:
    given = {"per_device_train_batch_size": 16, "num_train_epochs": 1, "disable_tqdm": True, "use_cpu": True}
    given |= {"dataloader_pin_memory": False, "save_strategy": "no", "logging_strategy": "no", "seed": 3}
    arguments = TrainingArguments(str(tmp_path), report_to=report_to, **given | options)
    return Trainer(model, arguments, train_dataset=data(), callbacks=list(callbacks))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_training_is_watched_and_stays_the_same(tmp_path, capsys):
    model, plain = Net(), Net()
    watching = NormwiseCallback(every=4)
    trainer(tmp_path, model, watching).train()
    trainer(tmp_path, plain).train()
    for watched, alone in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(watched, alone, rtol=0, atol=0)
    found = watching.diagnosis
    assert (found.run.steps, found.run.sampled, found.run.run_length) == (8, 4, 8)
    assert [norm.names for norm in found.facts.norms] == [["body.1"]]
    assert found.run.optimizer == "AdamW"
    assert str(found) in capsys.readouterr().out
    assert hooks(model) == 0


def test_accumulated_gradients_are_one_step(tmp_path):
    watching = NormwiseCallback(report=None)
    trainer(tmp_path, Net(), watching, gradient_accumulation_steps=2).train()
    assert (watching.diagnosis.run.steps, watching.diagnosis.run.micro_batches) == (4, 2)


def test_its_trackers_get_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    training = trainer(tmp_path, Net(), report_to="tensorboard")
    training.add_callback(NormwiseCallback(training, report=None))
    history = training.state.log_history
    training.train()
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/normwise/body.1/scatter")] == [1, 2, 4]
    assert events.Scalars("train/normwise/findings/error")[0].value == 0
    assert not any("normwise" in name for entry in history for name in entry)  # it goes into every checkpoint


def test_hooks_go_when_training_fails(tmp_path):
    model = Net(fails_at=4)
    training = trainer(tmp_path, model)
    training.add_callback(NormwiseCallback(training, report=None))
    with pytest.raises(RuntimeError, match="out of luck"):
        training.train()
    model.fails_at = None
    training.train()
    assert hooks(model) == 0
    model.calls, model.fails_at = 0, 4
    with pytest.raises(RuntimeError, match="out of luck"):
        training.train()
    del training
    gc.collect()
    assert hooks(model) == 0


def test_checkpoints_go_with_and_without_it(tmp_path):
    trainer(tmp_path, Net(), NormwiseCallback(report=None), save_strategy="steps", save_steps=4).train()
    resumed = NormwiseCallback(report=None)
    for callbacks in ([], [resumed]):
        trainer(tmp_path, Net(), *callbacks).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (resumed.diagnosis.run.steps, resumed.diagnosis.run.run_length) == (4, 8)
    for twin in (copy.deepcopy(resumed), pickle.loads(pickle.dumps(resumed))):
        assert (twin.every, twin.diagnosis) == (16, resumed.diagnosis)


def test_what_cannot_be_is_said_early(tmp_path):
    with pytest.raises(InputError, match="trainer is Net, expected a Trainer"):
        NormwiseCallback(Net())
    with pytest.raises(InputError, match="every must be"):
        NormwiseCallback(every=0)
    with pytest.raises(InputError, match="torch_compile=False"):
        trainer(tmp_path, Net(), NormwiseCallback(), torch_compile=True, torch_compile_backend="eager").train()

"""The callback in real training by Lightning."""

from __future__ import annotations

import copy
import csv
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import normwise
from normwise.errors import InputError, NormwiseWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations in Lightning's own imports
    import lightning
    import pytorch_lightning
    from lightning.pytorch.loggers import CSVLogger

    from normwise.integrations.lightning import NormwiseCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(lightning|pytorch_lightning|torch)"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.*:FutureWarning"),
]


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 64, 4)),
    )


def batches(size: int = 16, count: int = 8):
    torch.manual_seed(1)
    targets = torch.randint(4, (size * count,))
    inputs = torch.randn(len(targets), 3, 8, 8) + targets.reshape(-1, 1, 1, 1)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), size)


def training(package):
    class Module(package.LightningModule):
        def __init__(self, fails_at: int | None = None, spoils_at: int | None = None) -> None:
            super().__init__()
            self.net, self.fails_at, self.spoils_at = body(), fails_at, spoils_at

        def training_step(self, batch, index):
            if index == self.fails_at:
                raise RuntimeError("out of luck")
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            return loss * (float("nan") if index == self.spoils_at else 1)

        def validation_step(self, batch, index):
            self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.02)

    return Module


Module = training(lightning)


def trainer(tmp_path, *callbacks, package=lightning, logger=False, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    given = {"max_epochs": 1, "enable_checkpointing": False, **quiet, **options}
    return package.Trainer(callbacks=list(callbacks), logger=logger, default_root_dir=tmp_path, **given)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("package", [lightning, pytorch_lightning], ids=lambda package: package.__name__)
def test_training_is_watched_and_stays_the_same(package, tmp_path, capsys):
    module, plain = (training(package)() for _ in range(2))
    watching = NormwiseCallback(every=4)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer(tmp_path, watching, package=package, logger=logger).fit(module, batches(), batches(count=2))
    trainer(tmp_path, package=package).fit(plain, batches())
    for watched, alone in zip(module.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(watched, alone, rtol=0, atol=0)
    found = watching.diagnosis
    assert (found.run.steps, found.run.sampled, found.run.run_length) == (8, 4, 8)
    assert [norm.names for norm in found.facts.norms] == [["net.1"], ["net.4"]]
    assert str(found) in capsys.readouterr().out
    assert hooks(module) == 0
    with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scatter = {int(row["step"]): row["normwise/net.1/scatter"] for row in rows}
    assert {step for step, value in scatter.items() if value} == {1, 2, 4}
    assert float(rows[-1]["normwise/findings/error"]) == 0


def on_two_ranks(folder: Path) -> None:
    def told(found):
        rank = torch.distributed.get_rank()
        (folder / f"rank-{rank}").write_text(f"{found.run.ranks} {found.run.steps} {len(found.norms)}")

    logger = CSVLogger(folder, flush_logs_every_n_steps=1)
    watching = NormwiseCallback(report=told)
    trainer(folder, watching, devices=2, strategy="ddp_fork", logger=logger).fit(Module(), batches())


def test_all_ranks_watch_and_the_first_one_reports(tmp_path):
    # In a process of its own: one that has used autograd cannot be forked.
    program = f"import conftest, pathlib, test_lightning_callback as t; t.on_two_ranks(pathlib.Path({str(tmp_path)!r}))"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("rank-*")] == ["rank-0"]
    assert (tmp_path / "rank-0").read_text() == "2 4 2"
    assert "normwise/net.1/scatter" in (next(tmp_path.rglob("metrics.csv"))).read_text()


def test_findings_are_told_when_training_fails(tmp_path):
    told = []
    module = Module(fails_at=5)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, NormwiseCallback(report=told.append)).fit(module, batches())
    assert [(found.run.steps, hooks(module)) for found in told] == [(5, 0)]


def test_gradients_that_are_not_finite_are_seen(tmp_path):
    watching = NormwiseCallback(report=None)
    trainer(tmp_path, watching).fit(Module(spoils_at=4), batches())
    assert "net.7.weight" in watching.diagnosis.run.nonfinite_gradients


def test_checkpoints_go_with_and_without_it(tmp_path):
    watching = NormwiseCallback(report=None)
    first = trainer(tmp_path, watching, barebones=False)
    first.fit(Module(), batches())
    first.save_checkpoint(tmp_path / "with.ckpt")
    assert not torch.load(tmp_path / "with.ckpt", weights_only=True)["callbacks"]
    resumed = NormwiseCallback(report=None)
    for callbacks in ([], [resumed]):
        trainer(tmp_path, *callbacks, max_epochs=2).fit(Module(), batches(), ckpt_path=tmp_path / "with.ckpt")
    assert (resumed.diagnosis.run.steps, resumed.diagnosis.run.run_length) == (8, 16)


def test_it_can_be_copied_and_pickled_even_in_training(tmp_path):
    class Copying(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.copies = copy.deepcopy(watching), pickle.loads(pickle.dumps(watching))

    watching, copying = NormwiseCallback(every=3), Copying()
    trainer(tmp_path, watching, copying).fit(Module(), batches())
    for twin in copying.copies:
        assert (twin.every, twin.diagnosis) == (3, None)
        trainer(tmp_path, twin).fit(Module(), batches(count=2))
        assert twin.diagnosis.run.steps == 2
    assert pickle.loads(pickle.dumps(watching)).diagnosis == watching.diagnosis


def test_what_cannot_be_is_said_early(tmp_path):
    with pytest.raises(InputError, match="every must be"):
        NormwiseCallback(every=0)
    with pytest.raises(InputError, match="report is str"):
        NormwiseCallback(report="no")
    module = Module()
    module.net = torch.compile(module.net, backend="eager")
    with pytest.raises(InputError, match="does not see hooks"):
        trainer(tmp_path, NormwiseCallback()).fit(module, batches())


def test_a_run_without_batches_ends_with_a_warning(tmp_path):
    class Early(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.should_stop = True

        def on_train_batch_start(self, *_):
            return -1

    watching = NormwiseCallback()
    with pytest.warns(NormwiseWarning, match="saw no training pass"):
        trainer(tmp_path, watching, Early()).fit(Module(), batches())
    assert watching.diagnosis is None
    assert normwise.integrations.lightning.NormwiseCallback is NormwiseCallback

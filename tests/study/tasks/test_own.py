"""People's own models, data, losses, metrics and optimizers, in Python and by name."""

import dataclasses
import json
from pathlib import Path

import lit_projects
import projects
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from normwise.errors import InputError
from normwise.records import Setup
from normwise.study import compare, load_task, make_task
from normwise.study.comparison import make_settings
from normwise.study.data import Part, Samples
from normwise.study.optimize import PerEpoch
from normwise.study.tasks.modules import training_loss
from normwise.study.tasks.scores import r_squared
from normwise.study.trial import Trainer, build_model, training_batches

HERE = Path(__file__).parent
QUICK = {"batch_sizes": [8], "seeds": 2, "epochs": 1, "progress": False}


def setup(method="batch", seed=3, lr=0.05):
    return Setup("final", method, 8, lr, seed)


def text(name):
    return f"{HERE / 'projects.py'}:{name}"


def states(study):
    return {t.setup.method: (t.state, t.reason) for t in study.trials}


KINDS = {
    "classification": (projects.factory, projects.pairs, "accuracy", {}),
    "torch's layers": (projects.plain, projects.tensor_dataset, "accuracy", {}),
    "regression": (projects.curve, projects.points, "R²", {}),
    "language model": (projects.Characters, projects.characters, "accuracy", {}),
    "segmentation": (projects.segmenter, projects.masks, "mean IoU", {"metric": "mean_iou"}),
    "criterion": (projects.factory, projects.pairs, "−loss", {"loss": nn.CrossEntropyLoss(), "metric": "loss"}),
    "dicts": (projects.plain, projects.dicts, "hits", {"loss": projects.loss, "metric": projects.hits}),
    "loss only": (projects.plain, projects.dicts, "−loss", {"loss": projects.loss}),
    "lightning": (lit_projects.Module, projects.pairs, "−loss", {}),
    "lightning, logged": (lit_projects.Module, projects.tensor_dataset, "val_acc", {"metric": "val_acc"}),
    "lightning, norm": (lit_projects.NormedModule, projects.pairs, "−val_loss", {"metric": "-val_loss"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_work(kind):
    model, data, score_name, options = KINDS[kind]
    study = compare(model, data(), methods=["none", "group"], **QUICK | options)
    assert set(states(study).values()) == {("complete", None)}
    assert study.record.settings.score_name == score_name
    floors = {t.valid_score for t in study.trials}
    assert len(floors) > 1
    assert study.html()


def test_named_parts_are_the_same_work_and_are_made_again_from_a_text():
    names = {"loss": "loss", "metric": "hits", "optimizer": "adam"}
    by_name = make_task(text("plain"), text("dicts"), **{k: text(v) for k, v in names.items()}, accumulate=2)
    by_value = make_task(
        projects.plain, projects.dicts(), **{k: getattr(projects, v) for k, v in names.items()}, accumulate=2
    )
    again = load_task(by_name.source)
    assert by_value.source is None
    assert json.loads(by_name.source)["accumulate"] == 2
    trials = [Trainer(task, {8: 6}, measure_memory=False)(setup(lr=0.01)) for task in (by_name, by_value, again)]
    assert {t.state for t in trials} == {"complete"}
    assert len({(t.valid_score, t.test_loss) for t in trials}) == 1
    assert by_name.describe_model() == again.describe_model()


def test_a_data_sets_own_model_with_an_optimizer_of_ones_own():
    task = load_task(make_task(None, "digits", optimizer=text("adam")).source)
    assert (task.name, task.lrs, task.splits.train.size) == ("digits", (0.0025, 0.01, 0.04), 1077)
    assert type(task.build("batch")).__name__ == "ConvNet"
    with pytest.raises(InputError, match="your own data need your own model"):
        make_task(None, projects.pairs())


def test_other_processes_make_the_task_from_its_text(tmp_path):
    options = QUICK | {"methods": ["none", "batch"]}
    alone, together = (
        compare(text("plain"), text("dicts"), loss=text("loss"), lrs=[0.1], workers=n, out=tmp_path / str(n), **options)
        for n in (1, 2)
    )
    assert {t.setup.key: t.valid_score for t in alone.trials} == {t.setup.key: t.valid_score for t in together.trials}


def test_data_sets_draw_the_same_for_every_method_and_move_no_generator():
    task = make_task(projects.plain, projects.dicts(), loss=projects.loss)

    def noise(method, seed=3):
        batches = training_batches(task, setup(method, seed))
        return torch.stack([next(batches)["noise"] for _ in range(12)])

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = noise("none")
    assert torch.get_rng_state().equal(before)
    assert first.equal(noise("group"))
    assert not first.equal(noise("none", seed=4))
    assert len(first.flatten().unique()) == first.numel(), "every reading draws anew"


def test_parts_are_read_from_data_sets():
    task = make_task(projects.plain, projects.dicts(), loss=projects.loss)
    assert task.splits.sizes() == {"train": 70, "valid": 25, "test": 25}
    whole = make_task(projects.plain, projects.tensor_dataset())
    assert whole.splits.sizes() == {"train": 72, "valid": 24, "test": 24}
    assert isinstance(whole.splits.train, Samples)
    batch = whole.splits.train.take(slice(3)).load()
    assert isinstance(batch, Part)
    assert not set(whole.splits.train.index.tolist()) & set(whole.splits.test.index.tolist())
    assert whole.splits.fingerprint() == make_task(projects.plain, projects.tensor_dataset()).splits.fingerprint()
    x, y = projects.images()
    assert whole.splits.fingerprint() != make_task(projects.plain, TensorDataset(x + 1, y)).splits.fingerprint()


def test_layers_are_converted_from_the_same_weights():
    task = make_task(projects.plain, projects.pairs())
    first = build_model(task, setup("as_is"))
    for method in ("batch", "group(num_groups=2)", "layer", "instance", "switchable", "none"):
        model = build_model(task, setup(method))
        assert model[0].weight.equal(first[0].weight)
        assert model[4].weight.equal(first[4].weight)
    assert build_model(task, setup("group(num_groups=2)"))[1].num_groups == 2
    assert "as_is" not in task.methods
    settings = make_settings(make_task(projects.mixed, projects.pairs()), ["as_is", "group"])
    assert settings.notes == [
        "as_is: the model's own layers, BatchNorm2d (1), GroupNorm (1)",
        "group: BatchNorm2d → GroupNorm (1), GroupNorm → GroupNorm (1)",
    ]
    assert make_task(projects.mixed, projects.pairs()).methods[0] == "as_is"


def test_a_method_that_the_model_cannot_have_is_said_and_lost():
    """Maps of one element have no instance norm: a finding, in the notes and in the trials."""
    study = compare(projects.narrow, projects.pairs(), methods=["batch", "instance"], **QUICK | {"lrs": [0.1]})
    assert states(study)["batch"] == ("complete", None)
    assert states(study)["instance"][0] == "failed"
    assert "more than 1 spatial element" in states(study)["instance"][1]
    assert study.record.settings.notes[1].startswith("instance: cannot be converted (Expected more than 1 spatial")


def test_optimizers_of_ones_own():
    given = make_task(projects.factory, projects.pairs(), optimizer=projects.adam)
    assert given.lrs == (0.0025, 0.01, 0.04)
    assert make_settings(given, batch_sizes=[8, 32]).lrs["32"] == [0.0025, 0.01, 0.04]
    assert make_settings(given, batch_sizes=[8, 32]).lrs["8"] == [0.00125, 0.005, 0.02]
    assert make_settings(given).optimizer == "own: adam"
    scaled = make_task(projects.factory, projects.pairs(), optimizer=projects.fixed)
    assert scaled.lrs == (0.25, 1.0, 4.0)
    optimizer, schedule = scaled.optimize(scaled.build("none"), 0.5, 10)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025])
    bare = make_task(projects.factory, projects.pairs(), optimizer=projects.rateless)
    with pytest.raises(InputError, match="names no learning rate: give lrs"):
        make_settings(bare)
    assert make_settings(bare, lrs=[0.1], batch_sizes=[4]).lrs == {"4": [0.1]}


def test_lightning_keeps_optimizer_and_schedule():
    task = make_task(lit_projects.Module, projects.pairs())
    optimizer, schedule = task.optimize(task.build("batch"), 2.0, 10)
    assert isinstance(schedule, PerEpoch)
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert optimizer.param_groups[0]["momentum"] == 0.9
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.2
    schedule.end_epoch()
    assert optimizer.param_groups[0]["lr"] == 0.1
    # 72 samples in batches of 8 are 9 steps: two passes halve the rate twice.
    seen = []
    watched = dataclasses.replace(task, optimizer=lambda *a: seen.append(task.optimize(*a)) or seen[-1])
    assert Trainer(watched, {8: 18}, measure_memory=False)(setup(lr=1.0)).state == "complete"
    assert seen[0][0].param_groups[0]["lr"] == pytest.approx(0.025)


def test_lightning_trains_as_by_hand():
    """The same numbers as the module's body with the same loss and optimizer."""
    module = make_task(lit_projects.Module, projects.pairs(), optimizer=projects.adam, metric="val_acc")
    body = make_task(projects.plain, projects.pairs(), optimizer=projects.adam)
    first, second = (Trainer(task, {8: 12}, measure_memory=False)(setup(lr=0.01)) for task in (module, body))
    assert first.valid_score == pytest.approx(second.valid_score)
    assert first.curve[-1].train_loss == second.curve[-1].train_loss


def test_timm_networks():
    pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm")
    x = torch.randn(60, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    task = make_task("timm:resnet10t", (x, torch.arange(60) % 4))
    assert task.converts
    model = task.build("group")
    assert model(x[:2]).shape == (2, 4)
    assert {type(m).__name__ for m in model.modules()} & {"BatchNorm2d", "GroupNorm"} == {"GroupNorm"}
    trial = Trainer(task, {8: 2}, measure_memory=False)(setup("group"))
    assert trial.state == "complete", trial.reason
    with pytest.raises(InputError, match="timm has no model 'resnet10x': did you mean 'resnet1"):
        make_task("timm:resnet10x", (x, torch.arange(60) % 4))
    with pytest.raises(InputError, match="needs images"):
        make_task("timm:resnet10t", projects.points())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((nn.Linear(2, 2), projects.pairs()), "builds a model anew for each trial, got a Linear"),
        ((3, projects.pairs()), "must be a function of norm"),
        ((projects.bare, projects.pairs()), "without a normalization layer to convert"),
        ((projects.broken, projects.pairs()), "cannot build the model: KeyError: 'oh'"),
        ((lambda width: nn.Linear(width, 3), projects.pairs()), "called with norm, because 'width' has no default"),
        ((lambda norm: 3, projects.pairs()), "gave a int, expected a torch.nn.Module"),
        (("nowhere.py:model", projects.pairs()), "cannot find nowhere.py"),
        ((projects.plain, {"train": 1, "tset": 2}), "the data lack valid, test: they have train, tset"),
        ((projects.plain, 3), "cannot use an int as data: expected"),
        ((projects.plain, (1, 2, 3)), "train: cannot use an int as data"),
        ((projects.plain, projects.dicts()), "forward knows none of the inputs image, noise"),
        ((lit_projects.ByHand, projects.pairs()), "optimizes by hand"),
        ((projects.plain, "digts"), "did you mean 'digits'"),
    ],
)
def test_what_cannot_be_used_is_said(arguments, said):
    def make():
        task = make_task(*arguments)
        task.optimize(task.build("none"), 1.0, 1)

    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "acuracy"}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        ({"metric": lambda model, loader: "high"}, "the metric gave str, expected one number"),
        ({"metric": 3}, "metric must be a name such as .* got an int"),
        ({"loss": lambda model, batch: model(batch)}, "the untrained model cannot be scored: TypeError"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1"),
        ({"loss": "nowhere:loss"}, "cannot find 'nowhere:loss'"),
    ],
)
def test_options_that_cannot_be_used_are_said(options, said):
    with pytest.raises(InputError, match=said):
        make_task(projects.plain, projects.pairs(), **options)


def test_a_validation_step_may_log_its_score_alone():
    """The loss in evaluation is then that of the training step."""

    class Scored(lit_projects.Module):
        def validation_step(self, batch, index):
            self.log("val_acc", torch.tensor(0.25))

    task = make_task(Scored, projects.pairs(), metric="val_acc")
    assert task.floor == 0.25
    x, y = torch.randn(4, *projects.pairs()[0].shape[1:]), torch.zeros(4, dtype=torch.long)
    model = Scored().eval()
    assert torch.equal(training_loss(model, (x, y)), nn.functional.cross_entropy(model.body(x), y))


def test_other_misuse():
    with pytest.raises(InputError, match="logs no 'val_f1': it logs val_loss, val_acc"):
        make_task(lit_projects.Module, projects.pairs(), metric="val_f1")
    with pytest.raises(InputError, match="as_is is for models with layers of their own"):
        make_settings(make_task(projects.factory, projects.pairs()), ["as_is"])
    trial = Trainer(make_task(projects.factory, projects.pairs(), optimizer=lambda m: 3), {8: 2})(setup())
    assert "gave int: expected an optimizer" in trial.reason


def column(norm):
    return nn.Sequential(nn.Linear(3, 8), norm(8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("loss", [None, nn.L1Loss()])
def test_a_column_of_outputs_meets_a_row_of_targets(loss):
    """(N, 1) against (N,) would broadcast: every output against every target, and the mean of all is learned."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    y = x[:, 0] * 2 - x[:, 1]
    study = compare(
        column,
        (x, y),
        loss=loss,
        methods=["none", "layer"],
        batch_sizes=[20],
        seeds=2,
        lrs=[0.1],
        epochs=30,
        progress=False,
    )
    assert all(s.test.value > 0.9 for s in study.standings)


def test_regression_refuses_shapes_that_only_broadcast():
    x = torch.randn(60, 3)
    with pytest.raises(
        InputError, match=r"the model gives \(\d+, 1\) and the targets are \(\d+, 2\): make them the same"
    ):
        compare(column, (x, x[:, :2]), methods=["none"], batch_sizes=[20], seeds=2, progress=False)


def test_worse_than_a_constant_is_below_zero():
    assert r_squared(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])) == -3


def test_a_study_that_learned_nothing_says_so():
    """Targets that nothing in the inputs tells of."""
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    y = torch.randn(300, generator=torch.Generator().manual_seed(1))
    study = compare(
        column, (x, y), methods=["none", "layer"], batch_sizes=[20], seeds=3, lrs=[0.01], epochs=2, progress=False
    )
    assert study.verdicts[0].outcome == "unlearned"
    assert "decides nothing" in study.verdicts[0].headline

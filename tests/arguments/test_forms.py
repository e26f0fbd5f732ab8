"""What data, losses, optimizers and metrics may be, beside the examples of docs/arguments.md, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import normwise
from normwise.arguments.data import batches_of
from normwise.arguments.loss import loss_of
from normwise.arguments.optimizer import maker_of
from normwise.errors import InputError
from normwise.study import make_task

Y = torch.arange(442) % 3
X = torch.randn(442, 5, generator=torch.Generator().manual_seed(0)) + Y[:, None]


def net():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def sizes(data, size=None):
    return [len(batch[0] if isinstance(batch, tuple | list) else batch) for batch in batches_of(data, size)]


@pytest.mark.parametrize("data", [(X, Y), [X, Y], (X.numpy(), Y.tolist()), (X,), X, TensorDataset(X, Y)])
def test_whole_data_are_batched_in_a_fixed_shuffled_order(data):
    assert set(sizes(data)) == {31, 32}
    assert set(sizes((X[:33], Y[:33]))) == {17, 16}, "no single sample is left for the last batch"
    assert sizes(data, 442) == [442]
    first, again = (next(iter(batches_of(data))) for _ in range(2))
    assert first[0].equal(again[0]) if isinstance(first, tuple | list) else first.equal(again)
    if isinstance(first, tuple | list):
        assert len(first[1].unique()) == 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X[:40], Y[:40], strict=True))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (X.split(100), [100, 100, 100, 100, 42]),
        (list(X.split(221)), [221, 221]),
        (X.unflatten(0, (2, 221)), [221, 221]),
        ([X[:8], X[8:11]], [8, 3]),
        (DataLoader(TensorDataset(X, Y), batch_size=100), [100, 100, 100, 100, 42]),
        (Stream(), [32, 8]),
        ([("id", X[:3])], [2]),
        ({"train": (X[:40], Y[:40]), "valid": None}, [20, 20]),
    ],
)
def test_batches_stay_as_they_are(data, expected):
    assert sizes(data) == expected or [len(batch) for batch in batches_of(data)] == expected


def test_tokens_are_windows_and_generators_stay_generators():
    inputs, targets = next(iter(batches_of(torch.arange(2000) % 50)))
    assert inputs.shape == (31, 64)
    assert targets[:, :-1].equal(inputs[:, 1:])
    once = (batch for batch in [X])
    assert batches_of(once) is once


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "cannot use an int as data: expected .inputs, targets."),
        ("nowhere.py:data", "cannot find nowhere.py: no such file"),
        ((X, Y[:9]), r"inputs \(442, 5\) and targets \(9,\) differ in length"),
        ({"x": X, "y": Y[:9]}, "the columns x, y: .* differ in length"),
        ({"tset": (X, Y)}, "the data lack train: they have tset"),
        ((X, "labels"), "expected tensors or arrays of inputs and targets"),
        (net(), "cannot use a Sequential as data"),
    ],
)
def test_all_refuse_the_same_in_one_line(data, said):
    calls = (
        lambda: normwise.calibrate(net(), data),
        lambda: normwise.diagnose(net(), data),
        lambda: normwise.advise(net(), data=data),
        lambda: normwise.compare(net, data),
    )
    for call in calls:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [(X,), list(X.split(100)), iter([3])])
def test_a_comparison_needs_targets(data):
    with pytest.raises(InputError, match=r"no targets: give a tuple|cannot be read by number|hold more than tensors"):
        make_task(net, data)


def test_parts_that_are_missing_are_split_off():
    whole, kept, both = (X, Y), (X[:40], Y[:40]), (X[:60], Y[:60])
    assert make_task(net, {"train": whole}).splits.sizes() == {"train": 264, "valid": 89, "test": 89}
    assert make_task(net, {"train": both, "test": kept}).splits.sizes() == {"train": 48, "valid": 12, "test": 40}
    halves = make_task(net, {"train": whole, "val": kept}).splits
    assert halves.sizes() == {"train": 442, "valid": 20, "test": 20}
    assert halves.test.targets.bincount().tolist() == [7, 6, 7]


def test_named_inputs_go_to_the_parameters_of_their_names():
    class Masked(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.head = norm(5, dim=1), nn.Linear(5, 3)

        def forward(self, mask, x):
            return self.head(self.norm(x * mask))

    columns = {"x": X, "mask": torch.ones(442, 1), "label": Y}
    task = make_task(Masked, columns)
    model, batch = task.build("batch"), task.splits.train.take(slice(4))
    expected = nn.functional.cross_entropy(model(torch.ones(4, 1), batch.inputs["x"]), batch.targets)
    torch.testing.assert_close(task.loss_of(model, batch), expected)
    normwise.calibrate(model, columns)
    with pytest.raises(InputError, match="forward knows none of the inputs x, mask"):
        make_task(net, columns)


def test_tokens_that_are_their_own_targets_are_refused():
    ids = torch.randint(0, 9, (40, 6))
    with pytest.raises(InputError, match="the targets are the inputs themselves"):
        make_task(lambda norm: nn.Sequential(nn.Embedding(9, 4), norm(4), nn.Linear(4, 9)), {"ids": ids, "labels": ids})


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda y_true, y_pred: 0, "takes the target first"),
        (lambda a: a, "must take .output, target. or .model, batch."),
        (lambda a, b: 1 / 0, r"failed on the output .*called as \(model, batch\), too: ZeroDivisionError"),
        (nn.MSELoss, "give one of it, MSELoss()"),
        ("mse", "unknown loss 'mse'"),
    ],
)
def test_losses_that_are_refused(loss, said):
    for call in (lambda: make_task(net, (X, Y), loss=loss), lambda: normwise.diagnose(net(), (X, Y), loss, steps=1)):
        with pytest.raises(InputError, match=said):
            call()


def test_names_or_a_try_tell_what_a_loss_takes():
    pair, whole = (lambda a, b: nn.functional.cross_entropy(a, b)), lambda a, b: a(b[0]).square().mean()
    assert [loss_of(f).takes for f in (pair, lambda m, batch: 0, lambda logits, y: 0)] == ["either", "batch", "outputs"]
    assert make_task(net, (X, Y), loss=pair).score_name == "accuracy"
    assert make_task(net, (X, Y), loss=whole).score_name == "−loss"


def test_torch_losses_meet_classes_on_the_last_axis():
    output, target = torch.randn(2, 7, 3), torch.zeros(2, 7, dtype=torch.long)
    expected = nn.functional.cross_entropy(output.movedim(-1, 1), target)
    assert loss_of("cross_entropy")(output, target) == loss_of(nn.CrossEntropyLoss())(output, target) == expected


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("adamm", "did you mean 'Adam'"),
        (torch.optim.LBFGS, "LBFGS runs the model several times"),
        (nn.Linear, "got the class Linear"),
        (torch.optim.SGD(net().parameters(), 0.1), "belongs to the parameters of one model"),
        (3, "optimizer must be a class of torch.optim or its name"),
    ],
)
def test_optimizers_that_are_refused(optimizer, said):
    with pytest.raises(InputError, match=said):
        maker_of(optimizer)


def test_precision_is_that_of_the_pass_and_the_loss():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(super().forward(x).dtype)
            return super().forward(x)

    model = nn.Sequential(Watched(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    for precision, kind in (("32", torch.float32), ("bf16", torch.bfloat16)):
        seen.clear()
        normwise.diagnose(model, (X, Y), "cross_entropy", steps=1, precision=precision)
        assert kind in seen
        assert (torch.bfloat16 in seen) == (precision == "bf16")
    seen.clear()
    normwise.advise(model, X[:8], precision="bf16")
    assert torch.bfloat16 in seen
    for call in (normwise.diagnose, normwise.advise):
        with pytest.raises(InputError, match="precision must be one of 32, bf16, 16"):
            call(model, X, precision="8")


def test_the_old_name_of_data_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"calibrate\(loader=...\) goes with normwise 0.3: write data=..."):
        normwise.calibrate(net(), loader=[X])


def test_what_lightning_and_torchmetrics_give():
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

    class Module(lightning.LightningDataModule):
        def setup(self, stage):
            self.data = TensorDataset(X, Y)

        def train_dataloader(self):
            return DataLoader(self.data, batch_size=100)

    assert make_task(net, Module()).splits.sizes() == {"train": 264, "valid": 89, "test": 89}
    assert sizes(Module()) == [100, 100, 100, 100, 42]
    metrics = torchmetrics.classification
    assert 0 <= make_task(net, (X, Y), metric=metrics.MulticlassAccuracy(3)).floor <= 1
    error = make_task(lambda norm: nn.Linear(5, 1), (X, X[:, 0]), metric=torchmetrics.MeanSquaredError())
    assert (error.score_name, error.floor < 0) == ("−MeanSquaredError", True)
    with pytest.raises(InputError, match="MulticlassConfusionMatrix gives more than one number"):
        make_task(net, (X, Y), metric=metrics.MulticlassConfusionMatrix(3))
    with pytest.raises(InputError, match="give one of it, MulticlassAccuracy"):
        make_task(net, (X, Y), metric=metrics.MulticlassAccuracy)


def test_arrays_of_double_precision_are_what_models_take():
    (x, y), *_ = batches_of((X.numpy().astype(np.float64), Y.numpy()))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)

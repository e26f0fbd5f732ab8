"""Models with layers that learn their sizes from the first batch."""

import pytest
import torch
from torch import nn

import normwise
from normwise.errors import InputError
from normwise.nn import (
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    SwitchableNorm1d,
)
from normwise.probe import survey

X = torch.randn(40, 4, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
BATCHES = [(X[:8], Y[:8]), (X[8:16], Y[8:16])]


def tail():
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.LazyLinear(3)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyConv1d(8, 3), nn.LazyBatchNorm1d(), nn.ReLU(), LazyBatchNorm1d(), *tail())


def is_lazy(model):
    return any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers())))


def ready():
    model = net()
    with torch.random.fork_rng():
        model.eval()(X)
    return model.train()


def test_advice_is_that_for_the_model_once_it_has_run():
    model = net()
    advice = normwise.advise(model, X[:8], measure=False)
    expected = normwise.advise(ready(), X[:8], measure=False)
    assert is_lazy(model[0])
    assert is_lazy(model[1])
    assert [r.method for r in advice.ranking] == [r.method for r in expected.ranking]
    assert advice.best.method != "none"
    assert advice.situation == expected.situation


def test_survey_and_diagnosis_are_those_of_the_model_once_it_has_run():
    model = net()
    torch.manual_seed(5)
    facts = survey(model, X[:8])
    diagnosis = normwise.diagnose(model, iter(BATCHES), nn.functional.cross_entropy)
    assert facts.norms[0].channels == 8
    assert [norm.layer.name for norm in diagnosis.norms] == ["1", "3"]
    assert is_lazy(model)
    assert torch.random.initial_seed() == 5
    with pytest.raises(InputError, match=r"diagnose: Sequential has lazy layers .*\(0, 1, 3, 6\): run one batch first"):
        normwise.diagnose(model, BATCHES, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("source", [lambda: BATCHES, lambda: iter(BATCHES)], ids=["list", "iterator"])
def test_a_copy_is_calibrated_as_the_model_would_be(source):
    model = net()
    torch.manual_seed(1)
    found = []
    copy = normwise.calibrate(model, source(), copy=True, report=found.append)
    assert is_lazy(model)
    assert not is_lazy(copy)
    assert found[0].batches == 2
    assert copy[1].running_mean.any()


def test_copies_are_settled_where_there_are_data():
    model = net()
    for converted in (
        normwise.convert(model, "group", copy=True, example_inputs=X),
        normwise.convert(model, "group", copy=True, calibrate_with=BATCHES),
    ):
        assert isinstance(converted.model[1], nn.GroupNorm)
    assert isinstance(normwise.fold(model.eval(), X, copy=True)[1], nn.Identity)
    switchable = nn.Sequential(nn.LazyConv1d(8, 3), SwitchableNorm1d(8))
    normwise.harden(switchable, 0.2, X, copy=True)
    assert is_lazy(model)
    assert is_lazy(switchable)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: normwise.calibrate(m, BATCHES),
        lambda m: normwise.convert(m, "group", example_inputs=X),
        lambda m: normwise.convert(m, "group"),
        lambda m: normwise.fold(m, X),
        lambda m: normwise.freeze(m),
        lambda m: normwise.freeze(m, copy=True),
        lambda m: normwise.watch(m),
        lambda m: normwise.sync(m),
        lambda m: normwise.weight_normalize(m),
        lambda m: normwise.harden(nn.Sequential(*m, SwitchableNorm1d(8)), 0.5, X),
    ],
)
def test_in_place_a_lazy_model_is_refused_and_stays_lazy(call):
    model = net()
    with pytest.raises(InputError, match=r"run the model once first|run one batch first|run one first"):
        call(model)
    assert [type(m) for m in model] == [type(m) for m in net()]
    assert is_lazy(model[0])
    assert is_lazy(model[1])
    assert is_lazy(model[6])


def test_data_that_do_not_fit_are_told_of():
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.LazyBatchNorm1d())
    with pytest.raises(InputError, match="does not run on the given data to settle them: RuntimeError"):
        normwise.advise(model, X[:, :3])

    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.norm = nn.LazyLinear(3), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x)

    with pytest.raises(InputError, match="lazy layers that its forward pass does not reach: unused"):
        normwise.advise(Elsewhere(), X)


def test_lazy_models_are_compared():
    def own():
        return nn.Sequential(nn.LazyConv1d(8, 3), nn.LazyBatchNorm1d(), nn.ReLU(), *tail())

    def given(norm):
        return nn.Sequential(nn.LazyConv1d(8, 3), norm(8), nn.ReLU(), *tail())

    for make in (own, given):
        study = normwise.compare(
            make, (X, Y), methods=["batch", "group", "weight"], batch_sizes=[8], seeds=2, epochs=1, progress=False
        )
        states = {trial.setup.method: trial.state for trial in study.record.trials}
        assert set(states.values()) == {"complete"}, [t.reason for t in study.record.trials]


@pytest.mark.parametrize("told", ["lengths", "mask"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("lazy", "shape"),
    [
        (LazyBatchNorm1d, (3, 5, 7)),
        (LazyBatchNorm2d, (3, 5, 7, 2)),
        (LazyBatchNorm3d, (3, 5, 7, 2, 2)),
        (LazyInstanceNorm1d, (3, 5, 7)),
        (LazyInstanceNorm2d, (3, 5, 7, 2)),
        (LazyInstanceNorm3d, (3, 5, 7, 2, 2)),
    ],
)
def test_padding_passes_through_lazy_initialization(lazy, shape, training, told):
    x, options = torch.randn(shape), {"affine": True, "track_running_stats": True}
    keep = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    mask = keep.reshape(3, 1, 7, *[1] * (len(shape) - 3)).expand(3, 1, *shape[2:])
    padding = {"mask": mask} if told == "mask" else {"lengths": torch.tensor([7, 4, 2])}
    if told == "lengths" and len(shape) > 3:
        padding = {"mask": mask}  # lengths are of sequences
    layer, plain = lazy(**options).train(training), lazy.cls_to_become(5, **options).train(training)
    y = layer(x, **padding)
    assert type(layer) is lazy.cls_to_become
    torch.testing.assert_close(y, plain(x, **padding))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    again = lazy(**options).train(training)
    torch.testing.assert_close(again(input=x, **padding), y)

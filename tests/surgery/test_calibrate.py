"""Population statistics against float64 oracles, and against the known faults of torch's own tool."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

import normwise.nn as nw
from normwise.errors import InputError
from normwise.surgery.calibrate import calibrate
from normwise.surgery.freeze import freeze

UNEQUAL = [torch.randn(n, 3, 5, 4, generator=torch.Generator().manual_seed(n)) * n + n for n in (1, 7, 2, 6)]


def measured(model, loader, **options):
    records = []
    assert calibrate(model, loader, report=records.append, **options) is model
    return records[0]


def batch_network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), norm(2))


def switchable_batch(channels):
    return nw.SwitchableNorm2d(channels, over=("instance", "batch"))


BATCH = [nn.BatchNorm2d, nw.BatchNorm2d, nw.SwitchableNorm2d, switchable_batch, nn.SyncBatchNorm]


def oracle(x):
    """Mean and unbiased variance per channel of everything together, in float64."""
    x = x.double().transpose(0, 1).flatten(1)
    return x.mean(1), x.var(1)


@pytest.mark.parametrize("norm", BATCH)
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_first_layer_gets_the_moments_of_all_elements_together(norm, layerwise):
    model = batch_network(norm)
    record = measured(model, UNEQUAL, layerwise=layerwise)
    x = torch.cat(UNEQUAL)
    mean, var = oracle(F.conv2d(x.double(), model[0].weight.double(), model[0].bias.double()))
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(model[1].running_var.double(), var, rtol=2e-6, atol=1e-5)
    assert [row.layer for row in record.layers] == ["1", "5"]
    assert [row.elements for row in record.layers] == [16 * 6, 16 * 6]
    assert model[1].num_batches_tracked == 4
    assert record.batches == 4


@pytest.mark.parametrize("norm", BATCH)
def test_layer_by_layer_leaves_evaluation_with_mean_0_and_variance_1_everywhere(norm):
    model = batch_network(norm)
    measured(model, UNEQUAL, layerwise=True)
    model.eval()
    inputs = model[:5](torch.cat(UNEQUAL))
    mean, var = oracle(inputs)
    torch.testing.assert_close(model[5].running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[5].running_var.double(), var, rtol=1e-5, atol=1e-5)


def test_in_one_pass_each_layer_normalizes_by_the_batch_as_in_training():
    model = batch_network()
    inputs = []
    model[5].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    twin = copy.deepcopy(model).train()
    twin[3].eval()  # dropout
    for batch in UNEQUAL:
        twin(batch)
    wanted, inputs = list(inputs), inputs.clear() or inputs
    measured(model, UNEQUAL)
    torch.testing.assert_close(inputs, wanted)
    mean, var = oracle(torch.cat(wanted))
    torch.testing.assert_close(model[5].running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[5].running_var.double(), var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nw.InstanceNorm2d])
@pytest.mark.parametrize("layerwise", [False, True])
def test_tracked_instance_norm_keeps_the_mean_of_the_samples_own_moments(norm, layerwise):
    model = nn.Sequential(norm(3, affine=True, track_running_stats=True), nn.Conv2d(3, 2, 1))
    record = measured(model, UNEQUAL, layerwise=layerwise)
    x = torch.cat(UNEQUAL).double().flatten(2)
    torch.testing.assert_close(model[0].running_mean.double(), x.mean(2).mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), x.var(2).mean(0), rtol=1e-6, atol=1e-6)
    assert record.layers[0].elements == 16
    assert model[0].num_batches_tracked == 0  # as in torch
    assert model[0].training


@pytest.mark.parametrize("norm", [nw.BatchRenorm, nw.GhostBatchNorm, nw.BatchInstanceNorm])
@pytest.mark.parametrize("layerwise", [False, True])
def test_relatives_with_batch_statistics(norm, layerwise):
    model = nn.Sequential(norm(3), nn.Conv2d(3, 2, 1))
    measured(model, UNEQUAL, layerwise=layerwise)
    mean, var = oracle(torch.cat(UNEQUAL))
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-6, atol=1e-6)


def test_a_conditional_batch_norm():
    model = nw.ConditionalBatchNorm(3, num_conditions=4)
    measured(model, [(x, torch.zeros(len(x), dtype=torch.long)) for x in UNEQUAL])
    torch.testing.assert_close(model.running_var.double(), oracle(torch.cat(UNEQUAL))[1], rtol=1e-6, atol=1e-6)


def test_large_offsets_keep_their_variance():
    model = nn.Sequential(nn.BatchNorm1d(2))
    data = [torch.randn(50, 2, generator=torch.Generator().manual_seed(i)) * 0.1 + 1000 for i in range(4)]
    measured(model, data)
    _, var = oracle(torch.cat(data))
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-6, atol=0)


def test_padding_does_not_count():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nw.BatchNorm1d(2)

        def forward(self, x, lengths):
            return self.norm(x, lengths=lengths)

    model, x = Sequence(), torch.randn(3, 2, 7)
    lengths = torch.tensor([7, 2, 4])
    for i, n in enumerate(lengths):
        x[i, :, n:] = float("nan") if i else 99.0
    record = measured(model, [(x, lengths, "targets")])
    real = torch.cat([x[i, :, :n] for i, n in enumerate(lengths)], 1).double()
    torch.testing.assert_close(model.norm.running_mean.double(), real.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), real.var(1), rtol=1e-5, atol=1e-6)
    assert record.layers[0].elements == 13


def test_shared_layers_get_the_moments_of_both_uses():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x) + self.norm(x * 2 + 5)

    model, x = Shared(), torch.randn(40, 3)
    record = measured(model, x.split(9))
    mean, var = oracle(torch.cat([x, x * 2 + 5]))
    torch.testing.assert_close(model.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.norm.running_var.double(), var, rtol=1e-5, atol=1e-5)
    assert record.layers[0].elements == 80


class Branching(nn.Module):
    """One branch never runs in evaluation."""

    def __init__(self):
        super().__init__()
        self.norm, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.untracked = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        return self.norm(x) + (self.auxiliary(x) if self.training else self.untracked(x))


@pytest.mark.parametrize("layerwise", [False, True])
def test_layers_that_do_not_run_are_left_alone_and_named(layerwise):
    model = Branching()
    model.auxiliary.running_var.fill_(7)
    record = measured(model, UNEQUAL, layerwise=layerwise)
    left = {row.layer: row.reason for row in record.left}
    assert left == {"untracked": "keeps no running statistics", "auxiliary": "did not run in evaluation mode"}
    assert torch.equal(model.auxiliary.running_var, torch.full((3,), 7.0))
    assert "auxiliary  did not run" in str(record)


def test_frozen_layers_are_respected_however_they_were_frozen():
    model = batch_network()
    freeze(model, where="1")
    record = measured(model, UNEQUAL)
    assert [(row.layer, row.reason) for row in record.left] == [("1", "is frozen")]
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    model = batch_network().train()
    model[1].eval()
    record = measured(model, UNEQUAL)
    assert "while the model trains" in record.left[0].reason
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert measured(model.eval(), UNEQUAL).left == []  # a model in evaluation mode as a whole is not frozen


def test_known_faults_of_update_bn_are_not_repeated():
    """Frozen layers overwritten and woken, dropout on, unequal batches weighing the same, dict batches failing."""
    theirs, ours = batch_network().train(), batch_network().train()
    theirs[1].eval()
    ours[1].eval()
    update_bn(UNEQUAL, theirs)
    calibrate(ours, UNEQUAL)
    assert theirs[1].training
    assert theirs[1].running_mean.abs().max() > 0
    assert not ours[1].training
    assert ours[1].running_mean.abs().max() == 0
    theirs, ours = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    update_bn(UNEQUAL, theirs)
    calibrate(ours, UNEQUAL)
    _, var = oracle(torch.cat(UNEQUAL))
    wrong = (theirs[0].running_var / var - 1).abs().max()
    right = (ours[0].running_var / var - 1).abs().max()
    assert wrong > 0.1 > 1e-5 > right
    with pytest.raises(AttributeError):
        update_bn([{"x": UNEQUAL[0]}], theirs)


def test_modes_hooks_and_statistics_come_back_on_an_exception():
    model = batch_network().train()
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]

    def broken():
        yield UNEQUAL[0]
        raise OSError("the disk is gone")

    for layerwise in (False, True):
        with pytest.raises(OSError, match="the disk is gone"):
            calibrate(model, broken(), layerwise=layerwise)
    passes = iter((UNEQUAL, UNEQUAL))  # the order of the layers, the first layer, and then no more

    class Stops:
        def __iter__(self):
            return iter(next(passes))

    model[1].num_batches_tracked.fill_(100)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StopIteration):
        calibrate(model, Stops(), layerwise=True)
    with pytest.raises(RuntimeError):
        calibrate(model, [UNEQUAL[0], torch.zeros(2, 1, 5, 5)], layerwise=True)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_modes_come_back_without_calling_train():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x)

        def train(self, mode=True):
            raise AssertionError("rebuilds its weights here")

    model = Picky()
    measured(model, UNEQUAL)
    assert model.training
    assert model.norm.training


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels, labels=None, scale=1.0):
        return self.norm(pixels * scale)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x, torch.zeros(len(x))],
        lambda x: {"pixels": x, "weights": None},
        lambda x: {"labels": torch.zeros(len(x)), "pixels": x},
    ],
)
def test_usual_batches_are_understood(wrap):
    model = Named()
    measured(model, [wrap(x) for x in UNEQUAL])
    torch.testing.assert_close(model.norm.running_mean.double(), oracle(torch.cat(UNEQUAL))[0], rtol=1e-5, atol=1e-5)


def test_other_batches_by_forward():
    model = Named()
    measured(model, [("id", x) for x in UNEQUAL], forward=lambda m, batch: m(batch[1], scale=2.0))
    wanted = oracle(2 * torch.cat(UNEQUAL))[0]
    torch.testing.assert_close(model.norm.running_mean.double(), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"cannot feed a batch with keys image, labels to Named\.forward"):
        calibrate(model, [{"image": UNEQUAL[0], "labels": 1}])
    with pytest.raises(InputError, match="the loader gave no batch"):
        calibrate(model, [])
    with pytest.raises(InputError, match="no layer keeps running statistics"):
        calibrate(nn.Sequential(nn.GroupNorm(1, 3)), UNEQUAL)


def test_single_values_and_non_finite_batches():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    data = [torch.randn(4, 2), torch.randn(1, 2), torch.full((3, 2), float("nan")), torch.randn(5, 2)]
    record = measured(model, data)
    mean, var = oracle(torch.cat([data[0], data[1], data[3]]))
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert record.layers[0].skipped == 1
    assert "1 non-finite batches skipped" in str(record)
    fresh = nn.Sequential(nn.BatchNorm1d(2))
    record = measured(fresh, [torch.randn(1, 2)])
    assert record.left[0].reason == "saw a single element, which has no variance"
    record = measured(fresh, [torch.full((3, 2), float("inf"))])
    assert record.left[0].reason == "saw nothing but NaN or infinite values"
    assert torch.equal(fresh[0].running_var, torch.ones(2))


def test_poisoned_statistics_are_healed_and_small_types_refused_where_they_overflow():
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].running_var.fill_(float("nan"))
    record = measured(model, UNEQUAL)
    assert record.layers[0].mean_shift is None
    assert "were not finite" in str(record)
    assert model[0].running_var.isfinite().all()
    half = nn.Sequential(nn.BatchNorm2d(3)).half()
    record = measured(half, [1000 * torch.randn(8, 3, 4, 4).half()])
    assert "torch.float16 cannot hold" in record.left[0].reason


def test_batches_where_iterators_and_copies():
    model = batch_network()
    record = measured(model, iter(UNEQUAL), layerwise=True, batches=2, where="5")
    assert [row.layer for row in record.layers] == ["5"]
    assert record.layers[0].batches == 2
    assert record.batches == 2
    records = []
    other = calibrate(model, UNEQUAL, copy=True, report=records.append)
    assert other is not model
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert records[0].layers[0].mean_shift > 0


def test_an_upstream_shift_is_followed_layer_by_layer_but_not_in_one_pass_of_small_batches():
    """Batches that are each of one kind: what a layer sees in training is not what it sees in evaluation."""
    torch.manual_seed(0)
    kinds = [torch.randn(8, 3, 5, 4) + 4 * (i % 2) for i in range(6)]
    one, layered = batch_network(), batch_network()
    calibrate(one, kinds)
    calibrate(layered, kinds, layerwise=True)

    def gap(model):
        model.eval()
        return (model[5].running_var / oracle(model[:5](torch.cat(kinds)))[1] - 1).abs().max()

    assert gap(layered) < 1e-5
    assert gap(one) > 0.1


def test_wrapped_models():
    model = batch_network()
    measured(nn.DataParallel(model), UNEQUAL)
    assert model[1].num_batches_tracked == 4

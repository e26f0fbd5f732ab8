"""Converting layers: what is carried, what is refused, what stays shared, and the way back."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from models import BNAct2d, ConvNet, Tokens, trained
from torch import nn
from torch.nn.utils import parametrize

import normwise.nn as nw
from normwise.errors import InputError
from normwise.methods import METHODS
from normwise.parametrize import weight_norm as nw_weight_norm
from normwise.surgery import convert, describe, find
from normwise.surgery.freeze import freeze, is_frozen
from normwise.surgery.layouts import ChannelAffine

# Those whose evaluation is batch norm's, given the same statistics.
DRIFTLESS = {"batch", "none", "weight", "batch_renorm", "ghost_batch"}


@pytest.fixture
def x():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 1


@pytest.fixture
def net(x):
    torch.manual_seed(0)
    return trained(ConvNet(), x)


def convolutional(name, module):
    return not isinstance(module, nn.BatchNorm1d)


@pytest.mark.parametrize(
    "to", [name for name, m in METHODS.items() if m.pools != ("instance",) and m.rests_on != "instance"]
)
def test_every_method(net, x, to):
    before, expected = copy.deepcopy(net.state_dict()), net(x)
    weight = net.bn1.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # switchable on (N, C) says that it drops the instance member
        conversion = convert(net, to, example_inputs=x)
        y = net(x)
    assert conversion.model is net
    assert [r.names for r in conversion.record.replaced] == [["bn1"], ["shared"], ["head"]]
    assert all(r.drift.own < 1e-5 for r in conversion.record.replaced) == (to in DRIFTLESS)
    assert (conversion.record.output_drift < 1e-5) == (to in DRIFTLESS)
    assert torch.allclose(y, expected, atol=1e-5) == (to in DRIFTLESS)
    if to != "group":  # 3 channels make one group, which is layer norm
        assert {found.layer.method for found in find(net)} == {to}
    if to not in DRIFTLESS:
        assert net.bn1.weight is weight
    assert conversion.undo() is net
    assert type(net.bn1) is nn.BatchNorm2d
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("to", list(METHODS))
@pytest.mark.parametrize("source", list(METHODS))
def test_any_to_any(source, to, x):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    trained(model, x)
    convert(model, source)
    names = [found.layer.method for found in find(model)]
    convert(model, to)
    assert names == [source]
    assert [found.layer.method for found in find(model)] == [to]
    assert parametrize.is_parametrized(model[0]) == (to == "weight")
    assert model(x).isfinite().all()
    model.train()(x).sum().backward()


def test_instance_norm_of_rows_is_refused_before_anything_changes(net, x):
    before = net.bn1
    with pytest.raises(InputError, match=r"1 of 3 layers.*head: its input is \(N, C\), which.*Nothing was changed"):
        convert(net, "instance", example_inputs=x)
    assert net.bn1 is before
    conversion = convert(net, "instance", example_inputs=x, strict=False)
    assert [left.layer for left in conversion.record.left] == ["head"]
    assert type(net.bn1) is nw.InstanceNorm2d
    assert type(net.head) is nn.BatchNorm1d


def test_instance_norm_never_takes_rows_for_an_unbatched_map():
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    convert(model, "instance")
    with pytest.raises(InputError, match="more than 1 spatial element"):
        model(torch.randn(4, 4))


def test_a_shared_layer_is_replaced_once_and_stays_shared(x):
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Sequential(nn.Conv2d(4, 4, 1), norm))
    conversion = convert(model, "group")
    assert model[1] is model[2][1]
    assert conversion.record.replaced[0].names == ["1", "2.1"]
    conversion.undo()
    assert model[1] is norm
    assert model[2][1] is norm


def test_groups_are_chosen_per_layer():
    model = nn.Sequential(*(nn.BatchNorm2d(c) for c in (64, 48, 7)))
    conversion = convert(model, "group")
    assert [layer.num_groups for layer in model] == [32, 24, 1]
    assert "no divisor" in conversion.record.replaced[2].lost[-1]
    assert "lost:" in str(conversion)
    assert convert(nn.Sequential(nn.BatchNorm2d(8)), "group", num_groups=2).model[0].num_groups == 2


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.GELU, nn.PReLU, nn.Hardswish])
@pytest.mark.parametrize("to", list(METHODS))
def test_activations_survive(act, to, x):
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), BNAct2d(8, act)), x)
    model = nn.Sequential(*model, nn.Conv2d(8, 2, 1))
    plain = nn.Sequential(model[0], nn.BatchNorm2d(8), copy.deepcopy(model[1].act)).eval()
    plain[1].load_state_dict({k: v for k, v in model[1].state_dict().items() if "act" not in k})
    convert(plain, to)
    expected = plain(x)
    convert(model, to)
    assert torch.allclose(model[1](model[0](x)), expected, atol=1e-5)
    assert set(model[1].state_dict()) == set(plain[1].state_dict()) | ({"act.weight"} if act is nn.PReLU else set())


@pytest.mark.parametrize("to", ["batch", "group", "instance", "switchable", "none", "weight"])
def test_tokens_keep_their_layout(to):
    x = torch.randn(4, 5, 8)
    model = Tokens()
    keys = set(model.state_dict())
    convert(model, to, calibrate_with=[x])
    assert {k for k in model.state_dict() if "norm" in k} >= {k for k in keys if "norm" in k}
    assert model(x).shape == x.shape
    wanted = {"batch": (0, 1), "instance": (1,)}.get(to)
    if wanted:
        model.norm1.train()
        nn.init.ones_(model.norm1.weight), nn.init.zeros_(model.norm1.bias)
        var, mean = torch.var_mean(x.double(), wanted, correction=0, keepdim=True)
        assert torch.allclose(model.norm1(x).double(), (x.double() - mean) / (var + 1e-6).sqrt(), atol=1e-5)


def test_a_layer_norm_per_token_is_kept(x):
    model = Tokens()
    record = convert(model, "layer").record
    assert not record.replaced
    assert [left.reason for left in record.left] == ["already layer norm"] * 2


def test_mode_dtype_grad_hooks_attributes_and_freezing_are_carried(x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-2, momentum=None)).double().train()
    old, calls = model[1], []
    old.weight.requires_grad_(False)
    old.tag = "mine"
    handle = old.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    model[1].eval()
    convert(model, "switchable")
    new = model[1]
    assert (new.eps, new.momentum, new.tag, new.training) == (1e-2, None, "mine", False)
    assert new.running_mean.dtype == new.mean_weight.dtype == torch.float64
    assert not new.weight.requires_grad
    model(x.double())
    assert calls == ["SwitchableNorm2d"]
    handle.remove()
    model(x.double())
    assert len(calls) == 1

    frozen = freeze(nn.Sequential(nn.BatchNorm2d(4)))
    convert(frozen, "group")
    assert is_frozen(frozen[0])
    assert not frozen.train()[0].training


def test_bias_and_affine_stay_absent():
    model = nn.Sequential(nn.BatchNorm2d(4, bias=False), nn.BatchNorm2d(4, affine=False), nn.RMSNorm(4))
    convert(model, "group")
    assert model[0].bias is None
    assert model[1].weight is None
    assert model[2].weight is not None
    assert model[2].bias is None


def test_foreign_forwards_are_refused(x):
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(nn.BatchNorm2d(3), Doubled(3))
    with pytest.raises(InputError, match=r"1: .*does not compute batch norm alone"):
        convert(model, "group")
    assert type(model[0]) is nn.BatchNorm2d


def test_where(net):
    conversion = convert(net, "group", where="bn*")
    assert [r.names[0] for r in conversion.record.replaced] == ["bn1"]
    conversion.undo()
    assert len(convert(net, "group", where=convolutional).record.replaced) == 2
    with pytest.raises(InputError, match=r"matches none of the 3 normalization layers: bn1"):
        convert(net, "group", where="backbone.*")


def test_a_copy_leaves_the_original(net, x):
    before = net.bn1
    conversion = convert(net, "group", copy=True)
    assert net.bn1 is before
    assert conversion.model is not net
    assert type(conversion.model.bn1) is nw.GroupNorm
    with pytest.raises(InputError, match="in place"):
        convert(net, "group", copy=True, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_model_that_is_a_layer():
    conversion = convert(nn.BatchNorm2d(4), "group")
    assert type(conversion.model) is nw.GroupNorm
    assert type(conversion.undo()) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("model", "to", "options", "message"),
    [
        (nn.ReLU(), "group", {}, "has no normalization layer"),
        (nn.BatchNorm2d(4), "grup", {}, "unknown method 'grup'"),
        (nn.BatchNorm2d(4), "group", {"colour": 1}, "does not take these options.*colour"),
        (nn.BatchNorm2d(4), "switchable", {"share": 1.0}, "between 0 and 1"),
        (nn.Linear(4, 4), "none", {}, "no normalization layer"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "batch", {}, "has weight norm only"),
        ({"model": nn.BatchNorm2d(4)}, "group", {}, "expected a torch.nn.Module, got dict"),
        (nn.BatchNorm2d, "group", {}, "got the class BatchNorm2d, not an instance"),
        (nn.BatchNorm2d(4), "group", {"where": ["1"]}, "a name pattern or a predicate"),
    ],
)
def test_refusals(model, to, options, message):
    with pytest.raises(InputError, match=message):
        convert(model, to, **options)


def test_undo_follows_what_became_of_the_model(net, x):
    for change in (lambda m: m.train(), lambda m: m.double(), lambda m: m.eval().bfloat16()):
        conversion = convert(net, "group")
        change(net)
        conversion.undo()
        assert len({m.training for m in net.modules()}) == 1
        assert len({t.dtype for t in net.state_dict().values() if t.is_floating_point()}) == 1
        net(x.to(net.conv1.weight.dtype))


def test_undo_keeps_a_frozen_layer_frozen(net):
    freeze(net.train(), where="bn1")
    convert(net, "group").undo()
    assert is_frozen(net.bn1)
    assert not net.bn1.training
    assert net.shared.training


def test_options_may_come_with_the_method(net):
    assert convert(net, "group(num_groups=4)", where="bn1").model.bn1.num_groups == 4


@pytest.mark.parametrize("seen", [True, False])
def test_groups_of_rows_hold_enough_channels_to_keep_the_data(seen):
    def net(channels):
        return nn.Sequential(nn.Linear(3, channels), nn.BatchNorm1d(channels)).eval()

    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for channels, groups in ((64, 4), (48, 3), (8, 1), (1024, 32)):
        model = convert(net(channels), "group", example_inputs=rows if seen else None).model
        assert model[1].num_groups == groups
    y = convert(net(64), "group", example_inputs=rows).model(rows)
    assert y.abs().std() > 0.3  # groups of two give ones only
    with pytest.raises(InputError, match="64 groups of one channel leave nothing"):
        convert(net(64), "group", num_groups=64, example_inputs=rows)


def put_on_by_torch(layer):
    return nn.utils.parametrizations.weight_norm(layer)


def put_on_by_torchs_older_hook(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("put_on", [nw_weight_norm, put_on_by_torch, put_on_by_torchs_older_hook])
def test_weight_norm_is_taken_off_whoever_put_it_on(put_on):
    torch.manual_seed(0)
    model = nn.Sequential(put_on(nn.Conv2d(3, 4, 3)), nn.ReLU(), put_on(nn.Linear(4, 2)))
    x = torch.randn(2, 3, 8, 6)
    before, y, names = copy.deepcopy(model.state_dict()), model(x), [n for n, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    conversion = convert(model, "none", optimizer=optimizer, example_inputs=x)
    assert conversion.record.weights == ["0", "2"]
    assert type(model[0]) is nn.Conv2d
    assert conversion.record.output_drift < 1e-6
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    plain = conversion.forward_state(before)
    model.load_state_dict(plain)  # nothing is left behind that would split it
    torch.testing.assert_close(conversion.backward_state(plain), before)
    conversion.undo()
    assert sorted(n for n, _ in model.named_parameters()) == sorted(names)
    assert torch.equal(model(x), y)
    model.load_state_dict(before)


def test_an_undone_weight_norm_loads_and_copies(net, x):
    state = copy.deepcopy(net.state_dict())
    convert(net, "weight").undo()
    net.load_state_dict(state)
    convert(net, "weight")
    convert(net, "none").undo()
    pickle.loads(pickle.dumps(copy.deepcopy(net)))
    net.load_state_dict(copy.deepcopy(net.state_dict()))


def test_share_leans_towards_the_old_method():
    model = nn.Sequential(nn.BatchNorm2d(4))
    convert(model, "switchable", share=0.9)
    assert torch.allclose(model[0].shares()[0], torch.tensor([0.05, 0.05, 0.9]))


def test_none_keeps_an_evaluated_batch_norm_and_its_place(net, x):
    expected = net(x)
    convert(net, "none")
    assert isinstance(net.bn1, ChannelAffine)
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert torch.allclose(net.train()(x), expected, atol=1e-5)


def test_weight_norm_is_put_on_and_undone_exactly(net, x):
    expected, conv = net(x), net.conv1.weight
    before = {k: v.clone() for k, v in net.state_dict().items()}
    conversion = convert(net, "weight", optimizer=(optimizer := torch.optim.Adam(net.parameters())))
    assert conversion.record.weights == ["conv1", "conv2", "conv3", "fc"]
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in net.parameters()}
    conversion.undo()
    assert net.conv1.weight is conv
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in net.parameters()}


def test_tied_weights_get_no_weight_norm():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.BatchNorm1d(5))
    model[2].weight = model[0].weight
    record = convert(model, "weight").record
    assert record.weights == ["1"]
    assert "shared" in record.left[0].reason


def test_frozen_batch_norms_stay_frozen_and_can_be_woken(x):
    class Frozen(nn.Module):
        def __init__(self, size):
            super().__init__()
            for name, value in (("weight", 2.0), ("bias", 0.5), ("running_mean", 1.0), ("running_var", 4.0)):
                self.register_buffer(name, torch.full((size,), value))
            self.eps = 1e-5

        def forward(self, x):
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

    model = nn.Sequential(Frozen(3)).train()
    expected = model(x)
    convert(model, "batch")
    assert torch.allclose(model.train()(x), expected, atol=1e-6)
    assert is_frozen(model[0])
    assert not model[0].weight.requires_grad


def test_synchronized_batch_norm_says_what_is_lost():
    model = nn.Sequential(nn.SyncBatchNorm(4))
    assert convert(model, "batch").record.replaced[0].carried[-1] == "shared with other processes"
    assert model[0].sync is not None
    assert "no longer shared" in convert(model, "group").record.replaced[0].lost[-1]


def test_converted_models_pickle_and_copy(net, x):
    convert(net, "switchable", where=convolutional)
    tokens = Tokens()
    convert(tokens, "batch")
    for model in (net, tokens):
        assert set(pickle.loads(pickle.dumps(model)).state_dict()) == set(copy.deepcopy(model).state_dict())


def test_the_record_is_json_and_a_table(net, x):
    conversion = convert(net, "layer", example_inputs=x, calibrate_with=[x])
    data = json.loads(json.dumps(conversion.to_dict(), allow_nan=False))
    assert data["replaced"][0]["names"] == ["bn1"]
    text = str(conversion)
    assert "BatchNorm2d → GroupNorm" in text
    assert "running_mean, running_var: layer norm takes its statistics from each input (3 layers" in text
    assert "after the re-fit" in text


def test_a_failing_refit_leaves_the_model_as_it_was(net, x):
    before, optimizer = net.bn1, torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(RuntimeError):
        convert(net, "group", optimizer=optimizer, calibrate_with=[x, torch.zeros(2, 5, 8, 8)])
    assert net.bn1 is before
    assert not net.training
    assert not net.bn1._forward_hooks


def test_describe_knows_what_convert_made(net):
    convert(net, "batch")
    assert describe(net.bn1).method == "batch"
    assert [left.reason for left in convert(net, "batch").record.left] == ["already batch norm"] * 3


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_torchs_fast_path_does_not_compute_layer_norm_in_the_place_of_another_method(method, norm_first):
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model, x = convert(encoder, method).model.eval(), torch.randn(3, 5, 16)
    slow = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), slow)

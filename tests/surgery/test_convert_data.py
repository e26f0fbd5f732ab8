"""Conversion with data and optimizers: the re-fit against least squares, drifts, parameter groups and state."""

import dataclasses

import pytest
import torch
from models import BNAct2d, ConvNet, Tokens, trained
from torch import nn

from normwise.errors import InputError
from normwise.surgery import convert, find
from normwise.surgery.running import drift


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 3, 8, 8, generator=generator) * 2 + 1 for n in (7, 5, 2)]


@pytest.fixture
def net(batches):
    torch.manual_seed(0)
    return trained(ConvNet(), batches[0])


pytestmark = pytest.mark.filterwarnings("ignore:switchable normalization of .* instance would rest")


def test_the_fit_is_the_least_squares_of_all_data(batches):
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), batches[0])
    x = torch.cat(batches)
    with torch.no_grad():
        h = model[0](x)
        y = model(x)
        # Layer norm is computed per sample, so that all data at once and batch by batch are the same.
        z = nn.functional.layer_norm(h, h.shape[1:])
    conversion = convert(model, "layer", calibrate_with=batches)
    for c in range(4):
        design = torch.stack([z[:, c].flatten(), torch.ones(z[:, c].numel())], 1).double()
        weight, bias = torch.linalg.lstsq(design, y[:, c].flatten().double()).solution
        assert torch.allclose(model[1].weight[c].double(), weight, rtol=1e-5)
        assert torch.allclose(model[1].bias[c].double(), bias, rtol=1e-4, atol=1e-6)
    conversion.undo()
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("to", ["group", "layer", "switchable"])
def test_the_refit_lowers_the_drift_of_every_layer(net, batches, to):
    net.head = nn.Identity()
    record = convert(net, to, example_inputs=torch.cat(batches), calibrate_with=batches).record
    assert all(r.refitted.own < r.drift.own for r in record.replaced)
    assert all(r.refitted.here < r.drift.here for r in record.replaced)


def test_the_refit_is_exact_where_it_can_be(batches):
    """Batch norm's evaluation is affine per channel, so a batch norm can be anything that is."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4))
    trained(model, batches[0])
    first = convert(model, "batch", calibrate_with=batches, example_inputs=batches[0])
    assert model[1].running_var.allclose(torch.cat([model[0](b) for b in batches]).var((0, 2, 3)), rtol=1e-4)
    assert first.record.output_refitted < first.record.output_drift
    assert model[3].weight is not None
    again = convert(model, "none", calibrate_with=batches, example_inputs=batches[0])
    assert again.record.output_refitted < 1e-5


def test_the_refit_looks_before_the_activation(batches):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BNAct2d(4))
    trained(model, batches[0])
    plain = nn.Sequential(model[0], nn.BatchNorm2d(4)).eval()
    plain[1].load_state_dict(model[1].state_dict())
    convert(plain, "layer", calibrate_with=batches)
    convert(model, "layer", calibrate_with=batches)
    assert torch.allclose(model[1].weight, plain[1].weight)
    assert torch.allclose(model[1].bias, plain[1].bias)
    assert model[1](model[0](batches[0])).min() == 0


def test_one_off_iterators_and_layers_that_do_not_run(batches):
    class Partial(ConvNet):
        def __init__(self):
            super().__init__()
            self.unused = nn.BatchNorm2d(8)

    model = trained(Partial(), batches[0])
    record = convert(model, "group", calibrate_with=iter(batches), example_inputs=batches[0]).record
    assert [(left.layer, left.reason) for left in record.left] == [("unused", "did not run on calibrate_with")]
    assert record.replaced[-1].drift is None


def test_batches_of_loaders(net, batches):
    pairs = [(b, torch.zeros(len(b))) for b in batches]
    plain = convert(net, "group", calibrate_with=batches, copy=True).model
    assert drift(plain(batches[0]), convert(net, "group", calibrate_with=pairs, copy=True).model(batches[0])) < 1e-6
    named = [{"picture": b} for b in batches]
    given = convert(net, "group", calibrate_with=named, forward=lambda m, b: m(b["picture"]), copy=True).model
    assert drift(plain(batches[0]), given(batches[0])) < 1e-6


def test_measuring_leaves_modes_generators_and_statistics_alone(net, batches):
    net.train()
    net.conv2.eval()
    modes = {n: m.training for n, m in net.named_modules()}
    statistics = net.bn1.running_mean.clone()
    convert(net, "batch", example_inputs=batches[0], calibrate_with=batches)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert torch.equal(net.bn1.running_mean, statistics)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("to", ["group", "switchable", "none", "weight"])
def test_the_optimizer_follows(net, batches, optimizer, to):
    norms = [p for m in (net.bn1, net.shared, net.head) for p in m.parameters()]
    others = [p for p in net.parameters() if all(p is not q for q in norms)]
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    trainer = optimizer([{"params": others}, {"params": norms, "weight_decay": 0.0, "lr": 0.01}], lr=0.1, **options)
    net.train()
    net(batches[0]).square().sum().backward()
    trainer.step()
    old_state = dict(trainer.state[net.bn1.weight])
    groups = [list(g["params"]) for g in trainer.param_groups]
    conversion = convert(net, to, optimizer=trainer)
    held = [[id(p) for p in g["params"]] for g in trainer.param_groups]
    assert sorted(held[0] + held[1]) == sorted(id(p) for p in net.parameters())
    assert set(held[1]) == {id(p) for m in (net.bn1, net.shared, net.head) for p in m.parameters()}
    for key, value in old_state.items():
        assert torch.equal(torch.as_tensor(trainer.state[net.bn1.weight][key]), torch.as_tensor(value))
    trainer.zero_grad()
    net(batches[0]).square().sum().backward()
    before = net.bn1.weight.detach().clone()
    trainer.step()
    assert not torch.equal(net.bn1.weight, before)
    conversion.undo()
    assert all(
        a is b
        for g, old in zip(trainer.param_groups, groups, strict=True)
        for a, b in zip(g["params"], old, strict=True)
    )
    assert all(any(p is q for q in net.parameters()) for p in trainer.state)


def test_named_parameters_keep_their_names(net):
    trainer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    convert(net, "switchable", optimizer=trainer)
    group = trainer.param_groups[0]
    names = dict(zip(group["param_names"], group["params"], strict=True))
    assert all(names[name] is p for name, p in net.named_parameters())


def test_without_an_optimizer_the_record_says_what_one_would_miss(net):
    assert not convert(net, "group", copy=True).record.notes
    assert "an optimizer made before needs optimizer=" in convert(net, "switchable", copy=True).record.notes[0]


@pytest.mark.parametrize("to", ["batch", "group", "layer", "switchable", "none", "weight"])
def test_states_translate_both_ways(net, batches, to):
    other = trained(ConvNet(), batches[1])
    conversion = convert(net, to, copy=True)
    model = conversion.model
    model.load_state_dict(conversion.forward_state(other.state_dict()))
    direct = convert(other, to, copy=True).model
    with torch.no_grad():
        assert torch.allclose(model(batches[0]), direct(batches[0]), atol=1e-5)
    back = conversion.backward_state(model.state_dict())
    net.load_state_dict(back)
    for name in ("bn1.weight", "shared.bias", "conv1.weight"):
        if to not in ("none", "weight") or "conv" in name:
            assert torch.allclose(back[name], other.state_dict()[name], atol=1e-5)


def test_a_state_of_taken_out_statistics_comes_back(net, batches):
    expected = net(batches[0])
    conversion = convert(net, "none", copy=True)
    blank = ConvNet()
    blank.load_state_dict(conversion.backward_state(conversion.model.state_dict()))
    assert torch.allclose(blank.eval()(batches[0]), expected, atol=1e-5)


def test_data_parallel_wrappers_are_looked_through(net, batches):
    wrapped = nn.DataParallel(net)
    conversion = convert(wrapped, "group", example_inputs=batches[0])
    assert conversion.model is wrapped
    assert conversion.record.replaced[0].names == ["bn1"]


def test_fx_graphs_convert(net, batches):
    graph = torch.fx.symbolic_trace(net)
    convert(graph, "group")
    convert(net, "group")
    assert torch.equal(graph(batches[0]), net(batches[0]))


def test_converted_tokens_trace(batches):
    model = Tokens().eval()
    convert(model, "switchable")
    x = torch.randn(2, 5, 8)
    assert torch.allclose(torch.fx.symbolic_trace(model)(x), model(x))


def test_the_drift_is_told_without_example_inputs(net, batches):
    record = convert(net, "layer", where=lambda name, m: m.num_features > 3, calibrate_with=iter(batches)).record
    assert record.output_refitted < record.output_drift
    assert all(account.refitted.own < account.drift.own for account in record.replaced)


def test_what_is_not_finite_is_not_fitted_to(batches):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), batches[0])
    model[1].running_mean[2] = float("nan")
    weight = model[1].weight.detach().clone()
    record = convert(model, "group", calibrate_with=batches).record
    assert "not finite" in record.left[0].reason
    assert torch.equal(model[1].weight, weight)


def test_a_model_that_swallows_exceptions_is_fitted_all_the_same(batches):
    class Swallows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            try:
                return self.norm(self.conv(x))
            except Exception:
                raise AssertionError("the end of a partial pass is not the model's to catch") from None

    record = convert(trained(Swallows(), batches[0]), "layer", calibrate_with=batches).record
    assert record.output_refitted < record.output_drift


def test_outputs_of_all_kinds_are_compared_or_said_not_to_be(batches):
    @dataclasses.dataclass
    class Output:
        score: torch.Tensor

    class Model(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.conv, self.norm, self.wrap = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), wrap

        def forward(self, x):
            return self.wrap(self.norm(self.conv(x)))

    assert convert(Model(Output).eval(), "layer", example_inputs=batches[0]).record.output_drift > 0.1
    record = convert(Model(lambda y: "a text").eval(), "layer", example_inputs=batches[0]).record
    assert record.output_drift is None
    assert "was not measured" in record.notes[0]


def test_an_optimizer_of_other_layers_stays_so(net):
    """Fine-tuning a head must not begin to train what came into the backbone."""
    optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.1)
    convert(net, "switchable", optimizer=optimizer)
    assert optimizer.param_groups[0]["params"] == list(net.fc.parameters())
    with pytest.raises(InputError, match="none of the model's parameters"):
        convert(net, "none", optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    assert find(net)[0].layer.method == "switchable"


def test_a_wrapper_that_does_not_know_the_new_parameters_is_pointed_out(net):
    kind = nn.parallel.DistributedDataParallel
    # Its shell: a whole one needs a process group, which may hang where the suite ends.
    wrapped = kind.__new__(kind)
    nn.Module.__init__(wrapped)
    wrapped.module = net
    assert not convert(wrapped, "group").record.notes
    assert "wrap the model anew" in convert(wrapped, "switchable").record.notes[0]

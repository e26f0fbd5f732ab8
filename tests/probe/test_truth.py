"""What findings must not say, what they must, and what their fixes do to the outputs."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from faulty import Checkpointed, DropsByFunction, Gan, InPieces, Module, OverTime, Siamese, Tokens, after
from nets import CLASSES, Shared, healthy, images, net, sequences, train
from test_findings import expect, grave, look, mended
from torch import nn

import normwise
import normwise.nn as nw
from normwise.probe.verdict import RULES, STATIC


def outputs(model, batches=None):
    x = (batches or images(1))[0][0]
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def moved(hit, model):
    """How far a fix really moves the outputs."""
    before, names = outputs(model), {"loader": images()}
    return normwise.surgery.running.drift(before, outputs(mended(hit, copy.deepcopy(model), **names)))


def test_dead_weights_of_a_trained_norm_are_set_to_what_they_nearly_are():
    model = net(nn.GroupNorm(4, 16), nn.GroupNorm(4, 16))
    train(model, images())
    with torch.no_grad():
        model[1].weight[:3] = torch.tensor([1e-9, 3e-4 * model[1].weight.median().item(), -1e-6])
        model[1].weight[3] = 0.002  # small beside the largest, and no fault
    hit = expect(look(model), "dead-weight", "1", "info")
    assert "3 of 16" in hit.message
    assert hit.changes == pytest.approx(moved(hit, model), abs=1e-6)
    assert hit.changes < 1e-3
    mended(hit, model)
    assert model[1].weight[3].item() == pytest.approx(0.002)
    assert not look(model).of("dead-weight")


@pytest.mark.parametrize("size", [1e-6, 1e-9])
def test_weights_that_collapsed_together_are_blamed_and_not_eps(size):
    model = healthy()
    with torch.no_grad():
        model[1].weight.fill_(size)
        model[1].bias.zero_()
    found = look(model)
    hit = expect(found, "dead-weight", "1", "warning")
    assert hit.evidence["weight_max"] == pytest.approx(size)
    assert not found.of("near-eps")
    assert hit.changes == pytest.approx(moved(hit, model), rel=0.01)
    assert not look(mended(hit, model)).of("dead-weight")
    model = healthy()
    with torch.no_grad():
        model[3].weight.mul_(size)
    found = look(model)
    assert not found.of("near-eps")
    assert not look(mended(expect(found, "dead-weight", "3", "warning"), model)).of("dead-weight")


def test_weights_that_die_by_decay_are_named_as_such():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.2)
    model.train()
    with normwise.watch(model) as w:
        for _ in range(45):
            optimizer.zero_grad()
            (0.0 * model(images(1)[0][0]).sum()).backward()
            optimizer.step()
    hit = expect(w.diagnosis(), "decaying-weight", "1", "warning")
    assert hit.evidence["alone"] == pytest.approx(0.9**45)
    assert "it dies by decay" in hit.message
    mended(hit, model, optimizer=optimizer)
    weight = model[1].weight.clone()
    with normwise.watch(model) as w:
        (0.0 * model(images(1)[0][0]).sum()).backward()
        optimizer.step()
    assert torch.equal(weight, model[1].weight)
    # A step with gradients that are not all from the decay says no such thing.
    assert not train(net(), images(), lr=0.02).diagnosis().of("decaying-weight")


@pytest.mark.parametrize(
    ("first", "between", "found"),
    [
        (lambda: nn.LayerNorm(8), None, False),
        (lambda: nn.LayerNorm(8, elementwise_affine=False), None, True),
        (lambda: nn.LayerNorm(8, elementwise_affine=False), nn.Dropout(0.3), False),
        (lambda: nn.RMSNorm(8, elementwise_affine=False), None, False),
    ],
    ids=["affine", "plain", "dropout", "another method"],
)
def test_a_layer_norm_cancels_another_only_without_weights(first, between, found):
    model = Tokens(first(), between)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    hits = look(model)
    assert bool(hits.of("cancelled-norm")) == found
    if found:
        hit = expect(hits, "cancelled-norm", "second", "warning")
        assert moved(hit, model) == pytest.approx(hit.changes, abs=1e-6)
        assert hit.changes < 1e-3


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        (lambda: (nn.BatchNorm2d(16), nn.InstanceNorm2d(16, affine=True)), True),
        (lambda: (nn.BatchNorm2d(16), nn.BatchNorm2d(16)), True),
        (lambda: (nn.InstanceNorm2d(16), nn.BatchNorm2d(16)), False),
        (lambda: (nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)), False),
        (lambda: (nn.GroupNorm(4, 16, affine=False), nn.GroupNorm(4, 16)), True),
        (lambda: (nn.GroupNorm(4, 16, affine=False), nn.GroupNorm(2, 16)), False),
        (lambda: (nn.BatchNorm2d(16), nn.Dropout(0.3), nn.BatchNorm2d(16)), False),
    ],
)
def test_norms_in_a_row(chain, found):
    model = after(*chain())
    train(model, images())
    with torch.no_grad():
        if getattr(model[1][0], "weight", None) is not None:
            model[1][0].weight[::3] *= -1
    normwise.calibrate(model, images()) if hasattr(model[4], "running_mean") else None
    hits = look(model).of("cancelled-norm")
    assert bool(hits) == found
    for hit in hits:
        assert hit.changes < 0.05
        assert moved(hit, model) == pytest.approx(hit.changes, abs=1e-3)


def test_a_bias_goes_without_moving_the_outputs_and_stays_where_others_take_it():
    model = net(bias=True)
    with torch.no_grad():
        model[3].bias.add_(2.0)
    train(model, images())
    hit = expect(look(model), "cancelled-bias", "3", "info")
    assert moved(hit, model) < 1e-5
    assert hit.price == "the fix leaves the outputs in evaluation as they are"

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

        def forward(self, x):
            x = self.conv(x)
            return self.fc((x + self.bn(x)).relu().mean((2, 3)))

    assert not look(Around()).of("cancelled-bias")


def test_the_shift_is_that_of_the_optimizers_own_step():
    model, batches = net(), images()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    train(model, batches, epochs=1, optimizer=optimizer)
    found = look(model, batches, optimizer=optimizer)
    seen = {}
    twin, (x, y) = copy.deepcopy(model), batches[0]
    stepper = torch.optim.Adam(twin.parameters(), lr=0.02)
    stepper.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin[3].register_forward_hook(lambda _, args, out: seen.setdefault("outputs", []).append(out.detach().double()))
    F.cross_entropy(twin(x), y).backward()
    stepper.step()
    twin(x)
    old, new = (t.movedim(1, -1).flatten(0, -2) for t in seen["outputs"])
    real = float((((new.mean(0) - old.mean(0)) / old.std(0, correction=0)) ** 2).mean().sqrt())
    conv = next(w for w in found.weights if w.layer.name == "3")
    assert conv.moved_mean == pytest.approx(real, rel=0.02)
    assert not found.of("covariate-shift")


def test_an_optimizer_that_cannot_be_tried_is_not_judged():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=100.0)
    assert not look(model, optimizer=optimizer).of("covariate-shift")


def test_one_norm_on_several_inputs_is_told_where_these_differ():
    siamese = Siamese()
    train(siamese, images())
    assert look(siamese).findings == []
    different = Siamese(shift=3.0)
    hit = expect(look(different), "runs-twice", "encoder.1", "warning")
    assert hit.evidence["apart_mean"] > 0.5 or hit.evidence["apart_var"] > 2
    train(different, images())
    hit = expect(look(different), "runs-twice", "encoder.1", "warning")
    assert hit.changes == pytest.approx(moved(hit, different), rel=0.01)
    assert "moves the outputs" in str(look(different))
    assert look(Shared(True)).of("runs-twice")


def test_near_eps_weighs_the_weight():
    model = healthy()
    with torch.no_grad():
        model[3].weight.mul_(1e-3)
    normwise.calibrate(model, images())
    model[4].eps = 1e-3
    with torch.no_grad():
        # The weight has learned what eps takes away.
        model[4].weight.mul_((model[4].running_var + 1e-3).sqrt() / model[4].running_var.sqrt())
    assert not look(model).of("near-eps")


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_network_has_no_gap(seed):
    model = net()
    torch.manual_seed(seed)
    nn.init.normal_(model[0].weight, std=1.0)
    assert grave(look(model)) == []
    with torch.no_grad():  # trained, and guessing all the same
        model[1].weight.add_(0.1)
    random = [(x, torch.randint(CLASSES, (len(x),))) for x, _ in images()]
    assert not look(model, random).of("train-eval-gap")


def test_dropout_before_a_norm():
    torch.manual_seed(0)
    model = net().insert(3, nn.Dropout(0.7))
    model.append(model.pop(-1))
    train(model, images())
    found = normwise.diagnose(model, [x for x, _ in images()])
    hit = expect(found, "dropout-before-norm", "5", "warning")
    direct = nn.Sequential(*model[:4])
    with torch.no_grad():
        x = images(1)[0][0]
        on = torch.cat([model[4](direct.train()(x)) for _ in range(8)])
        off = model[4](nn.Sequential(*model[:3])(x))
    factor = (off.var((0, 2, 3)) / on.var((0, 2, 3))).log().mean().exp()
    assert hit.evidence["factor"] == pytest.approx(float(factor), rel=0.1)
    mended(hit, model, loader=images())
    assert not normwise.diagnose(model, [x for x, _ in images()]).of("dropout-before-norm")
    assert not look(net().insert(6, nn.Dropout(0.3))).of("dropout-before-norm")


def test_dropout_by_a_function():
    model = DropsByFunction()
    train(model, images())
    batches = [x for x, _ in images()]
    hit = expect(normwise.diagnose(model, batches), "dropout-before-norm", "bn", "warning")
    assert hit.evidence["running"] < 0.5
    mended(hit, model, loader=images())
    assert not normwise.diagnose(model, batches).of("dropout-before-norm")


def test_a_norm_that_comes_first_and_breaks_its_own_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16, eps=1e-12), nn.Linear(16, CLASSES)).half()
    x = torch.randn(8, 16).half()
    x[0] = 0
    batches = [(x, torch.randint(CLASSES, (8,)))]
    look_at = {"loss": lambda output, target: F.cross_entropy(output.float(), target)}
    hit = expect(normwise.diagnose(model, batches, **look_at), "non-finite-gradient", "0", "error")
    mended(hit, model)
    assert not normwise.diagnose(model, batches, **look_at).of("non-finite-gradient")


def test_gradients_that_a_norm_makes_infinite():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16, eps=1e-12), nn.Linear(16, CLASSES)).half()
    nn.init.zeros_(model[0].bias)
    x = torch.randn(8, 8).half()
    x[2] = 0
    batches = [(x, torch.randint(CLASSES, (8,))) for _ in range(3)]

    def loss(output, target):
        return F.cross_entropy(output.float(), target)

    hit = expect(normwise.diagnose(model, batches, loss), "non-finite-gradient", "1", "error")
    assert hit.evidence["eps"] == pytest.approx(1e-12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with normwise.watch(copy.deepcopy(model)) as w:
        loss(w.model(x), batches[0][1]).backward()
    expect(w.diagnosis(), "non-finite-gradient", "1", "error")
    mended(hit, model)
    assert not normwise.diagnose(model, batches, loss, optimizer=optimizer).of("non-finite-gradient")


def test_gradients_that_are_not_finite_elsewhere_are_told_by_parameter():
    model = net(nn.GroupNorm(4, 16), nn.GroupNorm(4, 16))
    found = normwise.diagnose(model, images(2), lambda output, _: (output - output).sqrt().sum())
    hit = expect(found, "non-finite-gradient", "", "error")
    assert "0.weight" in hit.message


def test_a_layer_norm_over_time():
    batches = [(x, y) for x, _, y in sequences(padded=False)]
    assert not look(OverTime(False), batches).of("norm-over-time")
    model = OverTime(True)
    hit = expect(look(model, batches), "norm-over-time", "norm", "warning")
    assert (hit.evidence["positions"], hit.evidence["channels"]) == (20, 8)
    assert hit.changes > 0.01
    assert not look(mended(hit, model), batches).of("norm-over-time")


def test_checkpointing_that_counts_twice():
    model = Checkpointed()
    model(images(1)[0][0]).sum().backward()
    assert int(model.body[1].num_batches_tracked) == 2
    hit = expect(look(model), "counted-twice", "body.1", "warning")
    assert expect(train(model, images(2)).diagnosis(), "counted-twice", "body.4")
    scope = {"torch": torch, "normwise": normwise, "model": model}
    exec(hit.fix, scope)
    model.options["context_fn"] = scope["paused"]
    before = int(model.body[1].num_batches_tracked)
    model(images(1)[0][0]).sum().backward()
    assert int(model.body[1].num_batches_tracked) == before + 1
    assert not look(model).of("counted-twice")
    assert not train(model, images(2)).diagnosis().of("counted-twice")


@pytest.mark.parametrize("kind", [Module, InPieces])
def test_watching_what_training_calls(kind):
    model, batches = kind(net(norm2=nn.BatchNorm2d(16, momentum=1e-4))), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with normwise.watch(model) as w:
        for x, y in batches:
            optimizer.zero_grad()
            model.training_step(x, y).backward()
            optimizer.step()
    found = w.diagnosis()
    assert (found.run.passes, found.run.steps, found.run.micro_batches) == (8, 8, 1)
    assert all(norm.samples == found.run.sampled for norm in found.norms)
    assert [norm.order for norm in found.facts.norms] == [1, 3]
    expect(found, "momentum", "net.4", "warning")
    assert {f.code for f in found.findings} == {"momentum"}
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("detached", [True, False])
def test_watching_a_gan(detached):
    model = Gan()
    with normwise.watch(model) as w:
        model.train_for(60, detached)
    found = w.diagnosis()
    assert grave(found) == [], str(found)
    assert all(norm.samples for norm in found.norms)
    assert not found.of("never-runs")


def test_what_a_fix_changes_is_measured_before_it_is_applied():
    model = healthy()
    model[4].running_mean.add_(3 * model[4].running_var.sqrt())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = look(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    for hit in found.findings:
        assert hit.changes == pytest.approx(moved(hit, model), rel=1e-3)
        assert math.isfinite(hit.changes)
    # A caller's own forward is part of the fix.
    pairs = [{"a": x, "b": y} for x, y in images()]
    own = normwise.diagnose(model, pairs, lambda output, _: output.square().mean(), forward=lambda m, b: m(b["a"]))
    assert all("forward=forward" in f.fix for f in own.of("statistics-disagree"))
    assert all(f.changes is not None for f in own.of("statistics-disagree"))


def test_frozen_layers_of_a_model_in_evaluation_are_not_said_to_train():
    model = healthy()
    model[:3].requires_grad_(False)
    assert not look(model.eval()).of("frozen-moves")
    assert look(model.train()).of("frozen-moves")


def test_ours_are_judged_as_torchs():
    model = after(nw.BatchNorm2d(16), nw.BatchNorm2d(16))
    train(model, images())
    assert look(model).of("cancelled-norm")


def test_every_finding_has_a_test():
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for code in {rule.code for rule in RULES} | set(STATIC):
        assert f'"{code}"' in text or f"'{code}'" in text

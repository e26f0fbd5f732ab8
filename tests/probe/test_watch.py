"""Watching costs nothing but time: nothing is changed, hooks go, any loop will do."""

import os

import pytest
import torch
import torch.nn.functional as F
from nets import CLASSES, Sequences, healthy, images, net, sequences, train
from torch import nn

import normwise
from normwise.errors import InputError, NormwiseWarning


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def dropping():
    torch.manual_seed(0)
    return net().insert(6, nn.Dropout(0.3)).train()


def test_training_is_bit_for_bit_the_same():
    def trained(watched):
        torch.manual_seed(1)
        model = dropping()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        torch.manual_seed(2)
        context = normwise.watch(model) if watched else torch.enable_grad()
        with context:
            for x, y in images(8):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        return snapshot(model), torch.rand(1)

    (plain, number), (watched, same_number) = trained(False), trained(True)
    assert same(plain, watched)
    assert torch.equal(number, same_number)


@pytest.mark.parametrize("mode", [True, False])
def test_diagnose_leaves_everything_as_it_was(mode):
    model = dropping().train(mode)
    model[1].eval()
    gradients = [torch.ones_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    before, modes, state = snapshot(model), [m.training for m in model.modules()], torch.get_rng_state()
    normwise.diagnose(model, images(3), F.cross_entropy)
    assert same(before, snapshot(model))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(model.parameters(), gradients, strict=True))
    assert hooks(model) == 0


@pytest.mark.parametrize("fails_at", ["forward", "loss", "survey"])
def test_an_exception_leaves_no_trace(fails_at):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.runs = healthy(), 0

        def forward(self, x):
            self.runs += 1
            y = self.body(x)
            if fails_at == "survey" or (fails_at == "forward" and self.runs > 2):
                raise KeyError("oh")
            return y

    def loss(output, target):
        raise KeyError("oh")

    model = Failing()
    before, modes, state = snapshot(model), [m.training for m in model.modules()], torch.get_rng_state()
    with pytest.raises((KeyError, InputError), match="oh"):
        normwise.diagnose(model, images(3), loss if fails_at == "loss" else F.cross_entropy)
    assert same(before, snapshot(model))
    assert (hooks(model), modes) == (0, [m.training for m in model.modules()])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.overrides._get_current_function_mode() is None

    def interrupted():
        with normwise.watch(model.body):
            model.body(images(1)[0][0])
            raise KeyError("oh")

    with pytest.raises(KeyError, match="oh"):
        interrupted()
    assert hooks(model) == 0


def test_a_forward_pass_that_fails_is_survived():
    model = net()
    with normwise.watch(model) as w:
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 5, 8, 8))
        for x, _ in images(3):
            model(x).sum().backward()
        # What ran inside the whole model has no hooks any more but on sampled passes.
        assert hooks(model) == 2
    found = w.diagnosis()
    assert found.run.sampled == 3
    assert [weight.calls for weight in found.facts.weights] == [1, 1, 1]


@pytest.mark.parametrize("how", ["channels_last", "bfloat16", "scaled", "accumulated", "gradients off"])
def test_ways_to_train(how):
    torch.manual_seed(0)
    model = net()
    if how == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    if how == "gradients off":
        model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", enabled=how == "scaled")
    with normwise.watch(model) as w:
        for _ in range(6):
            for i, (x, y) in enumerate(images()):
                x = x.to(memory_format=torch.channels_last) if how == "channels_last" else x
                with torch.autocast("cpu", torch.bfloat16, enabled=how in ("bfloat16", "scaled")):
                    loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                if how != "accumulated" or i % 2:
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
    found = w.diagnosis()
    assert found.findings == []
    assert found.run.micro_batches == (2 if how == "accumulated" else 1)
    assert found.norms[0].elements == 32 * 64
    assert found.weights[-1].gradient > 0
    assert found.run.optimizer == "SGD"


def test_several_inputs_mappings_and_a_forward_of_ones_own():
    batches = sequences()
    model = Sequences(told=True)
    assert normwise.diagnose(model, batches, F.cross_entropy).facts.inputs[0] == [16, 5, 20]
    mappings = [{"x": x, "lengths": lengths, "labels": y} for x, lengths, y in batches]
    found = normwise.diagnose(model, mappings, F.cross_entropy)
    assert found.gap.score == "accuracy"
    own = [(y, (x, lengths)) for x, lengths, y in batches]

    def forward(model, batch):
        return model(*batch[1])

    found = normwise.diagnose(model, own, lambda output, _: output.square().mean(), forward=forward)
    assert found.gap.score == "-loss"
    assert normwise.diagnose(model, mappings).gap.running is not None


def test_what_cannot_be_watched_says_so():
    with pytest.raises(InputError, match="does not see hooks"):
        normwise.watch(torch.compile(net(), backend="eager"))
    with pytest.raises(InputError, match="does not see hooks"):
        normwise.watch(nn.Sequential(torch.compile(net(), backend="eager")))
    with pytest.raises(InputError, match="every must be"):
        normwise.watch(net(), every=0)
    with pytest.warns(NormwiseWarning, match="saw no training pass"), normwise.watch(net()) as w:
        pass
    with pytest.raises(InputError, match="nothing was seen"):
        w.diagnosis()
    with pytest.raises(InputError, match="no batch"):
        normwise.diagnose(net(), [])


def test_a_networks_gradients_on_a_one_off_iterator():
    found = normwise.diagnose(net(), iter(images(3)), F.cross_entropy, steps=2)
    assert found.run.passes == 2
    assert all(w.gradient for w in found.weights)


def test_which_steps_are_sampled():
    found = train(net(), images(), epochs=10).diagnosis()
    assert (found.run.passes, found.run.steps) == (80, 80)
    assert found.run.sampled == len([0, 1, 2, 4, 8, 16, 32, 48, 64])
    assert train(net(), images(), epochs=10, every=4).run().sampled == len([0, 1, 2, *range(4, 80, 4)])


def test_scalars(tmp_path):
    class Writer:
        def __init__(self):
            self.tags = {}

        def add_scalar(self, tag, value, step):
            self.tags.setdefault(tag, []).append((step, value))

    writer = Writer()
    train(net(), images(), epochs=2, writer=writer)
    assert [step for step, _ in writer.tags["normwise/1/scatter"]] == [1, 2, 4, 8]
    assert [step for step, _ in writer.tags["normwise/0/gradient"]] == [0, 1, 2, 4, 8]
    train(net(), images(), epochs=1, writer=str(tmp_path))
    assert os.listdir(tmp_path)[0].startswith("events.out.tfevents")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "normwise/1/var_min" in events.Tags()["scalars"]


def test_normless_models_are_diagnosed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    found = normwise.diagnose(model, images(3), F.cross_entropy)
    assert (found.findings, found.norms, found.gap) == ([], [], None)
    assert found.weights[1].cosine is not None


class Recorder(nn.Module):
    """Without parameters, and with a memory."""

    def __init__(self):
        super().__init__()
        self.shapes, self.calls = [], 0

    def forward(self, x):
        self.calls += 1
        self.shapes.append(tuple(x.shape))
        return x


def test_looking_for_dropout_leaves_no_trace_in_a_module():
    recorder = Recorder()
    model = nn.Sequential(nn.Linear(4, 8), recorder, nn.BatchNorm1d(8))
    with normwise.watch(model):
        model(torch.randn(6, 4)).sum().backward()
    assert (recorder.shapes, recorder.calls, recorder.training) == ([(6, 8)], 1, True)

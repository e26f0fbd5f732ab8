"""Each finding: a model that has the fault, its twin that has not, and the fix run as it is printed."""

import pytest
import torch
import torch.nn.functional as F
from nets import CLASSES, SIZE, Idle, Sequences, Shared, deep, healthy, images, net, sequences, train
from torch import nn

import normwise
import normwise.nn as nw

# What only the owner can say how to mend: the effect says what to do.
UNMENDABLE = {"never-runs", "non-finite-gradient"}


def grave(found):
    return [f for f in found.findings if f.severity != "info"]


def expect(found, code, layer, severity=None):
    """The finding is there, with all that a person needs; gives it."""
    hits = [f for f in found.of(code) if f.layer == layer]
    assert hits, f"no {code} at {layer!r} among:\n{found}"
    hit = hits[0]
    assert severity in (None, hit.severity)
    assert hit.message
    assert hit.effect.endswith(".")
    assert hit.fix or code in UNMENDABLE
    compile(hit.fix, "fix", "exec")
    return hit


def mended(hit, model, **names):
    """Run the fix as it stands; gives the model."""
    scope = {"torch": torch, "normwise": normwise, "model": model, **names}
    exec(hit.fix, scope)
    return scope["model"]


def look(model, batches=None, **options):
    return normwise.diagnose(model, batches or images(), F.cross_entropy, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_healthy_model_has_no_finding(seed):
    torch.manual_seed(seed)
    model = net()
    watched = train(model, images(seed=seed)).diagnosis()
    assert watched.findings == []
    assert look(model).findings == []
    assert look(model.eval()).findings == []
    assert str(watched).endswith("no findings")


def test_statistics_that_disagree_and_what_they_cost():
    model = healthy()
    model[4].running_mean.add_(3 * model[4].running_var.sqrt())
    found = look(model)
    hit = expect(found, "statistics-disagree", "4", "warning")
    assert hit.evidence["mean_gap"] == pytest.approx(3, rel=0.1)
    assert hit.evidence["gain"] > 0.2
    gap = expect(found, "train-eval-gap", "", "error")
    assert gap.evidence["batch"] > 0.9
    assert gap.evidence["running"] < 0.8
    assert not [f for f in found.findings if f.layer == "1"]
    assert look(mended(gap, model, loader=images())).findings == []


@pytest.mark.parametrize(("size", "n", "severity"), [(2, 8, "warning"), (8, 32, None)])
def test_few_elements(size, n, severity):
    model = net(norm2=nn.BatchNorm2d(16))
    model[3] = nn.Conv2d(16, 16, 3, stride=4, padding=1, bias=False)
    model[7] = nn.Linear(64, CLASSES)
    found = look(model, images(size=size))
    hits = [f for f in found.of("few-elements") if f.layer == "4"]
    if severity is None:
        assert not hits
        return
    hit = expect(found, "few-elements", "4", severity)
    assert hit.evidence["elements"] == n
    assert hit.evidence["error_of_mean"] == pytest.approx(n**-0.5)
    assert hit.evidence["error_of_var"] == pytest.approx((2 / (n - 1)) ** 0.5)
    assert not look(mended(hit, model), images(size=size)).of("few-elements")


def test_few_elements_counts_micro_batches():
    model, batches = net(norm1=nn.GroupNorm(4, 16)), images(16, size=2, spatial=4)
    model[4] = nn.BatchNorm2d(16)
    model[7] = nn.Linear(64, CLASSES)
    model[3] = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with normwise.watch(model) as w:
        for i, (x, y) in enumerate(batches):
            F.cross_entropy(model(x), y).backward()
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    hit = expect(w.diagnosis(), "few-elements", "4")
    assert hit.evidence["micro_batches"] == 4
    assert "micro-batches a step does not help" in hit.message


@pytest.mark.parametrize(
    ("norm", "severity"),
    [
        (lambda: nn.GroupNorm(16, 16), "error"),
        (lambda: nn.GroupNorm(8, 16), "warning"),
        (lambda: nn.GroupNorm(4, 16), None),
        (lambda: nn.LayerNorm(16), None),
    ],
    ids=["one", "two", "four", "layer"],
)
def test_groups_that_erase_data(norm, severity):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16), norm(), nn.ReLU(), nn.Linear(16, CLASSES))
    found = look(model)
    if severity is None:
        assert not found.of("erased-data")
        return
    hit = expect(found, "erased-data", "2", severity)
    assert not look(mended(hit, model)).of("erased-data")


def test_padding_in_the_statistics():
    for told, padded, faulty in [(False, True, True), (True, True, False), (False, False, False)]:
        batches = sequences(padded=padded)
        found = look(Sequences(told), batches)
        assert bool(found.of("padding")) == faulty
        if faulty:
            hit = expect(found, "padding", "norm", "warning")
            assert 0.2 < hit.evidence["padded"] < 0.5
            model = mended(hit, Sequences(told))
            model.told = True
            assert not look(model, batches).of("padding")


def test_near_eps_variances():
    model = healthy()
    with torch.no_grad():
        model[3].weight.mul_(1e-4)
    model[4].eps = 1e-3
    hit = expect(look(model), "near-eps", "4", "warning")
    assert hit.evidence["near_eps"] == 16
    mended(hit, model)
    assert not look(model).of("near-eps")


def test_constant_channels():
    model = healthy()
    with torch.no_grad():
        model[0].weight[:3] = 0
    hit = expect(look(model), "constant-channels", "1", "warning")
    assert hit.evidence["constant"] == 3
    assert not look(model).of("near-eps")
    mended(hit, model)
    assert not look(model).of("constant-channels")


def test_nonfinite_inputs_are_found_and_skipped_ones_counted():
    model, batches = net(), images()
    batches[3][0][0, 0, 0, 0] = float("inf")
    assert expect(look(model, batches), "non-finite-input", "1", "error").evidence["nonfinite"] == 1
    ours = net(norm1=nw.BatchNorm2d(16))
    with pytest.warns(normwise.errors.NormwiseWarning, match="not finite"):
        ours[:2](batches[3][0])
    with normwise.watch(ours) as w:
        ours(images()[0][0])
    hit = expect(w.diagnosis(), "non-finite-input", "1")
    assert hit.evidence["skipped"] == 1


def test_momentum_too_small_and_too_large():
    slow = train(net(norm1=nn.BatchNorm2d(16, momentum=0.01)), images()).diagnosis()
    hit = expect(slow, "momentum", "1", "warning")
    assert hit.evidence["leftover"] == pytest.approx(0.99**48)
    assert [f.layer for f in slow.of("momentum")] == ["1"]
    model = net(norm1=nn.BatchNorm2d(16, momentum=0.01))
    mended(hit, model)
    assert not train(model, images()).diagnosis().of("momentum")
    # Part of a run that is long enough.
    model = net(norm1=nn.BatchNorm2d(16, momentum=0.01))
    assert not train(model, images(), run_length=1000).diagnosis().of("momentum")

    def jumpy(momentum):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16, bias=False), nn.BatchNorm1d(16, momentum=momentum))
        return model.append(nn.Linear(16, CLASSES))

    found = train(jumpy(0.9), images(15, size=4), epochs=3).diagnosis()
    hit = expect(found, "momentum", "2", "warning")
    assert hit.evidence["noise"] > 0.25
    assert not train(jumpy(0.1), images(15, size=4), epochs=3).diagnosis().of("momentum")
    assert 0 < mended(hit, jumpy(0.9))[2].momentum < 0.5


def test_a_bias_that_is_subtracted_again():
    model = net(bias=True)
    hit = expect(look(model), "cancelled-bias", "3", "info")
    mended(hit, model)
    assert [f.layer for f in look(model).of("cancelled-bias")] == ["0"]
    assert not look(net(norm1=nn.GroupNorm(4, 16), norm2=nn.GroupNorm(4, 16), bias=True)).of("cancelled-bias")


def test_a_second_norm_that_cancels_the_first():
    model = net(norm1=nn.Sequential(nn.BatchNorm2d(16), nn.InstanceNorm2d(16)))
    hit = expect(look(model), "cancelled-norm", "1.1", "warning")
    assert not look(mended(hit, model)).of("cancelled-norm")


def test_layers_that_run_twice_or_never():
    model = Shared(True)
    hit = expect(look(model), "runs-twice", "bn1", "warning")
    assert hit.evidence["calls"] == 2
    assert not look(mended(hit, model)).of("runs-twice")
    assert not look(Shared(False)).of("runs-twice")
    model = Idle(True)
    keys = set(model.state_dict())
    hit = expect(look(model), "never-runs", "bn", "warning")
    assert "statistics" in hit.effect
    assert set(mended(hit, model).state_dict()) == keys
    model.bn = nn.GroupNorm(2, 8)
    assert "statistics" not in expect(look(model), "never-runs", "bn", "info").effect
    assert not look(Idle(False)).of("never-runs")


def test_the_same_batch_twice_in_a_step():
    def sharpness_aware(fix):
        model, (x, y) = net(), images(1)[0]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with normwise.watch(model) as w:
            for _ in range(4):
                F.cross_entropy(model(x), y).backward()
                if fix is None:
                    F.cross_entropy(model(x), y).backward()
                else:
                    second = fix.replace("...", "F.cross_entropy(model(x), y).backward()")
                    exec(second, {"normwise": normwise, "model": model, "F": F, "x": x, "y": y})
                optimizer.step()
                optimizer.zero_grad()
        return w.diagnosis(), int(model[1].num_batches_tracked)

    found, updates = sharpness_aware(None)
    hit = expect(found, "repeated-batch", "", "warning")
    assert (hit.evidence["repeated"], updates) == (4, 8)
    found, updates = sharpness_aware(hit.fix)
    assert (found.of("repeated-batch"), updates) == ([], 4)


def test_norms_in_training_mode_during_evaluation():
    model = healthy().eval()
    model[1].train()
    hit = expect(look(model), "train-mode", "1", "error")
    assert not look(mended(hit, model)).of("train-mode")

    def evaluated(mode):
        model = healthy()
        with normwise.watch(model) as w:
            model(images(1)[0][0]).sum().backward()
            model.train(mode)
            with torch.no_grad():
                model(images(1)[0][0])
        return w.diagnosis()

    assert expect(evaluated(True), "train-mode", "").evidence["passes"] == 1
    assert not evaluated(False).of("train-mode")


def test_frozen_layers_that_move():
    model = healthy()
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    hit = expect(look(model), "frozen-moves", "1", "warning")
    moved = train(model, images(seed=3)).diagnosis()
    assert expect(moved, "frozen-moves", "1").evidence["moved"] > 0
    mended(hit, model)
    assert not look(model).of("frozen-moves")
    assert not train(model, images()).diagnosis().of("frozen-moves")
    model[1].running_mean.add_(0)  # still
    with normwise.watch(model) as w:
        model(images(1)[0][0])
        model[1].running_mean.add_(1.0)
    assert "running_mean" in expect(w.diagnosis(), "frozen-moves", "1").message
    # Gradients from before the freeze go on moving parameters.
    for layer in (nn.BatchNorm2d(16), nn.GroupNorm(4, 16)):
        model = net(norm1=layer)
        F.cross_entropy(model(images(1)[0][0]), images(1)[0][1]).backward()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        layer.requires_grad_(False).eval()
        with normwise.watch(model) as w:
            model(images(1)[0][0])
            optimizer.step()
        hit = expect(w.diagnosis(), "frozen-moves", "1")
        assert "its bias moved" in hit.message or "its weight moved" in hit.message


def test_weight_decay():
    def decayed(model, groups):
        return train(
            model, images(2), epochs=1, optimizer=torch.optim.SGD(groups, lr=0.02, weight_decay=1e-3)
        ).diagnosis()

    model = net(norm2=nw.SwitchableNorm2d(16))
    found = decayed(model, model.parameters())
    assert expect(found, "weight-decay", "4", "warning").evidence["weight_decay"] == pytest.approx(1e-3)
    hit = expect(found, "weight-decay", "", "info")
    assert hit.evidence["layers"] == 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=1e-3)
    assert look(model, optimizer=optimizer).of("weight-decay")
    train(model, images(2), epochs=1, optimizer=optimizer)
    state = {id(p): {k: v.clone() for k, v in known.items()} for p, known in optimizer.state.items()}
    mended(hit, model, optimizer=optimizer)
    # Nothing but the decay of the norms has changed.
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-6 for group in optimizer.param_groups)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 1e-3]
    assert all(torch.equal(v, state[id(p)][k]) for p, known in optimizer.state.items() for k, v in known.items())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert not look(model, optimizer=optimizer).of("weight-decay")
    assert not train(model, images(2), epochs=1, optimizer=optimizer).diagnosis().of("weight-decay")


def test_exploding_weights():
    model = healthy()
    with torch.no_grad():
        model[4].weight[0] = 5e3
    hit = expect(look(model), "exploding-weights", "4", "warning")
    assert hit.evidence["weight_max"] == 5e3
    mended(hit, model)
    assert not look(model).of("exploding-weights")


@pytest.mark.parametrize(
    ("activation", "gain", "words"),
    [(nn.Sigmoid, 1.0, "vanish"), (nn.Identity, 4.0, "explode")],
    ids=["sigmoid", "wide"],
)
def test_gradients_by_depth(activation, gain, words):
    model = deep(activation, norm=False, gain=gain)
    hit = expect(look(model), "gradients", "1", "warning")
    assert words in hit.message
    assert not look(deep(activation, norm=True, gain=gain)).of("gradients")
    mended(hit, model, loader=images())
    assert not look(model).of("gradients")


def test_dead_activations():
    model = net()
    with torch.no_grad():
        model[1].bias[:12] = -50.0
    found = look(model)
    hit = expect(found, "dead-activations", "3", "warning")
    assert (hit.evidence["dead"], hit.evidence["channels"]) == (12, 16)
    mended(hit, model)
    assert not look(model).of("dead-activations")


def test_covariate_shift():
    model = net()
    wild, calm = (torch.optim.SGD(model.parameters(), lr=lr) for lr in (300.0, 0.02))
    found = look(model, optimizer=wild)
    hit = expect(found, "covariate-shift", found.of("covariate-shift")[0].layer, "warning")
    assert hit.evidence["moved_mean"] > 1
    assert not look(model, optimizer=calm).of("covariate-shift")
    for _ in range(5):
        mended(hit, model, optimizer=wild)
    assert not look(model, optimizer=wild).of("covariate-shift")


@pytest.mark.parametrize(
    ("tensor", "value", "code", "severity"),
    [
        ("running_var", float("nan"), "non-finite", "error"),
        ("weight", float("nan"), "non-finite", "error"),
        ("running_var", -1.0, "negative-variance", "error"),
        ("running_var", 1e-7, "near-eps", "warning"),
        ("weight", 1e-9, "dead-weight", "info"),
    ],
)
def test_what_inspection_finds_comes_with_effect_and_fix(tensor, value, code, severity):
    model = healthy()
    with torch.no_grad():
        getattr(model[1], tensor)[2] = value
    hit = expect(look(model), code, "1", severity)
    mended(hit, model, loader=images())
    assert not look(model).of(code)


def test_statistics_that_never_saw_data_or_cannot_move():
    model = net()
    hit = expect(look(model), "never-updated", "1", "info")
    trained = train(net(nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)), images()).model
    expect(look(normwise.convert(trained, "batch").model), "never-updated", "1", "warning")
    mended(hit, model, loader=images())
    assert [f.layer for f in look(model).of("never-updated")] == ["4"]
    model = healthy()
    model[1].momentum = 0.0
    hit = expect(look(model), "momentum-0", "1", "info")
    mended(hit, model)
    assert not look(model).of("momentum-0")

"""Switchable norm against formulas over the data; its sparse mixes, optimizer groups and published checkpoints."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from normwise import methods, ops
from normwise.errors import DataError, InputError, NormwiseWarning
from normwise.moments import sparsemax, sparsestmax
from normwise.nn import (
    BatchNorm2d,
    LayerNormLSTM,
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    importance,
    load_published,
    param_groups,
    read_published,
    set_sparsity,
)

MEMBERS = ("instance", "layer", "group", "batch")
SUBSETS = [s for k in range(1, 5) for s in itertools.combinations(MEMBERS, k)]


def oracle(x, over, means, variances, weight, bias, variance, groups=2, running=None, eps=1e-5):
    """Luo et al. 2019, eq. 2 to 5, over the data itself; ``official`` has σ²_in unbiased throughout."""
    N, C = x.shape[:2]
    groups = groups if C % groups == 0 else 1
    flat = x.reshape(N, C, -1)
    M = flat.shape[2]
    mu_in = flat.mean(2)
    var_in = flat.var(2, correction=1 if variance == "official" else 0)
    grouped = lambda t: t.reshape(N, groups, -1)  # noqa: E731
    spread = lambda t: t.expand(N, groups, C // groups).reshape(N, C)  # noqa: E731
    if variance == "paper":
        found = {
            "instance": (mu_in, var_in),
            "layer": (flat.mean((1, 2))[:, None], flat.var((1, 2), correction=0)[:, None]),
            "batch": (flat.mean((0, 2))[None], flat.var((0, 2), correction=0)[None]),
            "group": tuple(spread(t[..., None]) for t in (grouped(flat).mean(2), grouped(flat).var(2, correction=0))),
        }
    else:
        # σ²_k = mean(σ²_in + μ_in²) − mean(μ_in)², the published way to pool.
        second = var_in + mu_in.square()
        pooled = lambda f: (f(mu_in), f(second) - f(mu_in).square())  # noqa: E731
        found = {
            "instance": (mu_in, var_in),
            "layer": pooled(lambda t: t.mean(1, keepdim=True)),
            "batch": pooled(lambda t: t.mean(0, keepdim=True)),
            "group": pooled(lambda t: spread(grouped(t).mean(2, keepdim=True))),
        }
    if running is not None:
        found["batch"] = tuple(t[None] for t in running)
    mean = sum(w * found[k][0] for w, k in zip(means, over, strict=True))
    var = sum(w * found[k][1] for w, k in zip(variances, over, strict=True))
    y = (flat - mean[..., None]) / (var[..., None] + eps).sqrt()
    assert M > 1
    return (y * weight[:, None] + bias[:, None]).reshape(x.shape)


def shaken(cls=SwitchableNorm2d, channels=4, **options):
    torch.manual_seed(0)
    layer = cls(channels, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        if layer.running_mean is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize("over", SUBSETS, ids="+".join)
@pytest.mark.parametrize("variance", ["paper", "official"])
def test_every_subset_matches_the_formula_with_gradients(over, variance):
    layer = shaken(over=over, variance=variance, num_groups=2)
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(x.shape, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        running = (layer.running_mean, layer.running_var) if not training and "batch" in over else None
        running = None if running is None else tuple(t.clone() for t in running)
        expected = oracle(
            x,
            over,
            layer.mean_weight.softmax(0),
            layer.var_weight.softmax(0),
            layer.weight,
            layer.bias,
            variance,
            running=running,
        )
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
        leaves = [x, *layer.parameters()]
        for ours, theirs in zip(
            torch.autograd.grad(y, leaves, grad),
            torch.autograd.grad(expected, leaves, grad, allow_unused=True),
            strict=True,
        ):
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("cls", "shape"), [(SwitchableNorm1d, (3, 4, 6)), (SwitchableNorm3d, (2, 4, 2, 3, 2))])
def test_other_dimensions_match_the_formula(cls, shape):
    layer = shaken(cls)
    x = torch.randn(shape, dtype=torch.float64)
    shares = layer.shares()
    expected = oracle(x, layer.over, *shares, layer.weight, layer.bias, "paper")
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


def test_faults_of_the_published_layer_are_not_repeated():
    x = 100 + 0.01 * torch.randn(4, 3, 8, 8)
    for variance in ("paper", "official"):
        layer = SwitchableNorm2d(3, variance=variance)
        exact = oracle(
            x.double(), layer.over, *layer.shares(), torch.ones(3).double(), torch.zeros(3).double(), variance
        )
        assert (layer(x).double() - exact).abs().max() < 5e-3
    assert SwitchableNorm2d(3).eval()(torch.randn(2, 3, 4, 4)).abs().max() < 10
    with pytest.warns(NormwiseWarning, match="instance would rest on one element"):
        y = SwitchableNorm2d(3)(torch.randn(8, 3, 1, 1))
    assert y.isfinite().all()


# Sparse mixes


def projection_by_bisection(z):
    """The simplex projection by its definition: p = max(z − τ, 0) with Σ p = 1."""
    low, high = z.min() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (z - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (z - low).clamp_min(0)


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_sparsemax_is_the_projection_with_the_right_gradient(members):
    torch.manual_seed(members)
    sparse = 0
    for _ in range(50):
        z = torch.randn(members, dtype=torch.float64, requires_grad=True)
        p = sparsemax(z)
        torch.testing.assert_close(p, projection_by_bisection(z.detach()), rtol=0, atol=1e-12)
        g = torch.randn(members, dtype=torch.float64)
        support = (p > 0).double()
        sparse += int(support.sum() < members)
        expected = support * (g - (g * support).sum() / support.sum())
        torch.testing.assert_close(torch.autograd.grad(p, z, g)[0], expected)
        torch.testing.assert_close(sparsemax((z + 1e6).float()).double(), p.detach(), rtol=0, atol=0.2)
    assert sparse > 0 or members == 1


def test_sparsestmax_is_the_closest_point_outside_the_disc():
    torch.manual_seed(0)
    n = 150
    grid = torch.tensor([(i / n, j / n, 1 - (i + j) / n) for i in range(n + 1) for j in range(n + 1 - i)]).double()
    for _ in range(60):
        z, sparsity = 0.6 * torch.randn(3).double(), torch.rand(()).item()
        radius = sparsity * (2 / 3) ** 0.5
        p = sparsestmax(z, sparsity)
        assert abs(p.sum() - 1) < 1e-12
        assert (p >= 0).all()
        assert (p - 1 / 3).norm() >= radius - 1e-9
        allowed = grid[(grid - 1 / 3).norm(dim=1) >= radius]
        assert (p - z).square().sum() <= (allowed - z).square().sum(1).min() + 1e-7


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_sparsity_ends_exactly_one_hot_at_the_largest(members, dtype):
    torch.manual_seed(0)
    for _ in range(100):
        z = torch.randn(members, dtype=dtype)
        p = sparsestmax(z, 1.0)
        assert p.tolist() == [float(k == z.argmax()) for k in range(members)]
    even = torch.ones(members, dtype=dtype, requires_grad=True)
    p = sparsestmax(even, 1.0)
    assert p.tolist() == pytest.approx([1 / members] * members)
    p[0].backward()
    assert even.grad.isfinite().all()


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_sparse_layer_matches_the_formula_with_gradients(sparsity, training):
    layer = shaken(sparse=True).train(training)
    assert set_sparsity(layer, sparsity) == 1
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    running = None if training else (layer.running_mean.clone(), layer.running_var.clone())
    means, variances = (sparsestmax(w, layer.sparsity) for w in (layer.mean_weight, layer.var_weight))
    expected = oracle(x, layer.over, means, variances, layer.weight, layer.bias, "paper", running=running)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    leaves = [x, *layer.parameters()]
    grad = torch.randn(x.shape, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def settled(member):
    layer = SwitchableNorm2d(3, sparse=True)
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits[layer.over.index(member)] += 5
    return layer.eval()


def test_dead_members_are_not_computed_in_evaluation(monkeypatch):
    x = torch.randn(2, 3, 4, 4)
    expected = nn.functional.instance_norm(x)
    layer = settled("instance")

    def dead(*_):
        raise AssertionError("a member with no share was computed")

    monkeypatch.setattr(ops.native, "supports", lambda x: False)  # the plain path, whose pools can be watched
    for name in ("layer", "batch"):
        monkeypatch.setitem(methods.POOLS, name, dead)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="no share"):
        layer.train()(x)
    monkeypatch.undo()
    # A layer that has settled on the batch reads no moments of its input at all.
    layer = settled("batch")
    expected = nn.functional.batch_norm(x, layer.running_mean, layer.running_var)
    monkeypatch.setattr(ops.native, "supports", lambda x: False)
    monkeypatch.setattr(ops, "moments", dead)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_sparsity_is_stored_copied_and_reset():
    layer = settled("layer")
    set_sparsity(layer, 0.75)
    twin = SwitchableNorm2d(3, sparse=True).eval()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4, 4)
    for other in (twin, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.sparsity.item() == 0.75
        assert other(x).equal(layer(x))
    layer.reset_parameters()
    assert layer.sparsity.item() == 0
    assert "sparsity" not in SwitchableNorm2d(3).state_dict()
    assert "sparse=True" in repr(layer)
    with pytest.raises(InputError, match="from 0"):
        set_sparsity(layer, 1.5)


def test_training_with_a_rising_sparsity_settles_on_the_member_that_helps():
    """The target is batch norm's output, so the logits must come to the batch member."""
    torch.manual_seed(0)
    layer = SwitchableNorm2d(4, sparse=True)
    optimizer = torch.optim.SGD([layer.mean_weight, layer.var_weight], lr=0.3)
    scales = torch.tensor([0.3, 1.0, 3.0, 0.1]).reshape(1, 4, 1, 1)
    for step in range(40):
        x = scales * torch.randn(8, 4, 6, 6) + torch.randn(8, 4, 1, 1)
        target = nn.functional.batch_norm(x, None, None, training=True)
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x), target).backward()
        optimizer.step()
        set_sparsity(layer, min(1.0, max(0.0, (step - 5) / 25)))
    found = importance(layer)[0]
    assert found.mean_weights == [0.0, 0.0, 1.0]
    assert found.var_weights == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("sparse", [False, True])
def test_traces_and_transforms(sparse):
    layer = SwitchableNorm2d(3, sparse=sparse).eval()
    x = torch.randn(2, 3, 4, 4)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(traced(x), layer(x))
    mapped = torch.vmap(layer)(x[:, None])
    torch.testing.assert_close(mapped[:, 0], layer(x), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


# Importance


def test_importance_reads_every_layer_and_prints_a_table():
    model = nn.Sequential(
        SwitchableNorm2d(4), nn.ReLU(), settled("layer"), SwitchableNorm1d(4, over=("group", "batch"))
    )
    found = importance(model)
    assert [mixture.layer for mixture in found] == ["0", "2", "3"]
    assert found[1].mean_weights == [0.0, 1.0, 0.0]
    for mixture in found:
        assert sum(mixture.mean_weights) == pytest.approx(1)
    lines = repr(found).splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "of", "instance", "layer", "batch", "group"]
    assert lines[3].split() == ["2", "means", "0.000", "1.000", "0.000", "-"]
    assert repr(importance(nn.ReLU())) == "no switchable layers"


# Optimizer groups


class Odd(nn.Module):
    """A norm that no type tells."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def test_groups_hold_every_parameter_once_and_no_frozen_one():
    model = nn.ModuleList([
        nn.Conv2d(3, 4, 3),
        SwitchableNorm2d(4),
        BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        LayerNormLSTM(3, 4),
        Odd(),
        nn.Linear(4, 4),
    ])
    model.append(model[0])
    model[9].weight.requires_grad_(False)
    groups = {group["name"]: group for group in param_groups(model, lr=0.2, weight_decay=0.01)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "mixing": (pytest.approx(0.02), 0.0),
        "norm": (0.2, 0.0),
        "rest": (0.2, 0.01),
    }
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    names = {id(p): name for name, p in model.named_parameters()}
    named = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert named["mixing"] == {"1.mean_weight", "1.var_weight"}
    lstm = {f"7.{name}_l0" for name in ("weight_ih", "weight_hh")}
    assert named["rest"] == {"0.weight", "0.bias", "8.scale", "9.bias"} | lstm
    taken = param_groups(model, lr=0.2, norms=(Odd,))
    assert any(p is model[8].scale for p in next(g for g in taken if g["name"] == "norm")["params"])
    torch.optim.AdamW(taken)


def test_groups_refuse_what_cannot_be_optimized():
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        param_groups(nn.ReLU(), lr=0.1)
    with pytest.raises(InputError, match="not be negative"):
        param_groups(nn.Linear(2, 2), lr=-1)


# Published checkpoints


def published(dims, members, prefix="norm"):
    """What the published layer stores, by the table of facts."""
    torch.manual_seed(1)
    C = 4
    shape = (1, C) + (1,) * dims
    entry = {"weight": torch.randn(shape), "bias": torch.randn(shape)}
    entry |= {"mean_weight": torch.randn(members), "var_weight": torch.randn(members)}
    if members == 3 or dims == 0:
        entry |= {
            "running_mean": torch.randn((1, C) if dims == 0 else (1, C, 1)),
            "running_var": torch.rand((1, C) if dims == 0 else (1, C, 1)) + 0.5,
        }
    return {f"{prefix}.{key}": value for key, value in entry.items()}


class Host(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = norm


CASES = {
    "2d": (2, 3, SwitchableNorm2d, ("instance", "layer", "batch"), (3, 4, 5, 5)),
    "2d without batch": (2, 2, SwitchableNorm2d, ("instance", "layer"), (3, 4, 5, 5)),
    "3d": (3, 3, SwitchableNorm3d, ("instance", "layer", "batch"), (3, 4, 2, 5, 5)),
    "2d, other order": (2, 3, SwitchableNorm2d, ("batch", "instance", "layer"), (3, 4, 5, 5)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_a_published_checkpoint_computes_what_it_computed(case, training, tmp_path):
    dims, count, cls, over, shape = CASES[case]
    entry = published(dims, count)
    model = Host(cls(4, over=over)).train(training)
    state = entry | {f"conv.{key}": torch.randn_like(value) for key, value in model.conv.state_dict().items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "arch": "x", "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    assert load_published(model, path, momentum=0.997) == ["norm"]
    assert model.conv.weight.equal(state["conv.weight"])
    assert model.norm.variance == "official"
    assert model.norm.momentum == pytest.approx(0.003)
    x = torch.randn(shape)
    e = {key.removeprefix("norm."): value.double().flatten() for key, value in entry.items()}
    running = None if training or count == 2 else (e["running_mean"], e["running_var"])
    order = ("instance", "layer", "batch")[:count]
    shares = (e["mean_weight"].softmax(0), e["var_weight"].softmax(0))
    expected = oracle(x.double(), order, *shares, e["weight"], e["bias"], "official", running=running)
    torch.testing.assert_close(model.norm(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_1d_variant_is_read_by_name_and_shape():
    state, members = read_published(published(0, 2))
    assert members == {"norm": ("layer", "batch")}
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "norm.weight": (4,),
        "norm.bias": (4,),
        "norm.mean_weight": (2,),
        "norm.var_weight": (2,),
        "norm.running_mean": (4,),
        "norm.running_var": (4,),
        "norm.num_batches_tracked": (),
    }
    layer = SwitchableNorm1d(4, over=("layer", "batch"))
    before = layer.momentum
    load_published(layer, {key.removeprefix("norm."): value for key, value in published(0, 2).items()})
    assert layer.momentum == before


def test_an_untrained_checkpoint_does_not_divide_by_zero():
    entry = published(2, 3)
    entry["norm.running_mean"].zero_()
    entry["norm.running_var"].zero_()
    with pytest.warns(NormwiseWarning, match="'norm' was never trained"):
        state, _ = read_published(entry)
    assert state["norm.running_var"].eq(1).all()


def broken(change):
    entry = published(2, 3)
    change(entry)
    return entry


STRANGE = {
    "unknown entry": lambda e: e.update({"norm.extra": torch.ones(1)}),
    "missing entry": lambda e: e.pop("norm.bias"),
    "four mixing weights": lambda e: e.update({"norm.mean_weight": torch.ones(4), "norm.var_weight": torch.ones(4)}),
    "unequal mixing weights": lambda e: e.update({"norm.var_weight": torch.ones(2)}),
    "flat weight": lambda e: e.update({"norm.weight": torch.ones(4)}),
    "batch without averages": lambda e: e.pop("norm.running_var"),
    "averages without batch": lambda e: e.update({"norm.mean_weight": torch.ones(2), "norm.var_weight": torch.ones(2)}),
    "averages of other shape": lambda e: e.update({"norm.running_var": torch.ones(4)}),
    "half a prefix": lambda e: e.update({"module.x": torch.ones(1)}),
    "no tensor": lambda e: e.update({"norm.note": "hello"}),
}


@pytest.mark.parametrize("fault", STRANGE)
def test_what_is_not_known_is_refused(fault):
    with pytest.raises(DataError):
        read_published(broken(STRANGE[fault]))


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    cases = [
        (Host(SwitchableNorm2d(4, over=("instance", "layer"))), "mixes instance, layer, batch"),
        (Host(SwitchableNorm2d(4, sparse=True)), "mixes instance, layer, batch"),
        (Host(nn.BatchNorm2d(4)), "only in the checkpoint"),
        (Host(SwitchableNorm2d(4)), "missing in the checkpoint: conv"),
        (nn.ModuleDict({"norm": SwitchableNorm2d(8)}), "of another shape: norm"),
    ]
    for model, message in cases:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(DataError, match=message):
            load_published(model, published(2, 3))
        assert all(model.state_dict()[key].equal(value) for key, value in before.items())
        assert (
            getattr(model["norm"] if isinstance(model, nn.ModuleDict) else model.norm, "variance", "paper") == "paper"
        )
    with pytest.raises(DataError, match="cannot read the checkpoint"):
        read_published(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DataError, match="no checkpoint that can be loaded safely"):
        read_published(tmp_path / "text.pth")
    torch.save(Host(nn.ReLU()), tmp_path / "module.pth")
    with pytest.raises(DataError, match="no checkpoint that can be loaded safely"):
        read_published(tmp_path / "module.pth")
    with pytest.raises(DataError, match="no switchable layer"):
        read_published({"weight": torch.ones(1)})
    with pytest.raises(InputError, match="kept fraction"):
        load_published(Host(SwitchableNorm2d(4)), published(2, 3), momentum=9)

"""What the relatives have beyond the family's tests: reference statistics, gates, thresholds, conditions, styles."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import normwise
from normwise import nn
from normwise.core.distributed import Sync
from normwise.errors import InputError, NormwiseWarning
from normwise.functional import normalize
from normwise.methods import METHODS, BatchRenorm, Layer
from normwise.parametrize import spectral_norm, weight_standardization
from oracles import ORACLES, Parameters
from oracles_relatives import ghost_batch, renormalized

CHANNELS = 4
RELATIVES = [name for name, m in METHODS.items() if m.pools and not m.mix(stored=False)]
RNG = np.random.default_rng(0)
PARAMETERS = Parameters(weight=RNG.normal(size=CHANNELS), bias=RNG.normal(size=CHANNELS))
MEAN, VAR = RNG.normal(size=CHANNELS), RNG.uniform(0.5, 2, CHANNELS)


def data(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(2.0, 3.0, shape))


def affine() -> dict[str, torch.Tensor]:
    return {"weight": torch.from_numpy(PARAMETERS.weight), "bias": torch.from_numpy(PARAMETERS.bias)}


def close(ours: torch.Tensor, oracle: np.ndarray, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), oracle, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.5, 0.4), (3.0, 5.0), (100.0, 100.0)])
def test_batch_renorm_is_the_papers_formula(limits: tuple[float, float]) -> None:
    x = data(6, CHANNELS, 3)
    stored = {"running_mean": torch.from_numpy(MEAN.copy()), "running_var": torch.from_numpy(VAR.copy())}
    y = normalize(x, BatchRenorm(*limits), **stored, **affine())
    close(y, renormalized(x.numpy(), PARAMETERS, MEAN, VAR, *limits))
    if limits[0] == 100:  # unclipped, it is evaluation's formula already in training
        close(y, normalize(x, "batch", use_running=True, **stored, **affine()).numpy())


def test_batch_renorm_holds_r_and_d_constant_backward() -> None:
    x = data(6, CHANNELS, 3).requires_grad_()
    stored = {"running_mean": torch.from_numpy(MEAN.copy()), "running_var": torch.from_numpy(VAR.copy())}
    normalize(x, BatchRenorm(1.5, 0.4), **stored, **affine()).square().sum().backward()

    z = data(6, CHANNELS, 3).requires_grad_()
    mean, sigma = z.mean((0, 2), keepdim=True), torch.sqrt(z.var((0, 2), correction=0, keepdim=True) + 1e-5)
    reference_mean, reference_var = (torch.from_numpy(t)[None, :, None] for t in (MEAN, VAR))
    reference = torch.sqrt(reference_var + 1e-5)
    r = (sigma / reference).detach().clamp(1 / 1.5, 1.5)
    d = ((mean - reference_mean) / reference).detach().clamp(-0.4, 0.4)
    weight, bias = (t[:, None] for t in affine().values())
    (((z - mean) / sigma * r + d) * weight + bias).square().sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-9, atol=1e-9)


def test_batch_renorm_starts_as_batch_norm_and_follows_the_averages_more_and_more() -> None:
    layer, plain = nn.BatchRenorm(CHANNELS, warmup=2, dtype=torch.float64), nn.BatchNorm1d(CHANNELS).double()
    differences = []
    for step in range(3):
        x = data(6, CHANNELS, 3, seed=step) * (1 + step)
        differences.append((layer(x) - plain(x)).abs().max().item())
    assert differences[0] < 1e-12
    assert 0.1 < differences[1] < differences[2]
    torch.testing.assert_close(layer.running_var, plain.running_var)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(2, 11), size=st.integers(2, 6), space=st.integers(1, 3))
def test_ghosts_of_any_size(samples: int, size: int, space: int) -> None:
    x = data(samples, CHANNELS, space)
    p = Parameters(weight=PARAMETERS.weight, bias=PARAMETERS.bias, ghost_size=size)
    layer = nn.GhostBatchNorm(CHANNELS, ghost_size=size, momentum=1.0, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(affine()["weight"])
        layer.bias.copy_(affine()["bias"])
    close(layer(x), ghost_batch(x.numpy(), p), 1e-8)
    ghosts = np.array_split(x.numpy(), max(1, samples // size))
    close(layer.running_mean, np.mean([g.mean((0, 2)) for g in ghosts], 0))
    close(layer.running_var, np.mean([np.moveaxis(g, 1, 0).reshape(CHANNELS, -1).var(1, ddof=1) for g in ghosts], 0))


@pytest.mark.parametrize("method", RELATIVES)
def test_masks_equal_the_unpadded_data(method: str) -> None:
    x, lengths = data(4, CHANNELS, 6), torch.tensor([6, 6, 6, 6])
    row, _ = METHODS[method].taking({"ghost_size": 2})
    learned = {name: torch.linspace(0.1, 0.9, CHANNELS).double() for name in row.learned}
    dirty = torch.nn.functional.pad(x, (0, 3), value=float("nan")).requires_grad_()
    y = normalize(dirty, row, lengths=lengths, **affine(), **learned)
    leaf = x.clone().requires_grad_()
    plain = normalize(leaf, row, **affine(), **learned)
    torch.testing.assert_close(y[..., :6], plain, rtol=1e-9, atol=1e-9)
    y[..., :6].square().sum().backward()
    plain.square().sum().backward()
    torch.testing.assert_close(dirty.grad[..., :6], leaf.grad, rtol=1e-8, atol=1e-8)
    assert torch.equal(dirty.grad[..., 6:], torch.zeros(4, CHANNELS, 3, dtype=torch.float64))


@pytest.mark.parametrize("method", [*RELATIVES, "switchable"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_statistics_in_float32(method: str, dtype: torch.dtype) -> None:
    layer = nn.norm_layer(method, 2)(CHANNELS)
    exact = copy.deepcopy(layer).double()
    x = (torch.randn(6, CHANNELS, 8, 8) * 30 + 500).to(dtype).requires_grad_()  # squares are beyond float16
    with torch.autocast("cpu", dtype):
        y = layer(x)
    expected = exact(x.detach().double())
    assert (y - expected).abs().max() <= 1e-2 * expected.abs().max()
    y.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()
    for buffer, other in zip(layer.buffers(), exact.buffers(), strict=True):
        assert buffer.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(buffer.double(), other.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["renorm", "ghost", "mean", "gate", "conditional"])
def test_a_batch_that_is_not_finite_is_left_out_and_named(kind: str) -> None:
    make = {
        "renorm": lambda: nn.BatchRenorm(CHANNELS),
        "ghost": lambda: nn.GhostBatchNorm(CHANNELS, ghost_size=2),
        "mean": lambda: nn.MeanOnlyBatchNorm(CHANNELS),
        "gate": lambda: nn.BatchInstanceNorm(CHANNELS),
        "conditional": lambda: nn.ConditionalBatchNorm(CHANNELS, num_conditions=1),
    }[kind]
    model = torch.nn.ModuleDict({"norm": make()})
    given = (torch.zeros(4, dtype=torch.long),) if kind == "conditional" else ()
    x = torch.randn(4, CHANNELS, 5)
    model["norm"](x, *given)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x[1, 0, 2] = float("inf")
    with pytest.warns(NormwiseWarning, match="mean or variance is not finite"):
        model["norm"](x, *given)
    assert model["norm"].num_batches_skipped == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("method", RELATIVES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_factory_builds_layers_that_train_and_evaluate(method: str, dim: int) -> None:
    layer = nn.norm_layer(method, dim)(CHANNELS)
    assert set(METHODS[method].learned) <= {name for name, _ in layer.named_parameters()}
    x = torch.randn(6, CHANNELS, *(3,) * dim)
    for _ in range(3):
        layer(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert layer.eval()(x).shape == x.shape
    twin = nn.norm_layer(method, dim)(CHANNELS)
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin.eval()(x), layer(x))


def test_the_gate_goes_from_instance_to_batch_and_stays_within_bounds() -> None:
    layer, x = nn.BatchInstanceNorm(CHANNELS, dtype=torch.float64), data(5, CHANNELS, 6)
    torch.testing.assert_close(layer(x), normalize(x, "batch"))
    with torch.no_grad():
        layer.gate.fill_(-3)
    torch.testing.assert_close(layer(x), normalize(x, "instance"))
    assert layer.gate.min() == 0
    (layer(x).sum() + layer(x).square().sum()).backward()  # two passes before one backward: clipping is no change
    assert torch.isfinite(layer.gate.grad).all()


def test_filter_response_threshold() -> None:
    layer, x = nn.FilterResponseNorm(CHANNELS, tlu=True, dtype=torch.float64), data(3, CHANNELS, 5)
    with torch.no_grad():
        layer.threshold.copy_(torch.tensor([0.0, 0.5, -9.0, 9.0]))
    y = layer(x)
    plain = x / torch.sqrt(x.square().mean(2, keepdim=True) + 1e-6)
    torch.testing.assert_close(y, torch.maximum(plain, layer.threshold[:, None]))
    assert layer(x, lengths=torch.tensor([5, 2, 0]))[1, :, 2:].abs().max() == 0


@pytest.mark.parametrize(("method", "axes"), [("batch", (0, 2)), ("layer", (1, 2)), ("instance", (2,))])
def test_parts_of_any_method(method: str, axes: tuple[int, ...]) -> None:
    x = data(3, CHANNELS, 5)
    torch.testing.assert_close(normalize(x, f"{method}(parts=mean)"), x - x.mean(axes, keepdim=True))
    root_mean_square = torch.sqrt(x.square().mean(axes, keepdim=True) + 1e-5)
    torch.testing.assert_close(normalize(x, f"{method}(parts=scale)"), x / root_mean_square)
    assert torch.autograd.gradcheck(lambda t: normalize(t, f"{method}(parts=scale)"), x.requires_grad_())


def test_rms_norm_is_the_scale_part_of_layer_norm() -> None:
    x = data(6, 8)
    torch.testing.assert_close(normalize(x, Layer(parts="scale")), torch.nn.functional.rms_norm(x, (8,), eps=1e-5))


def test_frozen_batch_norm_never_moves() -> None:
    source = torch.nn.BatchNorm2d(CHANNELS)
    source(torch.randn(8, CHANNELS, 3, 3) * 2 + 1)
    frozen = nn.FrozenBatchNorm(CHANNELS)
    frozen.load_state_dict(source.state_dict())
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    x = torch.randn(4, CHANNELS, 3, 3, requires_grad=True)
    y = frozen.train()(x)
    y.sum().backward()
    torch.testing.assert_close(y, source.eval()(x))
    assert all(torch.equal(frozen.state_dict()[k], v) for k, v in before.items())
    assert "num_batches_tracked" in source.state_dict()
    masked = frozen(x, mask=torch.arange(3).expand(4, 3, 3) < 2)
    torch.testing.assert_close(masked[..., :2], y[..., :2])
    assert not masked[..., 2].any()


def test_adaptive_instance_norm_is_the_papers_formula() -> None:
    x, style = data(2, CHANNELS, 5, 3), data(2, CHANNELS, 4, 4, seed=2) * 2
    leaves = [x.clone().requires_grad_(), style.clone().requires_grad_()]
    y = nn.AdaptiveInstanceNorm(eps=1e-5)(*leaves)
    parts = []
    for n in range(2):
        scale = np.sqrt(style[n].numpy().var((1, 2)) + 1e-5)
        p = Parameters(weight=scale, bias=style[n].numpy().mean((1, 2)))
        parts.append(ORACLES["instance"](x[n : n + 1].numpy(), p))
    close(y, np.concatenate(parts))
    assert torch.autograd.gradcheck(nn.AdaptiveInstanceNorm(), leaves)


@pytest.mark.parametrize("kind", [nn.ConditionalBatchNorm, nn.ConditionalInstanceNorm])
@pytest.mark.parametrize("table", [True, False])
def test_conditional_norms_are_the_papers_formulas(kind: type, table: bool) -> None:
    torch.manual_seed(0)
    size = {"num_conditions": 5} if table else {"condition_features": 7}
    layer = kind(CHANNELS, dtype=torch.float64, **size)
    condition = torch.tensor([4, 0, 4]) if table else torch.randn(3, 7, dtype=torch.float64)
    x = data(3, CHANNELS, 6).requires_grad_()
    torch.testing.assert_close(layer(x, condition), normalize(x, layer.method))  # starts without a condition
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    delta = layer.condition(condition)[:, :, None]
    unit = normalize(x, layer.method)
    expected = unit * (layer.weight[:, None] + delta[:, :CHANNELS]) + layer.bias[:, None] + delta[:, CHANNELS:]
    y = layer(x, condition)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert (layer.running_mean is not None) == (kind is nn.ConditionalBatchNorm)


def test_sync_reaches_the_relatives_that_pool_over_the_batch() -> None:
    layers = [nn.BatchRenorm(3), nn.MeanOnlyBatchNorm(3), nn.BatchInstanceNorm(3)]
    own = [nn.GhostBatchNorm(3), nn.FilterResponseNorm(3)]
    normwise.sync(torch.nn.Sequential(*layers, *own))
    assert [m.sync for m in layers] == [Sync()] * 3
    assert [m.sync for m in own] == [None] * 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.BatchRenorm(3, r_max=0.5), "r_max >= 1"),
        (lambda: nn.GhostBatchNorm(3, ghost_size=1), "at least 2 samples, got 1"),
        (lambda: nn.FilterResponseNorm(3, tlu=True, activation="relu"), "tlu is an activation itself"),
        (lambda: nn.ConditionalBatchNorm(3), "one of them"),
        (lambda: nn.ConditionalBatchNorm(3, num_conditions=2, condition_features=2), "one of them"),
        (lambda: nn.AdaptiveInstanceNorm()(data(2, 3, 4), data(2, 4, 4)), "agree in samples and channels"),
        (lambda: nn.ConditionalBatchNorm(3, num_conditions=2)(torch.randn(2, 3), torch.zeros(2)), "integers of shape"),
        (lambda: nn.BatchInstanceNorm(3)(torch.randn(4, 3)), "more than 1 spatial element"),
        (lambda: nn.GhostBatchNorm(3)(torch.randn(1, 3)), "more than 1 value per channel"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    "layer",
    [torch.nn.Linear(5, 3), torch.nn.Conv2d(4, 6, 3, groups=2), torch.nn.ConvTranspose1d(4, 6, 3)],
    ids=lambda m: type(m).__name__,
)
def test_weight_standardization_is_the_papers_formula(layer: torch.nn.Module) -> None:
    layer, axis = layer.double(), int(isinstance(layer, torch.nn.ConvTranspose1d))
    v = layer.weight.detach().clone().transpose(0, axis).flatten(1)
    assert weight_standardization(layer) is layer
    expected = (v - v.mean(1, keepdim=True)) / torch.sqrt(v.var(1, correction=0, keepdim=True) + 1e-5)
    torch.testing.assert_close(layer.weight.transpose(0, axis).flatten(1), expected)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    torch.testing.assert_close(twin.weight, layer.weight)
    assert torch.autograd.gradcheck(layer.parametrizations.weight[0], layer.parametrizations.weight.original)


def test_weight_standardization_refuses_what_it_would_erase() -> None:
    with pytest.raises(InputError, match="one weight a unit"):
        weight_standardization(torch.nn.Conv2d(4, 4, 1, groups=4))
    with pytest.raises(InputError, match="no parameter 'kernel'; it has: weight, bias"):
        weight_standardization(torch.nn.Linear(2, 2), "kernel")


def test_spectral_norm_is_torchs() -> None:
    layer = spectral_norm(torch.nn.Linear(5, 3), n_power_iterations=50)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight, 2), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    theirs = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(5, 3))
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5)
    torch.testing.assert_close(theirs.eval()(x), layer.eval()(x))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # torch's cannot be pickled
        torch.testing.assert_close(twin(x), layer(x))
        torch.nn.utils.parametrize.remove_parametrizations(twin, "weight")
        assert torch.nn.utils.parametrize.is_parametrized(layer)
    with pytest.raises(InputError, match="no parameter 'kernel'"):
        spectral_norm(torch.nn.Linear(2, 2), "kernel")


def test_official_switchable_tracks_its_batch_variance_as_it_is() -> None:
    x, layer = data(3, CHANNELS, 4, 2), nn.SwitchableNorm2d(CHANNELS, momentum=1.0, variance="official").double()
    layer(x)
    cells = x.flatten(2)
    second = (cells.var(2) + cells.mean(2).square()).mean(0)
    torch.testing.assert_close(layer.running_var, second - cells.mean((0, 2)).square(), rtol=1e-12, atol=1e-12)

"""Every method of ``METHODS`` against its paper's formula: a new row is tested here without a new line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import normwise
from normwise.functional import normalize
from normwise.methods import METHODS, Method
from oracles import ORACLES as SIX
from oracles import Parameters, weight_norm
from oracles_relatives import ORACLES as RELATIVES

ORACLES = {**SIX, **RELATIVES}
CHANNELS = 4
SHAPES = [(5, CHANNELS), (3, CHANNELS, 7), (2, CHANNELS, 3, 5), (2, CHANNELS, 2, 3, 2), (1, CHANNELS, 6, 6)]
# With one element a cell the statistic of a cell is undefined: refused, or left out of a mix.
CASES = [
    (name, shape)
    for name, method in METHODS.items()
    for shape in SHAPES
    if len(shape) > 2 or "instance" not in method.pools or (method.rests_on is None and not method.learned)
]


def parameters(seed: int = 0, running: bool = False) -> Parameters:
    rng = np.random.default_rng(seed)
    stored = (
        {"running_mean": rng.normal(size=CHANNELS), "running_var": rng.uniform(0.5, 2, CHANNELS)} if running else {}
    )
    return Parameters(
        weight=rng.normal(size=CHANNELS),
        bias=rng.normal(size=CHANNELS),
        mean_weight=rng.normal(size=3),
        var_weight=rng.normal(size=3),
        gate=rng.uniform(0.1, 0.9, CHANNELS),
        ghost_size=2,
        alpha=rng.uniform(0.3, 0.8, 1),
        shift=rng.normal(size=1) / 4,
        **stored,
    )


def method_of(name: str, p: Parameters) -> Method:
    """The method with the oracle's options."""
    own = {"num_groups": p.num_groups, "ghost_size": p.ghost_size, "variance": p.variance}
    return METHODS[name].taking(own)[0]


def options(method: Method, p: Parameters, dtype: torch.dtype) -> dict:
    """The oracle's parameters as arguments of ``normalize``."""
    tensors = ["weight", "bias", "running_mean", "running_var", *method.learned]
    given = {key: torch.from_numpy(value).to(dtype) for key in tensors if (value := getattr(p, key)) is not None}
    return {**given, "eps": p.eps, "use_running": p.running_mean is not None}


def data(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(2.0, 3.0, shape))


def assert_close(ours: torch.Tensor, oracle: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, np.abs(oracle).max())
    assert np.abs(ours.double().numpy() - oracle).max() <= tolerance * scale


def test_every_method_has_an_oracle() -> None:
    assert set(METHODS) == set(ORACLES)


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_papers_formula(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p = parameters()
    x = data(shape).to(dtype)
    method = method_of(name, p)
    y = normalize(x, method, **options(method, p, torch.float64 if dtype == torch.float64 else torch.float32))
    assert y.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert_close(y, ORACLES[name](x.double().numpy(), p), tolerance)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_evaluation_uses_the_running_averages(name: str, shape: tuple[int, ...]) -> None:
    p = parameters(running=True)
    method = method_of(name, p)
    y = normalize(data(shape), method, **options(method, p, torch.float64))
    oracle = (
        name if method.running or not method.folds or not method.pools else "batch"
    )  # as in torch: a tracked instance norm evaluates as a batch norm
    assert_close(y, ORACLES[oracle](data(shape).numpy(), p), 1e-12)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradcheck(name: str, running: bool, activation: str | None) -> None:
    p = parameters(running=running)
    method = method_of(name, p)
    given = options(method, p, torch.float64)
    learned = ["weight", "bias", *method.learned]
    inputs = [data((3, CHANNELS, 2, 2)), *(given.pop(key) for key in learned)]

    def function(x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return normalize(x, method, activation=activation, **given, **dict(zip(learned, tensors, strict=True)))

    leaves = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    if activation != "leaky_relu":  # torch has no second derivative of leaky relu's slope to check beyond relu's
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_fused_gradients_equal_those_of_the_plain_graph(name: str) -> None:
    p = parameters()
    method = method_of(name, p)
    given = options(method, p, torch.float64)
    x = data((3, CHANNELS, 4, 4))
    upstream = data((3, CHANNELS, 4, 4), seed=2)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return (normalize(t, method, **given) * upstream).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(leaf.grad, torch.func.grad(loss)(x), rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    samples=st.integers(1, 4),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    space=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 99),
)
def test_any_shape_gives_the_formula_or_a_clear_error(
    name: str, samples: int, groups: int, width: int, space: list[int], seed: int
) -> None:
    channels, rng = groups * width, np.random.default_rng(seed)
    x = rng.normal(1.0, 2.0, (samples, channels, *space))
    p = Parameters(
        weight=rng.normal(size=channels),
        bias=rng.normal(size=channels),
        num_groups=groups,
        mean_weight=rng.normal(size=3),
        var_weight=rng.normal(size=3),
        gate=rng.uniform(size=channels),
        ghost_size=2,
    )
    elements = int(np.prod(space)) if space else 1
    behind = {
        "instance": elements,
        "group": width * elements,
        "layer": channels * elements,
        "batch": samples * elements,
        "switchable": max(channels, samples) * elements,
    }
    leaf, method = torch.from_numpy(x).requires_grad_(), method_of(name, p)
    # For several samples torch's group norm computes it, and so does ours.
    if behind.get(METHODS[name].rests_on or name) == 1 and not (name == "group" and samples > 1):
        with pytest.raises(ValueError, match=r"more than 1|single value"):
            normalize(leaf, method, **options(method, p, torch.float64))
        return
    y = normalize(leaf, method, **options(method, p, torch.float64))
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(leaf.grad).all()
    if method.rests_on or not method.learned or elements > 1:  # otherwise members are dropped: see test_switchable
        assert_close(y.detach(), ORACLES[name](x, p), 1e-9)


@pytest.mark.parametrize("variance", ["paper", "official"])
@pytest.mark.parametrize("running", [False, True])
def test_switchable_variances(variance: str, running: bool) -> None:
    p = parameters(running=running)
    p.variance = variance
    x = data((3, CHANNELS, 2, 2))
    method = method_of("switchable", p)
    y = normalize(x, method, **options(method, p, torch.float64))
    assert_close(y, ORACLES["switchable"](x.numpy(), p), 1e-12)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.mix(stored=False)])
def test_large_means_lose_no_more_than_rounding(name: str, mean: float) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(mean, 1.0, (4, CHANNELS, 32, 32))).float()
    p = parameters()
    method = method_of(name, p)
    y = normalize(x, method, **options(method, p, torch.float32))
    oracle = ORACLES[name](x.double().numpy(), p)
    # The mean can be held only to float32's spacing at that size.
    assert_close(y, oracle, 2e-6 + float(np.spacing(np.float32(mean))))


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_the_papers_formula(dim: int | None) -> None:
    torch.manual_seed(0)
    layer = normwise.weight_norm(torch.nn.Linear(3, 4).double(), dim=dim)
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    with torch.no_grad():
        g.mul_(1.7)
        v.add_(0.1)
    expected = weight_norm(g.detach().numpy(), v.detach().numpy(), dim)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-12)


def test_weight_norm_gradcheck() -> None:
    torch.manual_seed(0)
    layer = normwise.weight_norm(torch.nn.Linear(3, 4).double())
    join = layer.parametrizations.weight[0]
    g, v = torch.rand(4, 1, dtype=torch.float64) + 0.5, torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(join, (g.requires_grad_(), v.requires_grad_()))


def test_weight_norm_of_a_zero_row_is_zero_and_can_learn() -> None:
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    normwise.weight_norm(layer)
    assert torch.equal(layer.weight[0], torch.zeros(3))
    layer(torch.ones(1, 3)).sum().backward()
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert torch.isfinite(g.grad).all()
    assert torch.isfinite(v.grad).all()
    assert g.grad[0] != 0

"""Padding touches nothing: a masked batch gives what its samples give without their padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normwise import nn
from normwise.errors import InputError
from normwise.functional import normalize
from normwise.methods import METHODS as ALL

METHODS = {m.name: m.taking({"num_groups": 2})[0] for m in ALL.values() if m.mix(stored=False)}
CHANNELS = 4
WEIGHT, BIAS = torch.tensor([1.5, -0.5, 2.0, 1.0]).double(), torch.tensor([0.1, 0.2, -0.3, 0.0]).double()
SHARES = torch.tensor([0.3, -0.2, 0.5]).double()


def ragged(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(3.0, 2.0, (CHANNELS, n))) for n in lengths]


def padded(samples: list[torch.Tensor], fill: float = float("nan"), extra: int = 2) -> torch.Tensor:
    size = max(s.shape[1] for s in samples) + extra
    return torch.stack([torch.nn.functional.pad(s, (0, size - s.shape[1]), value=fill) for s in samples])


def moments_over(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance along the last axis of all parts together; 0 of nothing."""
    joined = torch.cat(parts, -1)
    if joined.shape[-1] == 0:
        return joined.sum(-1, keepdim=True), joined.sum(-1, keepdim=True)
    mean = joined.mean(-1, keepdim=True)
    return mean, (joined - mean).square().mean(-1, keepdim=True)


def members(samples: list[torch.Tensor], k: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The moments that normalize sample k, by the papers' definitions on unpadded data."""
    layer = moments_over([samples[k].reshape(1, -1)])
    halves = [moments_over([half.reshape(1, -1)]) for half in samples[k].split(CHANNELS // 2)]
    group = tuple(torch.cat([h[i].expand(CHANNELS // 2, 1) for h in halves]) for i in (0, 1))
    instance = moments_over([samples[k]])
    return {"instance": instance, "layer": layer, "group": (group[0], group[1]), "batch": moments_over(samples)}


def unpadded(samples: list[torch.Tensor], method: str) -> list[torch.Tensor]:
    """The oracle: every sample normalized without padding."""
    results = []
    for k, x in enumerate(samples):
        found = members(samples, k)
        if method == "switchable":
            w = SHARES.softmax(0)
            mean, var = (sum(w[i] * found[m][j] for i, m in enumerate(("instance", "layer", "batch"))) for j in (0, 1))
        else:
            mean, var = found[method]
        results.append((x - mean) / torch.sqrt(torch.as_tensor(var) + 1e-5) * WEIGHT[:, None] + BIAS[:, None])
    return results


def options(method: str) -> dict:
    mix = {"mean_weight": SHARES, "var_weight": SHARES} if method == "switchable" else {}
    return {"weight": WEIGHT, "bias": BIAS, **mix}


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(sorted(METHODS)),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda n: sum(n) > 1),
    fill=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]),
    activation=st.sampled_from([None, "relu", "silu"]),
    seed=st.integers(0, 99),
)
def test_a_padded_batch_equals_its_unpadded_samples(
    method: str, lengths: list[int], fill: float, activation: str | None, seed: int
) -> None:
    samples = ragged(lengths, seed)
    leaves = [s.clone().requires_grad_() for s in samples]
    expected = unpadded(leaves, method)
    if activation:
        expected = [getattr(torch.nn.functional, activation)(y) for y in expected]
    upstream = ragged(lengths, seed + 1)
    sum((y * g).sum() for y, g in zip(expected, upstream, strict=True)).backward()

    x = padded(samples, fill).requires_grad_()
    y = normalize(x, METHODS[method], lengths=torch.tensor(lengths), activation=activation, **options(method))
    y.backward(padded(upstream, fill))
    for k, n in enumerate(lengths):
        torch.testing.assert_close(y[k, :, :n], expected[k], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x.grad[k, :, :n], leaves[k].grad, rtol=1e-7, atol=1e-7)
        assert torch.equal(y[k, :, n:], torch.zeros_like(y[k, :, n:]))
        assert torch.equal(x.grad[k, :, n:], torch.zeros_like(y[k, :, n:]))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_the_parameters_are_the_unpadded_ones(method: str) -> None:
    samples = ragged([5, 1, 0, 3])
    learned = {k: v.clone().requires_grad_() for k, v in options(method).items() if isinstance(v, torch.Tensor)}
    normalize(padded(samples), METHODS[method], lengths=torch.tensor([5, 1, 0, 3]), **learned)[
        ..., :5
    ].square().sum().backward()
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    plain = [(y - BIAS[:, None]) / WEIGHT[:, None] for y in unpadded(samples, method)]
    sum((y * weight[:, None] + bias[:, None]).square().sum() for y in plain).backward()
    torch.testing.assert_close(learned["weight"].grad, weight.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(learned["bias"].grad, bias.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_to_second_order(method: str) -> None:
    x = padded(ragged([3, 1, 0, 2]), fill=0.0, extra=1)
    lengths = torch.tensor([3, 1, 0, 2])
    given = options(method)
    learned = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}

    def function(x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return normalize(x, METHODS[method], lengths=lengths, **dict(zip(learned, tensors, strict=True)))

    leaves = [t.clone().requires_grad_() for t in (x, *learned.values())]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("method", METHODS)
def test_fused_gradients_equal_those_of_the_plain_graph(method: str) -> None:
    x, upstream = padded(ragged([4, 2, 0]), fill=7.0), padded(ragged([4, 2, 0], seed=1))
    lengths = torch.tensor([4, 2, 0])

    def loss(t: torch.Tensor) -> torch.Tensor:
        y = normalize(t, METHODS[method], lengths=lengths, **options(method))
        return (y * torch.nan_to_num(upstream)).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(leaf.grad, torch.func.grad(loss)(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_large_means_lose_no_more_than_rounding(method: str) -> None:
    samples = [s + 1e3 for s in ragged([40, 7, 1])]
    y = normalize(
        padded(samples, extra=300).float(),
        METHODS[method],
        lengths=torch.tensor([40, 7, 1]),
        **{k: v.float() if isinstance(v, torch.Tensor) else v for k, v in options(method).items()},
    )
    for k, expected in enumerate(unpadded([s.float().double() for s in samples], method)):
        torch.testing.assert_close(y[k, :, : expected.shape[1]].double(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_and_memory_formats_stay(method: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, CHANNELS, 6, 5).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    mask = torch.rand(2, 6, 5) > 0.3
    y = normalize(x, METHODS[method], mask=mask)
    y.float().square().sum().backward()
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_form_of_a_mask_says_the_same(method: str) -> None:
    x = torch.randn(3, CHANNELS, 2, 5, dtype=torch.float64)
    lengths = torch.tensor([5, 2, 3])
    flat = (torch.arange(5) < lengths[:, None])[:, None, :].expand(3, 2, 5)
    results = [
        normalize(x, METHODS[method], **given, **options(method))
        for given in (
            {"lengths": lengths},
            {"mask": flat},
            {"mask": flat[:, None]},
            {"mask": flat[:, None, :1]},
            {"mask": flat[:, None].expand(3, CHANNELS, 2, 5)},
        )
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_of_all_true_changes_nothing(method: str) -> None:
    x = torch.randn(3, CHANNELS, 5, dtype=torch.float64)
    plain = normalize(x, METHODS[method], **options(method))
    torch.testing.assert_close(
        normalize(x, METHODS[method], mask=torch.ones(3, 5, dtype=torch.bool), **options(method)), plain
    )


@pytest.mark.parametrize("method", ["batch", "layer", "group"])
def test_whole_samples_can_be_masked_without_spatial_axes(method: str) -> None:
    x = torch.randn(5, CHANNELS, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False])
    dirty = x.masked_fill(~mask[:, None], float("nan"))
    y = normalize(dirty, METHODS[method], mask=mask, **options(method))
    torch.testing.assert_close(y[mask], normalize(x[mask], METHODS[method], **options(method)), rtol=1e-10, atol=1e-10)
    assert torch.equal(y[~mask], torch.zeros(2, CHANNELS, dtype=torch.float64))


def layers(**kwargs) -> list[torch.nn.Module]:
    return [
        nn.BatchNorm1d(CHANNELS, **kwargs),
        nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True, **kwargs),
        nn.GroupNorm(1, CHANNELS, **kwargs),
        nn.GroupNorm(2, CHANNELS, **kwargs),
        nn.SwitchableNorm1d(CHANNELS, **kwargs),
    ]


@pytest.mark.parametrize("layer", layers(dtype=torch.float64), ids=lambda m: type(m).__name__)
def test_layers_pass_masks_on(layer: torch.nn.Module) -> None:
    lengths, x = torch.tensor([6, 3, 1]), padded(ragged([6, 3, 1]))
    y = layer(x, lengths=lengths)
    torch.testing.assert_close(layer(x, mask=torch.arange(8) < lengths[:, None]), y)
    assert torch.isfinite(y).all()
    assert y[2, :, 1:].abs().max() == 0
    layer.eval()
    assert torch.isfinite(layer(x, lengths=lengths)).all()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), switchable=st.booleans())
def test_running_averages_are_those_of_the_unpadded_elements(lengths: list[int], switchable: bool) -> None:
    samples = ragged(lengths)
    layer = (nn.SwitchableNorm1d if switchable else nn.BatchNorm1d)(CHANNELS, momentum=0.3, dtype=torch.float64)
    layer(padded(samples), lengths=torch.tensor(lengths))
    assert int(layer.num_batches_tracked) == 1
    if sum(lengths) < 2:  # too few for a variance: the averages stay
        assert torch.equal(layer.running_mean, torch.zeros(CHANNELS, dtype=torch.float64))
        assert torch.equal(layer.running_var, torch.ones(CHANNELS, dtype=torch.float64))
        return
    joined = torch.cat(samples, 1)
    torch.testing.assert_close(layer.running_mean, 0.3 * joined.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, 0.7 + 0.3 * joined.var(1), rtol=1e-12, atol=1e-12)


def test_tracked_instance_norm_averages_the_samples_that_have_a_variance() -> None:
    samples = ragged([6, 3, 1, 0])
    layer = nn.InstanceNorm1d(CHANNELS, momentum=0.3, track_running_stats=True, dtype=torch.float64)
    layer(padded(samples), lengths=torch.tensor([6, 3, 1, 0]))
    torch.testing.assert_close(layer.running_mean, 0.3 * (samples[0].mean(1) + samples[1].mean(1)) / 2)
    expected = 0.7 + 0.3 * (samples[0].var(1) + samples[1].var(1)) / 2
    torch.testing.assert_close(layer.running_var, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_layers_over_the_last_axes_leave_padded_positions_alone(kind: type, shape: tuple[int, ...]) -> None:
    layer = kind(shape, eps=1e-5, dtype=torch.float64, activation="silu")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    lengths = torch.tensor([5, 2, 0])
    real = torch.arange(5) < lengths[:, None]
    x = torch.randn(3, 5, *shape, dtype=torch.float64)
    dirty = torch.where(real.reshape(3, 5, *(1,) * len(shape)), x, torch.nan).requires_grad_()
    y = layer(dirty, lengths=lengths)
    y.backward(torch.where(dirty.isnan(), torch.nan, 1.0))
    leaf = x[real].requires_grad_()
    grads = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    expected = layer(leaf)
    expected.sum().backward()
    torch.testing.assert_close(y[real], expected)
    torch.testing.assert_close(dirty.grad[real], leaf.grad)
    for ours, theirs in zip(grads, (p.grad for p in layer.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs)
    for t in (y, dirty.grad):
        assert torch.equal(t[~real], torch.zeros_like(t[~real]))
    torch.testing.assert_close(layer(dirty, mask=real), y)
    with pytest.raises(InputError, match=r"lengths must have shape \(3,\).*in layer"):
        layer(dirty, lengths=torch.tensor([1]))
    with pytest.raises(InputError, match="need positions before the normalized axes"):
        layer(x[0, 0], mask=torch.tensor(True))


def test_unbatched_instance_norm_takes_an_unbatched_mask() -> None:
    layer, x = nn.InstanceNorm1d(CHANNELS, dtype=torch.float64), padded(ragged([5]))[0]
    expected = layer(x[:, :5])
    torch.testing.assert_close(layer(x, mask=torch.arange(7) < 5)[:, :5], expected)
    torch.testing.assert_close(layer(x, lengths=torch.tensor(5))[:, :5], expected)


@pytest.mark.parametrize("method", METHODS)
def test_one_element_or_none_comes_out_as_the_bias_and_never_as_nan(method: str) -> None:
    x = padded(ragged([1]), extra=3).requires_grad_()
    for length in (1, 0):
        y = normalize(x, METHODS[method], lengths=torch.tensor([length]), weight=None, bias=BIAS)
        y.sum().backward()
        if method in ("batch", "instance") and length:
            torch.testing.assert_close(y[0, :, 0], BIAS)
        assert torch.isfinite(y).all()
        assert torch.isfinite(x.grad).all()


def test_masks_compile() -> None:
    layer = nn.SwitchableNorm1d(CHANNELS, dtype=torch.float64).eval()
    x, lengths = padded(ragged([5, 2])), torch.tensor([5, 2])
    compiled = torch.compile(lambda t, n: layer(t, lengths=n), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, lengths), layer(x, lengths=lengths))


X = torch.randn(3, CHANNELS, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": torch.ones(3, 5)}, r"mask must be a bool tensor.*float32.*mask\.bool\(\)"),
        ({"mask": [True]}, "mask must be a bool tensor.*list"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask of shape \(3, 4\) does not fit.*expected \(3, 5\)"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, r"mask of shape \(5,\) does not fit"),
        ({"lengths": torch.ones(3)}, "lengths must be an integer tensor.*float32"),
        ({"lengths": [1, 2, 3]}, "lengths must be an integer tensor.*list"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths must have shape \(3,\) for 3 samples, got \(2,\)"),
        ({"lengths": torch.tensor([1, 2, 6])}, r"lengths must lie in 0\.\.5.*\[1, 2, 6\]"),
        ({"lengths": torch.tensor([-1, 2, 3])}, r"lengths must lie in 0\.\.5"),
        ({"lengths": torch.tensor([1, 2, 3]), "mask": torch.ones(3, 5, dtype=torch.bool)}, "not both"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalize(X, "batch", **given)


def test_lengths_need_a_spatial_axis() -> None:
    with pytest.raises(InputError, match=r"lengths need a spatial axis.*mask of shape \(N,\)"):
        normalize(torch.randn(3, 4), "batch", lengths=torch.tensor([1, 1, 0]))


def test_masked_instance_norm_refuses_other_channel_counts() -> None:
    with pytest.raises(ValueError, match="to match num_features"):
        nn.InstanceNorm1d(4, affine=True)(torch.randn(2, 3, 5), lengths=torch.tensor([5, 5]))

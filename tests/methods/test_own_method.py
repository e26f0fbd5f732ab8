"""A method of one's own goes where the library's go: the one of docs/add-a-method.md as it stands there, and others."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import normwise
from normwise import normalize
from normwise.core.moments import Affine, Moments
from normwise.errors import InputError
from normwise.methods import Batch, Context, Group, Learned, Method, Pooled, Switchable, method_named, with_parameters
from normwise.nn import Norm, norm_layer

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def page() -> dict[str, Any]:
    text = PAGE.read_text(encoding="utf-8")
    # A module, where pickle and the compiler look its names up.
    names = vars(sys.modules.setdefault("add_a_method", ModuleType("add_a_method")))
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    return names


@dataclass(frozen=True)
class Softened(Method):
    """Batch norm by a learned power of the deviation, and an offset that all channels share."""

    floor: float = 0.0

    pools = ("batch",)
    learned = {"power": Learned(start=1.0, within=(0.0, 1.0)), "offset": Learned(start=0.0, size=1)}  # noqa: RUF012

    def affine(self, cells: Moments, given: Context, power: Tensor, offset: Tensor) -> Affine:
        m = self.pooled("batch", cells, given)
        scale = (m.var + given.eps + self.floor) ** (-power / 2)
        whole = with_parameters(m.mean, scale, given)
        return whole._replace(shift=whole.shift + offset)


@dataclass(frozen=True)
class Doubled(Pooled):
    """Instance norm, twice as large."""

    pools = ("instance",)

    def affine(self, cells: Moments, given: Context) -> Affine:
        whole = super().affine(cells, given)
        return whole._replace(scale=2 * whole.scale)


OWN = {"page": page()["PartialGroup"](3), "over samples": Softened(0.1), "nothing learned": Doubled()}
each = pytest.mark.parametrize("method", OWN.values(), ids=[*OWN])


def data(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def learned(method: Method, channels: int = 6) -> dict[str, Tensor]:
    given = {n: torch.full(t.shape(channels), 0.4, dtype=torch.float64) for n, t in method.learned.items()}
    return {"weight": data(channels).abs() + 0.5, "bias": data(channels), **given}


@each
def test_gradients_of_every_order(method: Method) -> None:
    given = learned(method)
    leaves = [data(3, 6, 2, 2), *given.values()]

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        return normalize(x, method, activation="silu", **dict(zip(given, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in leaves])
    assert torch.autograd.gradgradcheck(function, leaves)


@each
def test_the_kernels_serve_it(method: Method) -> None:
    x = data(3, 6, 4).requires_grad_()
    assert "Fused" in type(normalize(x, method, **learned(method)).grad_fn).__name__


@each
def test_masks(method: Method) -> None:
    x, given = data(4, 6, 5), learned(method)
    dirty = torch.nn.functional.pad(x, (0, 2), value=float("nan"))
    y = normalize(dirty, method, lengths=torch.tensor([5] * 4), **given)
    torch.testing.assert_close(y[..., :5], normalize(x, method, **given))
    assert not y[..., 5:].any()


@each
@pytest.mark.filterwarnings("ignore")  # torch's own, from its tracing
def test_transforms_and_compilation(method: Method) -> None:
    x, given = data(3, 6, 4), learned(method)

    def loss(t: Tensor) -> Tensor:
        return normalize(t, method, **given).pow(3).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), leaf.grad)
    torch.testing.assert_close(torch.func.vmap(loss)(torch.stack([x, 2 * x]))[1], loss(2 * x))
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(x), loss(x))
    layer = Norm(method, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), copy.deepcopy(layer)(x))


@each
def test_layers_train_evaluate_save_and_copy(method: Method) -> None:
    layer = norm_layer(method, dim=1, eps=1e-3)(6)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias", *method.learned}
    x = data(8, 6, 5).float()
    for _ in range(3):
        layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    averages = layer.running_mean is not None
    assert averages == method.over_samples == isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    if averages:
        assert layer.num_batches_tracked == 3
        expected = 0.9**3 + (1 - 0.9**3) * x.transpose(0, 1).flatten(1).var(1)
        torch.testing.assert_close(layer.running_var, expected)
        assert normwise.sync(layer) is layer
        assert layer.sync is not None
    y = layer.eval()(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        assert type(twin) is type(layer)
    other = norm_layer(method, dim=1, eps=1e-3)(6)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), y)
    layer.reset_parameters()
    assert all(layer.get_parameter(n).eq(t.start).all() for n, t in method.learned.items())


def test_what_is_learned_stays_within_its_bounds() -> None:
    layer = Norm(Softened(), 3)
    with torch.no_grad():
        layer.power.fill_(7.0)
    layer(torch.randn(4, 3))
    assert layer.power.max() == 1


@pytest.mark.parametrize(
    "given", ["group(num_groups=2)", Group(2), Switchable(("layer", "batch")), Batch, "switchable(over=layer)"], ids=str
)
def test_one_method_in_all_its_forms(given: Any) -> None:
    method, x = method_named(given), torch.randn(3, 6, 5)
    assert method_named(str(method)) == method
    layer = norm_layer(given, dim=1)(6)
    assert type(layer.method) is type(method)
    torch.testing.assert_close(layer(x), normalize(x, given))
    torch.testing.assert_close(Norm(given, 6)(x), layer(x))


def test_options_that_a_class_of_its_own_does_not_take_have_the_layer_for_any_method() -> None:
    layer = norm_layer("layer(parts=scale)")(8)
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), torch.nn.functional.rms_norm(x, (8,), eps=1e-5))


def test_a_function_of_the_channels_is_used_as_it_is() -> None:
    seen: list[Any] = []

    def build(channels: int, dim: int = 2, eps: float = 1.0) -> torch.nn.Module:
        seen.append((channels, dim, eps))
        return torch.nn.BatchNorm1d(channels)

    assert type(norm_layer(build, dim=1)(5, eps=0.5, momentum=0.3)) is torch.nn.BatchNorm1d
    assert type(norm_layer(torch.nn.BatchNorm2d)(5)) is torch.nn.BatchNorm2d
    assert norm_layer(lambda channels: torch.nn.GroupNorm(1, channels), dim=1)(4).num_channels == 4
    assert seen == [(5, 1, 0.5)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: norm_layer(lambda a, b: None)(3), "failed to build a layer for 3 channels: TypeError: .* 'b'"),
        (lambda: norm_layer(lambda channels: channels)(3), "gave an int for 3 channels, expected a torch.nn.Module"),
        (lambda: norm_layer(3), "expected the name of a method, .* got an int"),
        (lambda: normalize(torch.zeros(2, 6, 3), Doubled(), power=torch.ones(6)), "no learned tensor 'power'"),
        (lambda: normalize(torch.zeros(2, 6, 3), Softened(), power=torch.ones(5)), "one value a channel"),
    ],
)
def test_what_cannot_be_is_refused(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_a_method_without_a_function_says_so() -> None:
    class Nothing(Method):
        pools = ("layer",)

    with pytest.raises(NotImplementedError, match=r"Nothing has no function affine"):
        normalize(torch.zeros(2, 6, 3), Nothing)

"""Norms that people write by hand are read from what they compute, whatever they are called."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normwise.surgery import convert, describe, find, inspect
from normwise.surgery.layers import not_understood


def parameters(module, **values):
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value))
    return module


def written(forward, **tensors):
    """A module of a class that says nothing, with these parameters."""

    class Foo(nn.Module):
        def forward(self, x, *more):
            return forward(self, x, *more)

    return parameters(Foo(), **tensors)


def rms(x, eps=1e-6, axis=-1):
    return x * torch.rsqrt(x.square().mean(axis, keepdim=True) + eps)


def layer(x, eps=1e-5, axis=-1):
    var, mean = torch.var_mean(x, axis, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps)


def grouped(self, x):
    n, c, *space = x.shape
    y = F.layer_norm(x.reshape(n, 4, -1), (x[0].numel() // 4,)).reshape(x.shape)
    return y * self.gamma.reshape(1, c, *(1,) * len(space)) + self.beta.reshape(1, c, *(1,) * len(space))


def ones(*shape):
    return torch.ones(shape)


PLAIN = {
    "scale named g": (written(lambda s, x: rms(x) * s.g, g=ones(8)), "rms", -1, 1e-6),
    "1 + w": (written(lambda s, x: rms(x, 1e-5) * (1 + s.w), w=ones(8)), "rms", -1, 1e-5),
    "w + 1 with a shift": (written(lambda s, x: layer(x) * (s.w + 1) + s.b, w=ones(8), b=ones(8)), "layer", -1, 1e-5),
    "no parameters": (written(lambda s, x: rms(x, 1e-3)), "rms", -1, 1e-3),
    "no parameters, centred": (written(lambda s, x: F.layer_norm(x, x.shape[-1:])), "layer", -1, 1e-5),
    "by F.normalize": (written(lambda s, x: F.normalize(x, dim=-1) * 8**0.5 * s.g, g=ones(8)), "rms", -1, 0.0),
    "channels first": (
        written(lambda s, x: layer(x, axis=1) * s.g + s.b, g=ones(1, 8, 1, 1), b=ones(1, 8, 1, 1)),
        *("layer", 1, 1e-5),
    ),
    "permuted axes": (
        written(lambda s, x: (rms(x.permute(0, 2, 3, 1)) * s.g).permute(0, 3, 1, 2), g=ones(8)),
        *("rms", 1, 1e-6),
    ),
    "in float32": (written(lambda s, x: (rms(x.float()) * s.g.float()).type_as(x), g=ones(8)), "rms", -1, 1e-6),
    "keepdim by einsum": (
        written(lambda s, x: torch.einsum("...c,...->...c", x, (x.pow(2).mean(-1) + 1e-6) ** -0.5) * s.g, g=ones(8)),
        *("rms", -1, 1e-6),
    ),
    "groups of a map": (written(grouped, gamma=ones(8), beta=ones(8)), "group", 1, 1e-5),
    "tanh": (written(lambda s, x: s.g * torch.tanh(s.a * x) + s.b, a=ones(1), g=ones(8), b=ones(8)), "dyt", -1, 0.0),
    "erf": (written(lambda s, x: s.g * torch.erf(s.a * x + s.s), a=ones(1), s=ones(1), g=ones(8)), "derf", -1, 0.0),
}
PLAIN["groups of a map"][0].groups = 4


@pytest.mark.parametrize("kind", PLAIN)
def test_a_formula_is_read(kind):
    module, method, axis, eps = PLAIN[kind]
    found = describe(module)
    assert found is not None
    assert (found.method, found.channel_axis, found.problem) == (method, axis, None)
    assert found.eps == pytest.approx(eps, rel=0.01)
    assert found.offset == ("1" in kind)
    assert (found.weight is None) == ("no parameters" in kind)
    if found.weight is not None:
        assert torch.equal(found.scale.flatten(), torch.full((8,), 1.0 + found.offset))


WITH_A_REASON = {
    "gate after": (lambda s, x, z: rms(x) * s.g * F.silu(z), {"g": ones(8)}, "second input (times silu"),
    "gate before": (lambda s, x, z: rms(x * F.silu(z)) * s.g, {"g": ones(8)}, "before"),
    "several": (lambda s, x: layer(x) * s.g * s.h, {"g": ones(8), "h": ones(8)}, "computed from g, h"),
    "exponent": (lambda s, x: rms(x) * s.g.exp(), {"g": ones(8)}, "in a way of its own"),
    "unit length": (lambda s, x: F.normalize(x, dim=-1) * s.g, {"g": ones(1)}, "0.5 times g"),
    "heads": (lambda s, x: rms(x) * s.g, {"g": ones(2, 8)}, "one entry per element of (2, 8)"),
    "part of the channels": (lambda s, x: rms(x.unflatten(-1, (2, 4))).flatten(-2) * s.g, {"g": ones(8)}, "each 4 of"),
    "eps beside the root": (
        lambda s, x: s.g * x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-4),
        {"g": ones(8)},
        "eps is added to the deviation",
    ),
    "another eps": (
        lambda s, x: s.g * x / x.abs().clamp_min(1e-3).square().mean(-1, keepdim=True).sqrt(),
        {"g": ones(8)},
        "eps",
    ),
}


@pytest.mark.parametrize("kind", WITH_A_REASON)
def test_what_is_more_than_a_formula_has_a_reason(kind):
    forward, tensors, reason = WITH_A_REASON[kind]
    module = written(forward, **tensors)
    module.groups = 4
    found = describe(module)
    assert found is not None
    assert reason in found.problem
    assert [f.code for f in inspect(module).findings] == ["unproven"]


NO_NORMS = {
    "scale": (lambda s, x: x * s.g, {"g": ones(8)}),
    "shifted scale": (lambda s, x: x * s.g + s.b, {"g": ones(8), "b": ones(8)}),
    "softmax": (lambda s, x: x.softmax(-1), {}),
    "sign": (lambda s, x: x.sign(), {}),
    "largest": (lambda s, x: x / x.abs().amax(-1, keepdim=True), {}),
    "activation": (lambda s, x: F.gelu(x), {}),
    "centring": (lambda s, x: x - x.mean(-1, keepdim=True), {}),
    "linear": (lambda s, x: x @ s.w, {"w": ones(8, 8)}),
    "response": (lambda s, x: x * (1 + s.g * rms(x.norm(dim=1, keepdim=True))), {"g": ones(8)}),
}


@pytest.mark.parametrize("kind", NO_NORMS)
def test_what_is_no_norm_is_left(kind):
    forward, tensors = NO_NORMS[kind]
    module = written(forward, **tensors)
    assert describe(module) is None
    assert inspect(module).findings == []


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        if x.dtype != torch.float32 or not x.is_contiguous():
            raise RuntimeError("expected a contiguous float32 tensor")
        return rms(x) * weight


def test_fused_kernels_scripted_and_compiled_modules():
    fused = written(lambda s, x: Fused.apply(x, s.weight), weight=ones(8))
    assert (describe(fused).method, describe(fused).problem) == ("rms", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch takes leave of its scripts
        of_torch = torch.jit.script(nn.LayerNorm(8))
        traced = torch.jit.trace(PLAIN["scale named g"][0], torch.randn(2, 8))
    for scripted in (of_torch, traced):
        assert describe(scripted).method in ("layer", "rms")
        assert "scripted" in describe(scripted).problem
    compiled = torch.compile(PLAIN["1 + w"][0], backend="eager")
    assert describe(compiled).offset == 1
    assert [f.names for f in find(nn.Sequential(compiled))] == [["0"]]


def test_what_is_called_a_norm_and_is_not_understood_is_named():
    class WeirdNorm(nn.Module):
        def forward(self, x):
            return x / x.abs().amax(-1, keepdim=True)

    class NoLayerNormBlock(nn.Sequential):
        pass

    class AbnormalDetector(nn.Module):
        def forward(self, x):
            return x

    class Mean(nn.Module):
        def forward(self, x):
            return x - x.mean()

    model = nn.ModuleDict({"a": WeirdNorm(), "b": NoLayerNormBlock(nn.Linear(3, 3)), "c": AbnormalDetector()})
    model["ln_2"], model["norm_0"], model["norm"] = Mean(), nn.Identity(), nn.LayerNorm(3)
    assert [name for name, _ in not_understood(model)] == ["a", "ln_2"]
    shown = inspect(model)
    assert {(f.layer, f.severity, f.code) for f in shown.findings} == {
        ("a", "warning", "not-understood"),
        ("ln_2", "warning", "not-understood"),
    }
    assert "no findings" not in str(shown)
    assert [row.method for row in shown.layers] == ["layer", "?", "?"]
    converted = convert(model, "rms")
    assert [left.layer for left in converted.record.left] == ["a", "ln_2"]


def test_reading_leaves_the_random_state_and_the_module():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.g = [], nn.Parameter(ones(8))

        def forward(self, x):
            self.calls.append(x.shape)
            return rms(x) * self.g + 0 * torch.rand(())

    module = Noisy()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert describe(module).method == "rms"
    assert torch.equal(torch.get_rng_state(), state)
    assert module.calls == []
    assert torch.equal(module.g, ones(8))


@pytest.mark.parametrize("kind", ["1 + w", "scale named g", "no parameters", "channels first"])
def test_a_conversion_there_and_back(kind):
    module = PLAIN[kind][0]
    x = torch.randn(2, 5, 8) if PLAIN[kind][2] == -1 else torch.randn(2, 8, 3, 3)
    for p in module.parameters():
        nn.init.normal_(p)
    model = nn.Sequential(module)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    conversion = convert(model, "layer" if PLAIN[kind][1] == "rms" else "rms", example_inputs=x)
    new = conversion.model[0]
    if "0.w" in state:
        assert torch.equal(new.weight, 1 + state["0.w"])
    elif "0.g" in state:
        assert torch.equal(new.weight, state["0.g"].flatten())
    forward = conversion.forward_state(state)
    conversion.model.load_state_dict(forward)
    back = conversion.backward_state(conversion.model.state_dict())
    assert back.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(back[key], value)
    assert conversion.undo()[0] is module

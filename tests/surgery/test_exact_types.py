"""Tools that take layers apart: by exact type, by isinstance, or by their attributes alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import fusion
from torch.optim.swa_utils import update_bn

import normwise
from normwise import nn as ours
from normwise.errors import InputError
from normwise.surgery import to_torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import announces what will follow it
    from torch.ao.quantization import (
        QConfigMapping,
        fuse_modules,
        fuse_modules_qat,
        get_default_qat_qconfig_mapping,
        get_default_qconfig_mapping,
    )
    from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx, prepare_qat_fx
    from torch.fx.experimental import optimization

MODULES = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
ACTIVATIONS = list(MODULES)
# The tools of torch.ao announce their own successor.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Net(nn.Module):
    def __init__(self, activation: str | None = "relu") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm1 = ours.BatchNorm2d(4, activation=activation)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.norm2 = ours.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm2(self.conv2(self.norm1(self.conv1(x)))).mean((2, 3)))


def trained(model: nn.Module, x: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if "Norm" in type(module).__name__ and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            model(x * 2 + 1)
    return model.eval()


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 3, 8, 8)


def same_or_refused(
    tool: Callable[[], nn.Module], run: Callable[[nn.Module], torch.Tensor], before: torch.Tensor
) -> None:
    """What the tool gives computes the same, or the tool or the first run says clearly that it will not."""
    try:
        after = run(tool())
    except (InputError, TypeError, AssertionError) as problem:
        refusal = str(problem)
    else:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
        return
    assert "with_an_activation" in refusal or "did not find fuser method" in refusal


# A layer with an activation does not pass for one without.


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("which", [("norm1",), ("norm2",), ("norm1", "norm2")])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_encoder_layers_fast_path_keeps_the_activation(activation, which, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    plain = copy.deepcopy(layer)
    for name in which:
        setattr(layer, name, ours.LayerNorm(8, activation=activation))
        setattr(plain, name, nn.Sequential(nn.LayerNorm(8), MODULES[activation]()))
    x = torch.randn(4, 5, 8)
    expected = plain(x)  # in training mode, which computes in steps; there is no dropout
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(nn.TransformerEncoder(layer, 1).eval()(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(to_torch(layer)(x), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_with_padding_keeps_the_activation():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    for layer in encoder.layers:
        layer.norm1, layer.norm2 = ours.LayerNorm(8, activation="relu"), ours.LayerNorm(8, activation="silu")
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = encoder(x, src_key_padding_mask=padding)
    encoder.eval()
    with torch.no_grad():
        found = encoder(x, src_key_padding_mask=padding)
    for row, length in enumerate((5, 3)):
        torch.testing.assert_close(found[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fusing_functions_refuse_an_activation(activation, x):
    conv, norm = nn.Conv2d(3, 4, 3), ours.BatchNorm2d(4, activation=activation)
    trained(nn.Sequential(conv, norm), x)
    with pytest.raises(InputError, match=rf"applies {activation} after its formula.*to_torch"):
        fusion.fuse_conv_bn_eval(conv, norm)
    linear, norm = nn.Linear(3, 4), ours.BatchNorm1d(4, activation=activation)
    trained(nn.Sequential(linear, norm), torch.randn(8, 3))
    with pytest.raises(InputError, match="after its formula"):
        fusion.fuse_linear_bn_eval(linear, norm)
    with pytest.raises(InputError, match="after its formula"):  # as detectors and networks of others do by hand
        norm.weight.div(torch.sqrt(norm.eps + norm.running_var))
    with pytest.raises(InputError, match="after its formula"):
        float(norm.eps)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: ours.BatchNorm2d(4, activation="relu"),
        lambda: ours.GroupNorm(2, 4, activation="relu"),
        lambda: ours.LayerNorm(4, activation="relu"),
        lambda: ours.RMSNorm(4, activation="relu"),
        lambda: ours.InstanceNorm2d(4, activation="relu"),
        lambda: ours.SwitchableNorm2d(4, activation="relu"),
        lambda: ours.GhostBatchNorm(4, activation="relu"),
        lambda: ours.LazyBatchNorm2d(activation="relu"),
        lambda: ours.ConditionalBatchNorm(4, 3, activation="relu"),
    ],
)
def test_every_layer_guards_its_formula_and_takes_a_new_eps(norm):
    layer = norm()
    number = layer.eps.value
    with pytest.raises(InputError, match="to_torch"):
        torch.ones(3) + layer.eps
    assert layer.eps != layer.eps
    layer.eps = 1e-3
    assert layer.eps.value == 1e-3
    layer.eps = layer.eps
    assert layer.eps.value == 1e-3
    assert "0.001" in repr(layer)
    layer.activation = None
    assert layer.eps == 1e-3
    assert number != 1e-3


def test_conversion_to_torchs_synced_layer_does_not_lose_the_activation(x):
    net = trained(Net(), x)
    same_or_refused(lambda: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)), lambda m: m(x), net(x))
    plain = trained(Net(activation=None), x)
    torch.testing.assert_close(
        nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))(x), plain(x), rtol=1e-4, atol=1e-5
    )


TOOLS: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    "fx fuse": lambda m, x: optimization.fuse(m),
    "fuse_modules": lambda m, x: fuse_modules(m, [["conv1", "norm1"]]),
    "fuse_modules_qat": lambda m, x: fuse_modules_qat(m.train(), [["conv1", "norm1"]]).eval(),
    "fuse_fx": lambda m, x: fuse_fx(m),
    "prepare_fx": lambda m, x: prepare_fx(m, QConfigMapping(), (x,)),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("activation", ["relu", None])
def test_tools_by_exact_type_leave_our_layers_alone_or_refuse(tool, activation, x):
    net = trained(Net(activation), x)
    same_or_refused(lambda: TOOLS[tool](copy.deepcopy(net), x), lambda m: m(x), net(x))


def test_update_bn_and_filters_by_type_still_see_a_layer_with_an_activation(x):
    net = Net()
    update_bn([x * 2 + 1], net)
    torch.testing.assert_close(net.norm1.running_mean, net.conv1(x * 2 + 1).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert isinstance(net.norm1, nn.BatchNorm2d)


# After to_torch the tools do their work.


def by_name(fused: nn.Module, kind: str) -> list[nn.Module]:
    return [module for module in fused.modules() if kind in type(module).__name__]


def test_fx_fusion_takes_a_model_that_is_torchs(x):
    net = trained(Net(), x)
    before = net(x)
    fused = optimization.fuse(to_torch(net))
    torch.testing.assert_close(fused(x), before, rtol=1e-4, atol=1e-5)
    assert not by_name(fused, "BatchNorm")


def test_fuse_modules_takes_a_model_that_is_torchs(x):
    net = trained(Net(), x)
    before = net(x)
    fused = fuse_modules(to_torch(net), [["conv1", "norm1.norm", "norm1.activation"], ["conv2", "norm2"]])
    torch.testing.assert_close(fused(x), before, rtol=1e-4, atol=1e-5)
    assert not by_name(fused, "BatchNorm")
    assert by_name(fused, "ConvReLU2d")


def quantizes() -> str | None:
    return next((e for e in ("x86", "fbgemm", "qnnpack") if e in torch.backends.quantized.supported_engines), None)


@pytest.mark.parametrize("aware", [False, True])
def test_quantization_takes_a_model_that_is_torchs(aware, x):
    engine = quantizes()
    if engine is None:
        pytest.skip("this build of torch has no engine for quantized networks")
    net = trained(Net(), x)
    before = net(x).detach()
    net = to_torch(net)
    mapping = (get_default_qat_qconfig_mapping if aware else get_default_qconfig_mapping)(engine)
    earlier = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        prepared = prepare_qat_fx(net.train(), mapping, (x,)) if aware else prepare_fx(net, mapping, (x,))
        if aware:
            assert by_name(prepared, "ConvBnReLU2d")
            prepared(x)
            prepared.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)
        prepared.eval()(x)
        quantized = convert_fx(prepared)
        assert by_name(quantized, "ConvReLU2d")
        assert not by_name(quantized, "BatchNorm")
        if not aware:
            assert (quantized(x) - before).abs().max() < 0.1 * before.abs().max()
        assert quantized(x).isfinite().all()
    finally:
        torch.backends.quantized.engine = earlier


def test_torchscript_takes_a_model_that_is_torchs(x):
    net = trained(Net(), x)
    before = net(x)
    scripted = torch.jit.script(to_torch(net))
    torch.testing.assert_close(scripted(x), before, rtol=1e-4, atol=1e-5)


def test_a_traced_model_comes_back_too(x):
    net = trained(Net(), x)
    before = net(x)
    graph = to_torch(fx.symbolic_trace(net))
    torch.testing.assert_close(graph(x), before, rtol=1e-4, atol=1e-5)


def test_fusing_goes_the_same_with_normwises_own_fold(x):
    net = trained(Net(), x)
    before = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(normwise.fold(net, x)(x), before, rtol=1e-4, atol=1e-5)


# The relatives of batch norm, for tools that go by isinstance.

RELATIVES = [
    ours.SwitchableNorm2d,
    ours.BatchRenorm,
    ours.GhostBatchNorm,
    ours.MeanOnlyBatchNorm,
    ours.BatchInstanceNorm,
]


@pytest.mark.parametrize("norm", RELATIVES)
def test_update_bn_finds_every_layer_with_running_averages(norm, x):
    layer = norm(3)
    batches = [x[:4], x[4:] * 2 + 1]
    update_bn(batches, nn.Sequential(layer))
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert layer.momentum == 0.1


@pytest.mark.parametrize("norm", [*RELATIVES, ours.FilterResponseNorm])
def test_converting_the_relatives_is_refused(norm, x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()
    if norm is not ours.FilterResponseNorm:  # which has no statistics, and is left alone
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
        with pytest.raises(TypeError, match="more_than_batch_norm"):
            converted(x)
        var = torch.rand(4)
        assert (var + model[1].eps).equal(var + 1e-5)  # a formula of the user's own
        assert 0 < model[1].eps < 1e-4
    assert model[1].eps == model[1].eps.value


def test_weight_decay_filters_by_type_find_the_relatives():
    # As recipes for training write it.
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    assert all(isinstance(norm(4), norms) for norm in RELATIVES)
    assert isinstance(ours.ConditionalBatchNorm(4, 3), norms)


def test_ghosts_stay_with_their_process_and_the_rest_is_synced():
    model = normwise.sync(nn.Sequential(*(norm(4) for norm in RELATIVES)))
    assert [type(m) for m in model] == RELATIVES
    assert [m.sync is None for m in model] == [m is ours.GhostBatchNorm for m in RELATIVES]

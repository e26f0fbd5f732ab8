"""Folding gives the same function, or is refused with the reason."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normwise.nn as nw
from normwise.errors import NormwiseError, NormwiseWarning
from normwise.surgery.fold import fold
from normwise.surgery.freeze import freeze

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {
    "torch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "ours": {1: nw.BatchNorm1d, 2: nw.BatchNorm2d, 3: nw.BatchNorm3d},
}


def lived(model, seed=0):
    """As after training: random statistics and parameters, in evaluation mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 3, generator=generator)
            if module.weight is not None:
                nn.init.normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, generator=generator)
    return model.double().eval()


def folded(model, x, **options):
    """Fold a copy, check the output independently of fold's own check, and give copy and record."""
    records = []
    result = fold(copy.deepcopy(model), x, report=records.append, **options)
    inputs = x if isinstance(x, tuple) else (x,)
    torch.testing.assert_close(result(*inputs), model(*inputs), rtol=1e-9, atol=1e-9)
    return result, records[0]


def reasons(model, x=None, **options):
    """Why the first layer is left alone; nothing may have changed."""
    records, before = [], copy.deepcopy(model.state_dict())
    with pytest.warns(NormwiseWarning, match="nothing was folded"):
        fold(model, x, report=records.append, **options)
    assert not records[0].folded
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    return records[0].left[0].reason


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("conv", [CONV, TRANSPOSED])
@settings(max_examples=6, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3]),
    wide=st.booleans(),
    bias=st.booleans(),
    affine=st.booleans(),
    stride=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_into_the_preceding_convolution(kind, dim, conv, groups, wide, bias, affine, stride, seed):
    torch.manual_seed(seed)
    out = groups * (2 if wide else 1)
    layer = conv[dim](2 * groups, out, 3, stride=stride, padding=1, groups=groups, bias=bias)
    model = lived(nn.Sequential(layer, NORMS[kind][dim](out, affine=affine)), seed)
    result, record = folded(model, torch.randn(2, 2 * groups, *[5] * dim).double())
    assert isinstance(result[1], nn.Identity)
    assert record.error < 1e-12
    assert (record.folded[0].layer, record.folded[0].into, record.folded[0].side) == ("1", "0", "before")


@pytest.mark.parametrize("dim", [1, 2, 3])
@settings(max_examples=6, deadline=None)
@given(groups=st.sampled_from([1, 2, 3]), bias=st.booleans(), seed=st.integers(0, 99))
def test_into_the_following_convolution(dim, groups, bias, seed):
    torch.manual_seed(seed)
    conv = CONV[dim](2 * groups, 3 * groups, 2, groups=groups, bias=bias)
    model = lived(nn.Sequential(NORMS["ours"][dim](2 * groups), conv), seed)
    x = torch.randn(2, 2 * groups, *[5] * dim).double()
    for example in (x, None):
        records = []
        result = fold(model, example, copy=True, report=records.append)
        torch.testing.assert_close(result(x), model(x), rtol=1e-9, atol=1e-9)
        assert records[0].folded[0].side == "after"
        assert (records[0].error is None) == (example is None)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_takes_a_scale_that_comes_before_it_and_a_shift_only_if_1x1(groups):
    x = torch.randn(2, 4, 5).double()
    conv = nn.ConvTranspose1d(4, 6, 1, groups=groups)
    folded(lived(nn.Sequential(nn.BatchNorm1d(4), conv)), x)
    wide = lived(nn.Sequential(nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 6, 3, groups=groups)))
    assert "spreads its input over zeros" in reasons(wide, x)
    wide[0].running_mean.zero_()
    nn.init.zeros_(wide[0].bias)
    assert folded(wide, x)[1].folded[0].side == "after"


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nw.BatchNorm1d])
def test_linear_layers_before_and_after(norm):
    x = torch.randn(8, 3).double()
    model = lived(nn.Sequential(nn.Linear(3, 4, bias=False), norm(4), nn.ReLU(), norm(4), nn.Linear(4, 2)))
    result, record = folded(model, x)
    assert [f.side for f in record.folded] == ["before", "after"]
    assert sum(isinstance(m, nn.Identity) for m in result) == 2
    assert "give example_inputs" in reasons(model, where="1")


def test_a_linear_layer_over_sequences_is_refused_though_its_sizes_would_fit():
    model = lived(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    assert "axis 1 of 3" in reasons(model, torch.randn(8, 4, 3).double())


@pytest.mark.parametrize(
    "between",
    [
        [nn.Flatten()],
        [nn.MaxPool2d(2), nn.Flatten()],
        [nn.AvgPool2d(2), nn.Dropout(), nn.Flatten()],
        [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.ReflectionPad2d(1), nn.Flatten()],
    ],
    ids=lambda layers: "-".join(type(m).__name__ for m in layers),
)
def test_the_way_of_channels_into_a_linear_layer_is_followed(between):
    torch.manual_seed(0)
    x = torch.rand(4, 3, 4, 4).double()
    head = nn.Sequential(*between)
    model = lived(nn.Sequential(nn.BatchNorm2d(3), *between, nn.Linear(head(x).shape[1], 2)))
    nn.init.uniform_(model[0].weight, 0.5, 2)  # a maximum needs positive scales
    _, record = folded(model, x)
    assert record.folded[0].into == str(len(model) - 1)
    assert len(record.folded[0].through) == len(between)


class Shuffled(nn.Module):
    """Channels are moved by functions and methods, sizes computed from the tensor."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2)

    def forward(self, x):
        x = self.norm(x)
        N, C, H, W = x.shape
        x = x.view(N, 2, C // 2, H, W).transpose(1, 2).reshape(N, -1, H, W)
        return self.conv(F.max_pool2d(x, 2))


def test_channels_that_are_shuffled_by_reshapes_are_followed_into_groups():
    torch.manual_seed(0)
    model = lived(Shuffled())
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    x = torch.randn(2, 6, 8, 8).double()
    assert folded(model, x)[1].folded[0].side == "after"
    model.norm.weight.data[0] = -1.0
    assert "not all of its scales are positive" in reasons(model, x)


def sequential(*layers):
    return lived(nn.Sequential(*layers))


def hooked():
    model = sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda module, args, output: None)
    return model


def tied():
    model = sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(3, 4, 3))
    model[3].weight = model[0].weight
    model[3] = nn.Sequential(nn.Conv2d(4, 3, 1).double(), model[3])
    return model


def shared_conv():
    conv = nn.Conv2d(3, 3, 3)
    return sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv)


class TwoConsumers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class DirectWeights(TwoConsumers):
    def forward(self, x):
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)


class Twice(TwoConsumers):
    def forward(self, x):
        return self.norm(F.relu(self.norm(self.conv(x))))


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).abs()


def untracked():
    return nn.BatchNorm2d(4, track_running_stats=False)


def poisoned():
    model = sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_mean[2] = float("nan")
    return model


def padded_then_maximum():
    model = sequential(nn.BatchNorm2d(3), nn.ZeroPad2d(1), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3))
    nn.init.ones_(model[0].weight)
    return model


REFUSED = {
    "other consumers": (lambda: lived(TwoConsumers()), "its result has other consumers (add, norm)"),
    "weights used directly": (lambda: lived(DirectWeights()), "has weights that the model also uses directly"),
    "norm runs twice": (lambda: lived(Twice()), "it runs 2 times in a pass: it is shared"),
    "activation between": (
        lambda: sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        "ReLU (1) is no convolution",
    ),
    "activation after": (
        lambda: sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)),
        "ReLU (1) stands between",
    ),
    "fused activation": (
        lambda: sequential(nw.BatchNorm2d(3, activation="relu"), nn.Conv2d(3, 4, 3)),
        "its own activation comes first",
    ),
    "padding after": (
        lambda: sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        "1 pads with zeros, which the shift would not reach",
    ),
    "same padding after": (
        lambda: sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="same")),
        "1 pads with zeros, which the shift would not reach",
    ),
    "zero pad between": (
        lambda: sequential(nn.BatchNorm2d(3), nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)),
        "lets zeros in at borders",
    ),
    "zero pad hidden by a maximum": (padded_then_maximum, "lets zeros in at borders"),
    "padded average": (
        lambda: sequential(nn.BatchNorm2d(3), nn.AvgPool2d(9, 9, padding=4), nn.Conv2d(3, 4, 1)),
        "mixes channels, or lets zeros in",
    ),
    "hooks": (hooked, "0 has hooks"),
    "shared convolution": (shared_conv, "0 runs 2 times"),
    "tied weights": (tied, "0 shares its weights with another layer"),
    "parametrized": (
        lambda: sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        "0 is parametrized",
    ),
    "own forward": (lambda: sequential(OwnConv(3, 4, 3), nn.BatchNorm2d(4)), "forward of its own"),
    "training mode": (lambda: sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), "call .eval() first"),
    "no statistics": (lambda: sequential(nn.Conv2d(3, 4, 3), untracked()), "keeps no running statistics"),
    "not finite": (poisoned, "its statistics or parameters are not finite"),
    "mixture": (lambda: sequential(nn.Conv2d(3, 4, 3), nw.SwitchableNorm2d(4)), "harden it first"),
    "dropout in training": (
        lambda: freeze(sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 4, 3))).train(),
        "Dropout (1) stands between",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    torch.manual_seed(0)
    build, reason = REFUSED[name]
    assert reason in reasons(build(), torch.randn(2, 3, 9, 9).double())


def test_activations_stay():
    x = torch.randn(2, 3, 6, 6).double()
    for activation in ("relu", "leaky_relu", "silu"):
        model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nw.BatchNorm2d(4, activation=activation)))
        assert folded(model, x)[1].folded


def test_timm_blocks_keep_their_activation():
    timm_layers = pytest.importorskip("timm.layers")
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), timm_layers.BatchNormAct2d(4, act_layer=nn.SiLU)))
    result, record = folded(model, torch.randn(2, 3, 6, 6).double())
    assert record.folded
    assert [type(m) for m in result[1]] == [nn.SiLU]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])
def test_timm_networks_lose_every_norm(name):
    timm = pytest.importorskip("timm")
    model = lived(timm.create_model(name))
    for module in model.modules():  # keep activations in range over many layers
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    result, record = folded(model, torch.randn(1, 3, 32, 32).double())
    assert record.left == []
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.modules())


def test_padding_does_not_matter_without_a_shift_or_with_other_paddings():
    x = torch.randn(2, 3, 6, 6).double()
    reflected = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    folded(lived(nn.Sequential(nn.BatchNorm2d(3), reflected)), x)
    model = lived(nn.Sequential(nn.BatchNorm2d(3, bias=False), nn.Conv2d(3, 4, 3, padding=1)))
    model[0].running_mean.zero_()
    folded(model, x)


def test_chains_shared_names_and_other_affine_layers():
    torch.manual_seed(0)
    norm = nw.SwitchableNorm2d(4, over=("batch",))
    instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Dropout(), instance, nn.BatchNorm2d(4)))
    result, record = folded(model, torch.randn(2, 3, 6, 6).double())
    assert [(f.layer, f.into) for f in record.folded] == [("1", "0"), ("3", "0"), ("4", "0")]
    assert sum(p.numel() for p in result.parameters()) == 4 * 27 + 4


@pytest.mark.parametrize("norm", [nw.BatchRenorm, nw.GhostBatchNorm, nw.MeanOnlyBatchNorm, nw.FrozenBatchNorm])
def test_relatives_that_are_fixed_in_evaluation(norm):
    assert folded(lived(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4))), torch.randn(2, 3, 6, 6).double())[1].folded


def test_relatives_that_are_not_fixed_stay():
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nw.BatchInstanceNorm(4), nw.GroupNorm(2, 4)))
    assert not folded(model, torch.randn(2, 3, 6, 6).double())[1].folded


def test_a_frozen_norm_of_a_training_model_is_folded():
    model = freeze(lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))).train()
    assert folded(model, torch.randn(2, 3, 6, 6).double())[1].folded
    assert model.training


class Dynamic(nn.Module):
    """Cannot be traced as a whole; its blocks can."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.loose = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.block(x)
        if x.sum() > 1e9:
            x = -x
        return self.loose(x)


class Tapped(Dynamic):
    """Reaches into its block, which no trace of the block can know."""

    def forward(self, x):
        if x.sum() > 1e9:
            x = -x
        return self.block(x).mean() + self.block[0](x)


def test_an_untraceable_model_is_folded_in_parts_if_there_is_something_to_compare_with():
    model, x = lived(Dynamic()), torch.randn(2, 3, 6, 6).double()
    assert "give example_inputs" in reasons(model)
    result, record = folded(model, x)
    assert [f.layer for f in record.folded] == ["block.1"]
    assert "no traced graph calls it" in record.left[0].reason
    assert "traced in parts only" in record.notes[0]
    assert isinstance(result.loose, nn.BatchNorm2d)


def test_a_changed_output_undoes_everything():
    model, x = lived(Tapped()), torch.randn(2, 3, 6, 6).double()
    before, wanted = copy.deepcopy(model.state_dict()), model(x)
    with pytest.raises(NormwiseError, match=r"undone\. Folded were block\.1 into block\.0"):
        fold(model, x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert isinstance(model.block[1], nn.BatchNorm2d)
    assert torch.equal(model(x), wanted)


def test_undo_removes_a_bias_that_was_created():
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    with pytest.raises(NormwiseError):
        fold(model, torch.randn(2, 3, 6, 6).double(), tolerance=-1.0)
    assert model[0].bias is None
    assert isinstance(model[1], nn.BatchNorm2d)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, early=False):
        x = self.conv(x)
        return x if early else self.norm(x)


def test_constant_arguments_are_named_in_the_record():
    _, record = folded(lived(Optional()), torch.randn(2, 3, 6, 6).double())
    assert record.notes == ["proven for calls with early=False"]


def test_in_place_unless_asked_for_a_copy_and_where():
    x = torch.randn(2, 3, 6, 6)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    model = lived(nn.Sequential(conv, nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).float()
    weight = conv.weight
    assert fold(model, x, copy=True) is not model
    assert conv.bias is None
    assert fold(model, x, where="1") is model
    assert conv.weight is weight  # the optimizer's
    assert isinstance(model[3], nn.BatchNorm2d)
    assert conv.bias.dtype == torch.float32


def test_half_types_and_several_outputs():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.b = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            return {"a": self.a(x), "b": [self.b(x), None]}

    records = []
    fold(lived(Heads()).bfloat16(), torch.randn(2, 3, 6, 6).bfloat16(), report=records.append)
    assert len(records[0].folded) == 2
    assert 0 < records[0].error < 0.02


@pytest.mark.parametrize("where", ["between", "around"])
def test_hooks_see_and_change_what_they_did_before(where):
    """A hook on what lies between could change values; one on a container sees its result and no proxies."""
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.BatchNorm2d(4))
    model, x = lived(nn.Sequential(block, nn.Conv2d(4, 2, 1))), torch.randn(2, 3, 6, 6).double()
    seen = []
    (block[1] if where == "between" else block).register_forward_hook(lambda m, i, y: seen.append(y) or y.clamp(min=0))
    wanted = model(x)
    records = []
    result = fold(model, report=records.append)
    # Not through the hook: into what comes after.
    assert [f.into for f in records[0].folded] == ["1" if where == "between" else "0.0"]
    torch.testing.assert_close(result(x), wanted)
    assert all(type(y) is torch.Tensor for y in seen)
    torch.testing.assert_close(seen[0], seen[-1])


def test_a_hooked_block_that_runs_twice_is_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x):
            return self.block(self.block(x))

    model = lived(Twice())
    model.block.register_forward_hook(lambda *_: None)
    assert "shared" in reasons(model)


def test_outputs_without_numbers_are_said_not_to_be_compared():
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)).argmax(1)

    _, record = folded(lived(Classes()), torch.randn(2, 3, 6, 6).double())
    assert record.error is None
    assert "not checked: the output holds no floating-point tensors" in str(record)

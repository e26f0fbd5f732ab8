"""Published checkpoints of switchable norm compute here what they computed."""

import copy

import pytest
import torch
from mixes import oracle
from torch import nn

from normwise.errors import DataError, InputError, NormwiseWarning
from normwise.nn import (
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    load_published,
    read_published,
)


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

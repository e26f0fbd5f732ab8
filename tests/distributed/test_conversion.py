"""``sync`` changes what layers share and nothing else, or refuses. No process group is needed for these."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import normwise
from normwise import nn
from normwise.core.distributed import Sync
from normwise.errors import InputError


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.BatchNorm1d(3), (5, 3)),
        (torch.nn.BatchNorm2d(3, momentum=None, eps=1e-3), (5, 3, 2, 2)),
        (torch.nn.BatchNorm2d(3, affine=False), (5, 3, 2, 2)),
        (torch.nn.BatchNorm2d(3, bias=False), (5, 3, 2, 2)),
        (torch.nn.BatchNorm3d(3, track_running_stats=False, dtype=torch.float64), (5, 3, 2, 2, 2)),
        (nn.BatchNorm2d(3, activation="relu"), (5, 3, 2, 2)),
        (nn.SwitchableNorm2d(3, over=("layer", "batch"), variance="official"), (5, 3, 2, 2)),
    ],
)
def test_everything_is_carried(layer: torch.nn.Module, shape: tuple[int, ...]) -> None:
    dtype = next((t.dtype for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), torch.float32)
    with torch.no_grad():
        for t in filter(torch.is_floating_point, (*layer.parameters(), *layer.buffers())):
            t.copy_(torch.rand(t.shape).mul(3))
    twin, parameters = copy.deepcopy(layer), list(layer.parameters())
    synced = normwise.sync(layer)
    assert synced is layer
    assert isinstance(layer.sync, Sync)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert list(layer.state_dict()) == list(twin.state_dict())
    for mode in (True, False):
        x = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(layer.train(mode)(x), twin.train(mode)(x), rtol=1e-5, atol=1e-5)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    layer.load_state_dict(twin.state_dict(), strict=True)


def test_shared_layers_hooks_modes_and_attributes_stay() -> None:
    shared = torch.nn.BatchNorm2d(3).eval()
    shared.note = "mine"
    shared.weight.requires_grad_(False)
    called = []
    shared.register_forward_hook(lambda *_: called.append(1))
    model = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    normwise.sync(model)
    assert model[0] is model[2] is shared
    assert type(shared) is nn.BatchNorm2d
    assert (shared.training, shared.note, shared.weight.requires_grad) == (False, "mine", False)
    model(torch.randn(2, 3, 4, 4))
    assert len(called) == 2


def test_layers_without_batch_statistics_are_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.GroupNorm(1, 4), torch.nn.InstanceNorm2d(4), torch.nn.LayerNorm(4))
    kinds = [type(m) for m in normwise.sync(model)]
    assert kinds == [torch.nn.GroupNorm, torch.nn.InstanceNorm2d, torch.nn.LayerNorm]


def test_subclasses_of_ours_keep_their_class() -> None:
    class Mine(nn.BatchNorm2d):
        pass

    layer = normwise.sync(Mine(3))
    assert type(layer) is Mine
    assert layer.sync is not None


class WithActivation(torch.nn.BatchNorm2d):
    """Stands for the many that fuse an activation into a subclass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def patched() -> torch.nn.Module:
    layer = torch.nn.BatchNorm2d(3)
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (WithActivation(3), "a subclass of torch's batch norm"),
        (torch.nn.utils.parametrizations.weight_norm(torch.nn.BatchNorm2d(3), dim=None), "a subclass of torch's"),
        (torch.nn.LazyBatchNorm2d(), "run the model once first"),
        (patched(), "forward was replaced"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_changes(layer: torch.nn.Module, why: str) -> None:
    model = torch.nn.ModuleDict({"good": torch.nn.BatchNorm2d(3), "odd": layer})
    with pytest.raises(InputError, match=rf"(?s)nothing was changed.*odd: .*{why}"):
        normwise.sync(model)
    assert type(model["good"]) is torch.nn.BatchNorm2d


def test_what_is_no_process_group_is_refused() -> None:
    with pytest.raises(InputError, match=r"process_group must be of torch.distributed.new_group.*'gloo'"):
        normwise.sync(torch.nn.BatchNorm2d(3), "gloo")


def test_timm_layers_with_activations_are_refused() -> None:
    timm_layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    with pytest.raises(InputError, match="BatchNormAct2d"):
        normwise.sync(timm_layers.BatchNormAct2d(3))


def test_synced_layers_copy_and_pickle() -> None:
    layer = normwise.sync(nn.BatchNorm2d(3))
    assert copy.deepcopy(layer).sync == Sync()
    assert pickle.loads(pickle.dumps(layer)).sync == Sync()
    odd = Sync(process_group=object())  # type: ignore[arg-type]
    assert copy.deepcopy(odd) is odd
    with pytest.raises(InputError, match="custom process group cannot be pickled"):
        pickle.dumps(odd)

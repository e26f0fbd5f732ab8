"""Networks from timm with every norm layer swapped for ours compute the same, forward and backward."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from namesakes import NAMESAKES, pair, swap
from torch import nn

import normwise

# Not among the test dependencies: beside a CPU build of torch it must be installed with --no-deps.
pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm torchvision")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations in timm's and torchvision's own imports
    import timm
    from timm.layers import BatchNormAct2d, LayerNorm, LayerNorm2d

# Name, options that make it small, the number of its norm layers.
MODELS = [
    ("resnet18", {}, 20),
    ("efficientnet_b0", {}, 49),
    ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}, 9),
    ("convnext_atto", {}, 0),
]


def plain(model: nn.Module) -> None:
    """Take timm's own subclasses apart into torch's layers: their conversion is surgery's, the numbers are ours."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is BatchNormAct2d:
                norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, nn.Sequential(norm, child.drop, child.act))
            elif type(child) is LayerNorm:
                norm = nn.LayerNorm(child.normalized_shape, child.eps)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
            elif type(child) is LayerNorm2d:
                setattr(parent, name, _ChannelsFirst(child))


class _ChannelsFirst(nn.Module):
    """timm's layer norm over the channels of (N, C, H, W), around torch's layer."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(child.normalized_shape, child.eps)
        self.norm.load_state_dict(child.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("name", "options", "count"), MODELS, ids=[m[0] for m in MODELS])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_swapping_every_layer_changes_no_more_than_rounding(
    name: str, options: dict, count: int, training: bool
) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10, **options)
    plain(theirs)
    for module in theirs.modules():
        if type(module) in NAMESAKES:
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    theirs = theirs.double().train(training)
    ours = copy.deepcopy(theirs)
    norms = sum(type(m) in NAMESAKES for m in ours.modules())
    assert swap(ours) == norms
    assert norms >= max(count, 5)
    assert not any(type(m) in NAMESAKES for m in ours.modules())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    results = []
    for model in (theirs, ours):
        torch.manual_seed(1)  # for drop path and dropout
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.square().mean().backward()
        results.append([y.detach(), leaf.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-9 * a.norm() + 1e-14
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_whole_network_in_single_precision() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=10)
    ours = copy.deepcopy(theirs)
    swap(ours)
    x = torch.randn(4, 3, 64, 64)
    exact = copy.deepcopy(theirs).double()(x.double())
    errors = [(model(x) - exact).norm() / exact.norm() for model in (theirs, ours)]
    assert errors[1] < max(2 * errors[0], 1e-5)


@pytest.mark.parametrize("method", ["batch", "group", "switchable", "filter_response"])
def test_networks_build_with_our_layers(method: str) -> None:
    model = timm.create_model("resnet18", num_classes=10, norm_layer=normwise.norm_layer(method))
    assert sum(type(m).__module__.startswith("normwise.nn") for m in model.modules()) == 20
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_swapped_layers_are_of_our_classes() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    swap(model)
    assert type(model[0]) is type(pair(nn.BatchNorm2d, 3)[1])

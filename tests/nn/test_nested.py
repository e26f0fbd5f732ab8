"""Nested tensors: torch's result where torch has one, and where not an error that says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normwise import nn as ours
from normwise import normalize
from normwise.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
LAYOUT = pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=["strided", "jagged"])


def parts() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 5), torch.randn(2, 5)]


def nested(values: list[Tensor], layout: torch.layout, grad: bool = True) -> Tensor:
    return torch.nested.nested_tensor(values, layout=layout, requires_grad=grad)


@LAYOUT
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_and_its_gradients(layout: torch.layout, activation: str | None, grad: bool, affine: bool) -> None:
    layer = ours.LayerNorm(5, elementwise_affine=affine, activation=activation)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = nested(parts(), layout, grad)
    y = layer(x)
    dense = [t.requires_grad_(grad) for t in parts()]
    expected = [layer(t) for t in dense]
    assert y.is_nested
    torch.testing.assert_close(list(y.unbind()), expected)
    if not grad:
        return
    parameters = list(layer.parameters())
    results = []
    for outputs, leaves in ((list(y.unbind()), [x]), (expected, dense)):
        loss = sum(t.pow(2).sum() for t in outputs)
        results.append(torch.autograd.grad(loss, [*leaves, *parameters]))
    torch.testing.assert_close([*results[0][0].unbind(), *results[0][1:]], list(results[1]))


def test_rms_norm_takes_what_torchs_takes() -> None:
    layer = ours.RMSNorm(5)
    x = nested(parts(), torch.jagged)
    torch.testing.assert_close(list(layer(x).unbind()), [layer(t) for t in parts()])
    with pytest.raises(InputError, match=r"layout=torch\.jagged"):
        layer(nested(parts(), torch.strided))


LAYERS = {
    "batch": lambda: ours.BatchNorm1d(5),
    "batch, untracked": lambda: ours.BatchNorm1d(5, affine=False, track_running_stats=False),
    "instance": lambda: ours.InstanceNorm1d(5),
    "group": lambda: ours.GroupNorm(1, 5),
    "switchable": lambda: ours.SwitchableNorm1d(5),
    "mean only": lambda: ours.MeanOnlyBatchNorm(5),
    "batch renorm": lambda: ours.BatchRenorm(5),
    "conditional": lambda: ours.ConditionalBatchNorm(5, num_conditions=2),
    "frozen": lambda: ours.FrozenBatchNorm(5),
}


@LAYOUT
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_others_say_what_to_do(layout: torch.layout, kind: str, training: bool) -> None:
    layer = LAYERS[kind]().train(training)
    more = (torch.tensor([0, 1]),) if kind == "conditional" else ()
    with pytest.raises(InputError, match=r"to_padded_tensor.*\[in layer \w+\]"):
        layer(nested(parts(), layout), *more)


@LAYOUT
def test_the_function_and_masks_say_so_too(layout: torch.layout) -> None:
    x = nested(parts(), layout)
    for method in ("batch", "layer", "none", "switchable"):
        with pytest.raises(InputError, match="to_padded_tensor"):
            normalize(x, method)
    for layer in (ours.LayerNorm(5), ours.RMSNorm(5)):
        with pytest.raises(InputError, match="leave them out"):
            layer(x, lengths=torch.tensor([3, 2]))

"""torch.fx takes our layers as it takes torch's own: as leaves, which go on following train() and eval()."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import normwise
from normwise import nn as nnw

X = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nnw.BatchNorm2d(6, momentum=None, activation="silu"),
    "instance": lambda: nnw.InstanceNorm2d(6, track_running_stats=True),
    "group": lambda: nnw.GroupNorm(2, 6),
    "layer": lambda: nnw.LayerNorm(5),
    "rms": lambda: nnw.RMSNorm(5),
    "switchable": lambda: nnw.SwitchableNorm2d(6),
    "sparse": lambda: nnw.SwitchableNorm2d(6, sparse=True),
    "synced": lambda: normwise.sync(nnw.BatchNorm2d(6)),
    "renorm": lambda: nnw.BatchRenorm(6, warmup=3),
    "ghost": lambda: nnw.GhostBatchNorm(6, ghost_size=2),
    "gated": lambda: nnw.BatchInstanceNorm(6),
    "response": lambda: nnw.FilterResponseNorm(6, tlu=True),
    "frozen": lambda: nnw.FrozenBatchNorm(6),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_traced_layer_is_a_leaf_that_follows_the_mode(kind: str) -> None:
    eager = nn.Sequential(nn.Identity(), LAYERS[kind]())
    traced = torch.fx.symbolic_trace(copy.deepcopy(eager))
    assert [(n.op, n.target) for n in traced.graph.nodes][2] == ("call_module", "1")
    for training in (True, True, False):
        for model in (eager, traced):
            model.train(training)
        torch.testing.assert_close(traced(X), eager(X), rtol=0, atol=0)
        torch.testing.assert_close(dict(traced.named_buffers()), dict(eager.named_buffers()), rtol=0, atol=0)


class Tagger(nn.Module):
    """Layers with several inputs and outputs, masks, and one layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nnw.BatchNorm1d(6)
        self.conditional = nnw.ConditionalBatchNorm(6, num_conditions=3)
        self.lstm = nnw.LayerNormLSTM(6, 4, batch_first=True)
        self.adaptive = nnw.AdaptiveInstanceNorm()

    def forward(self, x: torch.Tensor, condition: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y = self.conditional(self.norm(input=self.norm(x, lengths=lengths)), condition)
        output, (_, c) = self.lstm(self.adaptive(y, x).transpose(1, 2))
        return output[:, -1] + c[0]


def test_layers_with_several_inputs_and_outputs() -> None:
    eager = Tagger()
    traced = torch.fx.symbolic_trace(copy.deepcopy(eager))
    inputs = torch.randn(4, 6, 5), torch.tensor([0, 2, 1, 1]), torch.tensor([5, 3, 2, 1])
    for _ in range(2):
        torch.testing.assert_close(traced(*inputs), eager(*inputs), rtol=0, atol=0)
        traced.eval()
        eager.eval()
    assert traced.norm.num_batches_tracked == 2


class Doubled(nnw.BatchNorm2d):
    """A subclass around our forward pass: traced through, since a call of it would double twice."""

    def forward(self, input: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        return super().forward(input * 2, **given) + 1


def hooked() -> nn.Module:
    layer = nnw.BatchNorm2d(6)
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    return layer


def replaced() -> nn.Module:
    layer = nnw.BatchNorm2d(6)
    forward = layer.forward
    layer.forward = lambda x: forward(x * 2)
    return layer


@pytest.mark.parametrize("make", [lambda: Doubled(6), hooked, replaced], ids=["subclass", "hook", "replaced"])
def test_what_stands_around_a_layer_is_not_done_twice(make: Callable[[], nn.Module]) -> None:
    eager, model = (nn.Sequential(nn.Identity(), make()) for _ in range(2))
    traced = torch.fx.symbolic_trace(model)
    for x in (X + 5, X - 3):
        torch.testing.assert_close(traced(x), eager(x), rtol=0, atol=0)
    torch.testing.assert_close(model[1].running_mean, eager[1].running_mean, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["batch", "instance", "group", "layer", "rms", "switchable", "renorm"])
def test_a_layer_that_is_the_root_of_the_trace_is_gone_through(kind: str) -> None:
    eager, model = LAYERS[kind](), LAYERS[kind]()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(X), eager(X), rtol=0, atol=0)

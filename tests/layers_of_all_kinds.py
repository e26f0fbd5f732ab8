"""Every layer of normwise.nn, with what it takes: for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import normwise.nn as norms

Build = Callable[[], nn.Module]


def images() -> tuple[Any, ...]:
    return (torch.randn(4, 6, 5, 5) * 2 + 3,)


def rows() -> tuple[Any, ...]:
    return (torch.randn(8, 6),)


def sequences() -> tuple[Any, ...]:
    return (torch.randn(4, 6, 7),)


def volumes() -> tuple[Any, ...]:
    return (torch.randn(3, 6, 3, 4, 2),)


def masked() -> tuple[Any, ...]:
    return torch.randn(4, 6, 7), None, torch.tensor([7, 3, 5, 1])


def steps() -> tuple[Any, ...]:
    return (torch.randn(5, 3, 6),)


# A layer, and the arguments of its call.
LAYERS: dict[str, tuple[Build, Callable[[], tuple[Any, ...]]]] = {
    "BatchNorm1d": (lambda: norms.BatchNorm1d(6), rows),
    "BatchNorm1d of sequences": (lambda: norms.BatchNorm1d(6), sequences),
    "BatchNorm1d with lengths": (lambda: norms.BatchNorm1d(6), masked),
    "BatchNorm2d": (lambda: norms.BatchNorm2d(6), images),
    "BatchNorm2d relu": (lambda: norms.BatchNorm2d(6, activation="relu"), images),
    "BatchNorm2d silu": (lambda: norms.BatchNorm2d(6, activation="silu"), images),
    "BatchNorm2d cumulative": (lambda: norms.BatchNorm2d(6, momentum=None), images),
    "BatchNorm2d as torch's": (lambda: norms.BatchNorm2d(6, skip_nonfinite=False), images),
    "BatchNorm2d untracked": (lambda: norms.BatchNorm2d(6, affine=False, track_running_stats=False), images),
    "BatchNorm3d": (lambda: norms.BatchNorm3d(6), volumes),
    "GroupNorm": (lambda: norms.GroupNorm(2, 6), images),
    "GroupNorm leaky": (lambda: norms.GroupNorm(3, 6, activation="leaky_relu"), images),
    "GroupNorm of one group": (lambda: norms.GroupNorm(1, 6), rows),
    "GroupNorm with lengths": (lambda: norms.GroupNorm(2, 6), masked),
    "InstanceNorm1d": (lambda: norms.InstanceNorm1d(6), sequences),
    "InstanceNorm2d": (lambda: norms.InstanceNorm2d(6, affine=True), images),
    "InstanceNorm2d tracking": (lambda: norms.InstanceNorm2d(6, track_running_stats=True), images),
    "InstanceNorm3d": (lambda: norms.InstanceNorm3d(6), volumes),
    "LayerNorm": (lambda: norms.LayerNorm((5, 5)), images),
    "LayerNorm plain": (lambda: norms.LayerNorm(6, elementwise_affine=False), rows),
    "RMSNorm": (lambda: norms.RMSNorm(6, activation="silu"), rows),
    "SwitchableNorm1d": (lambda: norms.SwitchableNorm1d(6, over=("layer", "batch")), rows),
    "SwitchableNorm2d": (lambda: norms.SwitchableNorm2d(6), images),
    "SwitchableNorm2d of four": (
        lambda: norms.SwitchableNorm2d(6, over=("group", "batch", "instance", "layer"), num_groups=2),
        images,
    ),
    "SwitchableNorm2d official": (lambda: norms.SwitchableNorm2d(6, variance="official", activation="relu"), images),
    "SwitchableNorm2d sparse": (lambda: norms.SwitchableNorm2d(6, sparse=True), images),
    "SwitchableNorm2d untracked": (lambda: norms.SwitchableNorm2d(6, track_running_stats=False), images),
    "SwitchableNorm3d": (lambda: norms.SwitchableNorm3d(6), volumes),
    "BatchRenorm": (lambda: norms.BatchRenorm(6, warmup=2), images),
    "GhostBatchNorm": (lambda: norms.GhostBatchNorm(6, ghost_size=2), images),
    "MeanOnlyBatchNorm": (lambda: norms.MeanOnlyBatchNorm(6), images),
    "BatchInstanceNorm": (lambda: norms.BatchInstanceNorm(6), images),
    "FilterResponseNorm": (lambda: norms.FilterResponseNorm(6, tlu=True), images),
    "FrozenBatchNorm": (lambda: norms.FrozenBatchNorm(6), images),
    "DyT": (lambda: norms.DyT(6), rows),
    "Derf": (lambda: norms.Derf(6), rows),
    "L2Norm": (lambda: norms.L2Norm(6), rows),
    "Norm": (lambda: norms.Norm("group(num_groups=2)", 6), images),
    "Norm over samples": (lambda: norms.Norm("batch", 6), images),
    "AdaptiveInstanceNorm": (norms.AdaptiveInstanceNorm, lambda: (*images(), *images())),
    "ConditionalInstanceNorm of vectors": (
        lambda: norms.ConditionalInstanceNorm(6, condition_features=3),
        lambda: (*images(), torch.randn(4, 3)),
    ),
    "ConditionalBatchNorm": (
        lambda: norms.ConditionalBatchNorm(6, 3),
        lambda: (*images(), torch.tensor([0, 2, 1, 1])),
    ),
    "ConditionalInstanceNorm": (
        lambda: norms.ConditionalInstanceNorm(6, 3),
        lambda: (*images(), torch.tensor([0, 2, 1, 1])),
    ),
    "LayerNormLSTM": (lambda: norms.LayerNormLSTM(6, 4, num_layers=2), steps),
    "LayerNormGRU": (lambda: norms.LayerNormGRU(6, 4, bidirectional=True), steps),
    "LayerNormLSTMCell": (lambda: norms.LayerNormLSTMCell(6, 4), rows),
    "LayerNormGRUCell": (lambda: norms.LayerNormGRUCell(6, 4), rows),
    **{
        f"Lazy{name}": (getattr(norms, f"Lazy{name}"), x)
        for name, x in {
            "BatchNorm1d": sequences,
            "BatchNorm2d": images,
            "BatchNorm3d": volumes,
            "InstanceNorm1d": sequences,
            "InstanceNorm2d": images,
            "InstanceNorm3d": volumes,
        }.items()
    },
}


def built(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A layer whose parameters are not those of the start, and arguments; the same every time."""
    torch.manual_seed(0)
    build, arguments = LAYERS[name]
    layer, given = build(), arguments()
    layer(*given)  # lazy ones learn their sizes
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.rand(p.shape) * 0.5)
    return layer, given


def trained(layer: nn.Module, given: tuple[Any, ...]) -> dict[str, Tensor]:
    """What two passes in training and one in evaluation give: results, gradients, state."""
    found = {}
    for i, mode in enumerate((True, True, False)):
        layer.train(mode)
        layer.zero_grad()
        arguments = [t.detach().clone().requires_grad_() if is_real(t) else t for t in given]
        result = layer(*arguments)
        outputs = leaves(result)
        sum((t * t.detach().cos()).sum() for t in outputs).backward()
        found |= {f"{i} output {k}": t.detach() for k, t in enumerate(outputs)}
        found |= {f"{i} gradient {k}": t.grad for k, t in enumerate(arguments) if is_real(t)}
        found |= {f"{i} {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return found | {name: t.detach() for name, t in layer.state_dict().items()}


def is_real(t: object) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in leaves(part)]

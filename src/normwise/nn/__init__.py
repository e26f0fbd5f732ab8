"""Layers with torch.nn's names and signatures, and the switchable ones."""

from normwise.methods import groups_for, parse_spec
from normwise.nn.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from normwise.nn.factory import NormFactory, check_spec, norm_layer
from normwise.nn.groupnorm import AnyLayerNorm, GroupNorm
from normwise.nn.instancenorm import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from normwise.nn.layernorm import LayerNorm, RMSNorm
from normwise.nn.norm import Norm
from normwise.nn.optim import param_groups
from normwise.nn.published import load_published, read_published
from normwise.nn.recurrent import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell
from normwise.nn.relatives import (
    BatchInstanceNorm,
    BatchRenorm,
    FilterResponseNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MeanOnlyBatchNorm,
)
from normwise.nn.relatives_conditional import AdaptiveInstanceNorm, ConditionalBatchNorm, ConditionalInstanceNorm
from normwise.nn.switchable import (
    Importance,
    SwitchableNorm,
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    importance,
    set_sparsity,
    switchable_layers,
)
from normwise.nn.synced import sync
from normwise.nn.token import Derf, DyT, L2Norm

__all__ = [
    "AdaptiveInstanceNorm",
    "AnyLayerNorm",
    "BatchInstanceNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "ConditionalBatchNorm",
    "ConditionalInstanceNorm",
    "Derf",
    "DyT",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "Importance",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "L2Norm",
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "MeanOnlyBatchNorm",
    "Norm",
    "NormFactory",
    "RMSNorm",
    "SwitchableNorm",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "check_spec",
    "groups_for",
    "importance",
    "load_published",
    "norm_layer",
    "param_groups",
    "parse_spec",
    "read_published",
    "set_sparsity",
    "switchable_layers",
    "sync",
]

"""Share batch statistics between processes: one call for a whole model, in place, refusing what it cannot keep."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from normwise.distributed import Sync
from normwise.errors import InputError
from normwise.nn._checks import model_given
from normwise.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from normwise.nn.own import MethodNorm
from normwise.nn.relatives import BatchInstanceNorm, BatchRenorm, GhostBatchNorm, MeanOnlyBatchNorm
from normwise.nn.relatives_conditional import ConditionalBatchNorm
from normwise.nn.switchable import SwitchableNorm

# Exact types only: what a subclass adds (a fused activation, another forward) cannot be known and would be lost.
_OURS: dict[type[torch.nn.Module], type[_BatchNorm]] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
}
# Layers whose forward pass reads ``sync``. A ghost batch is small on purpose and stays with its process.
_SHARING = (
    _BatchNorm,
    SwitchableNorm,
    BatchRenorm,
    MeanOnlyBatchNorm,
    BatchInstanceNorm,
    ConditionalBatchNorm,
    MethodNorm,
)


def sync(model: torch.nn.Module, process_group: dist.ProcessGroup | None = None) -> torch.nn.Module:
    """Make a model's batch and switchable layers share their batch statistics with the ranks of a process group.

    In training, each rank then normalizes by the moments of all ranks' samples together, weighted by their counts;
    uneven ranks and ranks without data are right, too. Running averages come out equal everywhere. Evaluation
    communicates nothing, and a single process gives what it gave before. Any ``torch.distributed`` backend will do.

    Layers change in place, so names, hooks, sharing, parameters (an optimizer may hold them already) and running
    averages stay as they are. ``torch.nn.BatchNorm1d``, ``2d`` and ``3d`` become normwise's; normwise's layers and
    their subclasses keep their class. Call it before wrapping the model (``DistributedDataParallel``, ``fully_shard``).

    The gradient of a rank's input is that of the sum of all ranks' losses; the gradients of weight, bias and mixing
    weights are the rank's own share, to be summed or averaged over ranks, as ``DistributedDataParallel`` does.

    Args:
        model: any module, or a layer itself.
        process_group: the ranks that share; ``None`` for all.

    Returns:
        The same model.

    Raises:
        InputError: a subclass of torch's batch norm, or one with a forward of its own, which this cannot keep; the
            message names every such layer, and nothing has been changed. Or this is no process group, or none that
            this rank belongs to.

    Example:
        >>> model = sync(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8)))
        >>> model[1]
        BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
        >>> model[1].sync
        Sync(process_group=None)
    """
    model_given(model, "sync")
    if process_group is not None and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise InputError(
            f"process_group must be of torch.distributed.new_group, or None for all, got {process_group!r}"
        )
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(process_group) < 0:
        raise InputError("this rank is not a member of the process group: pass the group that it belongs to")
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (TorchBatchNorm, *_SHARING))]
    refused = [f"{name or 'the model itself'}: {why}" for name, m in layers if (why := _reason_against(m))]
    if refused:
        raise InputError(
            "cannot share the statistics of these layers without changing what else they do; nothing was changed:\n  "
            + "\n  ".join(refused)
            + "\nReplace them by normwise.nn layers (which take activation=) first, and call sync before wrapping"
        )
    for _, layer in layers:
        if type(layer) in _OURS:
            _adopt(layer, _OURS[type(layer)])
        if isinstance(layer, _SHARING):
            layer.sync = Sync(process_group)
    return model


def _reason_against(layer: torch.nn.Module) -> str | None:
    """Why a layer cannot be synced; ``None`` where it can, or is already."""
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if "forward" in vars(layer):
        return f"{kind} whose forward was replaced on the instance"
    if isinstance(layer, (*_SHARING, GhostBatchNorm)) or type(layer) in (*_OURS, torch.nn.SyncBatchNorm):
        return None
    if isinstance(layer, torch.nn.modules.lazy.LazyModuleMixin):
        return f"{kind}, a lazy layer that has not run yet: run the model once first"
    return f"{kind}, a subclass of torch's batch norm"


def _adopt(layer: torch.nn.Module, ours: type[_BatchNorm]) -> None:
    """Turn torch's layer into ours where it stands, keeping all it holds and adding what only ours has."""
    fresh = ours(
        layer.num_features,  # type: ignore[arg-type]
        affine=layer.affine,  # type: ignore[arg-type]
        track_running_stats=layer.running_mean is not None,
        device=layer.running_mean.device if isinstance(layer.running_mean, torch.Tensor) else None,
    )
    layer.__class__ = ours
    state, new = vars(layer), vars(fresh)
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, value in new[kind].items():
            state[kind].setdefault(name, value)
    state["_non_persistent_buffers_set"] |= new["_non_persistent_buffers_set"]
    for name, value in new.items():
        state.setdefault(name, value)

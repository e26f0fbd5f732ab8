"""What each rank does in the tests of calibration; a module of its own, so that children can import it."""

from __future__ import annotations

import torch
from torch import nn

import normwise
from normwise.errors import NormwiseError
from normwise.surgery.calibrate import calibrate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


def batches(rank: int) -> list[torch.Tensor]:
    """Ranks of unequal length, with batches of unequal size."""
    sizes = [(1, 7), (2, 6, 3), ()][rank]
    return [torch.randn(n, 3, 5, 4, generator=torch.Generator().manual_seed(n)) * n + n for n in sizes]


def uneven(rank: int, world_size: int, layerwise: bool, synced: bool) -> dict:
    model = normwise.sync(network()) if synced else network()
    records: list = []
    calibrate(model, batches(rank), layerwise=layerwise, report=records.append)
    row = records[0].layers[0]
    return {"state": model.state_dict(), "elements": row.elements, "batches": row.batches, "ranks": records[0].ranks}


def wrapped(rank: int, world_size: int) -> dict:
    model = nn.parallel.DistributedDataParallel(network())
    calibrate(model, batches(rank))
    return model.module.state_dict()


def failing(rank: int, world_size: int, layerwise: bool) -> tuple[str, str, bool]:
    def loader():
        yield torch.randn(4, 3, 5, 4)
        if rank == 1:
            raise OSError("the disk is gone")

    model = network()
    try:
        calibrate(model, list(batches(0)) if rank == 0 else loader(), layerwise=layerwise)
    except (OSError, NormwiseError) as error:
        return type(error).__name__, str(error), bool(model[1].running_mean.eq(0).all())
    return "nothing", "", False

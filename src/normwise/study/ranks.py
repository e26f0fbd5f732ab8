"""One trial on several devices: data-parallel training with synced statistics, in processes of its own.

Each rank builds the same model, sees its share of every batch, and evaluates all of it; gradients are averaged by
``DistributedDataParallel`` and batch statistics pooled by :func:`normwise.sync`, so that the numbers are those of one
process on the whole batch up to rounding.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import socket
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.nn import sync
from normwise.records import Cell, Trial

if TYPE_CHECKING:
    from normwise.study.data import Part
    from normwise.study.tasks import Task
    from normwise.study.trial import Trainer

_POLL = 0.05


@dataclass(frozen=True)
class Ranks:
    """The processes that train one trial together, and which of them this is."""

    rank: int = 0
    size: int = 1

    def bounds(self, samples: int) -> tuple[int, int]:
        """Say which samples of a batch this rank trains on."""
        return samples * self.rank // self.size, samples * (self.rank + 1) // self.size

    def wrap(self, model: nn.Module) -> nn.Module:
        """Prepare a model for training: sync its statistics, average its gradients."""
        if self.size == 1:
            return model
        # Synced running averages are equal already; a parameter may be unused in some batch.
        return nn.parallel.DistributedDataParallel(sync(model), broadcast_buffers=False, find_unused_parameters=True)

    def loss(self, task: Task, model: nn.Module, batch: Part) -> Tensor:
        """Give this rank's loss, such that the average over the ranks is the mean over the batch."""
        if self.size == 1:
            return task.loss_of(model, batch)
        first, end = self.bounds(batch.size)
        # Uneven shares count by their size.
        return task.loss_of(model, batch.take(slice(first, end))) * ((end - first) * self.size / batch.size)

    def mean(self, loss: Tensor) -> float:
        """Average a loss over the ranks, so that all see the same, a divergence above all."""
        if self.size == 1:
            return loss.item()
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item() / self.size


class Distributed:
    """Trains each cell in processes of its own, one per device."""

    def __init__(self, trainer: Trainer, devices: int) -> None:
        self.task = trainer.task
        self.devices = devices
        # What has a name is looked up there, which spares the data their way.
        self._rest = (self.task.source or self.task, trainer.steps, trainer.measure_memory, trainer.tune_share)
        try:
            pickle.dumps(self._rest)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"several devices need a make_model that can be pickled ({error}); use devices=1"
            ) from error

    def __call__(self, cell: Cell) -> Trial:
        """Train one cell."""
        from normwise.study.worker import started

        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="normwise-ranks-") as folder, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            jobs = [partial(_run_rank, self._rest, cell, k, self.devices, port, folder) for k in range(self.devices)]
            with started(jobs) as children:
                target = Path(folder) / "trial"
                while not target.exists():
                    dead = [k for k, child in enumerate(children) if child.poll() is not None]
                    if dead and not target.exists():
                        seconds = time.perf_counter() - began
                        reason = f"rank {dead[0]} of {self.devices} died"
                        return Trial.lost(cell, self.task.floor, reason, seconds)
                    time.sleep(_POLL)
                trial: Trial = pickle.loads(target.read_bytes())
        return dataclasses.replace(trial, seconds=time.perf_counter() - began)


def _run_rank(given: tuple[Any, ...], cell: Cell, rank: int, size: int, port: int, folder: str) -> None:
    """What the process of a rank does; rank 0 leaves the outcome in the folder."""
    from normwise.study.tasks import load_task
    from normwise.study.trial import Trainer

    task, *rest = given
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    trainer = Trainer(load_task(task) if isinstance(task, str) else task, *rest)
    trainer.ranks = Ranks(rank, size)
    trial = trainer(cell)
    # A rank that failed alone leaves the others waiting for it.
    if trial.state == "failed" or rank == 0:
        part = Path(folder) / f"part{rank}"
        part.write_bytes(pickle.dumps(trial))
        part.replace(Path(folder) / "trial")
    # Without the interpreter's exit: tearing gloo down can hang. The parent ends those that still wait.
    time.sleep(1)
    os._exit(0)

"""One trial on several devices: data-parallel training with synced statistics, in processes of its own.

On accelerators each rank has one of its own; on CPUs they share the cores.

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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from normwise.devices import current, ranks_backend, refuse_more
from normwise.errors import InputError
from normwise.records import Setup, Trial
from normwise.study.children import started
from normwise.study.compute import PLAIN, Compute
from normwise.study.tasks import Task, load_task
from normwise.study.trial import Ranks, Trainer

_POLL = 0.05


class Distributed:
    """Trains each setup in processes of its own, one per device."""

    def __init__(self, trainer: Trainer, devices: int) -> None:
        self.task = trainer.task
        self.devices = devices
        compute = self.task.compute
        refuse_more(compute.device, devices)
        # What has a name is looked up there, which spares the data their way.
        home = self.task.home or dataclasses.replace(self.task, compute=PLAIN)
        self._rest = (home.source or home, compute, trainer.steps, trainer.measure_memory, trainer.tune_share)
        try:
            pickle.dumps(self._rest)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"several devices need a make_model that can be pickled ({error}); use devices=1"
            ) from error

    def __call__(self, setup: Setup) -> Trial:
        """Train one setup."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="normwise-ranks-") as folder, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            jobs = [partial(_run_rank, self._rest, setup, k, self.devices, port, folder) for k in range(self.devices)]
            with started(jobs) as children:
                target = Path(folder) / "trial"
                while not target.exists():
                    dead = [k for k, child in enumerate(children) if child.poll() is not None]
                    if dead and not target.exists():
                        seconds = time.perf_counter() - began
                        reason = f"rank {dead[0]} of {self.devices} died"
                        return Trial.lost(setup, self.task.floor, reason, seconds)
                    time.sleep(_POLL)
                trial: Trial = pickle.loads(target.read_bytes())
        return dataclasses.replace(trial, seconds=time.perf_counter() - began)


def _run_rank(given: tuple[Any, ...], setup: Setup, rank: int, size: int, port: int, folder: str) -> None:
    """What the process of a rank does."""
    task, compute, *rest = given
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    device = compute.device if compute.on_cpu else torch.device(compute.device.type, compute.device.index + rank)
    with current(device):
        join = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(ranks_backend(device), init_method=join, rank=rank, world_size=size)
        _train_rank(task, dataclasses.replace(compute, device=device), rest, setup, Ranks(rank, size), folder)
    # Without the interpreter's exit: tearing gloo down can hang. The parent ends those that still wait.
    time.sleep(1)
    os._exit(0)


def _train_rank(task: Task | str, compute: Compute, rest: list[Any], setup: Setup, ranks: Ranks, folder: str) -> None:
    """Train, and let the first rank, or one that failed, leave the outcome in the folder."""
    task = load_task(task) if isinstance(task, str) else task
    trainer = Trainer(task.on(compute), *rest)
    trainer.ranks = ranks
    trial = trainer(setup)
    # A rank that failed alone leaves the others waiting for it.
    if trial.state == "failed" or ranks.rank == 0:
        part = Path(folder) / f"part{ranks.rank}"
        part.write_bytes(pickle.dumps(trial))
        part.replace(Path(folder) / "trial")

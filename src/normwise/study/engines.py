"""Engines: what starts a study's workers. The queue they share is the store's; an engine only places them.

:class:`Processes` starts children of this process and works along; :class:`RayCluster` hands the same workers to a Ray
cluster as tasks and watches. Workers that anything else starts (``normwise study work``) need no engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import ipaddress
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from normwise.errors import InputError, MissingDependencyError, NormwiseError, StoreError
from normwise.records import Trial
from normwise.study.address import is_url, redact
from normwise.study.children import helpers, packed
from normwise.study.plan import due, total_setups
from normwise.study.progress import Display
from normwise.study.store import Store
from normwise.study.tasks import Task
from normwise.study.worker import Job, trainer_of

ENGINES = ("processes", "ray")
# Seconds within which a Ray cluster of this machine answers.
_ANSWERS = 60
_ON_NETWORK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class Engine(Protocol):
    """Starts the workers of a study. ``trains`` says whether the process that uses it works, too."""

    @property
    def trains(self) -> bool:
        """Whether this process trains as well."""
        ...

    def start(self, job: Job, trials: int) -> AbstractContextManager[Callable[[], int]]:
        """Let workers run while the body does, no more than there are trials; give what counts them, or raises."""
        ...


@dataclass(frozen=True)
class Processes:
    """Workers on this machine, this process being the first; none at all watches those that others start."""

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"workers must be at least 0, got {self.workers}")

    @property
    def trains(self) -> bool:
        """Whether this process trains as well."""
        return self.workers > 0

    @contextmanager
    def start(self, job: Job, trials: int) -> Iterator[Callable[[], int]]:
        """Start all but the first."""
        count = max(min(self.workers, trials), 1)
        with helpers(*zip(*(job.in_turn(k) for k in range(1, count)), strict=True)) as look_after:
            yield lambda: 1 + look_after()


@dataclass(frozen=True)
class RayCluster:
    """Workers as tasks of a Ray cluster. Ray starts one again, elsewhere if need be, when its node or process died.

    Args:
        workers: how many; ``None`` for as many as the cluster has room for.
        address: of the cluster, as for ``ray.init``; ``None`` is the one that runs on this machine or that
            ``RAY_ADDRESS`` names, and where there is none, one that is started for this study and listens to this
            machine only.
        cpus: that each worker is given.
        gpus: likewise; a fraction shares one. 0 is as many as train a trial where a study is for an accelerator.

    Raises:
        InputError: a number makes no sense.

    Example:
        >>> RayCluster(workers=8, gpus=0.5).trains
        False
    """

    workers: int | None = None
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    trains = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"on a Ray cluster workers must be at least 1, got {self.workers}")
        if self.cpus < 0 or self.gpus < 0 or not self.cpus + self.gpus:
            raise InputError(f"a worker needs CPUs or GPUs, got {self.cpus} and {self.gpus}")

    @contextmanager
    def start(self, job: Job, trials: int) -> Iterator[Callable[[], int]]:
        """Connect, hand over the tasks, and take back what is left of them in the end."""
        told = packed(dataclasses.replace(job, device=job.device.partition(":")[0]))  # Ray gives numbers of its own
        with _connected(self.address) as ray:
            if not is_url(job.where) and not _is_here(ray):
                raise InputError(
                    "the nodes of a cluster cannot share a file: add --storage postgresql://USER@HOST/DATABASE"
                )
            gpus = self.gpus or (0 if job.device == "cpu" else job.each)
            count = min(self._room(ray.cluster_resources(), gpus), max(trials, 1))
            options = {"num_cpus": self.cpus, "num_gpus": gpus, "max_retries": -1, "name": "normwise"}
            task = ray.remote(_take_part).options(scheduling_strategy="SPREAD", **options)
            left = [task.remote(told) for _ in range(count)]

            def check() -> int:
                done, left[:] = ray.wait(left, num_returns=len(left), timeout=0) if left else ([], [])
                for one in done:
                    _raise_failure(ray, one)
                return len(left)

            try:
                yield check
            finally:
                # Interrupted, not killed: a worker gives its trial back at once.
                for one in left:
                    ray.cancel(one)
                if left:
                    ray.wait(left, num_returns=len(left), timeout=10)

    def _room(self, there: dict[str, float], gpus: float) -> int:
        """How many workers: those asked for, or all that fit."""
        fit = [there.get(kind, 0.0) / need for kind, need in (("CPU", self.cpus), ("GPU", gpus)) if need]
        if min(fit) < 1:
            raise InputError(
                f"the Ray cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, too few for one "
                f"worker of {self.cpus:g} and {gpus:g}"
            )
        return int(min(fit)) if self.workers is None else self.workers


def engine_of(name: str | Engine, workers: int | None = 1) -> Engine:
    """Give an engine by its name."""
    if not isinstance(name, str):
        return name
    if name == "processes":
        return Processes(1 if workers is None else workers)
    if name == "ray":
        return RayCluster(workers)
    raise InputError(f"unknown engine {name!r}: expected one of {', '.join(ENGINES)}")


def run(store: Store, task: Task, engine: Engine, job: Job, progress: bool = True) -> list[Trial]:
    """Run a study's open trials through an engine, showing how far it is."""
    settings = store.settings
    done = store.trials()
    missing = total_setups(settings, done) - len(done)
    if not missing:
        return done
    train = trainer_of(task, settings) if engine.trains else None
    with Display(settings) if progress else _silent() as display, engine.start(job, missing) as check:

        def on_change(trials: list[Trial], note: str | None) -> None:
            workers = check()
            if display is not None:
                display.workers = max(workers, 1)
                display.update(trials, note)

        return store.work(train, partial(due, settings), on_change, floor=task.floor)


@contextmanager
def _silent() -> Iterator[None]:
    yield None


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a Ray cluster, or use the connection that there is, or start a cluster of this machine."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("the engine ray needs ray: pip install 'normwise[ray]'")
    there = sys.modules.get("ray")
    if there is not None and there.is_initialized():
        yield there
        return
    if address is None and ("RAY_ADDRESS" in os.environ or _cluster_runs()):
        address = "auto"
    if address is None:
        _keep_to_loopback()
    import ray

    dashboard = None if address else False
    try:
        ray.init(address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has no one kind for this: a node that starts too slowly is a bare Exception
        with contextlib.suppress(Exception):
            ray.shutdown()
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        doing = f"connect to the Ray cluster {address}" if address else "start a Ray cluster on this machine"
        raise InputError(f"cannot {doing}: {first}") from None
    try:
        if address is None and not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
            raise InputError(
                f"Ray {ray.__version__} does not keep a cluster to this machine: start one yourself with 'ray start "
                "--head', if others may reach it"
            )
        yield ray
    finally:
        ray.shutdown()


def _cluster_runs() -> bool:
    """Whether there is a Ray cluster on this machine. Asked elsewhere, so that Ray is not imported here yet."""
    ask = "import ray; ray.init('auto', log_to_driver=False)"
    try:
        return subprocess.run([sys.executable, "-c", ask], capture_output=True, timeout=_ANSWERS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _keep_to_loopback() -> None:
    """Have a cluster that is started here listen on 127.0.0.1, as Ray does by itself on Windows and macOS.

    Ray's variable for this is read when it is imported; ``_node_ip_address="127.0.0.1"`` is taken for the machine's own
    address, and the processes listen on all.
    """
    if "ray" in sys.modules and os.environ.get(_ON_NETWORK) != "0":
        raise InputError(
            "ray is imported already, and a cluster that it starts would listen on the network: call ray.init() "
            f"yourself before, or set {_ON_NETWORK}=0 before ray is imported"
        )
    os.environ[_ON_NETWORK] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _is_here(ray: Any) -> bool:
    """Whether this machine is the whole cluster."""
    own = ray.get_runtime_context().get_node_id()
    return all(node["NodeID"] == own for node in ray.nodes() if node["Alive"])


def _take_part(told: bytes) -> None:
    """What a Ray task does."""
    import pickle

    pickle.loads(told)()


def _raise_failure(ray: Any, task: Any) -> None:
    """Say why a worker ended, unless it ended because there was nothing left to do."""
    try:
        ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines()
        detail = redact(lines[0] if lines else type(cause).__name__)
        kind = "" if isinstance(cause, NormwiseError) else f"{type(cause).__name__}: "
        raise StoreError(f"a worker of the Ray cluster failed: {kind}{detail}") from None

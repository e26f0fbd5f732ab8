"""Workers: each opens the study's database, learns there what is trained, and takes what waits.

A worker is started by anything: ``normwise study work``, a Ray cluster, or the main process, whose own workers are
child processes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from normwise import devices
from normwise.errors import InputError, StoreError
from normwise.records import Settings
from normwise.study.compute import Compute
from normwise.study.own import fingerprints
from normwise.study.plan import due, training_steps
from normwise.study.ranks import Distributed
from normwise.study.store import OnChange, Store
from normwise.study.tasks import Task, load_task
from normwise.study.trial import Trainer


@dataclass(frozen=True)
class Job:
    """What a worker is told: where the study is and, if the study's database cannot say it, what is trained.

    ``where`` is never shown: it may hold a password.
    """

    where: str | Path | None = field(repr=False)
    study: str
    task: Task | None = field(default=None, repr=False)
    # The device that was asked for: with a number all workers use it, else each has one, or ``each``, in turn.
    device: str = "cpu"
    each: int = 1

    def __post_init__(self) -> None:
        if getattr(self.task and self.task.make_model, "__module__", None) == "__main__":
            raise InputError(
                "several workers need make_model in a module that they can import: move it there, or workers=1"
            )

    def in_turn(self, turn: int) -> tuple[Job, dict[str, str]]:
        """What one of several workers is told, and the variables of its environment."""
        device, environment = devices.share(self.device, turn, self.each)
        return dataclasses.replace(self, device=device), environment

    def __call__(self, on_change: OnChange = lambda trials, note: None) -> None:
        """Work on the study until it is finished."""
        store = Store(self.where, name=self.study)
        task = rebuild(store) if self.task is None else self.task
        with devices.current(devices.resolve(self.device)):
            store.work(trainer_of(task, store.settings), partial(due, store.settings), on_change, floor=task.floor)


def rebuild(store: Store) -> Task:
    """Make a study's task from what its database says of it, and check that it is the same."""
    what = f"the study {store.name!r} in {store.database.name} cannot be worked on from here"
    source = store.about.get("source")
    if source is None:
        whose = "model or a method of your own" if store.settings.own else "model"
        raise StoreError(
            f"{what}: its {whose} was handed over in Python, not by a name that could be looked up; "
            "use the workers of the process that made it, compare(..., workers=N)"
        )
    task = load_task(source)
    here = {
        "score_name": task.score_name,
        "splits": task.splits.sizes(),
        "model": task.describe_model(),
        "own": fingerprints(task, store.settings.methods),
    }
    for name, value in here.items():
        if value != (theirs := getattr(store.settings, name)):
            raise StoreError(
                f"{what}: {source} gives {name} = {value} here, the study has {theirs}; "
                "use the same versions of the model's code, the data and normwise"
            )
    return task


def trainer_of(task: Task, settings: Settings, measure_memory: bool = True) -> Trainer | Distributed:
    """Give the trainer of a study's setups: of one process or, where the settings ask for several devices, of more."""
    samples, each = task.splits.train.size, task.accumulate
    steps = {b: training_steps(settings.epochs[str(b)], b, samples, each) for b in settings.batch_sizes}
    trainer = Trainer(task.on(Compute.of(settings)), steps, measure_memory, tune_share=settings.tune_share)
    return trainer if settings.devices == 1 else Distributed(trainer, settings.devices)

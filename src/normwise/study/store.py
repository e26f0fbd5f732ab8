"""Queue and store of a study's trials: Optuna's storage in one database, shared by any number of processes.

The grid is enqueued as waiting trials; claims, heartbeats and the retry of what a dead worker held are Optuna's.
Optuna alone leaves four gaps, all of them between two of its transactions: a claim is a read followed by a write; a
worker that dies between claim and first heartbeat leaves a trial that never becomes stale; one that dies between
failing a stale trial and enqueueing its successor loses it; and a worker that finds the queue empty makes a trial of
its own. So those steps happen under the database's one lock, which is free again when its holder dies, and whoever
takes the lock next first brings queue and plan into line (:meth:`Store._reconcile`).

Optuna cannot tell a trial that kills its worker (a crash in native code, all memory taken) from a worker that was
killed by something else: after three deaths a trial counts as failed, so that it cannot take worker after worker.

The lock keeps work from being done twice; that nothing is *counted* twice does not depend on it: a setup has one place
in the result, whoever finished it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from normwise.errors import InputError, StoreError
from normwise.records import STUDY_VERSION, Settings, Setup, Trial, from_dict, to_dict
from normwise.study.catalog import (
    Finished,
    as_frozen,
    check_version,
    create,
    find,
    open_database,
    quiet,
    rename,
    setup_of,
)
from normwise.study.database import Database, Storage, is_away
from normwise.study.salvage import mended

OnChange = Callable[[list[Trial], str | None], None]
T = TypeVar("T")

STUDY_NAME = "normwise"
# Trials that wait in the database at most. Every claim reads them, so a long queue would make claims slow; each claim
# refills it.
_AHEAD = 8
# Settings of which the same study cannot have two.
_COMPUTE = ("device", "precision", "compile")
# So many workers may die of a trial.
DEATHS = 3


class Store:
    """The trials of one study in a database."""

    def __init__(
        self,
        where: str | os.PathLike[str] | Database | None,
        settings: Settings | None = None,
        fresh: bool = False,
        name: str | None = STUDY_NAME,
    ) -> None:
        self.database = open_database(where)
        self._finished = Finished()
        if settings is None and not self.database.exists():
            raise StoreError(f"{self.database.name} holds no study")
        self._lock = self.database.lock()
        with self.database.guarded(), quiet(), self._locked():
            self._storage = mended(self.database, settings, name)
            self.name = find(self._storage, self.database, name) if settings is None or name is None else name
            if fresh:
                rename(self._storage, self.name)
            self._study = create(self._storage, self.name)
            self.settings = self._adopt(settings)

    @property
    def about(self) -> dict[str, Any]:
        """What else was noted about the study, such as its title; see :meth:`note`."""
        with self.database.guarded():
            return self._study.user_attrs

    def note(self, **attributes: Any) -> None:
        """Keep plain values with the study, for those who work on it or read it."""
        with self.database.guarded():
            there = self._study.user_attrs
            for key, value in attributes.items():
                if there.get(key) != value:
                    self._insist(partial(self._study.set_user_attr, key, value))

    def trials(self) -> list[Trial]:
        """Read the finished trials, of all workers."""
        with self.database.guarded():
            return self._finished.of(self._study.get_trials(deepcopy=False))

    def add(self, trials: list[Trial]) -> None:
        """Put finished trials into the study, such as those of another database."""
        with self.database.guarded(), quiet(), self._locked():
            there = {t.setup.key for t in self.trials()}
            for trial in trials:
                if trial.setup.key not in there:
                    self._study.add_trial(as_frozen(self.settings, trial.setup, to_dict(trial)))

    def work(
        self,
        train: Callable[[Setup], Trial] | None,
        due: Callable[[list[Trial]], list[Setup]],
        on_change: OnChange = lambda trials, note: None,
        *,
        floor: float = 0.0,
    ) -> list[Trial]:
        """Run setups until every due one is finished, together with any other process that works on the same store."""
        pause = self.database.poll
        with self.database.guarded(), quiet():
            while True:
                # Where a connection breaks, what was under way is in the database or will be done again.
                waiting, running, finished = self._insist(partial(self._turn, train, due, on_change, floor))
                if waiting and train is not None:
                    pause = self.database.poll
                    continue
                if not waiting and not running:
                    on_change(finished, None)
                    return finished
                others = f"waiting for {running} trial(s) of another worker, or {self.database.grace} s if it died"
                on_change(finished, others if running else "waiting for a worker to take a trial")
                time.sleep(pause)
                pause = min(2 * pause, self.database.poll_at_most)

    def _turn(
        self,
        train: Callable[[Setup], Trial] | None,
        due: Callable[[list[Trial]], list[Setup]],
        on_change: OnChange,
        floor: float,
    ) -> tuple[int, int, list[Trial]]:
        """Take the lock, bring the queue into line, and run one trial where one waits."""
        with self._locked():
            waiting, running, finished = self._reconcile(due, floor)
            if waiting and train is not None:
                on_change(finished, None)
                self._run_one(train, lambda setup: on_change(finished, setup.key))
            return waiting, running, finished

    def _run_one(self, train: Callable[[Setup], Trial], on_start: Callable[[Setup], None]) -> None:
        """Claim a waiting trial, release the lock, run it; leave it to another worker that took over meanwhile."""
        trial = self._study.ask()
        # The error is of a process that slept past the grace period (a closed laptop): another worker took over.
        with self._beating(trial.number), contextlib.suppress(UpdateFinishedTrialError):
            try:
                given = trial.user_attrs
                setup = setup_of(trial)
                # From here on the heartbeat tells whether this worker lives; see _reconcile.
                trial.set_user_attr("claim", _claim(trial.number))
                self._lock.release(force=True)
                on_start(setup)
                # A retried trial brings its result along where the worker died between writing it and saying so.
                result = given.get("result")
                if result is None:
                    result = to_dict(train(setup))
                    self._insist(partial(trial.set_user_attr, "result", result))
            except BaseException:
                with contextlib.suppress(Exception):
                    trial.set_user_attr("given_back", trial.number)
                    self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                raise
            self._study.tell(trial, result["valid_score"], skip_if_finished=True)

    def _reconcile(self, due: Callable[[list[Trial]], list[Setup]], floor: float = 0.0) -> tuple[int, int, list[Trial]]:
        """See that every due setup is finished, is trained by a living worker, or waits. The caller holds the lock."""
        optuna.storages.fail_stale_trials(self._study)
        trials = self._study.get_trials(deepcopy=False)
        finished = self._finished.of(trials)
        wanted = {setup.key: setup for setup in due(finished)}
        taken = {trial.setup.key for trial in finished}
        died = Counter(_key(trial) for trial in trials if _killed_its_worker(trial))
        if deadly := [setup for key, setup in wanted.items() if key not in taken and died[key] >= DEATHS]:
            for setup in deadly:
                lost = Trial.lost(setup, floor, f"{died[setup.key]} processes died of it: out of memory, or a crash")
                self._study.add_trial(as_frozen(self.settings, setup, to_dict(lost)))
            return self._reconcile(due, floor)
        running = 0
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                if is_claimed(trial):
                    running += 1
                    taken.add(_key(trial))
                else:
                    # Its worker died holding the lock, before its first sign of life.
                    self._give_up(trial)
        waiting = 0
        for trial in trials:
            if trial.state == TrialState.WAITING:
                if (key := _key(trial)) in taken or key not in wanted:
                    self._give_up(trial)  # somebody else's by now, or no longer asked for
                else:
                    waiting += 1
                    taken.add(key)
        for key, setup in wanted.items():
            if waiting >= _AHEAD:
                break
            if key not in taken:
                self._study.add_trial(as_frozen(self.settings, setup))
                waiting += 1
        return waiting, running, finished

    def _give_up(self, trial: FrozenTrial) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(self._id(trial.number), state=TrialState.FAIL)

    def _id(self, number: int) -> int:
        """Give the number by which the storage knows a trial of this study."""
        study = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _beating(self, number: int) -> contextlib.AbstractContextManager[None]:
        return (
            self._storage.beating(self._id(number)) if isinstance(self._storage, Storage) else contextlib.nullcontext()
        )

    def _adopt(self, settings: Settings | None) -> Settings:
        """Keep the settings with a new study; refuse a study with others, or of a newer normwise."""
        there = self._study.user_attrs
        if settings is not None and "settings" not in there:
            self._study.set_user_attr("version", STUDY_VERSION)
            self._study.set_user_attr("settings", to_dict(settings))
            return settings
        check_version(there, self._said())
        theirs = there["settings"]
        if settings is None:
            return from_dict(Settings, theirs)
        mine = json.loads(json.dumps(to_dict(settings)))
        # Of an older normwise, whose settings lacked fields that have a default.
        theirs = json.loads(json.dumps(to_dict(from_dict(Settings, theirs))))
        ways = f"add --fresh to start over or {self.database.other}"
        if differing := _own_methods_differ(mine, theirs):
            raise StoreError(f"{self._said()} {differing}, or {ways}")
        for name in mine:
            if name not in {"notes", "floor", "num_workers"} and mine[name] != theirs.get(name):
                if name in _COMPUTE:
                    raise InputError(
                        f"{self._said()} runs with {_computing(theirs)}, this command with {_computing(mine)}, and "
                        f"studies of both do not mix: give --device {theirs['device']} --precision "
                        f"{theirs['precision']}{' --compile' * theirs['compile']}, {ways}"
                    )
                raise StoreError(
                    f"{self._said()} was made with {name} = {_short(theirs.get(name))}, this command says "
                    f"{_short(mine[name])}: {ways}"
                )
        return settings

    def _said(self) -> str:
        return self.database.name if self.name == STUDY_NAME else f"the study {self.name!r} in {self.database.name}"

    def _insist(self, call: Callable[[], T]) -> T:
        """Make a call, and repeat it where the connection broke; a new connection waits for the server."""
        while True:
            try:
                return call()
            except (SQLAlchemyError, StorageInternalError) as error:
                if not is_away(error):
                    raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            # It is free already where a trial ran.
            self._lock.release(force=True)


def is_claimed(trial: FrozenTrial) -> bool:
    """Whether the worker of a running trial has given its first sign of life."""
    claim = trial.user_attrs.get("claim")
    return isinstance(claim, dict) and claim.get("number") == trial.number


def _killed_its_worker(trial: FrozenTrial) -> bool:
    """Whether a worker died while it ran this trial; one that is interrupted gives the trial back."""
    given_back = trial.user_attrs.get("given_back") == trial.number
    return trial.state == TrialState.FAIL and is_claimed(trial) and not given_back


def _claim(number: int) -> dict[str, Any]:
    """What a worker leaves at its trial, for those who look for it."""
    return {"number": number, "host": socket.gethostname(), "process": os.getpid()}


def _key(trial: FrozenTrial) -> str:
    return setup_of(trial).key


def _own_methods_differ(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What is other about the methods of one's own, if anything is."""
    if missing := [method for method in theirs["own"] if method not in mine["methods"]]:
        return f"has methods of your own that this command lacks, {', '.join(missing)}: give them as you did before"
    if changed := [method for method, code in mine["own"].items() if theirs["own"].get(method, code) != code]:
        return f"was made with other code of {', '.join(changed)}: give the new one another name"
    return None


def _computing(settings: dict[str, Any]) -> str:
    how = f"{settings['device']}, precision {settings['precision']}"
    return how + ", compiled" * settings["compile"]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

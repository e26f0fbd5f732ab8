"""Queue and store of a study's trials: Optuna's storage in one database, shared by any number of processes.

The grid is enqueued as waiting trials; claims, heartbeats and the retry of what a dead worker held are Optuna's.
Optuna alone leaves four gaps, all of them between two of its transactions: a claim is a read followed by a write; a
worker that dies between claim and first heartbeat leaves a trial that never becomes stale; one that dies between
failing a stale trial and enqueueing its successor loses it; and a worker that finds the queue empty makes a trial of
its own. So those steps happen under the database's one lock, which is free again when its holder dies, and whoever
takes the lock next first brings queue and plan into line (:meth:`Store._reconcile`).

Nor does Optuna tell a trial that kills its worker (a crash in native code, all memory taken) from a worker that was
killed: after three deaths a trial counts as failed, so that it cannot take worker after worker.

The lock keeps work from being done twice; that nothing is *counted* twice does not depend on it: a cell has one place
in the result, whoever finished it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from normwise.errors import StoreError
from normwise.records import STUDY_VERSION, Cell, Settings, Trial, from_dict, to_dict
from normwise.study.catalog import (
    Finished,
    as_frozen,
    check_version,
    create,
    damage_of,
    find,
    open_database,
    quiet,
    rename,
    restore,
    whole,
)
from normwise.study.database import Database, File, is_away
from normwise.study.salvage import Salvaged, salvage

OnChange = Callable[[list[Trial], str | None], None]
T = TypeVar("T")

STUDY_NAME = "normwise"
# Trials that wait in the database at most. Every claim reads them, so a long queue would make claims slow; each claim
# refills it.
_AHEAD = 8
# So many workers may die of a trial.
DEATHS = 3
_LOG = logging.getLogger("normwise")


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
        with self._guarded(), quiet(), self._locked():
            salvaged = self._mend(settings, name)
            self._storage = self.database.storage()
            for each, kept in salvaged.items():
                restore(self._storage, each, kept, settings)
            self.name = find(self._storage, self.database, name) if settings is None or name is None else name
            if fresh:
                rename(self._storage, self.name)
            self._study = create(self._storage, self.name)
            self.settings = self._adopt(settings)

    @property
    def about(self) -> dict[str, Any]:
        """What else was noted about the study, such as its title; see :meth:`note`."""
        with self._guarded():
            return self._study.user_attrs

    def note(self, **attributes: Any) -> None:
        """Keep plain values with the study, for those who work on it or read it."""
        with self._guarded():
            there = self._study.user_attrs
            for key, value in attributes.items():
                if there.get(key) != value:
                    self._insist(partial(self._study.set_user_attr, key, value))

    def trials(self) -> list[Trial]:
        """Read the finished trials, of all workers."""
        with self._guarded():
            return self._finished.of(self._study.get_trials(deepcopy=False))

    def add(self, trials: list[Trial]) -> None:
        """Put finished trials into the study, such as those of another database."""
        with self._guarded(), quiet(), self._locked():
            there = {t.cell.key for t in self.trials()}
            for trial in trials:
                if trial.cell.key not in there:
                    self._study.add_trial(as_frozen(self.settings, trial.cell, to_dict(trial)))

    def work(
        self,
        train: Callable[[Cell], Trial] | None,
        due: Callable[[list[Trial]], list[Cell]],
        on_change: OnChange = lambda trials, note: None,
        *,
        floor: float = 0.0,
    ) -> list[Trial]:
        """Run cells until every due one is finished, together with any other process that works on the same store."""
        pause = self.database.poll
        with self._guarded(), quiet():
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
        train: Callable[[Cell], Trial] | None,
        due: Callable[[list[Trial]], list[Cell]],
        on_change: OnChange,
        floor: float,
    ) -> tuple[int, int, list[Trial]]:
        """Take the lock, bring the queue into line, and run one trial where one waits."""
        with self._locked():
            waiting, running, finished = self._reconcile(due, floor)
            if waiting and train is not None:
                on_change(finished, None)
                self._run_one(train, partial(_start, on_change, finished))
            return waiting, running, finished

    def _run_one(self, train: Callable[[Cell], Trial], on_start: Callable[[Cell], None]) -> None:
        """Claim a waiting trial, release the lock, run it. A trial that was taken from us meanwhile is let go."""

        def objective(trial: optuna.Trial) -> float:
            given = trial.user_attrs
            cell = from_dict(Cell, given["cell"])
            if isinstance(self._storage, BaseHeartbeat):
                self._storage.record_heartbeat(trial._trial_id)
            # From here on the heartbeat tells whether this worker lives; see _reconcile.
            trial.set_user_attr("claim", _claim(trial.number))
            self._lock.release(force=True)
            try:
                on_start(cell)
                # A retried trial brings its result along where the worker died between writing it and saying so.
                result = given.get("result")
                if result is None:
                    result = to_dict(train(cell))
                    self._insist(partial(trial.set_user_attr, "result", result))
            except BaseException:
                with contextlib.suppress(Exception):
                    trial.set_user_attr("given_back", trial.number)
                raise
            return result["valid_score"]

        self.database.working = True
        try:
            self._study.optimize(objective, n_trials=1)
        except UpdateFinishedTrialError:
            pass  # This process slept past the grace period (a closed laptop), and another worker took over.
        except UnboundLocalError as error:
            # A slip of Optuna's where it is interrupted, or the database fails, while a result is told: this hides it.
            if not isinstance(error.__context__, UpdateFinishedTrialError):
                raise (error.__context__ or error) from None
        except ValueError as error:
            if not str(error).startswith("Cannot tell a "):  # Optuna's way to say the same.
                raise
        finally:
            self.database.working = False

    def _reconcile(self, due: Callable[[list[Trial]], list[Cell]], floor: float = 0.0) -> tuple[int, int, list[Trial]]:
        """Make the due cells finished, running and alive, or waiting. Holds the lock, and may be repeated at will."""
        if isinstance(self._storage, BaseHeartbeat):
            optuna.storages.fail_stale_trials(self._study)
        trials = self._study.get_trials(deepcopy=False)
        finished = self._finished.of(trials)
        wanted = {cell.key: cell for cell in due(finished)}
        taken = {trial.cell.key for trial in finished}
        died = Counter(_key(trial) for trial in trials if _took_its_worker_along(trial))
        if deadly := [cell for key, cell in wanted.items() if key not in taken and died[key] >= DEATHS]:
            for cell in deadly:
                lost = Trial.lost(cell, floor, f"{died[cell.key]} processes died of it: out of memory, or a crash")
                self._study.add_trial(as_frozen(self.settings, cell, to_dict(lost)))
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
        for key, cell in wanted.items():
            if waiting >= _AHEAD:
                break
            if key not in taken:
                self._study.add_trial(as_frozen(self.settings, cell))
                waiting += 1
        return waiting, running, finished

    def _give_up(self, trial: FrozenTrial) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)

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
            if name not in {"notes", "floor"} and mine[name] != theirs.get(name):
                raise StoreError(
                    f"{self._said()} was made with {name} = {_short(theirs.get(name))}, this command says "
                    f"{_short(mine[name])}: {ways}"
                )
        return settings

    def _said(self) -> str:
        return self.database.name if self.name == STUDY_NAME else f"the study {self.name!r} in {self.database.name}"

    def _mend(self, settings: Settings | None, name: str | None) -> dict[str, Salvaged]:
        """Put a damaged file aside, and give what could be read of it."""
        damage = damage_of(self.database)
        if damage is None:
            return {}
        assert isinstance(self.database, File)
        aside = self.database.put_aside()
        kept = salvage(aside)
        if name is not None and len(kept) == 1:
            # The only one can be no other, though its name be damaged.
            kept = {name: next(iter(kept.values()))}
        read = sum(len(whole(each, settings)) for each in kept.values())
        lost = sum(each.finished for each in kept.values()) - read
        _LOG.warning(
            "normwise: %s was damaged (%s); it is kept as %s, %d finished trial(s) were read from it%s, and what is "
            "missing is run again",
            *(self.database.name, damage, aside.name, read, f", {lost} were lost" if lost > 0 else ""),
        )
        return kept

    def _insist(self, call: Callable[[], T]) -> T:
        """Make a call that may be repeated, and again where the connection broke under it; a new one waits."""
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
            # Free already where a trial ran.
            self._lock.release(force=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what goes wrong with the database into one clear line."""
        with self.database.guarded():
            yield


def is_claimed(trial: FrozenTrial) -> bool:
    """Tell whether a running trial's worker got as far as its first sign of life."""
    claim = trial.user_attrs.get("claim")
    return isinstance(claim, dict) and claim.get("number") == trial.number


def _took_its_worker_along(trial: FrozenTrial) -> bool:
    """Whether a worker fell silent while it ran this trial; an interrupted one gives it back."""
    given_back = trial.user_attrs.get("given_back") == trial.number
    return trial.state == TrialState.FAIL and is_claimed(trial) and not given_back


def _claim(number: int) -> dict[str, Any]:
    """What a worker leaves at its trial, for those who look for it."""
    return {"number": number, "host": socket.gethostname(), "process": os.getpid()}


def _start(on_change: OnChange, finished: list[Trial], cell: Cell) -> None:
    on_change(finished, cell.key)


def _key(trial: FrozenTrial) -> str:
    return from_dict(Cell, trial.user_attrs["cell"]).key


def _own_methods_differ(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What is other about the methods of one's own, if anything is."""
    if missing := [method for method in theirs["own"] if method not in mine["methods"]]:
        return f"has methods of your own that this command lacks, {', '.join(missing)}: give them as you did before"
    if changed := [method for method, code in mine["own"].items() if theirs["own"].get(method, code) != code]:
        return f"was made with other code of {', '.join(changed)}: give the new one another name"
    return None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

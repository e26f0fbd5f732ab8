"""Queue and store of a study's trials: Optuna's RDB storage on one SQLite file, shared by any number of processes.

The grid is enqueued with ``enqueue_trial``; claims, heartbeats and the retry of what a dead worker held are Optuna's.
Optuna alone leaves four gaps, all of them between two of its transactions: a claim is a read followed by a write; a
worker that dies between claim and first heartbeat leaves a trial that never becomes stale; one that dies between
failing a stale trial and enqueueing its successor loses it; and a worker that finds the queue empty makes a trial of
its own. So those steps happen under one file lock, which the system releases when its holder dies, and whoever takes
the lock next first brings queue and plan into line (:meth:`Store._reconcile`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from normwise.errors import StoreError
from normwise.records import Cell, Settings, Trial, from_dict, to_dict

OnChange = Callable[[list[Trial], str | None], None]

STORE_NAME = "study.db"
_STUDY = "normwise"
# Seconds. A worker counts as dead when it has been silent for the grace period.
_HEARTBEAT, _GRACE = 1, 6
_POLL = 0.5
_LOCKED_FOR = 120
# Tables that mark a SQLite file as Optuna's.
_TABLES = {"studies", "trials", "version_info"}


class Store:
    """The trials of one study, in a folder or, without one, in memory.

    Args:
        folder: where ``study.db`` is or will be; ``None`` for memory only.
        settings: of the study; a store that was made with others is refused.
        fresh: put an existing ``study.db`` aside as ``study.db.bak`` and start over.

    Example:
        >>> settings = Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
        >>> Store(None, settings).trials()
        []
    """

    def __init__(self, folder: Path | None, settings: Settings, fresh: bool = False) -> None:
        self.folder = folder
        self.path = None if folder is None else folder / STORE_NAME
        self._lock = _lock_of(folder)
        self._known: dict[int, Trial] = {}
        with self._guarded(), self._lock:
            if self.path is not None:
                if fresh and self.path.exists():
                    self.path.replace(self.path.with_name(STORE_NAME + ".bak"))
                _check_file(self.path)
            with _quiet():
                self._storage = _storage(self.path)
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=_STUDY,
                    direction="maximize",
                    load_if_exists=True,
                    # Never asked: every parameter of every trial is given. The default sampler costs time even so.
                    sampler=optuna.samplers.RandomSampler(seed=0),
                )
            self._adopt(settings)
        self.settings = settings

    def trials(self) -> list[Trial]:
        """Read the finished trials, of all workers.

        Returns:
            The trials, in the order in which they were enqueued.

        Example:
            >>> settings = Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
            >>> Store(None, settings).trials()
            []
        """
        with self._guarded():
            return self._finished(self._study.get_trials(deepcopy=False))

    def work(
        self,
        train: Callable[[Cell], Trial],
        due: Callable[[list[Trial]], list[Cell]],
        on_change: OnChange = lambda trials, note: None,
    ) -> list[Trial]:
        """Run cells until every due one is finished, together with any other process that works on the same store.

        Args:
            train: turns a cell into its trial.
            due: given the finished trials, all cells that are to be run, finished ones included.
            on_change: told the finished trials, and what this worker does now.

        Returns:
            All trials.

        Example:
            >>> settings = Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
            >>> cell = Cell("tune", "none", 2, 0.1, 9)
            >>> trial = Trial(cell, "complete", 0.9, 0.9, 0.1, 0.1, 1, None, 1.0, None, 1)
            >>> Store(None, settings).work(lambda cell: trial, lambda trials: [cell]) == [trial]
            True
        """
        with self._guarded(), _quiet():
            while True:
                self._lock.acquire()
                try:
                    waiting, running, finished = self._reconcile(due)
                    if waiting:
                        on_change(finished, None)
                        self._run_one(train, partial(_start, on_change, finished))
                        continue
                finally:
                    self._release()
                if not running:
                    on_change(finished, None)
                    return finished
                on_change(finished, f"waiting for {running} trial(s) of another worker, or {_GRACE} s if it died")
                time.sleep(_POLL)

    def _run_one(self, train: Callable[[Cell], Trial], on_start: Callable[[Cell], None]) -> None:
        """Claim a waiting trial, release the lock, run it. A trial that was taken from us meanwhile is let go."""

        def objective(trial: optuna.Trial) -> float:
            cell = from_dict(Cell, trial.user_attrs["cell"])
            self._suggest(trial, cell)
            if isinstance(self._storage, BaseHeartbeat):
                self._storage.record_heartbeat(trial._trial_id)
            # From here on the heartbeat tells whether this worker lives; see _reconcile.
            trial.set_user_attr("claim", trial.number)
            self._release()
            on_start(cell)
            # A retried trial brings its result along where the worker died between writing it and saying so.
            if "result" not in trial.user_attrs:
                trial.set_user_attr("result", to_dict(train(cell)))
            return trial.user_attrs["result"]["valid_score"]

        try:
            self._study.optimize(objective, n_trials=1)
        except UpdateFinishedTrialError:
            pass  # This process slept past the grace period (a closed laptop), and another worker took over.
        except ValueError as error:
            if not str(error).startswith("Cannot tell a "):  # Optuna's way to say the same.
                raise

    def _suggest(self, trial: optuna.Trial, cell: Cell) -> None:
        """Give the trial its parameters, so that Optuna's own tools show them; the values were enqueued."""
        settings = self.settings
        trial.suggest_categorical("stage", ["tune", "final"])
        trial.suggest_categorical("method", settings.methods)
        trial.suggest_categorical("batch_size", settings.batch_sizes)
        trial.suggest_categorical("lr", sorted({lr for lrs in settings.lrs.values() for lr in lrs}))
        trial.suggest_categorical("seed", sorted({*settings.seeds, *settings.tune_seeds}))

    def _reconcile(self, due: Callable[[list[Trial]], list[Cell]]) -> tuple[int, int, list[Trial]]:
        """Make every due cell finished, waiting, or running and alive. Holds the lock, and may be repeated at will.

        Returns:
            How many wait, how many run elsewhere, and the finished trials.
        """
        if isinstance(self._storage, BaseHeartbeat):
            optuna.storages.fail_stale_trials(self._study)
        trials = self._study.get_trials(deepcopy=False)
        held: dict[TrialState, set[str]] = {TrialState.WAITING: set(), TrialState.RUNNING: set()}
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.user_attrs.get("claim") != trial.number:
                # Its worker died holding the lock, before its first sign of life.
                self._study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state in held:
                held[trial.state].add(_key(trial))
        finished = self._finished(trials)
        done = {trial.cell.key for trial in finished}
        waiting, running = held.values()
        for cell in due(finished):
            if cell.key not in done | waiting | running:
                self._study.enqueue_trial(to_dict(cell), user_attrs={"cell": to_dict(cell)})
                waiting.add(cell.key)
        return len(waiting), len(running), finished

    def _finished(self, trials: list[FrozenTrial]) -> list[Trial]:
        found: dict[str, Trial] = {}
        for frozen in trials:
            if frozen.state == TrialState.COMPLETE:
                if frozen.number not in self._known:
                    self._known[frozen.number] = from_dict(Trial, frozen.user_attrs.get("result"))
                found.setdefault(self._known[frozen.number].cell.key, self._known[frozen.number])
        return list(found.values())

    def _adopt(self, settings: Settings) -> None:
        """Keep the settings with a new study; refuse a study with others."""
        mine = json.loads(json.dumps(to_dict(settings)))
        theirs = self._study.user_attrs.get("settings")
        if theirs is None:
            self._study.set_user_attr("settings", mine)
            return
        for name in mine:
            if name not in {"notes"} and mine[name] != theirs.get(name):
                raise StoreError(
                    f"{self.path} holds a study with {name} = {_short(theirs.get(name))}, this command says "
                    f"{_short(mine[name])}: add --fresh to start over or --out for another folder"
                )

    def _release(self) -> None:
        """Let other workers in; harmless when the lock is already free."""
        if isinstance(self._lock, filelock.BaseFileLock):
            self._lock.release(force=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what goes wrong with the file into one clear line."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
            cause = error.__cause__ or error
            detail = str(getattr(cause, "orig", None) or cause).splitlines()[0]
            raise _damaged(self.path, detail) from error
        except filelock.Timeout as error:
            raise StoreError(f"{self.path} has been locked by another process for {_LOCKED_FOR} s") from error
        except OSError as error:
            raise StoreError(f"cannot use the folder {self.folder}: {error.strerror or error}") from error


class _NoLock(contextlib.nullcontext[None]):
    """Stands in for the file lock of a store in memory."""

    def acquire(self) -> None:
        """Do nothing."""


def _lock_of(folder: Path | None) -> Any:
    if folder is None:
        return _NoLock()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".study.lock", timeout=_LOCKED_FOR)
        with lock:
            return lock
    except OSError as error:
        raise StoreError(
            f"cannot write to the folder {folder}: {error.strerror or error}; name another one with --out"
        ) from error


def _storage(path: Path | None) -> BaseStorage:
    if path is None:
        return InMemoryStorage()
    return optuna.storages.get_storage(
        RDBStorage(
            f"sqlite:///{path.resolve()}",
            engine_kwargs={"connect_args": {"timeout": _LOCKED_FOR}},
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    )


def _check_file(path: Path) -> None:
    """Refuse a file that is damaged or belongs to something else, before anything is written to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise _damaged(path, "it is not a SQLite file")
    with contextlib.closing(sqlite3.connect(path, timeout=_LOCKED_FOR)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _damaged(path, verdict.splitlines()[-1])
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables & _TABLES:
        raise _damaged(path, "it is a SQLite file of another program")


def _damaged(path: Path | None, detail: str) -> StoreError:
    return StoreError(
        f"the study's store {path} cannot be used ({detail}); it was left as it is: "
        "add --fresh to start over (the file is then kept as study.db.bak) or --out for another folder"
    )


def _start(on_change: OnChange, finished: list[Trial], cell: Cell) -> None:
    on_change(finished, cell.key)


def _key(trial: FrozenTrial) -> str:
    return from_dict(Cell, trial.user_attrs["cell"]).key


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log lines and its notices about experimental features away from the user."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)

"""Nothing is lost and nothing runs twice, wherever a worker is killed."""

import os
import signal
import sqlite3
import time

import optuna
import pytest
from tiny_study import fake_trial, make_settings

from normwise.errors import StoreError
from normwise.study import store as module
from normwise.study.plan import due, total_cells, tune_cells
from normwise.study.store import Store

SETTINGS = make_settings(["none", "batch"], seeds=[0, 1], lrs={"2": [0.05, 0.1]})

pytestmark = [
    # The children only touch the store; torch's threads play no part in them.
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Take a silent worker for dead sooner, to keep the tests short."""
    monkeypatch.setattr(module, "_GRACE", 2)
    monkeypatch.setattr(module, "_POLL", 0.05)


def plan(trials):
    return due(SETTINGS, trials)


def work(folder, seconds=0.0, log=None):
    """Run what is open; ``log`` gets a line for each cell that was trained to its end."""

    def train(cell):
        time.sleep(seconds)
        if log is not None:
            with open(log, "a") as file:
                file.write(f"{cell.key}\n")
        return fake_trial(cell)

    return Store(folder, SETTINGS).work(train, plan)


def in_child(body):
    """Run ``body`` in a forked process; give its process number."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def kill_self(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def scores(trials):
    return {t.cell.key: (t.valid_score, t.test_score) for t in trials}


EXPECTED_COUNT = total_cells(SETTINGS)


def test_uninterrupted(tmp_path):
    log = tmp_path / "log"
    trials = work(tmp_path, log=log)
    assert len(trials) == EXPECTED_COUNT == len(set(log.read_text().split()))
    assert scores(work(tmp_path, log=log)) == scores(trials)
    assert len(log.read_text().split()) == EXPECTED_COUNT, "a finished study runs nothing again"


def die_on_call(monkeypatch, target, name, number):
    """Make the n-th call of a method fatal."""
    original, calls = getattr(target, name), []

    def fatal(*args, **kwargs):
        calls.append(name)
        return kill_self() if len(calls) == number else original(*args, **kwargs)

    monkeypatch.setattr(target, name, fatal)


RDB = optuna.storages.RDBStorage
MOMENTS = {
    "before anything is enqueued": (RDB, "set_study_user_attr", 1),
    "while enqueueing": (optuna.Study, "enqueue_trial", 3),
    "between claim and first heartbeat": (optuna.Study, "_pop_waiting_trial_id", 0),
    "before the parameters are known": (Store, "_suggest", 2),
    "between claim and its mark": (optuna.trial.Trial, "set_user_attr", 3),
    "between result and completion": (optuna.study._optimize, "_tell_with_warning", 2),
    "after a few trials": (optuna.study._optimize, "_tell_with_warning", 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(moment, tmp_path, monkeypatch):
    target, name, number = MOMENTS[moment]

    def doomed():
        if number:
            die_on_call(monkeypatch, target, name, number)
        else:
            original = getattr(target, name)
            monkeypatch.setattr(target, name, lambda *a, **k: kill_self(original(*a, **k)))
        work(tmp_path, log=tmp_path / "log")

    assert os.WIFSIGNALED(os.waitpid(in_child(doomed), 0)[1])
    trials = work(tmp_path, log=tmp_path / "log")
    assert len(trials) == EXPECTED_COUNT
    ran = (tmp_path / "log").read_text().split()
    assert sorted(ran) == sorted(set(ran)), "a trial ran to its end twice"
    assert scores(trials) == scores(work(tmp_path / "other"))


def test_killed_while_training_and_while_taking_over(tmp_path, monkeypatch):
    child = in_child(lambda: work(tmp_path, seconds=60))
    deadline = time.monotonic() + 60
    while not running(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    time.sleep(3.5)  # beyond the grace period

    def dies_between_failing_and_retrying():
        monkeypatch.setattr(module.RetryHeartbeatStaleTrialCallback, "__call__", kill_self)
        work(tmp_path)

    assert os.WIFSIGNALED(os.waitpid(in_child(dies_between_failing_and_retrying), 0)[1])
    assert len(work(tmp_path, log=tmp_path / "log")) == EXPECTED_COUNT
    assert len((tmp_path / "log").read_text().split()) == EXPECTED_COUNT


def running(folder):
    try:
        with sqlite3.connect(folder / "study.db") as connection:
            return connection.execute(
                "SELECT count(*) FROM trials JOIN trial_heartbeats USING (trial_id) WHERE state = 'RUNNING'"
            ).fetchone()[0]
    except sqlite3.Error:
        return 0


def test_two_processes_share_the_work(tmp_path):
    log = tmp_path / "log"
    children = [in_child(lambda: work(tmp_path, seconds=0.1, log=log)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    ran = log.read_text().split()
    assert sorted(ran) == sorted(set(ran))
    assert len(ran) == EXPECTED_COUNT
    with sqlite3.connect(tmp_path / "study.db") as connection:
        states = dict(connection.execute("SELECT state, count(*) FROM trials GROUP BY state"))
    assert states == {"COMPLETE": EXPECTED_COUNT}


def test_reconciling_is_idempotent(tmp_path):
    store = Store(tmp_path, SETTINGS)
    for _ in range(3):
        with module._quiet(), store._lock:
            waiting, running_now, finished = store._reconcile(plan)
        assert (waiting, running_now, finished) == (len(tune_cells(SETTINGS)), 0, [])


def test_interrupted_trial_is_run_again(tmp_path):
    def interrupted(cell):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, SETTINGS).work(interrupted, plan)
    assert len(work(tmp_path)) == EXPECTED_COUNT


def test_a_worker_that_slept_lets_its_trial_go(tmp_path):
    """Its trial was given to another one meanwhile; it must neither crash nor overwrite."""
    store, slept = Store(tmp_path, SETTINGS), []

    def train(cell):
        if not slept:
            slept.append(cell.key)
            frozen = next(t for t in store._study.get_trials() if t.state == optuna.trial.TrialState.RUNNING)
            store._storage.set_trial_state_values(frozen._trial_id, state=optuna.trial.TrialState.FAIL)
        return fake_trial(cell)

    assert len(store.work(train, plan)) == EXPECTED_COUNT


def test_other_settings_are_refused_by_name(tmp_path):
    Store(tmp_path, SETTINGS)
    with pytest.raises(StoreError, match=r"seeds = \[0, 1\], this command says \[0, 1, 2\].*--fresh.*--out"):
        Store(tmp_path, make_settings(["none", "batch"], seeds=[0, 1, 2], lrs={"2": [0.05, 0.1]}))


def test_fresh_keeps_the_old_file_aside(tmp_path):
    work(tmp_path)
    before = (tmp_path / "study.db").read_bytes()
    assert Store(tmp_path, SETTINGS, fresh=True).trials() == []
    assert (tmp_path / "study.db.bak").read_bytes() == before


@pytest.mark.parametrize("damage", ["text", "truncated", "foreign"])
def test_damaged_store_is_named_and_left_alone(tmp_path, damage):
    path = tmp_path / "study.db"
    if damage == "text":
        path.write_text("this is not a database\n" * 10)
    elif damage == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
    else:
        work(tmp_path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"study\.db cannot be used .*left as it is.*--fresh") as caught:
        work(tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_empty_file_of_a_killed_start_is_a_new_study(tmp_path):
    (tmp_path / "study.db").touch()
    assert len(work(tmp_path)) == EXPECTED_COUNT


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write to the folder"):
        Store(tmp_path / "file" / "folder", SETTINGS)


def test_optuna_says_nothing(tmp_path, capfd):
    work(tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")

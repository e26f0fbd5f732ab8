"""Nothing is lost and nothing runs twice, wherever a worker is killed."""

import collections
import os
import signal
import sqlite3
import threading
import time

import optuna
import pytest
from tiny_study import fake_trial, make_settings

from normwise.errors import StoreError
from normwise.records import STUDY_VERSION
from normwise.study import database
from normwise.study import store as module
from normwise.study.database import File
from normwise.study.plan import due, total_setups, tune_setups
from normwise.study.server import Server
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
    for kind in (File, Server):
        monkeypatch.setattr(kind, "heartbeat", 1)
        monkeypatch.setattr(kind, "grace", 2)
        monkeypatch.setattr(kind, "poll", 0.05)
        monkeypatch.setattr(kind, "poll_at_most", 0.1)


def plan(trials):
    return due(SETTINGS, trials)


def work(where, seconds=0.0, log=None):
    """Run what is open; ``log`` gets a line for each setup that was trained to its end."""

    def train(setup):
        time.sleep(seconds)
        if log is not None:
            with open(log, "a") as file:
                file.write(f"{setup.key}\n")
        return fake_trial(setup)

    return Store(where, SETTINGS).work(train, plan)


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
    return {t.setup.key: (t.valid_score, t.test_score) for t in trials}


EXPECTED_COUNT = total_setups(SETTINGS)


def states(where):
    """How many trials the database holds in each state."""
    return collections.Counter(t.state.name for t in Store(where)._study.get_trials())


def test_uninterrupted(place, tmp_path):
    log = tmp_path / "log"
    trials = work(place, log=log)
    assert len(trials) == EXPECTED_COUNT == len(set(log.read_text().split()))
    assert scores(work(place, log=log)) == scores(trials) == scores(work(None))
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
    "while enqueueing": (optuna.Study, "add_trial", 3),
    "between claim and first heartbeat": (optuna.Study, "_pop_waiting_trial_id", 0),
    "before the first heartbeat": (database.Storage, "record_heartbeat", 3),
    "between claim and its mark": (optuna.trial.Trial, "set_user_attr", 3),
    "between result and completion": (optuna.Study, "tell", 2),
    "after a few trials": (optuna.Study, "tell", 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(moment, place, tmp_path, monkeypatch):
    target, name, number = MOMENTS[moment]

    def doomed():
        if number:
            die_on_call(monkeypatch, target, name, number)
        else:
            original = getattr(target, name)
            monkeypatch.setattr(target, name, lambda *a, **k: kill_self(original(*a, **k)))
        work(place, log=tmp_path / "log")

    (tmp_path / "log").touch()
    assert os.WIFSIGNALED(os.waitpid(in_child(doomed), 0)[1])
    trials = work(place, log=tmp_path / "log")
    assert len(trials) == EXPECTED_COUNT
    ran = (tmp_path / "log").read_text().split()
    assert sorted(ran) == sorted(set(ran)), "a trial ran to its end twice"
    assert scores(trials) == scores(work(None))


def test_killed_while_training_and_while_taking_over(place, tmp_path, monkeypatch):
    child = in_child(lambda: work(place, seconds=60))
    await_running(place)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    time.sleep(3.5)  # beyond the grace period

    def dies_between_failing_and_retrying():
        monkeypatch.setattr(database.RetryHeartbeatStaleTrialCallback, "__call__", kill_self)
        work(place)

    assert os.WIFSIGNALED(os.waitpid(in_child(dies_between_failing_and_retrying), 0)[1])
    assert len(work(place, log=tmp_path / "log")) == EXPECTED_COUNT
    assert len((tmp_path / "log").read_text().split()) == EXPECTED_COUNT


def await_running(where):
    """Wait until a worker trains."""
    store, deadline = Store(where, SETTINGS), time.monotonic() + 900
    while not any(module.is_claimed(t) for t in store._study.get_trials()):
        assert time.monotonic() < deadline, "no worker has begun"
        time.sleep(0.05)


def test_processes_share_the_work(place, tmp_path):
    log = tmp_path / "log"
    children = [in_child(lambda: work(place, seconds=0.1, log=log)) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    ran = log.read_text().split()
    assert sorted(ran) == sorted(set(ran))
    assert len(ran) == EXPECTED_COUNT
    assert states(place) == {"COMPLETE": EXPECTED_COUNT}


def test_reconciling_is_idempotent(place):
    store = Store(place, SETTINGS)
    for _ in range(3):
        with module.quiet(), store._locked():
            waiting, running_now, finished = store._reconcile(plan)
        assert (waiting, running_now, finished) == (len(tune_setups(SETTINGS)), 0, [])


def test_the_queue_is_kept_short(place, monkeypatch):
    """Every claim reads what waits: a long queue would make claims slow."""
    monkeypatch.setattr(module, "_AHEAD", 2)
    assert len(work(place)) == EXPECTED_COUNT
    store = Store(place, SETTINGS, name="other")
    with module.quiet(), store._locked():
        assert store._reconcile(plan)[0] == 2


def test_what_is_not_due_any_more_is_withdrawn(place):
    store = Store(place, SETTINGS)
    with module.quiet(), store._locked():
        assert store._reconcile(plan)[0] == 4
        store._study.add_trial(module.as_frozen(SETTINGS, tune_setups(SETTINGS)[0]))  # twice
        assert store._reconcile(lambda trials: plan(trials)[:1])[0] == 1
    assert states(place) == {"WAITING": 1, "FAIL": 4}


def test_interrupted_trial_is_run_again(place):
    def interrupted(setup):
        raise KeyboardInterrupt

    for _ in range(module.DEATHS + 1):  # Given back each time, which is nobody's death.
        with pytest.raises(KeyboardInterrupt):
            Store(place, SETTINGS).work(interrupted, plan)
    trials = work(place)
    assert len(trials) == EXPECTED_COUNT
    assert all(t.state == "complete" for t in trials)


def test_a_trial_that_kills_its_workers_fails_in_the_end_and_the_rest_goes_on(place, tmp_path):
    """As a crash in native code does, or the system when a trial takes all memory: no exception, no clean-up."""
    deadly, log = tune_setups(SETTINGS)[1].key, tmp_path / "log"

    def train(setup):
        if setup.key == deadly:
            kill_self()
        with log.open("a") as file:
            file.write(f"{setup.key}\n")
        return fake_trial(setup)

    deaths = 0
    while os.WIFSIGNALED(os.waitpid(in_child(lambda: Store(place, SETTINGS).work(train, plan, floor=-7.0)), 0)[1]):
        deaths += 1
        assert deaths <= module.DEATHS
    assert deaths == module.DEATHS
    trials = {t.setup.key: t for t in Store(place, SETTINGS).trials()}
    assert len(trials) == EXPECTED_COUNT
    lost = trials.pop(deadly)
    assert (lost.state, lost.valid_score, lost.test_score) == ("failed", -7.0, -7.0)
    assert lost.reason == "3 processes died of it: out of memory, or a crash"
    assert all(t.state == "complete" for t in trials.values())
    assert sorted(log.read_text().split()) == sorted(trials), "the others ran once each"


def test_an_interrupt_while_the_heartbeat_starts_leaves_no_thread_behind(place, monkeypatch):
    start, begun = threading.Thread.start, []

    def interrupted(thread):
        start(thread)
        if "heartbeat" in thread._target.__qualname__.lower():
            begun.append(thread)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(place)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert begun
    for thread in begun:
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert len(work(place)) == EXPECTED_COUNT


def test_a_worker_that_slept_lets_its_trial_go(place):
    """Its trial was given to another one meanwhile; it must neither crash nor overwrite."""
    store, slept = Store(place, SETTINGS), []

    def train(setup):
        if not slept:
            slept.append(setup.key)
            frozen = next(t for t in store._study.get_trials() if t.state == optuna.trial.TrialState.RUNNING)
            store._storage.set_trial_state_values(frozen._trial_id, state=optuna.trial.TrialState.FAIL)
        return fake_trial(setup)

    assert len(store.work(train, plan)) == EXPECTED_COUNT


def test_other_settings_are_refused_by_name(place):
    Store(place, SETTINGS)
    with pytest.raises(StoreError, match=r"seeds = \[0, 1\], this command says \[0, 1, 2\].*--fresh.* or --"):
        Store(place, make_settings(["none", "batch"], seeds=[0, 1, 2], lrs={"2": [0.05, 0.1]}))


def test_studies_of_one_database_do_not_mix(place):
    other = make_settings(["none"], seeds=[0, 1])
    Store(place, other, name="other").work(fake_trial, lambda trials: due(other, trials))
    assert len(work(place)) == EXPECTED_COUNT
    assert len(Store(place, name="other").trials()) == total_setups(other)
    assert Store(place, name="other").settings == other
    with pytest.raises(StoreError, match=r"several studies \(other, normwise\): name one with --study"):
        Store(place, name=None)
    with pytest.raises(StoreError, match="holds no study 'third': it holds other, normwise"):
        Store(place, name="third")


def test_what_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(StoreError, match="holds no study"):
        Store(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_fresh_keeps_the_old_study_under_another_name(place):
    trials = work(place)
    for _ in range(2):
        assert Store(place, SETTINGS, fresh=True).trials() == []
    assert scores(Store(place, name="normwise.old-1").trials()) == scores(trials)
    assert Store(place, name="normwise.old-2").trials() == []


def test_a_study_of_a_newer_normwise_is_refused(place):
    Store(place, SETTINGS).note(version=STUDY_VERSION + 1)
    with pytest.raises(StoreError, match=f"has version {STUDY_VERSION + 1}.*upgrade normwise"):
        Store(place, SETTINGS)


def test_a_study_of_an_older_normwise_goes_on(place):
    """Its settings lack what has a default now, and it has no version."""
    work(place)
    study = Store(place)._study
    settings = study.user_attrs["settings"]
    del settings["tolerance"], settings["quick"]
    study.set_user_attr("settings", settings)
    assert len(work(place)) == EXPECTED_COUNT


@pytest.mark.parametrize("damage", ["text", "foreign"])
def test_what_is_not_a_study_is_named_and_left_alone(tmp_path, damage):
    path = tmp_path / "study.db"
    if damage == "text":
        path.write_text("this is not a database\n" * 10)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"study\.db cannot be used .*left as it is.*--out") as caught:
        work(tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def add_all(where, settings):
    store = Store(where, settings)
    for _ in ("tuning", "comparison"):
        store.add([fake_trial(setup, reason="?" * 2000) for setup in due(settings, store.trials())])
    return store.trials()


@pytest.mark.parametrize("damage", ["truncated", "scribbled", "header only"])
def test_a_damaged_file_is_put_aside_and_what_can_be_read_of_it_goes_on(tmp_path, damage, caplog):
    path, settings, again = tmp_path / "study.db", make_settings(seeds=range(3 if damage == "header only" else 12)), []
    trials = add_all(tmp_path, settings)
    whole = path.read_bytes()
    middle = len(whole) // 8192 * 4096
    harmed = {
        "truncated": whole[: int(len(whole) * 0.8)],
        "scribbled": whole[:middle] + b"\xff" * 8192 + whole[middle + 8192 :],
        "header only": whole[:4096] + bytes(4096),
    }[damage]
    path.write_bytes(harmed)

    def train(setup):
        again.append(setup.key)
        return fake_trial(setup)

    assert scores(Store(tmp_path, settings).work(train, lambda trials: due(settings, trials))) == scores(trials)
    assert (tmp_path / "study.db.damaged-1").read_bytes() == harmed
    (line,) = [r.getMessage() for r in caplog.records if r.name == "normwise"]
    kept = len(trials) - len(again)
    assert f"kept as study.db.damaged-1, {kept} finished trial(s) were read from it" in line
    assert kept == 0 if damage == "header only" else len(trials) // 2 < kept < len(trials)
    assert len(Store(tmp_path, settings).trials()) == len(trials)


def test_empty_file_of_a_killed_start_is_a_new_study(tmp_path):
    (tmp_path / "study.db").touch()
    assert len(work(tmp_path)) == EXPECTED_COUNT


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write to the folder"):
        Store(tmp_path / "file" / "folder", SETTINGS)


def test_optuna_says_nothing(place, capfd):
    work(place)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")

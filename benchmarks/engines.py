"""What a study costs beyond its training: the queue's overhead per trial, how it grows, what starting workers takes.

Run ``make bench-engines``; it rewrites ``results/engines.json``. Trials are made up (a stored result, or that after a
pause), so that nothing but the queue is timed, and numbers are medians: a machine with other work to do disturbs few of
the intervals, not most. PostgreSQL is one of its own, in a temporary folder on loopback, with its settings for
durability as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from postgres import Postgres, find_tools
from tiny_study import fake_trial, make_settings

from normwise.files import write_atomic
from normwise.records import Point, Settings, Setup, Trial, dumps
from normwise.study.compute import PLAIN
from normwise.study.machine import machine, versions
from normwise.study.plan import due, tune_setups
from normwise.study.store import Store

RESULTS = Path(__file__).parent.parent / "results" / "engines.json"
PAUSE = 0.5  # seconds of a trial that waits
WORKERS = (1, 2, 4)


def settings_of(trials: int) -> Settings:
    """A study of two methods with so many trials in the comparison."""
    return make_settings(["none", "batch"], seeds=range(trials // 2), lrs={"2": [0.1]})


def realistic(setup: Setup) -> Trial:
    """A result as large as a real one."""
    return fake_trial(setup, curve=[Point(k, k / 3, 0.123456789, 0.987654321) for k in range(6)], reason="?" * 500)


def timed(store: Store, settings: Settings, count: int) -> dict[str, float]:
    """The time between the starts of trials that take none themselves, and how much of it the lock was held."""
    starts: list[float] = []
    held: list[float] = []
    acquire, release = store._lock.acquire, store._lock.release

    def taken() -> None:
        acquire()
        held.append(-time.perf_counter())

    def given(force: bool = False) -> None:
        if held[-1] < 0:  # the second release of a claim frees nothing
            held[-1] += time.perf_counter()
        release(force=force)

    def train(setup: Setup) -> Trial:
        starts.append(time.perf_counter())
        if len(starts) > count:
            raise KeyboardInterrupt
        return realistic(setup)

    store._lock.acquire, store._lock.release = taken, given
    with contextlib.suppress(KeyboardInterrupt):
        store.work(train, partial(due, settings))
    between = [b - a for a, b in itertools.pairwise(starts)]
    tenths = statistics.quantiles(between, n=10)
    found = {"median": statistics.median(between), "p90": tenths[-1], "locked": statistics.median(held)}
    return {f"{name}_ms": round(seconds * 1e3, 1) for name, seconds in found.items()}


def overhead(places: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Per trial, with one worker."""
    settings, rows = settings_of(4 * count), []
    for name, where in places.items():
        rows.append({"storage": name, "trials": count} | timed(Store(where, settings), settings, count))
        print(rows[-1], flush=True)
    return rows


def fill(url: str, settings: Settings, count: int, server: Postgres) -> None:
    """Put so many finished trials of the comparison into a database, by SQL: Optuna would take minutes."""
    store = Store(url, settings)
    store.add([realistic(setup) for setup in tune_setups(settings)])
    example = json.loads(dumps(realistic(Setup("final", "none", 2, 0.1, 123456789))))
    setup, result = (json.dumps(value) for value in (example["setup"], example))
    trials = len(store.trials())
    rename = (
        "replace(replace(%s, '123456789', (n / 2)::text), '\"none\"', (array['\"none\"', '\"batch\"'])[n %% 2 + 1])"
    )
    with server.connect(url.rpartition("/")[2]) as connection:
        connection.execute(
            "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) "
            "SELECT n + %s, 1, 'COMPLETE', now(), now() FROM generate_series(0, %s) AS n",
            (trials, count - 1),
        )
        for key, text in (("setup", setup), ("result", result)):
            connection.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
                f"SELECT trial_id, %s, {rename} "
                "FROM (SELECT trial_id, number - %s AS n FROM trials WHERE number >= %s) AS new",
                (key, text, trials, trials),
            )
        connection.execute(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) "
            "SELECT trial_id, 0, 0.5, 'FINITE' FROM trials WHERE number >= %s",
            (trials,),
        )
        connection.execute("ANALYZE")


def growth(server: Postgres, sizes: list[int], count: int) -> list[dict[str, Any]]:
    """The same as a study grows: what a claim costs when so many trials are finished, and what opening it does."""
    rows = []
    for size in sizes:
        settings, url = settings_of(size + 4 * count), server.url()
        if size:
            fill(url, settings, size, server)
        began = time.perf_counter()
        store = Store(url, settings)
        finished = store.trials()
        opened = time.perf_counter() - began
        began = time.perf_counter()
        due(settings, finished)
        planned = time.perf_counter() - began
        row = {"finished": size, "open_s": round(opened, 2), "plan_ms": round(planned * 1e3, 1)}
        rows.append(row | timed(store, settings, count))
        assert len(store.trials()) >= size
        print(rows[-1], flush=True)
    return rows


def throughput(places: dict[str, Any], workers: int, seconds: float) -> list[dict[str, Any]]:
    """Trials that only wait, with several workers: their number tells what the queue lets through."""
    rows = []
    for name, make in places.items():
        where, settings = make(), settings_of(4000)
        Store(where, settings)
        told = {**os.environ, "NORMWISE_STORAGE": where}
        children = [subprocess.Popen([sys.executable, __file__, "--wait"], env=told) for _ in range(workers)]
        try:
            rate = _rate(Store(where, settings), workers, seconds)
        finally:
            for child in children:
                child.kill()
                child.wait()
        ideal = workers * 3600 / PAUSE
        rows.append({
            "storage": name,
            "workers": workers,
            "trials_per_hour": round(rate),
            "of_ideal": round(rate / ideal, 3),
        })
        print(rows[-1], flush=True)
    return rows


def wait_in(where: str) -> None:
    """What a worker of :func:`throughput` does."""
    store = Store(where)

    def train(setup: Setup) -> Trial:
        time.sleep(PAUSE)
        return realistic(setup)

    store.work(train, partial(due, store.settings))


def _rate(store: Store, workers: int, seconds: float) -> float:
    """Trials per hour from when all workers work."""
    while (
        len({t.user_attrs["claim"]["process"] for t in store._study.get_trials() if "claim" in t.user_attrs}) < workers
    ):
        time.sleep(0.1)
    before, began = len(store.trials()), time.perf_counter()
    time.sleep(seconds)
    return (len(store.trials()) - before) / (time.perf_counter() - began) * 3600


def real(places: dict[str, Any]) -> list[dict[str, Any]]:
    """The digits at batch size 32, really trained, by one, two and four processes of this machine."""
    from normwise.study import compare

    rows = []
    for name, make in places.items():
        for workers in WORKERS:
            where = make()
            to = {"storage": where} if "://" in where else {"out": where}
            began = time.perf_counter()
            study = compare(
                methods=["none", "batch", "group"],
                batch_sizes=[32],
                seeds=5,
                lrs=[0.1],
                epochs=3,
                workers=workers,
                progress=False,
                **to,
            )
            took = time.perf_counter() - began
            rows.append({
                "storage": name,
                "workers": workers,
                "trials": len(study.trials),
                "wall_s": round(took, 1),
                "trials_per_hour": round(len(study.trials) / took * 3600),
                "training_s_per_trial": round(statistics.median(t.seconds for t in study.trials), 2),
            })
            print(rows[-1], flush=True)
    return rows


def ray_start(url: str) -> dict[str, Any]:
    """How long a Ray cluster of this machine takes until a worker has begun, and from then on per trial."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # on loopback only
    import ray

    from normwise.study import compare

    began = time.perf_counter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=1)
    up = time.perf_counter() - began
    began = time.perf_counter()
    options = {"methods": ["none", "batch"], "batch_sizes": [64], "seeds": 14, "lrs": [0.1], "epochs": 0.2}
    compare(storage=url, engine="ray", progress=False, **options)
    took = time.perf_counter() - began
    ray.shutdown()
    trials = Store(url, name="digits")._study.get_trials()
    first = min(t.datetime_start for t in trials)
    own = sorted(t.datetime_start for t in trials)
    busy = [b - a for a, b in itertools.pairwise(own)]
    training = statistics.median(t.user_attrs["result"]["seconds"] for t in trials)
    between = statistics.median(gap.total_seconds() for gap in busy)
    whole = (max(t.datetime_complete for t in trials) - first).total_seconds()
    return {
        "cluster_up_s": round(up, 1),
        "study_s": round(took, 1),
        "of_which_before_the_first_trial_and_after_the_last_s": round(took - whole, 1),
        "trials": len(trials),
        "per_trial_beyond_training_ms": round((between - training) * 1e3, 1),
    }


@contextlib.contextmanager
def places() -> Iterator[tuple[Postgres, Any]]:
    with tempfile.TemporaryDirectory(prefix="normwise-bench-") as folder:
        tools = find_tools()
        assert tools is not None, "PostgreSQL is not installed: apt-get install postgresql"
        server = Postgres(tools, durable=True, place=Path(tempfile.gettempdir()))
        numbers = iter(range(1000))
        try:
            yield server, lambda: str(Path(folder) / f"study{next(numbers)}")
        finally:
            server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials")
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.wait:
        return wait_in(os.environ["NORMWISE_STORAGE"])
    load = [round(x, 1) for x in os.getloadavg()]  # of what else runs
    count, sizes, seconds = (15, [0, 1000], 5.0) if arguments.quick else (60, [0, 1000, 10_000], 15.0)
    with places() as (server, folder):
        kinds = {"SQLite": folder, "PostgreSQL": server.url}
        found = {
            "overhead": overhead({"memory": None, "SQLite": folder(), "PostgreSQL": server.url()}, count),
            "growth": growth(server, sizes, count // 2),
            "waiting": [row for n in WORKERS for row in throughput(kinds, n, seconds)],
            "real": real(kinds),
            "ray": ray_start(server.url()),
        }
    command = "PYTHONPATH=tests/study python benchmarks/engines.py" + " --quick" * arguments.quick
    about = {"command": command, "versions": versions() | _more_versions(), "machine": machine(1, PLAIN)}
    about["load_average"] = load
    settings = {"pause_s": PAUSE, "trials_timed": count, "seconds_counted": seconds}
    return write_atomic(arguments.out, json.dumps(about | {"settings": settings} | found, indent=1) + "\n")


def _more_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("ray", "psycopg", "sqlalchemy")} | {"postgresql": _postgresql()}


def _postgresql() -> str:
    tools = find_tools()
    return subprocess.run(
        [f"{tools}/postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[2]


if __name__ == "__main__":
    main()

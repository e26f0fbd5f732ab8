"""The same numbers from every engine, whatever dies meanwhile: nothing lost, nothing counted twice."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from faults import ARGUMENTS, numbers, running
from postgres import PASSWORD
from tiny_study import make_settings

from normwise import records
from normwise.errors import InputError, StoreError
from normwise.study import RayCluster, compare
from normwise.study.engines import Processes, engine_of
from normwise.study.store import Store
from normwise.study.stored import read_study
from normwise.study.worker import Job, rebuild

HERE = Path(__file__).parent
OPTIONS = ["--methods", "none,batch", "--batch-sizes", "8", "--seeds", "2", "--lrs", "0.1", "--epochs", "1.5"]
# As a user starts it, but with less patience for a dead worker, and trials that do not end while a file is there.
HELD = """
import os, time
from normwise.cli import main
from normwise.study.server import Server
from normwise.study.store import Store

Server.heartbeat, Server.grace, Server.poll_at_most = 1, 4, 1.0
work = Store.work

def hold(store, train, *rest, **more):
    def held(setup):
        while os.path.exists(os.environ["GATE"]):
            time.sleep(0.05)
        return train(setup)

    return work(store, train and held, *rest, **more)

Store.work = hold
main()
"""


@pytest.fixture(scope="module")
def expected():
    """What one process finds."""
    return numbers(compare(progress=False, **ARGUMENTS).record)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start normwise as a process that is ended with the test."""
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    with ExitStack() as stack:

        def start(*arguments):
            child = subprocess.Popen(
                [sys.executable, "-c", HELD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            return child

        yield start


def states(url):
    found = {}
    for trial in Store(url, name=None)._study.get_trials():
        found[trial.state.name] = found.get(trial.state.name, 0) + 1
    return found


def command_lines():
    """Of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return found


@pytest.mark.long
def test_worker_and_driver_killed_and_database_restarted(postgres, expected, start, tmp_path):
    url, gate, out = postgres.url(), tmp_path / "gate", tmp_path / "out"
    compare_there = ["compare", *OPTIONS, "--storage", url, "--out", str(out), "--workers"]
    gate.touch()

    driver = start(*compare_there, "1")
    first = running(url)
    worker = start("study", "work", "--storage", url)
    second = running(url, besides=[first])
    os.kill(second["process"], signal.SIGKILL)
    postgres.stop()  # as if its machine lost power
    time.sleep(1)
    postgres.start()
    assert driver.poll() is None
    driver.kill()
    said = [*driver.communicate(), *worker.communicate()]

    watching = start(*compare_there, "0")
    assert "0 of 6 trials" in watching.stderr.readline()
    helper = start("study", "work", "--storage", url, "--study", "digits")
    running(url, besides=[first, second])
    postgres.stop()
    gate.unlink()  # the trial ends while the database is away
    time.sleep(3)
    postgres.start()
    said += [*watching.communicate(), *helper.communicate()]
    assert (watching.returncode, helper.returncode) == (0, 0), said
    assert any("is away" in text for text in said)

    record = records.load_study(out / "study.json")
    assert numbers(record) == expected
    assert states(url) == {"COMPLETE": expected["count"], "FAIL": 2}
    assert numbers(read_study(url)) == expected

    pages = [path.read_text() for path in (out / "study.json", out / "report.html")]
    quoted = url.partition("ann:")[2].partition("@")[0]
    for text in [*said, *pages, repr(Job(url, "digits")), postgres.folder.joinpath("log").read_text()]:
        assert PASSWORD not in text
        assert quoted not in text
    assert "--storage 'postgresql://ann:***@127.0.0.1:" in record.command


def test_workers_of_this_machine_are_not_told_the_password_on_their_command_line(postgres, expected, monkeypatch):
    url, seen = postgres.url(), []
    monkeypatch.setattr(Store, "note", lambda self, _note=Store.note, **given: (_note(self, **given), seen.clear()))

    class Watch(Processes):
        def start(self, job, trials):
            seen.extend(command_lines())
            return super().start(job, trials)

    study = compare(storage=url, engine=Watch(3), progress=False, **ARGUMENTS)
    seen.extend(command_lines())
    assert numbers(study.record) == expected
    assert not [line for line in seen if url.partition("ann:")[2].partition("@")[0] in line]
    assert states(url) == {"COMPLETE": expected["count"]}


@pytest.mark.long
def test_ray_cluster_loses_a_worker_and_a_node(postgres, expected, tmp_path):
    target = tmp_path / "came-out.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "PYTHONWARNINGS": "ignore"}
    url = postgres.url()
    done = subprocess.run(
        [sys.executable, str(HERE / "ray_scenario.py"), url, str(target)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    came_out = json.loads(target.read_text())
    assert set(came_out["said"]) == {"worker", "node"}, done.stderr
    assert "cannot share a file: add --storage postgresql://" in came_out["refused"]
    assert came_out["numbers"] == json.loads(json.dumps(expected))
    assert states(url) == {"COMPLETE": expected["count"], "FAIL": 2}
    assert PASSWORD not in done.stdout + done.stderr


DEADLY = """
import os
import signal

import torch
from torch import nn


def make_model(norm):
    # One trial of all: as a crash in native code does, or the system when memory runs out.
    if isinstance(norm(8), nn.GroupNorm) and torch.initial_seed() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    layers = [nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers)
"""
IMPATIENT = """
from normwise.cli import main
from normwise.study.database import File

File.grace = 3
main()
"""


def ancestors(process):
    """The numbers of a process and of those that it descends from."""
    while process > 1:
        yield process
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def listening(root):
    """Where a process and its descendants listen: (address, name of the process)."""
    listed = subprocess.run(["ss", "-ltnup"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(\S+):\d+ +\S+:\* +users:\(\(\"([^\"]+)\",pid=(\d+)", listed)
    return {(address, name) for address, name, process in found if root in ancestors(int(process))}


@pytest.mark.skipif(not shutil.which("ss"), reason="needs ss, of iproute2, to see who listens")
def test_ray_without_an_address_starts_a_cluster_that_only_this_machine_reaches(expected, start, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    child, seen = start("compare", *OPTIONS, "--engine", "ray", "--out", str(tmp_path / "out")), set()
    while child.poll() is None:
        seen |= listening(child.pid)
        time.sleep(0.2)
    assert child.returncode == 0, child.communicate()
    assert numbers(records.load_study(tmp_path / "out" / "study.json")) == expected
    assert {"gcs_server", "raylet"} <= {name for _, name in seen}
    assert {address for address, _ in seen} <= {"127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"}


def test_a_cluster_that_would_listen_on_the_network_is_not_started(monkeypatch, tmp_path):
    imported = ModuleType("ray")
    imported.__spec__, imported.is_initialized = ModuleSpec("ray", None), lambda: False
    monkeypatch.setitem(sys.modules, "ray", imported)
    monkeypatch.setattr("normwise.study.engines._cluster_runs", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    with pytest.raises(InputError, match=r"ray is imported already.*call ray\.init\(\) yourself before, or set RAY"):
        compare(out=tmp_path, engine="ray", progress=False, **ARGUMENTS)


@pytest.mark.long
def test_a_trial_that_kills_its_workers_is_given_up_and_the_verdict_says_so(tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    out = tmp_path / "out"
    options = ["--methods", "none,group", "--batch-sizes", "8", "--seeds", "3", "--lrs", "0.1", "--epochs", "0.2"]
    command = [sys.executable, "-c", IMPATIENT, "compare", f"{tmp_path}/deadly.py:make_model", *options]
    codes, said = [], ""
    while not codes or codes[-1] < 0:  # The process that was started works, too, and may be the one that dies.
        assert len(codes) < 4
        done = subprocess.run(
            [*command, "--out", str(out), "--workers", "3"], capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
        said += done.stderr
    assert codes[-1] == 0, said
    # Each death took the process that was started, or one of its workers, which was then replaced.
    assert codes.count(-signal.SIGKILL) + said.count("signal 9 ended a worker; another takes its place") >= 1
    record = records.load_study(out / "study.json")
    assert record.finished
    (lost,) = (t for t in record.trials if t.state != "complete")
    assert (lost.setup.method, lost.setup.stage, lost.setup.seed) == ("group", "final", 1)
    why = " ".join(record.verdicts[0].why)
    assert "Group failed in 1 of 3 runs: 3 processes died of it: out of memory, or a crash." in why
    assert "Group failed in 1 of 3 runs" in (out / "report.html").read_text()


def test_a_task_that_cannot_be_rebuilt_is_refused(tmp_path):
    settings = make_settings()
    with pytest.raises(StoreError, match=r"its model was handed over in Python.*compare\(\.\.\., workers=N\)"):
        rebuild(Store(tmp_path, settings))
    store = Store(tmp_path, settings)
    store.note(source="digits")
    with pytest.raises(StoreError, match=r"digits gives splits = .* here, the study has .*same versions of the model"):
        Job(tmp_path, "normwise")()


def test_engines_are_checked(tmp_path):
    with pytest.raises(InputError, match="unknown engine 'slurm': expected one of processes, ray"):
        engine_of("slurm")
    with pytest.raises(InputError, match="workers must be at least 1 where nobody else"):
        compare(workers=0, out=tmp_path, **ARGUMENTS)
    with pytest.raises(InputError, match="on a Ray cluster workers must be at least 1, got 0"):
        RayCluster(0)
    with pytest.raises(InputError, match="needs CPUs or GPUs"):
        RayCluster(cpus=0)

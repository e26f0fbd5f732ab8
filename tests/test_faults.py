"""Whatever the user's own code, data or terminal does: one line and exit code 2."""

import http.client
import importlib.machinery
import json
import os
import re
import socket
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import normwise
from normwise import cli, records
from normwise.errors import InputError, blaming, described
from normwise.report import live
from normwise.study import children, engines

MINE = """
import sys
import torch
from torch import nn

class Tupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()
    def forward(self, x):
        return self.inner(x), x

class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.norm, self.error = nn.BatchNorm2d(3), error
    def forward(self, x):
        raise self.error

def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
def tupled(): return Tupled()
def leaves(): return Raising(SystemExit(7))
def raises(): return Raising(KeyError("mine"))
def exits(): sys.exit(0)
def data(): return [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
def wide(): return [(torch.randn(4, 3, 8, 8), torch.zeros(4, 9, dtype=torch.long)) for _ in range(3)]
def bare(): return [torch.randn(4, 3, 8, 8) for _ in range(3)]
def tensors(): return torch.randn(90, 3, 8, 8), torch.arange(90) % 2
def ends():
    yield data()[0]
    raise OSError("the disk is gone")
def bad_loss(*_): raise ZeroDivisionError("mine")
def leaving_loss(*_): sys.exit(5)
def no_loss(*_): return 3.0
def make(norm): return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Flatten(), nn.Linear(144, 2))
def make_badly(norm): return nn.Linear("a", 2)
def bad_optimizer(model, lr=0.1): raise ValueError("mine")
"""
TINY = [
    "--methods",
    "none,batch",
    "--batch-sizes",
    "8",
    "--seeds",
    "2",
    "--lrs",
    "0.1",
    "--epochs",
    "0.3",
    "--workers",
    "1",
]

COMPARE = "compare mine.py:make --data mine.py:tensors"
DIVIDED = "ZeroDivisionError: mine (at mine.py:"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine", None)


def failed(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert re.fullmatch(r"normwise: error: [^\n]+\n", said), said
    return said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("diagnose mine.py:net --data mine.py:data --loss mine.py:bad_loss", DIVIDED),
        ("diagnose mine.py:net --data mine.py:data --loss mine.py:leaving_loss", "loss leaving_loss failed"),
        ("diagnose mine.py:net --data mine.py:data --loss mine.py:no_loss", "tensor with one element, got float"),
        ("diagnose mine.py:net --data mine.py:wide --loss cross_entropy", "(4, 2) float32 and the target (4, 9)"),
        ("diagnose mine.py:net --data mine.py:bare --loss cross_entropy", "the batches hold no target"),
        ("diagnose mine.py:tupled --data mine.py:data --loss cross_entropy", "the model gives more than a tensor"),
        ("diagnose mine.py:net --data mine.py:data --loss relu", "unknown loss 'relu'"),
        ("diagnose mine.py:net --data mine.py:ends", "the loader failed: OSError: the disk is gone (at mine.py:"),
        ("diagnose mine.py:leaves --data mine.py:data", "does not run on the first batch: SystemExit: 7"),
        ("diagnose mine.py:exits --data mine.py:data", "mine.py:exits failed: SystemExit: 0"),
        ("inspect mine.py:raises --fail-on fatal", "unknown severity"),
        ("convert mine.py:raises --to group --input-shape 2,3,8,8", "KeyError: 'mine' (at mine.py:"),
        ("advise mine.py:raises --input-shape 2,3,8,8", "KeyError: 'mine' (at mine.py:"),
        ("calibrate mine.py:net --data mine.py:ends", "OSError: the disk is gone (at mine.py:"),
        ("compare mine.py:make_badly --data mine.py:tensors", "(at mine.py:"),
        ("compare mine.py:make --data mine.py:exits", "mine.py:exits failed: SystemExit: 0"),
        (COMPARE + " --loss mine.py:bad_loss", DIVIDED),
        (COMPARE + " --loss mine.py:leaving_loss", "SystemExit: 5 (at mine.py:"),
        (COMPARE + " --metric mine.py:bad_loss", DIVIDED),
        (COMPARE + " --optimizer mine.py:bad_optimizer", "ValueError: mine (at mine.py:"),
        (COMPARE + " --augment mine.py:bad_loss", DIVIDED),
    ],
)  # fmt: skip
def test_what_the_users_code_raises_is_one_line(place, capsys, arguments, message):
    given = arguments.split()
    assert message in failed(capsys, *given, *(TINY if given[0] == "compare" else []))


def test_what_nobody_foresaw_is_one_line_and_can_be_seen_whole(place, capsys, monkeypatch):
    monkeypatch.setattr("normwise.methods.METHODS", 3)
    assert "TypeError" in failed(capsys, "methods")
    monkeypatch.setenv("NORMWISE_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        cli.main(["methods"])
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_goes_through():
    with pytest.raises(KeyboardInterrupt), blaming("nothing"):
        raise KeyboardInterrupt
    assert described(ValueError()) == "ValueError"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_terminal_will_do(place, encoding):
    settings = records.Settings("tâche √", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
    study = records.Study("Büro 東京 \ud800", "", "", settings, {}, {}, [], [], [], 0.0)
    Path("study.json").write_text(json.dumps(records.to_dict(study)))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    start = [sys.executable, "-c", "from normwise.cli import main; main()"]
    for arguments in (["report", "."], ["--help"], ["methods"], ["compare", "--help"], ["claims", "list"],
                      ["study", "export", "."], ["report", "東京"]):  # fmt: skip
        done = subprocess.run([*start, *arguments], env=environment, capture_output=True, check=False)
        assert done.returncode == (2 if arguments[-1] == "東京" else 0), done.stderr
        assert b"Traceback" not in done.stderr
        if "export" in arguments:
            # latin-1 has the ü; what it lacks is written as JSON has it.
            assert json.loads(done.stdout.decode(encoding))["title"] == study.title


def test_a_reader_that_goes_away_is_no_fault(place):
    program = "import sys; sys.argv[0] = 'normwise'; from normwise.cli import main; main(['methods'])"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


def nothing_ahead(study):
    return live.Ahead(0, 0.0)


@pytest.fixture
def address():
    settings = records.Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
    study = records.Study("T", "", "", settings, {}, {}, [], [], [], 0.0)
    with live.serving(lambda: study, ahead=nothing_ahead) as where:
        yield live.LOOPBACK, int(where.rpartition(":")[2].strip("/"))


@pytest.mark.parametrize(
    ("host", "path", "status"), [("[::1", "/", 403), ("localhost", "//[", 404), ("localhost", "/", 200)]
)
def test_a_request_that_is_none_is_refused_in_silence(address, capfd, host, path, status):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()
    assert capfd.readouterr().err == ""


def test_a_browser_that_goes_away_says_nothing_on_the_terminal(address, capfd):
    for text in (b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", b"GET / HT", b"\xff\xfe\r\n\r\n"):
        with socket.create_connection(address) as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset at once
            browser.sendall(text)
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", "/", headers={"Host": "localhost"})
    assert connection.getresponse().status == 200
    connection.close()
    assert capfd.readouterr().err == ""


def test_a_study_that_cannot_be_drawn_is_said_to_the_browser(capfd):
    def broken():
        raise KeyError("batch")

    with live.serving(broken, ahead=nothing_ahead) as where:
        connection = http.client.HTTPConnection(where.removeprefix("http://").strip("/"), timeout=30)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, b"KeyError: 'batch'" in answer.read()) == (500, True)
        connection.close()
    assert capfd.readouterr().err == ""


def test_losses_by_name_and_what_is_none():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    batches = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)) for _ in range(2)]
    by_name, by_function = (
        normwise.diagnose(model, batches, loss) for loss in ("cross_entropy", nn.CrossEntropyLoss())
    )
    assert [f.code for f in by_name.findings] == [f.code for f in by_function.findings]
    for loss, message in (
        (nn.CrossEntropyLoss, "give one of it"),
        (3, "must be a function"),
        ("l1_los", "did you mean 'l1_loss'"),
    ):
        with pytest.raises(InputError, match=message):
            normwise.diagnose(model, batches, loss)


def test_a_ray_cluster_that_does_not_start_is_one_line(monkeypatch):
    def init(*_, **__):
        raise Exception("The current node timed out during startup.\nMore of it.")  # as Ray does

    fake = types.ModuleType("ray")
    fake.__spec__ = importlib.machinery.ModuleSpec("ray", None)
    fake.init, fake.is_initialized, fake.shutdown = init, lambda: False, lambda: None
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv(engines._ON_NETWORK, "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "_cluster_runs", lambda: False)
    said = r"cannot start a Ray cluster on this machine: .* timed out during startup\.$"
    with pytest.raises(InputError, match=said), engines._connected(None):
        pass


def test_a_worker_that_fails_says_so_in_one_line(capfd):
    with children.started([partial(int, "three")]) as started:
        started[0].wait(60)
    assert started[0].returncode == 1
    assert re.fullmatch(r"normwise: a worker ended: ValueError: [^\n]*\n", capfd.readouterr().err)


class Few:
    def add_scalar(self, tag):
        """Take too little."""


def test_watch_looks_at_what_it_is_given(tmp_path):
    (tmp_path / "file").write_text("mine")
    model = nn.BatchNorm1d(2)
    for writer in (3, object(), Few(), Few, str(tmp_path / "file")):
        with pytest.raises(InputError, match=r"writer is|add_scalar of Few|cannot write scalars"):
            normwise.watch(model, writer=writer)
    for wrong in ({"every": "3"}, {"every": 0}, {"run_length": -1}, {"optimizer": 3}):
        with pytest.raises(InputError, match=r"must be|expected optimizer"):
            normwise.watch(model, **wrong)
    normwise.watch(model, writer=tmp_path / "new")._scalars.close()

"""``normwise diagnose`` as a person meets it, and the redrawing of what it stored."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from normwise.cli import app
from normwise.errors import NormwiseError
from normwise.findings import load_diagnosis

HERE = Path(__file__).parent
NETS = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import torch
from nets import healthy, images

def good(): return healthy()
def bad():
    model = healthy()
    model[4].running_mean.add_(3 * model[4].running_var.sqrt())
    return model
def batches(): return images(3)
def nothing(): return []
def unfit(): return [torch.zeros(2, 7, 8, 8)]
def mine(output, target): return torch.nn.functional.cross_entropy(output, target)
def wrong(output, target): return output
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    yield tmp_path
    sys.modules.pop("mine", None)


def run(*arguments):
    app(arguments, exit_on_error=False, print_error=False, result_action="return_value")


def test_findings_fixes_and_exit_code(place, capsys):
    arguments = ["diagnose", "mine.py:bad", "--data", "mine.py:batches", "--loss", "cross_entropy"]
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, "--fail-on", "error", "--out", "found.json")
    assert stopped.value.code == 1
    text = capsys.readouterr().out
    assert "error  train-eval-gap" in text
    assert "normwise.calibrate(model, loader)" in text
    command = "normwise calibrate mine.py:bad --data mine.py:batches --out mended.pt"
    assert command in text
    assert "the fix moves the outputs in evaluation by" in text
    for explained in ("mean off: how far running means are from batch means", "mean moved: how far one step"):
        assert explained in " ".join(text.split())
    run(*shlex.split(command)[1:])
    run("diagnose", "mine.py:bad", "mended.pt", *arguments[2:], "--fail-on", "warning")
    stored = load_diagnosis("found.json")
    assert {f.code for f in stored.findings} == {"train-eval-gap", "statistics-disagree"}
    run("report", "found.json")
    assert "train-eval-gap" in capsys.readouterr().out
    assert "train-eval-gap" in (place / "found.html").read_text()


def test_a_healthy_model_passes(place, capsys):
    run(
        "diagnose", "mine.py:good", "--data", "mine.py:batches", "--loss", "mine.py:mine", "--fail-on", "info", "--json"
    )
    assert json.loads(capsys.readouterr().out)["findings"] == []
    run("diagnose", "mine.py:good", "--data", "mine.py:batches", "--steps", "1", "--out", "page.html")
    assert "nothing found" in capsys.readouterr().out
    assert (place / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py:good", "--data", "mine.py:nothing"], "the loader gave no batch"),
        (["mine.py:good", "--data", "mine.py:other"], "has no attribute 'other'"),
        (["mine.py:good", "--data", "mine.py:batches", "--loss", "cros_entropy"], "has no such function"),
        (["mine.py:good", "--data", "mine.py:batches", "--loss", "mine.py:wrong"], "loss must give a tensor with one"),
        (["mine.py:good", "--data", "mine.py:batches", "--steps", "0"], "steps must be at least 1"),
        (["mine.py:good", "--data", "mine.py:batches", "--fail-on", "fatal"], "unknown severity"),
        (["mine.py:good", "--data", "mine.py:unfit"], "does not run on the first batch"),
    ],
)
def test_mistakes_are_one_clear_error(place, arguments, message):
    with pytest.raises(NormwiseError) as error:
        run("diagnose", *arguments)
    assert message in " ".join(str(error.value).split())


def test_redrawing_needs_no_torch(place):
    run("diagnose", "mine.py:good", "--data", "mine.py:batches", "--out", "found.json")
    program = (
        "import sys\n"
        "from normwise.cli import app\n"
        "app(['report', 'found.json'], exit_on_error=False, result_action='return_value')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_torch():
    program = (
        "import sys\n"
        "from normwise.cli import app\n"
        "try: app(['diagnose', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--fail-on" in done.stdout

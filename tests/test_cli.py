"""The command line as a person meets it."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest

import normwise
from normwise import cli, records
from normwise.errors import NormwiseError

TINY = ["--methods", "none,batch", "--batch-sizes", "64", "--seeds", "2", "--lrs", "0.1", "--epochs", "0.6"]


PROJECT = Path(__file__).parents[1] / "examples" / "my_project.py"


def command(*arguments):
    return [sys.executable, "-c", "from normwise.cli import main; main()", *arguments]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, **options)


def refused(capsys, *arguments):
    """Run in this process; give the one line on standard error."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("normwise: error: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["fold", "--help"], ["--version"], ["report", "nowhere"]]
)
def test_help_needs_no_torch(arguments):
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from normwise.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: pass\n"
        "print(time.perf_counter() - start, file=sys.stderr)\n"
        "assert 'torch' not in sys.modules\n"
        # What a database holds is Optuna's to read; help reads nothing.
        "assert 'report' in sys.argv or 'optuna' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(arguments, "took", done.stderr.splitlines()[-1], "s")


def test_env_says_what_is_in_use(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["env"])
    assert stopped.value.code == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["normwise"].strip() == normwise.__version__
    # Where the kernels are built, so is what reaches them: `make` does both.
    assert (facts["native kernels"].strip() == "in use") == (facts["autograd"].strip() == "in C++")


def test_env_for_a_bug_report(capsys):
    with pytest.raises(SystemExit):
        cli.main(["env", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["normwise"] == normwise.__version__
    assert {"system", "torch", "native kernels"} <= set(facts)
    assert facts["packages"]["cyclopts"] == metadata.version("cyclopts")
    assert not {"normwise", "torch"} & set(facts["packages"])


def test_a_typo_names_all_commands(capsys):
    line = refused(capsys, "comapre")
    assert 'Did you mean "compare"?' in line
    for command_ in ("advise", "calibrate", "claims", "compare", "completion", "convert", "diagnose", "env", "fold"):
        assert f" {command_}" in line
    assert "Commands: list, " in refused(capsys, "study", "lits")


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "normwise", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, normwise.__version__)


def test_bash_completes_commands_and_options(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    script = run("completion", "bash")
    assert script.returncode == 0, script.stderr
    (tmp_path / "normwise").write_text(script.stdout)

    def completed(*words):
        typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        program = f'source "{tmp_path / "normwise"}"; {typed}; _normwise; printf "%s\\n" "${{COMPREPLY[@]}}"'
        return subprocess.run([bash, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert completed("normwise", "comp") == ["compare", "completion"]
    assert "--batch-sizes" in completed("normwise", "compare", "--ba")


def test_completion_is_installed(tmp_path):
    home = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = run("--install-completion", env=home)
    assert done.returncode == 0, done.stderr
    assert any("_normwise" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


@pytest.fixture
def asked(monkeypatch):
    """What the command line asks of compare, without training."""
    from normwise.study import comparison

    def compare(*args, **given):
        found.update(given)
        raise NormwiseError("asked")

    found = {}
    monkeypatch.setattr(comparison, "compare", compare)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--methods batch --methods group(num_groups=4),layer", {"methods": ["batch", "group(num_groups=4)", "layer"]}),
        ("--batch-sizes 8", {"batch_sizes": [8]}),
        ("--batch-sizes 2,8 --batch-sizes 32", {"batch_sizes": [2, 8, 32]}),
        ("--seeds 3", {"seeds": 3}),
        ("--seeds 3,", {"seeds": [3]}),
        ("--seeds 1 --seeds 2", {"seeds": [1, 2]}),
        ("--lrs 0.1 --lrs 0.2,0.3", {"lrs": [0.1, 0.2, 0.3]}),
        ("--quick --epochs 2", {"quick": True, "epochs": 2.0, "batch_sizes": (2, 32)}),
    ],
)
def test_lists_and_single_values_alike(asked, capsys, options, expected):
    refused(capsys, "compare", *options.split())
    assert expected.items() <= asked.items()


@pytest.mark.parametrize("verb", ["inspect", "convert", "fold", "calibrate"])
def test_surgery_refuses_what_is_not_there_in_one_line(capsys, verb):
    needed = {"convert": ["--to", "group"], "calibrate": ["--data", "nowhere:data"]}.get(verb, [])
    assert "nowhere" in refused(capsys, verb, "nowhere:model", *needed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "bacth"], "did you mean 'batch'?"),
        (["--methods", "batch,group(num_groups=4,eps=one)"], "group(num_groups=4,eps=one): "),
        (["--data", "digts"], "did you mean 'digits'?"),
        (["--data", "fashion-mnist:/nowhere"], "no Fashion-MNIST in /nowhere"),
        (["--batch-sizes", "0"], "at least 1, got 0"),
        (["--batch-sizes", "2,4096"], "larger than the training data (1077 samples)"),
        (["--batch-sizes", "two"], "--batch-sizes must be whole numbers"),
        (["--seeds", "1"], "at least 2"),
        (["--lrs", "-1"], "learning rates"),
        (["--epochs", "0"], "epochs"),
        (["--workers", "0"], "workers"),
        (["--quick", "--epochs", "0"], "epochs must be"),
        (
            ["--batch-sizes", "2", "--batch-sizes", "x"],
            "--batch-sizes must be whole numbers separated by commas, got '2,x'",
        ),
        (["--lrs", "0.1,fast"], "--lrs must be numbers separated by commas"),
        (["--precision", "8"], 'Choose from: "32", "bf16", "16"'),
        (["--sedes", "3"], "--sedes"),
        (["--methods", "as_is"], "as_is is for models with layers of their own"),
        (["--data", "digits:folder"], "unknown data set 'digits:folder'"),
        (["--data", "japanese-vowels:/nowhere"], "no JapaneseVowels_TRAIN.ts in /nowhere"),
        (["--data", "austen:/nowhere"], "no novels in /nowhere"),
        (["--data", "textures:wood"], "unknown texture 'wood'"),
        (["nowhere.py:make_model"], "cannot find nowhere.py: no such file"),
        (["nowhere"], "cannot find 'nowhere': expected module:callable"),
        ([f"{PROJECT}:no_model"], "has no attribute 'no_model'"),
        ([f"{PROJECT}:make_model", "--loss", "cross_entrpy"], "did you mean 'cross_entropy'"),
        ([f"{PROJECT}:make_model", "--optimizer", "adm"], "unknown optimizer 'adm': did you mean 'Adam'"),
        ([f"{PROJECT}:make_model", "--optimizer", "LBFGS"], "LBFGS runs the model several times a step"),
        ([f"{PROJECT}:make_model", "--loss", f"{PROJECT}:make_data"], "must take (output, target) or (model, batch)"),
        ([f"{PROJECT}:make_model", "--metric", "acuracy"], "did you mean 'accuracy'"),
        ([f"{PROJECT}:make_model", "--accumulate", "0"], "accumulate"),
        ([f"{PROJECT}:make_model", "--optimizer", f"{PROJECT}:loss"], "missing 1 required positional argument"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, message):
    assert message in refused(capsys, "compare", "--out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_bad_folders_and_stores(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "cannot write to the folder" in refused(capsys, "compare", *TINY, "--out", str(file / "x"))
    store = tmp_path / "study.db"
    store.write_text("something else entirely")
    assert "left as it is" in refused(capsys, "compare", *TINY, "--out", str(tmp_path))
    assert store.read_text() == "something else entirely"
    (tmp_path / "study.json").write_text("{")
    assert "not JSON" in refused(capsys, "report", str(tmp_path))
    assert "cannot read" in refused(capsys, "report", str(tmp_path / "none.json"))


def finished(folder):
    try:
        with sqlite3.connect(folder / "study.db") as connection:
            return connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    except sqlite3.Error:
        return 0


def scores(folder):
    study = records.load_study(folder / "study.json")
    return {t.setup.key: (t.valid_score, t.test_score, t.valid_loss, t.test_loss) for t in study.trials}


def test_killed_and_resumed_gives_the_same_numbers(tmp_path):
    """Killed -9 with two workers, resumed with the same command: same scores, no trial finished twice, no orphan."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = ["compare", *TINY, "--workers", "2", "--out"]
    process = subprocess.Popen(command(*arguments, str(killed)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while finished(killed) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = finished(killed)
    assert kept >= 2
    resumed = run(*arguments, str(killed))
    assert resumed.returncode == 0, resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert "6 of 6 trials done" in resumed.stderr
    assert str(killed / "report.html") in resumed.stdout
    assert "At batch size 64" in " ".join(resumed.stdout.split())
    uninterrupted = run("compare", *TINY, "--workers", "1", "--out", str(whole))
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert scores(killed) == scores(whole)
    assert finished(killed) == finished(whole) == 6
    again = run("report", str(killed), "--out", str(tmp_path / "again.html"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.html").read_text() == (killed / "report.html").read_text()
    record = json.loads((whole / "study.json").read_text())
    assert record["command"].startswith("normwise compare --methods none,batch")
    other = run("compare", *TINY[:5], "3", *TINY[6:], "--out", str(whole))
    assert other.returncode == 2
    assert "--fresh" in other.stderr


def test_a_project_of_ones_own(tmp_path):
    """The example's model, data, loss, metric, optimizer and augmentation, in two processes."""
    parts = ["--data", f"{PROJECT}:make_data", "--out", str(tmp_path)]
    for name, function in (("optimizer", "make_optimizer"), *((n, n) for n in ("loss", "metric", "augment"))):
        parts += [f"--{name}", f"{PROJECT}:{function}"]
    few = ["--methods", "batch,group(num_groups=4)", "--batch-sizes", "64", "--seeds", "2", "--epochs", "0.5"]
    few += ["--tune-seeds", "1"]
    done = run("compare", f"{PROJECT}:make_model", *parts, *few, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "group(num_groups=4): BatchNorm2d → GroupNorm (2)" in done.stdout
    assert "Traceback" not in done.stderr
    study = records.load_study(tmp_path / "study.json")
    assert {t.state for t in study.trials} == {"complete"}
    assert study.settings.optimizer == "own: make_optimizer"
    assert study.settings.score_name == "metric"


def test_a_study_is_seen_while_it_runs(tmp_path):
    """A browser's view of a running study: the page of its trials so far, asked for again until it is finished."""
    arguments = ["compare", "--methods", "none", "--batch-sizes", "64", "--seeds", "50", "--serve", "0", "--out"]
    process = subprocess.Popen(
        command(*arguments, str(tmp_path), "--workers", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(line for line in process.stderr if line.startswith("live report at")).split()[-1]
        deadline = time.monotonic() + 900
        while finished(tmp_path) < 1 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with urllib.request.urlopen(address, timeout=300) as answer:
            page = answer.read().decode()
            assert answer.headers["Refresh"]
        assert re.search(r"Live</strong> \d+ of \d+ trials (is|are) done", page)
    finally:
        process.kill()
        process.communicate()
    stored = subprocess.Popen(
        command("report", str(tmp_path), "--serve", "0"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        address = stored.stderr.readline().split()[-1]
        with urllib.request.urlopen(address, timeout=300) as answer:
            assert "this page loads itself anew" in answer.read().decode()
    finally:
        stored.kill()
        stored.communicate()


def test_interrupt_says_how_to_resume(tmp_path):
    arguments = ["compare", "--methods", "none", "--workers", "1", "--seeds", "50", "--out", str(tmp_path)]
    # A suite that runs in the background hands on an ignored SIGINT, which a terminal never does.
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 900
    while finished(tmp_path) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert f"Resume with: normwise compare --methods none --workers 1 --seeds 50 --out {tmp_path}" in errors
    assert "Traceback" not in errors
    assert os.path.exists(tmp_path / "study.db")

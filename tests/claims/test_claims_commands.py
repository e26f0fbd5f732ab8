"""``normwise claims`` as a person meets it."""

import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from claims_samples import answer, record

from normwise import cli, outcomes, report
from normwise.claims import CLAIMS
from normwise.records import dumps
from normwise.report._claims_view import summary


def main(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return stopped.value.code


def test_list(capsys):
    assert main("claims", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == list(CLAIMS)
    assert main("claims", "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in rows] == [claim.number for claim in CLAIMS.values()]
    assert all(row["hypotheses"] and row["source"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "smal-batches"], "did you mean 'small-batches'?"),
        (["run"], "name a claim, or all"),
        (["run", "memory", "--workers", "0"], "workers must be at least 1"),
        (["run", "memory", "--minutes", "0"], "minutes must be above 0"),
        (["run", "memory", "--frech"], "--frech"),
        (["report", "nowhere"], "cannot read the claims nowhere"),
        (["docs", "nowhere.json"], "cannot read the claims nowhere.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("claims", *arguments) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_said_before_anything_is_run(capsys, tmp_path, monkeypatch):
    from normwise.claims import tasks
    from normwise.study.tasks import load_task

    tasks.fashion.cache_clear()
    monkeypatch.setattr(tasks, "load_task", lambda name: load_task("fashion-mnist:/nowhere"))
    assert main("claims", "run", "memory", "--out", str(tmp_path / "out")) == 2
    assert "no Fashion-MNIST in /nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_run_prints_verdicts_and_writes_files(small_data, capsys, tmp_path):
    assert main("claims", "run", "memory", "--quick", "--workers", "1", "--out", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert "5 Batch norm has to store statistics" in said.out
    assert "memory: to 3 seeds" in said.err
    stored = outcomes.load_claims(tmp_path / "claims.json")
    assert stored.outcomes[0].trials == 21
    (tmp_path / "claims.html").unlink()
    assert main("claims", "report", str(tmp_path)) == 0
    assert (tmp_path / "claims.html").exists()
    page = tmp_path / "claims.md"
    assert main("claims", "docs", str(tmp_path), "--out", str(page)) == 0
    assert page.read_text() == report.claims_markdown(stored)


def test_drawing_needs_no_torch(tmp_path):
    (tmp_path / "claims.json").write_text(dumps(record()))
    program = (
        "import sys\nfrom normwise.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert 'torch' not in sys.modules and 'optuna' not in sys.modules"
    )
    for verb in (["report"], ["docs", "--out", str(tmp_path / "claims.md")], ["--help"]):
        arguments = ["claims", *verb, *([str(tmp_path)] if verb != ["--help"] else [])]
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_what_users_hand_over_is_escaped():
    page = report.claims_html(record())
    assert "<script>alert(1)</script>" not in page
    assert "<b>a point</b>" not in page
    assert "A &lt;script&gt;alert(1)&lt;/script&gt; claim" in page
    for expected in ("2.5 points", "[1.5 to 4.0]", "≥ 1 points", "11 points", "final/batch failed", "Quick runs"):
        assert expected in page


@pytest.mark.long
def test_killed_and_resumed(tmp_path):
    """A run that is killed goes on where it was, and ends as one that was not."""
    arguments = ["claims", "run", "layer-any-batch", "--quick", "--workers", "2"]

    def start(folder):
        program = [sys.executable, "-c", "from normwise.cli import main; main()", *arguments, "--out", str(folder)]
        return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    killed = start(tmp_path / "killed")
    database = tmp_path / "killed" / "experiments" / "one-sample-quick"
    deadline = time.monotonic() + 900
    while not database.exists() or finished(database) < 1:
        assert time.monotonic() < deadline, killed.stderr.read()
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert outcomes.load_claims(tmp_path / "killed" / "claims.json").outcomes[0].trials < 2 * 2 * 3
    for folder in ("killed", "whole"):
        done = start(tmp_path / folder)
        _, errors = done.communicate()
        assert done.returncode == 0, errors
    first, second = (outcomes.load_claims(tmp_path / folder / "claims.json") for folder in ("killed", "whole"))
    assert first.outcomes[0].answers == second.outcomes[0].answers
    assert first.outcomes[0].trials == second.outcomes[0].trials == 2 * 2 * 3


def finished(folder):
    """Count the finished trials in an experiment's store without disturbing it."""
    path = folder / "study.db"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        try:
            return connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def test_one_sentence_says_which_parts_hold():
    def said(*verdicts):
        answers = [answer(verdict=v, brief=f"part {k}") for k, v in enumerate(verdicts)]
        return summary(dataclasses.replace(record().outcomes[0], answers=answers))

    holds, fails, undecided = outcomes.HOLDS, outcomes.FAILS, outcomes.UNDECIDED
    assert said(holds, holds) == "Holds in all 2 parts"
    assert said(fails, fails) == "Holds in none of 2 parts"
    assert said(undecided) == "Undecided in all 1 part"
    assert said(holds, fails, holds) == "Holds in 2 of 3 parts: part 0, part 2; not: part 1"
    assert said(undecided, fails) == "Holds in 0 of 2 parts; not: part 1; open: part 0"

"""What a person does first: install it, ask for help, run the README's commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normwise.records import load_study

ROOT = Path(__file__).parents[1]
SIX = {"batch", "layer", "weight", "instance", "group", "switchable"}


def run(*command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def test_installing_does_not_touch_an_installed_torch(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # --dry-run resolves everything as a real install would, and changes nothing.
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-build-isolation"]
    done = run(*pip, "--report", str(report), ".")
    assert done.returncode == 0, done.stderr
    planned = {item["metadata"]["name"]: item["metadata"] for item in json.loads(report.read_text())["install"]}
    assert "normwise" in planned
    assert "torch" not in planned, f"pip would replace torch {torch.__version__}"
    requirements = planned["normwise"]["requires_dist"]
    assert "torch>=2.10" in requirements


def test_the_readmes_make_compare_in_its_quick_form(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip(f"runs in {sys.prefix}, not in the .venv that make uses")
    done = run("make", "compare", f"ARGS=--quick --out {tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    study = load_study(tmp_path / "study.json")
    assert [v.batch_size for v in study.verdicts] == [2, 32]
    for verdict in study.verdicts:
        assert verdict.headline in " ".join(done.stdout.split())
        assert {s.method for s in study.standings if s.batch_size == verdict.batch_size} == SIX | {"none"}
    assert (tmp_path / "report.html").stat().st_size > 10_000

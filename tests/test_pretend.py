"""The pretend accelerator, in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pretend

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(HERE.rglob("pretend_*.py")), ids=lambda path: path.stem)
def test_on_the_pretend_device(path: Path) -> None:
    pretend.run_alone(path)


def test_importing_it_registers_nothing() -> None:
    assert pretend.NAME
    code = "import pretend, torch; assert torch._C._get_privateuse1_backend_name() == 'privateuseone'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE)
    assert not hasattr(torch, pretend.NAME)


def test_a_program_runs_with_the_device_in_place() -> None:
    command = [sys.executable, str(HERE / "pretend.py"), "-m", "platform"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

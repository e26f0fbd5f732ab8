"""What is stored under results/ is whole, and is what today's rules make of its own numbers."""

from __future__ import annotations

import json

from draw import ROOT
from draw.compare import TASKS
from draw.diagnose import OVERHEAD
from normwise.records import load_study


def test_watching_costs_less_than_15_percent_of_a_step() -> None:
    assert all(row["overhead"] < 0.15 for row in json.loads(OVERHEAD.read_text())["rows"])


def test_every_study_is_whole() -> None:
    for task in TASKS:
        study = load_study(ROOT / "results" / f"compare-{task}.json")
        assert study.finished
        assert study.settings.task.partition(" ")[0] == task

"""What is stored under results/ is whole, and is what today's rules make of its own numbers."""

from __future__ import annotations

import json
import statistics

import pytest

from draw import ROOT
from draw.advice import RESULTS
from draw.compare import TASKS
from draw.diagnose import OVERHEAD
from normwise.advice import Situation, rank
from normwise.records import from_dict, load_study


def test_stored_advice_is_that_of_the_rules_as_they_are() -> None:
    for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]:
        told = rank(row["task"], from_dict(Situation, row["situation"]))
        assert told.best.spec == row["spec"], "run: make advice-bench"


def test_stored_regrets_follow_from_the_stored_scores() -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    for row in record["rows"]:
        means = {spec: statistics.fmean(values) for spec, values in row["points"].items()}
        advised = row["spec"] if row["spec"] in means else None
        mean = means[advised or next(spec for spec in means if spec.partition("(")[0] == row["advised"])]
        assert row["regret"] == pytest.approx(max(means.values()) - mean, abs=2e-3)
    groups = {"written on": False, "kept out": True}
    for title, kept in ((title, groups[title]) for title in record["regret"] if title in groups):
        regrets = [row["regret"] for row in record["rows"] if row["held_out"] is kept]
        assert record["regret"][title]["advised"] == pytest.approx(statistics.fmean(regrets), abs=6e-3)


def test_watching_costs_less_than_15_percent_of_a_step() -> None:
    assert all(row["overhead"] < 0.15 for row in json.loads(OVERHEAD.read_text())["rows"])


def test_every_study_is_whole() -> None:
    for task in TASKS:
        study = load_study(ROOT / "results" / f"compare-{task}.json")
        assert study.finished
        assert study.settings.task.partition(" ")[0] == task

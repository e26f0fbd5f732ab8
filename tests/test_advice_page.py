"""docs/advice.md is drawn from the rules and the judged outcomes, and both follow from the stored ones.

Run as a script to draw the page again.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normwise.advice import RULES, VETOES, learned
from pages import redrawn

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "advice.md", ROOT / "results" / "advice.json"


@cache
def record() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def rules_table() -> str:
    lines = ["| rule | applies to | what papers say speaks for (+) or against (−) | source |", "|---|---|---|---|"]
    for rule in RULES:
        sides = ", ".join(f"{'+' if side > 0 else '−'} {method}" for method, side in rule.sides.items())
        lines.append(f"| {rule.name} | {rule.when} | {sides} | {rule.source} |")
    lines += ["", "| refused or exempted | where | source |", "|---|---|---|"]
    lines += [f"| {veto.method} | {veto.text} | {veto.source} |" for veto in VETOES]
    return "\n".join(lines) + "\n"


def regret_table() -> str:
    found = record()["regret"] | record()["families"]
    columns = list(dict.fromkeys(key for told in found.values() for key in told))
    lines = [f"| mean regret, points | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title, told in found.items():
        shown = [_cell(key, told.get(key), _least(told)) for key in columns]
        lines.append(f"| {title} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _cell(key: str, value: float | None, least: float) -> str:
    if value is None or key in {"tasks", "abstained"}:
        return "" if value is None else str(value)
    return f"**{value:.2f}**" if key == "advised" and value <= least else f"{value:.2f}"


def calibration_table() -> str:
    told = record()["calibration"]
    lines = ["| told | so it was | tasks |", "|---|---|---|"]
    lines += [f"| {row['told']:.0%} | {row['seen']:.0%} | {row['tasks']} |" for row in told["reliability"]]
    lines += [
        "",
        f"Brier score {told['brier']:.3f}; always telling the mean would score {told['brier of the base rate']:.3f}.",
    ]
    return "\n".join(lines) + "\n"


def misses_table() -> str:
    """The tasks on which following the advice costs most."""
    rows = sorted(record()["rows"], key=lambda row: -row["regret"])[:12]
    lines = ["| family | task | best | advised | regret |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['family']} | {r['task']} | {r['best']} | {r['advised']}{', abstained' * r['abstains']} "
        f"| {r['regret']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def goal() -> str:
    """What was reached of the goal: below the best fixed choice in every family, and under a point in the mean."""
    whole, families = record()["regret"]["all tasks"], record()["families"]
    fixed = {key: value for key, value in whole.items() if key.startswith("always")}
    best = min(fixed, key=lambda key: fixed[key])
    misses = {name: told["advised"] - _least(told) for name, told in families.items()}
    missed = [f"{by:.2f} ({name})" for name, by in sorted(misses.items(), key=lambda m: -m[1]) if by > 0]
    mean = sum(told["advised"] for told in families.values()) / len(families)
    written, count = whole["written with"], len(families)
    kept = count - len(missed)
    lines = [
        f"Over all {whole['tasks']} tasks the advice has a regret of {whole['advised']:.2f} points;",
        f"{best}, the best fixed choice, has {fixed[best]:.2f}, what networks are written with {written:.2f}.",
        f"The mean of the families is {mean:.2f}. It abstained on {whole['abstained']} tasks.",
        f"In {kept} of {count} families it is no worse than the best fixed choice of the family itself.",
        f"It misses that by: {', '.join(missed) or 'nothing'}.",
    ]
    return "\n".join(lines) + "\n"


def _least(told: dict[str, Any]) -> float:
    return min(value for key, value in told.items() if key.startswith("always"))


TABLES = {
    "goal": goal,
    "rules": rules_table,
    "regret": regret_table,
    "calibration": calibration_table,
    "misses": misses_table,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_pages_table_is_that_of_the_data(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == redrawn(text, **{name: TABLES[name]()}), "run: make advice-fit"


@pytest.fixture(scope="module")
def fit():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import advice_fit
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return advice_fit


def test_what_ships_is_what_the_stored_outcomes_teach(fit: Any) -> None:
    proof, ships = fit.proof(fit.rows())
    assert ships.rules == learned().rules
    for method, numbers in ships.methods.items():
        stored = learned().methods[method]
        for name, value in numbers.items():
            flat, kept = (np.ravel(v).tolist() for v in (value, stored[name]))
            assert flat == pytest.approx(kept, abs=2e-3, rel=1e-2), "run: make advice-fit"
    assert ships.calibration == pytest.approx(learned().calibration, abs=0.02)
    for title, told in record()["regret"].items():
        # A task near the border may fall on the other side on another machine.
        assert proof["regret"][title]["advised"] == pytest.approx(told["advised"], abs=0.15), "run: make advice-fit"


def test_predictions_are_those_of_scikit_learn(fit: Any) -> None:
    tasks = fit.rows()
    fits: dict[int, Any] = {}

    class Kept(fit.BayesianRidge):
        def fit(self, *arguments: Any, **more: Any) -> Any:
            fits[len(fits)] = self
            return super().fit(*arguments, **more)

    original, fit.BayesianRidge = fit.BayesianRidge, Kept
    try:
        own = fit.learned_from(tasks)
    finally:
        fit.BayesianRidge = original
    for task in tasks[::10]:
        for ridge, predicted in zip(fits.values(), own.predict(task["at"]).values(), strict=True):
            (mean,), (spread,) = ridge.predict([task["at"]], return_std=True)
            assert (predicted.points, predicted.spread) == pytest.approx((mean, spread), abs=5e-3)


def test_no_task_is_judged_by_what_was_learned_from_its_data_or_its_kind_of_network(fit: Any, monkeypatch: Any) -> None:
    seen = []

    def watched(tasks: Any, *more: Any) -> Any:
        seen.append({(t["data"], t["net"]) for t in tasks})
        return original(tasks, *more)

    original = fit.learned_from
    monkeypatch.setattr(fit, "learned_from", watched)
    tasks = fit.rows()
    fit.judged(tasks)
    keys = list(dict.fromkeys((t["data"], t["net"]) for t in tasks))
    assert len(seen) == len(keys)
    for (data, net), learned_from in zip(keys, seen, strict=True):
        assert all(other != data and kind != net for other, kind in learned_from)


def test_regrets_follow_from_the_stored_scores(fit: Any) -> None:
    rows = {(row["task"], row["family"]): row for row in record()["rows"]}
    for task in fit.rows():
        row = rows[task["task"], task["family"]]
        assert row["regret"] == pytest.approx(task["behind"][row["advised"]], abs=1e-6)
    regrets = [row["regret"] for row in rows.values()]
    assert record()["regret"]["all tasks"]["advised"] == pytest.approx(sum(regrets) / len(regrets), abs=6e-3)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(redrawn(text, **{name: table() for name, table in TABLES.items()}), encoding="utf-8")

"""What ships as the advice is what the stored outcomes teach, and it is judged without a task's own kind."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normwise.advice import learned

ROOT = Path(__file__).parents[2]


@cache
def record() -> dict[str, Any]:
    return json.loads((ROOT / "results" / "advice.json").read_text(encoding="utf-8"))


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

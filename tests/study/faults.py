"""A study on real data whose trials last long enough to be interrupted, and what to look at in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from normwise import records
from normwise.errors import StoreError
from normwise.study.store import Store, is_claimed

ARGUMENTS = {
    "data": "digits",
    "methods": ["none", "batch"],
    "batch_sizes": [8],
    "seeds": 2,
    "lrs": [0.1],
    "epochs": 1.5,
}


def numbers(study: records.Study) -> dict[str, Any]:
    """All that must not depend on who trained what: times and memory are left out."""
    return {
        "trials": {
            t.setup.key: (t.state, t.valid_score, t.test_score, t.valid_loss, t.test_loss, t.steps)
            for t in study.trials
        },
        "count": len(study.trials),
        "standings": [(s.method, s.lr, s.valid.value, s.valid.low, s.test.high, s.tied) for s in study.standings],
        "verdicts": [(v.batch_size, v.best, v.clear, v.tied) for v in study.verdicts],
        "finished": study.finished,
    }


def running(where: str, besides: Sequence[dict[str, Any]] = (), seconds: float = 900) -> dict[str, Any]:
    """Wait for a trial that is being trained, besides those known; give its number, host and process."""
    known = {one["trial"] for one in besides}
    deadline = time.monotonic() + seconds
    store = None
    while time.monotonic() < deadline:
        with contextlib.suppress(StoreError):  # not begun yet
            store = store or Store(where, name=None)
        for trial in store._study.get_trials() if store else []:
            if trial.state.name == "RUNNING" and is_claimed(trial) and trial.number not in known:
                return {"trial": trial.number, **trial.user_attrs["claim"]}
        time.sleep(0.02)
    raise AssertionError("no worker trains")

"""Learn from the stored outcomes, and judge what was learned: ``make advice-fit``.

Judged by leaving out: for each task a model is fitted on the tasks that share neither its data set nor its kind of
network, and its advice is compared with the fixed choices. *Regret* is the best method's test score minus the advised
one's, in points, of the means over seeds. What ships (``learned.json``) is fitted on all tasks.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge, LogisticRegression

import normwise.advice
from normwise.advice import Learned, safe_choice
from normwise.advice.ranking import forbidden
from normwise.advice.rules import METHODS, RULES, strengths
from normwise.advice.situation import Situation
from normwise.files import write_atomic
from normwise.records import from_dict

RESULTS = Path(__file__).parents[1] / "results"
COLLECTIONS = ("advice-outcomes.json", "advice-outcomes-short.json")
JUDGED, LEARNED = RESULTS / "advice.json", Path(normwise.advice.__file__).with_name("learned.json")
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "advice.svg"
# Being more points behind than this is as bad: it is no choice. Of 5, 10 and 20 the one that is judged best.
CLIP = 20.0
TOLERANCE, MARGIN = 1.0, 1.0
Row = dict[str, Any]


def rows() -> list[Row]:
    """All tasks, with how much each rule applies and how far each method is behind the best."""
    found = []
    for name in COLLECTIONS:
        for row in json.loads((RESULTS / name).read_text(encoding="utf-8"))["rows"]:
            situation = from_dict(Situation, row["situation"] | {"current": [row["written"]]})
            points = {spec.partition("(")[0]: values for spec, values in row["points"].items()}
            best = max(points.values(), key=statistics.fmean)
            # In pairs: a method that left the race has fewer seeds than the best.
            gaps = {
                m: statistics.fmean(b - v for b, v in zip(best, values, strict=False)) for m, values in points.items()
            }
            behind = {m: round(max(gap, 0.0), 3) for m, gap in gaps.items()}
            found.append(
                row | {"situation": situation, "at": strengths(situation), "behind": behind, "short": "short" in name}
            )
    return found


def fitted(tasks: list[Row]) -> dict[str, Row]:
    """Each method's Bayesian ridge regression, as the numbers that a prediction needs."""
    models = {}
    for method in METHODS:
        known = [t for t in tasks if method in t["behind"]]
        x, y = np.array([t["at"] for t in known]), np.array([-min(t["behind"][method], CLIP) for t in known])
        # A family counts by the square root of its tasks, or the largest would drown the others.
        sizes = Counter(t["family"] for t in known)
        weights = np.array([sizes[t["family"]] ** -0.5 for t in known])
        ridge = BayesianRidge(alpha_1=1e-3, lambda_1=1e-3).fit(x, y, sample_weight=weights / weights.mean())
        models[method] = {
            "intercept": round(float(ridge.intercept_), 4),
            "centre": [round(v, 4) for v in np.average(x, 0, weights).tolist()],
            "effects": [round(v, 4) for v in ridge.coef_.tolist()],
            "covariance": [[round(v, 4) for v in row] for row in ridge.sigma_.tolist()],
            "noise": round(1 / float(ridge.alpha_), 4),
        }
    return models


def learned_from(tasks: list[Row], calibration: Sequence[float] = (0.0, 0.0), reach: float = math.inf) -> Learned:
    told = [
        {"task": t["task"], "family": t["family"], "at": [round(v, 3) for v in t["at"]], "behind": t["behind"]}
        for t in tasks
    ]
    return Learned([r.name for r in RULES], fitted(tasks), list(calibration), told, TOLERANCE, MARGIN, reach)


def judged(tasks: list[Row], kind_known: bool = False) -> list[Row]:
    """What the advice would be for each task, had nothing been learned from its data set or its kind of network.

    With ``kind_known`` other data sets under its kind of network may have been learned from.
    """
    cache: dict[tuple[str, str], Learned] = {}
    found = []
    for task in tasks:
        key = task["data"], "" if kind_known else task["net"]
        if key not in cache:
            cache[key] = learned_from([t for t in tasks if t["data"] != key[0] and t["net"] != key[1]])
        own = cache[key]
        at, s = task["at"], task["situation"]
        possible = [m for m in METHODS if m in task["behind"] and forbidden(m, s)[1] is None]
        safe = safe_choice(s, possible)
        chosen, why = own.choose(at, possible, safe)
        found.append({
            "advised": chosen, "safe": safe, "abstains": why, "regret": task["behind"][chosen], "away": own.away(at),
        })  # fmt: skip
    return found


def calibrated(found: list[Row], families: list[str]) -> tuple[list[float], list[float]]:
    """A logistic scaling of the distance; and each task's probability by one that was fitted without its family."""

    def scaled(which: list[int]) -> LogisticRegression:
        return LogisticRegression(C=0.1).fit(
            [[found[i]["away"]] for i in which], [found[i]["regret"] <= TOLERANCE for i in which]
        )

    every = range(len(found))
    without = {f: scaled([i for i in every if families[i] != f]) for f in set(families)}
    apart = [float(without[families[i]].predict_proba([[found[i]["away"]]])[0, 1]) for i in every]
    whole = scaled(list(every))
    return [round(float(v), 4) for v in (whole.intercept_[0], *whole.coef_[0])], apart


def against_another(task: Row, method: str) -> float:
    """The regret against the method that the other seeds call the best, of each seed in turn.

    The best of several means of two seeds owes a part of its lead to luck, which no advice can have; this has none.
    """
    points = {spec.partition("(")[0]: values for spec, values in task["points"].items()}
    found = []
    for i in range(len(points[method])):
        others = {m: [v for j, v in enumerate(values) if j != i] for m, values in points.items() if len(values) > i}
        best = max(others, key=lambda m: statistics.fmean(others[m]) if others[m] else -math.inf)
        found.append(points[best][i] - points[method][i])
    # A method that left the race has a seed alone, of which there are no others.
    return statistics.fmean(found) if len(points[method]) > 1 else task["behind"][method]


def summary(tasks: list[Row], found: list[Row]) -> Row:
    """Mean regrets; where a method has no meaning, that of what the network is written with stands for it."""
    told: Row = {"tasks": len(tasks), "advised": statistics.fmean(f["regret"] for f in found)}
    told["without luck"] = statistics.fmean(against_another(t, f["advised"]) for t, f in zip(tasks, found, strict=True))
    told["written with"] = statistics.fmean(t["behind"][f["safe"]] for t, f in zip(tasks, found, strict=True))
    for method in METHODS:
        if any(method in t["behind"] for t in tasks):
            told[f"always {method}"] = statistics.fmean(
                t["behind"].get(method, t["behind"][f["safe"]]) for t, f in zip(tasks, found, strict=True)
            )
    if all("advised_before" in t for t in tasks):
        told["before"] = statistics.fmean(t["behind"][t["advised_before"]] for t in tasks)
    told["abstained"] = sum(bool(f["abstains"]) for f in found)
    return {name: round(value, 2) for name, value in told.items()}


def reliability(found: list[Row], chances: list[float]) -> list[Row]:
    """In five classes of equal size: the mean probability told, and how often it was so."""
    order = sorted(range(len(found)), key=lambda i: chances[i])
    told = []
    for part in np.array_split(order, 5):
        good = [found[i]["regret"] <= TOLERANCE for i in part]
        told.append({
            "told": round(float(np.mean([chances[i] for i in part])), 3),
            "seen": round(float(np.mean(good)), 3),
            "tasks": len(part),
        })
    return told


def picture(families: dict[str, Row]) -> str:
    """Bars of the regret in each family: the advice, what the model was written with, the best fixed choice there."""
    kinds = ("advised", "written with", "best fixed choice")
    colors = ("#0b6e99", "#9aa5ad", "#d9a441")
    left, width, most, row = 250, 460, 8.0, 46
    parts = [
        f'<text x="{left + 150 * i}" y="16" fill="{c}">■ {kind}</text>'
        for i, (kind, c) in enumerate(zip(kinds, colors, strict=True))
    ]
    for i, (name, told) in enumerate(families.items()):
        fixed = min(value for key, value in told.items() if key.startswith("always"))
        y = 32 + row * i
        parts.append(f'<text x="{left - 10}" y="{y + 24}" text-anchor="end">{name} ({told["tasks"]})</text>')
        for j, (value, color) in enumerate(zip((told["advised"], told["written with"], fixed), colors, strict=True)):
            long, at = max(width * min(value, most) / most, 1), y + 12 * j
            parts.append(f'<rect x="{left}" y="{at}" width="{long:.0f}" height="10" fill="{color}"/>')
            parts.append(f'<text x="{left + long + 6:.0f}" y="{at + 9}" font-size="10">{value:.2f}</text>')
    size = f"0 0 {left + width + 60} {40 + row * len(families)}"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="13" role="img" '
        f'aria-label="Mean regret in points by family">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def proof(tasks: list[Row]) -> tuple[Row, Learned]:
    """What results/advice.json holds, and what ships."""
    found = judged(tasks)
    families = [t["family"] for t in tasks]
    calibration, chances = calibrated(found, families)
    reach = round(max(f["away"] for f in found), 3)
    good = [f["regret"] <= TOLERANCE for f in found]
    each = {f: [i for i, name in enumerate(families) if name == f] for f in sorted(set(families))}
    pick = lambda which: summary([tasks[i] for i in which], [found[i] for i in which])  # noqa: E731
    record = {
        "what": "the advice on tasks of whose data set and kind of network nothing was learned; mean regret in points",
        "command": "python benchmarks/advice_fit.py",
        "settings": {"clip": CLIP, "tolerance": TOLERANCE, "margin": MARGIN},
        "regret": {
            "all tasks": pick(range(len(tasks))),
            "all tasks, its kind of network known": summary(tasks, judged(tasks, kind_known=True)),
            "long trainings": pick([i for i, t in enumerate(tasks) if not t["short"]]),
            "short trainings": pick([i for i, t in enumerate(tasks) if t["short"]]),
        },
        "families": {name: pick(which) for name, which in each.items()},
        "calibration": {
            "brier": round(float(np.mean([(p - g) ** 2 for p, g in zip(chances, good, strict=True)])), 4),
            "brier of the base rate": round(float(np.mean(good) * (1 - np.mean(good))), 4),
            "reliability": reliability(found, chances),
        },
        "rows": [
            {"task": t["task"], "family": t["family"], "best": min(t["behind"], key=t["behind"].get),
             "advised": f["advised"], "abstains": bool(f["abstains"]), "probability": round(p, 3),
             "regret": f["regret"]}
            for t, f, p in zip(tasks, found, chances, strict=True)
        ],
    }  # fmt: skip
    return record, learned_from(tasks, calibration, reach)


def main() -> None:
    record, ships = proof(rows())
    write_atomic(JUDGED, json.dumps(record, indent=1) + "\n")
    write_atomic(LEARNED, json.dumps(vars(ships), separators=(",", ":")).replace(',"', ',\n"') + "\n")
    write_atomic(PICTURE, picture(record["families"]))
    for title, told in (record["regret"] | record["families"]).items():
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in told.items()))
    print(record["calibration"])


if __name__ == "__main__":
    main()

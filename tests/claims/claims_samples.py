"""Outcomes of a claim as they are stored, with text that must not come through as markup."""

from normwise import outcomes
from normwise.records import Interval


def answer(**changes):
    given = {
        "statement": "It falls by <b>a point</b>",
        "verdict": outcomes.HOLDS,
        "values": [0.02, 0.03],
        "estimate": Interval(0.025, 0.015, 0.04),
        "at_least": 0.01,
        "unit": "points",
        "factor": 100.0,
        "published": "11 points",
    }
    return outcomes.Answer(**given | changes)


def record():
    """Claims as they are stored, with text that must not come through as markup."""
    line = outcomes.Series("batch", [0.0, 1.0], [Interval(0.5, 0.4, 0.6), Interval(0.7, 0.7, 0.7)], "batch")
    figure = outcomes.Figure("Accuracy <i>x</i>", "size", "%", [line], ticks=["2", "32"], factor=100.0)
    gallery = outcomes.Gallery("Pictures", ["content"], ["row"], [["iVBORw0KGgo="]])
    refused = answer(verdict=outcomes.UNDECIDED, estimate=None, values=[], note="final/batch failed", decides=False)
    outcome = outcomes.Outcome(
        number=4,
        name="small-batches",
        title="A <script>alert(1)</script> claim",
        claim="Said & done",
        source="Somebody 2020",
        verdict=outcomes.HOLDS,
        answers=[answer(), refused],
        figures=[figure],
        experiments={},
        trials=3,
        lost=0,
        seconds=2.0,
        code='print("<")',
        quick=True,
        galleries=[gallery],
    )
    return outcomes.Claims("2026-01-01", "normwise claims run all", {"normwise": "1"}, {"cores": "2"}, [outcome])

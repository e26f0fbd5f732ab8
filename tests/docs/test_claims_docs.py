"""The docs' page of claims is that of the stored outcomes, and their verdicts are those of the stored numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from normwise.claims import CLAIMS
from normwise.claims.statistics import judge_look, together
from normwise.outcomes import UNDECIDED, load_claims
from normwise.records import to_dict
from normwise.report import claims_markdown

ROOT = Path(__file__).parents[2]
STORED = load_claims(ROOT / "results" / "claims.json")


def test_the_page_is_drawn_from_the_stored_claims() -> None:
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == claims_markdown(STORED), "run: make claims-docs"


@pytest.mark.parametrize("outcome", STORED.outcomes, ids=lambda o: o.name)
def test_stored_verdicts_follow_from_the_stored_numbers(outcome) -> None:  # type: ignore[no-untyped-def]
    for answer in outcome.answers:
        if answer.estimate is None:
            assert answer.verdict == UNDECIDED
            assert answer.note
            continue
        assert len(answer.values) in outcome.looks
        bounds = answer.ratio, answer.at_least, answer.at_most
        found, verdict = judge_look(answer.values, *bounds, answer.exact, outcome.looks)
        assert to_dict(found) == pytest.approx(to_dict(answer.estimate))
        assert answer.verdict == verdict
        assert bool(answer.note) == (verdict == UNDECIDED)
    assert outcome.verdict == together(a.verdict for a in outcome.answers if a.decides)


def test_all_claims_are_stored_whole_and_as_they_are_stated() -> None:
    assert [o.name for o in STORED.outcomes] == list(CLAIMS)
    for outcome in STORED.outcomes:
        claim = CLAIMS[outcome.name]
        assert not outcome.quick
        assert (outcome.title, outcome.claim) == (claim.title, claim.claim)
        stated = [(p.statement, p.at_least, p.at_most) for p in claim.parts]
        assert [(a.statement, a.at_least, a.at_most) for a in outcome.answers] == stated
        assert list(outcome.experiments) == [e.name for e in claim.experiments]

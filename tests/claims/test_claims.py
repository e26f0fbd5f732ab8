"""Every claim goes its whole way, on tiny runs of made-up data: each measure gives a number, each figure is drawn."""

import dataclasses

import pytest

from normwise import files, outcomes, records, report
from normwise.claims import CLAIMS, Part
from normwise.claims.claim import Claim
from normwise.claims.engine import Bench, experiments_of, run
from normwise.claims.judging import answer_of, outcome_of
from normwise.claims.library import claims_named
from normwise.claims.observers import Hardening, InputDrift
from normwise.claims.schedule import Stage
from normwise.errors import InputError
from normwise.outcomes import UNDECIDED

STEPS = 4


def tiny(experiment):
    return dataclasses.replace(experiment, lrs=(0.01,), quick_steps=STEPS)


def ran(experiments, seeds=3):
    """Run so many seeds of experiments, in memory."""
    bench = Bench(experiments, quick=True, folder=None)
    claim = Claim(1, "all", "", "", "", "", tuple(experiments), ())
    bench.work(Stage(claim, {arm: seeds for e in experiments for arm in e.arms}, 0.0))
    return bench.runs()


@pytest.fixture
def tiny_claims(small_data, monkeypatch):
    monkeypatch.setattr("normwise.claims.claim.QUICK_LOOKS", (2,))
    monkeypatch.setattr(InputDrift, "EVERY", 2)
    monkeypatch.setattr(Hardening, "TURNS", 1)
    return list(CLAIMS.values())


def test_every_claim_is_measured_and_drawn(tiny_claims, tmp_path):
    runs = ran([tiny(e) for e in experiments_of(tiny_claims)], seeds=2)
    trials = [t for found in runs.trials_of.values() for t in found]
    assert [(t.setup.key, t.reason) for t in trials if t.state == "failed"] == []
    assert len(trials) == sum(2 * len(e.arms) for e in experiments_of(tiny_claims))
    found = [outcome_of(claim, runs, quick=True) for claim in tiny_claims]
    for outcome in found:
        assert outcome.verdict in {outcomes.HOLDS, outcomes.IN_PART, outcomes.FAILS, outcomes.UNDECIDED}
        for answer in outcome.answers:
            assert len(answer.values) == 2, f"{outcome.name}: {answer.statement}: {answer.note}"
            assert bool(answer.note) == (answer.verdict == UNDECIDED)
            assert answer.brief or not answer.decides, "it needs a name within a sentence"
        claim = CLAIMS[outcome.name]
        assert len(outcome.figures) == len(claim.figures)
        assert len(outcome.galleries) == len(claim.galleries)
    record = outcomes.Claims("2026-01-01", "normwise claims run all", {}, {}, found)
    files.write_atomic(tmp_path / "claims.json", records.dumps(record))
    assert outcomes.load_claims(tmp_path / "claims.json") == record
    page, text = report.claims_html(record), report.claims_markdown(record)
    for outcome in found:
        assert outcome.title.replace("'", "&#39;") in page
        assert f"## {outcome.number}. {outcome.title}" in text


def test_what_cannot_be_measured_is_undecided_and_says_why(small_data):
    experiment = tiny(CLAIMS["memory"].experiments[0])
    experiment = dataclasses.replace(experiment, methods=("none",), memory=False)
    runs = ran([experiment])
    part = Part("Gradients", lambda r: r.seen(experiment, "none", "gradients"), at_least=0.0)
    answer = answer_of(part, runs, True)
    assert (answer.verdict, answer.estimate) == (UNDECIDED, None)
    assert "has no gradients" in answer.note
    part = Part("A ratio to nothing", lambda r: r.test(experiment, "none") / 0.0, at_least=0.0, ratio=True)
    answer = answer_of(part, runs, True)
    assert (answer.verdict, answer.values) == (UNDECIDED, [])
    assert "cannot be averaged as ratios" in answer.note
    part = Part("Another method", lambda r: r.test(experiment, "batch"), at_least=0.0)
    assert "batch at batch size 32 is not finished" in answer_of(part, runs, True).note


def test_a_run_keeps_what_it_has(small_data, tmp_path, monkeypatch):
    first = run("memory", quick=True, out=tmp_path, progress=False)
    assert [o.name for o in first.outcomes] == ["memory"]
    assert first.outcomes[0].quick
    assert (tmp_path / "claims.html").read_text().startswith("<!doctype html>")
    # A second claim joins the first; the first is read from its store, not run again.
    monkeypatch.setattr("normwise.study.trial.Trainer.__call__", lambda *args: pytest.fail("trained again"))
    again = run("memory", quick=True, out=tmp_path, progress=False)
    assert again.outcomes == first.outcomes


def test_a_run_that_ended_by_its_minutes_goes_on(small_data, tmp_path):
    first = run("memory", quick=True, out=tmp_path, progress=False, minutes=1e-9).outcomes[0]
    assert first.verdict == UNDECIDED
    assert first.trials == 0
    assert all("is not finished" in answer.note for answer in first.answers)
    again = run("memory", quick=True, out=tmp_path, progress=False).outcomes[0]
    assert again.trials == 3 * 7
    assert all(len(answer.values) == 3 for answer in again.answers)


def test_claims_are_numbered_and_named_once():
    assert [c.number for c in CLAIMS.values()] == sorted({c.number for c in CLAIMS.values()})
    for claim in CLAIMS.values():
        assert any(part.decides for part in claim.parts)
        assert len({part.statement for part in claim.parts}) == len(claim.parts)
    named = {}
    for claim in CLAIMS.values():
        for experiment in claim.experiments:
            assert named.setdefault(experiment.name, experiment) is experiment, "two experiments of one name"


def test_names_are_checked():
    assert claims_named(["all"]) == list(CLAIMS.values())
    assert [c.name for c in claims_named(["small-batches", "small-batches"])] == ["small-batches"]
    with pytest.raises(InputError, match="did you mean 'memory'"):
        claims_named(["memry"])
    with pytest.raises(InputError, match="no claim given"):
        claims_named([])
    with pytest.raises(InputError, match="workers must be at least 1"):
        run("memory", workers=0)

"""Steps are timed in turn when the trials are done, once, and count instead of the times of the training."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from simulated import cover
from tiny_study import fake_trial, make_settings, tiny_data, tiny_model

from normwise import report
from normwise.records import Setup, StepCost, Study, dumps, from_dict, load_study, to_dict
from normwise.study import compare, make_task
from normwise.study.choice import with_costs
from normwise.study.costs import measured
from normwise.study.verdict import judge

GIVEN = {"batch_sizes": [8], "seeds": 2, "epochs": 1, "lrs": [0.1], "progress": False}


def finals(scores, **changes):
    return [
        fake_trial(Setup("final", m, 2, 0.1, s), v, **changes) for m, of in scores.items() for s, v in enumerate(of)
    ]


def test_steps_take_turns(monkeypatch):
    """The order changes from round to round, and what slows one block slows all methods in it."""
    task, order = make_task(tiny_model, tiny_data()), []
    own = task.loss_of

    def loss_of(self, model, batch):
        order.append(id(model))
        return own(model, batch)

    monkeypatch.setattr(type(task), "loss_of", loss_of)
    settings = make_settings(["none", "batch", "layer"], [8])
    trials = [fake_trial(Setup("final", m, 8, 0.1, 0), seconds=0.1) for m in settings.methods]
    costs = measured(task, settings, trials, [])
    assert [(c.method, c.batch_size) for c in costs] == [("none", 8), ("batch", 8), ("layer", 8)]
    assert all(len(c.seconds) >= 4 and min(c.seconds) > 0 and c.peak_bytes > 0 for c in costs)
    rounds = [order[-3 * k : len(order) - 3 * (k - 1)] for k in range(4, 0, -1)]
    assert all(len(set(taken)) == 3 for taken in rounds)
    assert len({taken[0] for taken in rounds}) > 1


def test_a_study_keeps_its_costs(tmp_path, monkeypatch):
    study = compare(tiny_model, tiny_data(), methods=["none", "batch"], out=tmp_path, **GIVEN)
    assert {c.method for c in study.record.costs} == {"none", "batch"}
    assert all(s.step_interval.low <= s.step_seconds <= s.step_interval.high for s in study.standings)
    assert load_study(tmp_path / "study.json") == study.record
    monkeypatch.setattr("normwise.study.costs._measured", lambda *_: pytest.fail("measured again"))
    assert compare(tiny_model, tiny_data(), methods=["none", "batch"], out=tmp_path, **GIVEN).record == study.record


def test_older_studies_have_the_times_of_their_training():
    study = compare(tiny_model, tiny_data(), methods=["none", "batch"], **GIVEN).record
    old = to_dict(study)
    del old["costs"]
    assert from_dict(Study, old).costs == []
    _, (verdict,) = judge(study.settings, study.trials)
    assert any("in training, other work on the machine included" in reason for reason in verdict.why)


def test_where_a_step_cannot_be_had_the_training_counts(monkeypatch):
    monkeypatch.setattr("normwise.study.costs._step", lambda *_: 1 / 0)
    study = compare(tiny_model, tiny_data(), methods=["none", "batch"], **GIVEN)
    assert study.record.costs == []
    assert all(s.step_interval is None and s.step_seconds for s in study.standings)


def test_models_too_large_to_stand_beside_each_other_are_not_timed():
    trials = [fake_trial(Setup("final", m, 8, 0.1, 0), parameters=10**14) for m in ("none", "batch")]
    assert measured(make_task(tiny_model, tiny_data()), make_settings(batch_sizes=[8]), trials, []) == []


def test_several_devices_are_not_timed_by_one(task):
    study = compare(data=task, methods=["none", "batch"], devices=2, **GIVEN)
    assert study.record.costs == []


@pytest.mark.parametrize(("tick", "rounds"), [(1e-6, 200), (0.005, 23), (1.0, 16)])
def test_timing_keeps_to_its_share(monkeypatch, tick, rounds):
    """By a clock that moves one tick a look: at least 16 rounds, at most 200, and between them 5 % of the training."""
    task, clock, steps = make_task(tiny_model, tiny_data()), itertools.count(), []
    own = task.loss_of
    monkeypatch.setattr(type(task), "loss_of", lambda self, model, batch: steps.append(1) or own(model, batch))
    monkeypatch.setattr("normwise.study.costs.time", SimpleNamespace(perf_counter=lambda: next(clock) * tick))
    trials = [fake_trial(Setup("final", m, 8, 0.1, 0), seconds=5.0) for m in ("none", "batch")]
    measured(task, make_settings(batch_sizes=[8]), trials, [])
    methods = 2
    assert len(steps) // methods - 3 == rounds  # three come before: to warm up, and for the memory


def test_costs_of_the_turns_count_and_not_those_of_the_training():
    """In training none seemed cheap; in turn batch is, and the tie goes to it."""
    trials = finals({"none": [0.80, 0.90, 0.85], "batch": [0.89, 0.81, 0.855]})
    trials = [dataclasses.replace(t, step_seconds=0.001 if t.setup.method == "none" else 0.01) for t in trials]
    settings = make_settings()
    costs = [StepCost("none", 2, [0.02, 0.03, 0.021, 0.02], 2000), StepCost("batch", 2, [0.01, 0.015, 0.011, 0.01], 9)]
    assert judge(settings, trials)[1][0].use == "none"
    standings, (verdict,) = judge(settings, trials, costs)
    assert verdict.use == "batch"
    assert {s.method: s.peak_bytes for s in standings} == {"none": 2000, "batch": 9}
    assert any("timed in turn after the training" in reason for reason in verdict.why)
    # Of another batch size, or without one of the methods, they say nothing here.
    for others in ([dataclasses.replace(c, batch_size=4) for c in costs], costs[:1]):
        assert judge(settings, trials, others) == judge(settings, trials)


def test_a_difference_within_noise_is_none():
    trials = finals({"none": [0.80, 0.90, 0.85], "batch": [0.89, 0.81, 0.865]})
    steady = [
        StepCost("none", 2, [0.010, 0.0101, 0.0099, 0.01], 1),
        StepCost("batch", 2, [0.013, 0.0131, 0.013, 0.0129], 1),
    ]
    shaky = [
        StepCost("none", 2, [0.007, 0.014, 0.008, 0.013], 1),
        StepCost("batch", 2, [0.017, 0.010, 0.015, 0.011], 1),
    ]
    assert judge(make_settings(), trials, steady)[1][0].use == "none"
    standings, (verdict,) = judge(make_settings(), trials, shaky)
    assert verdict.use == "batch"
    assert standings[0].step_interval.high > standings[1].step_interval.low
    assert any("between step times count as none" in reason for reason in verdict.why)


def test_one_method_alone_has_the_scatter_of_its_own():
    costs = [StepCost("none", 2, [0.010, 0.012, 0.011, 0.013], 1)]
    (standing,), _ = judge(make_settings(["none"]), finals({"none": [0.8, 0.9, 0.85]}), costs)
    assert standing.step_interval.low < 0.0105 < 0.0125 < standing.step_interval.high


def test_intervals_cover():
    """Simulated: of scores, of differences to the best and of step times; equal times are rarely called different."""
    found = [cover(seeds, 0.01, 0.01, seed) for seeds in (3, 5) for seed in range(60)]
    for field in ("score", "behind", "step"):
        assert 0.9 <= np.mean([getattr(f, field) for f in found]) <= 0.98, field
    assert np.mean([f.different for f in found]) < 0.1


def test_costs_are_shown_with_their_interval(tmp_path):
    study = compare(tiny_model, tiny_data(), methods=["none", "batch"], **GIVEN).record
    text = " ".join(report.plain(study).split())
    assert "±: half the 95 % interval of a step's time" in text
    assert text.count("±") == 1 + len(study.standings)
    assert report.html(study).count("±") >= len(study.standings)
    assert '"step_interval": {' in dumps(study)
    plain = with_costs([dataclasses.replace(s, step_interval=None) for s in study.standings], [])
    assert "±" not in report.plain(dataclasses.replace(study, standings=plain, costs=[]))

"""From what was learned to advice: when it moves, when it abstains, and what it says of itself."""

import json
import math

import numpy as np
import pytest

from normwise.advice import RULES, Advice, Learned, Place, Situation, learned, rank, safe_choice, strengths
from normwise.advice.rules import METHODS
from normwise.records import from_dict


def conv(batch_size, **changes):
    given = {"depth": 6, "places": [Place("norm", 32, [8, 8], batch_size, method="batch")], "current": ["batch"]}
    return Situation("conv", ["conv"], batch_size, **given | changes)


def test_what_is_known_is_advised_and_says_how_sure_it_is():
    told = rank("Net", conv(1))
    assert told.best.method != "batch"
    assert not told.abstains
    assert 0 < told.probability < 1
    assert told.evidence.startswith("Of the 8 measured tasks most like it (")
    assert str(told).startswith(f"Net: use {told.best.method} ({told.probability:.0%} to be within a point")


def test_what_is_within_the_error_is_left_to_the_safe_choice():
    for batch_size in (1, 2, 4, 8, 16, 32, 64, 256):
        told = rank("Net", conv(batch_size))
        if told.abstains:
            assert told.best.method == "batch"
            assert "within the error of" in told.abstains
            assert any("abstains and names what the model has" in note and "verify=60" in note for note in told.notes)
        else:
            by_name = {r.method: r for r in told.ranking}
            best, batch = told.best, by_name["batch"]
            noise = learned().margin * math.hypot(best.spread, batch.spread)
            assert best.method == "batch" or best.points - batch.points > noise - 0.02
    assert rank("Net", conv(256)).best.method == "batch"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "detection"}, "no measured task has this: the task is detection or generation"),
        ({"places": [Place("norm", 8, [4, 4, 4], 2)]}, "no measured task has this: norms over three spatial axes"),
        ({"task": "restoration", "current": []}, "no measured task has this: the task is restoration"),
    ],
)
def test_what_no_task_is_like_is_left_to_the_safe_choice(changes, words):
    told = rank("Net", conv(2, **changes))
    assert told.abstains == words
    assert told.probability is None
    assert told.best.method == ("none" if changes.get("task") == "restoration" else "batch")
    assert not told.evidence


def test_what_was_not_measured_stays():
    told = rank("Net", conv(4, current=["rms"]))
    assert told.best.method == "as_is"
    assert told.best.points is None
    assert told.best.code.startswith("#")
    assert "no measured task compares rms with other methods" in told.abstains
    assert {r.method for r in told.ranking}.isdisjoint({"rms", "dyt", "derf"})
    both = rank("Net", conv(4, current=["batch", "layer"]))
    assert both.best.method == "as_is"
    assert "compares batch and layer" in both.abstains


def test_transformers_keep_rms_norm_unless_another_is_known_to_be_better():
    tokens = [Place("n", 64, [20], 4, per_token=True, method="rms")]
    told = rank("Net", Situation("attention", ["attention"], 4, tokens=True, depth=9, places=tokens, current=["rms"]))
    assert told.best.method == "rms"
    assert told.best.code.startswith("#")
    assert {"layer", "dyt", "derf"} <= {r.method for r in told.ranking}
    assert told.abstains == "" or "within the error" in told.abstains
    assert 0 < told.probability < 1


def test_the_safe_choice_is_that_of_the_kind():
    def of(situation, possible=METHODS):
        return safe_choice(situation, list(possible))

    assert of(conv(2)) == "batch"
    assert of(conv(32, current=[])) == "batch"
    assert of(conv(2, current=[])) == "group"
    assert of(conv(2, task="stylization")) == "instance"
    assert of(Situation("recurrent", ["recurrent"], 32)) == "layer"
    assert of(Situation("mlp", ["mlp"], 2), ["layer", "none"]) == "layer"


def test_a_refused_method_is_not_advised():
    leak = {"batch": "it leaks", "switchable": "it leaks"}
    told = rank("Net", conv(64), refused=leak)
    assert told.best.method not in leak
    assert {r.method: r.refused for r in told.ranking if r.refused} == leak


def test_one_value_is_refused_everywhere_and_exempted_in_places():
    vectors = Situation("mlp", ["mlp"], 1, depth=4, places=[Place("a", 16, [], 1), Place("b", 16, [], 1)])
    by_name = {r.method: r for r in rank("Net", vectors).ranking}
    assert "one value per channel and step" in by_name["batch"].refused
    assert "one value per channel and sample" in by_name["instance"].refused
    assert rank("Net", vectors).best.refused is None
    mixed = conv(8, places=[Place("a", 16, [8, 8], 8), Place("b", 16, [1, 1], 8)])
    instance = next(r for r in rank("Net", mixed).ranking if r.method == "instance")
    assert instance.refused is None
    assert [(e.place, e.use) for e in instance.exemptions] == [("b", "layer")]


def test_a_close_call_names_the_others():
    even = {
        "intercept": -1.0,
        "centre": [0.0] * len(RULES),
        "effects": [0.0] * len(RULES),
        "covariance": [],
        "noise": 1.0,
    }
    even["covariance"] = np.zeros((len(RULES), len(RULES))).tolist()
    alike = Learned([r.name for r in RULES], dict.fromkeys(METHODS, even), [0.0, 0.0], learned().tasks, 1.0, 1.0, 99.0)
    assert alike.choose(strengths(conv(4)), ["batch", "group"], "group") == (
        "group",
        "batch is expected to be 0.0 points better, which is within the error of ±1.4",
    )
    assert alike.probability(strengths(conv(4))) == 0.5


def test_advice_survives_json():
    told = rank("Net", conv(4, places=[Place("a", 16, [1, 1], 4), Place("b", 16, [4, 4], 4)]))
    assert from_dict(Advice, json.loads(told.to_json())) == told

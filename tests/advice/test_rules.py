"""Every row of the rules, by its own test: it applies where it says, and its sentence is true of what it applies to."""

import pytest

from normwise import advice
from normwise.advice import RULES, VETOES, Place, Situation, rank, strengths
from normwise.advice.rules import METHODS, told
from normwise.errors import InputError
from normwise.findings import ModelFacts


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_applies_where_it_says_and_not_where_it_says(rule):
    assert 0 < rule.strength(Situation(**rule.fires)) <= 1
    assert rule.strength(Situation(**rule.silent)) == 0
    assert set(rule.sides) <= set(METHODS)
    # A text has a source and sides; a rule without one only helps to predict.
    assert bool(rule.text) == bool(rule.source) == bool(rule.sides)
    assert "{" not in told(rule, Situation(**rule.fires))


def test_rules_have_names_of_their_own_and_know_no_task_of_the_benchmark():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(veto.method in METHODS and veto.source for veto in VETOES)
    text = " ".join(f"{rule.name} {rule.text}" for rule in RULES).lower()
    assert not any(name in text for name in ("digit", "fashion", "vowel", "austen", "texture", "cancer", "wine"))


def reasons(situation):
    return {reason.rule for ranked in rank("Net", situation).ranking for reason in ranked.reasons}


def applying(situation):
    return {rule.name for rule, x in zip(RULES, strengths(situation), strict=True) if x}


MAPS = [Place("bn", 32, [8, 8], 4, method="batch")]
STEPS = [Place("bn", 32, [50], 4, method="batch")]


@pytest.mark.parametrize(
    ("situation", "lies"),
    [
        # A convolutional net whose norms run once a pass and that ends in an LSTM.
        (Situation("recurrent", ["recurrent", "conv"], 4, places=STEPS, current=["batch"]), {"loop", "drift"}),
        # Deep, and earlier activations are put beside later ones, or added to them.
        (Situation("conv", ["conv"], 4, depth=40, concatenations=20, places=MAPS), {"deep-plain"}),
        (Situation("conv", ["conv"], 4, depth=40, residual=20, places=MAPS), {"deep-plain"}),
        # Images come out that are no other style of what came in.
        (Situation("generative", ["generative", "conv"], 4, task="segmentation", places=MAPS), {"style"}),
        (Situation("generative", ["generative", "conv"], 4, task="reconstruction", places=MAPS), {"style"}),
        (Situation("generative", ["generative", "conv"], 4, places=MAPS), {"style", "contrast-matters"}),
        # A table on images says nothing of series.
        (Situation("conv", ["conv"], 4, places=STEPS), {"small-batch-images", "vectors", "few-values"}),
        (Situation("attention", ["attention"], 32, places=MAPS), {"tokens", "padding"}),
    ],
)
def test_no_reason_is_told_that_is_false_of_the_model(situation, lies):
    assert not applying(situation) & lies
    assert not reasons(situation) & lies


def test_reasons_are_rules_that_apply_and_agree_with_what_was_learned():
    for rule in RULES:
        situation = Situation(**rule.fires)
        assert reasons(situation) <= applying(situation)
        for ranked in rank("Net", situation).ranking:
            for reason in ranked.reasons:
                sides = next(r.sides for r in RULES if r.name == reason.rule)
                assert reason.points * sides[ranked.method] > 0
                assert reason.side == ("+" if sides[ranked.method] > 0 else "−")


def test_numbers_in_a_reason_are_those_of_the_model():
    situation = Situation("mlp", ["mlp"], 3, depth=9, places=[Place("a", 16, [], 3)])
    texts = {rule.name: told(rule, situation) for rule in RULES}
    assert "Only 3 values stand" in texts["few-values"]
    assert "is of 3 samples" in texts["small-batch"]
    assert "In 9 layers" in texts["deep-plain"]
    assert "is of 1 sample," in told(RULES[1], Situation("mlp", ["mlp"], 1))


def test_devices_share_statistics_and_accumulation_does_not():
    def small(**changes):
        situation = Situation("conv", ["conv"], 2, places=MAPS, **changes)
        return strengths(situation)[0], " ".join(rank("Net", situation).notes)

    assert small()[0] > 0
    assert small(devices=16)[0] == 0
    assert "sync" in small(devices=16)[1]
    assert small(accumulate=16)[0] == small()[0]
    assert "Accumulation" in small(accumulate=16)[1]


def test_unknown_task_and_counts_are_refused():
    facts = ModelFacts("Net", "conv", ["conv"], 2, 2)
    with pytest.raises(InputError, match="unknown task 'style': expected one of classification"):
        advice.situation_of(facts, task="style")
    with pytest.raises(InputError, match="devices must be at least 1, got 0"):
        advice.situation_of(facts, devices=0)

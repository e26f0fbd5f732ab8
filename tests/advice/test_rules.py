"""Every row of the rules, by its own test; and what the ranking makes of them."""

import json

import pytest

from normwise import advice
from normwise.advice import RULES, VETOES, Advice, Cost, Place, Situation, rank
from normwise.advice.rules import IMAGENET, METHODS, _imagenet_loss
from normwise.errors import InputError
from normwise.findings import ModelFacts
from normwise.records import from_dict


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_fires_where_it_says_and_is_silent_where_it_says(rule):
    assert 0 < rule.strength(Situation(**rule.fires)) <= 1
    assert rule.strength(Situation(**rule.silent)) == 0
    assert set(rule.effects) <= set(METHODS)
    assert any(rule.effects.values())
    fired = rank("Net", Situation(**rule.fires))
    named = {reason.rule for ranked in fired.ranking for reason in ranked.reasons}
    assert rule.name in named


def test_rules_have_names_texts_and_sources_of_their_own():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.text.endswith(".") and rule.source for rule in RULES)
    assert all(veto.method in METHODS and veto.source for veto in VETOES)


def test_no_rule_knows_a_benchmark_task():
    text = " ".join(f"{rule.name} {rule.text}" for rule in RULES).lower()
    assert not any(name in text for name in ("digit", "fashion", "vowel", "austen", "texture", "cancer", "wine"))


def conv(batch_size, **changes):
    given = {"depth": 6, "places": [Place("norm", 32, [8, 8], batch_size)]}
    return Situation("conv", ["conv"], batch_size, **given | changes)


def points(situation, method):
    return next(r.points for r in rank("Net", situation).ranking if r.method == method)


def test_published_loss_of_small_batches_is_read_between_the_lines():
    assert [_imagenet_loss(conv(b)) for b in IMAGENET] == pytest.approx([
        max(0.0, max(row) - row[0] - 0.5) for row in IMAGENET.values()
    ])
    assert max(IMAGENET[32]) - IMAGENET[32][0] == pytest.approx(0.5)
    losses = [_imagenet_loss(conv(b)) for b in (2, 3, 4, 6, 8, 12)]
    assert losses == sorted(losses, reverse=True)
    assert _imagenet_loss(conv(1)) == _imagenet_loss(conv(2))
    assert _imagenet_loss(conv(512)) == _imagenet_loss(conv(32))


def test_batch_norm_falls_with_the_batch_and_rises_with_devices():
    falling = [points(conv(b), "batch") for b in (64, 16, 8, 4, 2)]
    assert falling == sorted(falling, reverse=True)
    assert points(conv(2, devices=16), "batch") == points(conv(32), "batch")
    assert any("sync" in note for note in rank("Net", conv(2, devices=16)).notes)
    assert points(conv(2, accumulate=16), "batch") == points(conv(2), "batch")
    assert any("Accumulation" in note for note in rank("Net", conv(2, accumulate=16)).notes)


def test_a_recurrent_net_on_single_numbers_is_not_told_to_divide_by_their_size():
    loop = {"places": [Place("norm", 32, [], 16)], "current": ["batch"], "depth": 3}
    wide = rank("Net", Situation("recurrent", ["recurrent"], 16, features=12, **loop))
    narrow = rank("Net", Situation("recurrent", ["recurrent"], 16, features=1, **loop))
    assert wide.best.method == "switchable"
    assert narrow.best.method == "weight"
    assert any("from one number:" in note for note in narrow.notes)
    drifting = rank("Net", Situation("recurrent", ["recurrent"], 16, features=12, drift=0.4, **loop))
    assert drifting.best.method == "layer"
    padded = rank("Net", Situation("recurrent", ["recurrent"], 16, variable_length=True, drift=0.4, **loop))
    assert all(reason.rule != "recurrent-drift" for ranked in padded.ranking for reason in ranked.reasons)


def test_restoration_keeps_its_depth_without_normalization():
    deep = {"depth": 40, "residual": 16, "places": [Place("norm", 32, [8, 8], 16)]}
    restored = rank("Net", Situation("generative", ["generative", "conv"], 16, task="restoration", **deep))
    assert restored.best.method in {"none", "weight"}
    assert rank("Net", Situation("conv", ["conv"], 16, **deep)).best.method not in {"none", "weight"}


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


def test_ties_go_to_the_cheaper_and_measured_cost_decides_nothing_else():
    slow = {m: Cost(2.0 if m == "switchable" else 1.0, 1) for m in METHODS}
    assert rank("Net", conv(12)).best.method == "switchable"
    close = [r.points for r in rank("Net", conv(50), slow).ranking[:2]]
    assert abs(close[0] - close[1]) < 0.3
    assert rank("Net", conv(50), slow).best.method == "batch"
    assert rank("Net", conv(2), slow).best.method == "switchable"


def test_advice_survives_json():
    told = rank(
        "Net", conv(4, places=[Place("a", 16, [1, 1], 4), Place("b", 16, [4, 4], 4)]), {"batch": Cost(0.1, None)}
    )
    assert from_dict(Advice, json.loads(told.to_json())) == told
    assert str(told).startswith(f"Net: use {told.best.method}")


def test_unknown_task_and_counts_are_refused():
    facts = ModelFacts("Net", "conv", ["conv"], 2, 2)
    with pytest.raises(InputError, match="unknown task 'style': expected one of classification"):
        advice.situation_of(facts, task="style")
    with pytest.raises(InputError, match="devices must be at least 1, got 0"):
        advice.situation_of(facts, devices=0)

"""The tools on a real pretrained network: it must still hear 110, 440 and 1000 Hz, within 1 %, after each."""

import copy

import pytest
import torch
from crepe import frames, pitch, sine, sounds, tiny
from torch import nn

import normwise.nn as nw
from normwise.nn import importance
from normwise.surgery.calibrate import calibrate
from normwise.surgery.convert import convert
from normwise.surgery.fold import fold
from normwise.surgery.freeze import audit_frozen, freeze
from normwise.surgery.harden import harden

TONES = (110.0, 440.0, 1000.0)
NORMS = [f"conv{i}_BN" for i in range(1, 7)]


@pytest.fixture(scope="module")
def pretrained():
    return tiny()


@pytest.fixture
def model(pretrained):
    return copy.deepcopy(pretrained)


@pytest.fixture(scope="module")
def audio():
    return sounds(count=10)


def assert_hears(model):
    model.eval()
    assert [pitch(model, sine(hertz)) for hertz in TONES] == pytest.approx(TONES, rel=0.01)


def test_the_network_as_it_is(model):
    assert_hears(model)
    assert [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)] == NORMS


def test_fold_takes_what_is_provable_and_says_why_not_elsewhere(model):
    records = []
    fold(model, frames(sine(300.0)), report=records.append)
    (folded,), left = records[0].folded, records[0].left
    assert (folded.layer, folded.into, folded.side) == ("conv6_BN", "classifier", "after")
    assert folded.through == ["max_pool2d", "permute", "reshape"]
    assert records[0].error < 1e-6
    # The others follow a ReLU, and F.pad puts zeros around what they give, which a folded shift would move.
    assert [row.layer for row in left] == NORMS[:5]
    assert all("relu is no convolution" in row.reason and "lets zeros in at borders" in row.reason for row in left)
    assert records[0].notes == ["proven for calls with embed=False"]
    assert_hears(model)


@pytest.mark.parametrize("layerwise", [False, True])
def test_calibration_on_synthetic_sounds(model, audio, layerwise):
    records = []
    calibrate(model, audio, layerwise=layerwise, report=records.append)
    assert [row.layer for row in records[0].layers] == NORMS  # momentum 0 does not freeze
    assert max(row.var_factor for row in records[0].layers) > 1.2
    assert_hears(model)


def test_freezing_holds_in_training(model, audio):
    freeze(model)
    with audit_frozen(model):
        model.train()
        model(audio[0]).mean().backward()
    assert_hears(model)


def test_from_batch_norm_over_a_learned_mix_back_to_something_that_costs_no_more(model, audio):
    """convert -> train -> importance -> harden -> calibrate -> fold; the teacher is the network itself."""
    teacher, x = copy.deepcopy(model), frames(sine(300.0))
    conversion = convert(model, "switchable", example_inputs=x, share=0.9)
    model = conversion.model
    assert all(isinstance(model.get_submodule(name), nw.SwitchableNorm2d) for name in NORMS)
    mixing = [p for name, p in model.named_parameters() if name.endswith(("mean_weight", "var_weight"))]
    optimizer = torch.optim.Adam(mixing, lr=0.05)
    model.train()
    losses = []
    for batch in audio[:6]:
        with torch.no_grad():
            wanted = teacher(batch)
        loss = nn.functional.binary_cross_entropy(model(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    learned = importance(model)
    assert [row.layer for row in learned] == NORMS
    assert any(abs(row.mean_weights[2] - 0.9) > 0.01 for row in learned)  # training moved the shares
    records = []
    harden(model.eval(), 0.75, x, report=records.append)
    assert {row.became for row in records[0].layers} == {"batch"}
    assert 0 < records[0].drift < 0.3
    calibrate(model, audio)
    assert_hears(model)
    fold(model, x, report=records.append)
    assert records[-1].folded[0].layer == "conv6_BN"
    assert_hears(model)

"""Norms over tokens folded into the linear layers that read them."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from normwise.surgery import find, fold, layer_to_rms

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import architectures


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "ViT", "OLMo 2", "T5"])
def test_outputs_stay_and_weights_are_gone(name):
    pytest.importorskip("transformers", reason="transformers is not installed: see tests/real-networks.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, batch, norms = architectures.built(name)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p) * (p.ndim == 1))
        before = model(**batch).logits
    records = []
    fold(model, batch, report=records.append)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-4)
    reasons = {left.layer: left.reason for left in records[0].left}
    assert len(records[0].folded) + len(reasons) == norms
    left = [f.names[0] for f in find(model) if f.layer.weight is not None]
    assert sorted(left) == sorted(reasons)
    if name == "Gemma 3":
        assert "shares its weights" in reasons["model.norm"]  # tied to the embedding
    if name == "T5":
        assert reasons["encoder.final_layer_norm"] == "its result leaves the model"
    if name == "OLMo 2":
        assert set(reasons) >= {n for n in left if "post" in n}


def test_a_layer_norm_becomes_an_rms_norm_without_a_weight():
    model = nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 4, bias=False)).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    x = torch.randint(9, (3, 5))
    before = model(x)
    layer_to_rms(model, x)
    records = []
    fold(model, x, report=records.append)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    assert isinstance(model[1], nn.RMSNorm)
    assert list(model[1].parameters()) == []
    assert records[0].folded[0].into == "2"
    assert model[2].bias is not None


def test_a_change_that_is_too_large_is_taken_back():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    nn.init.normal_(model[1].weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    norm = model[1]
    with pytest.raises(Exception, match="was undone"):
        fold(model, torch.randn(3, 4), tolerance=0.0)
    assert model[1] is norm
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())

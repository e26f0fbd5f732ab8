"""Layer norms made RMS norms, with the same outputs."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from normwise.errors import InputError, NormwiseError
from normwise.surgery import find, layer_to_rms

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import architectures


class PreNorm(nn.Module):
    """A small transformer's body; ``read`` may look at the stream beside the norms."""

    def __init__(self, bias=True, look=None):
        super().__init__()
        self.table, self.place = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8, bias=bias) for _ in range(3))
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))
        self.out, self.look = nn.Linear(8, 5), look
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            if bias:
                nn.init.normal_(norm.bias)

    def forward(self, x):
        x = 3 * self.table(x) + self.place
        for norm, branch in zip(self.norms, self.branches, strict=False):
            x = x + branch(norm(x))
        return self.out(self.norms[2](x)) + (0 if self.look is None else self.look(x))


def tokens():
    return torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_stay(bias):
    torch.manual_seed(0)
    model = PreNorm(bias).double()
    parameters = set(map(id, model.parameters()))
    before = model(tokens())
    records = []
    assert layer_to_rms(model, tokens(), report=records.append) is model
    torch.testing.assert_close(model(tokens()), before, rtol=1e-10, atol=1e-10)
    assert {f.layer.method for f in find(model)} == {"rms"}
    assert set(map(id, model.parameters())) == parameters
    assert records[0].changed == ["norms.0", "norms.1", "norms.2"]
    assert set(records[0].writers) == {"table", "place", "branches.0.2", "branches.1.2"}
    assert "3 layers made RMS norm" in str(records[0])
    # And for all other inputs, as it is a matter of the weights.
    assert float(model.table.weight.detach().mean(1).abs().max()) < 1e-12


def test_a_copy_leaves_the_model():
    model = PreNorm()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    other = layer_to_rms(model, tokens(), copy=True)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert isinstance(model.norms[0], nn.LayerNorm)
    torch.testing.assert_close(other(tokens()), model(tokens()), rtol=1e-4, atol=1e-4)


def test_what_reads_the_mean_stops_it():
    model = PreNorm(look=nn.Linear(8, 5))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(NormwiseError, match="reads the mean"):
        layer_to_rms(model, tokens())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(isinstance(norm, nn.LayerNorm) for norm in model.norms)


@pytest.mark.parametrize("name", ["GPT-2", "OLMo", "ViT", "Cohere", "BERT", "ConvNeXt", "Llama"])
def test_architectures(name):
    pytest.importorskip("transformers", reason="transformers is not installed: see tests/real-networks.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, batch, _ = architectures.built(name)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p) * (p.ndim == 1))
        before = model(**batch).logits
    records = []
    if name in ("ConvNeXt", "Llama"):
        reason = "it has none over tokens" if name == "Llama" else "no plain layer norm over the last axis"
        with pytest.raises(InputError, match=reason):
            layer_to_rms(model, batch)
        return
    layer_to_rms(model, batch, report=records.append)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)
    # What normalizes behind an addition keeps its mean, and heads are no stream.
    assert len(records[0].left) == {"BERT": 5, "Cohere": 4}.get(name, 0)
    assert len(records[0].changed) == {"BERT": 1, "Cohere": 3}.get(name, 5)
    assert bool(records[0].untied) == (name in ("GPT-2", "BERT", "Cohere"))

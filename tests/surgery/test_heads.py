"""Norms of queries and keys put into attentions."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normwise
from normwise.errors import InputError
from normwise.surgery import qk_norm
from normwise.surgery.flow import record

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import architectures


class Attend(nn.Module):
    """One attention in several ways of writing it down."""

    def __init__(self, way):
        super().__init__()
        self.way, self.qkv, self.out = way, nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(5, 2))

    def rotated(self, t):
        cos, sin, a, b = self.table.cos(), self.table.sin(), t[..., :2], t[..., 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):
        y = self.qkv(x)
        if self.way == "heads first":
            q, k, v = y.unflatten(-1, (4, 3, 4)).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = y.unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        if self.way == "rotated":
            q, k = self.rotated(q), self.rotated(k)
        if self.way == "squashed":
            q = q * torch.sigmoid(q)
        if self.way == "written out":
            y = ((q * 0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("way", ["plain", "heads first", "rotated", "written out"])
def test_queries_and_keys_are_normed_and_values_are_not(way):
    torch.manual_seed(0)
    model, x = Attend(way), torch.randn(2, 5, 16)
    with torch.no_grad():
        model.qkv.weight[:16].mul_(30)
    records = []
    qk_norm(model, [x], report=records.append)
    assert records[0].put == ["qkv"]
    assert 0 < records[0].drift < 1
    assert "output drift" in str(records[0])
    (attention,) = record(model, lambda m: m(x)).attentions()
    for heads, name in ((attention.q, "query"), (attention.k, "key")):
        sizes = heads.square().mean(-1).sqrt()
        start = getattr(model.qkv.head_norm, name)[0] * (0.5 if way == "written out" and name == "query" else 1)
        torch.testing.assert_close(sizes, start.expand_as(sizes), rtol=1e-3, atol=1e-4)
    model(x).sum().backward()
    assert model.qkv.head_norm.query.grad.abs().sum() > 0
    assert set(model.state_dict()) == {*Attend(way).state_dict(), "qkv.head_norm.query", "qkv.head_norm.key"}


def test_what_is_not_understood_is_refused():
    x = torch.randn(2, 5, 16)
    with pytest.raises(InputError, match=r"its query (heads are no parts of|is not) the output"):
        qk_norm(Attend("squashed"), [x])
    with pytest.raises(InputError, match="no product of queries and keys"):
        qk_norm(nn.Sequential(nn.Linear(16, 4)), [x])
    model = qk_norm(Attend("plain"), [x])
    with pytest.raises(InputError, match="has hooks"):
        qk_norm(model, [x])


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "T5", "ViT", "Wav2Vec2", "Qwen3"])
def test_architectures(name):
    pytest.importorskip("transformers", reason="transformers is not installed: see tests/real-networks.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, batch, _ = architectures.built(name)
    records = []

    def put():
        qk_norm(model, [batch], forward=lambda model, batch: model(**batch), report=records.append)

    if name == "Qwen3":
        with pytest.raises(InputError, match="has norms of queries or keys already"):
            put()
        return
    put()
    assert len(records[0].put) == {"GPT-2": 2, "T5": 12}.get(name, 4)
    assert records[0].left == []
    assert records[0].drift < 0.5
    with torch.no_grad():
        found = record(model, lambda m: m(**batch)).attentions()
    for attention in found:
        sizes = attention.k.double().square().mean(-1).sqrt()
        assert float((sizes / sizes.mean() - 1).abs().max()) < 0.01


def test_it_is_the_fix_of_logits_that_have_grown():
    torch.manual_seed(0)
    model, x = Attend("plain"), torch.randn(8, 5, 16)
    with torch.no_grad():
        model.qkv.weight[:32].mul_(40)
    found = normwise.diagnose(model, [x])
    (finding,) = found.of("attention-logits")
    assert finding.changes is not None
    exec(finding.fix, {"model": model, "normwise": normwise, "loader": [x]})
    assert hasattr(model.qkv, "head_norm")

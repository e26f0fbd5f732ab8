"""What diagnose finds in models of tokens, and that it finds nothing where nothing is wrong."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_findings import grave
from torch import nn

import normwise
from normwise.findings import load_diagnosis

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import architectures

pytest.importorskip("transformers", reason="transformers is not installed: see tests/real-networks.txt")

PLACEMENT = {
    **dict.fromkeys(
        ("GPT-2", "Llama", "Qwen3", "OLMo", "Llama 4", "Qwen3-Next", "Mamba 2", "Cohere", "T5", "ViT"), "pre"
    ),
    **dict.fromkeys(("BERT", "Wav2Vec2"), "post"),
    "Gemma 3": "sandwich",
    "OLMo 2": "branch end",
}


def network(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return architectures.built(name)[:2]


def look(model, batch):
    return normwise.diagnose(model, [batch], forward=lambda model, batch: model(**batch), steps=1)


@pytest.mark.parametrize("name", architectures.names())
def test_an_architecture_as_it_is_made_is_well(name):
    model, batch = network(name)
    found = look(model, batch)
    assert grave(found) == [], str(found)
    assert found.tokens.placement == PLACEMENT.get(name)
    assert len(found.norms) >= len(found.tokens.norms) > 0 or name == "diffusion U-Net"
    with_heads = {norm.name for norm in found.tokens.norms if norm.role == "query or key"}
    assert bool(with_heads) == (name in ("Qwen3", "Gemma 3", "OLMo 2", "Llama 4", "Qwen3-Next", "Cohere"))


@pytest.mark.parametrize("name", ["BERT", "Llama", "Gemma 3", "OLMo"])
def test_norms_in_float32_inside_a_bfloat16_model_are_well(name):
    model, batch = network(name)
    found = look(model.to(torch.bfloat16), batch)
    assert grave(found) == [], str(found)
    assert {norm.dtype for norm in found.tokens.norms} == {"bfloat16"}
    # That BERT's eps of 1e-12 is nothing beside the rounding of 16 bits is told, and harms it nowhere.
    assert bool(found.of("eps-resolution")) == (name == "BERT")


def changed(name, change):
    model, batch = network(name)
    with torch.no_grad():
        change(model)
    return model, batch


def one(found, code, severity="warning"):
    (finding,) = found.of(code)
    assert finding.severity == severity
    assert finding.effect
    return finding


def test_attention_logits_that_have_grown(tmp_path):
    model, batch = changed("Llama", lambda m: m.model.layers[1].self_attn.q_proj.weight.mul_(1e4))
    found = look(model, batch)
    finding = one(found, "attention-logits")
    assert finding.layer == "model.layers.1.self_attn.q_proj"
    assert finding.evidence["largest"] > 100
    assert "qk_norm" in finding.fix
    (tmp_path / "it.json").write_text(found.to_json(), encoding="utf-8")
    assert load_diagnosis(tmp_path / "it.json") == found


def test_the_logits_are_those_that_softmax_gets():
    model, batch = network("Llama")
    model.set_attn_implementation("eager")
    written_out = look(model, batch).tokens.attentions
    model.set_attn_implementation("sdpa")
    fused = look(model, batch).tokens.attentions
    for a, b in zip(written_out, fused, strict=True):
        assert a.largest == pytest.approx(b.largest, rel=1e-4)
        assert (a.makers, a.head_size) == (b.makers, b.head_size)


def test_attention_logits_that_have_grown_behind_their_norms():
    model, batch = changed("Qwen3", lambda m: m.model.layers[0].self_attn.q_norm.weight.fill_(100.0))
    finding = one(look(model, batch), "attention-logits")
    assert "normalized by model.layers.0.self_attn.q_norm" in finding.message
    assert finding.changes > 0
    scope = {"model": model, "torch": torch}
    exec(finding.fix, scope)
    assert not look(model, batch).of("attention-logits")


def test_a_residual_stream_that_multiplies():
    model, batch = changed("Llama", lambda m: m.model.layers[1].mlp.down_proj.weight.mul_(1e4))
    finding = one(look(model, batch), "growing-stream")
    assert finding.evidence["last"] > 4 * finding.evidence["middle"]


def test_a_channel_far_larger_than_others():
    model, batch = changed("Llama", lambda m: m.model.embed_tokens.weight[:, 3].mul_(1000.0))
    found = look(model, batch).of("outlier-channel")
    assert {finding.severity for finding in found} == {"info"}
    assert all("channel 3 of its input" in finding.message for finding in found)
    assert len(found) == 5


@pytest.mark.parametrize(("name", "value"), [("Llama", 0.0), ("Gemma 3", -1.0), ("GPT-2", 0.0)])
def test_a_final_norm_at_zero(name, value):
    def silence(model):
        norm = model.transformer.ln_f if name == "GPT-2" else model.model.norm
        norm.weight.fill_(value)

    model, batch = changed(name, silence)
    finding = one(look(model, batch), "final-norm-at-0", "error")
    scope = {"model": model, "torch": torch}
    exec(finding.fix, scope)
    assert grave(look(model, batch)) == []


@pytest.mark.parametrize(("name", "told", "mean"), [("Llama", "w alone", 0.0), ("Gemma 3", "twice what", 1.0)])
def test_weights_in_the_wrong_convention(name, told, mean):
    def load(model):
        for part, module in model.named_modules():
            if "norm" in part:
                nn.init.normal_(module.weight, mean, 0.1)

    model, batch = changed(name, load)
    finding = one(look(model, batch), "weight-convention")
    assert told in finding.message
    assert finding.evidence["layers"] == (5 if name == "Llama" else 13)
    exec(finding.fix, {"model": model, "torch": torch})
    assert grave(look(model, batch)) == []


class Norm(nn.Module):
    def __init__(self, eps, inside=None):
        super().__init__()
        self.weight, self.eps, self.inside = nn.Parameter(torch.ones(32)), eps, inside

    def forward(self, x):
        h = x.to(self.inside or x.dtype)
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("eps", "inside"), [(1e-12, None), (1e-5, None), (1e-5, torch.float32), (1e-12, torch.float32)]
)
def test_norms_in_sixteen_bits(dtype, eps, inside):
    model = nn.Sequential(nn.Embedding(64, 32), Norm(eps, inside), nn.Linear(32, 64)).to(dtype)
    found = normwise.diagnose(model, [torch.randint(64, (4, 16))])
    codes = {(f.code, f.severity) for f in found.findings}
    low, rough = eps == 1e-12, inside is None
    lost = low and rough and dtype is torch.float16
    expected = {("eps-resolution", "warning" if lost else "info")} if low else set()
    assert codes == expected | ({("rough-statistics", "warning")} if rough else set())


def test_a_norm_that_is_not_understood_is_told_and_not_judged():
    class StrangeNorm(nn.Module):
        def forward(self, x):
            return x / x.abs().amax(-1, keepdim=True)

    model = nn.Sequential(nn.Embedding(64, 32), StrangeNorm(), nn.Linear(32, 64))
    finding = one(normwise.diagnose(model, [torch.randint(64, (4, 16))]), "not-understood", "info")
    assert finding.layer == "1"

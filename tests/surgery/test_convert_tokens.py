"""Networks of transformers, at random tiny size, brought to the methods for tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import normwise
from normwise import nn as nw
from normwise.errors import InputError
from normwise.methods import Method, with_parameters
from normwise.surgery import convert, find, to_torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 1}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1}
# What builds them, the method they have, how many layers.
MODELS = {
    "Llama": (lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)), "rms", 5),
    "Qwen3": (lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=2)), "rms", 9),
    "OLMo 2": (lambda t: t.Olmo2ForCausalLM(t.Olmo2Config(**SMALL)), "rms", 9),
    "GPT-2": (lambda t: t.GPT2LMHeadModel(t.GPT2Config(**GPT2, eos_token_id=1)), "layer", 5),
    "BERT": (lambda t: t.BertForMaskedLM(t.BertConfig(**SMALL)), "layer", 6),
    "T5": (lambda t: t.T5ForConditionalGeneration(t.T5Config(**T5, decoder_start_token_id=0)), "rms", 12),
}
CAUSAL = ["Llama", "Qwen3", "OLMo 2", "GPT-2"]


def made(name):
    torch.manual_seed(0)
    ids = torch.randint(2, 97, (2, 9))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids.flip(0).clone()} if name == "T5" else {})
    return MODELS[name][0](transformers).eval(), inputs


@pytest.mark.parametrize("to", ["layer", "rms", "l2", "dyt", "derf"])
@pytest.mark.parametrize("name", MODELS)
def test_each_layer_becomes_one_per_token(name, to):
    model, inputs = made(name)
    _, method, count = MODELS[name]
    weights = {id(found.layer.weight) for found in find(model)}
    own = model(**inputs).logits
    conversion = convert(model, to, example_inputs=inputs)
    new = find(model)
    assert {(f.layer.method, f.layer.channel_axis, f.layer.problem) for f in new} == {(to, -1, None)}
    assert {id(f.layer.weight) for f in new} == weights  # the same parameters
    assert len(conversion.record.replaced) == (0 if to == method else count)
    assert (conversion.record.output_drift < 1e-6) == (to == method)
    lost = {text for r in conversion.record.replaced for text in r.lost}
    assert not any("all positions" in text for text in lost)
    assert ("it did not subtract the mean" in lost) == (method == "rms" and to == "layer")
    assert ("it subtracted the mean" in lost) == (method == "layer" and to in ("rms", "l2"))
    carried = {text for r in conversion.record.replaced for text in r.carried}
    assert to == method or any(text.startswith("eps") for text in carried) == (to in ("layer", "rms", "l2"))
    model(**inputs).logits.square().mean().backward()
    conversion.undo()
    torch.testing.assert_close(model(**inputs).logits, own)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_is_not_shown_its_future(name):
    model, inputs = made(name)
    for given in ({"example_inputs": inputs}, {}):  # without examples it makes up token numbers
        with pytest.raises(InputError, match=r"is causal, and with group norm it would see.*allow_leak=True"):
            convert(model, "group", **given)
    assert convert(copy.deepcopy(model), "group", allow_leak=True).record.replaced


def test_every_sequence_that_comes_in_is_looked_at():
    model, inputs = made("T5")
    with pytest.raises(InputError, match="is causal, and with group norm"):  # its decoder
        convert(model, "group", example_inputs=inputs)
    assert convert(made("BERT")[0], "group").record.replaced


@pytest.mark.parametrize("name", ["Llama", pytest.param("T5", marks=pytest.mark.long)])
def test_advice_leaves_rms_norm_where_it_is(name):
    model, inputs = made(name)
    advice = normwise.advise(model, inputs, measure=False)
    assert advice.best.method == "rms"
    assert advice.best.code == "# the model stays as it is"


def test_weights_that_are_offsets_from_1_stay_so_or_are_made_whole():
    sizes = {**SMALL, "head_dim": 8, "num_key_value_heads": 2}
    torch.manual_seed(0)
    gemma = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes)).eval()
    for found in find(gemma):
        nn.init.normal_(found.layer.weight, std=0.1)
    inputs = {"input_ids": torch.randint(2, 97, (2, 9))}
    same = convert(gemma, "rms(offset=1)", example_inputs=inputs, copy=True)
    assert same.record.output_drift < 1e-5
    assert {(f.layer.method, f.layer.offset) for f in find(same.model)} == {("rms", 1)}
    assert {type(f.module).__name__ for f in find(same.model)} == {"RMSNormNd"}
    layered = convert(gemma, "layer", example_inputs=inputs, copy=True)
    assert "1 + weight" in layered.record.replaced[0].carried
    back = convert(layered.model, "rms").model  # the plain convention, with the sums as weights
    torch.testing.assert_close(back(**inputs).logits, gemma(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert normwise.advise(gemma, inputs, measure=False).best.code == "# the model stays as it is"


@dataclass(frozen=True)
class Milder(Method):
    """RMS norm by a power of the mean square, of each position."""

    power: float = 0.5

    pools = ("layer",)
    per_token = True

    def affine(self, cells, given):
        m = self.pooled("layer", cells, given)
        scale = (m.var + m.mean.square() + given.eps) ** (-self.power / 2)
        return with_parameters(torch.zeros_like(scale), scale, given)


@dataclass(frozen=True)
class Softsign(Method):
    """A curve of one's own."""

    per_token = True

    def curve(self, x):
        return x / (1 + x.abs())


@pytest.mark.parametrize("method", [Milder(1.0), Milder(0.5), Softsign()])
def test_methods_of_ones_own_for_tokens(method):
    model, inputs = made("GPT-2")
    convert(model, method, example_inputs=inputs)  # and nobody takes it to look ahead
    assert {type(found.module) for found in find(model)} == {nw.Norm}
    layer, x = model.transformer.ln_f, torch.randn(2, 5, 32)
    square = (x.square().mean(-1, keepdim=True) + layer.__dict__["eps"]) ** (getattr(method, "power", 0) / 2)
    wanted = (x / (1 + x.abs()) if isinstance(method, Softsign) else x / square) * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(nw.norm_layer(method)(32)(x.transpose(1, 2)).transpose(1, 2), nw.Norm(method, 32)(x))


def test_there_and_back():
    model, inputs = made("GPT-2")
    own = model(**inputs).logits
    for to in ("rms", "dyt", "none", "batch", "l2", "layer"):
        convert(model, to, allow_leak=True)
    assert {type(f.module) for f in find(model)} == {normwise.surgery.layouts.LayerNormNd}
    torch.testing.assert_close(model(**inputs).logits, own)
    to_torch(model)
    assert {type(f.module) for f in find(model)} == {nn.LayerNorm}
    torch.testing.assert_close(model(**inputs).logits, own)


def test_torchs_encoder_layer_gets_them_by_convert():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 16)
    convert(layer, "rms", example_inputs=x)
    assert isinstance(layer.norm1, nn.RMSNorm)
    with torch.no_grad():
        quick = layer(x)
    torch.testing.assert_close(quick, layer(x.requires_grad_()))
    assert not torch.allclose(quick, nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()(x))


def test_layers_of_norm_layer_are_described_once_they_ran():
    class Tokens(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm(8)

        def forward(self, x):
            return self.norm(x)

    for method in ("layer", "rms", "dyt"):
        model = Tokens(nw.norm_layer(method))
        if method != "layer":  # which is that of maps until it has seen tokens
            with pytest.raises(InputError, match="seen none yet; run the model once"):
                convert(model, "group")
        model(torch.randn(2, 5, 8))
        (found,) = find(model)
        assert (found.layer.method, found.layer.channel_axis) == (method, -1)
        assert to_torch(copy.deepcopy(model)).norm.weight.shape == (8,) if method != "dyt" else True
        torch.testing.assert_close(
            convert(model, "layer").model(torch.ones(2, 5, 8)), torch.zeros(2, 5, 8), rtol=0, atol=1e-6
        )

"""Architectures that people train, at random tiny size: every norm of each is found, by what it computes."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from normwise.surgery import inspect
from normwise.surgery.layers import find, not_understood

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import architectures

pytest.importorskip("transformers", reason="transformers is not installed: see tests/real-networks.txt")

METHODS = {
    **{name: {"layer"} for name in ("BERT", "GPT-2", "OLMo", "ViT", "ConvNeXt", "Cohere")},
    **{name: {"rms"} for name in ("Llama", "Qwen3", "Gemma 3", "OLMo 2", "Llama 4", "Qwen3-Next", "Mamba 2", "T5")},
    "Wav2Vec2": {"layer", "instance"},
    "diffusion U-Net": {"group"},
}


@pytest.fixture(scope="module", params=architectures.names())
def network(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param, *architectures.built(request.param)


def test_all_layers_are_found(network):
    name, model, _, norms = network
    found = find(model)
    assert sum(len(f.names) for f in found) == norms
    assert not_understood(model, found) == []
    assert {f.layer.method for f in found} == METHODS[name]
    # An eps is what the configuration says, and is read from outputs where no attribute holds it.
    assert {f.layer.eps for f in found} <= {1e-5, 1e-6, 1e-12}
    offsets = {f.layer.offset for f in found if f.layer.gate is None}
    assert offsets == ({1.0} if name in ("Gemma 3", "Qwen3-Next") else {0.0})


def test_the_layers_stay_as_they_are(network):
    _, model, batch, _ = network
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first = model(**batch)
        inspect(model)
        second = model(**batch)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(*(out[0] if isinstance(out, tuple) else getattr(out, "logits", out) for out in (first, second)))


@pytest.mark.parametrize(("name", "placement"), [("BERT", "post"), ("Llama", "pre"), ("Gemma 3", "sandwich")])
def test_the_placement_is_read_from_a_run(name, placement):
    model, batch, norms = architectures.built(name)
    shown = inspect(model, batch)
    assert shown.placement == placement
    assert f"placement of the blocks: {placement}" in str(shown)
    assert sum(row.role is not None for row in shown.layers) == norms
    assert inspect(model).placement is None


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen3-Next"])
def test_a_checkpoint_says_that_its_weights_are_offsets_from_1(name):
    model, _, _ = architectures.built(name)
    norms = [f for f in find(model) if f.layer.offset]
    with torch.no_grad():
        for f in norms:
            f.module.weight.normal_(0, 0.1)
        gated = [f for f in find(model) if f.layer.gate]
        for f in gated:
            f.module.weight.normal_(1, 0.1)
    shown = inspect({k: v for k, v in model.state_dict().items() if "norm" in k})
    assert [(f.severity, f.code) for f in shown.findings] == [("info", "weight-convention")]
    assert f"the weights of {len(norms)} layers" in shown.findings[0].message
    told = {row.names[0]: row.weight for row in shown.layers}
    assert all(told[f.names[0]].startswith("1 + w (median ") for f in norms)
    assert all(told[f.names[0]].startswith("w (median ") for f in gated)


def test_a_checkpoint_of_plain_weights_says_so():
    model, _, _ = architectures.built("Llama")
    with torch.no_grad():
        for f in find(model):
            f.module.weight.normal_(1, 0.1)
    shown = inspect({k: v for k, v in model.state_dict().items() if "norm" in k})
    assert shown.findings == []
    assert all(row.weight.startswith("w (median ") for row in shown.layers)
    assert "0% below 0" in str(shown)


def test_weights_in_half_precision_are_read_alike():
    for name in ("Gemma 3", "Llama", "OLMo", "Llama 4"):
        model, _, norms = architectures.built(name)
        found = find(model.to(torch.bfloat16))
        assert sum(len(f.names) for f in found) == norms
        assert {f.layer.offset for f in found} == {1.0 if name == "Gemma 3" else 0.0}


def test_compiled_norms_are_found_under_their_name():
    model, _, _ = architectures.built("Llama")
    model.model.norm = torch.compile(model.model.norm, backend="eager")
    found = {f.names[0]: f.layer for f in find(model)}
    assert len(found) == 5
    assert (found["model.norm"].method, found["model.norm"].channels) == ("rms", 32)
    assert isinstance(model.model.norm._orig_mod, nn.Module)

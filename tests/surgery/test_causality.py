"""Which models see what comes later, and which methods make them."""

import pytest
import torch
from torch import nn

from normwise import advise, convert
from normwise.errors import InputError
from normwise.nn import norm_layer
from normwise.surgery.causality import leaks, sights


class Causal(nn.Module):
    """A causal convolution over tokens or values, with a norm of channels (N, C, L) behind it."""

    def __init__(self, norm, tokens=True):
        super().__init__()
        self.embedding = nn.Embedding(11, 8) if tokens else nn.Linear(4, 8)
        self.conv, self.norm, self.head = nn.Conv1d(8, 8, 3), norm, nn.Linear(8, 11)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = nn.functional.pad(self.embedding(x).transpose(1, 2), (2, 0))
        return self.head(self.drop(self.norm(self.conv(y)).relu().transpose(1, 2)))


class PerToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def run(model, x):
    return model(x)


def seen(norm, tokens=True):
    torch.manual_seed(0)
    model = Causal(norm, tokens)
    return sights(model, run, torch.randint(0, 11, (3, 9)) if tokens else torch.randn(3, 9, 4))


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("method", ["batch", "instance", "layer", "group(num_groups=2)", "switchable"])
def test_what_pools_over_positions_sees_ahead(method, tokens):
    before, after = seen(PerToken(), tokens), seen(norm_layer(method, dim=1)(8), tokens)
    assert before["training", 1].causal
    assert before["evaluation", 1].causal
    modes = {"training"} if method == "batch" else {"training", "evaluation"}
    assert leaks(before, after).keys() == modes
    assert all(moved > 0.003 for moved in leaks(before, after).values())


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_nets_are_causal_and_two_way_ones_are_not(kind):
    x = torch.randn(2, 6, 4)
    assert sights(kind(4, 5, batch_first=True), run, x)["evaluation", 1].causal
    assert not sights(kind(4, 5, batch_first=True, bidirectional=True), run, x)["evaluation", 1].causal


def test_images_and_classifiers_have_no_order():
    image = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    assert sights(image, run, torch.randn(2, 3, 8, 8)) == {}
    classifier = nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    assert not any(s.causal for s in sights(classifier, run, torch.randn(2, 3, 9)).values())
    same = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.GroupNorm(2, 4))
    assert not any(s.causal for s in sights(same, run, torch.randn(2, 3, 9)).values())


def test_the_model_is_left_as_it_was():
    model = Causal(nn.BatchNorm1d(8))
    model.norm.eval()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    x = torch.randint(0, 11, (3, 9))
    random = torch.get_rng_state()
    sights(model, run, x)
    assert all(t.equal(state[name]) for name, t in model.state_dict().items())
    assert model.training
    assert not model.norm.training
    assert torch.get_rng_state().equal(random)


def test_arguments_by_name_and_masks():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Causal(PerToken())

        def forward(self, ids, attention_mask):
            return {"logits": self.inner(ids) * attention_mask[..., None]}

    batch = {"attention_mask": torch.ones(2, 7, dtype=torch.long), "ids": torch.randint(0, 11, (2, 7))}
    assert sights(Named(), lambda model, b: model(**b), batch)["evaluation", 1].causal


class LanguageModel(nn.Module):
    """Tokens, causal attention and LayerNorm, as torch writes it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.block(self.embedding(tokens), mask, is_causal=True))


@pytest.mark.parametrize("method", ["batch", "instance", "group", "switchable"])
def test_convert_refuses_to_let_a_causal_model_look_ahead(method):
    torch.manual_seed(0)
    model, tokens = LanguageModel(), torch.randint(0, 11, (4, 8))
    state, layer = {k: t.clone() for k, t in model.state_dict().items()}, model.block.norm1
    with pytest.raises(InputError, match=r"the model is causal, and with \w+ norm it would see .*allow_leak=True"):
        convert(model, method, example_inputs=tokens)
    assert model.block.norm1 is layer
    assert all(t.equal(state[k]) for k, t in model.state_dict().items())
    assert convert(model, method, example_inputs=tokens, allow_leak=True).record.replaced


def test_advise_refuses_what_looks_ahead():
    torch.manual_seed(0)
    advice = advise(LanguageModel(), torch.randint(0, 11, (4, 8)), measure=False)
    refused = {r.method: r.refused for r in advice.ranking if r.refused}
    assert {"batch", "instance", "group", "switchable"} <= set(refused)
    assert all("causal" in refused[m] for m in ("batch", "group", "switchable"))
    assert advice.best.method not in refused

"""What a dry run tells of a model, hand-written and real."""

import pytest
import torch
from torch import nn

import normwise.nn as nw
from normwise.errors import InputError
from normwise.nn import norm_layer
from normwise.probe.facts import survey, survey_batch
from normwise.probe.padding import padded_share
from normwise.records import from_dict, to_dict
from normwise.study.tasks.images import ConvNet


class Attention(nn.Module):
    """Attention written out, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.qk, self.v, self.norm = nn.Linear(8, 16), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        q, k = self.qk(x).chunk(2, -1)
        return self.norm(x + (q @ k.transpose(1, 2)).softmax(-1) @ self.v(x))


class WrittenOut(nn.Module):
    """A recurrence as a loop over plain layers; with ``feed_forward`` each frame is taken by itself, all at once."""

    def __init__(self, feed_forward=False):
        super().__init__()
        self.into, self.back, self.feed_forward = nn.Linear(4, 8), nn.Linear(8, 8), feed_forward

    def forward(self, x):
        if self.feed_forward:
            return self.back(self.into(x).tanh())
        h = x.new_zeros(len(x), 8)
        for frame in x.unbind(1):
            h = (self.into(frame) + self.back(h)).tanh()
        return h


@pytest.mark.parametrize(
    ("model", "example", "architecture"),
    [
        (ConvNet(norm_layer("batch"), 1, 10), torch.zeros(2, 1, 8, 8), "conv"),
        (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.zeros(2, 4), "mlp"),
        (nn.LSTM(4, 8), torch.zeros(2, 5, 4), "recurrent"),
        (nw.LayerNormGRU(4, 8), torch.zeros(2, 5, 4), "recurrent"),
        (WrittenOut(), torch.zeros(2, 5, 4), "recurrent"),
        (WrittenOut(feed_forward=True), torch.zeros(2, 5, 4), "mlp"),
        (Attention(), torch.zeros(2, 5, 8), "attention"),
        (nn.TransformerEncoderLayer(16, 2, batch_first=True), torch.zeros(2, 5, 16), "attention"),
        (nn.Sequential(nn.ConvTranspose2d(8, 3, 4)), torch.zeros(2, 8, 1, 1), "generative"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)),
            torch.zeros(2, 3, 8, 8),
            "generative",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_architectures_are_told_by_what_runs(model, example, architecture):
    assert survey(model, example).architecture == architecture


class Steps(nn.Module):
    """A norm that runs at every step of a sequence."""

    def __init__(self, features=4):
        super().__init__()
        self.into, self.norm = nn.Linear(features, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return sum(self.norm(self.into(frame)) for frame in x.unbind(1))


def test_drift_is_the_share_of_variance_between_the_steps_of_a_loop():
    torch.manual_seed(0)
    model, x = Steps(), torch.randn(64, 6, 4)
    alike = survey(model, x).norms[0].drift
    apart = survey(model, x + torch.arange(6.0)[:, None]).norms[0].drift
    assert alike < 0.05
    with torch.no_grad():
        steps = model.into(x + torch.arange(6.0)[:, None])
    between, within = steps.mean(0).var(0).mean().item(), steps.var(0).mean().item()
    assert apart == pytest.approx(between / (between + within), abs=0.02)
    # With two samples a step chance moves the means, which is taken off.
    few = [survey(model, torch.randn(2, 50, 4)).norms[0].drift for _ in range(8)]
    assert sum(few) / len(few) < 0.05
    constant = survey(model, torch.ones(3, 6, 4)).norms[0].drift
    assert constant == 0.0
    assert survey(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), x[:, 0]).norms[0].drift is None


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (nn.Linear(3, 8), (2, 3), 3),
        (nn.Conv1d(2, 8, 3), (2, 2, 9), 6),
        (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 5, 5), 18),
        (nn.LSTM(1, 8), (2, 5, 1), 1),
        (nn.ConvTranspose1d(2, 8, 3), (2, 2, 9), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_fan_in_is_what_an_output_is_made_from(layer, shape, fan_in):
    assert survey(nn.Sequential(layer), torch.zeros(shape)).weights[0].fan_in == fan_in


def test_tokens_are_told_from_measurements():
    assert survey(nn.Embedding(5, 3), torch.zeros(2, 4, dtype=torch.long)).tokens
    assert not survey(nn.Linear(4, 3), torch.zeros(2, 4)).tokens


def test_order_sizes_and_neighbours():
    facts = survey(ConvNet(norm_layer("switchable"), 1, 10), torch.zeros(2, 1, 8, 8), batch_size=16)
    assert [norm.name for norm in facts.norms] == ["1", "4", "7"]
    assert [norm.order for norm in facts.norms] == [1, 3, 5]
    assert [norm.spatial for norm in facts.norms] == [[8, 8], [4, 4], [2, 2]]
    assert [norm.after for norm in facts.norms] == ["0", "3", "6"]
    assert [weight.normalized_by for weight in facts.weights] == ["1", "4", "7", None]
    assert [norm.samples for norm in facts.norms] == [16] * 3
    assert facts.norms[1].elements == 16  # of the mix's smallest member, instance
    assert facts.norms[1].elements_of("batch") == 256
    assert facts.norms[1].elements_of("group", num_groups=8) == 64
    assert (facts.depth, facts.activations, facts.example_size) == (4, {"relu": 3}, 2)
    with pytest.raises(InputError, match="unknown pool"):
        facts.norms[1].elements_of("weight")


@pytest.mark.parametrize(
    ("norm", "shape", "elements"),
    [
        (nn.BatchNorm2d(8), (2, 8, 3, 3), 4 * 9),
        (nn.BatchNorm1d(8), (2, 8), 4),
        (nn.GroupNorm(2, 8), (2, 8, 3, 3), 4 * 9),
        (nn.GroupNorm(1, 8), (2, 8, 3, 3), 8 * 9),
        (nn.InstanceNorm2d(8), (2, 8, 3, 3), 9),
        (nn.LayerNorm(8), (2, 5, 8), 8),
        (nn.RMSNorm(8), (2, 5, 8), 8),
        (nw.GhostBatchNorm(8, ghost_size=2), (2, 8, 3, 3), 2 * 9),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_elements_behind_each_statistic(norm, shape, elements):
    assert survey(nn.Sequential(norm), torch.zeros(shape), batch_size=4).norms[0].elements == elements


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    survey(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(RuntimeError):
        survey(model, torch.zeros(2, 5, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_shared_idle_and_residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.idle = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return x + self.norm(self.fc(self.norm(x)).relu_())

    facts = survey(Net(), torch.zeros(3, 4))
    assert [(norm.name, norm.calls, norm.order) for norm in facts.norms] == [("norm", 2, 0), ("idle", 0, None)]
    assert facts.weights[0].normalized_by is None  # relu_ wrote into its output
    assert facts.residual_adds == 1
    assert facts.norms[1].elements is None


def test_facts_survive_json():
    facts = survey_batch(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), (torch.zeros(5, 2), torch.zeros(5)))
    assert from_dict(type(facts), to_dict(facts)) == facts
    assert facts.inputs[0] == [5, 2]


def test_batch_size_is_checked():
    with pytest.raises(InputError, match="at least 1"):
        survey(nn.Linear(2, 2), torch.zeros(1, 2), batch_size=0)


def test_padding_is_seen():
    tokens = torch.tensor([[5, 3, 0, 0], [4, 4, 4, 2]])
    assert padded_share(tokens) == 0.25
    # Text cut into windows: what happens to come last is no padding.
    assert padded_share(torch.tensor([[4, 2, 7, 2], [2, 5, 4, 9]])) == 0
    assert padded_share({"input_ids": tokens, "attention_mask": (tokens != 0).long()}) == 0.25
    features = torch.rand(2, 3, 4) + 0.1
    assert padded_share((features, torch.zeros(2))) == 0
    features[0, :, 2:] = 0
    assert padded_share((features, torch.zeros(2))) == 0.25
    assert padded_share(torch.rand(2, 3, 8, 8)) is None


class Thinning(nn.Module):
    """Dropout by another name."""

    def forward(self, x):
        return x * (torch.rand_like(x) > 0.25) / 0.75 if self.training else x


class DropLast(nn.Module):
    """A name that lies."""

    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, x):
        return x


class TwoBranches(nn.Module):
    """Dropout in one branch, and a norm in each."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout, self.linear = dropout, nn.Linear(4, 4)
        self.clean, self.thinned = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        other = self.linear(self.dropout(x)).relu()
        return self.clean(x) + self.thinned(other)


@pytest.mark.parametrize(
    ("dropout", "rate"), [(nn.Dropout(0.5), 0.5), (Thinning(), 0.25), (DropLast(), 0), (nn.ReLU(), 0)]
)
def test_dropout_is_known_by_what_it_does_and_belongs_to_its_branch(dropout, rate):
    facts = survey(TwoBranches(dropout), torch.randn(8, 4))
    assert facts.dropout == pytest.approx(rate, abs=0.05)
    assert {norm.name: norm.dropout for norm in facts.norms} == {"clean": None, "thinned": "dropout" if rate else None}

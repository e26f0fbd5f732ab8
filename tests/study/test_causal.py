"""compare does not score a causal model for what it is to predict."""

import pytest
import torch
from torch import nn

from normwise.errors import InputError
from normwise.study import compare, make_task
from normwise.study.causal import without_leaks
from normwise.study.comparison import make_settings

QUICK = {"batch_sizes": [4], "seeds": 2, "lrs": [0.05], "epochs": 1, "progress": False}


class Causal(nn.Module):
    """Predicts the next token; the norm of (N, C, L) may pool over positions."""

    def __init__(self, norm):
        super().__init__()
        self.embedding, self.conv, self.norm = nn.Embedding(7, 8), nn.Conv1d(8, 8, 3), norm(8)
        self.head = nn.Conv1d(8, 7, 1)

    def forward(self, x):
        y = nn.functional.pad(self.embedding(x).transpose(1, 2), (2, 0))
        return self.head(self.norm(self.conv(y)).relu())


def written(_=None):
    return Causal(lambda channels: nn.GroupNorm(2, channels))


def tokens():
    text = torch.randint(0, 7, (60, 13), generator=torch.Generator().manual_seed(0))
    return text[:, :-1], text[:, 1:]


def make(norm):
    return Causal(lambda channels: norm(channels, 1))


def test_methods_that_see_ahead_are_left_out():
    study = compare(make, tokens(), **QUICK)
    settings = study.record.settings
    assert settings.methods == ["none", "rms", "dyt", "derf"]
    text = " ".join(settings.notes)
    for part in ("layer (", "left out"):
        assert part in text


def test_what_sees_ahead_in_training_alone_is_noted():
    study = compare(make, tokens(), methods=["none", "batch"], **QUICK)
    assert study.record.settings.methods == ["none", "batch"]
    assert "In training batch also sees" in " ".join(study.record.settings.notes)


def test_methods_that_see_ahead_are_refused_where_they_were_named():
    with pytest.raises(
        InputError, match=r"would see what it is to predict with group \(0\.\d+ of their size\).*allow_leak"
    ):
        compare(make, tokens(), methods=["none", "group"], **QUICK)
    study = compare(make, tokens(), methods=["none", "group"], allow_leak=True, **QUICK)
    assert study.record.settings.methods == ["none", "group"]


def test_models_that_see_both_ways_are_left_alone():
    """Written with group norm over positions, the model is not causal to begin with."""
    study = compare(written, tokens(), methods=["as_is", "instance"], **QUICK)
    assert study.record.settings.notes == [n for n in study.record.settings.notes if "causal" not in n]


def test_each_method_is_built_once():
    built = []

    def counted(norm):
        built.append(1)
        return make(norm)

    task = make_task(counted, tokens())
    settings = make_settings(task, ["none", "batch", "group"], [4], 2, [0.05], 1)
    built.clear()
    without_leaks(task, settings, chosen=False)
    assert len(built) == 3

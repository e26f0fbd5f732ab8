"""``compare`` on a transformer of one's own: what normalizes each token by itself is never taken to look ahead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normwise.errors import InputError
from normwise.study import compare

QUICK = {"batch_sizes": [20], "seeds": 2, "lrs": [0.05], "epochs": 0.5, "progress": False}


class Writer(nn.Module):
    """A causal transformer of one layer, its norms before attention and linear layers."""

    def __init__(self, norm):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.norms = nn.ModuleList(norm(16) for _ in range(3))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, ids):
        x = self.embedding(ids)
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return self.head(self.norms[2](x + self.linear(self.norms[1](x))))


def data():
    ids = torch.randint(0, 11, (120, 13), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize(
    ("make", "methods"),
    [
        (Writer, ["layer", "rms", "l2", "dyt", "derf", "none"]),
        (lambda: Writer(nn.LayerNorm), ["as_is", "rms", "dyt(alpha=0.2)", "none"]),
    ],
    ids=["norm", "converted"],
)
def test_methods_for_tokens_are_compared(make, methods):
    study = compare(make, data(), methods=methods, **QUICK)
    assert {t.setup.method for t in study.trials if t.state == "complete"} == {*methods}
    assert not any("causal" in note for note in study.record.settings.notes)


def test_what_looks_ahead_is_still_refused():
    with pytest.raises(InputError, match=r"would see what it is to predict with group"):
        compare(lambda: Writer(nn.LayerNorm), data(), methods=["as_is", "group"], **QUICK)
    with pytest.raises(InputError, match=r"would see what it is to predict with group\(axis=-1\)"):
        compare(Writer, data(), methods=["none", "group(axis=-1)"], **QUICK)

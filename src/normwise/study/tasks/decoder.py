"""A small decoder as they are built today: rotary positions, SwiGLU, and the place of its norms to choose."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normwise.errors import InputError
from normwise.nn import NormFactory

PLACEMENTS = ("pre", "post", "sandwich")


class Decoder(nn.Module):
    """Predicts the next token by causal attention.

    Norms stand before each part and at the end (``"pre"``: x + f(norm(x)), Xiong et al. 2020, arXiv 2002.04745), behind
    each sum (``"post"``: norm(x + f(x))), or on both sides of each part (``"sandwich"``: x + norm(f(norm(x))), Ding et
    al. 2021, arXiv 2105.13290; Kim et al. 2025, arXiv 2502.02732). ``qk_norm`` normalizes queries and keys head by head
    (Henry et al. 2020, arXiv 2010.04245).
    """

    def __init__(
        self,
        norm: NormFactory,
        tokens: int = 256,
        width: int = 72,
        depth: int = 2,
        heads: int = 4,
        placement: str = "pre",
        qk_norm: NormFactory | None = None,
    ) -> None:
        super().__init__()
        if placement not in PLACEMENTS:
            raise InputError(f"unknown placement {placement!r}: known are {', '.join(PLACEMENTS)}")
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(Residual(Attention(width, heads, qk_norm), norm, width, placement))
            self.blocks.append(Residual(SwiGLU(width), norm, width, placement))
        self.norm = nn.Identity() if placement == "post" else norm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        self._start(depth)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give (N, L, V) scores of the next token for (N, L) tokens."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores

    def _start(self, depth: int) -> None:
        """Draw weights that keep the size of what they read, so that a model without norms trains as well.

        What writes to the stream starts smaller, by the number of parts, so that the stream does not grow with depth.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                parts = 2 * depth if name.endswith(("out", "down")) else 1
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features * parts))


class Residual(nn.Module):
    """Adds what a part makes of the stream to it, with norms where they are placed."""

    def __init__(self, part: nn.Module, norm: NormFactory, width: int, placement: str) -> None:
        super().__init__()
        self.part = part
        self.before = norm(width) if placement != "post" else nn.Identity()
        self.behind = norm(width) if placement == "sandwich" else nn.Identity()
        self.after = norm(width) if placement == "post" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Give the stream as it goes on."""
        stream: Tensor = self.after(x + self.behind(self.part(self.before(x))))
        return stream


class Attention(nn.Module):
    """Causal attention of several heads with rotary positions (Su et al. 2021, arXiv 2104.09864)."""

    def __init__(self, width: int, heads: int, qk_norm: NormFactory | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.query_norm, self.key_norm = (qk_norm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Give (N, L, C) of (N, L, C)."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotated(self.query_norm(query)), rotated(self.key_norm(key))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), of 8/3 the width (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * round(width / 3)
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give (N, L, C) of (N, L, C)."""
        gate, up = self.up(x).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


def rotated(x: Tensor, base: float = 10000.0) -> Tensor:
    """Turn pairs of values by angles that grow with the position: (..., L, D)."""
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

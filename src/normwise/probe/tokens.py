"""What one pass shows of a model of tokens: where its norms stand, the residual stream, channels, attention logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normwise.findings import AttentionTrace, TokenNorm, TokenTrace
from normwise.parametrize._copies import deep_copy
from normwise.surgery.description import NormLayer, unhooked
from normwise.surgery.flow import Attention, Reading, record
from normwise.surgery.layers import Found

HALF = (torch.float16, torch.bfloat16)
# Samples whose logits are computed; tokens that a norm is tried on, and what it needs to be judged by.
_SAMPLES, _TOKENS, _CHANNELS = 2, 64, 16
# Masks put logits this far down.
_MASKED = -1e4


def trace_tokens(model: nn.Module, run: Callable[[nn.Module], Any]) -> TokenTrace | None:
    """Run a model once in evaluation; ``None`` where nothing of it works on tokens, or it does not run so."""
    try:
        reading = record(model, run)
        if not (any(f.layer.per_token for f in reading.norms.values()) or reading.attentions()):
            return None
        roles = reading.roles()
        norms = [_norm(reading, name, found, roles.get(name)) for name, found in reading.norms.items()]
        return TokenTrace(
            placement=reading.placement(),
            norms=[norm for norm in norms if norm is not None],
            attentions=[_attention(attention) for attention in reading.attentions()],
            stream=[_size(reading.steps[index].value) for index in reading.stream()],  # type: ignore[arg-type]
        )
    except Exception:  # a foreign model may not bear being watched: then nothing is known of it
        return None


def _size(x: Tensor) -> float:
    value = float(x.detach().double().square().mean().sqrt())
    return value if math.isfinite(value) else math.inf


def _norm(reading: Reading, name: str, found: Found, role: str | None) -> TokenNorm | None:
    layer, calls = found.layer, reading.calls(name)
    x = next((t for i in calls for t in reading.steps[i].given if isinstance(t, Tensor)), None)
    if x is None or not layer.per_token or x.ndim < 2 or not x.numel():
        return None
    values = x.detach().double().movedim(layer.channel_axis, -1).flatten(0, -2)
    squares = values.square().mean(0)
    largest, typical = int(squares.argmax()), float(squares.median())
    known = _weight(layer) | (_in_sixteen_bits(found, x) if x.dtype in HALF else {})
    return TokenNorm(
        name=name,
        role=role,
        dtype=str(x.dtype).removeprefix("torch."),
        eps=layer.eps,
        offset=layer.offset,
        input_size=_size(x),
        largest_channel=largest,
        outlier=math.sqrt(float(squares[largest]) / typical) if typical > 0 else None,
        outlier_share=float(squares[largest] / squares.sum()) if float(squares.sum()) > 0 else None,
        **known,
    )


def _weight(layer: NormLayer) -> dict[str, Any]:
    if layer.scale is None or layer.weight is None or layer.weight.numel() < 2:
        return {}
    weight = layer.weight.detach().double()
    return {
        "weight_median": float(weight.median()),
        "weight_spread": float(weight.std()),
        "weight_below": float((weight < 0).double().mean()),
        "scale_size": float(layer.scale.abs().max()),
    }


def _in_sixteen_bits(found: Found, x: Tensor) -> dict[str, Any]:
    """How exact a norm's statistic is in the type that it runs in, and what becomes of a token of zeros."""
    layer, channels = found.layer, x.shape[found.layer.channel_axis]
    if not layer.over_tokens or layer.problem is not None or channels < _CHANNELS:
        return {}
    twin = unhooked(deep_copy(found.module))
    twin.training = False
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in zip(layer.names, (1.0 - layer.offset, 0.0), strict=True):
            tensor = getattr(twin, name, None)
            if isinstance(tensor, Tensor):
                tensor.fill_(value)
        tokens = torch.randn(_TOKENS, channels, generator=random) * (0.5 + torch.rand(_TOKENS, 1, generator=random))
        tokens = tokens.to(x.device, x.dtype)
        shape = (_TOKENS, channels) if layer.channel_axis == -1 else (1, channels, _TOKENS, 1)
        given = tokens if layer.channel_axis == -1 else tokens.T.reshape(shape)
        got = twin.forward(given).double()
        got = got if layer.channel_axis == -1 else got.reshape(channels, _TOKENS).T
        nothing = twin.forward(torch.zeros_like(given))
    exact = tokens.double()
    exact = exact - exact.mean(-1, keepdim=True) if layer.traits.centres else exact
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + layer.eps)
    gains = (got * exact).sum(-1) / exact.square().sum(-1) - 1
    return {
        "statistics_error": float(gains.square().mean().sqrt()),
        "zero_token": not bool(nothing.isfinite().all()),
    }


def _attention(attention: Attention) -> AttentionTrace:
    logits = _logits(attention)
    seen = logits > _MASKED
    return AttentionTrace(
        makers=[name for name in dict.fromkeys(attention.makers) if name],
        norms=list(attention.norms),
        head_size=attention.q.shape[-1],
        # Upwards: downwards there may be a mask, of -100 in Swin.
        largest=max(float(logits.max()), 0.0),
        saturated=float((logits.softmax(-1).amax(-1) > 0.99).double()[seen.sum(-1) > 1].mean().nan_to_num(0.0)),
    )


def _logits(attention: Attention) -> Tensor:
    """The attention logits of a few samples, those that are masked far down."""
    if attention.logits is not None:
        return attention.logits.detach()[:_SAMPLES].double()
    q, k = (heads.detach()[:_SAMPLES].double() for heads in (attention.q, attention.k))
    more = attention.step.more
    given = attention.step.given
    mask = more.get("attn_mask", given[3] if len(given) > 3 else None)
    causal = more.get("is_causal", given[5] if len(given) > 5 else False)
    if k.ndim == q.ndim == 4 and k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = more.get("scale") or q.shape[-1] ** -0.5
    logits = q @ k.transpose(-1, -2) * scale
    if isinstance(mask, Tensor):
        mask = mask[:_SAMPLES] if mask.ndim == logits.ndim else mask
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    if causal:
        ahead = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(ahead.to(logits.device), -torch.inf)
    return logits.clamp_min(2 * _MASKED)

"""Architectures of transformers at random tiny size: layers found of those there, drift of a conversion, diagnosis.

Run ``python benchmarks/architectures.py``; it rewrites ``results/architectures.json``, from which ``docs/draw`` makes
the table of docs/transformers.md. No weights are loaded: each network is built from a configuration.
"""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import normwise
from normwise.errors import NormwiseError
from normwise.files import write_atomic
from normwise.surgery import Centring, convert, find, layer_to_rms
from normwise.surgery.layers import not_understood

RESULTS = Path(__file__).parent.parent / "results" / "architectures.json"
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_LINEAR = {f"linear_{what}": n for what, n in [("num_value_heads", 4), ("num_key_heads", 2)]}
_LINEAR |= {f"linear_{what}_head_dim": 8 for what in ("key", "value")}
_EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 64}
_GPT2 |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
_VIT = {k: v for k, v in _SIZES.items() if not k.endswith("_id") and k != "vocab_size"}
_CONVS = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2}

# Each: the class that transformers has, that of its configuration, the sizes, what it is run on, and how many of its
# modules normalize, counted in its source.
_OF_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str, int]] = {
    "BERT": ("BertForMaskedLM", "BertConfig", {**_SIZES, "max_position_embeddings": 32}, "tokens", 6),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, "tokens", 5),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES, "tokens", 5),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED, "tokens", 9),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GROUPED, "tokens", 13),
    "OLMo": ("OlmoForCausalLM", "OlmoConfig", _SIZES, "tokens", 5),
    "OLMo 2": ("Olmo2ForCausalLM", "Olmo2Config", _SIZES, "tokens", 9),
    "Llama 4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {**_GROUPED, "num_local_experts": 2, "intermediate_size_mlp": 48},
        "tokens",
        7,
    ),
    "Qwen3-Next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {**_GROUPED, **_LINEAR, **_EXPERTS}, "tokens", 8),
    "Mamba 2": ("Mamba2ForCausalLM", "Mamba2Config", {**_MAMBA, "vocab_size": 64}, "tokens", 5),
    "Cohere": ("CohereForCausalLM", "CohereConfig", {**_SIZES, "use_qk_norm": True}, "tokens", 7),
    "T5": ("T5ForConditionalGeneration", "T5Config", {**_T5, "pad_token_id": 0}, "pairs", 12),
    "ViT": ("ViTForImageClassification", "ViTConfig", {**_VIT, "image_size": 16, "patch_size": 4}, "images 16", 5),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 32},
        "images 32",
        10,
    ),
    "Wav2Vec2": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {**_SIZES, **_CONVS, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
        "sounds",
        7,
    ),
}


class ResBlock(nn.Module):
    """A block of a diffusion U-Net: GroupNorm, SiLU and convolution twice, the time between (arXiv 2006.11239)."""

    def __init__(self, inputs: int, outputs: int, times: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = h + self.time(nn.functional.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(nn.functional.silu(self.norm2(h)))


class Attention2d(nn.Module):
    """Attention over the positions of a map, behind a group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(4, channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """A diffusion U-Net with one level down and one up."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        wide = 2 * channels
        self.time = nn.Sequential(nn.Linear(1, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.inside = nn.Conv2d(3, channels, 3, padding=1)
        self.down, self.middle = ResBlock(channels, wide, wide), ResBlock(wide, wide, wide)
        self.attention, self.up = Attention2d(wide), ResBlock(wide + channels, channels, wide)
        self.norm, self.out = nn.GroupNorm(4, channels), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(t[:, None])
        h = self.inside(x)
        low = self.middle(self.down(nn.functional.avg_pool2d(h, 2), t), t)
        low = nn.functional.interpolate(self.attention(low), scale_factor=2.0)
        return self.out(nn.functional.silu(self.norm(self.up(torch.cat([low, h], 1), t))))


def names() -> list[str]:
    """The architectures."""
    return [*_OF_TRANSFORMERS, "diffusion U-Net"]


def built(name: str) -> tuple[nn.Module, dict[str, Tensor], int]:
    """A network with random weights, a batch for it by argument, and how many of its modules normalize."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    if name == "diffusion U-Net":
        batch = {"x": torch.randn(4, 3, 8, 8, generator=random), "t": torch.rand(4, generator=random)}
        return UNet().eval(), batch, 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        cls, config, sizes, kind, norms = _OF_TRANSFORMERS[name]
        model = getattr(transformers, cls)(getattr(transformers, config)(**sizes)).eval()
    return model, _batch(kind, random), norms


def _batch(kind: str, random: torch.Generator) -> dict[str, Tensor]:
    what, _, size = kind.partition(" ")
    tokens = torch.randint(1, 64, (4, 16), generator=random)
    if what == "images":
        return {"pixel_values": torch.randn(4, 3, int(size), int(size), generator=random)}
    if what == "sounds":
        return {"input_values": torch.randn(4, 800, generator=random)}
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens.flip(0)} if what == "pairs" else {})


def measured(name: str) -> dict[str, Any]:
    """What normwise says of one architecture, and in which time."""
    model, batch, norms = built(name)
    found, seconds = _timed(lambda: find(model))
    diagnosis, to_diagnose = _timed(lambda: normwise.diagnose(model, [batch], forward=lambda m, b: m(**b)))
    tokens = diagnosis.tokens
    return {
        "name": name,
        "norms": norms,
        "found": sum(len(f.names) for f in found),
        "not_understood": len(not_understood(model, found)),
        "kinds": sorted({_kind(f.layer) for f in found}),
        "placement": None if tokens is None else tokens.placement,
        "drift": {to: _drift(model, batch, to) for to in ("rms", "dyt")},
        "exactly": _exactly(model, batch),
        "findings": [f"{f.severity} {f.code}" for f in diagnosis.findings],
        "find_seconds": seconds,
        "diagnose_seconds": to_diagnose,
    }


def _kind(layer: Any) -> str:
    weight = f", {layer.offset:g} + w" if layer.offset else ", no weight" if layer.weight is None else ""
    return layer.method + weight + (", gated" if layer.gate else "")


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _drift(model: nn.Module, batch: dict[str, Tensor], to: str) -> dict[str, Any]:
    """How far a conversion moves the outputs, before and after its re-fit; or why it is refused."""
    try:
        record = convert(model, to, calibrate_with=[batch], forward=lambda m, b: m(**b), copy=True, strict=False).record
    except NormwiseError as error:
        return {"refused": str(error)}
    return {"layers": len(record.replaced), "raw": record.output_drift, "refitted": record.output_refitted}


def _exactly(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    """How many layer norms become RMS norms with the same outputs, and how far these move; or why none does."""
    done: list[Centring] = []
    try:
        layer_to_rms(model, batch, copy=True, report=done.append)
    except NormwiseError as error:
        return {"refused": str(error)}
    return {"layers": len(done[0].changed), "error": done[0].error}


def main() -> None:
    """Measure all and store it."""
    torch.set_num_threads(1)
    rows = []
    for name in names():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(measured(name))
        print(rows[-1], flush=True)
    import transformers

    settings = {
        "command": "python benchmarks/architectures.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
    }
    write_atomic(RESULTS, json.dumps({"settings": settings, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

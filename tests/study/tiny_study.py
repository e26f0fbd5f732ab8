"""A tiny task and settings, so that a whole study takes a second."""

import zlib

import torch
from torch import nn

from normwise.records import Settings, Setup, Trial


def tiny_model(norm):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def tiny_data(samples=120):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % 3
    return torch.randn(samples, 1, 6, 6, generator=generator) + targets.reshape(-1, 1, 1, 1), targets


def score_of(setup: Setup) -> float:
    """Some number that depends on the setup only."""
    return (zlib.crc32(setup.key.encode()) % 1000) / 1000


def fake_trial(setup: Setup, score: float | None = None, **changes) -> Trial:
    value = score_of(setup) if score is None else score
    given = {
        "setup": setup,
        "state": "complete",
        "valid_score": value,
        "test_score": value,
        "valid_loss": 1 - value,
        "test_loss": 1 - value,
        "steps": 10,
        "step_seconds": 0.01,
        "seconds": 1.0,
        "peak_bytes": 1000,
        "parameters": 10,
    }
    return Trial(**given | changes)


def make_settings(methods=("none", "batch"), batch_sizes=(2,), seeds=(0, 1, 2), **changes) -> Settings:
    given = {
        "task": "tiny",
        "methods": list(methods),
        "batch_sizes": list(batch_sizes),
        "seeds": list(seeds),
        "tune_seeds": [1000],
        "lrs": {str(b): [0.05, 0.1, 0.2] for b in batch_sizes},
        "epochs": {str(b): 1.0 for b in batch_sizes},
        "score_name": "accuracy",
        "optimizer": "SGD",
        "schedule": "cosine",
        "splits": {"train": 72, "valid": 24, "test": 24},
        "model": "tiny",
    }
    return Settings(**given | changes)

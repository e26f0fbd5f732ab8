"""The experiments that several claims rest on."""

from __future__ import annotations

import math

import numpy as np

from normwise.claims.claim import Experiment, Runs
from normwise.claims.observers import BatchErrors, Directions, InputDrift, LossCurve, Modes, watching
from normwise.claims.tasks import digits, jittered, variant

# At every batch size five passes over the digits' 1,077 training samples, in which the accuracy settles.
_PASSES = {32: 165, 2: 2690, 4: 1345, 8: 670, 16: 335}

SIZES = Experiment(
    "batch-sizes",
    variant(digits, observe=watching(BatchErrors)),
    ("batch", "layer", "instance", "group", "switchable"),
    batch_sizes=tuple(_PASSES),
    steps=_PASSES,
    quick_steps={size: max(steps // 10, 20) for size, steps in _PASSES.items()},
)

_WATCHED = watching(LossCurve, InputDrift, Modes, Directions)

MORE_STEPS = (
    "Equal passes are more steps where batches are smaller: what does not suffer from small batches gains from the "
    "steps. Accuracies near 100 % leave little room for differences."
)

SPEED = Experiment(
    "speed",
    variant(digits, observe=_WATCHED),
    ("none", "batch", "weight", "weight(init=data)"),
    steps=400,
    quick_steps=100,
)

# As strong as it takes for the inputs to move about as much as without normalization.
_STRENGTH = 0.15

DISTURBED = Experiment(
    "speed-disturbed",
    variant(digits, observe=_WATCHED, wrap=lambda make_model: jittered(make_model, _STRENGTH)),
    ("batch",),
    steps=400,
    quick_steps=100,
)


# A tenth of the loss of guessing among ten classes.
_AIM = 0.1 * math.log(10)


def steps_to_loss(runs: Runs, experiment: Experiment, method: str) -> np.ndarray:
    """Count the steps after which a method's training loss has come down to a tenth of that of guessing."""
    curves = runs.lists(experiment, method, "losses")
    return np.array([next((k for k, x in enumerate(c, 1) if x <= _AIM), len(c) + 1) for c in curves], dtype=float)

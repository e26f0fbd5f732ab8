"""The experiments that several claims rest on."""

from __future__ import annotations

import numpy as np

from normwise.claims.claim import Experiment, Runs
from normwise.claims.observers import BatchErrors, Directions, InputDrift, LossCurve, Modes, watching
from normwise.claims.tasks import fashion, jittered, variant

# At every batch size as many passes over the data, as in the comparisons of the literature.
_PASSES = {2: 3000, 4: 1500, 8: 750, 16: 375, 32: 188}

SIZES = Experiment(
    "batch-sizes",
    variant(fashion, observe=watching(BatchErrors)),
    ("batch", "layer", "instance", "group", "switchable"),
    batch_sizes=(2, 4, 8, 16, 32),
    steps=_PASSES,
    quick_steps={size: max(steps // 12, 20) for size, steps in _PASSES.items()},
)

_WATCHED = watching(LossCurve, InputDrift, Modes, Directions)

MORE_STEPS = (
    "Equal passes are more steps where batches are smaller, and training is short here: what does not suffer from "
    "small batches gains from the steps."
)

SPEED = Experiment(
    "speed",
    variant(fashion, observe=_WATCHED),
    ("none", "batch", "weight", "weight(init=data)"),
    steps=400,
    quick_steps=100,
)

# As strong as it takes for the inputs to move about as much as without normalization.
_STRENGTH = 0.15

DISTURBED = Experiment(
    "speed-disturbed",
    variant(fashion, observe=_WATCHED, wrap=lambda make_model: jittered(make_model, _STRENGTH)),
    ("batch",),
    steps=400,
    quick_steps=100,
)


def steps_to_loss(runs: Runs, experiment: Experiment, method: str) -> np.ndarray:
    """Count the steps after which a method's loss has come down to where no normalization ends."""
    return np.array(
        [
            next((k for k, loss in enumerate(losses, 1) if loss <= aim[-1]), len(aim) + 1)
            for losses, aim in zip(
                runs.lists(experiment, method, "losses"), runs.lists(SPEED, "none", "losses"), strict=True
            )
        ],
        dtype=float,
    )

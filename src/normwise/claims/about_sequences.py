"""Claim 6: what is said of recurrent networks."""

from __future__ import annotations

import numpy as np

from normwise.claims.claim import POINTS, Claim, Experiment, Part, Runs, Unit
from normwise.claims.figures import bars
from normwise.claims.recurrent import speakers, writing

_LRS = (0.001, 0.004, 0.016)

MASKED = Experiment(
    "vowels-masked", speakers(masked=True), ("none", "batch", "layer"), lrs=_LRS, steps=120, quick_steps=30
)
PADDED = Experiment("vowels-padded", speakers(masked=False), ("batch",), lrs=_LRS, steps=120, quick_steps=30)
WRITING = Experiment("writing", writing, ("none", "batch", "layer"), lrs=_LRS, steps=800, quick_steps=30)

_BITS = Unit("bits a character")


def _bits(runs: Runs, method: str) -> np.ndarray:
    # Scores are minus the bits; those of a run that was lost are what guessing takes.
    return -runs.test(WRITING, method)


def _ahead_of(experiment: Experiment, noun: str, brief: str, published: str = "") -> Part:
    return Part(
        f"Speakers: layer norm is at least 1 point ahead of {noun}",
        lambda runs: runs.test(MASKED, "layer") - runs.test(experiment, "batch"),
        at_least=0.01,
        unit=POINTS,
        published=published,
        brief=brief,
    )


RECURRENT = Claim(
    number=6,
    name="recurrent",
    title="Batch norm does not suit recurrent nets of varying lengths; layer norm does",
    claim="In a recurrent network the statistics of a batch differ from step to step and, where lengths vary, rest on "
    "ever fewer sequences, so that batch norm does badly; layer norm stabilizes the states.",
    source="Ba, Kiros & Hinton 2016, arXiv 1607.06450",
    how="A network with the state h[t] = tanh(norm(W x[t] + U h[t−1] + b)), the same layer in every step. It tells "
    "nine speakers apart by 180 utterances of 7 to 29 frames (Japanese vowels), and predicts the next character of "
    "Jane Austen's novels in windows of 32. Batch norm runs once with padding counted as data and once told by masks "
    "which utterances are still going on. Batch size 32, Adam, each method at its own learning rate.",
    experiments=(MASKED, PADDED, WRITING),
    parts=(
        _ahead_of(
            PADDED,
            "batch norm that counts padding",
            "ahead of padded batch norm",
            "better than recurrent batch norm, in figures",
        ),
        _ahead_of(MASKED, "batch norm with masks, the fair contender", "ahead of masked batch norm"),
        Part(
            "Writing: layer norm needs at least 0.02 bits a character less than batch norm",
            lambda runs: _bits(runs, "batch") - _bits(runs, "layer"),
            brief="better at writing",
            at_least=0.02,
            unit=_BITS,
        ),
        Part(
            "Speakers: masks bring batch norm at least 1 point",
            lambda runs: runs.test(MASKED, "batch") - runs.test(PADDED, "batch"),
            at_least=0.01,
            unit=POINTS,
            decides=False,
        ),
        Part(
            "Speakers: layer norm is at least 1 point ahead of no normalization",
            lambda runs: runs.test(MASKED, "layer") - runs.test(MASKED, "none"),
            at_least=0.01,
            unit=POINTS,
            decides=False,
        ),
        Part(
            "Writing: layer norm needs at least 0.02 bits a character less than no normalization",
            lambda runs: _bits(runs, "none") - _bits(runs, "layer"),
            at_least=0.02,
            unit=_BITS,
            decides=False,
        ),
    ),
    figures=(
        lambda runs: bars(
            "Speakers told apart, test accuracy",
            "%",
            [
                ("no normalization", "none", runs.test(MASKED, "none")),
                ("batch norm, padded", "batch", runs.test(PADDED, "batch")),
                ("batch norm, masked", "batch", runs.test(MASKED, "batch")),
                ("layer norm", "layer", runs.test(MASKED, "layer")),
            ],
            100.0,
        ),
        lambda runs: bars(
            "Bits a character on a novel not trained on",
            "",
            [
                (name, method, _bits(runs, method))
                for name, method in (
                    ("no normalization", "none"),
                    ("batch norm", "batch"),
                    ("layer norm", "layer"),
                )
            ],
        ),
    ),
)

CLAIMS = (RECURRENT,)

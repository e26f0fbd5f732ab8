"""Claims 4 and 5: what batch norm needs, samples and memory."""

from __future__ import annotations

import numpy as np

from normwise.claims.claim import PERCENT, POINTS, Claim, Experiment, Part, Runs, Unit
from normwise.claims.experiments import MORE_STEPS, SIZES
from normwise.claims.figures import bars, by_batch_size, line
from normwise.claims.observers import BatchErrors, StateBytes, watching
from normwise.claims.tasks import fashion, variant
from normwise.outcomes import Figure

# --- 4: small batches -----------------------------------------------------------------------------------------------


def _fall(runs: Runs, method: str) -> np.ndarray:
    return runs.test(SIZES, method, 32) - runs.test(SIZES, method, 2)


def _slope(moment: str) -> Part:
    return Part(
        f"The error of a batch's {moment} follows 1/√m: its logarithm has a slope of −0.45 to −0.55 over that of m",
        lambda runs: runs.seen(SIZES, "batch", "slopes", moment, batch_size=32),
        at_least=-0.55,
        at_most=-0.45,
        published="−0.5, the law of large numbers",
        brief=f"errors of the {moment} as 1/√m",
    )


def _falls_less(method: str, published: str) -> Part:
    return Part(
        f"{method.capitalize()} norm falls by at least 1 point less than batch norm",
        lambda runs: _fall(runs, "batch") - _fall(runs, method),
        at_least=0.01,
        unit=POINTS,
        published=published,
        brief=f"{method} norm falls less",
    )


def _errors(runs: Runs) -> Figure:
    found = {k: runs.seen(SIZES, "batch", "errors", k, batch_size=32) for k in ("mean", "variance")}
    start = float(np.exp(np.log(found["mean"][:, 0]).mean()))
    law = [np.full(2, start * (BatchErrors.SIZES[0] / m) ** 0.5) for m in BatchErrors.SIZES]
    return Figure(
        "Error of a batch's statistics",
        "batch size m",
        "relative error",
        [
            line("mean", BatchErrors.SIZES, list(found["mean"].T), "batch", ratio=True),
            line("variance", BatchErrors.SIZES, list(found["variance"].T), "layer", ratio=True),
            line("1/√m", BatchErrors.SIZES, law, "none", dashed=True, ratio=True),
        ],
        log_x=True,
        log_y=True,
    )


SMALL_BATCHES = Claim(
    number=4,
    name="small-batches",
    title="Batch norm suffers at small batches; the others do not",
    claim="At small batches the statistics of a batch are poor estimates, and the accuracy of batch norm falls; group, "
    "layer and instance norm do not depend on the batch.",
    source="Wu & He 2018, arXiv 1803.08494",
    how="Each method is trained for the same passes over the data at each batch size, at its own learning rate for "
    "each. Falling means from batch size 32 to 2. The errors are measured at the inputs of the trained model's batch "
    "norms, over random batches against all of the data.",
    notes=(MORE_STEPS,),
    experiments=(SIZES,),
    parts=(
        _slope("mean"),
        _slope("variance"),
        Part(
            "Batch norm falls by at least 1 point",
            lambda runs: _fall(runs, "batch"),
            brief="batch norm falls",
            at_least=0.01,
            unit=POINTS,
            published="11.1 points (ImageNet, error 23.6 % to 34.7 %)",
        ),
        _falls_less("group", "11.1 points less (ImageNet, error 24.1 % at both)"),
        _falls_less("layer", ""),
        _falls_less("instance", ""),
    ),
    figures=(
        lambda runs: by_batch_size(runs, SIZES, SIZES.methods[:4], "Accuracy by batch size"),
        _errors,
    ),
)

# --- 5: memory ------------------------------------------------------------------------------------------------------

_ALL = ("none", "batch", "layer", "weight", "instance", "group", "switchable")

MEMORY = Experiment(
    "memory",
    variant(fashion, observe=watching(StateBytes)),
    _ALL,
    lrs=(0.08,),
    steps=3,
    quick_steps=3,
    memory=True,
)


def _peak(runs: Runs, method: str) -> np.ndarray:
    return np.array([t.peak_bytes for t in runs.trials(MEMORY, method)], dtype=float)


def _costs_more(method: str, decides: bool) -> Part:
    other = "no normalization" if method == "none" else f"{method} norm"
    return Part(
        f"A training step with batch norm needs at least 5 % more memory than with {other}",
        lambda runs: _peak(runs, "batch") / _peak(runs, method) - 1,
        at_least=0.05,
        unit=PERCENT,
        decides=decides,
        brief=f"more memory than {other}",
        exact=True,
    )


BATCH_MEMORY = Claim(
    number=5,
    name="memory",
    title="Batch norm has to store statistics and costs memory",
    claim="Batch norm must keep running statistics and costs memory that other methods do not.",
    source="a common remark, for example in lectures that compare it with layer norm",
    how="Bytes that the model keeps beside its parameters, and the most memory one training step holds beyond model, "
    "data and optimizer, at batch size 32, as the profiler counts them. Nothing here is random: the intervals have no "
    "width; 5 % is where a difference begins to matter.",
    experiments=(MEMORY,),
    parts=(
        Part(
            "Batch norm keeps state and the methods without running averages keep none (bytes more than the most of "
            "them)",
            brief="state beside the parameters",
            exact=True,
            measure=lambda runs: (
                runs.seen(MEMORY, "batch", "state_bytes")
                - np.max(
                    [runs.seen(MEMORY, m, "state_bytes") for m in ("layer", "weight", "instance", "group")], axis=0
                )
            ),
            at_least=1.0,
            unit=Unit("bytes"),
        ),
        _costs_more("none", True),
        _costs_more("layer", True),
        _costs_more("instance", True),
        _costs_more("group", True),
        _costs_more("weight", True),
        _costs_more("switchable", False),
    ),
    figures=(
        lambda runs: bars("Peak memory of a training step", "MiB", [(m, m, _peak(runs, m)) for m in _ALL], 2**-20),
        lambda runs: bars(
            "State beside the parameters", "bytes", [(m, m, runs.seen(MEMORY, m, "state_bytes")) for m in _ALL]
        ),
    ),
)

CLAIMS = (SMALL_BATCHES, BATCH_MEMORY)

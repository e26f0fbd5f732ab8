"""Claims 11 to 13: what is said of switchable norm, and the published order of the methods."""

from __future__ import annotations

import itertools

import numpy as np

from normwise.claims.claim import PERCENT, POINTS, TIMES, Claim, Experiment, Part, Runs
from normwise.claims.experiments import MORE_STEPS, SIZES
from normwise.claims.figures import bars, by_batch_size, line
from normwise.claims.observers import Hardening, watching
from normwise.claims.tasks import digits, sharpening_sgd, variant
from normwise.outcomes import Figure
from normwise.study.optimize import SCHEDULE

_SINGLES = ("batch", "layer", "instance", "group")

# --- 11: what switchable norm chooses -------------------------------------------------------------------------------


def _shares(runs: Runs, member: str, kind: str, size: int) -> np.ndarray:
    """(seeds, layers): a member's share in each layer's means or variances."""
    return np.array([
        [getattr(mixture, kind)[mixture.members.index(member)] for mixture in trial.mixtures]
        for trial in runs.trials(SIZES, "switchable", size)
    ])


def _batch_share_falls(kind: str, noun: str) -> Part:
    return Part(
        f"Batch statistics have a share of the {noun} that is at least 2 % lower at batch size 2 than at 32",
        lambda runs: _shares(runs, "batch", kind, 32).mean(1) - _shares(runs, "batch", kind, 2).mean(1),
        at_least=0.02,
        unit=PERCENT,
        published="falls, in a figure",
        brief=f"less of the batch in the {noun} at small batches",
    )


def _against_best_single(size: int, published: str) -> Part:
    def measure(runs: Runs) -> np.ndarray:
        best = max(_SINGLES, key=lambda m: runs.valid(SIZES, m, size).mean())
        return runs.test(SIZES, "switchable", size) - runs.test(SIZES, best, size)

    return Part(
        f"At batch size {size} it is at most half a point behind the best single method (as chosen on validation)",
        measure,
        at_least=-0.005,
        unit=POINTS,
        published=published,
        brief=f"matches the best at batch size {size}",
    )


def _choices(runs: Runs, kind: str, noun: str) -> Figure:
    layers = range(_shares(runs, "batch", kind, 32).shape[1])
    series = [
        line(
            f"{member}, batch size {size}", layers, list(_shares(runs, member, kind, size).T), member, dashed=size == 2
        )
        for member in ("instance", "layer", "batch")
        for size in (32, 2)
    ]
    ticks = [f"layer {k + 1}" for k in layers]
    return Figure(f"Shares of the {noun}, by depth", "", "share, %", series, ticks=ticks, factor=100.0)


SWITCHABLE_CHOOSES = Claim(
    number=11,
    name="switchable-chooses",
    title="Switchable norm chooses by layer and batch size, and matches the best single method",
    claim="Each layer learns a mix of its own; the smaller the batch, the smaller the share of batch statistics; and "
    "without choosing a method one does as well as with the best.",
    source="Luo et al. 2019, arXiv 1806.10779",
    how="The learned shares and test accuracies of the runs of claim 4, five methods at five batch sizes.",
    experiments=(SIZES,),
    parts=(
        _batch_share_falls("mean_weights", "means"),
        _batch_share_falls("var_weights", "variances"),
        Part(
            "Layers differ: at batch size 32 the batch's share of the variances spans at least 5 % over the layers",
            lambda runs: np.ptp(_shares(runs, "batch", "var_weights", 32), axis=1),
            brief="layers differ",
            at_least=0.05,
            unit=PERCENT,
        ),
        _against_best_single(32, "+0.5 points (ImageNet, 76.9 % against 76.4 % of batch norm)"),
        _against_best_single(2, "−0.3 points (ImageNet, 75.6 % against 75.9 % of group norm)"),
    ),
    figures=(
        lambda runs: _choices(runs, "mean_weights", "means"),
        lambda runs: _choices(runs, "var_weights", "variances"),
        lambda runs: by_batch_size(runs, SIZES, SIZES.methods, "Accuracy by batch size"),
    ),
)

# --- 12: hardened networks ------------------------------------------------------------------------------------------

_SPARSE = "switchable(sparse=True)"

HARDENED = Experiment(
    "hardened",
    variant(
        digits,
        observe=watching(Hardening),
        optimizer=sharpening_sgd,
        schedule_name=f"{SCHEDULE}; sparse mixes from even to one method between 20 % and 80 % of the steps",
    ),
    ("switchable", _SPARSE),
    steps=400,
    quick_steps=60,
)


def _kept(method: str, noun: str, published: str) -> Part:
    return Part(
        f"A {noun} mix loses at most 1 point when it is hardened",
        lambda runs: runs.seen(HARDENED, method, "hard") - runs.seen(HARDENED, method, "soft"),
        at_least=-0.01,
        unit=POINTS,
        published=published,
        brief=f"accuracy of the {noun} mix",
        exact=method == _SPARSE,
    )


def _seconds(runs: Runs, name: str, method: str = "switchable") -> np.ndarray:
    return runs.seen(HARDENED, method, "seconds", name)


def _over_cheapest(runs: Runs, name: str, method: str = "switchable") -> np.ndarray:
    cheapest = np.min([_seconds(runs, single, method) for single in _SINGLES], axis=0)
    return _seconds(runs, name, method) / cheapest


SWITCHABLE_HARDENED = Claim(
    number=12,
    name="switchable-hardened",
    title="Hardened switchable networks keep the accuracy at the cost of the cheapest",
    claim="Once trained, each switchable layer can be replaced by the method it chose, without losing accuracy and at "
    "the cost of a single method.",
    source="Shao et al. 2019 (sparse switchable norm), arXiv 1903.03793; Luo et al. 2019, arXiv 1806.10779",
    how="Trained at batch size 32, softly and with sparse mixes that are raised to one method a layer in the course of "
    "training. Each layer becomes its largest shares, running averages are measured anew for both, nothing is trained "
    "further. Times are those of an evaluation of 512 images, all models taking turns, against the cheapest of batch, "
    "layer, instance and group norm.",
    experiments=(HARDENED,),
    parts=(
        _kept("switchable", "soft", ""),
        _kept(_SPARSE, "sparse", "0, each layer has one method already"),
        Part(
            "Hardened, the network takes at most 1.1 times the evaluation time of the cheapest single method",
            lambda runs: _over_cheapest(runs, "hard"),
            brief="as fast as the cheapest",
            at_most=1.1,
            unit=TIMES,
            ratio=True,
        ),
        Part(
            "Trained sparsely, it is at most 1 point behind the soft mix",
            lambda runs: runs.seen(HARDENED, _SPARSE, "soft") - runs.seen(HARDENED, "switchable", "soft"),
            at_least=-0.01,
            unit=POINTS,
            published="as accurate or better",
            decides=False,
        ),
    ),
    figures=(
        lambda runs: bars(
            "Test accuracy before and after hardening",
            "%",
            [
                (f"{noun}, {when}", look, runs.seen(HARDENED, method, key))
                for noun, look, method in (("soft", "switchable", "switchable"), ("sparse", "weight", _SPARSE))
                for when, key in (("trained", "soft"), ("hardened", "hard"))
            ],
            100.0,
        ),
        lambda runs: bars(
            "Time of an evaluation",
            "ms",
            [
                (name, look, _seconds(runs, key))
                for name, look, key in (
                    ("switchable", "switchable", "soft"),
                    ("hardened", "switchable", "hard"),
                    *((single, single, single) for single in _SINGLES),
                )
            ],
            1e3,
        ),
    ),
)

# --- 13: the published order ----------------------------------------------------------------------------------------

# Top-1 accuracy in percent on ImageNet, ResNet-50 on 8 GPUs, by images per GPU (Luo et al. 2019).
PUBLISHED: dict[int, dict[str, float]] = {
    32: {"switchable": 76.9, "batch": 76.4, "group": 75.9, "layer": 74.7, "instance": 71.6},
    16: {"switchable": 76.7, "batch": 76.3, "group": 75.8},
    8: {"switchable": 76.7, "group": 76.0, "batch": 75.2},
    4: {"switchable": 75.9, "group": 75.8, "batch": 72.7},
    2: {"group": 75.9, "switchable": 75.6, "batch": 65.3},
}


def _ahead(size: int, better: str, worse: str) -> Part:
    gap = PUBLISHED[size][better] - PUBLISHED[size][worse]
    return Part(
        f"Batch size {size}: {better} is ahead of {worse}",
        lambda runs: runs.test(SIZES, better, size) - runs.test(SIZES, worse, size),
        at_least=0.0,
        unit=POINTS,
        published=f"{gap:+.1f} points",
        brief=f"{better} ahead of {worse} at {size}",
    )


IMAGENET_ORDER = Claim(
    number=13,
    name="imagenet-order",
    title="The order published for ImageNet holds in small",
    claim="ResNet-50 on ImageNet: switchable ahead of batch ahead of group ahead of layer ahead of instance norm at "
    "batch size 32; group and switchable norm hold at small batches, where batch norm falls behind.",
    source="Luo et al. 2019, arXiv 1806.10779, table of top-1 accuracies",
    how="A network of three convolutions on 1,077 images of digits instead of ResNet-50 on 1.3 million pictures: the "
    "runs of claim 4. Every pair of neighbours in the published order is compared at each batch size; the order holds "
    "only if every pair does.",
    notes=(MORE_STEPS,),
    experiments=(SIZES,),
    parts=tuple(
        _ahead(size, better, worse)
        for size, scores in PUBLISHED.items()
        for better, worse in itertools.pairwise(scores)
    ),
    figures=(
        lambda runs: by_batch_size(runs, SIZES, SIZES.methods, "Ours: digits"),
        lambda runs: Figure(
            "Published: ImageNet, ResNet-50",
            "images per GPU",
            "top-1 accuracy, %",
            [
                line(
                    method,
                    [k for k, size in enumerate(sorted(PUBLISHED)) if method in PUBLISHED[size]],
                    [np.full(2, PUBLISHED[size][method]) for size in sorted(PUBLISHED) if method in PUBLISHED[size]],
                )
                for method in SIZES.methods
            ],
            ticks=[str(size) for size in sorted(PUBLISHED)],
        ),
    ),
)

CLAIMS = (SWITCHABLE_CHOOSES, SWITCHABLE_HARDENED, IMAGENET_ORDER)

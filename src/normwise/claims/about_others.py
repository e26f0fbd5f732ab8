"""Claims 7, 8 and 10: what is said of layer, weight and group norm."""

from __future__ import annotations

from normwise.claims.claim import POINTS, TIMES, Claim, Experiment, Part
from normwise.claims.experiments import SIZES, SPEED, steps_to_loss
from normwise.claims.figures import bars, by_batch_size, line
from normwise.claims.observers import Modes, watching
from normwise.claims.tasks import digits, even_convnet, variant
from normwise.outcomes import Figure

# Relative differences below this are rounding in float32.
_SAME = 1e-4

# --- 7: layer norm at any batch size --------------------------------------------------------------------------------


def _one_sample(name: str, method: str) -> Experiment:
    return Experiment(
        name,
        variant(digits, observe=watching(Modes)),
        (method,),
        batch_sizes=(32, 1),
        steps={32: 400, 1: 2263},
        quick_steps={32: 60, 1: 100},
    )


ONE_SAMPLE = _one_sample("one-sample", "layer")
ONE_SAMPLE_BATCH = _one_sample("one-sample-batch", "batch")


LAYER_ANY_BATCH = Claim(
    number=7,
    name="layer-any-batch",
    title="Layer norm works at any batch size, alike in training and evaluation",
    claim="Layer norm computes exactly the same at training and test times, does not depend on the other samples, and "
    "works with batches of one.",
    source="Ba, Kiros & Hinton 2016, arXiv 1607.06450",
    how="The outputs of the trained model for the same 64 samples, in training against evaluation mode and with other "
    "samples beside them, as root mean square differences in units of the outputs' deviation. Accuracy at batch "
    "size 1 against 32, each at its own learning rate; steps grow with 1/√b.",
    experiments=(ONE_SAMPLE, ONE_SAMPLE_BATCH),
    parts=(
        Part(
            "Layer norm gives the same in training and evaluation (difference of the outputs)",
            lambda runs: runs.seen(ONE_SAMPLE, "layer", "mode_gap"),
            brief="alike in training and evaluation",
            at_most=_SAME,
            published="0, by construction",
            exact=True,
        ),
        Part(
            "Layer norm's output for a sample does not depend on the rest of the batch",
            lambda runs: runs.seen(ONE_SAMPLE, "layer", "neighbour_gap"),
            brief="independent of the batch",
            at_most=_SAME,
            published="0, by construction",
            exact=True,
        ),
        Part(
            "Trained one sample at a time it is at most 2 points behind batch size 32",
            lambda runs: runs.test(ONE_SAMPLE, "layer", 32) - runs.test(ONE_SAMPLE, "layer", 1),
            brief="as good with one sample",
            at_most=0.02,
            unit=POINTS,
        ),
        Part(
            "Batch norm trained one sample at a time is at least 2 points behind layer norm",
            lambda runs: runs.test(ONE_SAMPLE, "layer", 1) - runs.test(ONE_SAMPLE_BATCH, "batch", 1),
            at_least=0.02,
            unit=POINTS,
            decides=False,
        ),
        Part(
            "Batch norm differs between training and evaluation by at least 0.01 deviations",
            lambda runs: runs.seen(ONE_SAMPLE_BATCH, "batch", "mode_gap"),
            at_least=0.01,
            decides=False,
        ),
    ),
    figures=(
        lambda runs: bars(
            "Test accuracy by batch size",
            "%",
            [
                (f"{m} norm, {size}", m, runs.test(e, m, size))
                for e, m in ((ONE_SAMPLE, "layer"), (ONE_SAMPLE_BATCH, "batch"))
                for size in (32, 1)
            ],
            100.0,
        ),
    ),
)

# --- 8: weight norm -------------------------------------------------------------------------------------------------

_DATA = "weight(init=data)"


def _speed_of(method: str) -> Part:
    title = "Started from data, it" if method == _DATA else "Weight norm"
    return Part(
        f"{title} needs at most 0.9 times as many steps as no normalization",
        lambda runs: steps_to_loss(runs, SPEED, method) / steps_to_loss(runs, SPEED, "none"),
        at_most=0.9,
        unit=TIMES,
        ratio=True,
        published="faster in a figure; final error on CIFAR-10 8.46 % against 8.43 % without",
        brief="fewer steps, started from data" if method == _DATA else "fewer steps",
    )


WEIGHT_NORM = Claim(
    number=8,
    name="weight-norm",
    title="Weight norm separates length from direction, ignores the data, and speeds up training",
    claim="Weight norm decouples the length of weights from their direction, depends on no other sample of the batch, "
    "and speeds up training, started from data if asked.",
    source="Salimans & Kingma 2016, arXiv 1602.07868",
    how="On the trained model: the cosine between a direction parameter and its gradient, what happens to the outputs "
    "when the directions are made three times as long, and what other samples in the batch change. Speed as in claim "
    "1: steps to a tenth of the training loss of guessing, each method at its own learning rate.",
    experiments=(SPEED,),
    parts=(
        Part(
            "A direction's gradient is orthogonal to it: a step does not act on the length (largest cosine)",
            lambda runs: runs.seen(SPEED, "weight", "cosine"),
            brief="gradients orthogonal to directions",
            at_most=1e-3,
            published="0, by construction",
            exact=True,
        ),
        Part(
            "Directions three times as long give the same outputs (difference in deviations)",
            lambda runs: runs.seen(SPEED, "weight", "rescaling"),
            brief="lengths of directions without effect",
            at_most=_SAME,
            published="0, by construction",
            exact=True,
        ),
        Part(
            "The output for a sample does not depend on the rest of the batch",
            lambda runs: runs.seen(SPEED, "weight", "neighbour_gap"),
            brief="independent of the batch",
            at_most=_SAME,
            published="0, by construction",
            exact=True,
        ),
        _speed_of("weight"),
        _speed_of(_DATA),
    ),
    figures=(
        lambda runs: bars(
            "Steps to a tenth of the training loss of guessing",
            "",
            [
                (name, look, steps_to_loss(runs, SPEED, method))
                for name, look, method in (
                    ("no normalization", "none", "none"),
                    ("weight norm", "weight", "weight"),
                    ("weight norm from data", "weight", _DATA),
                    ("batch norm", "batch", "batch"),
                )
            ],
        ),
        lambda runs: bars(
            "Test accuracy",
            "%",
            [
                (name, look, runs.test(SPEED, method))
                for name, look, method in (
                    ("no normalization", "none", "none"),
                    ("weight norm", "weight", "weight"),
                    ("weight norm from data", "weight", _DATA),
                    ("batch norm", "batch", "batch"),
                )
            ],
            100.0,
        ),
    ),
)

# --- 10: group norm -------------------------------------------------------------------------------------------------

_GROUPS = (
    "group(num_groups=1)",
    "group(num_groups=2)",
    "group(num_groups=4)",
    "group(num_groups=8)",
    "group(num_groups=16)",
)

GROUPS = Experiment(
    "groups",
    variant(digits, wrap=lambda make_model: even_convnet),
    ("layer", *_GROUPS, "instance"),
    steps=300,
    quick_steps=60,
)
_MIDDLE = "group(num_groups=4)"


def _same(one: str, other: str, statement: str, brief: str) -> Part:
    return Part(
        statement,
        lambda runs: runs.test(GROUPS, one) - runs.test(GROUPS, other),
        at_least=-0.005,
        at_most=0.005,
        unit=POINTS,
        published="0, by definition",
        exact=True,
        brief=brief,
    )


def _better_than(end: str, published: str) -> Part:
    return Part(
        f"Four groups of the 16 channels do at least as well as {end} norm",
        lambda runs: runs.test(GROUPS, _MIDDLE) - runs.test(GROUPS, end),
        at_least=0.0,
        unit=POINTS,
        published=published,
        brief=f"in between as good as {end} norm",
    )


GROUP_NORM = Claim(
    number=10,
    name="group-norm",
    title="Group norm holds across batch sizes, and lies between layer and instance norm",
    claim="The accuracy of group norm is stable over batch sizes; with one group it is layer norm, with a group per "
    "channel instance norm, and in between it does better than either.",
    source="Wu & He 2018, arXiv 1803.08494",
    how="Batch sizes as in claim 4. The number of groups is varied in a network of 16 channels a layer, so that 1 to "
    "16 groups span the family; each at its own learning rate.",
    experiments=(GROUPS, SIZES),
    parts=(
        Part(
            "From batch size 32 to 2 group norm falls by at most 1 point",
            lambda runs: runs.test(SIZES, "group", 32) - runs.test(SIZES, "group", 2),
            brief="stable over batch sizes",
            at_most=0.01,
            unit=POINTS,
            published="0.0 points (ImageNet, error 24.1 % at both)",
        ),
        _same(
            _GROUPS[0],
            "layer",
            "One group is layer norm: the accuracies agree within half a point",
            "one group is layer norm",
        ),
        _same(
            _GROUPS[-1],
            "instance",
            "A group per channel is instance norm: they agree within half a point",
            "a group per channel is instance norm",
        ),
        _better_than("layer", "1.2 points better (ImageNet, 24.1 % against 25.3 % error)"),
        _better_than("instance", "4.3 points better (ImageNet, 24.1 % against 28.4 % error)"),
    ),
    figures=(
        lambda runs: Figure(
            "Accuracy by the number of groups of 16 channels",
            "groups",
            "test accuracy, %",
            [line("group", range(5), [runs.test(GROUPS, m) for m in _GROUPS])]
            + [line(m, [k], [runs.test(GROUPS, m)]) for m, k in (("layer", 0), ("instance", 4))],
            ticks=["1", "2", "4", "8", "16"],
            factor=100.0,
        ),
        lambda runs: by_batch_size(runs, SIZES, ("group", "batch"), "Accuracy by batch size"),
    ),
)

CLAIMS = (LAYER_ANY_BATCH, WEIGHT_NORM, GROUP_NORM)

"""Claims 1 to 5: what is said of batch norm."""

from __future__ import annotations

import numpy as np
from torch import nn

from normwise.claims.claim import PERCENT, POINTS, TIMES, Claim, Experiment, Part, Runs, Unit
from normwise.claims.experiments import DISTURBED, MORE_STEPS, SIZES, SPEED, steps_to_loss
from normwise.claims.figures import bars, by_batch_size, line
from normwise.claims.observers import BatchErrors, Gradients, LossCurve, StateBytes, watching
from normwise.claims.tasks import DeepNet, digits, fashion, scaled, variant
from normwise.outcomes import Figure
from normwise.study.tasks import MakeModel

# --- 1: internal covariate shift ------------------------------------------------------------------------------------


def _drift(runs: Runs, experiment: Experiment, method: str) -> np.ndarray:
    return runs.seen(experiment, method, "drift")


def _against_half_way(runs: Runs) -> np.ndarray:
    half_way = np.sqrt(steps_to_loss(runs, SPEED, "none") * steps_to_loss(runs, SPEED, "batch"))
    return steps_to_loss(runs, DISTURBED, "batch") / half_way


_CONTENDERS = (
    ("no normalization", "none", SPEED, "none"),
    ("batch norm", "batch", SPEED, "batch"),
    ("batch norm, disturbed", "batch", DISTURBED, "batch"),
)

COVARIATE_SHIFT = Claim(
    number=1,
    name="covariate-shift",
    title="Batch norm is fast because it keeps layers' inputs steady",
    claim="Batch norm reduces the change of the distribution of layers' inputs during training (internal covariate "
    "shift), and by that speeds training up.",
    source="Ioffe & Szegedy 2015, arXiv 1502.03167; disputed by Santurkar et al. 2018, arXiv 1805.11604",
    how="The movement of a layer's inputs is measured every 20 steps on a fixed batch, as the distance of their "
    "channels' means and deviations between looks in units of their deviation. Speed is the number of steps until the "
    f"training loss, averaged over {LossCurve.WINDOW} steps, is a tenth of that of guessing (not what no normalization "
    "ends with: once a net is trained to the end, that lies where the schedule has brought the steps to nothing). To "
    "tell whether one explains the other, batch norm's outputs are shifted and scaled at random in every step: if "
    "steadiness made it fast, that would cost it more than half of what it gains over no normalization.",
    experiments=(SPEED, DISTURBED),
    parts=(
        Part(
            "With batch norm the layers' inputs move at most 0.9 times as far",
            lambda runs: _drift(runs, SPEED, "batch") / _drift(runs, SPEED, "none"),
            brief="steadier inputs",
            at_most=0.9,
            unit=TIMES,
            ratio=True,
            published="said, not quantified",
        ),
        Part(
            "It needs at most 0.9 times as many steps",
            lambda runs: steps_to_loss(runs, SPEED, "batch") / steps_to_loss(runs, SPEED, "none"),
            brief="fewer steps",
            at_most=0.9,
            unit=TIMES,
            ratio=True,
            published="0.43 × (13.3 against 31.0 million steps to 72.2 % on ImageNet)",
        ),
        Part(
            "Disturbed, it loses more than half of that gain (steps over the geometric middle of both)",
            _against_half_way,
            brief="slow again once disturbed",
            at_least=1.0,
            unit=TIMES,
            ratio=True,
            published="Santurkar et al.: disturbed batch norm trains about as fast as batch norm",
        ),
        Part(
            "The disturbance works: disturbed inputs move at least as far as without normalization",
            lambda runs: _drift(runs, DISTURBED, "batch") / _drift(runs, SPEED, "none"),
            at_least=1.0,
            unit=TIMES,
            ratio=True,
            decides=False,
        ),
    ),
    figures=(
        lambda runs: bars(
            "Movement of the layers' inputs between looks",
            "deviations",
            [(name, look, _drift(runs, e, m)) for name, look, e, m in _CONTENDERS],
        ),
        lambda runs: bars(
            "Steps to a tenth of the training loss of guessing",
            "",
            [(name, look, steps_to_loss(runs, e, m)) for name, look, e, m in _CONTENDERS],
        ),
    ),
)

# --- 2: gradients in deep nets --------------------------------------------------------------------------------------

_DEPTHS = (2, 8, 16, 32)
_TRAINED = 0.5


def _deep(activation: type[nn.Module], depth: int) -> Experiment:
    def wrap(make_model: MakeModel) -> MakeModel:
        return lambda norm: DeepNet(norm, depth, activation)

    return Experiment(
        f"deep-{activation.__name__.lower()}-{depth}",
        variant(digits, observe=watching(Gradients), wrap=wrap),
        ("none", "batch"),
        lrs=(0.02, 0.08, 0.32),
        steps=450,
        quick_steps=80,
    )


_DEEP: dict[type[nn.Module], dict[int, Experiment]] = {
    kind: {depth: _deep(kind, depth) for depth in _DEPTHS} for kind in (nn.Sigmoid, nn.Tanh)
}
_AT = 16


def _decades(kind: type[nn.Module]) -> Part:
    experiment, name = _DEEP[kind][_AT], kind.__name__.lower()
    return Part(
        f"{_AT} layers with {name}: at the start the first layer's gradient, relative to the last's, is at least one "
        "decade larger with batch norm",
        lambda runs: runs.seen(experiment, "batch", "decades") - runs.seen(experiment, "none", "decades"),
        at_least=1.0,
        unit=Unit("decades"),
        brief=f"gradients with {name}",
    )


def _trainable(runs: Runs, kind: type[nn.Module], method: str) -> np.ndarray:
    """The largest depth that is trained to more than half the samples right; 1 where none is."""
    scores = {depth: runs.test(experiment, method) for depth, experiment in _DEEP[kind].items()}
    return np.max([np.where(score > _TRAINED, depth, 1) for depth, score in scores.items()], axis=0).astype(float)


def _depth(kind: type[nn.Module], published: str) -> Part:
    return Part(
        f"{kind.__name__}: nets at least twice as deep can be trained (more than half the test samples right)",
        lambda runs: _trainable(runs, kind, "batch") / _trainable(runs, kind, "none"),
        at_least=2.0,
        unit=TIMES,
        ratio=True,
        published=published,
        brief=f"depth with {kind.__name__.lower()}",
    )


def _gradients_by_layer(runs: Runs, kind: type[nn.Module]) -> Figure:
    experiment = _DEEP[kind][_AT]
    series = [
        line(m, range(1, _AT + 1), list((10 ** runs.seen(experiment, m, "gradients")).T), ratio=True)
        for m in ("none", "batch")
    ]
    title = f"Gradient of each layer at the start, {_AT} layers with {kind.__name__.lower()}"
    return Figure(title, "layer", "root mean square", series, log_y=True)


def _accuracy_by_depth(runs: Runs, kind: type[nn.Module]) -> Figure:
    series = [line(m, range(len(_DEPTHS)), [runs.test(_DEEP[kind][d], m) for d in _DEPTHS]) for m in ("none", "batch")]
    return Figure(
        f"Accuracy by depth, {kind.__name__.lower()}",
        "hidden layers",
        "test accuracy, %",
        series,
        ticks=[str(d) for d in _DEPTHS],
        factor=100.0,
    )


DEEP_GRADIENTS = Claim(
    number=2,
    name="deep-gradients",
    title="Batch norm keeps gradients alive in deep sigmoid and tanh nets",
    claim="Saturating activations make gradients vanish in deep networks; batch norm keeps them alive, so that such "
    "networks can be trained.",
    source="Ioffe & Szegedy 2015, arXiv 1502.03167",
    how="Fully connected nets of 32 units a layer on digits, in Glorot's initialization, each method at its own "
    "learning rate. Gradients are those of the new net on 128 samples, per layer the root mean square over its weight.",
    experiments=tuple(e for by_depth in _DEEP.values() for e in by_depth.values()),
    parts=(
        _decades(nn.Sigmoid),
        _decades(nn.Tanh),
        _depth(nn.Sigmoid, "Inception with sigmoid on ImageNet: 69.8 % with batch norm, chance without"),
        _depth(nn.Tanh, ""),
    ),
    figures=(
        lambda runs: _gradients_by_layer(runs, nn.Sigmoid),
        lambda runs: _gradients_by_layer(runs, nn.Tanh),
        lambda runs: _accuracy_by_depth(runs, nn.Sigmoid),
        lambda runs: _accuracy_by_depth(runs, nn.Tanh),
    ),
)

# --- 3: initial scale -----------------------------------------------------------------------------------------------

_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
_SCALED_METHODS = ("none", "batch", "weight", "layer")


def _at_scale(factor: float) -> Experiment:
    return Experiment(
        f"scale-{factor:g}",
        variant(digits, wrap=lambda make_model: scaled(make_model, factor)),
        _SCALED_METHODS,
        lrs=(0.08,),
        steps=300,
        quick_steps=60,
    )


_SCALED = {factor: _at_scale(factor) for factor in _FACTORS}


def _spread(runs: Runs, method: str) -> np.ndarray:
    return np.ptp([runs.test(experiment, method) for experiment in _SCALED.values()], axis=0)


def _more_sensitive(method: str, noun: str, decides: bool) -> Part:
    return Part(
        f"With {noun} it varies by at least 2 points more than batch norm",
        lambda runs: _spread(runs, method) - _spread(runs, "batch"),
        at_least=0.02,
        unit=POINTS,
        decides=decides,
        brief=f"more than {noun}",
    )


INITIAL_SCALE = Claim(
    number=3,
    name="initial-scale",
    title="Batch norm makes training insensitive to the initial scale",
    claim="BN((aW)u) = BN(Wu): with batch norm the scale of the initial weights does not matter for training.",
    source="Ioffe & Szegedy 2015, arXiv 1502.03167",
    how="All weights of He's initialization are multiplied by 0.1 to 10; everything else, the learning rate "
    "included, stays the same for all methods and scales. Variation is the highest minus the lowest test accuracy "
    "over the scales, per seed.",
    experiments=tuple(_SCALED.values()),
    parts=(
        Part(
            "With batch norm the accuracy varies by at most 2 points over scales from 0.1 to 10",
            lambda runs: _spread(runs, "batch"),
            brief="the same accuracy at all scales",
            at_most=0.02,
            unit=POINTS,
            published="derived, not measured",
        ),
        _more_sensitive("none", "no normalization", True),
        _more_sensitive("weight", "weight norm", False),
        _more_sensitive("layer", "layer norm", False),
    ),
    figures=(
        lambda runs: Figure(
            "Accuracy by the factor on the initial weights",
            "factor",
            "test accuracy, %",
            [line(m, _FACTORS, [runs.test(e, m) for e in _SCALED.values()]) for m in _SCALED_METHODS],
            log_x=True,
            factor=100.0,
        ),
    ),
)

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

CLAIMS = (COVARIATE_SHIFT, DEEP_GRADIENTS, INITIAL_SCALE, SMALL_BATCHES, BATCH_MEMORY)

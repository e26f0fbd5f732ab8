"""Claims 1 to 3: what batch norm does for training."""

from __future__ import annotations

import numpy as np
from torch import nn

from normwise.claims.claim import POINTS, TIMES, Claim, Experiment, Part, Runs, Unit
from normwise.claims.experiments import DISTURBED, SPEED, steps_to_loss
from normwise.claims.figures import bars, line
from normwise.claims.observers import Gradients, LossCurve, watching
from normwise.claims.tasks import DeepNet, digits, scaled, variant
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


CLAIMS = (COVARIATE_SHIFT, DEEP_GRADIENTS, INITIAL_SCALE)

"""Findings about training: weights, gradients by depth, activations, and the covariate shift of a step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from normwise.findings import Diagnosis, WeightTrace
from normwise.probe.rules import Hit, Rule, at

__all__ = ["RULES"]

# From the last fifth of the layers to the first, gradients may shrink or grow by this factor.
VANISHING, EXPLODING = 1e-3, 1e3
# A |weight| beyond any that trained networks show, and the growth while watched that leads there.
HUGE, GROWTH = 1e3, 10.0
# Share of channels that never carry anything, and values per channel that must have been seen.
DEAD, SEEN = 0.6, 256
# A step that moves the mean of a layer's output by a standard deviation. That it turns a layer's gradient, too, is told
# and not judged: in healthy networks near a minimum cosines below 0 are common.
MOVED = 1.0


def exploding_weights(seen: Diagnosis) -> Iterator[Hit]:
    """Norms whose weights ran away."""
    for norm in seen.norms:
        most, growth = norm.weight_max, norm.weight_growth
        if most is None or not (most > HUGE or (growth is not None and growth > GROWTH and most > GROWTH)):
            continue
        grown = f", {growth:.3g} times as large as when watching began" if growth is not None and growth > 1.5 else ""
        message = f"its largest |weight| is {most:.3g}{grown}; the median is {norm.weight_median:.3g}"
        bound = max(10 * (norm.weight_median or 0.0), 1.0)
        fix = f"with torch.no_grad():\n    {at(norm.layer.name)}.weight.clamp_(-{bound:.3g}, {bound:.3g})"
        yield Hit(norm.layer.name, message, {"weight_max": most, "growth": growth, "median": norm.weight_median}, fix)


def gradients_by_depth(seen: Diagnosis) -> Iterator[Hit]:
    """Gradients that vanish or explode on their way to the first layers."""
    layers = [w for w in seen.weights if w.gradient is not None and w.gradient > 0]
    if len(layers) < 3:
        return
    part = max(1, len(layers) // 5)
    first, last = (statistics.median(_gradient(w) for w in end) for end in (layers[:part], layers[-part:]))
    ratio = first / last
    evidence: dict[str, float | None] = {"ratio": ratio, "first": first, "last": last, "layers": len(layers)}
    if ratio < VANISHING:
        message = f"over {len(layers)} layers gradients shrink to {ratio:.2g} of what they were: they vanish"
        yield Hit(layers[0].layer.name, message, evidence, _rescale())
    elif ratio > EXPLODING:
        message = f"over {len(layers)} layers gradients grow {ratio:.2g} times: they explode"
        yield Hit(layers[0].layer.name, message, evidence, _rescale())


def _rescale() -> str:
    # Initialization from data gives every layer outputs of unit variance, with which gradients keep their size.
    return (
        "for layer in model.modules():\n"
        "    if isinstance(layer, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)):\n"
        "        normwise.weight_norm(layer)\n"
        "normwise.weight_norm_init(model, next(iter(loader))[0])  # or put norms between the layers"
    )


def _gradient(weight: WeightTrace) -> float:
    assert weight.gradient is not None  # the caller's filter
    return weight.gradient


def dead_activations(seen: Diagnosis) -> Iterator[Hit]:
    """Layers most of whose inputs are always 0."""
    for weight in seen.weights:
        if weight.seen < SEEN or weight.dead < max(DEAD * weight.inputs, 1):
            continue
        message = (
            f"{weight.dead} of {weight.inputs} channels that reach it were 0 for every input of the sampled passes"
        )
        evidence: dict[str, float | None] = {"dead": weight.dead, "channels": weight.inputs, "values": weight.seen}
        before = _before(seen, weight)
        fix = f"{at(before)}.reset_parameters()  # and lower the learning rate, or normalize before the activation"
        yield Hit(weight.layer.name, message, evidence, fix)


def _before(seen: Diagnosis, weight: WeightTrace) -> str:
    """What last ran before a layer and has something to start again."""
    places = [(p.order, p.name) for p in seen.facts.weights] + [(p.order, p.name) for p in seen.facts.norms]
    earlier = [(order, name) for order, name in places if order is not None and order < (weight.layer.order or 0)]
    return max(earlier)[1] if earlier else weight.layer.name


def covariate_shift(seen: Diagnosis) -> Iterator[Hit]:
    """A step so large that layers behind see another problem."""
    if seen.run.optimizer is None:
        # What a step does depends on its size, which only the optimizer tells.
        return
    for weight in seen.weights:
        if weight.moved_mean is None or weight.moved_mean <= MOVED:
            continue
        says = f"one step moves its output's mean by {weight.moved_mean:.2g} standard deviations"
        if weight.cosine is not None:
            says += f", and turns its gradient to a cosine of {weight.cosine:.2f} by the layers before it alone"
        evidence = {"cosine": weight.cosine, "change": weight.change, "moved_mean": weight.moved_mean}
        fix = 'for group in optimizer.param_groups:\n    group["lr"] *= 0.1'
        yield Hit(weight.layer.name, says, evidence, fix)


RULES = [
    Rule("exploding-weights", "warning", exploding_weights, "A few channels drown all others, and float16 overflows."),
    Rule(
        "gradients",
        "warning",
        gradients_by_depth,
        "No learning rate fits all layers: the first ones stand still while the last learn, or the other way round.",
    ),
    Rule(
        "dead-activations",
        "warning",
        dead_activations,
        "No gradient passes through them: that part of the network does not learn any more.",
    ),
    Rule(
        "covariate-shift",
        "warning",
        covariate_shift,
        "The step that a layer takes was computed for a network that is no longer there; training is slow or unstable.",
    ),
]

"""Findings about training: weights, gradients by depth, activations, and the covariate shift of a step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from normwise.findings import Diagnosis, NormTrace, WeightTrace
from normwise.probe.rules import Hit, Rule, at, count
from normwise.probe.rules_statistics import untrained
from normwise.surgery.inspect import GONE

# From the last fifth of the layers to the first, gradients may shrink or grow by this factor.
VANISHING, EXPLODING = 1e-3, 1e3
# Weights that shrank to this share while watched are told; below the second number they are lost.
SHRUNK, SMALL = 0.5, 0.01
_LESS_DECAY = 'for group in optimizer.param_groups:\n    group["weight_decay"] *= 0.1'
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


def collapsed_weights(seen: Diagnosis) -> Iterator[Hit]:
    """Layers all of whose weights are all but 0, whether they decayed or came so."""
    fresh = untrained(seen)
    together = _most_gone(seen.norms) or _most_gone(_matrices(seen))
    for norm in seen.norms:
        most, name = norm.weight_max, norm.layer.name
        if most is None or most > GONE or (most == 0 and fresh):
            continue
        severity = _by_design(norm, seen, together)
        fix = f"with torch.no_grad():\n    {at(name)}.weight.fill_(1.0)  # and keep weight decay off it"
        evidence: dict[str, float | None] = {"weight_max": most, "weight_decay": norm.decay}
        yield Hit(name, _gone(most, norm.decay), evidence, "" if severity else fix, severity)
    for weight in seen.weights:
        size, layer = weight.weight_max, weight.layer
        if size is not None and size <= GONE and layer.order is not None:
            evidence = {"weight_max": size, "weight_decay": weight.decay}
            # Adapters and last layers may start at exactly 0.
            severity = "info" if size == 0 else _by_design(weight, seen, together)
            fix = "" if severity else _start_again(layer.name)
            yield Hit(layer.name, _gone(size, weight.decay), evidence, fix, severity)


def _by_design(trace: NormTrace | WeightTrace, seen: Diagnosis, together: bool) -> str | None:
    """Blocks around which the data goes may start as the identity: by a last norm, a gate or a scale of all but 0."""
    shrank = trace.weight_growth is not None and trace.weight_growth <= SHRUNK
    return "info" if seen.facts.residual_adds and not together and not shrank else None


def _most_gone(traces: Sequence[NormTrace] | Sequence[WeightTrace]) -> bool:
    sizes = [t.weight_max for t in traces if t.weight_max is not None and t.layer.order is not None]
    return 2 * sum(size <= GONE for size in sizes) > len(sizes)


def _matrices(seen: Diagnosis) -> list[WeightTrace]:
    """The weighted layers but those that scale each value by itself."""
    return [weight for weight in seen.weights if weight.layer.fan_in is None or weight.layer.fan_in > 1]


def _gone(most: float, decay: float) -> str:
    acts = f"; weight decay {decay:g} acts on them" if decay else ""
    return f"its largest |weight| is {most:.2g}: all of them are gone together{acts}"


def _start_again(layer: str) -> str:
    return f"{at(layer)}.reset_parameters()"


def decaying_weights(seen: Diagnosis) -> Iterator[Hit]:
    """Weights that shrink as fast as the decay alone makes them shrink."""
    alone = (1 - (seen.run.lr or 0.0) * seen.run.decay) ** seen.run.steps
    for trace, order in [(n, n.layer.order) for n in seen.norms] + [(w, w.layer.order) for w in seen.weights]:
        most, growth, decay = trace.weight_max, trace.weight_growth, trace.decay
        if most is None or growth is None or not decay or order is None or growth > SHRUNK or most <= GONE:
            continue
        message = (
            f"its largest |weight| shrank to {growth:.2g} of what it was, {most:.2g}, under weight decay {decay:g}"
        )
        if decay == seen.run.decay and abs(math.log(max(growth, 1e-30) / max(alone, 1e-30))) < 0.3:
            message += f"; the decay alone, (1 − lr · decay)^steps, gives {alone:.2g}: it dies by decay"
        evidence: dict[str, float | None] = {
            "growth": growth,
            "weight_max": most,
            "weight_decay": decay,
            "alone": alone,
        }
        norm = isinstance(trace, NormTrace)
        fix = "normwise.nn.optim.spare_norms(optimizer, model)" if norm else _LESS_DECAY
        yield Hit(trace.layer.name, message, evidence, fix, "warning" if most < SMALL else "info")


def nonfinite_gradients(seen: Diagnosis) -> Iterator[Hit]:
    """Gradients that are finite before a layer and NaN or infinite behind it; else the parameters that got such."""
    origins = [norm for norm in seen.norms if norm.broken_gradients]
    for norm in origins:
        n, layer = norm.broken_gradients, norm.layer
        var = "" if norm.var_min is None else f"; the smallest variance that it met is {norm.var_min:.2g}"
        message = (
            f"a finite gradient came to it and left it as NaN or infinity in {n} of "
            f"{count(norm.heard, 'sampled pass')}, with eps {layer.eps:g}{var}"
        )
        fix = f"{at(layer.name)}.eps = 1e-05" if layer.eps < 1e-5 else ""
        # Where a scaled loss overflows now and then, that step is left out and the scale lowered.
        severity = "warning" if 2 * n < norm.heard and not seen.run.nonfinite_gradients else None
        yield Hit(layer.name, message, {"passes": n, "eps": layer.eps, "var_min": norm.var_min}, fix, severity)
    names = seen.run.nonfinite_gradients
    for norm in [] if origins else seen.norms:
        # Its input may have no gradient, and its weight's be the first to break.
        own = [f"{norm.layer.name}.{leaf}".strip(".") for leaf in ("weight", "bias")]
        if norm.heard and not norm.broken_outputs and set(own) & set(names):
            message = f"the gradient at its output is finite, that of its weight is not, with eps {norm.layer.eps:g}"
            fix = f"{at(norm.layer.name)}.eps = 1e-05" if norm.layer.eps < 1e-5 else ""
            yield Hit(norm.layer.name, message, {"eps": norm.layer.eps, "var_min": norm.var_min}, fix)
            origins.append(norm)
    if names and not origins:
        listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        message = f"{count(len(names), 'parameter')} got a gradient with NaN or infinity: {listed}"
        yield Hit("", message, {"parameters": len(names)}, "")


def covariate_shift(seen: Diagnosis) -> Iterator[Hit]:
    """A step so large that layers behind see another problem."""
    if seen.run.optimizer is None:
        # What a step does depends on its size, which only the optimizer tells.
        return
    moved = [weight for weight in seen.weights if weight.moved_mean is not None and weight.moved_mean > MOVED]
    most = max((w.moved_mean for w in moved if w.moved_mean is not None), default=MOVED)
    before, after = seen.run.loss_before, seen.run.loss_after
    for weight in moved:
        says = (
            f"one step of {seen.run.optimizer} moves its output's mean by {weight.moved_mean:.2g} standard deviations"
        )
        if before is not None and after is not None:
            says += f"; the loss of that batch goes from {before:.3g} to {after:.3g}"
        if seen.run.fresh:
            says += " (its first step: it has no state yet)"
        evidence = {"moved_mean": weight.moved_mean, "loss_before": before, "loss_after": after}
        evidence |= {"cosine": weight.cosine, "change": weight.change}
        fix = f'for group in optimizer.param_groups:\n    group["lr"] *= {0.5 / most:.1g}'
        # A step that lowers its loss did what it was computed for; a first one is not like those that follow.
        harmless = seen.run.fresh or (before is not None and after is not None and after <= before)
        yield Hit(weight.layer.name, says, evidence, fix, "info" if harmless else None)


RULES = [
    Rule(
        "dead-weight",
        "warning",
        collapsed_weights,
        "Nothing but a bias gets through, and what feeds the layer gets hardly any gradient.",
    ),
    Rule(
        "decaying-weight",
        "info",
        decaying_weights,
        "The optimizer's decay, not the loss, sets the size of these weights.",
    ),
    Rule(
        "non-finite-gradient",
        "error",
        nonfinite_gradients,
        "A step with such a gradient makes weights NaN; gradient scaling leaves the step out instead.",
    ),
    Rule(
        "exploding-weights",
        "warning",
        exploding_weights,
        "Outputs of that size overflow in float16, and the largest channels hide the others.",
    ),
    Rule(
        "gradients",
        "warning",
        gradients_by_depth,
        "Where steps grow with the gradient, one learning rate does not fit all layers.",
    ),
    Rule(
        "dead-activations",
        "warning",
        dead_activations,
        "What comes before them gets no gradient through them; the weights behind them get none.",
    ),
    Rule(
        "covariate-shift",
        "warning",
        covariate_shift,
        "The steps of the layers behind were computed for inputs that are no longer there.",
    ),
]

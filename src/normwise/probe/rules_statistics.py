"""Findings about statistics: what stands behind them, what they say, and whether evaluation uses the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normwise.findings import Diagnosis, Gap, NormTrace
from normwise.methods import Group, Layer, traits_of
from normwise.nn.factory import classes_of
from normwise.probe.rules import (
    Hit,
    Rule,
    at,
    calibrate_at,
    calibrate_command,
    convert_command,
    convert_to,
    count,
    put,
)
from normwise.surgery.inspect import GONE

# Below this many values a variance is known to worse than about a third.
FEW = 16
# Running statistics off by half a standard deviation, or a variance by this factor, are worth telling; where nobody can
# say what that costs, those beyond the second pair are a warning.
MEAN_GAP, VAR_FACTOR = 0.5, 2.0
GRAVE_MEAN, GRAVE_VAR = 1.0, 4.0
# Score points that evaluation may lose by its statistics.
SCORE_GAP = 0.02
# An initial value that still holds this share of a running average decides evaluation.
LEFTOVER = 0.05
# Variances that no eps should be made for.
_CONSTANT = 1e-12
# Dropout that changes an input's variance by more than this makes evaluation another network.
DROPOUT = 1.5
# Noise of a running average, in standard deviations, that evaluation notices.
NOISE = 0.25


def _over_batch(norm: NormTrace) -> bool:
    return traits_of(norm.layer.method).rests_on == "batch"


def _uses_batch(norm: NormTrace) -> bool:
    return norm.training and norm.samples > 0 and not norm.layer.frozen


def few_elements(seen: Diagnosis) -> Iterator[Hit]:
    """Batch statistics over too few values."""
    for norm in seen.norms:
        n = norm.elements
        if n is None or n >= FEW or not _over_batch(norm) or not _uses_batch(norm):
            continue
        evidence: dict[str, float | None] = {"elements": n, "error_of_mean": 1 / math.sqrt(max(n, 1))}
        says = f"of independent values its mean is off by {1 / math.sqrt(max(n, 1)):.0%} of a standard deviation"
        if n > 1:
            evidence["error_of_var"] = math.sqrt(2 / (n - 1))
            says += f" and its variance by {evidence['error_of_var']:.0%} (standard errors)"
        if norm.scatter is not None:
            evidence["measured_scatter"] = norm.scatter
            says += f"; batch means scatter by {norm.scatter:.2g} standard deviations"
        parts = ""
        if seen.run.micro_batches > 1.5:
            evidence["micro_batches"] = seen.run.micro_batches
            parts = f"; accumulating {seen.run.micro_batches:.0f} micro-batches a step does not help: each has its own"
        if seen.run.ranks > 1 and not norm.layer.synced:
            evidence["ranks"] = seen.run.ranks
            parts += f"; each of {seen.run.ranks} processes has its own"
        method = Group.name if norm.layer.channels > 1 else Layer.name
        fix, command = convert_to(method, norm.layer.name), convert_command(method, norm.layer.name)
        if seen.run.ranks > 1 and not norm.layer.synced:
            fix, command = "model = normwise.sync(model)", ""
        message = f"{count(n, 'value')} behind each statistic: {says}{parts}"
        yield Hit(norm.layer.name, message, evidence, fix, "error" if n < 2 else None, command=command)


def erased_data(seen: Diagnosis) -> Iterator[Hit]:
    """Pools within a sample so small that normalizing leaves nothing of them."""
    for norm in seen.norms:
        n, layer = norm.elements, norm.layer
        if n is None or n > 2 or _over_batch(norm) or traits_of(layer.method).mixes or not norm.samples:
            continue
        left = "nothing: the output is the bias, whatever comes in" if n < 2 else "the sign of a difference"
        groups = f", {layer.num_groups} groups of {layer.channels} channels" if layer.num_groups else ""
        message = f"{count(n, 'value')} in each pool ({layer.method} norm{groups}): what is left of the data is {left}"
        fix = convert_to(Layer.name, layer.name)
        if traits_of(layer.method).grouped or layer.num_groups:
            fix = put(layer.name, f"torch.nn.GroupNorm(1, {layer.channels})")
        yield Hit(layer.name, message, {"elements": n}, fix, "error" if n < 2 else "warning")


def padded_statistics(seen: Diagnosis) -> Iterator[Hit]:
    """Padding among the values that statistics are taken of."""
    share = seen.facts.padded
    if share is None or share < 0.05:
        return
    for norm in seen.norms:
        layer = norm.layer
        pools_time = not layer.per_token and len(layer.spatial) == 1 and layer.spatial[0] > 1
        if not pools_time or layer.masked or not norm.samples:
            continue
        kinds = classes_of(traits_of(layer.method))
        new = f"GroupNorm({layer.num_groups or 1}, {layer.channels})"
        new = f"{kinds[0].__name__}({layer.channels})" if len(kinds) > 1 else new
        fix = put(layer.name, f"normwise.nn.{new}") + "  # then call it with lengths=lengths"
        message = f"{share:.0%} of the positions are padding, and its statistics count them"
        yield Hit(layer.name, message, {"padded": share}, fix)


def constant_channels(seen: Diagnosis) -> Iterator[Hit]:
    """Channels that never vary."""
    for norm in seen.norms:
        if not norm.constant or not norm.samples or (not _over_batch(norm) and 2 * norm.constant < norm.layer.channels):
            continue
        if norm.elements is not None and norm.elements < 2:
            continue
        of = f"{norm.constant} of {norm.layer.channels}"
        fix = _start_again(norm)
        evidence: dict[str, float | None] = {"constant": norm.constant, "channels": norm.layer.channels}
        # Behind an activation some units of a healthy network are dead for the data at hand.
        severity = "info" if norm.layer.after is None and 2 * norm.constant < norm.layer.channels else None
        yield Hit(norm.layer.name, f"{of} channels had one value in every sampled batch", evidence, fix, severity)


def near_eps(seen: Diagnosis) -> Iterator[Hit]:
    """Outputs that eps makes small, although the weight does not."""
    first = _first_collapsed(seen)
    for norm in seen.norms:
        near, layer = norm.near_eps - norm.constant, norm.layer
        if near <= 0 or not norm.samples or (not _over_batch(norm) and 2 * near < layer.channels):
            continue
        if first is not None and layer.order is not None and layer.order > first:
            # Weights before it are to blame, and are told.
            continue
        v = norm.near_min
        smallest = "" if v is None else f"; the smallest was {v:.2g}"
        message = (
            f"in every sampled batch {near} of {layer.channels} channels had a variance of at most eps ({layer.eps:g})"
            f"{smallest}, and an output whose deviation is below a tenth although the weight is not"
        )
        # In a few channels eps is part of what was learned: to change it for them would change all others.
        wide = 2 * near > layer.channels
        fix = f"{at(layer.name)}.eps = {v / 100:.1g}" if wide and v is not None and v >= _CONSTANT else ""
        evidence: dict[str, float | None] = {"near_eps": near, "eps": layer.eps, "var_min": norm.var_min}
        # Before training a token's values may still be as small as its layers' first weights make them.
        early = layer.per_token and untrained(seen)
        yield Hit(layer.name, message, evidence, fix, None if wide and not early else "info")


def _first_collapsed(seen: Diagnosis) -> int | None:
    """The place of the first layer all of whose weights are gone."""
    orders = [n.layer.order for n in seen.norms if n.weight_max is not None and n.weight_max <= GONE]
    orders += [w.layer.order for w in seen.weights if w.weight_max is not None and w.weight_max <= GONE]
    return min((order for order in orders if order is not None), default=None)


def nonfinite_inputs(seen: Diagnosis) -> Iterator[Hit]:
    """NaN or infinity on the way into a layer."""
    for norm in seen.norms:
        if not norm.nonfinite and not norm.skipped:
            continue
        skipped = f"; {count(norm.skipped, 'batch')} left out of its running averages" if norm.skipped else ""
        message = f"{count(norm.nonfinite, 'sampled input')} held NaN or infinity{skipped}"
        evidence: dict[str, float | None] = {"nonfinite": norm.nonfinite, "skipped": norm.skipped}
        yield Hit(norm.layer.name, message, evidence, "torch.autograd.set_detect_anomaly(True)  # names the operation")


def statistics_disagree(seen: Diagnosis) -> Iterator[Hit]:
    """Running statistics that are not those of the batches, where that is not just their start."""
    for norm in seen.norms:
        if not disagrees(norm) or not norm.training or (norm.leftover is not None and norm.leftover > LEFTOVER):
            continue
        says = f"running means are off by {norm.mean_gap:.2g} standard deviations"
        says += f", variances by a factor of {norm.var_factor:.2g}"
        if norm.gain is not None and norm.gain > 0:
            says += f"; by batch statistics in this layer alone evaluation gains {_points(norm.gain, seen)}"
        if seen.facts.dropout and norm.mean_gap is not None and norm.mean_gap < MEAN_GAP:
            says += "; variances alone differ, and there is dropout: it is off in evaluation"
        evidence = {"mean_gap": norm.mean_gap, "var_factor": norm.var_factor, "gain": norm.gain}
        name, severity = norm.layer.name, "warning" if _costs(norm, seen) else None
        yield Hit(name, says, evidence, calibrate_at(name), severity, command=calibrate_command(name))


def disagrees(norm: NormTrace, mean: float = MEAN_GAP, factor: float = VAR_FACTOR) -> bool:
    """Whether running statistics are not those of the batches."""
    return (
        norm.mean_gap is not None and norm.var_factor is not None and (norm.mean_gap > mean or norm.var_factor > factor)
    )


def _costs(norm: NormTrace, seen: Diagnosis) -> bool:
    """Whether the disagreement does harm: by the score where there is one, else by its size."""
    if seen.gap is None or seen.gap.lost is None:
        return disagrees(norm, GRAVE_MEAN, GRAVE_VAR)
    return any(True for _ in evaluation_gap(seen))


def evaluation_gap(seen: Diagnosis) -> Iterator[Hit]:
    """A score that evaluation loses by its statistics."""
    gap = seen.gap
    if gap is None or gap.lost is None or gap.running is None or gap.batch is None:
        return
    n = max(gap.samples, 1)
    noise = 2 * math.sqrt(max(gap.batch * (1 - gap.batch) + gap.running * (1 - gap.running), 0.0) / n)
    least = max(SCORE_GAP, noise) if gap.score == "accuracy" else 0.1 * abs(gap.batch) + 0.05
    if gap.lost <= least or untrained(seen) or _guesses(gap):
        return
    value = (lambda v: f"{v:.1%}") if gap.score == "accuracy" else (lambda v: f"{v:.3g}")
    message = (
        f"{gap.score} is {value(gap.running)} by running statistics and {value(gap.batch)} by batch statistics, on the "
        f"same {count(gap.samples, 'sample')} without dropout"
    )
    evidence = {"running": gap.running, "batch": gap.batch, "lost": gap.lost, "drift": gap.drift}
    yield Hit("", message, evidence, calibrate_at(""), command=calibrate_command(""))


def _guesses(gap: Gap) -> bool:
    """Whether even the better score is no better than always naming the most frequent class."""
    if gap.score != "accuracy" or gap.batch is None or gap.chance is None:
        return False
    return gap.batch <= gap.chance + 2 * math.sqrt(gap.chance * (1 - gap.chance) / max(gap.samples, 1))


def untrained(seen: Diagnosis) -> bool:
    """Whether the weights of most norms are exactly what layers start with; some start elsewhere. False without any.

    A step of training moves them all.
    """
    own = [norm.initial for norm in seen.norms if norm.layer.affine]
    return 2 * sum(own) > len(own)


def dropout_before(seen: Diagnosis) -> Iterator[Hit]:
    """Dropout in front of running statistics: what they hold is not what comes in evaluation."""
    for norm in seen.norms:
        factor, running, layer = norm.dropout_factor, norm.dropout_running, norm.layer
        if factor is None or running is None or layer.dropout is None:
            continue
        if any(1 / DROPOUT < each < DROPOUT for each in (factor, running)):
            continue
        message = (
            f"with {layer.dropout or 'the dropout before it'} off, as in evaluation, its input's variance is "
            f"{factor:.2g} of that with it on, and {running:.2g} of the running variance"
        )
        scored = seen.gap is not None and seen.gap.lost is not None
        free = scored and not any(True for _ in evaluation_gap(seen))
        fix = calibrate_at(layer.name)
        if layer.dropout:
            fix = f"{put(layer.dropout, 'torch.nn.Identity()')}  # or put the dropout behind the norm\n{fix}"
        evidence: dict[str, float | None] = {"factor": factor, "running": running}
        yield Hit(layer.name, message, evidence, fix, "info" if free else None)


def norm_over_time(seen: Diagnosis) -> Iterator[Hit]:
    """Layer norms along an axis that is not the channels'."""
    for norm in seen.norms:
        layer, axis = norm.layer, norm.layer.channels_at
        if axis is None or not norm.samples or not layer.shape:
            continue
        size, channels = layer.shape[-1], layer.shape[axis]
        message = (
            f"it normalizes over the last axis of its input {tuple(layer.shape)}, which holds {size} positions; the "
            f"{channels} channels that the layers beside it work on are axis {axis}"
        )
        to_last, back = f"x.movedim({axis}, -1)", f".movedim(-1, {axis})"
        fix = (
            "class OverChannels(torch.nn.LayerNorm):\n"
            "    def forward(self, x):\n"
            f"        return super().forward({to_last}){back}\n"
            + put(layer.name, f"OverChannels({channels}, eps={layer.eps:g})")
        )
        yield Hit(layer.name, message, {"positions": size, "channels": channels}, fix)


def _points(gain: float, seen: Diagnosis) -> str:
    accuracy = seen.gap is not None and seen.gap.score == "accuracy"
    return f"{100 * gain:.1f} points" if accuracy else f"{gain:.3g}"


def unfit_momentum(seen: Diagnosis) -> Iterator[Hit]:
    """Running averages that end too early to forget their start, or follow single batches."""
    for norm in seen.norms:
        m = norm.layer.momentum
        if m is None or norm.updates is None or not norm.updates or not 0 < m <= 1:
            continue
        updates, leftover = norm.updates, norm.leftover
        if leftover is not None and seen.run.run_length is not None and seen.run.steps:
            updates = round(norm.updates * max(seen.run.run_length / seen.run.steps, 1))
            leftover = (1 - m) ** updates
        if leftover is not None and leftover > LEFTOVER:
            fit = 1 - LEFTOVER ** (1 / max(updates, 1))
            message = (
                f"after {count(updates, 'update')} at momentum {m:g} {leftover:.0%} of the initial values are left"
            )
            evidence: dict[str, float | None] = {"momentum": m, "updates": updates, "leftover": leftover}
            yield Hit(norm.layer.name, message, evidence, _momentum(norm, min(1.0, math.ceil(100 * fit) / 100)))
        elif norm.scatter is not None and norm.scatter * math.sqrt(m / (2 - m)) > NOISE:
            noise = norm.scatter * math.sqrt(m / (2 - m))
            message = f"at momentum {m:g} running means follow single batches: off by {noise:.2g} standard deviations"
            fit = 2 * (NOISE / 2) ** 2 / (norm.scatter**2 + (NOISE / 2) ** 2)
            evidence = {"momentum": m, "scatter": norm.scatter, "noise": noise}
            yield Hit(norm.layer.name, message, evidence, _momentum(norm, float(f"{fit:.1g}")))


def _momentum(norm: NormTrace, fit: float) -> str:
    return f"{at(norm.layer.name)}.momentum = {fit:g}  # or, at the end: {calibrate_at('')}"


def _start_again(norm: NormTrace) -> str:
    if norm.layer.after:
        return f"{at(norm.layer.after)}.reset_parameters()  # what feeds it gives constants: start it again"
    return ""


RULES = [
    Rule(
        "few-elements",
        "warning",
        few_elements,
        "Each batch's noise enters the activations; evaluation, by averages, is without it.",
    ),
    Rule("erased-data", "warning", erased_data, "The layer removes what the following layers should learn from."),
    Rule(
        "padding",
        "warning",
        padded_statistics,
        "Means are drawn to the padding and variances shrunk, by an amount that changes with each batch's lengths.",
    ),
    Rule(
        "constant-channels",
        "warning",
        constant_channels,
        "Beyond a constant they carry nothing; should they vary later, they are scaled by up to 1/√eps.",
    ),
    Rule(
        "near-eps",
        "warning",
        near_eps,
        "eps, not the data, sets the scale of these outputs.",
    ),
    Rule(
        "non-finite-input",
        "error",
        nonfinite_inputs,
        "What such a batch touches becomes NaN, after a step the weights, too.",
    ),
    Rule(
        "train-eval-gap",
        "error",
        evaluation_gap,
        "The network that is evaluated is worse than the one that was trained; training longer does not mend that.",
    ),
    Rule(
        "statistics-disagree",
        "info",
        statistics_disagree,
        "Evaluation normalizes by other numbers than training did, so layers behind get inputs they never saw.",
    ),
    Rule(
        "dropout-before-norm",
        "warning",
        dropout_before,
        "In evaluation, without dropout, the running variance is not that of the input any more (arXiv 1801.05134).",
    ),
    Rule(
        "norm-over-time",
        "warning",
        norm_over_time,
        "Each channel is normalized by its other positions: what it says early depends on what comes late.",
    ),
    Rule(
        "momentum",
        "warning",
        unfit_momentum,
        "Running averages, and with them evaluation, lag behind or jump about the statistics of the data.",
    ),
]

"""Findings about how normalization stands in the model and how it is run."""

from __future__ import annotations

from collections.abc import Iterator

from normwise.findings import Diagnosis, NormTrace
from normwise.methods import Group, traits_of
from normwise.probe.rules import Hit, Rule, at, calibrate_at, convert_command, convert_to, count, put

# Statistics of two runs in one pass that far apart are of different data.
APART_MEAN, APART_VAR = 0.5, 2.0
_CALL_IT = " Call it in forward(), or leave it to whoever does: taking it out changes the keys of checkpoints."


def cancelled_bias(seen: Diagnosis) -> Iterator[Hit]:
    """A bias that the next layer subtracts."""
    norms = {norm.layer.name: norm for norm in seen.norms}
    for weight in seen.facts.weights:
        norm = norms.get(weight.normalized_by or "")
        if not weight.bias or norm is None or not _per_channel(norm) or norm.layer.frozen:
            continue
        if norm.layer.tracked and not norm.training:
            # A layer in evaluation mode subtracts what it holds, whatever the bias is.
            continue
        message = f"its bias is subtracted again by {norm.layer.name}, and nothing else takes its output"
        fix = f'{at(weight.name)}.register_parameter("bias", None)'
        if norm.layer.tracked:
            # In evaluation the running mean holds the bias, too.
            fix = (
                f"with torch.no_grad():\n    {at(norm.layer.name)}.running_mean.sub_({at(weight.name)}.bias)\n    {fix}"
            )
        yield Hit(weight.name, message, {}, fix)


def cancelled_norm(seen: Diagnosis) -> Iterator[Hit]:
    """Two normalizations in a row, of which the second takes off all that the first did."""
    norms = {norm.layer.name: norm for norm in seen.norms}
    for norm in seen.norms:
        first = norms.get(norm.layer.after or "")
        if first is None or first is norm or not norm.layer.alone or max(first.calls, norm.calls) > 1:
            continue
        if not _takes_off(first, norm):
            continue
        message = f"it normalizes, over the same values or fewer, what {first.layer.name} has just normalized"
        yield Hit(norm.layer.name, message, {}, _without(first, norm))


def _takes_off(first: NormTrace, second: NormTrace) -> bool:
    """Whether what the first does is, within each pool of the second, one scale and one shift."""
    a, b = first.layer, second.layer
    if _per_channel(first) and _per_channel(second):
        # Scales and shifts of the first are per channel; an instance norm's are per sample as well.
        first_of_batch = traits_of(a.method).pools == ("batch",) and traits_of(a.method).synced
        return first_of_batch or (a.method == b.method and traits_of(a.method).tracks_samples)
    same_pools = a.method == b.method and (a.num_groups, a.elements) == (b.num_groups, b.elements)
    return same_pools and _spans_channels(first) and not a.affine


def _per_channel(norm: NormTrace) -> bool:
    """Whether its mean is each channel's own, so that what is added to a channel before it is taken off again."""
    return traits_of(norm.layer.method).per_channel


def _spans_channels(norm: NormTrace) -> bool:
    """Whether its statistics are of one sample, and several channels share them."""
    method = traits_of(norm.layer.method)
    return norm.layer.per_token or (len(method.pools) == 1 and not method.over_samples and not method.needs_space)


def _without(first: NormTrace, second: NormTrace) -> str:
    """Take the first of two norms out; a negative weight has turned its channel round, which the second keeps."""
    a, b = first.layer, second.layer
    turn = ""
    if a.affine and b.affine:
        turn = f"with torch.no_grad():\n    {at(b.name)}.weight.mul_({at(a.name)}.weight.sign())\n"
    again = f"\n{calibrate_at(b.name)}" if b.tracked else ""
    return turn + put(a.name, "torch.nn.Identity()") + again


def run_twice(seen: Diagnosis) -> Iterator[Hit]:
    """Running statistics that take in several inputs a pass, where these differ."""
    for norm in seen.norms:
        if norm.calls < 2 or not norm.layer.tracked or not norm.training or norm.layer.frozen:
            continue
        mean, var = norm.apart_mean, norm.apart_var
        if mean is None or var is None or (mean <= APART_MEAN and var <= APART_VAR):
            continue
        message = (
            f"it runs {count(norm.calls, 'time')} in one pass, on different data: means are up to {mean:.2g} standard "
            f"deviations apart, variances up to a factor of {var:.2g}"
        )
        evidence: dict[str, float | None] = {"calls": norm.calls, "apart_mean": mean, "apart_var": var}
        name = norm.layer.name
        fix = f"# or give each of its places a norm of its own:\n{convert_to(Group.name, name)}"
        yield Hit(name, message, evidence, fix, command=convert_command(Group.name, name))


def run_never(seen: Diagnosis) -> Iterator[Hit]:
    """Layers that are in the model and not in its forward pass."""
    used = {_parent(norm.name) for norm in seen.facts.norms if norm.order is not None}
    used |= {_parent(weight.name) for weight in seen.facts.weights if weight.order is not None}
    for norm in seen.norms:
        if norm.calls or norm.ran or norm.samples or not seen.run.sampled:
            continue
        name, tracked = norm.layer.name, norm.layer.tracked
        effect = "Its running statistics stay as they are." if tracked else "It has no part in the output."
        message = f"it did not run in {count(seen.run.sampled, 'sampled pass')}"
        if tracked and norm.layer.order is not None:
            message += ", but it did in evaluation"
        # Beside layers that run it was probably forgotten; with all its module it may be meant for other uses.
        severity = None if tracked and (norm.layer.order is not None or _parent(name) in used) else "info"
        yield Hit(name, message, {"passes": seen.run.sampled}, "", severity, effect + _CALL_IT)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def repeated_batch(seen: Diagnosis) -> Iterator[Hit]:
    """The same tensor twice within one step, as sharpness-aware optimizers and retries do it."""
    tracked = any(norm.layer.tracked and norm.training and not norm.layer.frozen for norm in seen.norms)
    if seen.run.repeated and tracked:
        message = f"{count(seen.run.repeated, 'pass')} ran on a batch that the same step had already run on"
        fix = "with normwise.surgery.statistics_paused(model):\n    ...  # the second pass of each step goes here"
        yield Hit("", message, {"repeated": seen.run.repeated}, fix)


def counted_twice(seen: Diagnosis) -> Iterator[Hit]:
    """Running statistics that a backward pass updates again, as activation checkpointing does."""
    for norm in seen.norms:
        if not norm.recomputed:
            continue
        message = (
            f"the backward pass ran it again and updated its running statistics once more, in "
            f"{count(norm.recomputed, 'sampled pass')}"
        )
        fix = (
            "import contextlib\n"
            "paused = lambda: (contextlib.nullcontext(), normwise.surgery.statistics_paused(model))\n"
            "# then, in forward(): torch.utils.checkpoint.checkpoint(..., use_reentrant=False, context_fn=paused)"
        )
        yield Hit(norm.layer.name, message, {"passes": norm.recomputed}, fix)


def trains_in_evaluation(seen: Diagnosis) -> Iterator[Hit]:
    """Layers that go on training while the model is evaluated."""
    for name in seen.run.training_in_evaluation:
        yield Hit(name, "it is in training mode while the model is in evaluation mode", {}, "model.eval()")
    if seen.run.blind_passes:
        passes = count(seen.run.blind_passes, "pass")
        message = f"{passes} without gradients ran in training mode and moved the running averages"
        # Generators and teachers run so in every step, which is their owner's choice; an evaluation runs now and then.
        in_step = seen.run.steps > 3 and seen.run.blind_steps >= seen.run.steps // 4
        yield Hit("", message, {"passes": seen.run.blind_passes}, "model.eval()", "info" if in_step else "warning")


def frozen_moves(seen: Diagnosis) -> Iterator[Hit]:
    """Layers that are meant to stay and whose statistics move."""
    for norm in seen.norms:
        if not norm.held:
            continue
        if norm.moved:
            message = f"it is meant to stay, and its {norm.moved_what} moved by up to {norm.moved:.2g}"
        elif norm.training and norm.layer.tracked and not norm.layer.frozen and norm.layer.momentum != 0:
            message = "its parameters are frozen, but it is in training mode: its running statistics move"
        else:
            continue
        yield Hit(norm.layer.name, message, {"moved": norm.moved}, f'normwise.freeze(model, where="{norm.layer.name}")')


def decayed(seen: Diagnosis) -> Iterator[Hit]:
    """Weight decay on γ, β and mixing weights."""
    # In place, so that the optimizer keeps all its other settings and its state.
    fix = "normwise.nn.optim.spare_norms(optimizer, model)  # before learning rate schedulers are made"
    mixing = [norm for norm in seen.norms if norm.mixing_decay]
    for norm in mixing:
        message = f"weight decay {norm.mixing_decay:g} pulls its mixing weights to equal shares"
        yield Hit(norm.layer.name, message, {"weight_decay": norm.mixing_decay}, fix, "warning")
    plain = [norm for norm in seen.norms if norm.decay and norm not in mixing]
    if plain:
        highest = max(norm.decay for norm in plain)
        message = f"weight decay {highest:g} on weight and bias of {count(len(plain), 'norm')}: {_listed(plain)}"
        yield Hit("", message, {"weight_decay": highest, "layers": len(plain)}, fix)


def _listed(norms: list[NormTrace]) -> str:
    names = [norm.layer.name for norm in norms]
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


RULES = [
    Rule(
        "cancelled-bias",
        "info",
        cancelled_bias,
        "Parameters, memory and time that train nothing; a decay acts on them.",
    ),
    Rule(
        "cancelled-norm",
        "warning",
        cancelled_norm,
        "Time and memory for nothing: up to eps the output is the same without the first one.",
    ),
    Rule(
        "runs-twice",
        "warning",
        run_twice,
        "Evaluation normalizes each of these inputs by an average over all of them.",
    ),
    Rule(
        "never-runs",
        "warning",
        run_never,
        "It has no part in the output; running statistics, if any, stay as they are.",
    ),
    Rule(
        "repeated-batch",
        "warning",
        repeated_batch,
        "Running averages count the same data twice, by the weights of both passes.",
    ),
    Rule(
        "counted-twice",
        "warning",
        counted_twice,
        "Running averages follow each batch about twice as fast as their momentum says.",
    ),
    Rule(
        "train-mode",
        "error",
        trains_in_evaluation,
        "Outputs depend on the other samples, and the data of such passes moves the averages.",
    ),
    Rule(
        "frozen-moves",
        "warning",
        frozen_moves,
        "The frozen part is not what it was: its outputs drift away from its weights.",
    ),
    Rule(
        "weight-decay",
        "info",
        decayed,
        "Pulls scales to 0; where another norm follows, it undoes that, and nothing is regularized.",
    ),
]

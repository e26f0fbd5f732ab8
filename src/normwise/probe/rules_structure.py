"""Findings about how normalization stands in the model and how it is run."""

from __future__ import annotations

from collections.abc import Iterator

from normwise.findings import Diagnosis, NormTrace
from normwise.probe.rules import Hit, Rule, at, convert_to, count, put

__all__ = ["RULES"]

# Methods whose mean is per channel, so that what is added to a channel before them is taken off again.
_PER_CHANNEL = ("batch", "instance", "batch_renorm", "ghost_batch", "mean_only_batch")


def cancelled_bias(seen: Diagnosis) -> Iterator[Hit]:
    """A bias that the next layer subtracts."""
    norms = {norm.layer.name: norm for norm in seen.norms}
    for weight in seen.facts.weights:
        norm = norms.get(weight.normalized_by or "")
        if not weight.bias or norm is None or norm.layer.method not in _PER_CHANNEL or norm.layer.frozen:
            continue
        message = f"its bias is subtracted again by {norm.layer.name}, which has one of its own"
        yield Hit(weight.name, message, {}, f'{at(weight.name)}.register_parameter("bias", None)')


def cancelled_norm(seen: Diagnosis) -> Iterator[Hit]:
    """Two normalizations in a row."""
    norms = {norm.layer.name: norm for norm in seen.norms}
    for norm in seen.norms:
        first = norms.get(norm.layer.after or "")
        if first is None or first is norm:
            continue
        per_channel = {first.layer.method, norm.layer.method} <= set(_PER_CHANNEL)
        if per_channel or first.layer.method == norm.layer.method:
            message = f"it normalizes what {first.layer.name} has just normalized: one of the two has no effect"
            yield Hit(norm.layer.name, message, {}, put(first.layer.name, "torch.nn.Identity()"))


def run_twice(seen: Diagnosis) -> Iterator[Hit]:
    """Running statistics that take in several inputs a pass."""
    for norm in seen.norms:
        if norm.calls < 2 or not norm.layer.tracked or not norm.training or norm.layer.frozen:
            continue
        message = f"it runs {count(norm.calls, 'time')} in one pass: its running averages mix different inputs"
        yield Hit(norm.layer.name, message, {"calls": norm.calls}, convert_to("group", norm.layer.name))


def run_never(seen: Diagnosis) -> Iterator[Hit]:
    """Layers that are in the model and not in its forward pass."""
    for norm in seen.norms:
        if not norm.calls and seen.run.sampled:
            message = f"it did not run in {count(seen.run.sampled, 'sampled pass')}"
            yield Hit(
                norm.layer.name, message, {"passes": seen.run.sampled}, put(norm.layer.name, "torch.nn.Identity()")
            )


def repeated_batch(seen: Diagnosis) -> Iterator[Hit]:
    """The same tensor twice within one step, as sharpness-aware optimizers and retries do it."""
    tracked = any(norm.layer.tracked and norm.training and not norm.layer.frozen for norm in seen.norms)
    if seen.run.repeated and tracked:
        message = f"{count(seen.run.repeated, 'pass')} ran on a batch that the same step had already run on"
        fix = "with normwise.surgery.statistics_paused(model):\n    ...  # the second pass of each step goes here"
        yield Hit("", message, {"repeated": seen.run.repeated}, fix)


def trains_in_evaluation(seen: Diagnosis) -> Iterator[Hit]:
    """Layers that go on training while the model is evaluated."""
    for name in seen.run.training_in_evaluation:
        yield Hit(name, "it is in training mode while the model is in evaluation mode", {}, "model.eval()")
    if seen.run.blind_passes:
        passes = count(seen.run.blind_passes, "pass")
        message = f"{passes} without gradients ran in training mode: evaluation moved the running averages"
        yield Hit("", message, {"passes": seen.run.blind_passes}, "model.eval()", "warning")


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
    fix = (
        f"optimizer = torch.optim.{seen.run.optimizer or 'SGD'}"
        f"(normwise.param_groups(model, lr={seen.run.lr or 0.1:g}, weight_decay={seen.run.decay:g}))"
    )
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
        "Time and memory for nothing; the first one's weight and bias train nothing.",
    ),
    Rule(
        "runs-twice",
        "warning",
        run_twice,
        "Evaluation normalizes every one of these inputs by an average over all of them.",
    ),
    Rule(
        "never-runs", "warning", run_never, "Its statistics stay at their start; evaluating through it gives nonsense."
    ),
    Rule(
        "repeated-batch",
        "warning",
        repeated_batch,
        "Running averages count the same data twice, by the weights of both passes.",
    ),
    Rule(
        "train-mode",
        "error",
        trains_in_evaluation,
        "Outputs depend on the other samples, and test data moves the averages.",
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
        "Pulls scales to 0, which a norm behind the next layer undoes: no regularization.",
    ),
]

"""``advise``: from a model to ranked methods, with what each costs on this model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise.advice import Advice, Cost, Exemption, rank, situation_of
from normwise.advice.rules import METHODS
from normwise.errors import NormwiseError
from normwise.findings import ModelFacts
from normwise.probe.facts import keeping_random_state, survey
from normwise.study.measure import peak_bytes
from normwise.surgery import convert
from normwise.surgery.running import Forward, run_on, tensors_in

# Seconds that timing one method may take, and the least steps.
_TIMING, _ROUNDS = 0.5, 3


def advise(
    model: nn.Module,
    example_inputs: Any,
    *,
    batch_size: int | None = None,
    task: str | None = None,
    devices: int = 1,
    accumulate: int = 1,
    variable_length: bool = False,
    forward: Forward | None = None,
    measure: bool = True,
) -> Advice:
    """Say which normalization a model should use, why, at what cost, and the line that puts it in.

    The model runs once, quietly, for its facts: architecture, the values behind each statistic, padding. Rules with
    sources (``normwise.advice.RULES``) give points to each method; what a training step takes with it is measured on
    converted copies. The model itself is not changed.

    Args:
        model: with or without normalization layers.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones; axis 0 counts samples.
        batch_size: samples per step and device that are meant; default those of the example.
        task: what the model is for, where that matters: ``"stylization"``, ``"restoration"``, ``"language"``, …; see
            ``normwise.advice.TASKS``.
        devices: that train together.
        accumulate: batches per optimizer step.
        variable_length: whether batches are padded; seen by itself where the example is.
        forward: ``(model, example_inputs) -> output``; default calls the model with them.
        measure: time the step and its memory with each method, which takes some steps of each.

    Returns:
        The advice: ``.best``, ``.ranking``, ``.notes``; printed, a table.

    Raises:
        InputError: an argument cannot be used.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> advice = advise(model, torch.zeros(2, 3, 8, 8), batch_size=2, measure=False)
        >>> advice.best.code
        'normwise.convert(model, "switchable")'
    """
    facts = survey(model, example_inputs, batch_size=batch_size, forward=forward)
    situation = situation_of(facts, task=task, devices=devices, accumulate=accumulate, variable_length=variable_length)
    run = partial(run_on, example_inputs=example_inputs) if forward is None else lambda m: forward(m, example_inputs)
    costs = measured_costs(model, run) if measure and facts.normalized else {}
    return rank(facts.model, situation, costs, partial(_code, facts, devices))


def measured_costs(
    model: nn.Module, run: Callable[[nn.Module], Any], methods: Sequence[str] = METHODS
) -> dict[str, Cost]:
    """Measure a training step (forward and backward) of copies of a model, converted to each method.

    The copies take turns; a method's time is its shortest, since whatever else runs on the machine only makes a step
    slower.

    Args:
        model: has normalization layers.
        run: runs a model on the inputs.
        methods: to measure.

    Returns:
        Method → cost, for the methods that ran.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> costs = measured_costs(model, lambda m: m(torch.zeros(4, 3, 8, 8)), ["batch", "none"])
        >>> costs["none"].step_seconds > 0
        True
    """
    steps: dict[str, Callable[[], None]] = {}
    peaks = {}
    with keeping_random_state():
        for method in methods:
            try:
                step: Callable[[], None] = partial(
                    _step, convert(model, method, copy=True, strict=False).model.train(), run
                )
                step()
                peaks[method], steps[method] = peak_bytes(step), step
            except (NormwiseError, RuntimeError, ValueError):
                continue  # not to be had here; the ranking says why
        seconds: dict[str, list[float]] = {method: [] for method in steps}
        end = time.perf_counter() + _TIMING * len(steps)
        while steps and (time.perf_counter() < end or len(next(iter(seconds.values()))) < _ROUNDS):
            for method, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[method].append(time.perf_counter() - began)
    return {method: Cost(min(taken), peaks[method]) for method, taken in seconds.items()}


def _step(model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """A forward and a backward pass; any loss of the outputs does, for its cost is the same."""
    model.zero_grad()
    outputs: list[Tensor] = [t for t in tensors_in(run(model)) if t.is_floating_point() and t.requires_grad]
    torch.autograd.backward([t.float().square().mean() for t in outputs])


def _code(facts: ModelFacts, devices: int, method: str, exemptions: list[Exemption]) -> str:
    """The lines that put a method into the model."""
    if not facts.normalized:
        return _code_for_bare(method)
    lines = []
    if {norm.method for norm in facts.norms} == {method}:
        lines.append("# the model uses it already")
    elif exemptions:
        places = "{" + ", ".join(repr(e.place) for e in exemptions) + "}"
        lines.append(f'normwise.convert(model, "{method}", where=lambda name, layer: name not in {places})')
        for use in dict.fromkeys(e.use for e in exemptions):
            places = "{" + ", ".join(repr(e.place) for e in exemptions if e.use == use) + "}"
            lines.append(f'normwise.convert(model, "{use}", where=lambda name, layer: name in {places})')
    else:
        lines.append(f'normwise.convert(model, "{method}")')
    if devices > 1 and method in {"batch", "switchable"}:
        lines.append("normwise.sync(model)")
    return "\n".join(lines)


def _code_for_bare(method: str) -> str:
    if method == "none":
        return "# the model as it is"
    if method == "weight":
        return "normwise.weight_normalize(model)"
    return f'norm = normwise.norm_layer("{method}")  # norm(channels) behind each hidden convolution or linear layer'

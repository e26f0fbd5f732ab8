"""``advise``: from a model to ranked methods, with what each costs on this model."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise import devices as present
from normwise._version import __version__
from normwise.advice import Advice, Cost, Ranked, Situation, candidates, options_for, rank, situation_of
from normwise.arguments.data import batches_of
from normwise.arguments.methods import is_own, method_from, several
from normwise.errors import InputError, NormwiseError, blaming, described
from normwise.methods import METHODS as FAMILY
from normwise.nn import check_spec, norm_layer
from normwise.nn._checks import callable_given, came, model_given, number_given
from normwise.nn.own import Given, named
from normwise.probe.facts import keeping_random_state, survey
from normwise.study.compute import PLAIN, Compute
from normwise.study.measure import peak_bytes
from normwise.study.tasks.own import named_splits
from normwise.surgery import convert
from normwise.surgery.causality import leaks, sights, told
from normwise.surgery.running import Forward, deep_copy, inputs_of, placed, run_on, settled, tensors_in

# Seconds that timing one method may take, and the least steps.
_TIMING, _ROUNDS = 0.5, 3
# The share of the time for a check that measuring costs may take.
_FOR_COSTS = 0.2


def advise(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    batch_size: int | None = None,
    task: str | None = None,
    devices: int = 1,
    accumulate: int = 1,
    variable_length: bool = False,
    forward: Forward | None = None,
    measure: bool = True,
    data: Any = None,
    verify: float | None = None,
    loss: Any = None,
    metric: Any = None,
    optimizer: Any = None,
    methods: Given | Sequence[Given] = (),
    device: str | torch.device | None = present.AUTO,
    precision: str | int = "32",
) -> Advice:
    """Say which normalization a model should use, why, at what cost, and the line that puts it in.

    The model runs once, quietly, for its facts: architecture, the values behind each statistic, padding. What these
    are worth to each method was learned from trained networks (``normwise.advice.learned``); where that does not tell
    one method from what the model has, the advice abstains: it names what the model has and says why. A method with
    which a causal model sees what it is to predict is refused. What a training step takes is measured on converted
    copies. The model itself is not changed; lazy layers learn their sizes in a copy.

    Args:
        model: with or without normalization layers.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones; axis 0 counts samples. Default: the
            first batch of ``data``.
        batch_size: samples per step and device that are meant; default those of the example.
        task: what the model is for, where that matters: ``"stylization"``, ``"restoration"``, ``"language"``, …; see
            ``normwise.advice.TASKS``.
        devices: that train together.
        accumulate: batches per optimizer step.
        variable_length: whether batches are padded; seen by itself where the example is.
        forward: ``(model, example_inputs) -> output``; default calls the model with them.
        measure: time the step and its memory with each method, which takes some steps of each.
        data: to run the model on and to verify on: ``(inputs, targets)``, a data set, a loader, a Lightning data module
            or another of the :ref:`forms of data <arguments>`.
        verify: how many seconds all of this may take with a short paired comparison on ``data``. Fresh copies of the
            model, with the best-ranked methods and those it has now, are trained over up to three seeds; ``.check``
            says whether the advice held.
        loss: to verify with, as for :func:`normwise.compare`; default by the targets.
        metric: likewise.
        optimizer: likewise; default SGD, for models of tokens AdamW.
        methods: of your own, or of the family with options of yours, as for :func:`normwise.compare`. Nothing was
            learned about them: their costs are measured, and ``verify`` trains them along.
        device: where to measure and train: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or whatever torch has.
            ``"auto"`` is the accelerator that the model lies on; for a model on the CPU the one that torch reports.
        precision: ``"32"`` as the model is written; ``"bf16"`` or ``"16"`` by torch's autocast: of what is measured and
            trained.

    Returns:
        The advice: ``.best``, ``.ranking``, ``.probability``, ``.abstains``, ``.notes``, ``.check``.

    Raises:
        InputError: an argument cannot be used, or the model cannot be copied to measure or train copies of it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> advice = advise(model, torch.zeros(2, 3, 8, 8), batch_size=64, measure=False)
        >>> advice.best.method, advice.best.code
        ('batch', '# the model stays as it is')
    """
    began = time.perf_counter()
    model_given(model, "advise")
    for name, value in {"devices": devices, "accumulate": accumulate}.items():
        number_given(value, name, least=1, whole=True)
    if verify is not None:
        number_given(verify, "verify", least=0)
    callable_given(forward, "advise", "forward")
    compute = Compute(precision=str(precision))
    data = (named_splits(data) or data) if isinstance(data, str) else data
    if example_inputs is None and data is not None:
        example_inputs = _first_inputs(model, data, forward)
    if example_inputs is None or isinstance(example_inputs, str | type):
        raise InputError(
            f"advise expected example_inputs to be what the model takes, got {came(example_inputs)}: it runs the model "
            "once, so give example_inputs, as in advise(model, torch.randn(8, 3, 32, 32)), or data"
        )
    own = _named(methods)
    once = partial(run_on, example_inputs=example_inputs) if forward is None else lambda m: forward(m, example_inputs)
    lazy, model = model, settled(model, once)
    if measure or verify is not None:
        deep_copy(model)  # refused here, where nothing has been run
        model = placed(model, device)
    place = present.of(model) or present.CPU
    compute = dataclasses.replace(compute, device=place)
    example_inputs = present.move(example_inputs, present.of(model))
    with blaming(f"{type(model).__name__} does not run on example_inputs"):
        facts = survey(model, example_inputs, batch_size=batch_size, forward=forward)
    situation = situation_of(facts, task=task, devices=devices, accumulate=accumulate, variable_length=variable_length)
    step_inputs = _of_size(example_inputs, facts.example_size, facts.batch_size)
    run = partial(run_on, example_inputs=step_inputs) if forward is None else lambda m: forward(m, step_inputs)
    known = candidates(situation)
    own = {name: given for name, given in own.items() if name not in known}
    options: dict[str, Any] = {method: options_for(method, situation) for method in known} | {m: {} for m in own}
    if facts.normalized:
        refused = leaking(model, forward or run_on, example_inputs, options, own)
    else:
        refused = _leaking_bare(model, forward or run_on, example_inputs, situation)
    until = math.inf if verify is None else began + _FOR_COSTS * verify
    costs = measured_costs(model, run, options, until, own, compute) if measure and facts.normalized else {}
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    versions = {"normwise": __version__, "torch": torch.__version__}
    advice = dataclasses.replace(rank(facts.model, situation, costs, refused), created=made, versions=versions)
    advice = _with_own(advice, own, costs, refused)
    if costs and compute.notes():
        note = f"What a step costs was measured on {', '.join(list(compute.told().values())[:2])}."
        advice = dataclasses.replace(advice, notes=[*advice.notes, note])
    if lazy is not model and isinstance(example_inputs, Tensor):
        advice = _settling(advice, example_inputs)
    if verify is None:
        return advice
    if data is None:
        raise InputError("verify= trains, so it needs data=(inputs, targets)")
    if not facts.normalized:
        raise InputError(
            "verify= converts the layers of the model, which has none: use normwise.compare(make_model, data)"
        )
    from normwise.study.verifying import check_by_training  # which needs more packages than the advice

    how = {"loss": loss, "metric": metric, "optimizer": optimizer}
    with present.current(place):
        check = check_by_training(model, advice, data, began + verify, own, how, compute)
    return dataclasses.replace(advice, check=check)


def _first_inputs(model: nn.Module, data: Any, forward: Forward | None) -> Any:
    """What of the first batch of the data the model is run on."""
    with blaming("the data failed"):
        batch = next(iter(batches_of(data)), None)
    if batch is None:
        raise InputError("advise: the data gave no batch")
    return inputs_of(model, batch) if forward is None else batch


def leaking(
    model: nn.Module,
    run: Forward,
    inputs: Any,
    methods: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Given] | None = None,
) -> dict[str, str]:
    """Convert copies of a causal model to each method and see which would let it see what it is to predict."""
    before = sights(model, run, inputs)
    found: dict[str, str] = {}
    if not any(sight.causal for sight in before.values()):
        return found
    for method, options in methods.items():
        try:
            to = (own or {}).get(method, method)
            converted = convert(model, to, copy=True, strict=False, allow_leak=True, **options).model
        except NormwiseError:
            continue
        moved = leaks(before, sights(converted, run, inputs))
        if moved:
            found[method] = f"the model is causal, and would see what it is to predict: {told(moved)}"
    return found


def _leaking_bare(model: nn.Module, run: Forward, inputs: Any, situation: Situation) -> dict[str, str]:
    """Where norms of a causal model would go over positions, none of them can be put in as it is."""
    over_positions = any(not p.per_token and p.values("instance") > 1 for p in situation.places)
    if not over_positions or not any(sight.causal for sight in sights(model, run, inputs).values()):
        return {}
    why = (
        "the model is causal, and statistics over positions would show it what it is to predict: normalize each token "
        "by itself"
    )
    family = [FAMILY[method] for method in candidates(situation)]
    return {method.name: why for method in family if not method.only_affine and not method.per_token}


def _settling(advice: Advice, inputs: Tensor) -> Advice:
    """Have the code run a lazy model once, before it changes layers that do not know their sizes."""
    run = f"model.eval()(torch.zeros({tuple(inputs.shape)}, dtype={inputs.dtype}))"
    first = f"import torch\n\nwith torch.no_grad():\n    {run}  # lazy layers learn their sizes\nmodel.train()\n"
    changed = [dataclasses.replace(r, code=first + r.code) if r.code[:1] not in "#" else r for r in advice.ranking]
    return dataclasses.replace(advice, ranking=changed)


def measured_costs(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    methods: Mapping[str, Mapping[str, Any]],
    until: float = math.inf,
    own: Mapping[str, Given] | None = None,
    compute: Compute = PLAIN,
) -> dict[str, Cost]:
    """Measure a training step (forward and backward) of copies of a model, converted to each method.

    The copies take turns; a method's time is its shortest, since whatever else runs on the machine only makes a step
    slower. Methods that are not reached ``until`` then, by ``time.perf_counter``, have none.
    """
    steps: dict[str, Callable[[], None]] = {}
    peaks = {}
    place = present.of(model) or present.CPU
    with keeping_random_state():
        for method, options in methods.items():
            if time.perf_counter() > until:
                break
            try:
                to = (own or {}).get(method, method)
                done = convert(model, to, copy=True, strict=False, allow_leak=True, **options)
                converted = done.model.train()
                step: Callable[[], None] = partial(_step, converted, run, compute)
                step()
                peaks[method], steps[method] = peak_bytes(step, place), step
            except Exception as error:
                if method in (own or {}):
                    raise InputError(f"your method {method} fails in this model: {described(error)}") from error
                if not isinstance(error, NormwiseError | RuntimeError | ValueError):
                    raise
                # It is not to be had here; the ranking says why.
        seconds: dict[str, list[float]] = {method: [] for method in steps}
        end = min(time.perf_counter() + _TIMING * len(steps), until)
        while steps and (time.perf_counter() < end or len(next(iter(seconds.values()))) < _ROUNDS):
            for method, step in steps.items():
                present.synchronize(place)
                began = time.perf_counter()
                step()
                present.synchronize(place)
                seconds[method].append(time.perf_counter() - began)
    return {method: Cost(min(taken), peaks[method]) for method, taken in seconds.items()}


def _named(methods: Given | Sequence[Given]) -> dict[str, Given]:
    """Methods of one's own by name, and those of the family."""
    found = named(several(methods), reserved=FAMILY)
    for name, given in found.items():
        if not isinstance(given, str):
            norm_layer(given)  # refuses what builds no layers
        elif is_own(given):
            found[name] = method_from(given)
        else:
            check_spec(given)
    return found


def _with_own(
    advice: Advice, own: Mapping[str, Given], costs: Mapping[str, Cost], refused: Mapping[str, str]
) -> Advice:
    """Put methods of which nothing was learned behind those that can be used, with what they cost."""
    if not own:
        return advice
    possible = sum(r.refused is None for r in advice.ranking)
    added = []
    for name, given in own.items():
        shown = f'"{name}"' if is_own(name) or isinstance(given, str) else name
        code = f"normwise.convert(model, {shown})"
        added.append(Ranked(name, None, [], costs.get(name), code=code, refused=refused.get(name)))
    note = f"Nothing was learned about {', '.join(own)}: the costs are measured, verify= trains on your data."
    ranking = [*advice.ranking[:possible], *added, *advice.ranking[possible:]]
    return dataclasses.replace(advice, ranking=ranking, notes=[*advice.notes, note])


def _of_size(inputs: Any, samples: int, wanted: int) -> Any:
    """As many samples as a step is meant to have: the first, or all of them again and again."""
    if isinstance(inputs, Tensor):
        fits = inputs.ndim > 0 and len(inputs) == samples
        return inputs[(torch.arange(wanted) % samples).to(inputs.device)] if fits else inputs
    if isinstance(inputs, Mapping):
        return {name: _of_size(value, samples, wanted) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(_of_size(value, samples, wanted) for value in inputs)
    return inputs


def _step(model: nn.Module, run: Callable[[nn.Module], Any], compute: Compute) -> None:
    """A forward and a backward pass; any loss of the outputs does, for its cost is the same."""
    model.zero_grad()
    with compute.autocast():
        made = tensors_in(run(model))
    outputs: list[Tensor] = [t for t in made if t.is_floating_point() and t.requires_grad]
    torch.autograd.backward([t.float().square().mean() for t in outputs])

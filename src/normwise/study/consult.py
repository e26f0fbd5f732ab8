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
from normwise import records
from normwise._version import __version__
from normwise.advice import Advice, Check, Cost, Ranked, Situation, options_for, rank, situation_of
from normwise.advice.rules import METHODS
from normwise.errors import InputError, NormwiseError, blaming, described
from normwise.methods import METHODS as FAMILY
from normwise.nn import check_spec, norm_layer
from normwise.nn._checks import callable_given, came, model_given, number_given
from normwise.nn.own import Given, named
from normwise.probe.facts import keeping_random_state, survey
from normwise.records import Setup
from normwise.study.compute import Compute
from normwise.study.measure import peak_bytes
from normwise.study.plan import due
from normwise.study.stored import draw_up
from normwise.study.tasks.base import Task
from normwise.study.trial import Trainer
from normwise.surgery import convert
from normwise.surgery.causality import leaks, sights, told
from normwise.surgery.running import Forward, deep_copy, placed, run_on, settled, tensors_in
from normwise.surgery.sources import is_own, method_from

# Seconds that timing one method may take, and the least steps.
_TIMING, _ROUNDS = 0.5, 3
# A check by training: the best-ranked methods that take part, their learning rates and seeds, the steps of a first
# taste, and those below which a run says nothing.
_CHECKED, _LRS, _SEEDS, _TASTE, _LEAST_STEPS = 3, (0.04, 0.2), 3, 6, 30
# Samples that it scores by at most; the share of the time that it plans for, as machines do not keep their pace, and
# what measuring costs and first tastes may take of all.
_SCORED, _OF_THE_TIME, _FOR_COSTS, _FOR_TASTES = 500, 0.85, 0.2, 0.1


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
    data: Any = None,
    verify: float | None = None,
    methods: Sequence[Given] = (),
    device: str | torch.device | None = present.AUTO,
) -> Advice:
    """Say which normalization a model should use, why, at what cost, and the line that puts it in.

    The model runs once, quietly, for its facts: architecture, the values behind each statistic, padding. What these
    are worth to each method was learned from trained networks (``normwise.advice.learned``); where that does not tell
    one method from what the model has, the advice abstains: it names what the model has and says why. A method with
    which a causal model sees what it is to predict is refused. What a training step takes is measured on converted
    copies. The model itself is not changed; lazy layers learn their sizes in a copy.

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
        data: to verify on: ``(inputs, targets)`` or anything else that :func:`normwise.compare` takes.
        verify: how many seconds all of this may take with a short paired comparison on ``data``. Fresh copies of the
            model, with the best-ranked methods and those it has now, are trained over up to three seeds; ``.check``
            says whether the advice held.
        methods: of your own, or of the family with options of yours, as for :func:`normwise.compare`. Nothing was
            learned about them: their costs are measured, and ``verify`` trains them along.
        device: where to measure and train: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or whatever torch has.
            ``"auto"`` is the accelerator that the model lies on; for a model on the CPU the one that torch reports.

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
    if example_inputs is None or isinstance(example_inputs, str | type):
        raise InputError(
            f"advise expected example_inputs to be what the model takes, got {came(example_inputs)}: it runs the model "
            "once, so give example_inputs, as in advise(model, torch.randn(8, 3, 32, 32))"
        )
    own = _named(methods)
    once = partial(run_on, example_inputs=example_inputs) if forward is None else lambda m: forward(m, example_inputs)
    lazy, model = model, settled(model, once)
    if measure or verify is not None:
        deep_copy(model)  # refused here, where nothing has been run
        model = placed(model, device)
    place = present.of(model) or present.CPU
    example_inputs = present.move(example_inputs, present.of(model))
    with blaming(f"{type(model).__name__} does not run on example_inputs"):
        facts = survey(model, example_inputs, batch_size=batch_size, forward=forward)
    situation = situation_of(facts, task=task, devices=devices, accumulate=accumulate, variable_length=variable_length)
    step_inputs = _of_size(example_inputs, facts.example_size, facts.batch_size)
    run = partial(run_on, example_inputs=step_inputs) if forward is None else lambda m: forward(m, step_inputs)
    options: dict[str, Any] = {method: options_for(method, situation) for method in METHODS} | {m: {} for m in own}
    if facts.normalized:
        refused = leaking(model, forward or run_on, example_inputs, options, own)
    else:
        refused = _leaking_bare(model, forward or run_on, example_inputs, situation)
    until = math.inf if verify is None else began + _FOR_COSTS * verify
    costs = measured_costs(model, run, options, until, own) if measure and facts.normalized else {}
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    versions = {"normwise": __version__, "torch": torch.__version__}
    advice = dataclasses.replace(rank(facts.model, situation, costs, refused), created=made, versions=versions)
    advice = _with_own(advice, own, costs, refused)
    if costs and place != present.CPU:
        note = f"What a step costs was measured on {present.name(place)}."
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
    with present.current(place):
        check = check_by_training(model, advice, data, began + verify, own)
    return dataclasses.replace(advice, check=check)


def check_by_training(
    model: nn.Module, advice: Advice, data: Any, end: float, own: Mapping[str, Given] | None = None
) -> Check:
    """Train fresh copies of a model briefly, paired, under the best-ranked methods and those that it has.

    It is over at ``end`` of ``time.perf_counter``: steps are as many as a first taste says that there is time for, no
    trial begins later, and a round of seeds that is not finished by then does not count.
    """
    from normwise.study.comparison import make_settings
    from normwise.study.tasks import make_task

    began, b = time.perf_counter(), advice.situation.batch_size
    possible = [r for r in advice.ranking if r.refused is None]
    wanted = {*advice.situation.current, *(own or {})}
    methods = [r.spec for i, r in enumerate(possible) if i < _CHECKED or r.method in wanted]
    task = dataclasses.replace(make_task(partial(_fresh, model), data), elsewhere=_exempted(possible), own=own or {})
    splits = task.splits._replace(**{
        name: getattr(task.splits, name).take(slice(_SCORED)) for name in ("valid", "test")
    })
    task = dataclasses.replace(task, splits=splits).on(Compute(present.of(model) or present.CPU))

    steps = _steps_until(end, task, methods, b)
    if steps < _LEAST_STEPS:
        headline = f"the time allows {steps} steps a run, too few to say anything: give more"
        return Check(time.perf_counter() - began, methods, headline, None, None)
    epochs = steps * b / task.splits.train.size
    settings = make_settings(task, methods, [b], _SEEDS, _LRS, epochs)
    trials = _trained_until(end, Trainer(task, {b: steps}, measure_memory=False), settings)
    done = [seed for seed in settings.seeds if sum(t.setup.seed == seed for t in trials) == len(methods)]
    if len(done) < 2:
        return Check(time.perf_counter() - began, methods, "the time ran out, too early to say anything", None, None)
    kept = [t for t in trials if t.setup.stage == "tune" or t.setup.seed in done]
    study = draw_up(dataclasses.replace(settings, seeds=done), {}, kept)
    verdict, best = study.verdicts[0], advice.best.spec
    standing = next(s for s in study.standings if s.method == best)
    behind = standing.behind.value if standing.behind else 0.0
    held = best in verdict.tied if verdict.outcome in records.DECIDED else None
    return Check(time.perf_counter() - began, methods, verdict.headline, held, behind)


def _steps_until(end: float, task: Task, methods: Sequence[str], batch_size: int) -> int:
    """How long each trial may be, so that all of them fit in."""

    def taste(method: str, steps: int) -> records.Trial:
        return Trainer(task, {batch_size: steps}, measure_memory=False)(Setup("tune", method, batch_size, _LRS[0], 0))

    # A single step says how many the others can be given to try.
    once = taste(methods[0], 1).seconds
    tried = max(1, min(_TASTE, int(_FOR_TASTES * (end - time.perf_counter()) / max(once * len(methods), 1e-6))))
    tastes = []
    for method in methods:
        if time.perf_counter() + once > end:
            return 0
        tastes.append(taste(method, tried))
    per_step = sum(t.step_seconds or 0.0 for t in tastes)
    # A trial is scored at six points and twice at its end; a taste at each of its few steps.
    beside = sum(t.seconds - t.steps * (t.step_seconds or 0.0) for t in tastes) * 8 / (2 + tried)
    left = _OF_THE_TIME * (end - time.perf_counter()) / (len(_LRS) + _SEEDS)
    return max(0, int((left - beside) / max(per_step, 1e-6)))


def _trained_until(end: float, trainer: Trainer, settings: records.Settings) -> list[records.Trial]:
    """The trials that were trained in time: first those that choose learning rates, then seed by seed."""
    trials: list[records.Trial] = []
    while waiting := [c for c in due(settings, trials) if c.key not in {t.setup.key for t in trials}]:
        if time.perf_counter() > end:
            break
        trials.append(trainer(waiting[0]))
    return trials


def _fresh(model: nn.Module) -> nn.Module:
    """A copy that starts anew: every module that can reset its parameters does."""
    copy = deep_copy(model).cpu()  # where the weights are drawn
    for module in copy.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return copy


def _exempted(ranking: Sequence[Ranked]) -> dict[str, dict[str, str]]:
    """Method → the places that cannot have it → what they get instead, as the advised code does."""
    return {r.spec: {e.place: e.use for e in r.exemptions} for r in ranking}


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
    return {method: why for method in METHODS if not FAMILY[method].only_affine}


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
                step: Callable[[], None] = partial(_step, converted, run)
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


def _named(methods: Sequence[Given]) -> dict[str, Given]:
    """Methods of one's own by name, and those of the family that the advice does not speak of as they are."""
    several = [methods] if isinstance(methods, str) or callable(methods) else methods
    found = {name: given for name, given in named(several, reserved=FAMILY).items() if name not in METHODS}
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


def _step(model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """A forward and a backward pass; any loss of the outputs does, for its cost is the same."""
    model.zero_grad()
    outputs: list[Tensor] = [t for t in tensors_in(run(model)) if t.is_floating_point() and t.requires_grad]
    torch.autograd.backward([t.float().square().mean() for t in outputs])

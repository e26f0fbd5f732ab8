"""``diagnose``: run a model on some batches as in training, look, and leave everything as it was."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normwise import devices
from normwise.arguments.data import batches_of
from normwise.arguments.loss import Loss, loss_of
from normwise.arguments.optimizer import optimizer_for
from normwise.arguments.renamed import renamed
from normwise.errors import InputError, blaming
from normwise.findings import Diagnosis, ModelFacts, TokenTrace
from normwise.nn._checks import callable_given, model_given, number_given
from normwise.probe.facts import keeping_random_state, survey_batch
from normwise.probe.gaps import Loss as Criterion
from normwise.probe.gaps import dropout_factors, gains, keeping_buffers, measure_gap
from normwise.probe.shifts import measure_shifts
from normwise.probe.tokens import trace_tokens
from normwise.probe.trying import tried
from normwise.probe.watching import held_still, training_norms, watch
from normwise.surgery.freeze import is_frozen
from normwise.surgery.layers import find
from normwise.surgery.running import Forward, feed, left_alone, placed, refuse_lazy, settled, targets_of, unwrapped


@renamed("loader", "data", until="0.3")
def diagnose(
    model: nn.Module,
    data: Any,
    loss: Any = None,
    *,
    steps: int = 16,
    batch_size: int | None = None,
    optimizer: Any = None,
    forward: Forward | None = None,
    device: str | torch.device | None = devices.AUTO,
    precision: str | int = "32",
    progress: Callable[[int, int], object] | None = None,
) -> Diagnosis:
    """Say what is wrong with a model's normalization, from some batches; the model stays as it is.

    The batches run as in training (forward, with ``loss`` backward, too), then in evaluation by batch and by running
    statistics. No step is taken for good: parameters, gradients, buffers, modes, random state and hooks are afterwards
    what they were, also where something fails. Layers that are frozen or stand in evaluation mode inside a training
    model stay so.

    Args:
        model: to diagnose; may be wrapped for data-parallel training.
        data: a loader or a list of batches, taken as they are; or ``(inputs, targets)``, a data set, a Lightning data
            module or another of the :ref:`forms of data <arguments>`.
        loss: a name of ``torch.nn.functional``, a criterion, a function of (output, target), or ``loss(model, batch)``;
            gradients and covariate shift are measured with it, and not without. The target is what of a batch the
            model does not take, see :func:`normwise.surgery.running.targets_of`.
        steps: how many batches to look at, at most.
        batch_size: samples of a batch, where the data are samples; default 32.
        optimizer: the one that trains the model, or a class of ``torch.optim``, its name, or a function of the
            parameters or the model: its weight decay is checked, its learning rate used for the shift.
        forward: ``(model, batch) -> output`` runs the model on a batch; the default takes tensors, (input, target)
            pairs and mappings, see :func:`normwise.surgery.running.feed`.
        device: where to run it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or whatever torch has. ``"auto"`` stays
            on the accelerator that the model lies on; of a model on the CPU a copy goes to the one that torch reports.
            With an optimizer that trains the model already it stays there.
        precision: ``"32"`` as the model is written; ``"bf16"`` or ``"16"`` by torch's autocast, without a scaler of
            gradients.
        progress: called with (batches done, batches in all) after each.

    Returns:
        The diagnosis: ``print`` it, ask ``fails("warning")``, store ``to_json()``.

    Raises:
        InputError: the data fail or give no batch, ``steps`` is below 1, a batch does not fit the model, the loss
            is unknown or fails, an argument is of the wrong kind, there is no such device, or lazy layers have seen no
            data and an optimizer is given (without one they are settled on the first batch, in a copy).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(4, 4), torch.randint(2, (4,))) for _ in range(4)]
        >>> [f.code for f in diagnose(model, batches, nn.functional.cross_entropy).findings if f.severity == "warning"]
        ['few-elements']
    """
    model_given(model, "diagnose")
    number_given(steps, "steps", least=1, whole=True)
    if batch_size is not None:
        number_given(batch_size, "batch_size", least=1, whole=True)
    for name, function in {"forward": forward, "progress": progress}.items():
        callable_given(function, "diagnose", name)
    devices.autocast(None, precision)  # refuses one that there is not
    wanted = loss_of(loss)
    loader = batches_of(data, batch_size)
    with blaming("the loader failed"):
        batches = list(itertools.islice(loader, steps))
    if not batches:
        raise InputError("nothing to diagnose with: the loader gave no batch")
    its_own = isinstance(getattr(optimizer, "param_groups", None), list)
    if its_own:
        refuse_lazy(model, "diagnose")  # a copy's parameters would not be the optimizer's
        _refuse_elsewhere(model, device)
    body = settled(unwrapped(model), lambda m: (forward or feed)(m, batches[0]))
    body = body if its_own else placed(body, device)
    if optimizer is not None and not its_own:
        optimizer = optimizer_for(body, optimizer)
    place = devices.of(body)
    criterion, forward = _decided(body, batches[0], devices.held_by(wanted, place), forward)

    def run(model: nn.Module, batch: Any) -> Any:
        with devices.autocast(place, precision):
            return feed(model, batch) if forward is None else forward(model, devices.move(batch, place))

    def graded(output: Any, target: Any) -> Tensor:
        assert criterion is not None
        with devices.autocast(place, precision):
            return criterion(output, target)

    examination = _Examination(body, batches, None if criterion is None else graded, run, optimizer)
    found = examination.run(progress or (lambda *_: None))
    with keeping_random_state(), left_alone(examination.model):
        findings = tried(examination.model, found.findings, batches, examination.forward, forward is not None)
    return dataclasses.replace(found, findings=findings)


def _decided(
    model: nn.Module, batch: Any, loss: Loss | None, forward: Forward | None
) -> tuple[Criterion | None, Forward | None]:
    """The loss as a function of what ``forward`` gives; one of (model, batch) is run itself, and gives the loss."""
    if loss is None:
        return None, forward

    def pair() -> tuple[Any, Any]:
        return (forward or feed)(model, devices.move(batch, devices.of(model))), targets_of(model, batch)

    with keeping_random_state(), left_alone(model):
        loss = loss.decided(model, devices.move(batch, devices.of(model)), pair)
    if loss.takes == "outputs":
        return loss, forward
    return (lambda output, target: output), loss.of_batch


def _refuse_elsewhere(model: nn.Module, device: str | torch.device | None) -> None:
    """An optimizer holds the parameters of the model itself, not those of a copy on another device."""
    home = devices.of(model)
    if device not in (None, devices.AUTO) and home is not None and devices.resolve(device) != home:
        raise InputError(f"the optimizer's model lies on {home}, device={str(device)!r} is another: leave device out")


# Batches from which the effect of dropout on variances is seen.
_FEW = 4


class _Examination:
    """One diagnosis on its way."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        loss: Criterion | None,
        forward: Forward,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.model, self.batches, self.loss = model, batches, loss
        self.forward, self.optimizer = forward, optimizer
        self.tokens: TokenTrace | None = None

    def run(self, progress: Callable[[int, int], object]) -> Diagnosis:
        misplaced = self._misplaced()
        with ExitStack() as stack:
            stack.enter_context(keeping_random_state())
            facts = self._survey()
            self.tokens = trace_tokens(self.model, lambda model: self.forward(model, self.batches[0]))
            stack.enter_context(left_alone(self.model))
            watcher = watch(self.model, self.optimizer, every=1)
            with _training(self.model), watcher:
                for i, batch in enumerate(self.batches):
                    with keeping_buffers(self.model):
                        self._pass(batch, watcher)
                    progress(i + 1, len(self.batches))
            with _training(self.model), keeping_buffers(self.model):
                factors = self._dropout_factors(facts, watcher)
                values: list[float] = []
                shifts = self._shifts(facts.weights, values)
            before, after = (values[0], values[-1]) if self.optimizer is not None and values else (None, None)
            first = dataclasses.replace(
                watcher.run(),
                training_in_evaluation=misplaced,
                repeated=0,
                overhead=None,
                loss_before=before,
                loss_after=after,
            )
            return self._judged(watcher, first, shifts, factors, facts)

    def _dropout_factors(self, facts: ModelFacts, watcher: watch) -> dict[str, tuple[float, float]]:
        behind = {norm.name for norm in facts.norms if norm.dropout is not None and norm.tracked}
        layers = [found for found in watcher.found if found.names[0] in behind and not is_frozen(found.module)]
        return dropout_factors(self.model, self.batches[:_FEW], layers, self.forward) if layers else {}

    def _survey(self) -> ModelFacts:
        with blaming(f"{type(self.model).__name__} does not run on the first batch"):
            return survey_batch(self.model, self.batches[0], self.forward)

    def _misplaced(self) -> list[str]:
        """Norms that were left training inside a model in evaluation mode."""
        return [] if self.model.training else training_norms(find(self.model))

    def _pass(self, batch: Any, watcher: watch) -> None:
        output = self._run(self.model, batch)
        if self.loss is not None:
            value = self._value(output, batch)
            wanted = [p for p in self.model.parameters() if p.requires_grad]
            if value.requires_grad and wanted:
                # Not backward(): the gradients that parameters hold are not ours to change.
                with blaming("the backward pass failed"):
                    gradients = torch.autograd.grad(value, wanted, allow_unused=True)
                watcher.take_gradients(zip(wanted, gradients, strict=True))
                watcher.end_backward()

    def _run(self, model: nn.Module, batch: Any) -> Any:
        with blaming(f"{type(model).__name__} failed on a batch"):
            return self.forward(model, batch)

    def _value(self, output: Any, batch: Any) -> Tensor:
        assert self.loss is not None  # the callers' condition
        return self.loss(output, targets_of(self.model, batch))

    def _shifts(self, weights: Sequence[Any], values: list[float]) -> dict[str, Any]:
        if self.loss is None:
            return {}
        named = dict(self.model.named_modules())
        layers = {w.name: named[w.name] for w in weights if w.order is not None}
        batch = self.batches[0]

        def loss() -> Tensor:
            # The same drop-out at every call. Buffers come back at the end: a graph may still hold them.
            with keeping_random_state():
                value = self._value(self._run(self.model, batch), batch)
            values.append(float(value.detach()))
            return value

        return measure_shifts(loss, layers, self.optimizer)

    def _judged(
        self, watcher: watch, run: Any, shifts: dict[str, Any], factors: dict[str, tuple[float, float]], facts: Any
    ) -> Diagnosis:
        of_norms: dict[str, dict[str, Any]] = {
            name: {"dropout_factor": on, "dropout_running": running} for name, (on, running) in factors.items()
        }
        first = watcher.judged(facts, run, tokens=self.tokens, of_norms=of_norms, of_weights=shifts)
        named = {found.names[0]: found for found in watcher.found}
        choosing = [
            (named[norm.layer.name], norm)
            for norm in first.norms
            if norm.mean_gap is not None and norm.samples and not is_frozen(named[norm.layer.name].module)
        ]
        if not choosing:
            return first
        gap = measure_gap(self.model, self.batches, [found for found, _ in choosing], self._run, self.loss)
        suspects = {finding.layer for finding in first.of("statistics-disagree")}
        suspicious = [(found, norm) for found, norm in choosing if norm.layer.name in suspects]
        gained = gains(self.model, self.batches, suspicious, self._run, self.loss, gap.running)
        for name, gain in gained.items():
            of_norms.setdefault(name, {})["gain"] = gain
        return watcher.judged(facts, run, gap=gap, tokens=self.tokens, of_norms=of_norms, of_weights=shifts)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode with gradients; what a training model holds in evaluation mode, and what is frozen, stays so."""
    modes = {module: module.training for module in model.modules()}
    try:
        if not model.training:
            for module in modes:
                module.training = not is_frozen(module) and not held_still(module)
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode

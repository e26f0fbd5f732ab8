"""``watch``: look at a model while its owner trains it. Hooks are on the layers only while a sampled pass runs."""

from __future__ import annotations

import functools
import os
import time
import warnings
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normwise.errors import InputError, NormwiseWarning
from normwise.findings import Diagnosis, ModelFacts, RunTrace
from normwise.nn._checks import model_given, number_given, optimizer_given
from normwise.probe.entries import Entries
from normwise.probe.facts import Log, facts_of, joined
from normwise.probe.hooks import Hooks, ranks
from normwise.probe.meters import NormMeter, WeightMeter
from normwise.probe.optimizers import Decays
from normwise.probe.padding import padded_share
from normwise.probe.reads import Reads
from normwise.probe.scalars import Scalars, Writer
from normwise.probe.verdict import diagnosis_of
from normwise.surgery.layers import Found
from normwise.surgery.running import refuse_lazy, tensors_in, unwrapped

# Passes that are surveyed, where each shows another part of the model.
_SURVEYS = 8


class watch:  # noqa: N801 (used as a context manager, as torch.no_grad is)
    """Watch a model's normalization around your own training loop.

    Sampled are the steps 0, 1, 2, 4, 8, … and from ``every`` on each ``every``-th, one forward pass of each; the first
    is a little slower, as the model is surveyed in it. Nothing is changed and no random number drawn; hooks go when the
    block ends, also by an exception. The model may be wrapped (data-parallel), run under autocast, accumulate
    gradients, take any arguments; training may call its ``forward`` or any of its parts. Optimizers need not be given:
    those that step on the model's parameters are noticed.

    Args:
        model: to watch.
        optimizer: the one that trains it; default whichever steps.
        every: distance of sampled steps.
        run_length: steps of the whole run, if the block holds only a part of it; judges the momentum.
        writer: gets scalars at every sampled step: a folder for TensorBoard or its ``SummaryWriter``, a run of Weights
            & Biases, the module ``mlflow``, an ``Accelerator``, a logger of Lightning, or anything with
            ``log_metrics(metrics, step)``.

    Raises:
        InputError: ``every`` or ``run_length`` is no whole number of at least 1, the writer cannot be written to, lazy
            layers have seen no data, an argument is of the wrong kind, or the model is compiled: a compiled graph does
            not see hooks.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model) as w:
        ...     for _ in range(60):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(64, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> w.diagnosis().worst is None
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 16,
        run_length: int | None = None,
        writer: Writer | str | os.PathLike[str] | None = None,
    ) -> None:
        model_given(model, "watch")
        optimizer_given(optimizer, "watch")
        number_given(every, "every", least=1, whole=True)
        if run_length is not None:
            number_given(run_length, "run_length", least=1, whole=True)
        refuse_lazy(model, "watch")
        if any(isinstance(getattr(part, "_orig_mod", None), nn.Module) for part in model.modules()):
            raise InputError(
                "a compiled model does not see hooks: watch the model itself and compile it afterwards, or run the "
                "watched steps without torch.compile"
            )
        self.model = unwrapped(model)
        self._every, self._run_length = every, run_length
        self._decays = Decays(self.model, optimizer)
        self._scalars = None if writer is None else Scalars(writer)
        self._stack = ExitStack()
        self._log: Log | None = None
        self._facts: ModelFacts | None = None
        self._entered = False
        self._spent = 0.0
        self._passes = self._steps = self._sampled = self._repeated = self._blind = 0
        self._since_step = 0
        self._pending, self._measured = True, False
        self._misplaced: dict[str, None] = {}
        self._seen_inputs: list[tuple[int, weakref.ref[Tensor]]] = []
        self._blind_steps: set[int] = set()
        self._broken: dict[str, None] = {}
        # Of the pass that runs now: through which modules it went in, whether it is measured, whether it came back.
        self._entered_by: set[int] = set()
        self._measuring = False
        self._whole = True
        self._counts: dict[int, Tensor] = {}
        self._reads = Reads()
        self._surveys = 0
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def __enter__(self) -> watch:
        log = Log(self.model)
        self.found = list(log.norms.values())
        self._norms = {id(found.module): NormMeter(found, self._reads) for found in self.found}
        self._weighted = {id(m): m for m in self.model.modules() if id(m) in log.weighted}
        self._weights = {key: WeightMeter(module, self._reads) for key, module in self._weighted.items()}
        self._hooks = Hooks(self._norms, self._weighted, self._weights)
        self._entries = Entries(self.model, {*self._norms, *self._weighted}, self._begin, self._end)
        self._survey: Log | None = log
        try:
            self._stack.callback(self._entries.close)
            self._entries.open()
            self._hook(register_optimizer_step_pre_hook(self._before_step))
            self._hook(register_optimizer_step_post_hook(self._after_step))
        except BaseException:
            self._stack.close()
            raise
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._hooks.take_off()
        self._stack.close()
        self.end_backward()
        self._close_pass()
        if self._scalars is not None:
            self._scalars.close()
        if kind is None and not self._passes:
            warnings.warn(
                f"watch saw no training pass of {type(self.model).__name__}: call the watched model itself or its "
                "parts, in training mode",
                NormwiseWarning,
                stacklevel=2,
            )

    def diagnosis(self) -> Diagnosis:
        """Judge what was seen so far; inside the block or after it.

        Returns:
            The diagnosis.

        Raises:
            InputError: no forward pass was seen yet.
        """
        if self._entered:
            self.end_backward()
            self._close_pass()
        if not self._entered or self._facts is None:
            raise InputError("nothing was seen yet: run at least one training pass inside `with watch(model):`")
        # Averages that are still on their way at first are not held against the layer.
        return self.judged(self._facts, self.run(), since=self._passes // 2)

    def judged(self, facts: ModelFacts, run: RunTrace, **more: Any) -> Diagnosis:
        """Judge what was seen, with more that was found out elsewhere.

        Args:
            facts: of the model.
            run: how it was run.
            **more: for :func:`normwise.probe.verdict.diagnosis_of`.

        Returns:
            The diagnosis.
        """
        self._close_meters()
        of_norms = {name: dict(known) for name, known in more.pop("of_norms", {}).items()}
        for key, meter in self._norms.items():
            of_norms.setdefault(meter.found.names[0], {})["ran"] = key in self._entries.ran
        more["of_norms"] = of_norms
        return diagnosis_of(self.model, facts, run, self._norms, self._weights, self._decays, **more)

    def _close_meters(self) -> None:
        meters: list[NormMeter | WeightMeter] = [*self._norms.values(), *self._weights.values()]
        for each in meters:
            each.close()
        self._reads.read()

    def run(self) -> RunTrace:
        """How the model was run so far.

        Returns:
            The record.
        """
        return RunTrace(
            passes=self._passes,
            sampled=self._sampled,
            steps=self._steps,
            micro_batches=(self._passes - self._since_step) / self._steps if self._steps and self._whole else 1.0,
            repeated=self._repeated,
            training_in_evaluation=list(self._misplaced),
            blind_passes=self._blind,
            blind_steps=len(self._blind_steps),
            fresh=self._decays.fresh,
            nonfinite_gradients=list(self._broken),
            run_length=self._run_length,
            overhead=self.overhead,
            ranks=ranks(),
            **self._decays.summary(),
        )

    @property
    def overhead(self) -> float:
        """The seconds that looking took."""
        return self._spent + (self._hooks.overhead if self._entered else 0.0)

    def _hook(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        begun = time.perf_counter()
        self.end_backward()
        inside = {id(part) for part in module.modules()}
        norms = [found for found in self.found if id(found.module) in inside]
        if not module.training:
            self._misplaced |= dict.fromkeys(training_norms(norms))
        elif not torch.is_grad_enabled():
            self._blind += bool(training_norms(norms))
            self._blind_steps |= {self._steps} if training_norms(norms) else set()
        else:
            self._note_repeated(module, tensors_in((args, kwargs)), norms)
            self._training_pass(module, args, kwargs)
        self._spent += time.perf_counter() - begun

    def _training_pass(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Parts that are called one after the other are one pass, until one comes again or gradients come back.
        if not self._entered_by or id(module) in self._entered_by or self._hooks.came_back:
            self._close_pass()
            self._open_pass(args, kwargs)
        self._entered_by.add(id(module))
        self._whole &= module is self.model
        if self._measuring:
            self._hooks.put_on(self._log, self._passes)
            self._hooks.late(module, args, kwargs)

    def _open_pass(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self._passes += 1
        self._since_step += 1
        step = self._steps or self._passes - 1
        self._measuring = self._pending and _is_sampled(step, self._every)
        if not self._measuring:
            return
        # One pass of a step; without an optimizer in sight every pass is a step.
        self._pending = self._steps == 0
        self._measured = True
        self._sampled += 1
        if self._facts is None or (self._surveys < _SURVEYS and not self._whole and _unseen(self._facts)):
            # A pass that failed has spoilt its log; one that goes through a part shows that part.
            self._log, self._survey = self._survey or Log(self.model), None
            self._inputs = tensors_in((args, kwargs))
            self._padded = padded_share(kwargs or args)

    def _close_pass(self) -> None:
        self._reads.read()
        for meter in self._norms.values():
            meter.end_pass()
        if self._log is not None and self._outputs:
            size = next((t.shape[0] for t in self._inputs if t.ndim), 1)
            facts = facts_of(self.model, self._log, self._inputs, self._outputs, size, size, self._padded)
            self._facts = facts if self._facts is None else joined(self._facts, facts)
            self._surveys += 1
        self._log, self._inputs, self._outputs = None, [], []
        self._entered_by, self._hooks.came_back = set(), False

    def end_backward(self) -> None:
        """Note which running statistics moved again since the measured pass: its backward pass ran the layer anew."""
        for key, before in self._counts.items():
            now = getattr(self._norms[key].found.module, "num_batches_tracked", None)
            if isinstance(now, Tensor):
                self._reads.later(self._norms[key].take_counts, before, now)
        self._counts = {}

    def take_gradients(self, gradients: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Note the parameters whose gradient is not finite.

        Args:
            gradients: parameters, each with its gradient.
        """
        given = [(id(p), _values(g).isfinite().all()) for p, g in gradients if g is not None]
        self._reads.later(functools.partial(self._note_broken, [key for key, _ in given]), *(flag for _, flag in given))

    def _note_broken(self, keys: list[int], *finite: Tensor) -> None:
        broken = {key for key, flag in zip(keys, finite, strict=True) if not flag}
        if broken:
            self._broken |= dict.fromkeys(name for name, p in self.model.named_parameters() if id(p) in broken)

    def _note_repeated(self, module: nn.Module, inputs: list[Tensor], norms: list[Found]) -> None:
        if inputs:
            again = any(key == id(module) and ref() is inputs[0] for key, ref in self._seen_inputs)
            self._repeated += again and bool(training_norms(norms))
            self._seen_inputs.append((id(module), weakref.ref(inputs[0])))

    def _end(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        begun = time.perf_counter()
        self._hooks.take_off()
        if self._measuring and self._entered_by:
            if output is None:
                self._log = None
            self._outputs = tensors_in(output)
            for key, meter in self._norms.items():
                count = getattr(meter.found.module, "num_batches_tracked", None)
                if meter.found.module.training and meter.calls_now and isinstance(count, Tensor):
                    self._counts[key] = count.clone()
        if module is self.model:
            self._close_pass()
        self._spent += time.perf_counter() - begun

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._decays.notice(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._decays.knows(optimizer) or not self._since_step:
            return
        begun = time.perf_counter()
        if self._measured:
            # Now, as an optimizer that is given a closure runs the backward pass within its step.
            self.end_backward()
            held = [p for group in optimizer.param_groups for p in group["params"]]
            self.take_gradients((p, p.grad) for p in held)
            self._reads.read()
        if self._scalars is not None and self._measured:
            self._close_meters()
            self._scalars.write(self._steps, self._norms, self._weights, self._names())
        self._close_pass()
        self._steps += 1
        self._since_step, self._pending, self._measured = 0, True, False
        self._seen_inputs.clear()
        self._spent += time.perf_counter() - begun

    def _names(self) -> dict[int, str]:
        return {id(module): name for name, module in self.model.named_modules()}


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _unseen(facts: ModelFacts) -> bool:
    return any(norm.order is None for norm in facts.norms) or any(weight.order is None for weight in facts.weights)


def held_still(module: nn.Module) -> bool:
    """Whether a norm's own parameters are all without gradients: somebody means it to stay."""
    own = list(module.parameters(recurse=False))
    tracked = isinstance(getattr(module, "running_mean", None), Tensor)
    return tracked and bool(own) and not any(p.requires_grad for p in own)


def _is_sampled(step: int, every: int) -> bool:
    # Powers of two first, so that short runs are seen as well.
    return step % every == 0 if step >= every else step & (step - 1) == 0


def training_norms(layers: list[Found]) -> list[str]:
    """The norms that would move their running statistics now."""
    return [found.names[0] for found in layers if found.module.training and _moves(found.module)]


def _moves(module: nn.Module) -> bool:
    tracks = isinstance(getattr(module, "running_mean", None), Tensor) and getattr(module, "track_running_stats", True)
    return bool(tracks) and getattr(module, "momentum", None) != 0

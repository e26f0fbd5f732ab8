"""``watch``: look at a model while its owner trains it. Hooks are on the layers only while a sampled pass runs."""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normwise.errors import InputError, NormwiseWarning
from normwise.findings import Diagnosis, ModelFacts, RunTrace
from normwise.nn._checks import model_given, number_given, optimizer_given
from normwise.probe.facts import Log, facts_of
from normwise.probe.meters import NormMeter, WeightMeter
from normwise.probe.optimizers import Decays
from normwise.probe.padding import padded_share
from normwise.probe.places import input_of
from normwise.probe.scalars import Scalars, Writer
from normwise.probe.verdict import diagnosis_of
from normwise.surgery._lazy import refuse_lazy
from normwise.surgery.layers import Found
from normwise.surgery.running import tensors_in, unwrapped


class watch:  # noqa: N801 (used as a context manager, as torch.no_grad is)
    """Watch a model's normalization around your own training loop.

    Sampled are the steps 0, 1, 2, 4, 8, … and from ``every`` on each ``every``-th, one forward pass of each; the first
    is a little slower, as the model is surveyed in it. Nothing is changed and no random number drawn; hooks go when the
    block ends, also by an exception. The model may be wrapped (data-parallel), run under autocast, accumulate
    gradients, take any arguments. Optimizers need not be given: those that step on the model's parameters are noticed.

    Args:
        model: to watch.
        optimizer: the one that trains it; default whichever steps.
        every: distance of sampled steps.
        run_length: steps of the whole run, if the block holds only a part of it; judges the momentum.
        writer: gets scalars at every sampled step: a TensorBoard ``SummaryWriter``, anything with ``add_scalar(tag,
            value, step)``, or a folder for TensorBoard.

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
        for name, value in (("every", every), ("run_length", run_length)):
            if value is not None:
                number_given(value, name, least=1, whole=True)
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
        self._armed = ExitStack()
        self._log: Log | None = None
        self._facts: ModelFacts | None = None
        self._entered = False
        self.overhead = 0.0
        self._passes = self._steps = self._sampled = self._repeated = self._blind = 0
        self._since_step = 0
        self._pending, self._measured = True, False
        self._misplaced: dict[str, None] = {}
        self._seen_inputs: list[weakref.ref[Tensor]] = []

    def __enter__(self) -> watch:
        log = Log(self.model)
        self.found = list(log.norms.values())
        self._norms = {id(found.module): NormMeter(found) for found in self.found}
        self._weighted = {id(m): m for m in self.model.modules() if id(m) in log.weighted}
        self._weights = {key: WeightMeter() for key in self._weighted}
        self._survey: Log | None = log
        try:
            self._hook(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._hook(self.model.register_forward_hook(self._end, with_kwargs=True, always_call=True))
            self._hook(register_optimizer_step_pre_hook(self._before_step))
            self._hook(register_optimizer_step_post_hook(self._after_step))
        except BaseException:
            self._stack.close()
            raise
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._armed.close()
        self._stack.close()
        if self._scalars is not None:
            self._scalars.close()
        if kind is None and not self._passes:
            warnings.warn(
                f"watch saw no training pass of {type(self.model).__name__}: call the watched model itself, in "
                "training mode",
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
        return diagnosis_of(self.model, facts, run, self._norms, self._weights, self._decays, **more)

    def run(self) -> RunTrace:
        """How the model was run so far.

        Returns:
            The record.
        """
        return RunTrace(
            passes=self._passes,
            sampled=self._sampled,
            steps=self._steps,
            micro_batches=(self._passes - self._since_step) / self._steps if self._steps else 1.0,
            repeated=self._repeated,
            training_in_evaluation=list(self._misplaced),
            blind_passes=self._blind,
            run_length=self._run_length,
            overhead=self.overhead,
            ranks=_ranks(),
            **self._decays.summary(),
        )

    def _hook(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        begun = time.perf_counter()
        if not model.training:
            self._misplaced |= dict.fromkeys(training_norms(self.found))
        elif not torch.is_grad_enabled():
            self._blind += bool(training_norms(self.found))
        else:
            self._training_pass(args, kwargs)
        self.overhead += time.perf_counter() - begun

    def _training_pass(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self._passes += 1
        self._since_step += 1
        self._note_repeated(tensors_in((args, kwargs)))
        step = self._steps or self._passes - 1
        if self._pending and _is_sampled(step, self._every):
            # One pass of a step; without an optimizer in sight every pass is a step.
            self._pending = self._steps == 0
            self._measured = True
            self._sampled += 1
            if self._facts is None:
                # A pass that failed has spoilt its log.
                self._log, self._survey = self._survey or Log(self.model), None
                self._armed.enter_context(self._log)
                self._inputs = tensors_in((args, kwargs))
                self._padded = padded_share(kwargs or args)
            self._arm()

    def _note_repeated(self, inputs: list[Tensor]) -> None:
        if inputs:
            again = any(ref() is inputs[0] for ref in self._seen_inputs)
            self._repeated += again and bool(training_norms(self.found))
            self._seen_inputs.append(weakref.ref(inputs[0]))

    def _arm(self) -> None:
        for key, norm in self._norms.items():
            self._measure(norm.found.module, self._look_at_norm(key))
        for key, module in self._weighted.items():
            self._measure(module, self._look_at_input(key))
            handle = module.register_forward_hook(self._listen(key))
            self._armed.callback(handle.remove)

    def _measure(self, module: nn.Module, hook: Callable[..., None]) -> None:
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        self._armed.callback(handle.remove)

    def _look_at_norm(self, key: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            begun = time.perf_counter()
            x = input_of(args, kwargs)
            if x is not None:
                meter = self._norms[key]
                meter.look(x, kwargs, _ranks() if meter.found.layer.synced else 1, self._passes)
            self.overhead += time.perf_counter() - begun

        return hook

    def _look_at_input(self, key: int) -> Callable[..., None]:
        axis = 1 if isinstance(self._weighted[key], nn.modules.conv._ConvNd) else -1

        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            begun = time.perf_counter()
            x = input_of(args, kwargs)
            if x is not None:
                self._weights[key].look(x, axis)
            self.overhead += time.perf_counter() - begun

        return hook

    def _listen(self, key: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, output: Any) -> None:
            made = tensors_in(output)
            if made and made[0].requires_grad:
                made[0].register_hook(self._hear(key))

        return hook

    def _hear(self, key: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            begun = time.perf_counter()
            self._weights[key].hear(gradient)
            self.overhead += time.perf_counter() - begun

        return hook

    def _end(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        begun = time.perf_counter()
        self._armed.close()
        for meter in self._norms.values():
            meter.end_pass()
        if self._log is not None and output is not None:
            size = next((t.shape[0] for t in self._inputs if t.ndim), 1)
            self._facts = facts_of(self.model, self._log, self._inputs, tensors_in(output), size, size, self._padded)
        self._log, self._inputs = None, []
        self.overhead += time.perf_counter() - begun

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._decays.notice(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._decays.knows(optimizer) or not self._since_step:
            return
        begun = time.perf_counter()
        if self._scalars is not None and self._measured:
            self._scalars.write(self._steps, self._norms, self._weights, self._names())
        self._steps += 1
        self._since_step, self._pending, self._measured = 0, True, False
        self._seen_inputs.clear()
        self.overhead += time.perf_counter() - begun

    def _names(self) -> dict[int, str]:
        return {id(module): name for name, module in self.model.named_modules()}


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _is_sampled(step: int, every: int) -> bool:
    # Powers of two first, so that short runs are seen as well.
    return step % every == 0 if step >= every else step & (step - 1) == 0


def training_norms(layers: list[Found]) -> list[str]:
    """The norms that would move their running statistics now.

    Args:
        layers: the norms of a model.

    Returns:
        Their names.

    Example:
        >>> from normwise.surgery.layers import find
        >>> training_norms(find(nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))))
        ['0']
    """
    return [found.names[0] for found in layers if found.module.training and _moves(found.module)]


def _moves(module: nn.Module) -> bool:
    tracks = isinstance(getattr(module, "running_mean", None), Tensor) and getattr(module, "track_running_stats", True)
    return bool(tracks) and getattr(module, "momentum", None) != 0

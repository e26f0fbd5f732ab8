"""What claims watch in a trial: one small class each, for :attr:`normwise.study.Task.observe`.

Each is called with the model, its task and the setup when the model is new, and gives plain numbers at the end. None
changes the model: what must run it in training mode or change its weights works on a copy.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normwise import devices
from normwise.parametrize import weight_norms
from normwise.records import Setup
from normwise.study.data import Part, run
from normwise.study.evaluate import evaluate
from normwise.study.tasks import Observer, Task
from normwise.surgery import calibrate, harden

Observe = Callable[[nn.Module, Task, Setup], Observer]
Kind = Callable[[nn.Module, Task, Setup], "Watch"]

PROBE = 128
_TINY = 1e-30


class Watch:
    """An observer that notes nothing; others override what they need."""

    #: Whether the result is of the trained model; where the model broke down there is none.
    of_model = True

    def __init__(self, model: nn.Module, task: Task, setup: Setup) -> None:
        self.model, self.task, self.setup = model, task, setup

    def step(self, step: int, loss: float) -> None:
        """Learn of a step."""

    def result(self) -> dict[str, Any]:
        """Give what was seen."""
        return {}

    def probe(self, size: int = PROBE, start: int = 0) -> Part:
        """Give some training samples, the same for all trials; in no order, whatever the order of the data."""
        train = self.task.splits.train
        order = torch.randperm(train.size, generator=torch.Generator().manual_seed(0))
        return train.take(order[start : start + size]).load()

    def spare(self) -> nn.Module:
        """Give a copy of the model in training mode, to do with as one likes."""
        return copy.deepcopy(self.model).train()


def watching(*kinds: Kind, final_only: bool = True) -> Observe:
    """Let several observers watch the same trials."""

    def observe(model: nn.Module, task: Task, setup: Setup) -> Observer:
        watched = not final_only or setup.stage == "final"
        return _Several(model, [kind(model, task, setup) for kind in kinds] if watched else [])

    return observe


class _Several:
    def __init__(self, model: nn.Module, observers: Sequence[Watch]) -> None:
        self.model, self.observers = model, observers

    def step(self, step: int, loss: float) -> None:
        for observer in self.observers:
            observer.step(step, loss)

    def result(self) -> dict[str, Any]:
        whole = all(bool(p.isfinite().all()) for p in self.model.parameters())
        asked = [observer for observer in self.observers if whole or not observer.of_model]
        return {key: value for observer in asked for key, value in observer.result().items()}


class LossCurve(Watch):
    """The training loss, averaged over the last ``WINDOW`` steps: ``losses``, one number a step from the first on."""

    of_model = False
    WINDOW = 20

    def __init__(self, model: nn.Module, task: Task, setup: Setup) -> None:
        super().__init__(model, task, setup)
        self.losses: list[float] = []

    def step(self, step: int, loss: float) -> None:
        """Learn of a step."""
        self.losses.append(loss if math.isfinite(loss) else math.inf)

    def result(self) -> dict[str, Any]:
        """Give the averages; what is not finite is left out at the end."""
        means = [float(np.mean(self.losses[max(k - self.WINDOW, 0) : k])) for k in range(1, len(self.losses) + 1)]
        return {"losses": [round(m, 5) for m in means if math.isfinite(m)]}


class InputDrift(Watch):
    """How far the distribution of each layer's inputs moves while it is trained.

    Every ``EVERY`` steps a fixed batch is run through a copy in training mode. The move of one layer's inputs between
    two such looks is the 2-Wasserstein distance of normal distributions with the channels' means and deviations,
    √(Σ_c (Δμ_c² + Δσ_c²) / Σ_c σ_c²), in units of their deviation; ``drift`` is its mean over looks and layers, the
    first layer left out, whose inputs are the data.
    """

    of_model = False
    EVERY = 20

    def __init__(self, model: nn.Module, task: Task, setup: Setup) -> None:
        super().__init__(model, task, setup)
        self.before: list[tuple[Tensor, Tensor]] = []
        self.moves: list[float] = []

    def step(self, step: int, loss: float) -> None:
        """Look at the inputs, every so many steps."""
        if step % self.EVERY or not math.isfinite(loss):
            return
        now = self._look()
        if self.before:
            self.moves.append(float(np.mean([_move(a, b) for a, b in zip(self.before, now, strict=True)])))
        self.before = now

    @torch.no_grad()
    def _look(self) -> list[tuple[Tensor, Tensor]]:
        spare, found = self.spare(), []

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].transpose(0, 1).flatten(1)
            found.append((rows.mean(1), rows.std(1, correction=0)))

        for layer in weighted(spare)[1:]:
            layer.register_forward_pre_hook(note)
        # The noise that a model may add in training is part of what its layers see, and new at every look.
        with torch.random.fork_rng(devices=[]):
            run(spare, self.probe().inputs)
        return found

    def result(self) -> dict[str, Any]:
        """Give the mean move, and its course."""
        return {"drift": float(np.mean(self.moves)), "drift_curve": self.moves} if self.moves else {}


def _move(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    moved = (b[0] - a[0]).square().sum() + (b[1] - a[1]).square().sum()
    return (moved / a[1].square().sum().clamp_min(_TINY)).sqrt().item()


class Gradients(Watch):
    """The gradients of a new model: the root mean square over each layer's weight, from first to last.

    ``gradients`` are their decimal logarithms, ``decades`` that of the first layer's over the last hidden layer's.
    """

    of_model = False

    def __init__(self, model: nn.Module, task: Task, setup: Setup) -> None:
        super().__init__(model, task, setup)
        spare, batch = self.spare(), self.probe()
        task.loss_of(spare, batch).backward()
        sizes = [layer.weight.grad.square().mean().sqrt().item() for layer in weighted(spare)[:-1]]  # type: ignore[union-attr, operator]
        self.logs = [math.log10(max(size, _TINY)) for size in sizes]

    def result(self) -> dict[str, Any]:
        """Give the logarithms."""
        return {"gradients": self.logs, "decades": self.logs[0] - self.logs[-1]}


class BatchErrors(Watch):
    """How wrong the mean and variance of a batch are, against those of all training data, by the batch's size.

    At the inputs of the trained model's normalization layers: ``errors`` are root mean squares over batches, channels
    and layers, of the mean in population deviations and of the variance relative to the population's; ``slopes`` are
    those of their logarithms over that of the size.
    """

    SIZES = (2, 4, 8, 16, 32, 64, 128)
    DRAWS = 200
    SAMPLES = 2048

    @torch.no_grad()
    def result(self) -> dict[str, Any]:
        """Draw batches and compare."""
        spare, seen = self.spare().eval(), []

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].cpu().double().flatten(2)  # some devices have no float64
            seen.append((x.mean(2), x.square().mean(2)))

        layers = [m for m in spare.modules() if hasattr(m, "running_mean")]
        if not layers:
            return {}
        for layer in layers:
            layer.register_forward_pre_hook(note)
        run(spare, self.probe(self.SAMPLES).inputs)
        errors = [self._errors(*moments) for moments in seen]
        rms = {
            name: [math.sqrt(float(np.mean([e[i][k] for e in errors]))) for k in range(len(self.SIZES))]
            for i, name in enumerate(("mean", "variance"))
        }
        slopes = {name: float(np.polyfit(np.log(self.SIZES), np.log(e), 1)[0]) for name, e in rms.items()}
        return {"errors": rms, "slopes": slopes}

    def _errors(self, first: Tensor, second: Tensor) -> tuple[list[float], list[float]]:
        """Mean squared errors at each size, from the samples' own first and second moments (N, C)."""
        alive = (second.mean(0) - first.mean(0).square()) > 1e-8
        first, second = first[:, alive], second[:, alive]
        mean, variance = first.mean(0), second.mean(0) - first.mean(0).square()
        draws = torch.Generator().manual_seed(0)
        found: tuple[list[float], list[float]] = ([], [])
        for size in self.SIZES:
            index = torch.randint(len(first), (self.DRAWS, size), generator=draws)
            means = first[index].mean(1)
            variances = second[index].mean(1) - means.square()
            found[0].append(((means - mean).square() / variance).mean().item())
            found[1].append((variances / variance - 1).square().mean().item())
        return found


class Modes(Watch):
    """Whether the trained model says the same in training and in evaluation, and whatever else is in the batch.

    ``mode_gap``: root mean square difference of its outputs for 32 samples in training and in evaluation mode;
    ``neighbour_gap``: the same in training mode between two batches that share half their samples. Both in units of
    the outputs' deviation.
    """

    @torch.no_grad()
    def result(self) -> dict[str, Any]:
        """Run it in both modes and with other neighbours."""
        half = PROBE // 2
        mine, others, more = (self.probe(half, half * k).inputs for k in range(3))
        evaluated = run(self.spare().eval(), mine)
        together = [run(self.spare(), _joined(mine, rest))[:half] for rest in (others, more)]
        scale = evaluated.std().clamp_min(_TINY)
        return {
            "mode_gap": ((run(self.spare(), mine) - evaluated).square().mean().sqrt() / scale).item(),
            "neighbour_gap": ((together[0] - together[1]).square().mean().sqrt() / scale).item(),
        }


class Directions(Watch):
    """Whether length and direction of the trained model's weights are separate parameters.

    ``cosine``: the largest |cosine| between a weight's direction parameter (or, without weight norm, the weight) and
    its gradient, over units and layers; 0 where a step cannot change the length. ``rescaling``: how much the outputs
    change when those parameters are made three times as long, in units of the outputs' deviation.
    """

    def result(self) -> dict[str, Any]:
        """Take a gradient, and stretch."""
        spare, batch = self.spare(), self.probe()
        self.task.loss_of(spare, batch).backward()
        directions = [_direction(layer) for layer in weighted(spare)]
        cosines = [
            nn.functional.cosine_similarity(v.flatten(1), v.grad.flatten(1), eps=_TINY).abs().max().item()
            for v in directions
            if v.grad is not None
        ]
        spare.eval()
        with torch.no_grad():
            before = run(spare, batch.inputs)
            for v in directions:
                v.mul_(3)
            after = run(spare, batch.inputs)
        return {
            "cosine": max(cosines),
            "rescaling": ((after - before).square().mean().sqrt() / before.std().clamp_min(_TINY)).item(),
        }


class Hardening(Watch):
    """What is left of a switchable network once each layer has become what it chose, and what it then costs.

    The trained model is hardened to each layer's largest shares and its running averages are measured anew on the
    training data, without further training. ``soft`` and ``hard`` are test scores before and after, ``single`` the
    share of layers that became a single method, ``seconds`` the processor's time for an evaluation of ``TIMED``
    samples: the least median over turns, all models taking turns, so that what else runs disturbs them alike.
    """

    SINGLES = ("batch", "layer", "instance", "group")
    TIMED, TURNS, REPEATS = 512, 7, 15

    def result(self) -> dict[str, Any]:
        """Harden a copy, and score and time both."""
        train, test = self.task.splits.train, self.task.splits.test
        rows: list[Any] = []
        soft = self.spare()
        hard = harden(self.spare(), threshold=0.0, negligible=1.0, report=rows.append)
        for model in (soft, hard):
            if any(getattr(m, "running_mean", None) is not None for m in model.modules()):
                calibrate(model, [batch.load().inputs for batch in train.batches(PROBE)])
        models = {"soft": soft, "hard": hard} | {name: self.task.build(name) for name in self.SINGLES}
        return {
            "soft": evaluate(soft, self.task, test)[0],
            "hard": evaluate(hard, self.task, test)[0],
            "single": sum(row.became != "switchable" for row in rows[0].layers) / len(rows[0].layers),
            "seconds": self._times({name: model.eval() for name, model in models.items()}),
        }

    @torch.no_grad()
    def _times(self, models: dict[str, nn.Module]) -> dict[str, float]:
        inputs, device = self.probe(self.TIMED).inputs, self.task.compute.device
        # The processor's own time says nothing of an accelerator's.
        clock = time.thread_time if self.task.compute.on_cpu else time.perf_counter
        found: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(self.TURNS):
            times: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(self.REPEATS):
                for name, model in models.items():
                    began = clock()
                    run(model, inputs)
                    devices.synchronize(device)
                    times[name].append(clock() - began)
            for name in models:
                found[name].append(statistics.median(times[name]))
        return {name: min(medians) for name, medians in found.items()}


class StateBytes(Watch):
    """What a model keeps beside its parameters, in bytes: ``state_bytes``."""

    def result(self) -> dict[str, Any]:
        """Sum its buffers."""
        return {"state_bytes": sum(b.numel() * b.element_size() for b in self.model.buffers())}


def weighted(model: nn.Module) -> list[nn.Module]:
    """List the convolutions and linear layers of a model, in order."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def _direction(layer: nn.Module) -> Tensor:
    if weight_norms(layer):
        return layer.parametrizations.weight.original1  # type: ignore[union-attr, return-value]
    return layer.weight  # type: ignore[return-value]


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, tuple):
        return tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    return torch.cat([first, second])

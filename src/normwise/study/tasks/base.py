"""What is trained: a model, its data, its loss and its score."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from normwise import devices
from normwise.arguments.methods import method_from
from normwise.errors import InputError
from normwise.methods import METHODS
from normwise.nn import NormFactory, norm_layer, parse_spec
from normwise.nn.own import Given
from normwise.parametrize import weight_normalize
from normwise.records import Setup
from normwise.study.compute import PLAIN, Compute
from normwise.study.data import Part, Samples, Splits, given_to, run, tensors_of
from normwise.study.optimize import OPTIMIZER, SCHEDULE, Steps, warm_sgd
from normwise.study.plan import REFERENCE_BATCH
from normwise.study.reading import on_device
from normwise.study.tasks.convert import AS_IS, conversion_note, converted
from normwise.study.tasks.scores import accuracy, class_loss
from normwise.surgery.running import settle

DEFAULT_METHODS = ("none", "batch", "layer", "weight", "instance", "group", "switchable")
# At batch size 32; scaled for others. A factor of 4 apart, wide enough that every method finds a rate that suits it.
DEFAULT_LRS = (0.02, 0.08, 0.32)


class MakeModel(Protocol):
    """Builds a new, freshly initialized model, taking its normalization layers from ``norm(channels)``."""

    def __call__(self, norm: NormFactory, /) -> nn.Module:
        """Build a model."""
        ...


class Observer(Protocol):
    """Watches one trial: made when its model is, told of every step, asked at the end."""

    def step(self, step: int, loss: float) -> None:
        """Learn of an optimizer step: the first is 1; ``loss`` is that of its batches, before the step."""
        ...

    def result(self) -> dict[str, Any]:
        """Give what was seen as plain JSON values; called once, after training or a divergence."""
        ...


@dataclass(frozen=True)
class Task:
    """A model, its data and how a result is scored; higher scores are better.

    ``floor`` is what a diverged trial scores: what guessing would. ``steps`` is the length of a default trial at batch
    size 2; ``threads`` are torch's while a trial runs (``None`` leaves them), one being fastest for small models.
    ``source`` is what :func:`load_task` makes the same task from, if anything.

    The rest says where a task is not ``loss(model(inputs), targets)``, trained by our optimizer:

    - ``batch_loss(model, batch)`` is the training loss of a batch, instead of ``loss``;
    - ``metric(model, part)`` is the score of a part, the model being in evaluation mode, instead of ``score``; with
      neither of them the score is minus the loss;
    - ``optimizer(model, lr, steps)`` gives the optimizer and, or ``None``, the schedule that is stepped after it;
      ``optimizer_name`` and ``schedule_name`` describe them;
    - ``augment(batch, generator)`` changes training batches; its generator draws the same for every method;
    - ``accumulate`` batches make one optimizer step;
    - ``observe(model, task, setup)`` makes the observer of a trial;
    - ``methods`` and ``lrs`` are what is compared and tried by default; the rates hold at ``lrs_at`` samples a step,
      ``None`` being the largest batch size compared, and are scaled for others; without ``lrs`` they must be given;
    - ``converts`` says that ``make_model`` takes no ``norm``: the layers of what it builds are converted to each method
      by :func:`normwise.convert`, and ``"as_is"`` leaves them alone; ``elsewhere`` says which layers get another method
      instead: method → name of the layer → that other;
    - ``own`` are the methods that were handed over in Python: name → :class:`normwise.methods.Method` or callable;
    - ``notes`` are put into the report.

    ``compute`` says on which device and how it is trained. On an accelerator data, loss and metric of this task are
    there, and ``home`` is the task as it was made: its models are built on the CPU and then moved, so that they start
    from the same weights everywhere. See :meth:`on`.

    Example:
        >>> from normwise.study.tasks import load_task
        >>> load_task("digits").score_name
        'accuracy'
    """

    name: str
    splits: Splits
    make_model: MakeModel
    loss: Callable[..., torch.Tensor]
    score: Callable[..., float] | None
    score_name: str
    floor: float
    steps: int = 1000
    quick_steps: int = 250
    threads: int | None = None
    source: str | None = None
    batch_loss: Callable[[nn.Module, Any], torch.Tensor] | None = None
    metric: Callable[[nn.Module, Any], float] | None = None
    optimizer: Callable[[nn.Module, float, int], tuple[Steps, Steps | None]] | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = None
    accumulate: int = 1
    observe: Callable[[nn.Module, Task, Setup], Observer] | None = None
    optimizer_name: str = OPTIMIZER
    schedule_name: str = SCHEDULE
    methods: tuple[str, ...] = DEFAULT_METHODS
    lrs: tuple[float, ...] = DEFAULT_LRS
    lrs_at: int | None = REFERENCE_BATCH
    converts: bool = False
    elsewhere: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    own: Mapping[str, Given] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compute: Compute = PLAIN
    home: Task | None = None

    def on(self, compute: Compute) -> Task:
        """Give the task as it is trained on a device.

        Args:
            compute: where, and how.

        Returns:
            The task with its data, loss and metric on the device; small data whole, others batch by batch.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> from normwise.study.compute import Compute
            >>> load_task("digits").on(Compute(precision="bf16")).compute.precision
            'bf16'
        """
        if compute == self.compute:
            return self
        home = self.home or self
        if compute.on_cpu:
            return dataclasses.replace(home, compute=compute)
        held = ("loss", "score", "batch_loss", "metric")
        there = {name: devices.held_by(getattr(home, name), compute.device) for name in held}
        splits = on_device(home.splits, compute.device, home.augment is not None)
        return dataclasses.replace(home, compute=compute, home=home, splits=splits, **there)

    @property
    def dim(self) -> int:
        """Spatial axes of the inputs, for ``norm``: 1 for (N, C) and (N, C, L), 2 for images, 3 for volumes."""
        batch = self.splits.train.take(slice(1)).load()
        # What is no pair of tensors is the business of the user's own loss and model, which says dim= where it matters.
        return min(max(tensors_of(batch.inputs)[0].ndim - 2, 1), 3) if isinstance(batch, Part) else 2

    def norm(self, method: str) -> NormFactory:
        """Give the factory that a model of this task takes its layers from.

        Args:
            method: a key of ``METHODS``, with options if any: ``"group(num_groups=4)"``; a name of ``own``, or
                ``"my_file.py:MyMethod"``.

        Returns:
            ``norm(channels) -> Module``.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> load_task("digits").norm("instance")(3)
            InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=True, ...)
        """
        return norm_layer(self.given(method), dim=self.dim)

    def given(self, method: str) -> Given:
        """Give what a method's name stands for.

        Args:
            method: as for :meth:`norm`.

        Returns:
            What :func:`normwise.norm_layer` takes: the name of one of ours, or a method of one's own itself.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> load_task("digits").given("batch")
            'batch'
        """
        return self.own[method] if method in self.own else method_from(method)

    def options(self, method: str) -> dict[str, Any]:
        """Give the options of one of our methods.

        Args:
            method: as for :meth:`norm`.

        Returns:
            By name; none of a method of one's own, whose options are its own affair.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> load_task("digits").options("group(num_groups=4)")
            {'num_groups': 4}
        """
        given = self.given(method)
        return parse_spec(given)[1] if isinstance(given, str) else {}

    def build(self, method: str) -> nn.Module:
        """Build the model under one method.

        Method ``"weight"`` puts weight normalization on every convolution and linear layer, the last included; it
        keeps the initial weights.

        Args:
            method: as for :meth:`norm`.

        Returns:
            The model in training mode.

        Raises:
            InputError: ``make_model`` gives no module, or no layer of it can be converted.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> load_task("digits").build("group(num_groups=4)")[1]
            GroupNorm(4, 16, eps=1e-05, affine=True, bias=True)
        """
        if self.home is not None:
            return self.home.build(method).to(self.compute.device)
        model, given = self._made(method), self.given(method)
        if self.converts:
            model = converted(model, given, self._examples(model), self.elsewhere.get(method))
        elif isinstance(given, str) and METHODS[parse_spec(given)[0]].on_weights:
            weight_normalize(model, **{key: value for key, value in self.options(method).items() if key != "init"})
        return model.train()

    def _made(self, method: str) -> nn.Module:
        """What make_model builds, its lazy layers settled on two samples."""
        model = self.make_model() if self.converts else self.make_model(self.norm(method))  # type: ignore[call-arg]
        if not isinstance(model, nn.Module):
            raise InputError(f"make_model gave a {type(model).__name__}, expected a torch.nn.Module")
        settle(model, lambda m: self.loss_of(m, self.splits.train.take(slice(2)).load()))
        return model

    def conversions(self, methods: Iterable[str]) -> list[str]:
        """Say which layers are converted to what, for models that are.

        Args:
            methods: that are compared.

        Returns:
            A line for each, or none where models take their layers from :meth:`norm`.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> load_task("digits").conversions(["batch"])
            []
        """
        if not self.converts:
            return []
        if self.home is not None:
            return self.home.conversions(methods)
        with torch.random.fork_rng(devices=[]):
            made = [(m, self._made(m)) for m in methods]
            return [
                f"{m}: " + conversion_note(model, self.given(m), self._examples(model), self.elsewhere.get(m))
                for m, model in made
            ]

    def _examples(self, model: nn.Module) -> Any:
        """Two samples to tell a layer's axes by, where the model is known to run on them."""
        if self.batch_loss is not None:
            return None
        batch = self.splits.train.take(slice(2)).load()
        return given_to(model, batch.inputs) if isinstance(batch, Part) else None

    def loss_of(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Give the loss of a batch.

        Args:
            model: is run on the batch.
            batch: inputs and targets.

        Returns:
            A scalar.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> task = load_task("digits")
            >>> task.loss_of(task.build("none"), task.splits.train.take(slice(8))).shape
            torch.Size([])
        """
        if self.batch_loss is not None:
            return self.batch_loss(model, batch)
        return self.loss(run(model, batch.inputs), batch.targets)

    def optimize(self, model: nn.Module, lr: float, steps: int) -> tuple[Steps, Steps | None]:
        """Make a trial's optimizer and schedule.

        Args:
            model: to optimize.
            lr: the learning rate.
            steps: to do.

        Returns:
            Both; the schedule may be ``None``.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> task = load_task("digits")
            >>> optimizer, schedule = task.optimize(task.build("none"), 0.1, 100)
        """
        return (self.optimizer or warm_sgd)(model, lr, steps)

    def describe_model(self) -> str:
        """Describe the model, with a fingerprint of its structure and data, so that two studies can be told apart.

        Returns:
            One line.

        Example:
            >>> from normwise.study.tasks import load_task
            >>> load_task("digits").describe_model()
            'ConvNet, ... parameters without normalization (fingerprint ...)'
        """
        if self.home is not None:
            return self.home.describe_model()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build(AS_IS if self.converts else "none")
        count = sum(p.numel() for p in model.parameters())
        digest = hashlib.sha256(f"{model!r}{self.splits.fingerprint()}".encode()).hexdigest()[:8]
        what = "as it is" if self.converts else "without normalization"
        return f"{type(model).__name__}, {count:,} parameters {what} (fingerprint {digest})"


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Say which known name comes nearest to a mistyped one.

    Args:
        name: what came.
        known: what there is.

    Returns:
        A question ending in a space, or nothing.

    Example:
        >>> nearest("bacth", ["batch", "layer"])
        "did you mean 'batch'? "
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def classification(name: str, splits: Splits, make_model: MakeModel, **options: Any) -> Task:
    """Make a task of telling classes apart: cross-entropy to train, accuracy to score."""
    floor = _commonest_share(splits.valid)
    return Task(name, splits, make_model, class_loss, accuracy, "accuracy", floor, **options)


def _commonest_share(part: Part | Samples) -> float:
    """What always guessing the commonest class scores."""
    (targets,) = tensors_of(part.load().targets)
    return targets.unique(return_counts=True)[1].max().item() / targets.numel()

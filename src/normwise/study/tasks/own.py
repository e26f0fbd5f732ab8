"""Tasks of the user's own: their model, data, loss, metric, optimizer and augmentation."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normwise.arguments.lookup import called, resolved
from normwise.arguments.loss import Loss, loss_of
from normwise.arguments.metric import Metric, metric_of
from normwise.arguments.optimizer import maker_of
from normwise.errors import InputError, MissingDependencyError, NormwiseError, blaming, described
from normwise.files import parse_json
from normwise.study.data import Part, Samples, Splits, given_to, of_tokens, run, tensors_of
from normwise.study.evaluate import EVALUATION_BATCH, evaluate
from normwise.study.optimize import ADAMW, SCHEDULE, warm_adamw
from normwise.study.tasks import modules
from normwise.study.tasks.base import Task, classification, nearest
from normwise.study.tasks.convert import AS_IS, own_methods
from normwise.study.tasks.forms import splits_of
from normwise.study.tasks.language import METHODS_OF_TOKENS, RATES_OF_TOKENS, Perplexity, language_source, predicts_next
from normwise.study.tasks.named import DATASETS, named_task
from normwise.study.tasks.scores import METRICS, class_loss, r_squared, squared_error
from normwise.study.tasks.tuning import OwnOptimizer


def make_task(
    make_model: Any,
    data: Any,
    name: str | None = None,
    *,
    loss: Any = None,
    metric: Any = None,
    optimizer: Any = None,
    augment: Any = None,
    collate: Any = None,
    accumulate: int = 1,
) -> Task:
    """Make a task of the user's model and data: classification for whole-number targets, else regression.

    Each of model, data, loss, metric, optimizer, augment and collate may also be a text ``module:callable`` or
    ``path.py:callable``; where all are, other processes make the task from the same text.

    Args:
        make_model: ``make_model(norm)`` builds a fresh model; ``make_model()`` one whose layers are converted to each
            method; either may be a Lightning module. ``"timm:resnet18"`` takes timm's, ``None`` a data set's own.
        data: as for :func:`normwise.compare`.
        name: of the task; default the model's function.
        loss: as for :func:`normwise.compare`.
        metric: as for :func:`normwise.compare`.
        optimizer: as for :func:`normwise.compare`.
        augment: ``augment(batch, generator)`` gives a training batch.
        collate: makes a batch of a list of samples of a torch data set.
        accumulate: batches that make one optimizer step.

    Returns:
        The task.

    Raises:
        InputError: one of them cannot be used.

    Example:
        >>> from normwise.study.tasks.images import small_convnet
        >>> task = make_task(small_convnet, (torch.zeros(100, 1, 8, 8), torch.arange(100) % 10))
        >>> task.score_name, task.floor
        ('accuracy', 0.1)
    """
    texts = {"make_model": make_model, "data": data, "name": name, "loss": loss, "metric": metric} | {
        "optimizer": optimizer, "augment": augment, "collate": collate, "accumulate": accumulate
    }  # fmt: skip
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise InputError(f"accumulate must be a whole number of at least 1, got {accumulate!r}")
    splits = _splits(data, _function(collate, "collate"))
    make, label = _model(make_model, splits) if make_model is not None else (_reference(data), "")
    label = label or (data if isinstance(data, str) else "own data")
    task = _basic(name or label, splits, make, loss_of(loss), None if metric is None else metric_of(metric))
    if optimizer is not None:
        task = dataclasses.replace(task, **_tuned(OwnOptimizer(maker_of(optimizer))))
    task = dataclasses.replace(task, augment=_function(augment, "augment"), accumulate=accumulate)
    if all(isinstance(value, str | int | None) for value in texts.values()):
        given = {key: value for key, value in texts.items() if value is not None and (key, value) != ("accumulate", 1)}
        task = dataclasses.replace(task, source=json.dumps(given))
    return _with_floor(task)


def load_task(name: str) -> Task:
    """Give a named task with its reference model, or the one that a ``source`` tells of.

    Args:
        name: one of ``DATASETS``; ``"fashion-mnist"``, ``"japanese-vowels"`` and ``"austen"`` may name their folder
            behind a colon, ``"textures"`` the texture. Or a task's ``source``.

    Returns:
        The task.

    Raises:
        InputError: there is no such task; the message names the nearest.

    Example:
        >>> load_task("digts")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: unknown data set 'digts': did you mean 'digits'? Known are ...
    """
    return make_task(**{"make_model": None} | parse_json(name)) if name.startswith("{") else named_task(name)


def _splits(data: Any, collate: Callable | None) -> Splits:
    if not isinstance(data, str):
        return splits_of(data, collate)
    return named_splits(data) or splits_of(called(data), collate)


def named_splits(data: str) -> Splits | None:
    """The data of a text that names a data set or a file of text; ``None`` for one that names a callable."""
    kind, _, rest = data.partition(":")
    if kind == "text" and rest:
        return language_source(rest)
    return named_task(data).splits if kind in DATASETS or not rest else None


def _reference(data: Any) -> Callable[..., nn.Module]:
    if not isinstance(data, str) or data.partition(":")[0] not in DATASETS:
        raise InputError("your own data need your own model: compare(make_model, data)")
    return named_task(data).make_model


def _model(make_model: Any, splits: Splits) -> tuple[Callable[..., nn.Module], str]:
    """What builds the model, and the name by which it was found."""
    if isinstance(make_model, str):
        if make_model.startswith("timm:"):
            return _timm(make_model.removeprefix("timm:"), splits), make_model
        return resolved(make_model), make_model.rpartition("/")[2]
    if isinstance(make_model, nn.Module):
        raise InputError(
            f"make_model must be a function that builds a model anew for each trial, got a "
            f"{type(make_model).__name__}: give its class, or a function that makes it"
        )
    if not callable(make_model):
        raise InputError(f"make_model must be a function of norm that builds a model, got {type(make_model).__name__}")
    return make_model, ""


def _takes_norm(make: Callable) -> bool:
    """Whether a model's function wants its layers from us: by name, or as the one thing that it needs."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return True
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return bool(needed) or any(p.name == "norm" for p in parameters)


def _hint(task: Task) -> str:
    """Why a model's function was called with a norm, where its parameter has another name."""
    names = [] if task.converts else list(inspect.signature(task.make_model).parameters)
    if not names or "norm" in names:
        return ""
    return f" (called with norm, because {names[0]!r} has no default; without arguments, layers are converted)"


def _basic(name: str, raw: Splits, make: Callable, loss: Loss | None, metric: Metric | str | None) -> Task:
    """Loss and score, by the data and by a look at the model: does it train itself, are its layers to be converted?"""
    splits = raw if loss is not None and loss.takes == "batch" else _paired(raw)
    batch = splits.train.take(slice(2)).load()
    task = _by_targets(Task(name, splits, make, squared_error, r_squared, "R²", floor=0.0), batch)
    task = dataclasses.replace(task, converts=not _takes_norm(make))
    model = _built(task)
    own = modules.is_lightning(model)
    if own:
        task = dataclasses.replace(
            task, splits=raw if loss is None else splits, **_tuned(OwnOptimizer(modules.maker(model)))
        )
    task = _with_loss(task, loss, model, batch) if loss is not None else task
    if own and loss is None:
        task = dataclasses.replace(task, batch_loss=modules.training_loss)
    if metric is not None:
        task = _scored(task, metric)
    elif task.batch_loss is not None or not _is_pair(batch):
        # A loss of batches says that the defaults do not fit; so do batches that are no pairs of tensors.
        task = _scored(task, "loss")
    if isinstance(task.metric, modules.Logged) and not own:
        raise InputError(
            f"unknown metric {task.metric.name!r}: {nearest(task.metric.name, [*METRICS, 'perplexity', 'loss'])}Known "
            f"are {', '.join(METRICS)}, perplexity and loss; or give an object of torchmetrics or a function"
        )
    if task.batch_loss is None and not _is_pair(batch):
        raise InputError(
            f"a training batch is {_kind(batch)}, expected a pair of inputs and targets, or a dict with a label: for "
            "others give a loss(model, batch) of your own"
        )
    if task.batch_loss is None:
        given_to(model, batch.inputs)  # refuses names that the model does not know
        _refuse_copies(batch) if loss is None else None
    return _with_methods(task, model)


def _by_targets(task: Task, batch: Any) -> Task:
    """What fits the data where the user says nothing: classes, real numbers, or tokens to predict."""
    if predicts_next(batch):
        task = dataclasses.replace(_scored(task, "perplexity"), loss=class_loss, methods=METHODS_OF_TOKENS)
    elif _is_pair(batch) and not tensors_of(batch.targets)[0].is_floating_point():
        task = classification(task.name, task.splits, task.make_model)
    if isinstance(batch, Part) and of_tokens(batch.inputs):
        task = dataclasses.replace(task, optimizer=warm_adamw, optimizer_name=ADAMW, lrs=RATES_OF_TOKENS)
    return task


def _paired(splits: Splits) -> Splits:
    """The same, with batches of named items read as inputs and targets."""
    return Splits(*(part.as_pairs() if isinstance(part, Samples) else part for part in splits))


def _with_loss(task: Task, loss: Loss, model: nn.Module, batch: Any) -> Task:
    """The task with a loss of the user's."""

    def pair() -> tuple[Any, Any]:
        if not _is_pair(batch):
            raise InputError(f"a training batch is {_kind(batch)}, expected a pair of inputs and targets")
        return run(model, batch.inputs), batch.targets

    loss = loss.decided(model, batch, pair)
    if loss.takes == "outputs":
        return dataclasses.replace(task, loss=loss)
    return dataclasses.replace(task, batch_loss=loss.function)


def _scored(task: Task, metric: Metric | str) -> Task:
    if isinstance(metric, Metric):
        if metric.takes == "outputs":
            return dataclasses.replace(task, score=metric.function, score_name=metric.name, metric=None)
        return dataclasses.replace(task, metric=OwnMetric(metric.function), score_name=metric.name)
    if metric in METRICS:
        score, label = METRICS[metric]
        return dataclasses.replace(task, score=score, score_name=label, metric=None)
    if metric == "perplexity":
        return dataclasses.replace(task, metric=Perplexity(), score_name="−perplexity")
    if metric == "loss":
        return dataclasses.replace(task, score=None, metric=None, score_name="−loss")
    return dataclasses.replace(task, metric=modules.Logged(metric), score_name=metric.replace("-", "−", 1))


def _refuse_copies(batch: Part) -> None:
    """Refuse tokens whose targets are themselves: models of transformers shift them inside, and nothing else does."""
    if of_tokens(batch.inputs) and of_tokens(batch.targets):
        inputs, targets = tensors_of(batch.inputs)[0], tensors_of(batch.targets)[0]
        if inputs.shape == targets.shape and bool((inputs == targets)[targets >= 0].all()):
            raise InputError(
                "the targets are the inputs themselves: shift them, each token's target being the next one, or give "
                "loss=lambda model, batch: model(**batch).loss"
            )


def _with_methods(task: Task, model: nn.Module) -> Task:
    """What is compared by default of a model whose layers are converted: with those that it has, if they are mixed."""
    if not task.converts:
        return task
    layers = own_methods(model)
    if not layers:
        raise InputError(
            f"{task.name} builds a {type(model).__name__} without a normalization layer to convert: write it as "
            "make_model(norm), with norm(channels) where a layer is to stand"
        )
    plain = len(layers) == 1 and next(iter(layers)) in task.methods
    return task if plain else dataclasses.replace(task, methods=(AS_IS, *task.methods))


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, Part) and isinstance(batch.targets, Tensor)


def _kind(batch: Any) -> str:
    return "inputs and several targets" if isinstance(batch, Part) else f"a {type(batch).__name__}"


def _built(task: Task) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return task.build(AS_IS if task.converts else "none")
        except NormwiseError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"cannot build the model: {described(error)}{_hint(task)}") from error


def _with_floor(task: Task) -> Task:
    """What no training scores: that of guessing where it is known, else of the untrained model."""
    if task.metric is None and task.score_name in ("accuracy", "R²"):
        return task
    with blaming("the untrained model cannot be scored"), torch.random.fork_rng(devices=[]):
        score, _ = evaluate(_built(task), task, task.splits.valid)
    return dataclasses.replace(task, floor=score)


def _tuned(own: OwnOptimizer) -> dict[str, Any]:
    schedule = SCHEDULE if own.make.of_parameters else "own"
    name = f"own: {own.make.name}"
    return {"optimizer": own, "optimizer_name": name, "schedule_name": schedule, "lrs": own.rates(), "lrs_at": None}


def _function(value: Any, what: str) -> Any:
    if isinstance(value, str):
        return resolved(value)
    if value is not None and not callable(value):
        raise InputError(f"{what} must be a function or its name, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class OwnMetric:
    """Hands a part to the user's metric as the loader that it expects: batches, one after the other."""

    function: Callable[[nn.Module, Any], Any]

    def __call__(self, model: nn.Module, part: Part | Samples) -> Any:
        """Give the score of a part."""
        return self.function(model, Loader(part))


@dataclass(frozen=True)
class Loader:
    """The batches of a part."""

    part: Part | Samples

    def __iter__(self) -> Iterator[Any]:
        return (piece.load() for piece in self.part.batches(EVALUATION_BATCH))

    def __len__(self) -> int:
        return -(-self.part.size // EVALUATION_BATCH)


def _timm(name: str, splits: Splits) -> Callable[[], nn.Module]:
    """A timm network with random weights, sized to the data."""
    try:
        import timm
    except Exception as error:  # Beside another torch, torchvision, which it imports, fails in other ways too.
        raise MissingDependencyError(f"timm:{name} needs timm, which cannot be imported: {error}") from error
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}See timm.list_models()")
    batch = splits.train.take(slice(1)).load()
    if not isinstance(batch, Part) or tensors_of(batch.inputs)[0].ndim != 4:
        raise InputError(f"timm:{name} needs images: batches of inputs (N, C, H, W) and targets")
    channels = tensors_of(batch.inputs)[0].shape[1]
    return partial(timm.create_model, name, in_chans=channels, num_classes=_outputs(splits))


def _outputs(splits: Splits) -> int:
    """Classes, or values to predict."""
    found = []
    for part in splits:
        for piece in part.batches(EVALUATION_BATCH):
            (targets,) = tensors_of(piece.load().targets)
            if targets.is_floating_point():
                return targets.shape[1] if targets.ndim > 1 else 1
            found.append(int(targets.max()) + 1)
    return max(found)

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

from normwise.errors import InputError, MissingDependencyError, NormwiseError, blaming, described
from normwise.files import parse_json
from normwise.study.data import Part, Samples, Splits, of_tokens, tensors_of
from normwise.study.evaluate import EVALUATION_BATCH, evaluate
from normwise.study.optimize import ADAMW, warm_adamw
from normwise.study.tasks import modules
from normwise.study.tasks.base import Task, classification, nearest
from normwise.study.tasks.convert import AS_IS, own_methods
from normwise.study.tasks.forms import splits_of
from normwise.study.tasks.language import METHODS_OF_TOKENS, RATES_OF_TOKENS, Perplexity, language_source, predicts_next
from normwise.study.tasks.named import DATASETS, named_task
from normwise.study.tasks.scores import METRICS, Criterion, class_loss, r_squared, squared_error
from normwise.study.tasks.tuning import OwnOptimizer
from normwise.surgery.sources import called, resolved


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
        data: the name of a data set, ``"text:FILE"`` (see :func:`normwise.study.language_data`), or what
            :func:`~normwise.study.tasks.forms.splits_of` takes.
        name: of the task; default the model's function.
        loss: ``loss(model, batch)``, or a ``torch.nn`` criterion, called with outputs and targets.
        metric: ``metric(model, loader)``, higher is better; or a name: accuracy, mean_iou, r_squared, perplexity and
            loss (minus them), or what a Lightning module logs in its validation step (``"val_acc"``, ``"-val_loss"``).
        optimizer: ``optimizer(model)``, which may take ``lr`` and ``steps``, gives an optimizer, or it and a schedule.
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
    task = _basic(name or label, splits, make, _function(loss, "loss"), metric)
    task = _with_model(task)
    if optimizer is not None:
        own = OwnOptimizer(_function(optimizer, "optimizer"))
        task = dataclasses.replace(task, **_tuned(own, f"own: {_name(own.make)}"))
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
    kind, _, rest = data.partition(":")
    if kind == "text" and rest:
        return language_source(rest)
    if kind in DATASETS or not rest:
        return named_task(data).splits
    return splits_of(called(data), collate)


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


def _basic(name: str, splits: Splits, make: Callable, loss: Any, metric: Any) -> Task:
    """Loss and score, before the model is looked at."""
    batch = splits.train.take(slice(2)).load()
    criterion = loss if isinstance(loss, nn.Module) else None
    own_loss = loss if criterion is None else None
    pair = _is_pair(batch)
    if predicts_next(batch):
        task = _scored(Task(name, splits, make, class_loss, None, "", 0.0, methods=METHODS_OF_TOKENS), "perplexity")
    elif pair and not tensors_of(batch.targets)[0].is_floating_point():
        task = classification(name, splits, make)
    else:
        task = Task(name, splits, make, squared_error, r_squared, "R²", floor=0.0)
    if isinstance(batch, Part) and of_tokens(batch.inputs):
        task = dataclasses.replace(task, optimizer=warm_adamw, optimizer_name=ADAMW, lrs=RATES_OF_TOKENS)
    if criterion is not None:
        task = dataclasses.replace(task, loss=Criterion(criterion))
    if own_loss is not None:
        task = dataclasses.replace(task, batch_loss=own_loss)
    if metric is not None:
        return _scored(task, metric)
    # A loss of one's own says that the defaults do not fit; so do batches that are no pairs of tensors.
    return _scored(task, "loss") if own_loss is not None or not pair else task


def _scored(task: Task, metric: Any) -> Task:
    if isinstance(metric, str) and ":" not in metric:
        if metric in METRICS:
            score, label = METRICS[metric]
            return dataclasses.replace(task, score=score, score_name=label, metric=None)
        if metric == "perplexity":
            return dataclasses.replace(task, metric=Perplexity(), score_name="−perplexity")
        if metric == "loss":
            return dataclasses.replace(task, score=None, metric=None, score_name="−loss")
        return dataclasses.replace(task, metric=modules.Logged(metric), score_name=metric.replace("-", "−", 1))
    function = _function(metric, "metric")
    return dataclasses.replace(task, metric=OwnMetric(function), score_name=_name(function))


def _with_model(task: Task) -> Task:
    """Look at the model once: does it train itself, and are its layers to be converted?"""
    converts = not _takes_norm(task.make_model)
    task = dataclasses.replace(task, converts=converts)
    model = _built(task)
    if modules.is_lightning(model):
        if task.batch_loss is None:
            task = dataclasses.replace(task, batch_loss=modules.training_loss)
            if task.metric is None:
                task = _scored(task, "loss")
        own = OwnOptimizer(modules.configured)
        task = dataclasses.replace(task, **_tuned(own, f"own: {type(model).__name__}.configure_optimizers"))
    elif isinstance(task.metric, modules.Logged):
        raise InputError(
            f"unknown metric {task.metric.name!r}: {nearest(task.metric.name, [*METRICS, 'perplexity', 'loss'])}Known "
            f"are {', '.join(METRICS)}, perplexity and loss; or name a function, as in my_project.py:metric"
        )
    batch = task.splits.train.take(slice(2)).load()
    if task.batch_loss is None and not _is_pair(batch):
        raise InputError(
            f"a training batch is {_kind(batch)}, expected a pair of inputs and targets: for others give a "
            "loss(model, batch) of your own"
        )
    if not converts:
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


def _tuned(own: OwnOptimizer, label: str) -> dict[str, Any]:
    return {"optimizer": own, "optimizer_name": label, "schedule_name": "own", "lrs": own.rates(), "lrs_at": None}


def _function(value: Any, what: str) -> Any:
    if isinstance(value, str):
        return resolved(value)
    if value is not None and not callable(value):
        raise InputError(f"{what} must be a function or its name, got {type(value).__name__}")
    return value


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


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

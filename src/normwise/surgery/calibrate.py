"""Population statistics from data: what running averages stand for, measured instead of averaged along the way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normwise.arguments.data import batches_of
from normwise.arguments.renamed import renamed
from normwise.core.method import Method
from normwise.core.moments import Moments, pool
from normwise.core.reading import on_host
from normwise.errors import InputError, NormwiseError
from normwise.nn._checks import callable_given, model_given, number_given
from normwise.surgery.description import is_ours
from normwise.surgery.freeze import is_frozen
from normwise.surgery.layers import Found, Where, chosen
from normwise.surgery.population import Population, cells_of
from normwise.surgery.running import Forward, Left, evaluating, feed, hooked, uninitialized, unwrapped, working_copy


@dataclass(frozen=True)
class Calibrated:
    """One layer whose statistics were measured.

    ``elements`` is how many values a channel's statistics rest on (samples, for a tracked instance norm), ``batches``
    in how many forward passes of the layer, ``skipped`` how many were left out because they held NaN or infinities.
    ``mean_shift`` is the largest change of a mean, in units of the old standard deviation, ``var_factor`` the largest
    factor, at least 1, by which a variance grew or shrank; ``None`` where the old statistics were not finite.
    """

    layer: str
    elements: int
    batches: int
    skipped: int
    mean_shift: float | None
    var_factor: float | None


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` did; ``print`` it for a table.

    Example:
        >>> done = [Calibrated("bn", 64, 2, 0, 0.5, 1.25)]
        >>> print(Calibration(done, [Left("aux", "did not run")], batches=2, ranks=1))
        calibrated 1 layer on 2 batches
          bn  64 elements  mean moved by up to 0.5 std  variance by up to a factor 1.25
        left alone:
          aux  did not run
    """

    layers: list[Calibrated]
    left: list[Left]
    batches: int
    ranks: int
    layerwise: bool = False

    def __str__(self) -> str:
        """Give a table."""
        plural = "" if len(self.layers) == 1 else "s"
        where = f" on each of {self.ranks} ranks" if self.ranks > 1 else ""
        lines = [f"calibrated {len(self.layers)} layer{plural} on {self.batches} batches{where}"]
        for row in self.layers:
            skipped = f"  {row.skipped} non-finite batches skipped" if row.skipped else ""
            moved = "the old statistics were not finite"
            if row.mean_shift is not None:
                moved = f"mean moved by up to {row.mean_shift:.3g} std  variance by up to a factor {row.var_factor:.3g}"
            lines.append(f"  {row.layer}  {row.elements} elements  {moved}{skipped}")
        if self.left:
            lines += ["left alone:", *(f"  {left.layer}  {left.reason}" for left in self.left)]
        return "\n".join(lines)


@renamed("loader", "data", until="0.3")
def calibrate(
    model: nn.Module,
    data: Any,
    *,
    forward: Forward | None = None,
    layerwise: bool = False,
    batches: int | None = None,
    batch_size: int | None = None,
    where: Where = None,
    copy: bool = False,
    report: Callable[[Calibration], object] | None = None,
) -> nn.Module:
    """Replace running averages by the statistics of the whole population, measured with the network as it is.

    Formula: over all elements of all batches, μ = Σᵢ (nᵢ/n) μᵢ and σ² = Σᵢ (nᵢ/n) (σᵢ² + (μᵢ − μ)²), in float64;
    ``running_var`` gets the unbiased σ². This is what batch norm's evaluation mode assumes, and the "batch average"
    that switchable norm's paper prefers to moving averages. Tracked instance norms get, as in torch, the mean over
    samples of each sample's moments.

    In one pass every layer sees activations as in training: those before it are normalized by each batch. With
    ``layerwise`` the layers are measured one after the other in the order in which they run, those before by their new
    statistics, as in evaluation: right also where batches are small or an upstream shift matters, at one pass a layer.

    Everything else is in evaluation mode (no dropout); no gradients. Frozen layers stay: those of
    :func:`normwise.surgery.freeze`, of frozen classes, and those in evaluation mode inside a model in training mode.
    Padding that a layer is told of (``mask=``, ``lengths=``) does not count. Every module's mode comes back; on any
    exception the statistics do, too. With ``torch.distributed`` initialized all ranks must call this together, each
    with its own batches; all get the same statistics, of all data.

    Args:
        model: changed in place.
        data: a loader or a list of batches, taken as they are; or ``(inputs, targets)``, a data set, a Lightning data
            module or another of the :ref:`forms of data <arguments>`, of parts the training part. A one-off iterator
            is read into memory if ``layerwise``.
        forward: ``(model, batch) -> anything`` runs the model on a batch; the default takes tensors, (input, target)
            pairs and mappings, see :func:`normwise.surgery.running.feed`.
        layerwise: measure layer by layer.
        batches: how many batches to use at most, default all.
        batch_size: samples of a batch, where the data are samples; default 32.
        where: a name pattern or predicate ``(name, layer) -> bool``; default every layer with running statistics.
        copy: leave ``model`` alone and calibrate a deep copy.
        report: called with the :class:`Calibration`: ``print``, or a list's ``append``.

    Returns:
        The model, or the copy.

    Raises:
        InputError: there are no batches, no layer to calibrate, a batch does not fit the model, an argument is of the
            wrong kind, or the model has lazy layers that have seen no data (those of a copy are settled first).
        NormwiseError: another rank failed.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> _ = calibrate(model, torch.randn(10, 16, 2), report=lambda record: print(record.layers[0].elements))
        160
    """
    model_given(model, "calibrate")
    callable_given(forward, "calibrate", "forward")
    callable_given(report, "calibrate", "report")
    if batches is not None:
        number_given(batches, "batches", least=1, whole=True)
    if batch_size is not None:
        number_given(batch_size, "batch_size", least=1, whole=True)
    loader = batches_of(data, batch_size)
    if copy and uninitialized(model) and iter(loader) is loader:
        loader = list(itertools.islice(loader, batches))  # the first is read twice
    model = working_copy(model, copy, "calibrate", lambda m: (forward or feed)(unwrapped(m), _first(loader)))
    body = unwrapped(model)
    targets, left = _targets(body, where)
    if not targets:
        meant = "no layer" if where is None else f"no layer that where={where!r} matches"
        reasons = "; ".join(f"{x.layer} {x.reason}" for x in left) or f"{meant} keeps running statistics"
        raise InputError(f"nothing to calibrate in {type(model).__name__}: {reasons}")
    run = _Run(body, targets, forward or feed, batches)
    with _restored_on_error(targets), evaluating(body):
        if layerwise:
            run.layer_by_layer(loader)
        else:
            run.measure(targets, loader)
        layers, more = _finished(targets)
    if report is not None:
        report(Calibration(layers, left + more, run.seen, _world_size(), layerwise))
    return model


def _first(loader: Iterable[Any]) -> Any:
    for batch in loader:
        return batch
    raise InputError("calibrate: the loader gave no batch")


class _Target:
    """A layer under measurement."""

    def __init__(self, found: Found, buffers: Any) -> None:
        self.found, self.name, self.buffers = found, found.names[0], buffers
        self.old_mean, self.old_var = (buffer.detach().clone() for buffer in buffers)
        # Our conditional layers say themselves what they normalize by.
        own = getattr(found.module, "method", None)  # a conditional layer's says more than its description
        method = own if isinstance(own, Method) else found.layer.traits
        self.population = Population(len(self.old_mean), per_sample=method.tracks_samples)
        counter = getattr(found.module, "num_batches_tracked", None)
        # An instance norm never counts, as in torch.
        self.counter = counter if isinstance(counter, Tensor) and not method.tracks_samples else None
        self._old_count = None if self.counter is None else self.counter.clone()

    def normalize_by(self, cells: Moments) -> None:
        """Let the layer normalize by the batch."""
        # In evaluation mode, by way of its buffers: then there is no counter or momentum to undo, and neither single
        # values nor synchronized layers, which would wait for other ranks, need a case of their own.
        if self.population.per_sample:
            self.found.module.training = _has_spread(cells)
            return
        batch = pool(cells, 0)
        if bool((torch.as_tensor(batch.elements) > 1).all()) and bool(batch.var.isfinite().all()):
            self.write(batch.mean[0], batch.var[0])
        elif self.population.enough:
            self.write(self.population.mean, self.population.var)

    def restore(self) -> None:
        """Give the layer its old statistics back."""
        self.write(self.old_mean, self.old_var)
        if self.counter is not None and self._old_count is not None:
            self.counter.copy_(self._old_count)

    def write(self, mean: Tensor, var: Tensor) -> None:
        for buffer, value in zip(self.buffers, (mean, var), strict=True):
            buffer.copy_(value)


def _targets(model: nn.Module, where: Where) -> tuple[list[_Target], list[Left]]:
    """The layers to measure, and those that ask not to be."""
    targets, left = [], []
    for found in chosen(model, where):
        layer, module = found.layer, found.module
        buffers = tuple(getattr(module, name, None) for name in ("running_mean", "running_var"))
        reason = None
        if not all(isinstance(buffer, Tensor) for buffer in buffers):
            reason = "keeps no running statistics" if layer.traits.folds and layer.traits.running else ""
        elif is_frozen(module) or layer.frozen:
            reason = "is frozen"
        elif layer.problem is not None and not is_ours(module):
            # Its statistics may stand for something else than the moments of its input.
            reason = layer.problem
        elif model.training and not module.training:
            reason = "is in evaluation mode while the model trains: taken as frozen"
        if reason is None:
            targets.append(_Target(found, buffers))
        elif reason:
            left.append(Left(found.names[0], reason))
    return targets, left


def _has_spread(cells: Moments) -> bool:
    elements = cells.elements
    return bool((elements > 1).all()) if isinstance(elements, Tensor) else elements > 1


@contextmanager
def _restored_on_error(targets: list[_Target]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for target in targets:
            target.restore()
        raise


class _Kept:
    """An iterator's batches, to be given again; read at the first use, where a failure is shared with other ranks."""

    def __init__(self, batches: Iterable[Any], limit: int | None) -> None:
        self._source, self._limit = batches, limit
        self._batches: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            self._batches = list(itertools.islice(self._source, self._limit))
        return iter(self._batches)


class _Run:
    """One calibration: which layers, how to feed the model, how many batches it saw."""

    def __init__(self, model: nn.Module, targets: list[_Target], forward: Forward, limit: int | None) -> None:
        self.model, self.targets, self.forward, self.limit = model, targets, forward, limit
        self.seen = 0

    def layer_by_layer(self, loader: Iterable[Any]) -> None:
        """Measure in the order of execution, layers before by their new statistics."""
        if iter(loader) is loader:
            loader = _Kept(loader, self.limit)
        for target in self._in_order_of_execution(loader):
            self.measure([target], loader)
            _finished([target])

    def measure(self, targets: list[_Target], loader: Iterable[Any]) -> None:
        """Gather the statistics of some layers in one pass; meanwhile these normalize by the batch."""

        def observe(target: _Target, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> None:
            cells = cells_of(target.found.layer, target.found.module, x, mask, lengths)
            target.population.add(cells)
            target.normalize_by(cells)

        try:
            with _observed(targets, observe):
                failure = self._pass(loader, self.limit)
        finally:
            for target in targets:
                target.found.module.training = False
        for target, packs in zip(targets, _exchange([t.population.pack() for t in targets], failure), strict=True):
            target.population.merge_packed(packs)

    def _in_order_of_execution(self, loader: Iterable[Any]) -> list[_Target]:
        """The layers as the first batch meets them, then those it does not meet; all ranks take the first's order."""
        order: dict[int, None] = {}
        number = {target.name: i for i, target in enumerate(self.targets)}
        with _observed(self.targets, lambda target, *_: order.setdefault(number[target.name])):
            failure = self._pass(loader, 1)
        full = [*order, *(i for i in range(len(self.targets)) if i not in order)]
        (first, *_), *_ = _exchange([torch.tensor(full, dtype=torch.float64)], failure)
        return [self.targets[int(i)] for i in first]

    def _pass(self, loader: Iterable[Any], limit: int | None) -> Exception | None:
        """Run over the data; with several ranks a failure is kept until the others know of it, who else would wait."""
        self.seen = 0
        try:
            for batch in itertools.islice(loader, limit):
                self.seen += 1
                self.forward(self.model, batch)
            if not self.seen:
                raise InputError("nothing to calibrate on: the loader gave no batch")
        except Exception as error:
            if _world_size() == 1:
                raise
            return error
        return None


def _observed(targets: list[_Target], observe: Callable[..., object]) -> AbstractContextManager[None]:
    """Call ``observe(target, x, mask, lengths)`` before each of the layers runs."""

    def hook(target: _Target, _: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        # What is no (N, C, ...) tensor is for the layer itself to refuse.
        if isinstance(x, Tensor) and x.ndim >= 2:
            observe(target, x, kwargs.get("mask"), kwargs.get("lengths"))

    return hooked(((target.found.module, partial(hook, target)) for target in targets), before=True)


def _lacking(seen: Population) -> str | None:
    """Why nothing was measured, if so."""
    if not seen.batches:
        return "saw nothing but NaN or infinite values" if seen.skipped else "did not run in evaluation mode"
    return None if seen.enough else "saw a single element, which has no variance"


def _finished(targets: list[_Target]) -> tuple[list[Calibrated], list[Left]]:
    """Store what was measured; where that cannot be, put the old statistics back and say why."""
    reasons = [_lacking(target.population) for target in targets]
    held: list[Tensor | None] = []
    for target, reason in zip(targets, reasons, strict=True):
        if reason is None:
            target.write(target.population.mean, target.population.var)
        held.append(None if reason else torch.stack([b.isfinite().all() for b in target.buffers]).all())
    old = on_host([t for target in targets for t in (target.old_mean, target.old_var)])
    layers, left = [], []
    for target, lacking, fits, *before in zip(targets, reasons, on_host(held), old[::2], old[1::2], strict=True):
        reason = lacking or (None if fits else f"has a variance that {target.buffers[1].dtype} cannot hold")
        if reason is None:
            if target.counter is not None:
                target.counter.fill_(target.population.batches)
            layers.append(_calibrated(target, *before))
        else:
            target.restore()
            left.append(Left(target.name, reason))
    return layers, left


def _calibrated(target: _Target, old_mean: Tensor, old_var: Tensor) -> Calibrated:
    seen, eps = target.population, target.found.layer.eps
    mean, var = old_mean.double(), old_var.double()
    shift = ((seen.mean - mean).abs() / (var + eps).sqrt()).max().item()
    factor = ((seen.var + eps) / (var + eps)).log().abs().max().exp().item()
    finite = math.isfinite(shift) and math.isfinite(factor)
    return Calibrated(
        target.name, seen.elements, seen.batches, seen.skipped, shift if finite else None, factor if finite else None
    )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _exchange(vectors: list[Tensor], failure: Exception | None) -> list[list[Tensor]]:
    """Give every rank's copy of each vector, in the order of ranks; if one failed, all raise."""
    # One collective for everything, so that ranks whose loaders differ in length meet here and only here.
    if _world_size() == 1:
        return [[vector] for vector in vectors]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
    mine = torch.cat([torch.tensor([float(failure is not None)], dtype=torch.float64), *vectors]).to(device)
    gathered = [torch.empty_like(mine) for _ in range(_world_size())]
    dist.all_gather(gathered, mine)
    ranks = [rank.cpu() for rank in gathered]
    if failure is not None:
        raise failure
    failed = [i for i, rank in enumerate(ranks) if rank[0]]
    if failed:
        raise NormwiseError(f"calibration failed on rank {', '.join(map(str, failed))}; see the error there")
    split = [rank[1:].split([len(v) for v in vectors]) for rank in ranks]
    return [[parts[i] for parts in split] for i in range(len(vectors))]

"""What a model is, from one dry run: its layers in the order in which they run, and what is behind each statistic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normwise.findings import ModelFacts, NormFacts, WeightFacts
from normwise.nn._checks import callable_given, model_given, number_given
from normwise.nn._convolutions import CONVOLUTIONS, TRANSPOSED
from normwise.parametrize import weight_norms
from normwise.probe.log import RECURRENT, Log, Run, is_lazy
from normwise.probe.padding import padded_share
from normwise.probe.places import elements_of_layer, sizes_of
from normwise.surgery.layers import Found
from normwise.surgery.running import Forward, evaluating, feed, left_alone, run_on, settled, tensors_in, unwrapped
from normwise.surgery.running import keeping_random_state as keeping_random_state

ARCHITECTURES = ("generative", "recurrent", "attention", "conv", "mlp")

# A matrix that rows pass this often in one run is taken for a cell's, in a loop over time that somebody wrote out.
_STEPS = 4


def survey(
    model: nn.Module, example_inputs: Any, *, batch_size: int | None = None, forward: Forward | None = None
) -> ModelFacts:
    """Run a model once, quietly, and say what it is.

    The run is in evaluation mode without gradients: no buffer moves. Modes and the random state are as before. Lazy
    layers learn their sizes in a copy.

    Args:
        model: any module; wrappers (data-parallel, compiled) are looked through.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones; axis 0 counts samples.
        batch_size: samples per step and device that are meant; default those of the example.
        forward: ``(model, batch) -> output`` runs the model on ``example_inputs`` as on a loader's batch.

    Returns:
        The facts; ``norms`` and ``weights`` in the order in which they ran, those that did not run last.

    Raises:
        InputError: an argument is of the wrong kind, or lazy layers cannot be settled on the example.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> facts = survey(model, torch.zeros(2, 3, 6, 6), batch_size=4)
        >>> facts.architecture, facts.norms[0].elements, facts.norms[0].after
        ('conv', 64, '0')
    """
    model_given(model, "survey")
    if batch_size is not None:
        number_given(batch_size, "batch_size", least=1, whole=True)
    callable_given(forward, "survey", "forward")
    body = unwrapped(model)

    def run(body: nn.Module) -> Any:
        return run_on(body, example_inputs) if forward is None else forward(body, example_inputs)

    body = settled(body, run)
    inputs = tensors_in(example_inputs)
    example = next((t.shape[0] for t in inputs if t.ndim), 1)
    log = Log(body)
    with left_alone(body), evaluating(body), keeping_random_state(), log:
        output = run(body)
    return facts_of(body, log, inputs, tensors_in(output), example, batch_size or example, padded_share(example_inputs))


def survey_batch(model: nn.Module, batch: Any, forward: Forward | None = None) -> ModelFacts:
    """Survey a model on a batch as its loader gives it, targets and all."""
    return survey(model, batch, forward=forward or feed)


def facts_of(
    model: nn.Module,
    log: Log,
    inputs: list[Tensor],
    outputs: list[Tensor],
    example: int,
    batch_size: int,
    padded: float | None,
) -> ModelFacts:
    """Make facts of what a :class:`Log` noted."""
    norms = [_norm_facts(found, log.runs.get(key), batch_size / max(example, 1)) for key, found in log.norms.items()]
    modules = {id(module): module for module in model.modules()}
    calls = {name: log.runs[key].calls for key, name in log.named() if key in log.runs}
    alone = {name for name, taken in log.lineage.uses.items() if taken <= calls.get(name, 0)}
    norms = [replace(norm, alone=norm.after in alone) for norm in norms]
    behind = {norm.after: norm.name for norm in norms if norm.after is not None and norm.alone}
    weights = [_weight_facts(modules[k], names, log.runs.get(k), behind) for k, names in log.weighted.items()]
    for found in log.norms.values():
        if found.layer.activation is not None and id(found.module) in log.runs:
            log.activations[found.layer.activation] += 1
    upsamplings = log.upsamplings + sum(isinstance(modules[k], TRANSPOSED) for k in log.weighted if k in log.runs)
    ran = [modules[k] for k in log.weighted if k in log.runs]
    looped = any(_is_step(modules[k], log.runs[k]) for k in log.weighted if k in log.runs)
    kinds = _kinds(ran, looped, log.attentions, upsamplings, inputs, outputs)
    return ModelFacts(
        model=type(model).__name__,
        architecture=next(kind for kind in ARCHITECTURES if kind in kinds),
        kinds=kinds,
        batch_size=batch_size,
        example_size=example,
        parameters=sum(p.numel() for p in model.parameters() if not is_lazy(p)),
        depth=sum(1 for k in log.weighted if k in log.runs),
        inputs=[list(t.shape) for t in inputs],
        outputs=[list(t.shape) for t in outputs],
        norms=_in_order(norms),
        weights=_in_order(weights),
        activations=dict(log.activations),
        residual_adds=log.residual_adds,
        concatenations=log.concatenations,
        attentions=log.attentions,
        upsamplings=upsamplings,
        dropout=log.dropout,
        padded=padded,
        tokens=any(t.ndim > 1 and not t.is_floating_point() and t.dtype != torch.bool for t in inputs),
    )


def joined(facts: ModelFacts, more: ModelFacts) -> ModelFacts:
    """Add what a further pass showed of layers that had not run before."""
    orders = [*(norm.order for norm in facts.norms), *(weight.order for weight in facts.weights)]
    after = max((order for order in orders if order is not None), default=-1) + 1

    def merged(old: list[Any], new: list[Any]) -> list[Any]:
        known = {layer.name: layer for layer in new if layer.order is not None}
        late = {name: replace(layer, order=layer.order + after) for name, layer in known.items()}
        return _in_order([late.get(layer.name, layer) if layer.order is None else layer for layer in old])

    weights = merged(facts.weights, more.weights)
    return replace(
        facts,
        norms=merged(facts.norms, more.norms),
        weights=weights,
        depth=sum(weight.order is not None for weight in weights),
        kinds=list(dict.fromkeys([*facts.kinds, *more.kinds])),
        activations={name: facts.activations.get(name, 0) + more.activations.get(name, 0) for name in facts.activations}
        | {name: n for name, n in more.activations.items() if name not in facts.activations},
    )


def _in_order(facts: list[Any]) -> list[Any]:
    ran = sorted((f for f in facts if f.order is not None), key=lambda f: f.order)
    return ran + [f for f in facts if f.order is None]


def _norm_facts(found: Found, run: Run | None, scale: float) -> NormFacts:
    layer, module = found.layer, found.module
    facts = NormFacts(
        names=list(found.names),
        type=type(module).__name__,
        method=layer.method,
        order=None,
        calls=0,
        channels=layer.channels,
        eps=layer.eps,
        momentum=layer.momentum if layer.running_mean is not None else None,
        num_groups=layer.num_groups,
        per_token=layer.per_token,
        tracked=layer.running_mean is not None,
        frozen=layer.frozen,
        synced=layer.synced,
        affine=layer.weight is not None or layer.bias is not None,
    )
    if run is None or not run.input:
        return facts
    samples, channels, spatial = sizes_of(layer, run.input)
    # Rows of axis 0 grow with the batch, also where a model folds time or patches into it.
    samples = max(1, round(samples * scale))
    return replace(
        facts,
        order=run.order,
        calls=run.calls,
        channels=layer.channels or channels,
        shape=run.input,
        spatial=spatial,
        samples=samples,
        elements=elements_of_layer(layer, module, samples, spatial),
        masked=run.masked,
        after=run.after,
        dropout=run.dropout,
        channels_at=_passed_by(module, run),
        drift=_drift(run.steps, run.input[0]),
    )


def _passed_by(module: nn.Module, run: Run) -> int | None:
    """The channels' axis, where a plain layer norm over one axis normalizes over another."""
    plain = isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward
    if (
        not plain
        or len(getattr(module, "normalized_shape", ())) != 1
        or run.axis is None
        or run.axis == len(run.input) - 1
    ):
        return None
    return run.axis


def _drift(steps: list[tuple[Tensor, Tensor]], samples: int) -> float | None:
    """See :class:`normwise.findings.NormFacts`."""
    if len(steps) < _STEPS:
        return None
    inside, means = (torch.stack(each) for each in zip(*steps, strict=True))
    between, within = means.var(0).mean().item(), inside.mean().item()
    # Means of few samples differ by chance, by this much on average.
    chance = within / samples
    return max(0.0, between - chance) / (between + within) if between + within > 0 else 0.0


def _weight_facts(module: nn.Module, names: list[str], run: Run | None, behind: Mapping[str, str]) -> WeightFacts:
    return WeightFacts(
        names=names,
        type=type(module).__name__,
        order=None if run is None else run.order,
        calls=0 if run is None else run.calls,
        shape=[] if run is None else run.output,
        bias=isinstance(getattr(module, "bias", None), Tensor),
        weight_norm=bool(weight_norms(module)),
        normalized_by=next((behind[name] for name in names if name in behind), None),
        fan_in=_fan_in(module),
    )


def _fan_in(module: nn.Module) -> int | None:
    """How many numbers an output is made from: of the first matrix or kernel, whose axis 0 counts outputs."""
    matrix = next((p for p in module.parameters() if p.ndim >= 2), None)
    if matrix is None or isinstance(module, TRANSPOSED):
        return None
    return matrix[0].numel()


def _is_step(module: nn.Module, run: Run) -> bool:
    return isinstance(module, nn.Linear) and run.calls >= _STEPS and len(run.input) == 2


def _kinds(
    ran: list[nn.Module],
    looped: bool,
    attentions: int,
    upsamplings: int,
    inputs: list[Tensor],
    outputs: list[Tensor],
) -> list[str]:
    known = {
        "generative": _gives_images(upsamplings, inputs, outputs),
        "recurrent": looped or any(isinstance(m, RECURRENT) for m in ran),
        "attention": attentions > 0 or any(isinstance(m, nn.MultiheadAttention) for m in ran),
        "conv": any(isinstance(m, CONVOLUTIONS) for m in ran),
    }
    kinds = [kind for kind, applies in known.items() if applies]
    return kinds or ["mlp"]


def _gives_images(upsamplings: int, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Images come out: upsampled from a code, or with the channels and at least the size of the images that came in."""
    if not inputs or not outputs or outputs[0].ndim < 4:
        return False
    came, went = inputs[0], outputs[0]
    if came.ndim != went.ndim:
        return upsamplings > 0
    if came.shape[2:].numel() == 1:
        return went.shape[2:].numel() > 1
    return came.shape[1] == went.shape[1] and went.shape[2:].numel() >= came.shape[2:].numel()

"""Average the states of models that were trained apart: federated clients, shards, restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.kernels.reference import widened
from normwise.nn._checks import came, model_given, number_given
from normwise.surgery.layers import find

_MEAN, _VAR, _COUNTER = "running_mean", "running_var", "num_batches_tracked"
# Beyond these many keys an error only counts.
_NAMED = 3


def average_states(
    states: Sequence[Mapping[str, Any]],
    counts: Sequence[int] | None = None,
    *,
    positions: int | Mapping[str, int] = 1,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """Average state dicts so that running statistics become those of all data together.

    Formula: with counts n_k and n = Σ n_k, weights and every other float tensor are θ = Σ (n_k/n) θ_k (federated
    averaging, arXiv 1602.05629), mixing weights of switchable norms included. Running means are μ = Σ (n_k/n) μ_k, and
    running variances follow the law of total variance: what the clients' means lie apart is variance of the pooled
    data, which the plain average of variances loses. As ``running_var`` holds unbiased variances,

        σ² = Σ ((n_k − 1) σ_k² + n_k (μ_k − μ)²) / (n − 1),

    exactly the variance of all values where each client's statistics are those of its own (after
    :func:`normwise.calibrate`, or with momentum 1 and one batch); for averages that moved along the way it is their
    best stand-in. ``num_batches_tracked`` is summed. All is computed in float64 and keeps its type.

    Args:
        states: one a client, with the same keys, shapes and types.
        counts: how many samples each client has; one with 0 has no say. Default equal weights for clients of which
            nothing is known, whose variances are then taken as of many samples.
        positions: how many values a sample gives each channel, height × width in a convolutional network: n_k counts
            samples times positions in the correction of σ². A mapping gives it by a layer's name, the rest has 1.
        model: tells which layers are instance norms with running statistics. Those keep the mean of each sample's own
            variance, in which the clients' distance has no place.

    Returns:
        A new state dict on the first state's devices; ``model.load_state_dict`` takes it.

    Raises:
        InputError: no states, no state dicts, keys, shapes or types that differ, counts that are no counts or not as
            many as states, integer tensors or other entries that differ and so cannot be averaged.

    Example:
        >>> a = {"running_mean": torch.tensor([0.0]), "running_var": torch.tensor([1.0])}
        >>> b = {"running_mean": torch.tensor([2.0]), "running_var": torch.tensor([1.0])}
        >>> average_states([a, b], counts=[10, 10])["running_var"]    # (9 + 9 + 10 + 10) / 19
        tensor([2.])
    """
    states = list(_checked(states))
    sizes = _sizes(counts, len(states))
    own = _instance_norms(model)
    if sizes is not None:
        states = [state for state, size in zip(states, sizes, strict=True) if size]
        sizes = [size for size in sizes if size]
    weights = [1 / len(states)] * len(states) if sizes is None else [size / sum(sizes) for size in sizes]
    averaged: dict[str, Any] = {}
    for key in states[0]:
        values = [state[key] for state in states]
        layer, _, name = key.rpartition(".")
        if not isinstance(values[0], Tensor) or not (values[0].is_floating_point() or values[0].is_complex()):
            averaged[key] = _counted(key, values) if name == _COUNTER else _equal(key, values)
        elif name == _VAR and layer not in own and (mean_key := key.removesuffix(_VAR) + _MEAN) in states[0]:
            means = [state[mean_key] for state in states]
            places = positions if isinstance(positions, int) else positions.get(layer, 1)
            averaged[key] = _pooled(means, values, weights, None if sizes is None else [n * places for n in sizes])
        else:
            averaged[key] = _mean(values, weights).to(values[0])
    return averaged


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean in float64, as a move from the first value: what is equal everywhere stays as it is."""
    first = _precise(values[0], values[0])
    return first + sum((w * (_precise(v, values[0]) - first) for v, w in zip(values, weights, strict=True)), first * 0)


def _pooled(
    means: Sequence[Tensor], variances: Sequence[Tensor], weights: Sequence[float], elements: Sequence[int] | None
) -> Tensor:
    """The unbiased variance of the union; without numbers of elements they are taken as large."""
    mean = _mean(means, weights)
    apart = [(_precise(m, means[0]) - mean) ** 2 for m in means]
    if elements is None or sum(elements) < 2:
        within, between = list(weights), list(weights)
    else:
        within, between = ([(n - lost) / (sum(elements) - 1) for n in elements] for lost in (1, 0))
    spread = sum((w * d for w, d in zip(between, apart, strict=True)), torch.zeros_like(mean))
    if elements is not None and 1 in elements:  # one value has no variance, and what is stored may be NaN
        variances = [v if n > 1 else torch.zeros_like(v) for v, n in zip(variances, elements, strict=True)]
    inner = sum((w * _precise(v, means[0]) for v, w in zip(variances, within, strict=True)), torch.zeros_like(mean))
    return (inner + spread).to(variances[0])


def _precise(value: Tensor, like: Tensor) -> Tensor:
    value = value.detach().to(like.device)
    return value.to(torch.complex128) if value.is_complex() else widened(value)


def _counted(key: str, values: Sequence[Tensor]) -> Tensor:
    return sum((v.to(values[0].device) for v in values[1:]), values[0].detach().clone())


def _equal(key: str, values: Sequence[Any]) -> Any:
    """What cannot be averaged must be the same everywhere: masks, indices, extra state."""
    first = values[0]
    if isinstance(first, Tensor):
        if all(torch.equal(first, v.to(first.device)) for v in values[1:]):
            return first.detach().clone()
    elif all(v == first for v in values[1:]):
        return first
    what = f"a tensor of {first.dtype}" if isinstance(first, Tensor) else came(first)
    raise InputError(
        f"{key} is {what} that differs between the states and cannot be averaged: take it out of them, or make it equal"
    )


def _checked(states: object) -> Sequence[Mapping[str, Any]]:
    if isinstance(states, Mapping | nn.Module | str) or not isinstance(states, Sequence):
        raise InputError(f"average_states expected a list of state dicts, got {came(states)}")
    if not states:
        raise InputError("average_states expected at least one state dict, got an empty list")
    for k, state in enumerate(states):
        if not isinstance(state, Mapping):
            hint = ": give model.state_dict()" if isinstance(state, nn.Module) else ""
            raise InputError(f"states[{k}] is {came(state)}, expected a state dict{hint}")
        _alike(states[0], state, k)
    return states


def _alike(first: Mapping[str, Any], state: Mapping[str, Any], k: int) -> None:
    """Refuse a state of another architecture."""
    missing, more = [key for key in first if key not in state], [key for key in state if key not in first]
    parts = [f"{word} {_named(keys)}" for word, keys in (("lacks", missing), ("has besides", more)) if keys]
    for key in first.keys() & state.keys() if not parts else ():
        forms = [_form(value) for value in (first[key], state[key])]
        if forms[0] != forms[1]:
            parts.append(f"has {key} as {forms[1]}, not {forms[0]}")
    if parts:
        told = "; ".join(parts[:_NAMED]) + f"; and {len(parts) - _NAMED} more" * (len(parts) > _NAMED)
        raise InputError(f"states[{k}] is not of the same model as states[0]: it {told}")


def _form(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NAMED]) + f" and {len(keys) - _NAMED} more" * (len(keys) > _NAMED)


def _sizes(counts: Sequence[int] | None, states: int) -> list[int] | None:
    if counts is None:
        return None
    try:
        sizes = [int(n) if hasattr(n, "__index__") and not isinstance(n, bool) else n for n in counts]
    except TypeError:
        raise InputError(f"counts must be as many numbers of samples as states, got {came(counts)}") from None
    if len(sizes) != states:
        raise InputError(f"{len(sizes)} counts were given for {states} states: give each its number of samples")
    for k, size in enumerate(sizes):
        number_given(size, f"counts[{k}], a number of samples,", least=0, whole=True)
    if not sum(sizes):
        raise InputError("all counts are 0: there is nothing to average")
    return sizes


def _instance_norms(model: nn.Module | None) -> set[str]:
    if model is None:
        return set()
    model_given(model, "average_states")
    return {name for found in find(model) if found.layer.traits.tracks_samples for name in found.names}

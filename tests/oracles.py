"""What the papers say, in NumPy and float64, straight over the data: no moments, no pools, nothing of normwise.

``ORACLES[name](x, p)`` normalizes ``x`` (N, C, ...) with the parameters ``p``; every row of ``METHODS`` needs one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Parameters:
    """Inputs of an oracle; absent ones do nothing."""

    weight: np.ndarray
    bias: np.ndarray
    eps: float = 1e-5
    num_groups: int = 2
    running_mean: np.ndarray | None = None
    running_var: np.ndarray | None = None
    over: tuple[str, ...] = ("instance", "layer", "batch")
    mean_weight: np.ndarray = field(default_factory=lambda: np.ones(3))
    var_weight: np.ndarray = field(default_factory=lambda: np.ones(3))
    variance: str = "paper"
    gate: np.ndarray | None = None
    ghost_size: int = 32
    offset: float = 0.0
    alpha: np.ndarray = field(default_factory=lambda: np.full(1, 0.5))
    shift: np.ndarray = field(default_factory=lambda: np.zeros(1))


def _per_channel(t: np.ndarray, x: np.ndarray) -> np.ndarray:
    return t.reshape((1, -1) + (1,) * (x.ndim - 2))


def _standardize(x: np.ndarray, mean: np.ndarray, var: np.ndarray, p: Parameters) -> np.ndarray:
    return _per_channel(p.weight, x) * (x - mean) / np.sqrt(var + p.eps) + _per_channel(p.bias, x)


def none(x: np.ndarray, p: Parameters) -> np.ndarray:
    return _per_channel(p.weight, x) * x + _per_channel(p.bias, x)


def _over_axes(x: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def batch_moments(x: np.ndarray, p: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Ioffe & Szegedy 2015, algorithm 1; running averages in place of the batch's where given (algorithm 2)."""
    if p.running_mean is not None and p.running_var is not None:
        return _per_channel(p.running_mean, x), _per_channel(p.running_var, x)
    return _over_axes(x, (0, *range(2, x.ndim)))


def layer_moments(x: np.ndarray, p: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Ba et al. 2016, equation 3, over a whole convolutional map."""
    return _over_axes(x, tuple(range(1, x.ndim)))


def instance_moments(x: np.ndarray, p: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Ulyanov et al. 2016, equation 3."""
    return _over_axes(x, tuple(range(2, x.ndim))) if x.ndim > 2 else (x, np.zeros_like(x))


def group_moments(x: np.ndarray, p: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Wu & He 2018, equation 7."""
    grouped = x.reshape(x.shape[0], p.num_groups, -1)
    size = x.shape[1] // p.num_groups

    def spread(t: np.ndarray) -> np.ndarray:
        return np.repeat(t, size, axis=1).reshape(x.shape[:2] + (1,) * (x.ndim - 2))

    return spread(grouped.mean(2)), spread(grouped.var(2))


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def switchable(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Luo et al. 2019, equation 3; ``official`` follows the published module: unbiased instance variance, and layer and
    batch moments computed from the instance's."""
    w_mean, w_var = _softmax(p.mean_weight), _softmax(p.var_weight)
    members = {name: MOMENTS[name](x, p) for name in p.over}
    if p.variance == "official":
        space = tuple(range(2, x.ndim))
        mean_in, var_in = x.mean(space, keepdims=True), x.var(space, ddof=1, keepdims=True)
        second = var_in + mean_in**2
        members["instance"] = mean_in, var_in
        for name, axis in (("layer", 1), ("batch", 0)):
            mean = mean_in.mean(axis, keepdims=True)
            members[name] = mean, second.mean(axis, keepdims=True) - mean**2
        if p.running_mean is not None:
            members["batch"] = batch_moments(x, p)
    mean = sum(w * members[name][0] for w, name in zip(w_mean, p.over, strict=True))
    var = sum(w * members[name][1] for w, name in zip(w_var, p.over, strict=True))
    return _standardize(x, mean, var, p)


MOMENTS = {
    "batch": batch_moments,
    "layer": layer_moments,
    "instance": instance_moments,
    "group": group_moments,
}

ORACLES = {
    "none": none,
    "weight": none,  # it acts on weights; see weight_norm below
    "switchable": switchable,
    **{name: (lambda x, p, f=f: _standardize(x, *f(x, p), p)) for name, f in MOMENTS.items()},
}


def weight_norm(g: np.ndarray, v: np.ndarray, dim: int | None) -> np.ndarray:
    """Salimans & Kingma 2016, equation 2."""
    axes = tuple(a for a in range(v.ndim) if a != dim)
    return g * v / np.sqrt((v**2).sum(axes, keepdims=True))

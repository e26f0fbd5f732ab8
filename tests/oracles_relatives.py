"""What the relatives' papers say, in NumPy and float64, in the form of ``oracles``."""

from __future__ import annotations

import numpy as np
from scipy.special import erf

from oracles import Parameters, _per_channel, _standardize, batch_moments, instance_moments


def batch_renorm(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Ioffe 2017, algorithm 1, before there are running averages: r = 1, d = 0; the rest is ``renormalized``."""
    return _standardize(x, *batch_moments(x, p), p)


def renormalized(
    x: np.ndarray, p: Parameters, mean: np.ndarray, var: np.ndarray, r_max: float, d_max: float
) -> np.ndarray:
    """Ioffe 2017, algorithm 1, with running averages ``mean`` and ``var``."""
    batch_mean, batch_var = batch_moments(x, p)
    sigma, sigma_batch = np.sqrt(_per_channel(var, x) + p.eps), np.sqrt(batch_var + p.eps)
    r = np.clip(sigma_batch / sigma, 1 / r_max, r_max)
    d = np.clip((batch_mean - _per_channel(mean, x)) / sigma, -d_max, d_max)
    return _per_channel(p.weight, x) * ((x - batch_mean) / sigma_batch * r + d) + _per_channel(p.bias, x)


def ghost_batch(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Hoffer et al. 2017, algorithm 1: batch norm of every ghost batch on its own."""
    if p.running_mean is not None:
        return _standardize(x, *batch_moments(x, p), p)
    ghosts = np.array_split(x, max(1, len(x) // p.ghost_size))
    return np.concatenate([_standardize(g, *batch_moments(g, p), p) for g in ghosts])


def mean_only_batch(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Salimans & Kingma 2016, equation 15."""
    return _per_channel(p.weight, x) * (x - batch_moments(x, p)[0]) + _per_channel(p.bias, x)


def batch_instance(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Nam & Kim 2018, equation 3."""
    if p.gate is None:
        return _standardize(x, *batch_moments(x, p), p)
    (mean_b, var_b), (mean_i, var_i) = batch_moments(x, p), instance_moments(x, p)
    gate = _per_channel(p.gate, x)
    mixed = gate * (x - mean_b) / np.sqrt(var_b + p.eps) + (1 - gate) * (x - mean_i) / np.sqrt(var_i + p.eps)
    return _per_channel(p.weight, x) * mixed + _per_channel(p.bias, x)


def filter_response(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Singh & Krishnan 2019, equations 1 and 2."""
    square = (x**2).mean(tuple(range(2, x.ndim)), keepdims=True)
    return _per_channel(p.weight, x) * x / np.sqrt(square + p.eps) + _per_channel(p.bias, x)


def rms(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Zhang & Sennrich 2019, equation 4, with the 1 + w of Gemma as an option; channels at axis 1."""
    scale = p.offset + _per_channel(p.weight, x)
    return scale * x / np.sqrt((x**2).mean(1, keepdims=True) + p.eps) + _per_channel(p.bias, x)


def l2(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Henry et al. 2020, equation 2, with weight, bias and eps."""
    return _per_channel(p.weight, x) * x / np.sqrt((x**2).sum(1, keepdims=True) + p.eps) + _per_channel(p.bias, x)


def token_layer(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Ba et al. 2016, equation 3, of one position; channels at axis 1."""
    return _standardize(x, x.mean(1, keepdims=True), x.var(1, keepdims=True), p)


def dyt(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Zhu et al. 2025, equation 5."""
    return _per_channel(p.weight, x) * np.tanh(p.alpha * x) + _per_channel(p.bias, x)


def derf(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Chen et al. 2025: gamma * erf(alpha * x + s) + beta."""
    return _per_channel(p.weight, x) * erf(p.alpha * x + p.shift) + _per_channel(p.bias, x)


ORACLES = {
    "batch_renorm": batch_renorm,
    "ghost_batch": ghost_batch,
    "mean_only_batch": mean_only_batch,
    "batch_instance": batch_instance,
    "filter_response": filter_response,
    "rms": rms,
    "l2": l2,
    "dyt": dyt,
    "derf": derf,
}

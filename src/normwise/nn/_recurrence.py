"""The recurrence of layer-normalized LSTM and GRU: one step, its gradient, and the walk over the steps.

Two directions walk at once, on a leading axis of 2: the reverse one is a forward walk over each sequence turned round.
Rows are packed as in ``PackedSequence``: step t holds the ``batch_sizes[t]`` sequences that still run, longest first.

The walk is an autograd function of its own: one node in place of some twenty a step, and the gradient of the recurrent
weight is one matrix product over all steps instead of a sum of one a step. Where a transform or a second derivative
needs every operator, the same steps run plainly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normwise.core.autograd import Fused, Tensors
from normwise.core.route import needs_plain_graph

State = tuple[Tensor, ...]
# Gives what is normalized, the mean and 1/std.
Norm = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Recurrence:
    """One kind of recurrence.

    ``step(x, state, parameters, norm)`` gives the next state, the output first, and what its gradient needs.
    ``step_backward(grads, state, parameters, kept)`` takes the gradients of the next state, and gives those of this
    state, that of ``x``, and a row from which ``reduce(rows, hidden, parameters)`` makes those of the parameters.
    """

    step: Callable[[Tensor, State, State, Norm], tuple[State, State]]
    step_backward: Callable[[State, State, State, State], tuple[State, Tensor, State]]
    reduce: Callable[[list[Tensor], Tensor, State], list[Tensor]]


def _norm_for_now(eps: float) -> Norm:
    """The layer norm of the last axis, without weight and bias, that a walk needs; chosen once, not at every step."""
    written_down = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if written_down or not (torch.is_grad_enabled() or needs_plain_graph()):
        return lambda x: torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    # Torch's kernel has wrong third derivatives.
    return lambda x: _plain_norm(x, eps)


def _plain_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    rstd = torch.rsqrt(var + eps)
    return (x - mean) * rstd, mean, rstd


def _layer_norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    shape = x.shape[-1:]
    return torch.ops.aten.native_layer_norm_backward(grad, x, shape, mean, rstd, None, None, [True, False, False])[0]


def _gain_gradient(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor) -> Tensor:
    """From all rows at once; normalizing again is cheaper than keeping what was normalized."""
    return (grad * ((x - mean) * rstd)).sum_to_size(gain.shape)


def _lstm_step(x: Tensor, state: State, parameters: State, norm: Norm) -> tuple[State, State]:
    (h, c), (weight, gain, gain_c, bias_c) = state, parameters
    raw = h @ weight.transpose(-1, -2)
    normed, mean, rstd = norm(raw)
    # tanh(a) = 2 σ(2a) − 1, and a comes doubled: one sigmoid serves all gates, which is faster than tanh, too.
    s = torch.addcmul(x, normed, gain).sigmoid()
    i, f, half_g, o = s.chunk(4, -1)
    g = torch.sub(half_g, 0.5)
    c = torch.addcmul(f * c, i, g, value=2)
    normed_c, mean_c, rstd_c = norm(c)
    u = torch.addcmul(bias_c, normed_c, gain_c).tanh()
    return (o * u, c), (raw, mean, rstd, s, g, c, mean_c, rstd_c, u)


def _lstm_step_backward(grads: State, state: State, parameters: State, kept: State) -> tuple[State, Tensor, State]:
    weight, gain, gain_c, _ = parameters
    raw, mean, rstd, s, g, c, mean_c, rstd_c, u = kept
    i, f, _, o = s.chunk(4, -1)
    grad_h, grad_c = grads
    grad_q = torch.ops.aten.tanh_backward(grad_h * o, u)
    grad_c = grad_c + _layer_norm_backward(grad_q * gain_c, c, mean_c, rstd_c)
    twice = grad_c + grad_c
    grad_s = torch.empty_like(s)
    factors = ((twice, g), (grad_c, state[1]), (twice, i), (grad_h, u))
    for (left, right), part in zip(factors, grad_s.chunk(4, -1), strict=True):
        torch.mul(left, right, out=part)
    grad_z = torch.ops.aten.sigmoid_backward(grad_s, s)
    grad_raw = _layer_norm_backward(grad_z * gain, raw, mean, rstd)
    return (grad_raw @ weight, grad_c * f), grad_z, (grad_raw, raw, mean, rstd, grad_q, c, mean_c, rstd_c)


def _lstm_reduce(rows: list[Tensor], hidden: Tensor, parameters: State) -> list[Tensor]:
    grad_z, grad_raw, raw, mean, rstd, grad_q, c, mean_c, rstd_c = rows
    _, gain, gain_c, bias_c = parameters
    return [
        grad_raw.mT @ hidden,
        _gain_gradient(grad_z, raw, mean, rstd, gain),
        _gain_gradient(grad_q, c, mean_c, rstd_c, gain_c),
        grad_q.sum_to_size(bias_c.shape),
    ]


def _gru_step(x: Tensor, state: State, parameters: State, norm: Norm) -> tuple[State, State]:
    (h,), (weight, gain, bias_n) = state, parameters
    H = h.shape[-1]
    raw = h @ weight.transpose(-1, -2)
    raw_rz, raw_n = raw[..., : 2 * H].contiguous(), raw[..., 2 * H :].contiguous()
    normed_rz, mean_rz, rstd_rz = norm(raw_rz)
    normed_n, mean_n, rstd_n = norm(raw_n)
    rz = torch.addcmul(x[..., : 2 * H], normed_rz, gain[..., : 2 * H]).sigmoid()
    r, z = rz.chunk(2, -1)
    m = torch.addcmul(bias_n, normed_n, gain[..., 2 * H :])
    n = torch.addcmul(x[..., 2 * H :], r, m).tanh()
    return (torch.lerp(n, h, z),), (raw_rz, mean_rz, rstd_rz, raw_n, mean_n, rstd_n, rz, m, n)


def _gru_step_backward(grads: State, state: State, parameters: State, kept: State) -> tuple[State, Tensor, State]:
    (grad_h,), (h,), (weight, gain, _) = grads, state, parameters
    raw_rz, mean_rz, rstd_rz, raw_n, mean_n, rstd_n, rz, m, n = kept
    H = h.shape[-1]
    r, z = rz.chunk(2, -1)
    kept_h = grad_h * z
    grad_n = torch.ops.aten.tanh_backward(grad_h - kept_h, n)
    grad_rz = torch.ops.aten.sigmoid_backward(torch.cat([grad_n * m, grad_h * (h - n)], -1), rz)
    grad_m = grad_n * r
    grad_raw_rz = _layer_norm_backward(grad_rz * gain[..., : 2 * H], raw_rz, mean_rz, rstd_rz)
    grad_raw_n = _layer_norm_backward(grad_m * gain[..., 2 * H :], raw_n, mean_n, rstd_n)
    grad_raw = torch.cat([grad_raw_rz, grad_raw_n], -1)
    grad_x = torch.cat([grad_rz, grad_n], -1)
    row = (grad_raw, raw_rz, mean_rz, rstd_rz, grad_m, raw_n, mean_n, rstd_n)
    return (torch.addmm(kept_h, grad_raw, weight) if h.dim() == 2 else kept_h + grad_raw @ weight,), grad_x, row


def _gru_reduce(rows: list[Tensor], hidden: Tensor, parameters: State) -> list[Tensor]:
    grad_x, grad_raw, raw_rz, mean_rz, rstd_rz, grad_m, raw_n, mean_n, rstd_n = rows
    _, gain, bias_n = parameters
    split = raw_rz.shape[-1]
    gain_rz = _gain_gradient(grad_x[..., :split], raw_rz, mean_rz, rstd_rz, gain[..., :split])
    gain_n = _gain_gradient(grad_m, raw_n, mean_n, rstd_n, gain[..., split:])
    return [grad_raw.mT @ hidden, torch.cat([gain_rz, gain_n], -1), grad_m.sum_to_size(bias_n.shape)]


LSTM = Recurrence(_lstm_step, _lstm_step_backward, _lstm_reduce)
GRU = Recurrence(_gru_step, _gru_step_backward, _gru_reduce)


@functools.cache
def projected(recurrence: Recurrence) -> Recurrence:
    """The same recurrence, whose output is taken through a matrix (P, H), the last of its parameters, at each step."""

    def step(x: Tensor, state: State, parameters: State, norm: Norm) -> tuple[State, State]:
        (output, *others), kept = recurrence.step(x, state, parameters[:-1], norm)
        return (output @ parameters[-1].transpose(-1, -2), *others), (*kept, output)

    def step_backward(grads: State, state: State, parameters: State, kept: State) -> tuple[State, Tensor, State]:
        grad, *others = grads
        inner = (grad @ parameters[-1], *others)
        before, grad_x, row = recurrence.step_backward(inner, state, parameters[:-1], kept[:-1])
        return before, grad_x, (*row, grad, kept[-1])

    def reduce(rows: list[Tensor], hidden: Tensor, parameters: State) -> list[Tensor]:
        *inner, grad, output = rows
        return [*recurrence.reduce(inner, hidden, parameters[:-1]), grad.mT @ output]

    return Recurrence(step, step_backward, reduce)


def walk(
    recurrence: Recurrence, x: Tensor, state: State, parameters: State, batch_sizes: Sequence[int], eps: float
) -> tuple[Tensor, State]:
    """Run the recurrence over all steps."""
    if needs_plain_graph() or not torch.is_grad_enabled():
        output, last, _ = _plain_walk(recurrence, x, state, parameters, batch_sizes, eps, keep=False)
        return output, last
    output, *ends = Fused.apply(_Walk(recurrence, batch_sizes, eps, len(state)), x, *state, *parameters)
    return output, tuple(ends)


def _plain_walk(
    recurrence: Recurrence,
    x: Tensor,
    state: State,
    parameters: State,
    batch_sizes: Sequence[int],
    eps: float,
    keep: bool,
) -> tuple[Tensor, State, list[tuple[State, State]]]:
    """The walk in differentiable operators; with ``keep`` also each step's state before it and what it kept."""
    outputs, ended, record = [], [], []
    norm = _norm_for_now(eps)
    for rows, size in zip(x.split(list(batch_sizes), -2), batch_sizes, strict=True):
        if size < state[0].shape[-2]:
            ended.append(tuple(s[..., size:, :] for s in state))
            state = tuple(s[..., :size, :] for s in state)
        before = state
        state, kept = recurrence.step(rows, before, parameters, norm)
        outputs.append(state[0])
        if keep:
            record.append((before, kept))
    if ended:
        state = tuple(torch.cat(parts, -2) for parts in zip(state, *reversed(ended), strict=True))
    return torch.cat(outputs, -2), state, record


class _Walk:
    """The walk as one node: of the input's part, the initial state and the parameters."""

    def __init__(self, recurrence: Recurrence, batch_sizes: Sequence[int], eps: float, states: int) -> None:
        self.recurrence, self.batch_sizes, self.eps, self.states = recurrence, batch_sizes, eps, states
        self.kept_per_step = 0

    def forward(self, *tensors: Any) -> tuple[State, Tensors]:
        output, last, record = _plain_walk(
            self.recurrence, *self._parts(tensors), self.batch_sizes, self.eps, keep=True
        )
        self.kept_per_step = len(record[0][1])
        # A single step's output is its state: an autograd function must not return one tensor twice.
        results = (output, *(s.clone() if s is output else s for s in last))
        return results, [t for before, kept in record for t in (*before, *kept)]

    def formula(self, tensors: Any, kept: Any) -> State:
        output, last, _ = _plain_walk(self.recurrence, *self._parts(tensors), self.batch_sizes, self.eps, keep=False)
        return output, *last

    def backward(self, grads: Any, tensors: Any, flat: Any, wanted: Sequence[bool]) -> list[Tensor | None]:
        states, stride = self.states, self.states + self.kept_per_step
        parameters = tensors[1 + states :]
        by_step = grads[0].split(list(self.batch_sizes), -2)
        last, running = grads[1:], 0
        grad_state: State = tuple(g[..., :0, :] for g in last)
        rows: list[State] = []
        hidden: list[Tensor] = []
        for t in reversed(range(len(self.batch_sizes))):
            size = self.batch_sizes[t]
            if size > running:
                # Sequences that end here join with the gradient of their last state.
                joining = [(g, end[..., running:size, :]) for g, end in zip(grad_state, last, strict=True)]
                grad_state = tuple(torch.cat(pair, -2) if running else pair[1] for pair in joining)
                running = size
            before = flat[t * stride : t * stride + states]
            kept = flat[t * stride + states : (t + 1) * stride]
            incoming = (grad_state[0] + by_step[t], *grad_state[1:])
            grad_state, grad_x, row = self.recurrence.step_backward(incoming, before, parameters, kept)
            rows.append((grad_x, *row))
            hidden.append(before[0])
        joined = [torch.cat(column[::-1], -2) for column in zip(*rows, strict=True)]
        grad_parameters: list[Tensor] = [None] * len(parameters)  # type: ignore[list-item]
        if any(wanted[1 + states :]):
            grad_parameters = self.recurrence.reduce(joined, torch.cat(hidden[::-1], -2), parameters)
        return [joined[0], *grad_state, *grad_parameters]

    def _parts(self, tensors: State) -> tuple[Tensor, State, State]:
        return tensors[0], tensors[1 : 1 + self.states], tensors[1 + self.states :]

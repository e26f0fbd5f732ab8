"""What tells a layer-normalized LSTM from a GRU: parameters, the input's part of the gates, what a step reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normwise.core.last_axes import layer_norm
from normwise.core.route import without_autocast
from normwise.errors import InputError
from normwise.nn._recurrence import GRU, LSTM, Recurrence, State, projected, walk


class Weights(NamedTuple):
    """The parameters of one direction of one layer; biases and the cell state's norm may be absent."""

    weight_ih: Tensor
    weight_hh: Tensor
    gain_ih: Tensor
    gain_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    gain_c: Tensor | None = None
    bias_c: Tensor | None = None
    weight_hr: Tensor | None = None


class Kind:
    """What tells an LSTM from a GRU, for the layers and the cells alike."""

    _kind: str
    _recurrence: Recurrence
    _chunks: int
    _states: int
    _norms: tuple[str, ...] = ()
    eps: float

    @staticmethod
    def _input_part(rows: Tensor, w: Weights, eps: float) -> Tensor:
        """The input's part of the gates, for all rows at once."""
        raise NotImplementedError

    @staticmethod
    def _step_parameters(directions: Sequence[Weights]) -> State:
        """What the step reads, stacked over the directions."""
        raise NotImplementedError

    def _as_tuple(self, hx: Any) -> State:
        return tuple(hx) if self._states > 1 else (hx,)

    def _as_torch(self, state: State) -> Any:
        return state if self._states > 1 else state[0]

    def _add_norms(self, suffix: str, hidden_size: int, bias: bool, **factory: Any) -> None:
        gates = self._chunks * hidden_size
        for name, size in ({"gain_ih": gates, "gain_hh": gates} | dict.fromkeys(self._norms, hidden_size)).items():
            absent = name.startswith("bias") and not bias
            parameter = None if absent else torch.nn.Parameter(torch.empty(size, **factory))
            self.register_parameter(name + suffix, parameter)  # type: ignore[attr-defined]

    def _steps(self, x: Tensor, state: State, directions: Sequence[Weights], sizes: list[int]) -> tuple[Tensor, State]:
        """The recurrence in the parameters' precision: roundings in it would add up over the steps."""
        parameters, recurrence = self._step_parameters(directions), self._recurrence
        projections = [w.weight_hr for w in directions if w.weight_hr is not None]
        if projections:
            parameters, recurrence = (*parameters, stack(projections)), projected(recurrence)
        dtype = parameters[0].dtype
        with without_autocast(x):
            return walk(recurrence, x.to(dtype), tuple(s.to(dtype) for s in state), parameters, sizes, self.eps)


class LstmKind(Kind):
    _kind = "LSTM"
    _recurrence = LSTM
    _chunks = 4
    _states = 2
    _norms = ("gain_c", "bias_c")

    @staticmethod
    def _input_part(rows: Tensor, w: Weights, eps: float) -> Tensor:
        twice = _twice_g(w.gain_ih)
        bias = None if w.bias_ih is None or w.bias_hh is None else (w.bias_ih + w.bias_hh) * twice
        return layer_norm(F.linear(rows, w.weight_ih), w.gain_ih.shape, w.gain_ih * twice, bias, eps)

    @staticmethod
    def _step_parameters(directions: Sequence[Weights]) -> State:
        gain = [w.gain_hh * _twice_g(w.gain_hh) for w in directions]
        gain_c = [w.gain_c for w in directions if w.gain_c is not None]
        bias_c = [
            torch.zeros_like(g) if w.bias_c is None else w.bias_c for w, g in zip(directions, gain_c, strict=True)
        ]
        return stack([w.weight_hh for w in directions]), *map(_stack_rows, (gain, gain_c, bias_c))


def _twice_g(gates: Tensor) -> Tensor:
    """2 for the units of the gate g, as the step wants them, and 1 for the others."""
    return gates.new_tensor([1.0, 1.0, 2.0, 1.0]).repeat_interleave(len(gates) // 4)


class GruKind(Kind):
    _kind = "GRU"
    _recurrence = GRU
    _chunks = 3
    _states = 1

    @staticmethod
    def _input_part(rows: Tensor, w: Weights, eps: float) -> Tensor:
        H = w.weight_hh.shape[1]
        gates = F.linear(rows, w.weight_ih).split([2 * H, H], -1)
        gains = w.gain_ih.split([2 * H, H])
        biases: Sequence[Tensor | None] = (None, None)
        if w.bias_ih is not None and w.bias_hh is not None:
            # The candidate's recurrent bias stands inside the reset gate's product, in the step.
            biases = (w.bias_ih[: 2 * H] + w.bias_hh[: 2 * H], w.bias_ih[2 * H :])
        normed = [layer_norm(x, g.shape, g, b, eps) for x, g, b in zip(gates, gains, biases, strict=True)]
        return torch.cat(normed, -1)

    @staticmethod
    def _step_parameters(directions: Sequence[Weights]) -> State:
        H = directions[0].weight_hh.shape[1]
        biases = [w.gain_hh.new_zeros(H) if w.bias_hh is None else w.bias_hh[2 * H :] for w in directions]
        gains = [w.gain_hh for w in directions]
        return stack([w.weight_hh for w in directions]), _stack_rows(gains), _stack_rows(biases)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Two directions on a leading axis; one alone is spared the batched products."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))


def _stack_rows(vectors: Sequence[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.stack(list(vectors))[:, None]


def check_size(hidden_size: int) -> None:
    if hidden_size == 1:
        raise InputError(
            "hidden_size=1: layer norm over a single unit is 0 whatever its input. Use 2 or more, or torch's own cell"
        )


def reset_norms(module: torch.nn.Module) -> None:
    """Gains 1, all shifts 0."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("gain_"):
            torch.nn.init.ones_(parameter)
        elif name.startswith("bias_"):
            torch.nn.init.zeros_(parameter)


def weights_of(module: torch.nn.Module, suffix: str) -> Weights:
    return Weights(*(getattr(module, name + suffix, None) for name in Weights._fields))  # type: ignore[arg-type]

"""Recurrent networks with layer norm inside the gates, with the interface of torch's LSTM and GRU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from normwise.errors import InputError
from normwise.nn._recurrence import State
from normwise.nn._recurrent_kinds import GruKind, Kind, LstmKind, check_size, reset_norms, stack, weights_of
from normwise.nn._state import boundary


class _LayerNormRNN(Kind, torch.nn.RNNBase):
    """What the two layers share: parameters, input in all its forms, layers and directions."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        if proj_size and self._kind != "LSTM":
            raise InputError(f"only an LSTM has projections, as in torch, got proj_size={proj_size}")
        check_size(hidden_size)
        shape = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__(self._kind, *shape, device, dtype)
        self.eps = eps
        for suffix in self._suffixes():
            self._add_norms(suffix, hidden_size, bias, device=device, dtype=dtype)
        reset_norms(self)

    def _suffixes(self) -> list[str]:
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def reset_parameters(self) -> None:
        """Weights uniform in ±1/√hidden_size as torch's, gains 1, biases 0."""
        super().reset_parameters()
        reset_norms(self)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no fused kernel whose layout the weights would have to take."""

    @boundary
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run over a sequence; see the class for the forms of input and output."""
        if isinstance(input, PackedSequence):
            rows, sizes, order, back = input
            output, last = self._run(rows, sizes.tolist(), hx, order, back)
            return PackedSequence(output, sizes, order, back), last
        if input.dim() not in (2, 3):
            raise ValueError(f"{self._kind}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if not batched:
            hx = self._checked_unbatched(hx)
            input = input.unsqueeze(0 if self.batch_first else 1)
        x = input.transpose(0, 1) if self.batch_first else input
        T, N = x.shape[:2]
        if not T:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        output, last = self._run(x.reshape(T * N, x.shape[2]), [N] * T, hx)
        output = output.reshape(T, N, output.shape[1])
        if not batched:
            return output.squeeze(1), self._as_torch(tuple(s.squeeze(1) for s in self._as_tuple(last)))
        return output.transpose(0, 1) if self.batch_first else output, last

    def _checked_unbatched(self, hx: Any) -> Any:
        if hx is None:
            return None
        state = self._as_tuple(hx)
        if any(s.dim() != 2 for s in state):
            got = ", ".join(f"{s.dim()}-D" for s in state)
            raise RuntimeError(f"For unbatched 2-D input, the initial state should also be 2-D but got {got}")
        return self._as_torch(tuple(s.unsqueeze(1) for s in state))

    def _run(
        self, rows: Tensor, sizes: list[int], hx: Any, order: Tensor | None = None, back: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """All layers over packed rows; ``order`` and ``back`` sort the initial state and unsort the last."""
        # Torch's checks only ask for the largest batch, and whether rows are packed.
        self.check_input(rows, sizes)  # type: ignore[arg-type]
        output = self.get_expected_hidden_size(rows, sizes)  # type: ignore[arg-type]
        expected = (output, (*output[:2], self.hidden_size))[: self._states]  # a projection leaves the cell state alone
        if hx is None:
            state: State = tuple(rows.new_zeros(size) for size in expected)
        else:
            state = self._as_tuple(hx)
            for k, (s, size) in enumerate(zip(state, expected, strict=True)):
                name = f"hidden[{k}]" if self._states > 1 else "hidden"
                self.check_hidden_size(s, size, f"Expected {name} size {{}}, got {{}}")
            state = tuple(s if order is None else s.index_select(1, order) for s in state)
        turn = _turned(sizes).to(rows.device) if self.bidirectional else None
        last: list[State] = []
        D = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            if layer and self.dropout:
                rows = F.dropout(rows, self.dropout, self.training)
            mine = tuple(s[layer] if D == 1 else s[layer * D : (layer + 1) * D] for s in state)
            rows, end = self._layer(layer, rows, mine, sizes, turn)
            last.append(end)
        ends = tuple((torch.stack if D == 1 else torch.cat)(parts) for parts in zip(*last, strict=True))
        if back is not None:
            ends = tuple(s.index_select(1, back) for s in ends)
        return rows, self._as_torch(ends)

    def _layer(
        self, layer: int, rows: Tensor, state: State, sizes: list[int], turn: Tensor | None
    ) -> tuple[Tensor, State]:
        ends = ("", "_reverse") if self.bidirectional else ("",)
        directions = [weights_of(self, f"_l{layer}{end}") for end in ends]
        parts = [self._input_part(rows, w, self.eps) for w in directions]
        if turn is not None:
            parts[1] = parts[1].index_select(0, turn)
        output, last = self._steps(stack(parts), state, directions, sizes)
        if turn is None:
            return output, last
        return torch.cat([output[0], output[1].index_select(0, turn)], -1), last


def _turned(batch_sizes: list[int]) -> Tensor:
    """Where each packed row stands once every sequence is turned round; its own inverse."""
    T, N = len(batch_sizes), batch_sizes[0]
    if batch_sizes[-1] == N:
        return torch.arange(T * N).reshape(T, N).flip(0).flatten()
    sizes = torch.tensor(batch_sizes)
    starts = sizes.cumsum(0) - sizes
    step = torch.repeat_interleave(torch.arange(T), sizes)
    sample = torch.arange(len(step)) - starts[step]
    lengths = (sizes[:, None] > torch.arange(N)).sum(0)
    return starts[lengths[sample] - 1 - step] + sample


class LayerNormLSTM(LstmKind, _LayerNormRNN):
    """An LSTM with layer norm inside the gates (Ba et al. 2016, arXiv 1607.06450, supplement), a drop-in for torch's.

    Formula, with LN(a; g, b) = g · (a − mean(a)) / √(var(a) + eps) + b over all units of a::

        (i, f, g, o) = LN(W_ih x[t]; gain_ih, bias_ih) + LN(W_hh h[t−1]; gain_hh, bias_hh)      over 4 · hidden_size
        c[t] = σ(f) · c[t−1] + σ(i) · tanh(g)
        h[t] = σ(o) · tanh(LN(c[t]; gain_c, bias_c))                                            over hidden_size

    With ``proj_size``, h[t] is W_hr times that (Sak et al. 2014, arXiv 1402.1128), as in torch.

    Weights and biases have torch's names and shapes, so that ``load_state_dict(lstm.state_dict(), strict=False)`` takes
    the weights of a ``torch.nn.LSTM``; the gains come in addition. Input is (T, N, input_size), (N, T, input_size) with
    ``batch_first``, (T, input_size) or a ``PackedSequence``, whose padding is never seen; outputs have torch's forms.

    Args:
        input_size: features of the input.
        hidden_size: H, at least 2.
        num_layers: layers, each fed by the one before.
        bias: whether there are biases, also in the norms.
        batch_first: whether batched input and output have the batch first.
        dropout: probability, between layers.
        bidirectional: whether a second direction runs from the end; its outputs stand beside the first's.
        proj_size: features that the output is projected to; 0 for no projection.
        device: of the parameters.
        dtype: of the parameters.
        eps: added to the variances.

    Raises:
        InputError: ``hidden_size=1``.
        ValueError: what torch refuses in the arguments, or an input that is neither 2-D nor 3-D.
        RuntimeError: an input or initial state of the wrong size.

    Example:
        >>> lstm = LayerNormLSTM(3, 5, batch_first=True, bidirectional=True)
        >>> output, (h, c) = lstm(torch.randn(2, 7, 3))
        >>> output.shape, h.shape
        (torch.Size([2, 7, 10]), torch.Size([2, 2, 5]))
    """


class LayerNormGRU(GruKind, _LayerNormRNN):
    """A GRU with layer norm inside the gates (Ba et al. 2016, arXiv 1607.06450, supplement), a drop-in for torch's.

    Formula, with LN as in :class:`LayerNormLSTM`, over the 2 · hidden_size units of both gates together, and over the
    candidate's hidden_size units::

        (r, z) = σ(LN(W_i,rz x[t]; gain_ih, bias_ih) + LN(W_h,rz h[t−1]; gain_hh, bias_hh))
        n = tanh(LN(W_in x[t]; gain_ih, bias_ih) + r · LN(W_hn h[t−1]; gain_hh, bias_hh))
        h[t] = (1 − z) · n + z · h[t−1]

    z is torch's, 1 minus the paper's. Arguments, names and forms are those of :class:`LayerNormLSTM` without a
    projection; the state is one tensor.

    Example:
        >>> gru = LayerNormGRU(3, 5)
        >>> output, h = gru(torch.randn(7, 2, 3))
        >>> output[-1].equal(h[0])
        True
    """


class _LayerNormCell(Kind, torch.nn.RNNCellBase):
    """One step as a module."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        check_size(hidden_size)
        super().__init__(input_size, hidden_size, bias, self._chunks, device=device, dtype=dtype)
        self.eps = eps
        self._add_norms("", hidden_size, bias, device=device, dtype=dtype)
        reset_norms(self)

    def reset_parameters(self) -> None:
        """Weights uniform in ±1/√hidden_size as torch's, gains 1, biases 0."""
        super().reset_parameters()
        reset_norms(self)

    @boundary
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Take one step from (N, input_size) or (input_size,)."""
        if input.dim() not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {self.input_size}")
        x = input if input.dim() == 2 else input[None]
        if hx is None:
            state: State = (x.new_zeros(len(x), self.hidden_size),) * self._states
        else:
            state = tuple(s if input.dim() == 2 else s[None] for s in self._checked_state(input, hx))
        w = weights_of(self, "")
        _, last = self._steps(self._input_part(x, w, self.eps), state, [w], [len(x)])
        return self._as_torch(tuple(s if input.dim() == 2 else s[0] for s in last))

    def _checked_state(self, input: Tensor, hx: Any) -> State:
        """The initial state, refused in torch's words where it does not go with the input."""
        state, kind = self._as_tuple(hx), type(self).__name__
        for k, s in enumerate(state):
            if s.dim() not in (1, 2):
                name = f"hx[{k}]" if self._states > 1 else "hidden"
                raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {s.dim()}D instead")
            if s.dim() != input.dim():
                raise RuntimeError(
                    f"{kind}: Expected input and hidden{k} of as many axes, got {input.dim()} and {s.dim()}"
                )
            if s.shape[:-1] != input.shape[:-1]:
                raise RuntimeError(f"Input batch size {len(input)} doesn't match hidden{k} batch size {len(s)}")
            if s.shape[-1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{k} has inconsistent hidden_size: got {s.shape[-1]}, expected {self.hidden_size}"
                )
        return state


class LayerNormLSTMCell(LstmKind, _LayerNormCell):
    """One step of :class:`LayerNormLSTM`, with the interface of ``torch.nn.LSTMCell``.

    Example:
        >>> h, c = LayerNormLSTMCell(3, 5)(torch.randn(2, 3))
        >>> h.shape
        torch.Size([2, 5])
    """


class LayerNormGRUCell(GruKind, _LayerNormCell):
    """One step of :class:`LayerNormGRU`, with the interface of ``torch.nn.GRUCell``.

    Example:
        >>> LayerNormGRUCell(3, 5)(torch.randn(2, 3)).shape
        torch.Size([2, 5])
    """

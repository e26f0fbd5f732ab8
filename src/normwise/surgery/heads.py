"""Norms of queries and keys, put into attention that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.nn._checks import batches_given, callable_given
from normwise.results import layers
from normwise.surgery.flow import Attention, Reading, record
from normwise.surgery.graph import Unprovable
from normwise.surgery.layers import Where, matches
from normwise.surgery.running import Forward, Left, drift, evaluating, feed, has_hooks, unwrapped, working_copy

# How far the length of a head may be from that of its channels, relative: a rotation keeps it.
_ROUNDING = 1e-3


class HeadNorm(nn.Module):
    """RMS norm of those heads of a layer's output that are queries or keys; the others pass.

    Formula: q ← weight · q / √(mean(q²) + eps) over the channels of a head (Henry et al. 2020, arXiv 2010.04245;
    Dehghani et al. 2023, arXiv 2302.05442), with one ``weight`` for all query heads and one for all key heads.
    """

    which: Tensor

    def __init__(self, size: int, which: Tensor, starts: dict[str, float], eps: float, like: Tensor) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        # Of each head of the output: 0 for neither, 1 for a query, 2 for a key.
        self.register_buffer("which", which.to(like.device), persistent=False)
        for name, start in starts.items():
            value = torch.full((size,), start, dtype=like.dtype, device=like.device)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, input: Tensor) -> Tensor:
        """Normalize the heads that are queries or keys."""
        heads = input.unflatten(-1, (-1, self.size))
        for number, name in ((1, "query"), (2, "key")):
            weight = self._parameters.get(name)
            if weight is not None:
                normed = F.rms_norm(heads, (self.size,), weight, self.eps)
                heads = torch.where((self.which == number)[:, None], normed, heads)
        return heads.flatten(-2)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"{self.size}, queries={int((self.which == 1).sum())}, keys={int((self.which == 2).sum())}"


@dataclass(frozen=True)
class HeadNorms:
    """What :func:`qk_norm` did: the layers whose queries and keys are normed now, what was left and why, and the drift.

    Example:
        >>> print(HeadNorms(["attn.qkv"], [], 0.2))
        norms of queries and keys behind 1 layer: attn.qkv
        output drift 0.2
    """

    put: list[str]
    left: list[Left]
    drift: float | None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Give the account."""
        lines = [f"norms of queries and keys behind {layers(len(self.put))}: {', '.join(self.put)}"]
        lines += [] if self.drift is None else [f"output drift {self.drift:.3g}"]
        return "\n".join([*lines, *(f"left: {x.layer}  {x.reason}" for x in self.left), *self.notes])


def qk_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    where: Where = None,
    eps: float = 1e-6,
    forward: Forward | None = None,
    copy: bool = False,
    report: Callable[[HeadNorms], object] | None = None,
) -> nn.Module:
    """Put RMS norms of queries and keys into a model's attentions.

    Formula: logits = (w_q · q / rms(q)) · (w_k · k / rms(k)) / √d per head, so that they cannot grow beyond what the
    weights say. These start at the root mean squares that queries and keys have on the data, so that logits keep
    their size. Where queries and keys come from is read from one pass: the layers that make them, and which of their
    outputs are which heads, proven by the heads' lengths, which rotary positions keep. The norms stand behind these
    layers, as a child ``head_norm`` that a forward hook calls; names of other parameters stay.

    Args:
        model: changed in place.
        batches: the first is run.
        where: a name pattern or predicate ``(name, layer) -> bool`` for the layers that make queries and keys.
        eps: added to the mean square.
        forward: ``(model, batch) -> output`` runs the model on a batch; the default takes tensors, (input, target)
            pairs and mappings.
        copy: leave ``model`` alone and change a deep copy.
        report: called with the :class:`HeadNorms`.

    Returns:
        The model, or the copy. It computes something else than before: the report tells the drift.

    Raises:
        InputError: no attention can be normed, with the first reason.

    Example:
        >>> class Attend(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.qkv = nn.Linear(8, 24)
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        ...         return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        >>> qk_norm(Attend(), [torch.randn(2, 5, 8)]).qkv.head_norm
        HeadNorm(4, queries=2, keys=2)
    """
    batches_given(batches, "qk_norm", "batches")
    callable_given(forward, "qk_norm", "forward")
    batch = next(iter(batches), None)
    if batch is None:
        raise InputError("qk_norm has nothing to run the model on: batches gave none")

    def run(m: nn.Module) -> Any:
        return (forward or feed)(m, batch)

    model = working_copy(model, copy, "qk_norm", run)
    body = unwrapped(model)
    reading = record(body, run)
    modules = dict(body.named_modules())
    plans: dict[str, dict[str, tuple[set[int], float]]] = {}
    sizes: dict[str, int] = {}
    left: list[Left] = []
    for attention in reading.attentions():
        title = attention.makers[0] or "an attention"
        meant = [name for name in attention.makers if name and (where is None or matches(where, name, modules[name]))]
        if where is not None and not meant:
            continue
        try:
            for part, name, heads, size in _plan(reading, attention, modules):
                plans.setdefault(name, {})[part] = heads, size
                sizes[name] = attention.q.shape[-1]
        except Unprovable as obstacle:
            left.append(Left(title, str(obstacle)))
    if not plans:
        reason = f"; {left[0].layer}: {left[0].reason}" if left else ": no product of queries and keys ran"
        raise InputError(f"qk_norm found no attention of {type(body).__name__} to norm{reason}")
    with evaluating(body):
        before = run(body)
        for name, parts in plans.items():
            _put(modules[name], parts, sizes[name], reading.steps[reading.calls(name)[0]].value, eps)
        moved = drift(before, run(body))
    if report is not None:
        report(HeadNorms(list(plans), left, moved))
    return model


def _plan(
    reading: Reading, attention: Attention, modules: dict[str, nn.Module]
) -> list[tuple[str, str, set[int], float]]:
    """For queries and keys: the layer that makes them, which of its heads they are, and how large they are."""
    if attention.norms:
        raise Unprovable(f"has norms of queries or keys already: {', '.join(attention.norms)}")
    plan = []
    for part, name, used in zip(("query", "key"), attention.makers, (attention.q, attention.k), strict=True):
        if name is None:
            raise Unprovable(f"its {part} is not the output of one layer, reshaped and rotated alone")
        calls = reading.calls(name)
        if len(calls) != 1:
            raise Unprovable(f"{name} runs {len(calls)} times in a pass: it is shared")
        if has_hooks(modules[name]):
            raise Unprovable(f"{name} has hooks")
        made = reading.steps[calls[0]].value
        assert made is not None
        heads = _heads(made.detach().double(), used.detach().double())
        if heads is None:
            raise Unprovable(f"its {part} heads are no parts of the output of {name}, up to a rotation")
        groups = made.detach().double().unflatten(-1, (-1, used.shape[-1]))[..., sorted(heads), :]
        plan.append((part, name, heads, float(groups.square().mean().sqrt())))
    return plan


def _heads(made: Tensor, used: Tensor) -> set[int] | None:
    """Which groups of a layer's outputs are the heads (N, H, T, D), told by their lengths; ``None`` unless all are."""
    size = used.shape[-1]
    if used.ndim != 4 or made.ndim != 3 or made.shape[-1] % size or made.shape[:2] != (len(used), used.shape[2]):
        return None
    groups = made.unflatten(-1, (-1, size)).norm(dim=-1)
    lengths = used.norm(dim=-1).transpose(1, 2)
    found = set()
    for head in lengths.unbind(-1):
        ratios = head[..., None] / groups.clamp_min(1e-12)
        typical = ratios.flatten(0, 1).mean(0)
        spread = (ratios / typical - 1).abs().flatten(0, 1).amax(0)
        best = int(spread.argmin())
        if not spread[best] < _ROUNDING:
            return None
        found.add(best)
    return found


def _put(
    module: nn.Module, parts: dict[str, tuple[set[int], float]], size: int, made: Tensor | None, eps: float
) -> None:
    assert made is not None
    which = torch.zeros(made.shape[-1] // size, dtype=torch.long)
    for number, part in ((1, "query"), (2, "key")):
        for head in parts.get(part, (set(), 0.0))[0]:
            which[head] = number
    norm = HeadNorm(size, which, {part: start for part, (_, start) in parts.items()}, eps, made)
    norm.train(module.training)
    module.add_module("head_norm", norm)
    module.register_forward_hook(_norm_heads)


def _norm_heads(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module.head_norm(output)  # type: ignore[operator]

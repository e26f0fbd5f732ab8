"""Whether a sequence model's outputs depend on positions that come later, found by changing one and running it."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normwise.surgery.freeze import statistics_paused
from normwise.surgery.running import evaluating, left_alone, tensors_in

Run = Callable[[nn.Module, Any], Any]

# Outputs that move by less, relative to their size, moved by rounding.
ROUNDING = 1e-4
# Fewer positions tell no direction.
_SHORTEST = 3
# Samples and positions of token numbers that stand for a user's.
_GUESS = (2, 8)
# Mode and axis; those of further sequences are counted on.
At = tuple[str, int]


class Sight(NamedTuple):
    """How far outputs move, relative to their size.

    ``ahead``: of earlier positions when the last one changes; ``back``: of later positions when the first one does.
    """

    ahead: float
    back: float

    @property
    def causal(self) -> bool:
        """Whether what comes later depends on what came before, and not the other way round."""
        return self.ahead <= ROUNDING < self.back


def sights(model: nn.Module, run: Run, batch: Any) -> dict[At, Sight]:
    """Change the first and the last position of a batch, in each of its sequences, and see which outputs move.

    The model runs with its random numbers fixed and its running averages paused, and is left as it was.
    """
    found = {}
    for mode, (skipped, sequence) in itertools.product(("training", "evaluation"), _sequences(batch)):
        # A model that cannot run in a mode, as batch norm on a single value, has nothing to show in it.
        with _still(model, training=mode == "training"), contextlib.suppress(Exception):
            before = _outputs(model, run, batch)
            for axis in range(1, sequence.ndim):
                length = sequence.shape[axis]
                place = next((k for k in (axis, 1, before.ndim - 1) if before.shape[k : k + 1] == (length,)), None)
                if length < _SHORTEST or place is None:
                    continue
                moved = [
                    _moved(before, _outputs(model, run, _changed(batch, sequence, axis, at)), place)
                    for at in (length - 1, 0)
                ]
                found[mode, skipped + axis] = Sight(float(moved[0][:-1].max()), float(moved[1][1:].max()))
    return found


def leaks(before: Mapping[At, Sight], after: Mapping[At, Sight]) -> dict[str, float]:
    """In which modes a change made a causal model see what comes later, and how far its outputs move by it."""
    found: dict[str, float] = {}
    for at, sight in before.items():
        if sight.causal and at in after and after[at].ahead > ROUNDING:
            found[at[0]] = max(found.get(at[0], 0.0), after[at].ahead)
    return found


def guessed(model: nn.Module) -> Tensor | None:
    """Token numbers that a model may take, to run it where nobody gave examples; ``None`` without an embedding."""
    table = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if table is None or table.weight.is_meta:
        return None
    random = torch.Generator().manual_seed(0)
    return torch.randint(table.num_embeddings, _GUESS, generator=random).to(table.weight.device)


def told(moved: Mapping[str, float]) -> str:
    """Put what :func:`leaks` gave into words."""
    modes = " and ".join(f"by {by:.2g} of their size in {mode}" for mode, by in moved.items())
    return f"outputs at earlier positions move {modes} when only the last one changes"


def _sequences(batch: Any) -> list[tuple[int, Tensor]]:
    """The tensors that hold sequences, after how many axes of others: token numbers, not masks, or else values."""
    tensors = list({id(t): t for t in tensors_in(batch) if t.ndim in (2, 3) and t.numel()}.values())
    numbers = [t for t in tensors if t.dtype in (torch.int32, torch.int64) and t.ndim == 2]
    numbers.sort(key=lambda t: -len(t.unique()))
    varied = [t for t in numbers if len(t.unique()) > 2] or numbers[:1]
    values = [t for t in tensors if t.is_floating_point() and t.ndim == 3]
    return list(enumerate(varied)) or [(0, t) for t in values[:1]]


def _changed(batch: Any, sequence: Tensor, axis: int, at: int) -> Any:
    """The batch with other values at one position of its sequence."""
    other = sequence.clone()
    place = other.select(axis, at)
    if sequence.is_floating_point():
        # By other amounts for each element: what is added to all alike, a norm takes off again.
        place += sequence.std() * torch.linspace(0.5, 1.5, place.numel(), device=place.device).to(place.dtype).reshape(
            place.shape
        )
    else:
        low, high = sequence.min(), sequence.max()
        place.copy_(torch.where(place == high, low, high))
    return copy.deepcopy(batch, {id(sequence): other})


def _outputs(model: nn.Module, run: Run, batch: Any) -> Tensor:
    """The first output with positions; the same random numbers at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = tensors_in(run(model, batch))
    return next((t for t in outputs if t.is_floating_point() and t.ndim >= 2), torch.zeros(0))


def _moved(before: Tensor, after: Tensor, place: int) -> Tensor:
    """How far each position's outputs moved, relative to the size of all."""
    # On the CPU, as some devices have no float64.
    before, after = before.cpu().double(), after.cpu().double()
    change = (after - before).movedim(place, 0).flatten(1).abs().amax(1)
    return change / before.square().mean().sqrt().clamp_min(1e-300)


@contextlib.contextmanager
def _still(model: nn.Module, training: bool) -> Iterator[None]:
    with left_alone(model), statistics_paused(model), evaluating(model):
        if training:
            for module in model.modules():
                module.training = True
        yield

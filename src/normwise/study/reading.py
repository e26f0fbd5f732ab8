"""Batches where they are wanted: read ahead by processes, and brought to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from normwise import devices
from normwise.study.data import Part, Samples, Splits, Wanted, each

# Of a data set that stays on the device, in bytes.
_KEPT = 2**30


class Sent:
    """One part of the data that goes to a device batch by batch, when it is read."""

    def __init__(self, part: Part | Samples, device: torch.device) -> None:
        self.part, self.device = part, device

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.part.size

    def take(self, index: Tensor | slice) -> Sent:
        """Select samples, without reading them."""
        return Sent(self.part.take(index), self.device)

    def load(self, seed: int = 0) -> Any:
        """Read the samples as one batch, on the device."""
        return devices.move(self.part.load(seed), self.device)

    def batches(self, size: int) -> Iterator[Sent]:
        """Go through the samples in order, the last batch being what is left."""
        return (Sent(piece, self.device) for piece in self.part.batches(size))

    def sketch(self) -> Iterator[Tensor]:
        """Give some of the content to tell data sets apart by."""
        return self.part.sketch()


def on_device(splits: Splits, device: torch.device, augmented: bool) -> Splits:
    """Splits whose batches come on a device; small tensors are brought there once and stay, if nothing changes them."""
    parts: list[Part | Samples | Sent] = list(splits)
    tensors = [t for part in splits if isinstance(part, Part) for t in part.sketch()]
    small = sum(t.numel() * t.element_size() for t in tensors) <= _KEPT
    for i, part in enumerate(splits):
        if isinstance(part, Part) and small and not (augmented and part is splits.train):
            parts[i] = Part(*(each(values, lambda t: t.to(device)) for values in part))
        else:
            parts[i] = Sent(part, device)
    return Splits(*parts)  # type: ignore[arg-type]


def read(part: Part | Samples | Sent, wanted: Iterable[Wanted], num_workers: int = 0) -> Iterator[Any]:
    """Read batches one after the other; of a user's data set, processes may read ahead. The batches are the same."""
    source, device = (part.part, part.device) if isinstance(part, Sent) else (part, None)
    if not num_workers or isinstance(source, Part):
        for index, seed in wanted:
            yield part.take(index).load(seed)
        return
    pin = device is not None and devices.pins(device)
    # A generator of its own: the loader draws from it, and the program's draws must stay those of a run without.
    loader: Any = torch.utils.data.DataLoader(
        _Reading(source),
        batch_size=None,
        sampler=wanted,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield devices.move(batch, device)


class _Reading(torch.utils.data.Dataset[Any]):
    """Batches by which samples they hold."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, wanted: Wanted) -> Any:
        index, seed = wanted
        return self._samples.take(index).load(seed)

"""How much of a batch of sequences is padding, as far as the batch itself tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from normwise.kernels.reference import widened

# Names under which loaders hand out which positions are real (or, inverted, which are not).
_MASKS = ("attention_mask", "mask", "padding_mask", "key_padding_mask", "src_key_padding_mask")


def padded_share(batch: Any) -> float | None:
    """The share of sequence positions that are padding.

    Told by a mask among named inputs, or seen: samples of different length that end in zeros (floating-point features,
    all of them) or in one repeated token (integers).
    """
    if isinstance(batch, Mapping):
        for name in _MASKS:
            mask = batch.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel():
                zeros = float(widened(mask == 0).mean())
                return 1 - zeros if "padding" in name else zeros
    shares = [share for t in _sequences(batch) if (share := _seen(t)) is not None]
    return max(shares, default=None)


def _sequences(batch: Any) -> Iterator[Tensor]:
    """Tensors that may hold sequences: (N, T) of tokens, (N, T, F) or (N, F, T) of features."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    for t in values:
        if isinstance(t, Tensor) and t.numel() and t.ndim == (3 if t.is_floating_point() else 2):
            yield t
        elif isinstance(t, tuple | list):
            yield from _sequences(t)


def _seen(t: Tensor) -> float | None:
    if not t.is_floating_point():
        return _padding_tokens(t) if t.shape[1] > 1 else None
    # Which axis is time is not said; padding shows along one of them only.
    return max(_trailing((t == 0).all(dim)) for dim in (1, 2))


def _padding_tokens(t: Tensor) -> float:
    """A token that also stands before others is none that pads; nor is one that ends a sample just once."""
    blank = t == t[:, -1].mode().values
    ending = blank.flip(1).long().cumprod(1).sum(1)
    return _trailing(blank) if int(blank.sum()) == int(ending.sum()) and int(ending.max()) > 1 else 0.0


def _trailing(blank: Tensor) -> float:
    """Share of trailing blanks in (N, T); 0 where all samples have the same number: that is no padding."""
    lengths = blank.shape[1] - blank.flip(1).long().cumprod(1).sum(1)
    if len(lengths.unique()) < 2:
        return 0.0
    longest = int(lengths.max())
    # Down to the longest sample: what is blank for all is for the loader to answer for, and counts as well.
    return float(1 - widened(lengths).mean() / blank.shape[1]) if longest else 0.0

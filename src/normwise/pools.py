"""The pools, by name: which values share a statistic, and how many there are. Standard library only."""

from __future__ import annotations

from normwise.errors import InputError

# Wu & He 2018 (arXiv 1803.08494) divide the channels into so many groups.
GROUPS = 32


def numbers_of_groups(channels: int, groups: int = 1) -> dict[str, int]:
    """In how many groups each pool divides a sample's channels; 0 for the pool over samples, which shares a channel."""
    return {"instance": channels, "layer": 1, "group": groups, "batch": 0}


def elements_behind(
    samples: int, channels: int, elements: int, groups: int = 1, batch_elsewhere: bool = False
) -> dict[str, int]:
    """How many elements each pool's statistic rests on; 0 where that is not for this input to say.

    Args:
        samples: N.
        channels: C.
        elements: per cell.
        groups: G.
        batch_elsewhere: the batch's moments are stored ones, or shared with other processes.

    Returns:
        Pool → number of elements.

    Example:
        >>> elements_behind(samples=8, channels=4, elements=9, groups=2)
        {'instance': 9, 'layer': 36, 'group': 18, 'batch': 72}
    """
    over_samples = 0 if batch_elsewhere else samples * elements
    divided = numbers_of_groups(channels, groups).items()
    return {pool: channels // number * elements if number else over_samples for pool, number in divided}


def groups_for(num_channels: int, target: int = GROUPS) -> int:
    """Choose a group count: ``target`` where it divides the channels, else the nearest divisor that does.

    A group of one channel is never chosen (that is instance norm, and erases (N, C) data), unless there is one channel.
    Of two divisors equally near the larger is taken.

    Args:
        num_channels: C, at least 1.
        target: the wanted count; 32 is the paper's choice (arXiv 1803.08494).

    Returns:
        A divisor of ``num_channels``.

    Raises:
        InputError: a number below 1.

    Example:
        >>> [groups_for(c) for c in (64, 48, 16, 7, 1)]
        [32, 24, 8, 1, 1]
    """
    if num_channels < 1 or target < 1:
        raise InputError(f"channels and target must be at least 1, got {num_channels} and {target}")
    divisors = [g for g in range(1, max(num_channels // 2, 1) + 1) if num_channels % g == 0]
    return min(divisors, key=lambda g: (abs(g - target), -g))

"""Where a method cannot be used: too few values for it to leave anything of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normwise.advice.rules import ENOUGH_VALUES
from normwise.advice.situation import Place, Situation


def _is_thin(s: Situation, place: Place) -> bool:
    """Whether fewer values stand behind a batch statistic than are enough."""
    return place.values("batch") * s.devices < ENOUGH_VALUES


def _mostly_thin(s: Situation) -> bool:
    """Whether few values are the rule in a model; else the few places that have few are exempted."""
    return 2 * sum(_is_thin(s, p) for p in s.places) > len(s.places)


@dataclass(frozen=True)
class Veto:
    """A reason why a method cannot be used at a place: too few values for it to leave anything of the data.

    Example:
        >>> VETOES[0].forbids(Situation("mlp", ["mlp"], batch_size=1), Place("bn", 8, [], 1))
        True
    """

    method: str
    forbids: Callable[[Situation, Place], bool]
    text: str
    source: str


VETOES: tuple[Veto, ...] = (
    Veto(
        "batch",
        lambda s, p: p.values("batch") * s.devices < 2,
        "one value per channel and step: batch norm would give its bias whatever comes in",
        "torch.nn.BatchNorm1d's own error; pytorch/pytorch issue 4534",
    ),
    Veto(
        "batch",
        lambda s, p: _is_thin(s, p) and not _mostly_thin(s),
        f"fewer than {ENOUGH_VALUES} values behind a batch statistic, while most places have more",
        "Ioffe 2017, arXiv 1702.03275",
    ),
    Veto(
        "instance",
        lambda s, p: p.values("instance") < 2,
        "one value per channel and sample: instance norm would give its bias whatever comes in",
        "torch.nn.InstanceNorm2d's own error; pytorch/pytorch issue 45687",
    ),
    Veto(
        "group",
        lambda s, p: p.values("layer") < 4,
        "no group count leaves more than one value to a group",
        "pytorch/opacus issue 567",
    ),
    Veto(
        "layer",
        lambda s, p: p.values("layer") < 2,
        "one value per sample: layer norm would give its bias whatever comes in",
        "Ba et al. 2016, arXiv 1607.06450",
    ),
    Veto(
        "switchable",
        lambda s, p: s.few < 2 and p.values("instance") < 2,
        "one value per channel in the batch and in an instance: of the mix only layer norm is left",
        "Luo et al. 2019, arXiv 1806.10779",
    ),
)

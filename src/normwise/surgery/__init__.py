"""Surgery: change the normalization of a model that exists.

Each operation acts in place and returns the model, or a copy with ``copy=True``; ``report=`` is called with its record
(``report=print`` shows it). ``convert`` returns its record, with ``.model``.

Names are imported on first use, so that the command line's help does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normwise._lazy import offer

if TYPE_CHECKING:
    from normwise.surgery.average import average_states
    from normwise.surgery.calibrate import Calibration, calibrate
    from normwise.surgery.centre import Centring, layer_to_rms
    from normwise.surgery.conversion import Conversion
    from normwise.surgery.convert import convert
    from normwise.surgery.description import NormLayer
    from normwise.surgery.fold import fold
    from normwise.surgery.folding import Folding
    from normwise.surgery.freeze import audit_frozen, freeze, frozen_layers, is_frozen, statistics_paused, unfreeze
    from normwise.surgery.harden import Hardening, harden
    from normwise.surgery.heads import HeadNorms, qk_norm
    from normwise.surgery.inspect import inspect
    from normwise.surgery.inspection import Inspection
    from normwise.surgery.layers import describe, find
    from normwise.surgery.to_torch import Returned, to_torch


__all__ = [
    "Calibration",
    "Centring",
    "Conversion",
    "Folding",
    "Hardening",
    "HeadNorms",
    "Inspection",
    "NormLayer",
    "Returned",
    "audit_frozen",
    "average_states",
    "calibrate",
    "convert",
    "describe",
    "find",
    "fold",
    "freeze",
    "frozen_layers",
    "harden",
    "inspect",
    "is_frozen",
    "layer_to_rms",
    "qk_norm",
    "statistics_paused",
    "to_torch",
    "unfreeze",
]

offer(
    __name__,
    {
        "average": "average_states",
        "calibrate": "Calibration calibrate",
        "centre": "Centring layer_to_rms",
        "conversion": "Conversion",
        "convert": "convert",
        "description": "NormLayer",
        "fold": "fold",
        "folding": "Folding",
        "freeze": "audit_frozen freeze frozen_layers is_frozen statistics_paused unfreeze",
        "harden": "Hardening harden",
        "heads": "HeadNorms qk_norm",
        "inspect": "inspect",
        "inspection": "Inspection",
        "layers": "describe find",
        "to_torch": "Returned to_torch",
    },
)

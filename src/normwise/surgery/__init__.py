"""Surgery: change the normalization of a model that exists.

Each operation acts in place and returns the model, or a copy with ``copy=True``; ``report=`` is called with its record
(``report=print`` shows it). ``convert`` returns its record, with ``.model``.
"""

from normwise.surgery.calibrate import Calibration, calibrate
from normwise.surgery.conversion import Conversion
from normwise.surgery.convert import convert
from normwise.surgery.fold import Folding, fold
from normwise.surgery.freeze import audit_frozen, freeze, frozen_layers, is_frozen, unfreeze
from normwise.surgery.harden import Hardening, harden
from normwise.surgery.layers import NormLayer, describe, find

__all__ = [
    "Calibration",
    "Conversion",
    "Folding",
    "Hardening",
    "NormLayer",
    "audit_frozen",
    "calibrate",
    "convert",
    "describe",
    "find",
    "fold",
    "freeze",
    "frozen_layers",
    "harden",
    "is_frozen",
    "unfreeze",
]

"""Surgery: change the normalization of a model that exists."""

from normwise.surgery.conversion import Conversion
from normwise.surgery.convert import convert
from normwise.surgery.layers import NormLayer, describe, find

__all__ = ["Conversion", "NormLayer", "convert", "describe", "find"]

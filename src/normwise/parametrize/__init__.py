"""Methods that act on weights, as parametrizations of ``torch.nn.utils.parametrize``; see docs/weight-norm.md."""

from normwise.parametrize._initialize import weight_norm_init
from normwise.parametrize._models import remove_weight_norm, weight_normalize, weight_norms
from normwise.parametrize._others import WeightStandardization, spectral_norm, weight_standardization
from normwise.parametrize._weight_norm import WeightNorm, weight_norm

__all__ = [
    "WeightNorm",
    "WeightStandardization",
    "remove_weight_norm",
    "spectral_norm",
    "weight_norm",
    "weight_norm_init",
    "weight_normalize",
    "weight_norms",
    "weight_standardization",
]

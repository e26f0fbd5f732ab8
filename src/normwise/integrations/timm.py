"""Networks of timm with the layers of any method."""

from __future__ import annotations

from typing import Any

from torch import nn

from normwise.errors import MissingDependencyError, blaming
from normwise.nn.own import Given
from normwise.surgery.convert import convert

try:
    import timm
except ModuleNotFoundError as error:
    if error.name != "timm":
        raise
    raise MissingDependencyError("normwise.integrations.timm needs timm: pip install timm") from error

__all__ = ["create_model"]


def create_model(name: str, method: Given, **options: Any) -> nn.Module:
    """Build a network of timm with one method in the place of each of its normalization layers.

    Not every network takes ``norm_layer=``, and those that fuse an activation into their norms lose it with layers that
    timm does not know. This builds the network with its own layers and converts them (:func:`normwise.convert`):
    activations, eps, momentum and pretrained weights stay. After ``pretrained=True`` the network needs training, or
    ``normwise.convert(..., calibrate_with=)`` instead.

    Args:
        name: as for ``timm.create_model``.
        method: a key of ``METHODS``, which may bring its options along: ``"group(num_groups=8)"``; or one of your own,
            as for :func:`normwise.convert`.
        **options: passed to ``timm.create_model``.

    Returns:
        The network.

    Raises:
        InputError: timm cannot build it, or there is no such method.
        MissingDependencyError: on import, where timm is not installed.

    Example:
        >>> net = create_model("efficientnet_b0", "group(num_groups=4)", num_classes=10)
        >>> net.bn1, net.bn1.activation
        (GroupNorm(4, 32, eps=1e-05, affine=True, bias=True), 'silu')
    """
    with blaming(f"timm cannot build {name!r}"):
        network = timm.create_model(name, **options)
    return convert(network, method).model

"""Networks of torchvision with the layers of any method."""

from __future__ import annotations

from typing import Any

from torch import nn

from normwise.errors import MissingDependencyError, blaming
from normwise.nn.own import Given
from normwise.surgery.convert import convert

try:
    from torchvision import models
except ModuleNotFoundError as error:
    if error.name != "torchvision":
        raise
    raise MissingDependencyError("normwise.integrations.torchvision needs it: pip install torchvision") from error

__all__ = ["get_model"]


def get_model(name: str, method: Given, **options: Any) -> nn.Module:
    """Build a network of torchvision with one method in the place of each of its normalization layers.

    Many networks take no ``norm_layer=``, and some of those that do use it for a part of their layers. This builds the
    network with its own layers and converts them (:func:`normwise.convert`): eps, momentum and pretrained weights stay.
    With ``weights=`` the network then needs training, or ``normwise.convert(..., calibrate_with=)`` instead.

    Args:
        name: as for ``torchvision.models.get_model``.
        method: a key of ``METHODS``, which may bring its options along: ``"group(num_groups=8)"``; or one of your own,
            as for :func:`normwise.convert`.
        **options: passed to ``torchvision.models.get_model``.

    Returns:
        The network.

    Raises:
        InputError: torchvision cannot build it, or there is no such method.
        MissingDependencyError: on import, where torchvision is not installed.

    Example:
        >>> net = get_model("resnet18", "group", num_classes=10)
        >>> net.bn1
        GroupNorm(32, 64, eps=1e-05, affine=True, bias=True)
    """
    with blaming(f"torchvision cannot build {name!r}"):
        network = models.get_model(name, **options)
    return convert(network, method).model

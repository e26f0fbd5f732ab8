"""Weight norm on whole models: put on, listed, taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from normwise.errors import InputError
from normwise.nn._checks import model_given
from normwise.nn._convolutions import CONVOLUTIONS, TRANSPOSED
from normwise.parametrize._splits import KINDS, splits
from normwise.parametrize._weight_norm import WeightNorm, check, weight_norm


def weight_norms(module: torch.nn.Module) -> dict[str, WeightNorm]:
    """Give the weight norms of one module, ours and both of torch's, without those of its children.

    Args:
        module: any module.

    Returns:
        Parameter name → its parametrization.

    Example:
        >>> weight_norms(weight_norm(torch.nn.Linear(4, 3)))
        {'weight': WeightNorm(dim=0, eps=1e-12)}
    """
    model_given(module, "weight_norms")
    return {split.name: split.norm for split in splits(module)}


def weight_normalize(
    model: torch.nn.Module,
    where: Callable[[str, torch.nn.Module], bool] | None = None,
    *,
    eps: float = 1e-12,
) -> torch.nn.Module:
    """Split the weights of all linear, convolutional, transposed convolutional and recurrent layers of a model.

    Each output unit has its own magnitude: axis 0 of a weight, axis 1 of a transposed convolution's. Of recurrent
    layers and cells all matrices are split. What has weight norm already is left as it is.

    Args:
        model: changed in place; may be such a layer itself.
        where: ``where(name, module)`` says which of those layers to take; default all.
        eps: as in :func:`weight_norm`.

    Returns:
        The model.

    Raises:
        InputError: a weight is shared between layers, which splitting would tear apart, or cannot be split; the message
            names the layer, and nothing has been changed.

    Example:
        >>> model = weight_normalize(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LSTM(3, 2)))
        >>> sorted(weight_norms(model[1]))
        ['weight_hh_l0', 'weight_ih_l0']
    """
    model_given(model, "weight_normalize")
    chosen = [
        (path, module, name, dim)
        for path, module in list(model.named_modules())
        if where is None or where(path, module)
        for name, dim in matrices(module)
        if name not in weight_norms(module)
    ]
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(f"{path}.{name}".lstrip("."))
    for path, module, name, dim in chosen:
        check(module, name, dim, eps, f"layer {path!r} ({type(module).__name__})" if path else type(module).__name__)
        shared = owners.get(id(module._parameters.get(name)), set())
        if len(shared) > 1:
            raise InputError(
                f"{' and '.join(sorted(shared))} are one parameter, which weight norm would tear apart: leave the "
                "layer out with where=, or untie it first"
            )
    for _, module, name, dim in chosen:
        weight_norm(module, name, dim, eps)
    return model


def matrices(module: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """The names of a layer's weights, with the axis of their output units."""
    if isinstance(module, TRANSPOSED):
        yield "weight", 1
    elif isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        yield "weight", 0
    elif isinstance(module, nn.RNNBase):
        yield from ((name, 0) for name in module._flat_weights_names if name.startswith("weight"))
    elif isinstance(module, nn.RNNCellBase):
        yield from (("weight_ih", 0), ("weight_hh", 0))


def remove_weight_norm(model: torch.nn.Module, name: str | None = None) -> torch.nn.Module:
    """Join g and v into plain weights again, which become new parameters with the same values.

    Takes off torch's weight norms, too: ``torch.nn.utils.parametrizations.weight_norm`` and the older
    ``torch.nn.utils.weight_norm``. ``torch.nn.utils.parametrize.remove_parametrizations`` takes off ours.

    Args:
        model: changed in place, all its layers included.
        name: only weights of this name; default all.

    Returns:
        The model.

    Raises:
        InputError: there is no weight norm to remove, or another parametrization stands on the same weight.

    Example:
        >>> remove_weight_norm(weight_norm(torch.nn.Linear(4, 3)))
        Linear(in_features=4, out_features=3, bias=True)
    """
    model_given(model, "remove_weight_norm")
    for module in model.modules():
        for weight, chain in getattr(module, "parametrizations", {}).items():
            if name in (None, weight) and len(chain) > 1 and any(isinstance(step, KINDS) for step in chain):
                kinds = ", ".join(type(step).__name__ for step in chain)
                raise InputError(
                    f"{weight!r} has several parametrizations ({kinds}): removing one would drop the others"
                )
    found = [split for module in model.modules() for split in splits(module) if name in (None, split.name)]
    if not found:
        what = "weight norm" if name is None else f"weight norm on any {name!r}"
        raise InputError(f"{type(model).__name__} has no {what} to remove")
    for split in found:
        split.join()
    return model

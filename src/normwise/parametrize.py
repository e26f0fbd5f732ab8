"""Methods that act on weights, as parametrizations of ``torch.nn.utils.parametrize``.

Modules that are parametrized here can be copied and pickled, which torch's own refuse or do at the cost of one class
shared between the copies: they carry a ``__reduce_ex__`` that builds the class anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as spectral_norm  # torch's own serves

from normwise.errors import InputError, NormwiseWarning


class WeightNorm(torch.nn.Module):
    """The parametrization w = g · v / ‖v‖; see :func:`weight_norm`.

    Example:
        >>> WeightNorm(dim=0, eps=1e-12)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
        tensor([[2.]])
    """

    def __init__(self, dim: int | None, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Join magnitude and direction."""
        norm = self._norm(v)
        # A direction of no length gives a weight of 0 and finite gradients, never 0 / 0.
        return (v * (g.to(norm.dtype) / torch.where(norm > self.eps, norm, 1.0))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split a weight into magnitude and direction."""
        norm = self._norm(weight)
        # A row of zeros gets some direction: with g = 0 it stays exactly zero, and can still learn to be something.
        direction = torch.where(norm > self.eps, weight, torch.ones_like(weight))
        return norm.to(weight.dtype), direction

    def _norm(self, v: Tensor) -> Tensor:
        # In float32 at least: the sum of squares of a long float16 row overflows.
        v = v if v.dtype == torch.float64 else v.float()
        if self.dim is None:
            return torch.linalg.vector_norm(v)
        axes = tuple(a for a in range(v.ndim) if a != self.dim % v.ndim)
        return torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()

    def extra_repr(self) -> str:
        """Describe the parametrization in ``print(model)``."""
        return f"dim={self.dim}, eps={self.eps}"


def weight_norm(
    module: torch.nn.Module, name: str = "weight", dim: int | None = 0, eps: float = 1e-12
) -> torch.nn.Module:
    """Split a weight into magnitude g and direction v (Salimans & Kingma 2016, arXiv 1602.07868).

    Formula: w = g · v / ‖v‖, the norm taken over all axes but ``dim``, in float32 at least. g and v become
    ``module.parametrizations.<name>.original0`` and ``original1``, the keys of ``torch.nn.utils.parametrizations``.
    State dicts with ``<name>_g`` and ``<name>_v``, torch's older keys, load too, and so does a plain ``<name>``. A row
    of zeros stays zero with finite gradients, where torch's gives NaN. The module can be copied and pickled;
    :func:`remove_weight_norm` undoes it. Build the optimizer afterwards: g and v are new parameters.

    Args:
        module: holds the weight; changed in place.
        name: the parameter's name.
        dim: the axis along which each slice has its own magnitude; ``None`` for one magnitude of the whole weight.
        eps: a direction no longer than this counts as having no length.

    Returns:
        The module.

    Raises:
        InputError: there is no such parameter or axis, or it is parametrized already, or eps is negative.

    Example:
        >>> layer = weight_norm(torch.nn.Linear(4, 3))
        >>> layer.parametrizations.weight.original0.shape
        torch.Size([3, 1])
    """
    if isinstance(module._parameters.get(name), nn.parameter.UninitializedParameter):
        raise InputError(
            f"{type(module).__name__} has no {name!r} before its first forward pass: run one, then split it"
        )
    weight = _held_weight(module, name)
    if dim is not None and not -weight.ndim <= dim < weight.ndim:
        raise InputError(f"dim={dim} is no axis of {name!r}, whose shape is {tuple(weight.shape)}")
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    if parametrize.is_parametrized(module, name):
        raise InputError(f"{name!r} of {type(module).__name__} is parametrized already: remove that first")
    parametrize.register_parametrization(module, name, WeightNorm(dim, eps), unsafe=True)
    _make_copyable(module)
    module._register_load_state_dict_pre_hook(partial(_split_on_load, name), with_module=True)
    _refresh(module)
    return module


def weight_norms(module: torch.nn.Module) -> dict[str, WeightNorm]:
    """Give the weight norms of one module, without those of its children.

    Args:
        module: any module.

    Returns:
        Parameter name → its parametrization.

    Example:
        >>> weight_norms(weight_norm(torch.nn.Linear(4, 3)))
        {'weight': WeightNorm(dim=0, eps=1e-12)}
    """
    if not parametrize.is_parametrized(module):
        return {}
    steps: Any = module.parametrizations
    return {name: step for name, chain in steps.items() for step in chain if isinstance(step, WeightNorm)}


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
        InputError: a weight is shared between layers, which splitting would tear apart.

    Example:
        >>> model = weight_normalize(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LSTM(3, 2)))
        >>> sorted(weight_norms(model[1]))
        ['weight_hh_l0', 'weight_ih_l0']
    """
    chosen = [
        (f"{path}.{name}".lstrip("."), module, name, dim)
        for path, module in list(model.named_modules())
        if where is None or where(path, module)
        for name, dim in _matrices(module)
        if name not in weight_norms(module)
    ]
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(f"{path}.{name}".lstrip("."))
    for path, module, name, _ in chosen:
        shared = owners.get(id(module._parameters.get(name)), {path})
        if len(shared) > 1:
            raise InputError(
                f"{' and '.join(sorted(shared))} are one parameter, which weight norm would tear apart: leave the "
                "layer out with where=, or untie it first"
            )
    for _, module, name, dim in chosen:
        weight_norm(module, name, dim, eps)
    return model


def _matrices(module: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """The names of a layer's weights, with the axis of their output units."""
    if isinstance(module, _ConvTransposeNd):
        yield "weight", 1
    elif isinstance(module, (nn.Linear, _ConvNd)):
        yield "weight", 0
    elif isinstance(module, nn.RNNBase):
        yield from ((name, 0) for name in module._flat_weights_names if name.startswith("weight"))
    elif isinstance(module, nn.RNNCellBase):
        yield from (("weight_ih", 0), ("weight_hh", 0))


def remove_weight_norm(model: torch.nn.Module, name: str | None = None) -> torch.nn.Module:
    """Join g and v into plain weights again, which become new parameters with the same values.

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
    found = [(m, n) for m in model.modules() for n in weight_norms(m) if name in (None, n)]
    if not found:
        what = "weight norm" if name is None else f"weight norm on any {name!r}"
        raise InputError(f"{type(model).__name__} has no {what} to remove")
    for module, weight in found:
        chain: Any = module.parametrizations[weight]  # type: ignore[index]
        if len(chain) > 1:
            kinds = ", ".join(type(step).__name__ for step in chain)
            raise InputError(f"{weight!r} has several parametrizations ({kinds}): removing one would drop the others")
    for module, weight in found:
        parametrize.remove_parametrizations(module, weight)
        hooks = module._load_state_dict_pre_hooks
        for key in [k for k, hook in hooks.items() if _is_split_hook(hook, weight)]:
            del hooks[key]
        _refresh(module)
    return model


def weight_norm_init(model: torch.nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """Set g and bias of every weight-normalized layer from one batch (Salimans & Kingma 2016, section 3).

    Formula: with t = v · x / ‖v‖, g = 1 / σ[t] and bias = −μ[t] / σ[t], so that on the batch each output unit has mean
    0 and standard deviation 1. One forward pass sets the layers in the order in which they run, each on what the ones
    before give after they were set; a layer without bias keeps its mean. Modes and buffers are left as they were;
    recurrent layers, which have no single output before the activation, are left alone.

    Args:
        model: changed in place.
        *args: the batch, as the model takes it.
        **kwargs: the same.

    Returns:
        The names of the layers that were set, in that order.

    Raises:
        InputError: no layer can be set, one has its magnitudes along another axis, or its output is not finite; the
            model is left as it was.

    Example:
        >>> layer = weight_norm(torch.nn.Linear(4, 3))
        >>> batch = torch.randn(100, 4)
        >>> weight_norm_init(torch.nn.Sequential(layer, torch.nn.ReLU()), batch)
        ['0']
        >>> torch.allclose(layer(batch).std(0, correction=0), torch.ones(3), atol=1e-3)
        True
    """
    layers = {
        module: name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and "weight" in weight_norms(module)
    }
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no linear or convolutional layer with weight norm: apply it first"
        )
    for module, name in layers.items():
        _check_units(module, name)
    done: dict[torch.nn.Module, str] = {}
    handles = []
    kept = [(t, t.detach().clone()) for t in model.buffers()]
    own = [(t, t.detach().clone()) for module in layers for t in module.parameters()]
    try:
        for module, name in layers.items():
            handles.append(module.register_forward_hook(partial(_set_from_output, done, name), prepend=True))
        with torch.no_grad():
            model(*args, **kwargs)
    except BaseException:
        kept += own
        raise
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
    missed = [name for module, name in layers.items() if module not in done]
    if missed:
        warnings.warn(
            f"the batch did not pass through {', '.join(missed)}, left as before", NormwiseWarning, stacklevel=2
        )
    return list(done.values())


def _check_units(module: torch.nn.Module, name: str) -> None:
    wanted = next(dim for _, dim in _matrices(module))
    step, weight = weight_norms(module)["weight"], module.weight
    dim = None if step.dim is None else step.dim % weight.ndim  # type: ignore[operator]
    if dim != wanted or (wanted == 1 and module.groups > 1):  # type: ignore[operator]
        raise InputError(
            f"layer {name!r} has its magnitudes along dim={step.dim} of its weight, and not one for each output unit: "
            f"data-dependent initialization needs dim={wanted}" + (" and groups=1" if wanted else "")
        )


@torch.no_grad()
def _set_from_output(
    done: dict[torch.nn.Module, str], name: str, module: torch.nn.Module, inputs: Any, output: Tensor
) -> Tensor | None:
    """A forward hook: on a layer's first run, set g and bias and give what the layer now gives."""
    if module in done:
        return None
    done[module] = name
    g: Tensor = module.parametrizations.weight.original0  # type: ignore[assignment, union-attr]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    axis = -1 if isinstance(module, nn.Linear) else output.ndim - len(module.kernel_size) - 1  # type: ignore[arg-type]
    units = output.movedim(axis, 0).flatten(1)
    units = units if units.dtype == torch.float64 else units.float()
    std, mean = torch.std_mean(units, 1, correction=0)
    if not (std.isfinite() & mean.isfinite()).all():
        raise InputError(f"the output of layer {name!r} is not finite (or empty): use another batch")
    varies = std > 0
    if not varies.all():
        warnings.warn(
            f"{int((~varies).sum())} unit(s) of layer {name!r} do not vary on this batch and keep their magnitude",
            NormwiseWarning,
            stacklevel=2,
        )
    # The output is g t + b, and so is scaled: dividing g by its deviation is the same as 1 / σ[t], but needs no new t.
    factor = torch.where(varies, 1 / torch.where(varies, std, 1), 1)
    g.mul_(factor.reshape(g.shape).to(g.dtype))
    if bias is not None:
        bias.sub_(mean.to(bias.dtype)).mul_(factor.to(bias.dtype))
    shape = [-1 if a == axis % output.ndim else 1 for a in range(output.ndim)]
    shift = mean if bias is not None else torch.zeros_like(mean)
    return ((output - shift.reshape(shape)) * factor.reshape(shape)).to(output.dtype)


def _split_on_load(name: str, module: torch.nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Bring torch's older keys, and a plain weight, to g and v before a state dict is loaded."""
    keys = [f"{prefix}parametrizations.{name}.original{k}" for k in (0, 1)]
    old = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
    if old[0] in state and old[1] in state:
        state.update(zip(keys, (state.pop(key) for key in old), strict=True))
    elif f"{prefix}{name}" in state and keys[0] not in state:
        split = weight_norms(module)[name].right_inverse(state.pop(f"{prefix}{name}"))
        state.update(zip(keys, split, strict=True))


def _is_split_hook(hook: Any, name: str) -> bool:
    call = getattr(hook, "hook", hook)
    return isinstance(call, partial) and call.func is _split_on_load and call.args == (name,)


def _refresh(module: torch.nn.Module) -> None:
    """Have torch's recurrent layers gather their weights anew: they keep a list, which still holds the old ones."""
    if isinstance(module, nn.RNNBase):
        with torch.no_grad():
            module._init_flat_weights()


def _held_weight(module: torch.nn.Module, name: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        names = ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"
        raise InputError(f"{type(module).__name__} has no parameter {name!r}; it has: {names}")
    return weight


def _make_copyable(module: torch.nn.Module) -> None:
    """Let a parametrized module be copied and pickled, by building its class anew."""
    cls: Any = type(module)
    cls.__reduce_ex__, cls.__setstate__ = _reduce, _restore
    # Torch's deepcopy shares the class: removing a parametrization from the copy breaks the original.
    if "__deepcopy__" in cls.__dict__:
        del cls.__deepcopy__


def _reduce(module: torch.nn.Module, protocol: int) -> tuple[Any, ...]:
    base = parametrize.type_before_parametrizations(module)
    state = dict(module.__dict__)
    for scratch in ("_flat_weights", "_flat_weight_refs"):
        # Computed weights, which belong to a graph and cannot be copied; gathered again in the copy.
        state.pop(scratch, None)
    return _rebuild, (base, tuple(module.parametrizations)), state  # type: ignore[arg-type]


def _rebuild(base: type[torch.nn.Module], names: tuple[str, ...]) -> torch.nn.Module:
    module = base.__new__(base)
    torch.nn.Module.__init__(module)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    _make_copyable(module)
    return module


def _restore(module: torch.nn.Module, state: dict[str, Any]) -> None:
    module.__dict__.update(state)
    _refresh(module)


class WeightStandardization(torch.nn.Module):
    """The parametrization w = (v − μ) / √(σ² + eps), per output unit; see :func:`weight_standardization`.

    Example:
        >>> WeightStandardization(eps=0.0)(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    def __init__(self, eps: float, axis: int = 0) -> None:
        super().__init__()
        self.eps, self.axis = eps, axis

    def forward(self, v: Tensor) -> Tensor:
        """Standardize; in float32 at least."""
        values = v if v.dtype == torch.float64 else v.float()
        var, mean = torch.var_mean(values, [a for a in range(v.ndim) if a != self.axis], correction=0, keepdim=True)
        return ((values - mean) * torch.rsqrt(var + self.eps)).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight as it is: what it was standardized from cannot be known."""
        return weight

    def extra_repr(self) -> str:
        """Describe the parametrization in ``print(model)``."""
        return f"eps={self.eps}, axis={self.axis}"


def weight_standardization(module: torch.nn.Module, name: str = "weight", eps: float = 1e-5) -> torch.nn.Module:
    """Standardize a layer's weights, each output unit's on its own (Qiao et al. 2019, arXiv 1903.10520).

    Formula: w[o] = (v[o] − μ[o]) / √(σ²[o] + eps), moments over all that goes into unit o. The layer's output changes;
    the paper puts a group norm behind it. v becomes ``module.parametrizations.<name>.original``.

    Args:
        module: a linear or convolution layer, or any that holds a weight with outputs on the first axis; changed in
            place.
        name: the parameter's name.
        eps: added to the variance.

    Returns:
        The module.

    Raises:
        InputError: there is no such parameter, or its units have a single weight, which would become 0.

    Example:
        >>> layer = weight_standardization(torch.nn.Conv2d(3, 8, 3))
        >>> layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
        tensor(True)
    """
    weight = _held_weight(module, name)
    # Transposed convolutions hold their outputs on the second axis.
    axis = 1 if isinstance(module, _ConvTransposeNd) else 0
    if weight.numel() <= weight.shape[axis]:
        raise InputError(f"{name!r} of shape {tuple(weight.shape)} has one weight a unit: standardized, it would be 0")
    if isinstance(module, _ConvTransposeNd) and module.groups > 1:
        raise InputError("a grouped transposed convolution keeps its units apart on no single axis: not supported")
    parametrize.register_parametrization(module, name, WeightStandardization(eps, axis), unsafe=True)
    _make_copyable(module)
    return module

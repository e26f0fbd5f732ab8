"""Switchable normalization: each layer learns which of the others it is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normwise import kernels
from normwise.core.moments import readable, sparsestmax
from normwise.core.route import needs_plain_graph, numbered
from normwise.errors import InputError, NormwiseWarning
from normwise.methods import Switchable, groups_for
from normwise.nn._checks import model_given
from normwise.nn._eps import Eps
from normwise.nn._state import TrackingNorm, boundary, check_dim, checked_size, parameter_of, uses_running
from normwise.nn.groupnorm import check_groups
from normwise.records import Mixture

# The name in this module, which is what the forward pass below looks up.
torch.fx.wrap("check_dim")


class SwitchableNorm(TrackingNorm, _BatchNorm):
    """What the three switchable layers share; use :class:`SwitchableNorm1d`, ``2d`` or ``3d``.

    Torch's common class of batch norms is a base, so that ``update_bn`` and weight-decay filters find the layers. What
    would compute a batch norm in their place (SyncBatchNorm) is refused: ``eps`` is no number to calculate with.

    Example:
        >>> isinstance(SwitchableNorm2d(3), SwitchableNorm)
        True
    """

    mean_weight: torch.nn.Parameter
    var_weight: torch.nn.Parameter
    sparsity: Tensor | None
    _dims: tuple[int, ...] = ()
    eps = Eps(guards=True)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        over: Sequence[str] = Switchable.over,
        variance: str = "paper",
        num_groups: int | None = None,
        sparse: bool = False,
        activation: str | None = None,
        skip_nonfinite: bool = True,
    ) -> None:
        method = Switchable(over, variance)  # type: ignore[arg-type]
        self.over, self.variance = method.over, method.variance
        tracks = track_running_stats and method.over_samples
        super().__init__(checked_size(num_features), eps, momentum, affine, tracks, device, dtype, bias=bias)
        self._guard(skip_nonfinite)
        self.num_groups = groups_for(num_features) if num_groups is None else num_groups
        check_groups("num_features", num_features, self.num_groups)
        self.activation = kernels.known_activation(activation)
        for name in ("mean_weight", "var_weight"):
            logits = torch.ones(len(self.over), device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(logits))
        # A buffer, so that a checkpoint taken half way through the schedule evaluates to the same mix.
        self.register_buffer("sparsity", torch.zeros((), device=device) if sparse else None)

    @property
    def method(self) -> Switchable:
        """The method, with the layer's options."""
        return Switchable(self.over, self.variance, self.num_groups, logits=self.sparsity is None)

    def reset_parameters(self) -> None:
        """Set weight and mixing weights to 1, bias and sparsity to 0, and forget the running averages."""
        super().reset_parameters()
        if self._buffers.get("sparsity") is not None:
            self.sparsity.zero_()  # type: ignore[union-attr]
        for name in ("mean_weight", "var_weight"):
            if name in self._parameters:
                torch.nn.init.ones_(self._parameters[name])  # type: ignore[arg-type]

    def shares(self) -> tuple[Tensor, Tensor]:
        """Give the learned mix: the shares in means and in variances, in the order of ``over``.

        Returns:
            Two detached tensors (K,), each summing to 1; softmax of the logits, or their sparse projection.

        Example:
            >>> SwitchableNorm2d(3, over=("layer", "batch")).shares()[0]
            tensor([0.5000, 0.5000])
        """
        means, variances = self.mean_weight.detach(), self.var_weight.detach()
        return (
            (means.softmax(0), variances.softmax(0))
            if self.sparsity is None
            else _sparse(means, variances, self.sparsity)
        )

    @boundary
    def forward(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Normalize ``input``; ``mask`` and ``lengths`` as in :func:`normwise.normalize`."""
        check_dim(input, self._dims)
        if mask is lengths is self.sparsity is None and self.variance == "paper" and not torch.compiler.is_compiling():
            shares = parameter_of(self, "mean_weight"), parameter_of(self, "var_weight")
            # A tracer has no integer there, and a nested tensor no shape.
            channels = input.shape[1] if type(input) is Tensor and not input.is_nested else None
            pools = _pools(self.over, channels, self.num_groups) if type(channels) is int else None
            y = None if pools is None else self._at_once(input, pools, True, *shares)
            if y is not None:
                return y
        mix = _live(self.method, self.mean_weight, self.var_weight, self.sparsity, self.training)
        _warn_dropped(input, mix[0], uses_running(self) or self.sync is not None)
        options = {"mean_weight": mix[1], "var_weight": mix[2], "activation": self.activation}
        return self._normalize(input, mix[0], self.momentum, counts=True, mask=mask, lengths=lengths, **options)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        sparse = "" if self.sparsity is None else ", sparse=True"
        return f"{super().extra_repr()}, over={self.over}, variance={self.variance!r}{sparse}"


class SwitchableNorm1d(SwitchableNorm):
    """Switchable normalization of (N, C, L) or (N, C); everything else as in :class:`SwitchableNorm2d`.

    For (N, C) the instance member has one element per statistic and no meaning: it is dropped, with a warning, and the
    other shares are scaled to sum to 1. ``over=("layer", "batch")`` says the same without the warning.

    Example:
        >>> SwitchableNorm1d(3, over=("layer", "batch"))(torch.randn(8, 3)).shape
        torch.Size([8, 3])
    """

    _dims = (2, 3)


class SwitchableNorm2d(SwitchableNorm):
    """Switchable normalization of (N, C, H, W) (Luo et al. 2019, arXiv 1806.10779).

    Formula: y = weight · (x − Σₖ wₖ μₖ) / √(Σₖ w′ₖ σ²ₖ + eps) + bias with w = softmax(mean_weight) and w′ =
    softmax(var_weight), k over ``over``. In evaluation the batch member uses the running averages; the others always
    use the sample's own moments.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the *new* batch in the running averages (torch's convention, 1 minus the paper's).
        affine: whether ``weight`` and ``bias`` (C,) are learned.
        track_running_stats: whether running averages are kept for the batch member.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
        bias: whether ``bias`` is learned where ``affine`` is.
        over: the members: any of ``"instance"``, ``"layer"``, ``"group"``, ``"batch"``.
        variance: ``"paper"`` (biased) or ``"official"`` (to reproduce a published checkpoint).
        num_groups: of the group member; default :func:`groups_for`.
        sparse: mix by a projection that gives exact zeros instead of by softmax (Shao et al. 2019, arXiv 1903.03793);
            :func:`set_sparsity` moves the layer on to a single member. In evaluation on a CPU dead members are not
            computed.
        activation: ``None``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``, fused into the layer.
        skip_nonfinite: as in :class:`normwise.nn.BatchNorm2d`.

    Raises:
        ValueError: the input has another number of axes; unknown or repeated members; nothing to take a variance of.

    Example:
        >>> layer = SwitchableNorm2d(3)
        >>> layer(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 3, 5, 5])
        >>> layer.shares()[0]
        tensor([0.3333, 0.3333, 0.3333])
    """

    _dims = (4,)


class SwitchableNorm3d(SwitchableNorm):
    """Switchable normalization of (N, C, D, H, W); everything else as in :class:`SwitchableNorm2d`.

    Example:
        >>> SwitchableNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
        torch.Size([2, 3, 4, 4, 4])
    """

    _dims = (5,)


def switchable_layers(model: torch.nn.Module) -> Iterator[tuple[str, SwitchableNorm]]:
    """Find a model's switchable layers, in the order of registration.

    Args:
        model: any module.

    Yields:
        Name and layer.

    Example:
        >>> [name for name, _ in switchable_layers(torch.nn.Sequential(SwitchableNorm2d(3), torch.nn.ReLU()))]
        ['0']
    """
    model_given(model, "switchable_layers")
    for name, module in model.named_modules():
        if isinstance(module, SwitchableNorm):
            yield name, module


def set_sparsity(model: torch.nn.Module, sparsity: float) -> int:
    """Set how far every ``sparse=True`` layer of a model must be from an even mix; call it once a step or epoch.

    The paper raises it from 0 to 1 in the course of training (arXiv 1903.03793). At 0 the mix is sparsemax,
    at 1 each layer uses one member for the means and one for the variances. Raise it after the logits have begun to
    move: those that are still equal have no preference and stay an even mix.

    Args:
        model: any module.
        sparsity: 0 to 1, the least distance from the even mix, as a fraction of the largest.

    Returns:
        How many layers were set.

    Raises:
        InputError: a value outside 0 to 1.

    Example:
        >>> layer = SwitchableNorm2d(3, sparse=True)
        >>> _ = layer.mean_weight.data.copy_(torch.tensor([1.2, 1.0, 1.0]))
        >>> set_sparsity(layer, 1.0)
        1
        >>> layer.shares()[0]
        tensor([1., 0., 0.])
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity goes from 0 (sparsemax) to 1 (one member), got {sparsity!r}")
    layers = [layer for _, layer in switchable_layers(model) if layer.sparsity is not None]
    for layer in layers:
        # A new tensor: the old one may be waiting for a backward pass.
        layer.sparsity = torch.full_like(layer.sparsity, sparsity)  # type: ignore[arg-type]
    return len(layers)


class Importance(list[Mixture]):
    """The mixes of a model's layers, a list of :class:`normwise.records.Mixture` that prints as a table.

    Example:
        >>> Importance()
        no switchable layers
    """

    def __repr__(self) -> str:
        if not self:
            return "no switchable layers"
        members = list(dict.fromkeys(name for mixture in self for name in mixture.members))
        wide = max(len("layer"), *(len(mixture.layer) for mixture in self))
        columns = "".join(f"{name:>10}" for name in members)
        lines = [f"{'layer':<{wide}}  of   {columns}"]
        for mixture in self:
            for what, shares in (("means", mixture.mean_weights), ("vars", mixture.var_weights)):
                share = dict(zip(mixture.members, shares, strict=True))
                cells = "".join(f"{share[name]:>10.3f}" if name in share else f"{'-':>10}" for name in members)
                lines.append(f"{mixture.layer if what == 'means' else '':<{wide}}  {what:<5}{cells}")
        return "\n".join(lines)


def importance(model: torch.nn.Module) -> Importance:
    """Read what each switchable layer of a model learned: the shares of its members in the means and the variances.

    Args:
        model: any module.

    Returns:
        One record a layer, in the order of registration; prints as a table.

    Example:
        >>> importance(torch.nn.Sequential(SwitchableNorm2d(4), SwitchableNorm2d(4, over=("layer", "batch"))))
        layer  of     instance     layer     batch
        0      means     0.333     0.333     0.333
               vars      0.333     0.333     0.333
        1      means         -     0.500     0.500
               vars          -     0.500     0.500
    """
    model_given(model, "importance")
    found = Importance()
    for name, layer in switchable_layers(model):
        means, variances = (shares.tolist() for shares in layer.shares())
        found.append(Mixture(name or "(model)", list(layer.over), means, variances))
    return found


def _sparse(mean_weight: Tensor, var_weight: Tensor, sparsity: Tensor) -> tuple[Tensor, Tensor]:
    logits = torch.stack((mean_weight, var_weight))
    means, variances = sparsestmax(logits.to(kernels.accumulation_dtype(logits.dtype)), sparsity)
    return means, variances


@torch.fx.wrap
def _live(
    method: Switchable, mean_weight: Tensor, var_weight: Tensor, sparsity: Tensor | None, training: bool
) -> tuple[Switchable, Tensor, Tensor]:
    """The mix of the members to compute, and logits, or shares where it is sparse; a leaf for torch.fx."""
    if sparsity is None:
        return method, mean_weight, var_weight
    means, variances = _sparse(mean_weight, var_weight, sparsity)
    if training or needs_plain_graph() or not readable(means):
        return method, means, variances
    live = torch.nonzero((means != 0) | (variances != 0)).flatten().tolist()
    return replace(method, over=tuple(method.over[k] for k in live)), means[live], variances[live]


@functools.lru_cache
def _pools(over: tuple[str, ...], channels: int, num_groups: int) -> tuple[int, ...] | None:
    """The members as the kernels know them."""
    return numbered(Switchable(over, num_groups=num_groups), channels, False)


@torch.fx.wrap
def _warn_dropped(x: Tensor, method: Switchable, batch_elsewhere: bool) -> None:
    """Say which members have no meaning for this shape; a leaf for torch.fx."""
    if torch.compiler.is_compiling():
        return
    elements = x[0, 0].numel() if x.numel() else 0
    if elements != 1:
        return
    kept = [method.over[k] for k in method.defined(x.shape[0], x.shape[1], elements, batch_elsewhere)]
    dropped = [name for name in method.over if name not in kept]
    if dropped and kept:
        warnings.warn(
            f"switchable normalization of {tuple(x.shape)}: {', '.join(dropped)} would rest on one element a statistic "
            f"and is left out; the shares of {', '.join(kept)} are scaled up to sum to 1",
            NormwiseWarning,
            stacklevel=3,
        )

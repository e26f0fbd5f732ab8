"""What the stateful layers share: checks, where a layer stands in its model, and how running averages are kept.

A layer's forward pass stands behind :func:`boundary`. Where torch.fx has to go through one all the same (it is the root
of the trace, or a subclass adds to it), code that branches on the input stands behind ``torch.fx.wrap``. That works for
calls from the module that holds the function, so layers call the functions here and not ``normwise.functional``.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _LazyNormBase, _NormBase

from normwise import kernels
from normwise.core.distributed import Sync
from normwise.core.method import Method
from normwise.core.moments import may_move, readable
from normwise.core.route import at_once
from normwise.errors import InputError, NormwiseWarning
from normwise.functional import normalize
from normwise.nn._eps import Eps, eps_of
from normwise.nn._opacus import tell_opacus

# The name in this module, which is what the layers look up here.
torch.fx.wrap("normalize")


@torch.fx.wrap
def check_dim(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Refuse an input whose number of axes the layer does not take, in torch's words."""
    if x.dim() not in dims:
        expected = " or ".join(f"{d}D" for d in dims)
        raise ValueError(f"expected {expected} input (got {x.dim()}D input)")
    return x


def checked_size(num_features: int) -> int:
    """Refuse a number of channels that no data has; for the layers without a namesake in torch."""
    if num_features < 1:
        raise InputError(f"num_features counts channels, at least 1, got {num_features}")
    return num_features


def affine_of(layer: torch.nn.Module) -> tuple[Tensor | None, Tensor | None] | None:
    """Weight and bias where they are plain parameters; as attributes of a module they would take ten times as long."""
    parameters = layer._parameters
    return (parameters["weight"], parameters["bias"]) if "weight" in parameters and "bias" in parameters else None


def parameter_of(layer: torch.nn.Module, name: str) -> Tensor | None:
    """A parameter by its name; quickly where it is a plain one."""
    parameters = layer._parameters
    if name in parameters:  # not as a default of get(), which would look the attribute up whether or not
        return parameters[name]
    value: Tensor | None = getattr(layer, name)
    return value


def uses_running(layer: _NormBase) -> bool:
    """Whether the layer normalizes by its running averages now."""
    return not layer.training and layer.running_mean is not None


def layer_name(layer: torch.nn.Module) -> str:
    """What to call a layer in messages: its name in the model, where that is known, and its class."""
    _, path = _place(layer)
    kind = type(layer).__name__
    return f"{path!r} ({kind})" if path else kind


def _place(layer: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    # Modules do not know where they stand; the modules whose methods are running do. Slow, for messages only.
    model, path, frame = layer, "", sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module):
            found = (name for name, module in owner.named_modules() if module is layer)
            model, path = next(((owner, name) for name in found), (model, path))
        frame = frame.f_back  # type: ignore[assignment]
    return model, path


def _unwarned(model: torch.nn.Module) -> list[TrackingNorm]:
    """The layers that count batches and have not warned of one."""
    found = [module for module in model.modules() if isinstance(module, TrackingNorm) and not module._warned]
    return [layer for layer in found if layer._skipped is not None and not layer._skipped.is_meta]


def boundary(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a layer whole for those outside, as torch's own are: a leaf for torch.fx, and errors end with its name."""

    @functools.wraps(forward)
    def wrapper(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, Proxy) and _is_leaf(self, wrapper, first.tracer):
            tracer: Any = first.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        try:
            return forward(self, *args, **kwargs)
        except (ValueError, RuntimeError) as error:
            if len(error.args) == 1 and "in layer" not in str(error):
                error.args = (f"{error} [in layer {layer_name(self)}]",)
            raise

    # A code object for each class: the compiler counts what it compiled by it, and gives up after a few.
    wrapper.__code__ = wrapper.__code__.replace()  # type: ignore[attr-defined]
    return wrapper


def _is_leaf(layer: torch.nn.Module, forward: Callable[..., Any], tracer: Any) -> bool:
    # A call of the layer goes on following train() and eval(); what is traced does not. But where more has been traced
    # than this forward pass (a subclass's around it, or hooks) a call of the layer would do that once more.
    bare = type(layer).forward is forward and "forward" not in vars(layer)
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    return bare and not hooked and isinstance(tracer, torch.fx.Tracer) and tracer.root is not layer


class TrackingNorm(_NormBase):
    """A layer with running averages, which a batch that is not finite leaves as they are.

    Such batches are counted in :attr:`num_batches_skipped`. Where reading that costs nothing the layer warns at once;
    on an accelerator and in compiled code, when :meth:`train` or ``eval`` is called next.
    """

    method: Any
    skip_nonfinite: bool
    activation: str | None = None
    eps = Eps()
    # Set by normwise.sync: whom the layer shares its batch statistics with, in training.
    sync: Sync | None = None
    _warned = _looked_at = False
    # No buffer: a checkpoint has no such entry, and what walks over a model's buffers expects those of torch's layer.
    _skipped: Tensor | None = None

    def _guard(self, skip_nonfinite: bool) -> None:
        """Finish construction: must follow torch's ``__init__``."""
        self.skip_nonfinite = skip_nonfinite
        _ = self.num_batches_skipped

    @property
    def num_batches_skipped(self) -> Tensor | None:
        """How many batches were left out, a tensor (); ``None`` without running averages.

        It goes where the running averages are, but is no buffer. Under ``torch.func`` transforms, in exported graphs
        and with fake tensors such batches are left out, too, and not counted: this is no argument of theirs to change.
        """
        mean = self._buffers.get("running_mean")
        if mean is None:
            return None
        if self._skipped is None or self._skipped.device != mean.device:
            self._follow(mean)
        return self._skipped

    def _follow(self, mean: Tensor) -> None:
        # Not only to(device) puts running averages elsewhere: so does load_state_dict(assign=True).
        count = self._skipped
        if count is None or count.is_meta or mean.is_meta:
            count = torch.zeros((), dtype=torch.int64, device=mean.device)
        self._skipped = count.to(mean.device)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TrackingNorm:
        super()._apply(fn, recurse)
        _ = self.num_batches_skipped  # here and not in the next training step
        return self

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """Give the parameters, as torch does."""
        tell_opacus(self)
        return super().parameters(recurse)

    def reset_running_stats(self) -> None:
        """Forget the running averages and the counts."""
        super().reset_running_stats()
        if self._skipped is not None:
            self._skipped.zero_()

    def train(self, mode: bool = True) -> TrackingNorm:
        """Set training mode, as torch does, and warn of batches that were skipped meanwhile."""
        self._warn_of_skipped()
        return super().train(mode)

    def _warn_of_skipped(self) -> None:
        skipped = self._skipped
        if self._warned or type(skipped) is not Tensor or skipped.is_meta:
            return
        if not skipped.is_cpu:
            self._warn_for_model()
        elif skipped:
            model, _ = _place(self)
            self._warn(_unwarned(model))

    def _warn_for_model(self) -> None:
        """Look at all layers of the model at once, as each reading makes the host wait for the device."""
        if self._looked_at:
            self._looked_at = False  # by another layer, in this same call of the model's train() or eval()
            return
        model, _ = _place(self)
        there = [layer for layer in _unwarned(model) if not layer._looked_at]
        for layer in there:
            layer._looked_at = layer is not self
        counts = [layer._skipped.to(self._skipped.device) for layer in there]  # type: ignore[union-attr]
        if torch.stack(counts).sum():
            next(layer for layer in there if layer._skipped)._warn(there)

    def _warn(self, layers: list[TrackingNorm]) -> None:
        # The first to meet it speaks for the model: what comes after has it from there.
        for layer in layers:
            layer._warned = True
        warnings.warn(
            f"layer {layer_name(self)} met a batch whose mean or variance is not finite and left it out of its running "
            "averages; further ones, in this layer and others, are counted in num_batches_skipped. Look for inf or NaN "
            "in the layers before, in the data or under float16; skip_nonfinite=False updates regardless, as in torch",
            NormwiseWarning,
            stacklevel=4,
        )

    def _at_once(
        self,
        x: Tensor,
        pools: tuple[int, ...],
        counts: bool,
        mean_weight: Tensor | None = None,
        var_weight: Tensor | None = None,
    ) -> Tensor | None:
        """What :meth:`_normalize` gives for a plain tensor, by the shortest way; ``None`` where that is not open."""
        affine, buffers = affine_of(self), self._buffers
        if type(x) is not Tensor or self.sync is not None or affine is None:
            return None
        mean, var, running, population, skipped = buffers["running_mean"], buffers["running_var"], None, None, None
        if (mean is None or var is None) and (mean is not var or buffers["num_batches_tracked"] is not None):
            return None  # set to None by hand
        if mean is not None and var is not None:
            if not self.training:
                population = mean, var
            elif self.track_running_stats:
                if self.momentum is None:
                    return None
                skipped, tracked = self.num_batches_skipped, buffers["num_batches_tracked"] if counts else None
                running = (mean, var, self.momentum, skipped if self.skip_nonfinite else None, tracked)
        averages = (running, population)
        y = at_once(x, pools, *affine, eps_of(self), self.activation, 0.01, *averages, mean_weight, var_weight)
        if y is not None and skipped is not None and not self._warned and readable(skipped):
            self._warn_of_skipped()
        return y

    def _normalize(self, input: Tensor, method: Method, momentum: float | None, counts: bool, **options: Any) -> Tensor:
        """Normalize; in training count the batch and move the running averages."""
        mean, training = self.running_mean, self.training
        options = {"weight": self.weight, "bias": self.bias, **options}
        options |= {"eps": eps_of(self), "running_mean": mean, "running_var": self.running_var}
        tracked = self.num_batches_tracked if counts else None
        if not (training and self.track_running_stats and (mean is not None or tracked is not None)):
            sync = self.sync if training else None
            return normalize(input, method, use_running=not training and mean is not None, sync=sync, **options)
        skipped = self.num_batches_skipped
        options |= {"skipped": skipped if self.skip_nonfinite else None, "sync": self.sync}
        y = _normalize_and_track(input, method, momentum, tracked, **options)
        if skipped is not None and readable(skipped):
            self._warn_of_skipped()
        return y


# Takes the input, so that torch.fx sees a call to record: a cumulative average weighs each batch differently.
@torch.fx.wrap
def _normalize_and_track(
    x: Tensor, method: Method, momentum: float | None, tracked: Tensor | None, **options: Any
) -> Tensor:
    weight: float | Tensor = 0.0 if momentum is None else momentum
    if momentum is None and tracked is not None:
        # As a tensor it neither breaks a compiled graph nor synchronizes with a device.
        mean = options["running_mean"]
        dtype = torch.float64 if mean is None or mean.is_cpu else kernels.accumulation_dtype(mean.dtype)
        weight = (tracked + 1).to(dtype).reciprocal()  # some devices have no float64
    if options["running_mean"] is None and tracked is not None and may_move((tracked,), (x,)):
        tracked.add_(1)  # torch counts the batches of averages that were set to None, too
    return normalize(x, method, momentum=weight, tracked=tracked, **options)


class LazyNorm(_LazyNormBase):
    """Torch's lazy construction, with what our layers take beside torch's arguments."""

    _guard: Callable[[bool], None]  # of TrackingNorm, from which every lazy class also descends

    def __init__(self, *args: Any, activation: str | None = None, skip_nonfinite: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = kernels.known_activation(activation)
        self._guard(skip_nonfinite)

    def initialize_parameters(self, input: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> None:
        """Learn the number of channels; what is padding does not matter for that."""
        super().initialize_parameters(input)

"""Cases from torch's own databases: each a layer of torch's and ours with one state, and an input for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from namesakes import NAMESAKES, ModuleInfo, module_db, op_db
from torch import Tensor, nn

MODULES = [info for info in module_db if info.module_cls in NAMESAKES]
_NAMES = {f"nn.functional.{name}_norm" for name in ("batch", "instance", "group", "layer", "rms")}
# Another variant of batch norm has the same samples, for another device.
OPERATORS = [op for op in op_db if op.name in _NAMES and not op.variant_test_name]
_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


class Case(NamedTuple):
    """``theirs()`` and ``ours()`` build anew each time."""

    cls: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: dict[str, Tensor | None]
    training: bool
    x: Tensor

    def theirs(self, **more: Any) -> nn.Module:
        return self._built(self.cls, more)

    def ours(self, **more: Any) -> nn.Module:
        return self._built(NAMESAKES[self.cls], more)

    def _built(self, cls: type[nn.Module], more: dict[str, Any]) -> nn.Module:
        layer = cls(*self.args, **self.kwargs, **more)
        if not more:
            layer = layer.to(self.x.dtype)
            for name, value in self.state.items():
                if value is None:
                    setattr(layer, name, None)
                else:
                    getattr(layer, name).data.copy_(value)
        return layer.train(self.training)

    def __str__(self) -> str:
        given = [*map(str, self.args), *(f"{k}={v}" for k, v in self.kwargs.items())]
        mode = "train" if self.training else "eval"
        return f"{self.cls.__name__}({', '.join(given)}) of {tuple(self.x.shape)}, {self.x.dtype}, {mode}"


def module_cases(info: ModuleInfo, dtype: torch.dtype = torch.float64) -> Iterator[Case]:
    """The samples of one entry of torch's database of modules, in both modes."""
    for training in (True, False):
        for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training):
            made = sample.constructor_input
            case = Case(info.module_cls, made.args, made.kwargs, {}, training, sample.forward_input.args[0])
            state = {
                n: torch.rand_like(t) + 0.5 for n, t in case.theirs().state_dict().items() if t.is_floating_point()
            }
            yield case._replace(state=state)


def operator_cases(op: Any, dtype: torch.dtype = torch.float64) -> Iterator[Case]:
    """The samples of one entry of torch's database of operators, as layers that make these calls."""
    kind = op.name.removeprefix("nn.functional.").removesuffix("_norm")
    for sample in op.reference_inputs("cpu", dtype):
        if sample.input.ndim == 1 and kind == "batch":
            continue  # no layer of torch's takes it
        yield _AS_LAYER[kind](sample.input, *sample.args, **sample.kwargs)


def _batch(
    x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, **more: Any
) -> Case:
    state = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
    return Case(_BATCH[x.ndim], (x.shape[1],), more, _copied(state), training, x)


def _instance(x: Tensor, use_input_stats: bool = True, **more: Any) -> Case:
    names = ("running_mean", "running_var", "weight", "bias")
    state = {name: more.pop(name, None) for name in names}
    options = {"affine": True, "track_running_stats": True, **more}
    return Case(_INSTANCE[x.ndim], (x.shape[1],), options, _copied(state), use_input_stats, x)


def _group(x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, **more: Any) -> Case:
    return Case(nn.GroupNorm, (num_groups, x.shape[1]), more, _copied({"weight": weight, "bias": bias}), True, x)


def _layer(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, **more: Any) -> Case:
    return Case(nn.LayerNorm, (shape,), more, _copied({"weight": weight, "bias": bias}), True, x)


def _rms(x: Tensor, shape: Any, weight: Any = None, **more: Any) -> Case:
    return Case(nn.RMSNorm, (shape,), more, _copied({"weight": weight}), True, x)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in state.items()}


_AS_LAYER = {"batch": _batch, "instance": _instance, "group": _group, "layer": _layer, "rms": _rms}

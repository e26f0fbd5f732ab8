"""A loss in every form: a name of ``torch.nn.functional``, a criterion, a function of outputs or of a batch."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normwise import devices
from normwise.arguments.functions import Takes, function_of, takes, tried
from normwise.errors import InputError, NormwiseError, described

FORMS = (
    "a function of (output, target), a torch.nn criterion, a name of torch.nn.functional such as 'cross_entropy', or "
    "loss(model, batch)"
)


def by_class(outputs: Tensor, targets: Tensor) -> Tensor:
    """Put the classes on axis 1, where torch's losses want them."""
    first = outputs.shape[:1] + outputs.shape[2:] == targets.shape
    return outputs.movedim(-1, 1) if not first and outputs.shape[:-1] == targets.shape else outputs


def aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    """Give real-valued outputs the targets' shape, where they differ in axes of one element alone.

    (N, 1) against (N,) would broadcast to (N, N), every output against every target.
    """
    if [size for size in outputs.shape if size != 1] != [size for size in targets.shape if size != 1]:
        raise InputError(
            f"the model gives {tuple(outputs.shape)} and the targets are {tuple(targets.shape)}: make them the same "
            "shape, or give a loss(model, batch) of your own"
        )
    return outputs.reshape(targets.shape)


def fitted(outputs: Any, targets: Any) -> Any:
    """Outputs as torch's own losses want them: classes on axis 1, real numbers in the targets' shape."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return outputs
    return aligned(outputs, targets) if targets.is_floating_point() else by_class(outputs, targets)


@dataclass(frozen=True)
class Loss:
    """A loss, and what it takes; its errors say what it was given."""

    function: Callable[[Any, Any], Any]
    name: str
    takes: Takes
    # Torch's own broadcast silently and want the classes on axis 1.
    of_torch: bool = False

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Give the loss of outputs against targets."""
        try:
            value = self.function(fitted(output, target) if self.of_torch else output, target)
        except NormwiseError:
            raise
        except (Exception, SystemExit) as error:
            if devices.out_of_memory(error):
                raise
            given = f"{_shape(output)} and the target {_shape(target)}"
            raise InputError(
                f"loss {self.name} failed on the output {given}: {described(error)}{_hint(output, target)}"
            ) from error
        return _checked(value)

    def of_batch(self, model: nn.Module, batch: Any) -> Tensor:
        """Give the loss of a batch; what it raises is the user's."""
        return _checked(self.function(model, batch))

    def decided(self, model: nn.Module, batch: Any, pair: Callable[[], tuple[Any, Any]]) -> Loss:
        """The same, which knows what it takes: tried on a batch where names do not tell."""
        if self.takes != "either":
            return self
        with torch.no_grad():
            found = tried(lambda: self(*pair()), lambda: self.of_batch(model, batch), f"loss {self.name}")
        return dataclasses.replace(self, takes=found)


def loss_of(value: Any) -> Loss | None:
    """Read a loss."""
    if value is None or isinstance(value, Loss):
        return value
    if isinstance(value, str) and ":" not in value:
        return Loss(_named(value), value, "outputs", of_torch=True)
    function = function_of(value, "loss", FORMS)
    name = getattr(function, "__name__", type(function).__name__)
    if isinstance(function, nn.Module):
        return Loss(function, name, "outputs", type(function).__module__ == nn.modules.loss.__name__)
    return Loss(function, name, takes(function, f"loss {name}"), _takes_pairs(function))


def _named(name: str) -> Callable[[Any, Any], Any]:
    found: Any = getattr(F, name, None)
    if _takes_pairs(found):
        return found
    known = [each for each in dir(F) if _takes_pairs(getattr(F, each))]
    near = "".join(f", did you mean {each!r}?" for each in difflib.get_close_matches(name, known, 1))
    raise InputError(
        f"unknown loss {name!r}: torch.nn.functional has no such function of (output, target){near}; for your own give "
        "the function itself, or path.py:callable"
    )


def _takes_pairs(function: Any) -> bool:
    """Whether something is one of torch's functions of an input and a target."""
    if not inspect.isfunction(function) or function.__name__.startswith("_") or function.__module__ != F.__name__:
        return False
    first = list(inspect.signature(function).parameters.values())[:3]
    return [p.name for p in first[:2]] == ["input", "target"] and all(p.default is not p.empty for p in first[2:])


def _checked(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(f"loss must give a tensor with one element, got {_shape(value)}")
    return value


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    inside = value if isinstance(value, tuple | list) else ()
    return type(value).__name__ + (f" of {', '.join(map(_shape, inside[:3]))}" if inside else "")


def _hint(output: Any, target: Any) -> str:
    """What to do about it, where that can be told."""
    if target is None:
        return "; the batches hold no target: give (input, target) pairs"
    if not isinstance(output, Tensor):
        return "; the model gives more than a tensor: give loss=lambda output, target: ..., which takes its part of it"
    return ""

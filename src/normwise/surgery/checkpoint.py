"""Read and write checkpoints: tensors only, no code is run from a file, and the source is never overwritten."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normwise import files
from normwise.errors import DataError, InputError, MissingDependencyError, StoreError
from normwise.files import SAFETENSORS_MARK, replacing
from normwise.nn._loading import load_tensors

_TORCH = (".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
_SAFE = ".safetensors"
# Where training frameworks keep the weights in what they save.
_NESTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "params")
_DEPTH = 4


@dataclass(frozen=True)
class Checkpoint:
    """A state_dict as a file holds it.

    ``nest`` is the entry of the file's dict that holds it, or the keys of dicts in dicts that lead there; ``None``
    where the file is the state_dict. ``prefix`` stands before every key in the file (``"module."`` of data-parallel
    training, ``"model."`` of Lightning, …) and is not in ``state``.
    """

    state: dict[str, Tensor]
    nest: str | tuple[str, ...] | None = None
    prefix: str = ""

    def with_state(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """The same wrapping around other tensors."""
        return Checkpoint(dict(state), self.nest, self.prefix)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint: of safetensors, or in torch's formats with ``weights_only=True``; its content says which.

    A state_dict in dicts is found, under a usual name (``"model"``, ``"state_dict"``, …) or where it is the only one.
    """
    source = Path(path)
    content = _read_safetensors(source) if _looks_safe(source) else load_tensors(source)
    if _is_state(content):
        return Checkpoint(dict(content))
    nest = _nest_of(content, source)
    for key in nest:
        content = content[key]
    return Checkpoint(dict(content), nest[0] if len(nest) == 1 else nest)


def load_into(model: torch.nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Load a checkpoint into a model, strictly; a prefix that all keys share in one of both is taken off."""
    wanted = set(model.state_dict())
    prefix = _prefix(set(checkpoint.state), wanted)
    state = {key.removeprefix(prefix): value for key, value in checkpoint.state.items() if key.startswith(prefix)}
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"the checkpoint does not fit {type(model).__name__}: {_shapes(error)}") from error
    problems = [f"no {key}" for key in result.missing_keys] + [f"unknown {key}" for key in result.unexpected_keys]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DataError(f"the checkpoint does not fit {type(model).__name__}: {', '.join(problems[:4])}{more}")
    return Checkpoint(state, checkpoint.nest, prefix)


def save(path: str | os.PathLike[str], checkpoint: Checkpoint, source: str | os.PathLike[str] | None = None) -> None:
    """Write a checkpoint: readers see the old file or the whole new one, and ``source`` is never overwritten.

    Only tensors are written. An optimizer's state in the source belongs to its old parameters and is left out.
    """
    check_target(path, source)
    target = Path(path)
    # Views would drag their whole storage along, and safetensors takes no shared or strided memory.
    state = {checkpoint.prefix + k: v.detach().cpu().clone().contiguous() for k, v in checkpoint.state.items()}
    if target.suffix == _SAFE:
        module = _safetensors()
        _write(target, lambda file: module.save_file(state, file, metadata=SAFETENSORS_MARK))
    else:
        content: dict[str, Any] = state
        nest = checkpoint.nest or ()
        for key in reversed((nest,) if isinstance(nest, str) else nest):
            content = {key: content}
        _write(target, lambda file: torch.save(content, file))


def check_target(path: str | os.PathLike[str] | None, source: str | os.PathLike[str] | None = None) -> None:
    """See that a checkpoint can be written to a place, before the work that it is to hold is done."""
    if path is None:
        return
    target = Path(path)
    if not target.name.endswith((*_TORCH, _SAFE)):
        raise InputError(f"cannot write {target}: expected a name ending in {', '.join((*_TORCH, _SAFE))}")
    if source is not None and target.exists() and Path(source).exists() and os.path.samefile(target, source):
        raise InputError(f"{target} is the source: write to another file")
    files.check_target(target, "weights")


def _write(target: Path, write: Callable[[str], object]) -> None:
    try:
        with replacing(target) as temporary:
            write(str(temporary))
    except Exception as error:  # safetensors has an exception of its own
        raise StoreError(f"cannot write {target}: {getattr(error, 'strerror', None) or _first_line(error)}") from error


def _looks_safe(source: Path) -> bool:
    """Whether a file is of safetensors: its content says so, or else its name."""
    head = b""
    with contextlib.suppress(OSError), source.open("rb") as file:
        head = file.read(9)
    if head.startswith((b"PK", b"\x80")):
        return False
    return source.suffix == _SAFE or (len(head) == 9 and head[8:] == b"{")


def _read_safetensors(source: Path) -> Any:
    if not source.is_file():
        raise DataError(f"cannot read the checkpoint {source}: no such file")
    try:
        return _safetensors().load_file(source)
    except MissingDependencyError:
        raise
    except OSError as error:
        raise DataError(f"cannot read the checkpoint {source}: {error.strerror or _first_line(error)}") from error
    except Exception as error:  # safetensors has one of its own
        why = f"damaged, or not of the kind that its name says ({type(error).__name__}: {_first_line(error)})"
        raise DataError(f"cannot read the checkpoint {source}: {why}") from error


def _nest_of(content: object, source: Path) -> tuple[str, ...]:
    """Where in a file's dicts the weights are: under a usual name, the outermost first, or the one place there is."""
    places = list(_states(content))
    usual = [path for path in places if path[-1] in _NESTS]
    rank = min(map(_rank, usual), default=None)
    best = [path for path in usual if _rank(path) == rank] or places
    if len(best) == 1:
        return best[0]
    if best:
        listed = ", ".join(map(shown, best[:6])) + f" and {len(best) - 6} more" * (len(best) > 6)
        raise DataError(f"{source} holds several state_dicts: {listed}; save the one you mean in a file of its own")
    kind = f"a dict with {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else type(content)
    raise DataError(f"{source} holds no state_dict: found {kind}, expected names and tensors, or one of {_NESTS}")


def _rank(path: tuple[str, ...]) -> tuple[int, int]:
    return len(path), _NESTS.index(path[-1])


def _states(content: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of all state_dicts; what optimizers keep of their parameters is none."""
    if path and _is_state(content):
        yield path
    elif isinstance(content, Mapping) and len(path) < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and "optim" not in key:
                yield from _states(value, (*path, key))


def shown(nest: str | tuple[str, ...]) -> str:
    """Give a checkpoint's nest as one word."""
    return nest if isinstance(nest, str) else ".".join(nest)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError("reading .safetensors needs: pip install safetensors") from error
    return safetensors.torch


def _is_state(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _prefix(given: set[str], wanted: set[str]) -> str:
    """What stands before every wanted name in the file; nothing, where the names agree as they are."""
    if given & wanted or not wanted:
        return ""
    probe = min(wanted)
    candidates = [key.removesuffix(probe) for key in given if key.endswith(f".{probe}")]
    return max(candidates, key=lambda p: sum(p + name in given for name in wanted), default="")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _shapes(error: RuntimeError) -> str:
    """The first of torch's list of differences, without its heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]

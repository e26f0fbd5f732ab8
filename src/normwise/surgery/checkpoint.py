"""Read and write checkpoints: tensors only, no code is run from a file, and the source is never overwritten."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normwise.errors import DataError, InputError, MissingDependencyError, StoreError

_TORCH = (".pt", ".pth", ".ckpt", ".bin")
_SAFE = ".safetensors"
# Where training frameworks keep the weights in what they save.
_NESTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "params")


@dataclass(frozen=True)
class Checkpoint:
    """A state_dict as a file holds it.

    ``nest`` is the entry of the file's dict that holds it, ``None`` where the file is the state_dict. ``prefix`` stands
    before every key in the file (``"module."`` of data-parallel training, ``"model."`` of Lightning, …) and is not in
    ``state``.

    Example:
        >>> Checkpoint({"weight": torch.ones(1)}).nest is None
        True
    """

    state: dict[str, Tensor]
    nest: str | None = None
    prefix: str = ""

    def with_state(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """The same wrapping around other tensors."""
        return Checkpoint(dict(state), self.nest, self.prefix)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint: ``.safetensors``, or torch's formats with ``weights_only=True``.

    Args:
        path: the file.

    Returns:
        The tensors, without wrapping; prefixes are found by :func:`load_into`.

    Raises:
        DataError: the file cannot be read, holds code or no state_dict.
        MissingDependencyError: the package safetensors is needed and not installed.

    Example:
        >>> load("nowhere.pt")
        Traceback (most recent call last):
        ...
        normwise.errors.DataError: cannot read the checkpoint nowhere.pt: no such file
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"cannot read the checkpoint {source}: no such file")
    read = _safetensors().load_file if source.suffix == _SAFE else _torch_load
    try:
        content = read(source)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read the checkpoint {source}: {error.strerror or _first_line(error)}") from error
    except Exception as error:  # of all kinds, where a file is not what it seems; safetensors has one of its own
        why = f"damaged, or not of the kind that its name says ({type(error).__name__}: {_culprit(error)})"
        raise DataError(f"cannot read the checkpoint {source}: {why}") from error
    if _is_state(content):
        return Checkpoint(dict(content))
    for nest in _NESTS:
        if isinstance(content, Mapping) and _is_state(content.get(nest)):
            return Checkpoint(dict(content[nest]), nest)
    kind = f"a dict with {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else type(content)
    raise DataError(f"{source} holds no state_dict: found {kind}, expected names and tensors, or one of {_NESTS}")


def load_into(model: torch.nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Load a checkpoint into a model, strictly; a prefix that all keys share in one of both is taken off.

    Args:
        model: changed in place.
        checkpoint: as :func:`load` gave it.

    Returns:
        The checkpoint with its prefix known: what :func:`save` needs to write another state in the same form.

    Raises:
        DataError: names or shapes differ; the message lists the first.

    Example:
        >>> saved = Checkpoint({f"module.{k}": v for k, v in torch.nn.Linear(2, 2).state_dict().items()})
        >>> load_into(torch.nn.Linear(2, 2), saved).prefix
        'module.'
    """
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

    Args:
        path: the file; its suffix chooses the format.
        checkpoint: what to write; nest and prefix come back (safetensors has no nests).
        source: the file that was read.

    Raises:
        InputError: an unknown suffix, or the path is the source.
        MissingDependencyError: the package safetensors is needed and not installed.
        StoreError: the file cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder) / "a.pt", Checkpoint({"weight": torch.ones(1)}))
        ...     load(Path(folder) / "a.pt").state
        {'weight': tensor([1.])}
    """
    check_target(path, source)
    target = Path(path)
    # Views would drag their whole storage along, and safetensors takes no shared or strided memory.
    state = {checkpoint.prefix + k: v.detach().cpu().clone().contiguous() for k, v in checkpoint.state.items()}
    if target.suffix == _SAFE:
        module = _safetensors()
        _write(target, lambda file: module.save_file(state, file, metadata={"format": "pt"}))
    else:
        content = state if checkpoint.nest is None else {checkpoint.nest: state}
        _write(target, lambda file: torch.save(content, file))


def check_target(path: str | os.PathLike[str] | None, source: str | os.PathLike[str] | None = None) -> None:
    """See that a checkpoint can be written to a place, before the work that it is to hold is done.

    Args:
        path: the file; ``None`` where nothing will be written.
        source: the file that was read.

    Raises:
        InputError: an unknown suffix, or the path is the source.
        StoreError: there is no such folder, or a folder of that name.

    Example:
        >>> check_target("nowhere/weights.pt")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: cannot write nowhere/weights.pt: there is no folder nowhere
    """
    if path is None:
        return
    target = Path(path)
    if target.suffix not in (*_TORCH, _SAFE):
        raise InputError(f"cannot write {target}: expected a name ending in {', '.join((*_TORCH, _SAFE))}")
    if not target.parent.is_dir():
        raise StoreError(f"cannot write {target}: there is no folder {target.parent}")
    if target.is_dir():
        raise StoreError(f"cannot write {target}: it is a folder")
    if source is not None and target.exists() and Path(source).exists() and os.path.samefile(target, source):
        raise InputError(f"{target} is the source: write to another file")


def _write(target: Path, write: Callable[[str], object]) -> None:
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        temporary = Path(name)
        write(name)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except Exception as error:  # safetensors has an exception of its own
        raise StoreError(f"cannot write {target}: {getattr(error, 'strerror', None) or _first_line(error)}") from error
    finally:
        # Also where the user interrupts; after the replacement there is nothing of that name.
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _torch_load(source: Path) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise  # no pickle at all
        raise DataError(
            f"{source} holds more than tensors and is not loaded, because that could run code: save "
            f"model.state_dict() instead ({_culprit(error)})"
        ) from error


def _culprit(error: BaseException) -> str:
    """What torch did not want to load, out of the page of advice that it gives."""
    found = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\. |\n|$)", str(error))
    return found[1] if found else _first_line(error)


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

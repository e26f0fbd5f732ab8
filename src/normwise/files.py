"""Writing files and folders so that nothing is lost. Standard library only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from normwise.errors import StoreError


def write_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that readers see the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        text: the whole content.

    Raises:
        StoreError: the folder is missing or cannot be written; an older file is left as it was.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(pathlib.Path(folder) / "a.txt", "hello")
        ...     print((pathlib.Path(folder) / "a.txt").read_text())
        hello
    """
    target = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # NamedTemporaryFile makes files only their owner can read; a report is meant to be shared.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {target}: {error.strerror}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder to write into, unless it is there.

    Args:
        path: of the folder; those that it lies in are made likewise.

    Returns:
        The folder.

    Raises:
        StoreError: it cannot be made.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_folder(pathlib.Path(folder) / "a" / "b").is_dir()
        True
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to the folder {folder}: {error.strerror}") from error
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

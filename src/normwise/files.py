"""Reading and writing files and folders so that nothing is lost. Standard library only."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import math
import os
import re
import socket
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normwise.errors import InputError, StoreError

# What kinds of files normwise writes: in JSON the first key and keys that only this kind has together.
_RECORDS = {
    "study": ("title", {"settings", "trials", "verdicts"}),
    "diagnosis": ("created", {"facts", "run", "findings"}),
    "advice": ("model", {"situation", "ranking"}),
    "inspection": ("layers", {"layers", "findings"}),
    "conversion": ("to", {"to", "replaced", "left"}),
    "claims": ("created", {"outcomes", "versions"}),
}
_TABLE = "stage,method,batch_size,"
_DOCS = "`normwise claims docs` writes this page from"
_GENERATOR = re.compile(r'<meta name="generator" content="normwise(?: (\w+))?">')
# Before the names of files that are being written; torch keeps them in its archives, which tells our weights.
_MARK = ".normwise-"
SAFETENSORS_MARK = {"format": "pt", "made_by": "normwise"}
_HEAD = 1 << 16


def check_target(path: str | os.PathLike[str] | None, kind: str, page: bool = False) -> None:
    """See that a file can be written where a user says, before the work that it is to hold is done.

    A file that is there is replaced only where its content shows that normwise wrote it, as the same kind of thing, or
    where it is empty. What a killed process left of one is removed.
    """
    if path is None:
        return
    target = Path(path)
    try:
        problem = _problem(target)
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a zero byte
        problem = getattr(error, "strerror", None) or str(error)
    if problem is not None:
        raise StoreError(f"cannot write {target}: {problem}")
    if target.exists() and target.stat().st_size and not _is_own(target, kind, page):
        raise InputError(
            f"{target} is there already and holds no {'page of ' * page}{kind} that normwise wrote: "
            "it was left as it is; name another file, or move it away"
        )


def check_folder(folder: str | os.PathLike[str] | None, kind: str, names: tuple[str, str]) -> None:
    """See that a record and its page can be kept in a folder, before they are made."""
    if folder is not None and Path(folder).is_dir():
        for name, page in zip(names, (False, True), strict=True):
            check_target(Path(folder) / name, kind, page)


def write_own(path: str | os.PathLike[str], text: str, kind: str, page: bool = False) -> None:
    """Write a text file where a user says; see :func:`check_target` for what is refused."""
    check_target(path, kind, page)
    write_atomic(path, text)


def write_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that readers see the old content or the new, never a part."""
    try:
        with replacing(path) as temporary:
            # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes what JSON writes for it.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a file to write into that takes a file's place when the body ends without an error."""
    target = Path(path)
    target = target.resolve() if target.is_symlink() else target
    sweep(target.parent)
    # The name has its last dot before what differs, for torch names its archives by what stands before.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{_MARK}{target.name}.{_me()}-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files only their owner can read; a report is meant to be shared.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        # Also where the user interrupts; after the replacement there is nothing of that name.
        temporary.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove what processes of this machine that were killed while they wrote have left in a folder."""
    with contextlib.suppress(OSError):
        for left in Path(folder).glob(f"{_MARK}*"):
            host, _, rest = left.name.rpartition(".")[2].partition("-")
            process = rest.partition("-")[0]
            if host == _host() and process.isdigit() and not _lives(int(process)):
                left.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    return parse_json(Path(path).read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Read JSON; what is nested too deeply is refused like all else that is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: Any) -> Any:
    """Give the same structure without NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_printable() -> None:
    r"""Let standard output and standard error take every character: what their encoding lacks is written ``\uXXXX``.

    That is what JSON has for it, too.
    """
    codecs.register_error("normwise", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="normwise")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k : k + 2].hex()}" for k in range(0, len(units), 2)), error.end


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder to write into, unless it is there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to the folder {folder}: {error.strerror}") from error
    return folder


def _problem(target: Path) -> str | None:
    """Why nothing can be written to a place, whatever is there."""
    real = target.resolve()
    if not real.parent.is_dir():
        return f"there is no folder {target.parent}"
    if real.is_dir():
        return "it is a folder"
    if real.exists() and not real.is_file():
        return "it is no ordinary file; name another"
    if not os.access(real.parent, os.W_OK):
        return f"no permission to write to the folder {target.parent}"
    if real.exists() and not os.access(real, os.R_OK):
        return "a file that cannot be read is there; name another"
    sweep(real.parent)
    return None


def _is_own(path: Path, kind: str, page: bool) -> bool:
    """Whether a file's content is what normwise writes as this kind."""
    if kind == "weights":
        return _are_own_weights(path)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        head = file.read(_HEAD)
    if kind == "table":
        return head.startswith(_TABLE)
    if kind == "docs":
        return _DOCS in head
    if page:
        made = _GENERATOR.search(head)
        # An older normwise did not say what its pages show.
        return head.startswith("<!doctype html>") and made is not None and made[1] in (None, kind)
    first, keys = _RECORDS[kind]
    try:
        found = read_json(path)
    except ValueError:
        # Cut short, say: it begins as ours do.
        begins = f'{{\n  "{first}": "'
        return head.startswith(begins) or (path.name == f"{kind}.json" and begins.startswith(head))
    return isinstance(found, dict) and keys <= found.keys()


def _are_own_weights(path: Path) -> bool:
    with path.open("rb") as file:
        if (head := file.read(_HEAD)).startswith(b"PK"):
            with contextlib.suppress(zipfile.BadZipFile):
                return zipfile.ZipFile(path).namelist()[:1][0].startswith(_MARK)
            return False
    begin = head[8 : 8 + int.from_bytes(head[:8], "little")]
    return b'"made_by":"normwise"' in begin.replace(b'": "', b'":"')


def _me() -> str:
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another's
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

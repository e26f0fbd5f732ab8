"""Read the data of an installed R package: a ``.rdx`` index beside a ``.rdb`` of compressed, serialized objects.

Only what such files of texts and numbers hold is known: lists, character, integer and real vectors, and attributes. The
format is that of R's manual "R Internals", sections 1.8 and "Serialization Formats".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normwise.errors import DataError

_SYMBOL, _PAIRLIST, _CHARACTERS, _LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST = 1, 2, 9, 10, 13, 14, 16, 19
_REFERENCE, _NIL = 255, 254
_HAS_ATTRIBUTES, _HAS_TAG = 0x200, 0x400


def read_strings(folder: Path) -> dict[str, list[str]]:
    """Read every character vector of an R package's data.

    Args:
        folder: the package's ``data`` folder, with ``Rdata.rdx`` and ``Rdata.rdb``.

    Returns:
        Name → strings.

    Raises:
        DataError: a file is missing, damaged, or holds what this reader does not know.

    Example:
        >>> read_strings(Path("nowhere"))
        Traceback (most recent call last):
        ...
        normwise.errors.DataError: cannot read the R data in nowhere: No such file or directory
    """
    try:
        index = _Reader(gzip.decompress((folder / "Rdata.rdx").read_bytes())).read()["variables"]
        store = (folder / "Rdata.rdb").read_bytes()
        objects = {name: _Reader(_unpacked(store[at : at + size])).read() for name, (at, size) in index.items()}
    except OSError as error:
        raise DataError(f"cannot read the R data in {folder}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, EOFError, struct.error, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"the R data in {folder} is damaged or of another form: {error}") from error
    return {
        name: values
        for name, values in objects.items()
        if isinstance(values, list) and all(isinstance(value, str) for value in values)
    }


def _unpacked(record: bytes) -> bytes:
    """Four bytes tell the size; then, for what is not zlib, a letter tells the compression."""
    (size,) = struct.unpack(">i", record[:4])
    kind, body = record[4:5], record[5:]
    raw = bz2.decompress(body) if kind == b"2" else lzma.decompress(body) if kind == b"Z" else None
    raw = zlib.decompress(record[4:]) if raw is None else raw
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes where {size} were expected")
    return raw


class _Reader:
    """Reads R's binary serialization ("X"): big-endian, each object behind a word of flags that names its type."""

    def __init__(self, raw: bytes) -> None:
        if raw[:2] != b"X\n":
            raise ValueError("not R's binary serialization")
        self._raw, self._at = raw, 2
        self._seen: list[str] = []
        version, _, _ = self._numbers("i", 3)
        if version == 3:
            self._bytes(self._integer())  # the name of the encoding

    def read(self) -> Any:
        """Give the object that comes next."""
        flags = self._integer()
        kind = flags & 0xFF
        if kind == _PAIRLIST:
            return self._pairs(flags)
        if kind not in _READERS:
            raise ValueError(f"it holds an object of R's type {kind}")
        value = _READERS[kind](self, flags)
        attributes = self.read() if flags & _HAS_ATTRIBUTES and kind != _CHARACTERS else None
        names = (attributes or {}).get("names")
        return dict(zip(names, value, strict=True)) if names and kind == _LIST else value

    def _pairs(self, flags: int) -> dict[str, Any]:
        """A linked list of tagged values."""
        pairs = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & _HAS_ATTRIBUTES:
                self.read()
            tag = self.read() if flags & _HAS_TAG else ""
            pairs[tag] = self.read()
            flags = self._integer()
        return pairs

    def _characters(self, flags: int) -> str:
        size = self._integer()
        # Bit 12 of the flags marks latin1, bit 13 UTF-8; the rest is plain.
        return "" if size < 0 else self._bytes(size).decode("latin1" if flags >> 12 & 4 else "utf-8")

    def _symbol(self, flags: int) -> str:
        self._seen.append(self.read())
        return self._seen[-1]

    def _objects(self, flags: int) -> list[Any]:
        return [self.read() for _ in range(self._integer())]

    def _integers(self, flags: int) -> list[int]:
        return self._numbers("i", self._integer())

    def _reals(self, flags: int) -> list[float]:
        return self._numbers("d", self._integer())

    def _known(self, flags: int) -> str:
        return self._seen[(flags >> 8) - 1]

    def _nothing(self, flags: int) -> None:
        return None

    def _integer(self) -> int:
        return self._numbers("i", 1)[0]

    def _numbers(self, code: str, count: int) -> list[Any]:
        form = f">{count}{code}"
        return list(struct.unpack(form, self._bytes(struct.calcsize(form))))

    def _bytes(self, count: int) -> bytes:
        if self._at + count > len(self._raw):
            raise EOFError("it is cut short")
        self._at += count
        return self._raw[self._at - count : self._at]


_READERS: dict[int, Callable[[_Reader, int], Any]] = {
    _SYMBOL: _Reader._symbol,
    _CHARACTERS: _Reader._characters,
    _LOGICAL: _Reader._integers,
    _INTEGER: _Reader._integers,
    _REAL: _Reader._reals,
    _STRINGS: _Reader._objects,
    _LIST: _Reader._objects,
    _REFERENCE: _Reader._known,
    _NIL: _Reader._nothing,
}

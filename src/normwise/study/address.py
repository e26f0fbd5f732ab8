"""How users name a database, and how normwise speaks of it: without the password. Standard library only."""

from __future__ import annotations

import re

# Up to the last @ of a word: passwords that should have been percent-encoded and were not must not show either.
_IN_USER = re.compile(r"(?<=://)([^\s/?#@:]*):\S*@")
_IN_QUERY = re.compile(r"((?:password|passwd|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Take the passwords out of whatever URLs a text holds."""
    return _IN_QUERY.sub(r"\1***", _IN_USER.sub(r"\1:***@", text))


def is_url(where: object) -> bool:
    """Tell a database's URL from a path."""
    return isinstance(where, str) and re.match(r"[a-z][a-z0-9+.]*:", where, re.IGNORECASE) is not None and "/" in where

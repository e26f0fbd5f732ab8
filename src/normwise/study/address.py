"""How users name a database, and how normwise speaks of it: without the password. Standard library only."""

from __future__ import annotations

import re

# Up to the last @ of a word: passwords that should have been percent-encoded and were not must not show either.
_IN_USER = re.compile(r"(?<=://)([^\s/?#@:]*):\S*@")
_IN_QUERY = re.compile(r"((?:password|passwd|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Take the passwords out of whatever URLs a text holds.

    Args:
        text: an error's, a command line's, a URL.

    Returns:
        The text with ``***`` in the place of each password.

    Example:
        >>> redact("cannot reach postgresql://ann:s3cr@t@db.example/studies?password=x")
        'cannot reach postgresql://ann:***@db.example/studies?password=***'
    """
    return _IN_QUERY.sub(r"\1***", _IN_USER.sub(r"\1:***@", text))


def is_url(where: object) -> bool:
    """Tell a database's URL from a path.

    Args:
        where: what the user gave.

    Returns:
        Whether it is a URL.

    Example:
        >>> is_url("postgresql://db.example/studies"), is_url("results/study.db")
        (True, False)
    """
    return isinstance(where, str) and re.match(r"[a-z][a-z0-9+.]*:", where, re.IGNORECASE) is not None and "/" in where

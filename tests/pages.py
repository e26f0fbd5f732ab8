"""Parts of the docs that are drawn from stored results stand between two comments: ``name:start`` and ``name:end``."""

from __future__ import annotations


def redrawn(text: str, **parts: str) -> str:
    """A page with what belongs between the comments of each name."""
    for name, part in parts.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, _, rest = text.partition(start)
        text = before + start + part + end + rest.partition(end)[2]
    return text

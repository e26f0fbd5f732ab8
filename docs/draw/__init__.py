"""Draws the parts of the docs that come from code or stored results: ``python docs/draw``, or ``make pages``.

Such a part stands in its page between two comments, ``name:start`` and ``name:end``. Each module of this package has
the parts of one page; ``tests/docs`` holds the pages to them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The pages, by the module that has their parts.
PAGES = {
    "advice": ROOT / "docs" / "advice.md",
    "compare": ROOT / "docs" / "compare.md",
    "diagnose": ROOT / "docs" / "diagnose.md",
    "layers": ROOT / "docs" / "layers.md",
    "methods": ROOT / "docs" / "methods.md",
    "racing": ROOT / "docs" / "racing.md",
    "readme": ROOT / "README.md",
    "scaling": ROOT / "docs" / "scaling.md",
    "transformers": ROOT / "docs" / "transformers.md",
    "which_norm": ROOT / "docs" / "start" / "which-norm.md",
}


def redrawn(text: str, **parts: str) -> str:
    """A page with what belongs between the comments of each name."""
    for name, part in parts.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, _, rest = text.partition(start)
        text = before + start + part + end + rest.partition(end)[2]
    return text


def drawn(page: str) -> str:
    """A page as it should be."""
    parts = importlib.import_module(f"draw.{page}").parts()
    return redrawn(PAGES[page].read_text(encoding="utf-8"), **parts)

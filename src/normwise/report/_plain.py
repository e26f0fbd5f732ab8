"""What a terminal would show, as text."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def plain(drawn: RenderableType, width: int) -> str:
    """Draw without colours, at least 80 columns wide; lines end where their text does."""
    stream = io.StringIO()
    console = Console(file=stream, width=max(width, 80), color_system=None, force_terminal=False, legacy_windows=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"

"""What the terminal drawings of all records share: texts, tables, and the same without colours for files."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normwise.report._formats import printable


def plain(drawn: RenderableType, width: int) -> str:
    """Draw without colours, at least 80 columns wide; lines end where their text does."""
    stream = io.StringIO()
    console = Console(file=stream, width=max(width, 80), color_system=None, force_terminal=False, legacy_windows=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def said(words: str, style: str = "") -> Text:
    """Give text from the user: no markup is read in it and no control character gets through."""
    return Text(printable(words), style=style)


def told(kind: str, words: str) -> Text:
    """Give a remark and what it is: "Caution: ...", "Note: ..."."""
    return Text.assemble((f"{kind}: ", "yellow")).append_text(said(words))


def indented(drawn: RenderableType, above: int = 0) -> Padding:
    """Set two columns in."""
    return Padding(drawn, (above, 0, 0, 2))


def table(words: Sequence[str], numbers: Sequence[str], more: Sequence[str] = ()) -> Table:
    """Start a table: columns of words, of numbers, which stand to the right, and of words again."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for titles, side in ((words, "left"), (numbers, "right"), (more, "left")):
        for title in titles:
            drawn.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    return drawn

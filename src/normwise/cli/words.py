"""What several commands share: lists of words and numbers, the running page, and what was typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from normwise.cli.study import read
from normwise.errors import InputError
from normwise.files import write_own
from normwise.study.address import redact

if TYPE_CHECKING:
    from rich.console import RenderableType

    from normwise.results import Result

Precision = Literal["32", "bf16", "16"]
Number = TypeVar("Number", int, float)


def numbers(given: Sequence[str], option: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers of an option, which may be given again and may hold several, separated by commas."""
    try:
        return [kind(word) for text in given for word in text.split(",") if word.strip()]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} must be {what} separated by commas, got {','.join(given)!r}") from None


def seeds(given: Sequence[str]) -> int | list[int]:
    """``3`` is a count, ``1,2,3`` and ``3,`` are seeds."""
    found = numbers(given, "--seeds", int)
    return found[0] if len(found) == 1 and not given[0].strip().endswith(",") else found


@contextmanager
def live(where: str | Path, study: str | None, port: int | None) -> Iterator[None]:
    """Serve a study's page while the body runs, if a port was given."""
    if port is None:
        yield
        return
    from normwise.report import live as pages
    from normwise.study.progress import ahead

    with pages.serving(lambda: read(str(where), study), port, ahead=ahead) as address:
        print(f"live report at {address}", file=sys.stderr, flush=True)
        yield


def show(shown: RenderableType) -> None:
    """Print a table."""
    from rich.console import Console

    Console().print(shown)


def give(result: Result, table: Callable[[Any], RenderableType], out: Path | None, as_json: bool) -> None:
    """Print a result as its table or as JSON, and write it to the file that was asked for."""
    if as_json:
        print(result.to_json(), end="")
    else:
        show(table(result))
    if out is not None:
        page, kind = is_page(out), result._kind
        write_own(out, result.to_html() if page else result.to_json(), kind, page)
        print(f"\n{kind}  {out}", file=sys.stderr)


def is_page(out: Path | None) -> bool:
    """Whether a file is to be a page, by its name."""
    return out is not None and out.suffix in (".html", ".htm")


def typed() -> str:
    """The command that continues this run: what was typed, without --fresh and without passwords."""
    return shlex.join(["normwise", *(redact(a) for a in sys.argv[1:] if a != "--fresh")])

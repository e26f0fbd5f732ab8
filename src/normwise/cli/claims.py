"""``normwise claims list | run | report | docs``. torch is imported when a command runs, not for its help."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from normwise.cli.words import show
from normwise.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

    from normwise.outcomes import Claims

_OUT = "normwise-claims"
_STORED = "claims.json"

app = App(name="claims", help="Put to the test what the literature says about normalization.")


@app.command(name="list")
def list_claims(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """List the claims: number, name, and what is said.

    Args:
        as_json: Print them as JSON, with source and hypotheses.
    """
    claims = _claims().CLAIMS.values()
    if as_json:
        rows = [
            {
                "number": claim.number,
                "name": claim.name,
                "title": claim.title,
                "claim": claim.claim,
                "source": claim.source,
                "hypotheses": [part.statement for part in claim.parts if part.decides],
                "experiments": [experiment.name for experiment in claim.experiments],
            }
            for claim in claims
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max(len(claim.name) for claim in claims)
    for claim in claims:
        print(f"{claim.number:>2}  {claim.name:<{width}}  {claim.title}")


@app.command
def run(
    *names: str,
    quick: bool = False,
    out: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    precision: Literal["32", "bf16", "16"] = "32",
) -> None:
    """Put claims to the test, print the verdicts, and write claims.json and claims.html.

    A run that was stopped, even killed, goes on at the trial where it was when the same command is given again. Claims
    that share an experiment run it once. Seeds are added in stages, up to 20, while a hypothesis is undecided.

    A first look, in minutes: normwise claims run all --quick

    One claim: normwise claims run small-batches

    Args:
        names: Which, see 'normwise claims list', or all.
        quick: Short training and few seeds: shows what you get, decides little.
        out: Folder for the results. Default: normwise-claims, or normwise-claims-quick.
        fresh: Run again what the folder already holds.
        workers: Processes that share the work. Default: one per core, at most 4; on accelerators one for each.
        minutes: Begin no trial after so many; the same command goes on. Default: no limit.
        device: What to train on: auto, cpu, cuda, cuda:1, mps, xpu or whatever torch has. auto takes the accelerator
            that torch reports, else the CPU. A folder keeps to one kind of device and to one precision.
        precision: 32, or bf16 or 16 by torch's autocast.

    Raises:
        InputError: no claim is named.
    """
    if not names:
        raise InputError("name a claim, or all; 'normwise claims list' shows them")
    folder = out if out is not None else Path(_OUT + "-quick" * quick)
    claims = _claims()
    from normwise import devices

    chosen = [claim.name for claim in claims.library.claims_named(names)]
    record = claims.run(
        chosen,
        quick=quick,
        out=folder,
        fresh=fresh,
        workers=devices.workers(device) if workers is None else workers,
        minutes=minutes,
        device=device,
        precision=precision,
        command=shlex.join(["normwise", *(a for a in sys.argv[1:] if a != "--fresh")]),
    )
    _show(record, chosen)
    print(f"\nclaims  {folder / _STORED}\npage    {folder / 'claims.html'}")


@app.command
def report(claims: Path, /, *, out: Path | None = None) -> None:
    """Draw stored claims again: the table here, the page as claims.html. Needs no torch.

    Args:
        claims: A claims.json, or the folder that holds one.
        out: The file to write. Default: claims.html beside it.
    """
    from normwise import report as drawing
    from normwise.files import write_own

    source, record = _stored(claims)
    page = out if out is not None else source.with_name("claims.html")
    write_own(page, drawing.claims_html(record), "claims", page=True)
    _show(record)
    print(f"\npage    {page}")


@app.command
def docs(claims: Path = Path("results", _STORED), /, *, out: Path = Path("docs", "claims.md")) -> None:
    """Write stored claims as a page of the docs, in Markdown. Needs no torch.

    Args:
        claims: A claims.json, or the folder that holds one.
        out: The file to write.
    """
    from normwise import report as drawing
    from normwise.files import write_own

    write_own(out, drawing.claims_markdown(_stored(claims)[1]), "docs")
    print(f"page    {out}")


def _claims() -> ModuleType:
    try:
        from normwise import claims
        from normwise.claims import library  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normwise"):
            raise
        raise MissingDependencyError(f"claims need {error.name}: pip install 'normwise[compare]'") from error
    return claims


def _stored(path: Path) -> tuple[Path, Claims]:
    from normwise.outcomes import load_claims

    source = path / _STORED if path.is_dir() else path
    return source, load_claims(source)


def _show(record: Claims, names: list[str] | None = None) -> None:
    import dataclasses

    from normwise import report as drawing

    shown = [o for o in record.outcomes if names is None or o.name in names]
    show(drawing.claims_table(dataclasses.replace(record, outcomes=shown)))

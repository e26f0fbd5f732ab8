"""Claims as a page of the docs."""

from __future__ import annotations

from normwise.outcomes import Answer, Claims, Figure, Outcome
from normwise.records import Settings
from normwise.report import _claims_view as view

_INTRO = """# What the textbooks say, measured

Claims about normalization that are often repeated, each as a small experiment on real data: hypotheses stated
beforehand, runs paired by seed, and a verdict computed from a 95 % interval, never written by hand. A hypothesis holds
where the whole interval meets it, fails where none of it does, and is undecided between; a claim holds if all its
hypotheses do. A small network on small data can refute a general claim, but not prove it.
"""


def render(claims: Claims) -> str:
    """Write the page; see :func:`normwise.report.claims_markdown`."""
    rows = [
        f"| {o.number} | [{_cell(o.title)}](#{_anchor(o)}) | {_verdict(o.verdict)} | {view.summary(o)} |"
        for o in claims.outcomes
    ]
    made = (
        f"`{claims.command}` made this, {claims.created[:10]}; `normwise claims docs` writes this page from "
        "`results/claims.json`."
    )
    overview = ["| | claim | verdict | |", "|---|---|---|---|", *rows]
    return "\n".join([_INTRO, made, "", *overview, "", *(line for o in claims.outcomes for line in _claim(o))])


def _claim(o: Outcome) -> list[str]:
    return [
        f"## {o.number}. {o.title}",
        "",
        f"> {o.claim}",
        "",
        f"Source: {o.source}. **{o.verdict.capitalize()}**: {view.summary(o)}." + (" A quick run." if o.quick else ""),
        "",
        "| hypothesis | measured (95 % interval) | holds if | published | verdict |",
        "|---|---|---|---|---|",
        *(_answer(a) for a in o.answers),
        "",
        o.how,
        "",
        *(f"{note}\n" for note in o.notes),
        *(line for figure in o.figures for line in _figure(figure)),
        *(_settings(name, s) for name, s in o.experiments.items()),
        "",
    ]


def _answer(a: Answer) -> str:
    number, bounds = view.estimate(a)
    statement = a.statement if a.decides else f"*besides:* {a.statement}"
    measured = f"{number} ({bounds})" if bounds else f"{number} {a.note}".strip()
    return f"| {' | '.join(map(_cell, (statement, measured, view.expected(a), a.published, _verdict(a.verdict))))} |"


def _figure(figure: Figure) -> list[str]:
    """A figure's means as a table: a row per series, or one row of names where each has one number."""
    title = f"{figure.title}{', ' + figure.y_name if figure.y_name else ''}:"
    if view.is_bars(figure):
        head, rows = (
            [s.name for s in figure.series],
            [[view.short(s.y[0].value * figure.factor) for s in figure.series]],
        )
    else:
        xs = sorted({x for s in figure.series for x in s.x})
        head = [figure.x_name, *(figure.ticks[int(x)] if figure.ticks else f"{x:g}" for x in xs)]
        rows = [[s.name, *_at(xs, s.x, [y.value * figure.factor for y in s.y])] for s in figure.series]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *rows)]
    return [title, "", *lines, ""]


def _at(xs: list[float], own: list[float], values: list[float]) -> list[str]:
    found = dict(zip(own, values, strict=True))
    return [view.short(found[x]) if x in found else "" for x in xs]


def _settings(name: str, s: Settings) -> str:
    sizes = ", ".join(map(str, s.batch_sizes))
    tuned = "" if s.tune_seeds else ", not tuned"
    return (
        f"- `{name}`: {s.model}; {s.splits['train']:,} training samples; methods {', '.join(s.methods)}; batch size "
        f"{sizes}; {len(s.seeds)} seeds; {s.optimizer}; learning rates "
        f"{', '.join(f'{lr:g}' for lr in s.lrs[str(s.batch_sizes[-1])])} at batch size {s.batch_sizes[-1]}{tuned}"
    )


def _verdict(verdict: str) -> str:
    return f"{view.mark(verdict)} {verdict}"


def _anchor(o: Outcome) -> str:
    words = "".join(c for c in f"{o.number}. {o.title}".lower() if c.isalnum() or c in " -")
    return words.replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

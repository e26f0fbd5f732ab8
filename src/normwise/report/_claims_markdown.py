"""Claims as a page of the docs."""

from __future__ import annotations

from normwise.outcomes import Answer, Claims, Figure, Outcome
from normwise.records import Settings
from normwise.report import _claims_view as view

_INTRO = """# What the textbooks say, measured

Claims about normalization that are often repeated, each as a small experiment on real data: hypotheses stated
beforehand, runs paired by seed, and a verdict computed from an interval, never written by hand. A hypothesis holds
where the whole interval meets it, does not where none of it does, and is undecided between. A claim holds if all its
hypotheses do, and in part if some do and others do not. A small network on small data can refute a general claim, but
not prove it.

Seeds are added in stages while a hypothesis is undecided, at most 20 of them. Each look at the runs spends a share of
the 5 % of error in proportion to the seeds that it adds, so that the intervals hold at 95 % over all looks. Every
method has its own learning rate, chosen on three seeds apart, whose search goes on until the best lies inside of what
was tried. That one rate is kept for all seeds: the intervals do not count what another choice would have brought.
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
        f"Source: {o.source}. **{o.verdict.capitalize()}.** {view.summary(o)}." + (" A quick run." if o.quick else ""),
        "",
        "| hypothesis | measured (interval) | seeds | holds if | published | verdict |",
        "|---|---|---|---|---|---|",
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
    measured = f"{number} ({bounds})" if bounds else number
    verdict = f"{_verdict(a.verdict)}: {a.note}" if a.note else _verdict(a.verdict)
    row = (statement, measured, str(len(a.values) or ""), view.expected(a), a.published, verdict)
    return f"| {' | '.join(map(_cell, row))} |"


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
    largest = max(s.batch_sizes)
    sizes, rates = ", ".join(map(str, s.batch_sizes)), ", ".join(f"{lr:g}" for lr in s.lrs[str(largest)])
    tuned = f", and up to {s.search} beyond either end" if s.search else "" if s.tune_seeds else ", not tuned"
    return (
        f"- `{name}`: {s.model}; {s.splits['train']:,} training samples; methods {', '.join(s.methods)}; batch size "
        f"{sizes}; {s.epochs[str(largest)]:.3g} passes at {largest}; {s.optimizer}; learning rates {rates} at batch "
        f"size {largest}{tuned}"
    )


def _verdict(verdict: str) -> str:
    return f"{view.mark(verdict)} {verdict}"


def _anchor(o: Outcome) -> str:
    words = "".join(c for c in f"{o.number}. {o.title}".lower() if c.isalnum() or c in " -")
    return words.replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

"""docs/start/which-norm.md: which method did best where, in the outcomes and studies that are stored."""

from __future__ import annotations

import re
from collections import Counter

from draw import ROOT
from draw.advice import record
from draw.compare import TASKS
from normwise.advice import VETOES
from normwise.outcomes import load_claims
from normwise.records import UNDECIDED, load_study
from normwise.report._claims_view import MARKS

# Upper ends of the ranges of batch sizes, and how they are called.
SIZES = {4: "1 to 4", 16: "5 to 16", 1000: "more than 16"}


def networks() -> str:
    """The least regret first, by kind of data and network."""
    lines = [
        "| data, network | tasks | least behind the best | next | most behind |",
        "|---|---|---|---|---|",
    ]
    for family, told in record()["families"].items():
        regrets = {k.removeprefix("always "): v for k, v in told.items() if k.startswith("always ")}
        first, second, *_, last = (f"{name} ({regrets[name]:.1f})" for name in sorted(regrets, key=regrets.__getitem__))
        lines.append(f"| {family} | {told['tasks']} | **{first.replace(' (', '** (')} | {second} | {last} |")
    return "\n".join(lines) + "\n"


def sizes() -> str:
    """How often each method was the best of a task."""
    best: dict[str, Counter[str]] = {name: Counter() for name in SIZES.values()}
    for row in record()["rows"]:
        size = re.search(r"\d+$", row["task"])
        if size:
            best[next(name for top, name in SIZES.items() if int(size[0]) <= top)][row["best"]] += 1
    methods = sorted({method for counts in best.values() for method in counts}, key=lambda m: (-best["1 to 4"][m], m))
    lines = [f"| batch size | tasks | {' | '.join(methods)} |", f"|---|---|{'---|' * len(methods)}"]
    for name, counts in best.items():
        shares = (f"{counts[method] / counts.total():.0%}" for method in methods)
        lines.append(f"| {name} | {counts.total()} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def studies() -> str:
    lines = ["| study | batch size | use | cannot be told from it |", "|---|---|---|---|"]
    for task in TASKS:
        for verdict in load_study(ROOT / "results" / f"compare-{task}.json").verdicts:
            use = "not decided" if verdict.outcome in UNDECIDED else f"**{verdict.use}**"
            tied = ", ".join(method for method in verdict.tied if method != verdict.use)
            lines.append(f"| {task} | {verdict.batch_size} | {use} | {tied or '–'} |")
    return "\n".join(lines) + "\n"


def claims() -> str:
    lines = ["| what is said | measured |", "|---|---|"]
    for outcome in load_claims(ROOT / "results" / "claims.json").outcomes:
        lines.append(f"| {outcome.title} | {MARKS.get(outcome.verdict, '?')} {outcome.verdict} |")
    return "\n".join(lines) + "\n"


def refusals() -> str:
    return "".join(f"- **{veto.method}**: {veto.text}.\n" for veto in VETOES)


def parts() -> dict[str, str]:
    return {
        "networks": networks(),
        "sizes": sizes(),
        "studies": studies(),
        "claims": claims(),
        "refusals": refusals(),
    }

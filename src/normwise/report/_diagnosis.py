"""A diagnosis for people: what its tables say, in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normwise.findings import SEVERITIES, Diagnosis, Finding, NormTrace, WeightTrace, gravest_first
from normwise.records import to_dict
from normwise.report import _formats as formats
from normwise.report._terminal import indented, said, table

# Of findings that are alike so many are shown in full at once.
SHOWN = 3
STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
NORM_COLUMNS = (
    ("layer", "its name in the model"),
    ("method", "and its class"),
    ("values", "behind each statistic, on one device"),
    ("scatter", "how far batch means scatter, in standard deviations: the noise that a small batch brings"),
    ("mean off", "how far running means are from batch means, in standard deviations: 0 is best"),
    ("var ×", "typical factor between batch and running variances: 1 is best"),
    ("gain", "what evaluation gains by batch statistics in this layer alone: points of accuracy, or loss"),
    ("max |w|", "the largest size of its weights"),
)
WEIGHT_COLUMNS = (
    ("layer", "its name in the model"),
    ("type", "its class"),
    ("gradient", "norm of the loss's gradient at its output"),
    ("dead", "how many of its input channels were 0 for every input"),
    ("cosine", "of the angle between its gradient before and after one step of the layers before it: 1 is unchanged"),
    ("change", "how much that step changes its gradient, as a share of the gradient's length"),
    ("mean moved", "how far one step of all layers moves the mean of its output, in standard deviations"),
)


def headline(seen: Diagnosis) -> str:
    """One sentence on how it stands."""
    counts = [(sum(f.severity == s for f in seen.findings), s) for s in reversed(SEVERITIES)]
    said = [f"{n} {severity}{'s' if n != 1 else ''}" for n, severity in counts if n]
    return ", ".join(said) if said else "nothing found"


def circumstances(seen: Diagnosis) -> list[tuple[str, str]]:
    """What was looked at, as pairs of title and value."""
    run, gap = seen.run, seen.gap
    facts = [
        ("Architecture", seen.facts.architecture),
        ("Normalization layers", str(len(seen.norms))),
        ("Batch size", str(seen.facts.batch_size)),
        ("Passes measured", f"{run.sampled} of {run.passes}"),
    ]
    if run.micro_batches > 1.5:
        facts.append(("Micro-batches a step", f"{run.micro_batches:.3g}"))
    if run.optimizer:
        facts.append(("Optimizer", f"{run.optimizer}, lr {run.lr:g}"))
    if gap is not None and gap.running is not None and gap.batch is not None:
        number = formats.share if gap.score == "accuracy" else formats.significant
        facts.append((f"{gap.score} by running / batch statistics", f"{number(gap.running)} / {number(gap.batch)}"))
    return facts


def kinds(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings, the gravest first, those of one code and severity together."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in gravest_first(findings):
        alike.setdefault((finding.severity, finding.code), []).append(finding)
    return list(alike.values())


def norm_row(norm: NormTrace, seen: Diagnosis) -> list[str]:
    """The cells of ``NORM_COLUMNS``."""
    accuracy = seen.gap is not None and seen.gap.score == "accuracy"
    gain = norm.gain if norm.gain is None or not accuracy else 100 * norm.gain
    return [
        ", ".join(norm.layer.names) or "the model",
        f"{norm.layer.method}, {norm.layer.type}",
        formats.MISSING if norm.elements is None else f"{norm.elements:,}",
        _number(norm.scatter),
        _number(norm.mean_gap),
        _number(norm.var_factor),
        _number(gain),
        _number(norm.weight_max),
    ]


def weight_row(weight: WeightTrace) -> list[str]:
    """The cells of ``WEIGHT_COLUMNS``."""
    return [
        ", ".join(weight.layer.names) or "the model",
        weight.layer.type,
        formats.MISSING if weight.gradient is None else f"{weight.gradient:.2e}",
        f"{weight.dead} of {weight.inputs}" if weight.inputs else formats.MISSING,
        _number(weight.cosine),
        _number(weight.change),
        _number(weight.moved_mean),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return formats.MISSING
    return "0" if abs(value) < 5e-4 else f"{value:.3g}".replace("-", "−")


def html(seen: Diagnosis) -> str:
    """Draw the page; see :func:`normwise.report.diagnosis_html`."""
    from normwise.report import _charts
    from normwise.report import _frame as frame

    return frame.render(
        "diagnosis",
        {"diagnosis": to_dict(seen)},
        seen.versions,
        [],
        seen=seen,
        headline=headline(seen),
        kinds=kinds(seen.findings),
        shown=SHOWN,
        circumstances=circumstances(seen),
        norm_columns=NORM_COLUMNS,
        norm_rows=[norm_row(norm, seen) for norm in seen.norms],
        weight_columns=WEIGHT_COLUMNS,
        weight_rows=[weight_row(weight) for weight in seen.weights],
        charts=_charts.charts_of(seen),
    )


def render(seen: Diagnosis) -> RenderableType:
    """Draw for the terminal; see :func:`normwise.report.diagnosis_table`."""
    circumstance = "; ".join(f"{title.lower()} {value}" for title, value in circumstances(seen))
    parts: list[RenderableType] = [
        Text.assemble((formats.printable(seen.facts.model), "bold"), f": {headline(seen)}"),
        said(circumstance, "dim"),
        *(_kind(alike) for alike in kinds(seen.findings)),
    ]
    if seen.norms:
        parts += [_table(NORM_COLUMNS, [norm_row(norm, seen) for norm in seen.norms]), _legend(NORM_COLUMNS)]
    measured = [w for w in seen.weights if w.gradient is not None or w.moved_mean is not None]
    if measured:
        parts += [_table(WEIGHT_COLUMNS, [weight_row(weight) for weight in measured]), _legend(WEIGHT_COLUMNS)]
    return Group(*parts)


def _kind(alike: list[Finding]) -> RenderableType:
    first = alike[0]
    lines: list[RenderableType] = [
        Text.assemble((first.severity, STYLES[first.severity]), f"  {first.code}"),
        Text(f"  {first.effect}", style="italic"),
    ]
    for finding in alike[:SHOWN]:
        what = Text.assemble(
            (formats.printable(finding.layer or "the model"), "bold"), ": ", formats.printable(finding.message)
        )
        mending = [(finding.price, "dim"), (finding.fix, "green"), (finding.command, "green")]
        lines.append(indented(Group(what, *(indented(said(text, style)) for text, style in mending if text))))
    if len(alike) > SHOWN:
        names = ", ".join(finding.layer for finding in alike[SHOWN:])
        lines.append(said(f"  and {len(alike) - SHOWN} more: {names}"))
    return Padding(Group(*lines), (1, 0, 0, 0))


def _legend(columns: Sequence[tuple[str, str]]) -> RenderableType:
    """What the columns mean, those beyond name and class."""
    lines = [Text.assemble((f"  {title}", "bold"), f": {meaning}") for title, meaning in columns[2:]]
    return Group(*lines, Text(f"  {formats.MISSING}: not measured, or it does not apply"))


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> Table:
    titles = [title for title, _ in columns]
    drawn = table(titles[:2], titles[2:])
    for row in rows:
        drawn.add_row(*map(said, row))
    return drawn

"""What the site adds to Sphinx: the names of a public module, the stored studies, links to files that it includes."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective

from draw.compare import TASKS
from normwise import report
from normwise.outcomes import load_claims
from normwise.records import Study, load_study
from normwise.results import Tabular

ROOT = Path(__file__).parents[1]
# The modules that have a page, those nearer to the root first.
MODULES = sorted((page.stem for page in (ROOT / "docs" / "api").glob("normwise*.md")), key=lambda m: m.count("."))
# Looked at without the packages of others, so that the site is the same wherever it is built.
MOCKED = ["lightning", "pytorch_lightning", "timm", "torchvision", "transformers"]
# Where the files of the repository that pages link to stand on the site.
INCLUDED = {
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "benchmarks/README": "benchmarks",
    "results/bench": "bench-results",
}
# What the public constants are, which have no docstrings.
CONSTANTS = {
    "ACTIVATIONS": "The activations that can be fused into a normalization.",
    "CLAIMS": "The claims that were put to the test, by name: :doc:`/claims`.",
    "DATASETS": "The data sets with a name that ``compare`` knows.",
    "METHODS": "Every method there is, by name, with its default options.",
    "DECIDED": "The outcomes of a batch size at which a method is advised.",
    "MakeModel": "What builds a model: it is called with the layers' factory.",
    "PARTS": "What can be normalized: the mean and the variance, or one of them.",
    "POOLS": "How the cells of each pool are put together, by the pool's name.",
    "RULES": "What papers say speaks for or against a method, and where it applies: :doc:`/advice`.",
    "SEVERITIES": "How grave a finding is, the mildest first.",
    "STUDY_VERSION": "The version of the form in which studies are stored.",
    "TASKS": "What a model can be for, where its structure does not tell.",
    "UNDECIDED": "The outcomes of a batch size at which the runs decide nothing.",
    "VETOES": "Where a method is refused, because its statistics would rest on too little.",
    "VARIANCES": "How a switchable mix takes its variances: by the paper's formula, or by the official code's.",
    "__version__": "The version of normwise.",
}
# Names in annotations that several modules have, by the module whose page they stand on.
MEANT = {("normwise.report", "Study"): "normwise.records.Study", ("normwise", "Part"): "normwise.study.Part"}


def public_names(module: ModuleType) -> list[str]:
    """What a module lists, or else what it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    own = {n: t for n, t in vars(module).items() if n[0] != "_" and getattr(t, "__module__", "") == module.__name__}
    return [name for name, thing in own.items() if inspect.isclass(thing) or inspect.isroutine(thing)]


@cache
def offered(module: str) -> dict[str, object]:
    found = importlib.import_module(module)
    return {name: getattr(found, name) for name in public_names(found)}


def home(name: str, thing: object) -> str:
    """The module on whose page a thing is described: of those that offer it the one nearest to the root."""
    return next(module for module in MODULES if offered(module).get(name) is thing)


def described(module: str, name: str, thing: object) -> list[str]:
    """The lines of reStructuredText that describe a name of a module."""
    full = f"{module}.{name}"
    if inspect.ismodule(thing):
        return [f"- :py:mod:`{full}`"] if full in MODULES else [f".. automodule:: {full}", "   :no-members:"]
    where = home(name, thing)
    kind = "class" if inspect.isclass(thing) else "function" if inspect.isroutine(thing) else "data"
    if where != module:
        return [f".. py:{kind}:: {name}", f"   :module: {module}", "", f"   The same as :py:obj:`{where}.{name}`."]
    if kind == "data":
        return [f".. py:data:: {name}", f"   :module: {module}", "", f"   {CONSTANTS.get(name, '')}"]
    # What results can do stands in a class of their own, which has no page.
    shared = ["   :inherited-members:"] if kind == "class" and issubclass(thing, Tabular) else []
    kind = "exception" if kind == "class" and issubclass(thing, Warning | Exception) else kind
    return [f".. auto{kind}:: {full}", *shared]


class PublicNames(SphinxDirective):
    """``.. public-names:: normwise.nn``: a module's description and that of each of its names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (module,) = self.arguments
        lines = [f".. automodule:: {module}", "   :no-members:", ""]
        with mock(MOCKED):
            for name, thing in sorted(offered(module).items(), key=lambda item: inspect.ismodule(item[1])):
                lines += [*described(module, name, thing), ""]
        return self.parse_text_to_nodes(StringList(lines, source=f"the names of {module}"))


class StoredStudies(SphinxDirective):
    """``.. stored-studies::``: what each of the stored studies found, with a link to its report."""

    def run(self) -> list[nodes.Node]:
        return [card(load_study(stored(task)), f"studies/{task}.html") for task in TASKS]


def stored(task: str) -> Path:
    return ROOT / "results" / f"compare-{task}.json"


def card(study: Study, page: str) -> nodes.container:
    """A study in short."""
    settings = study.settings
    methods, seeds, sizes = len(settings.methods), len(settings.seeds), " and ".join(map(str, settings.batch_sizes))
    facts = f"{methods} methods at batch size {sizes}, {seeds} seeds, {len(study.trials)} trials"
    found = nodes.bullet_list()
    for verdict in study.verdicts:
        found += nodes.list_item("", nodes.paragraph(text=verdict.headline))
    link = nodes.reference(text=study.title, refuri=page, internal=False)
    return nodes.container(
        "",
        nodes.paragraph("", "", nodes.strong("", "", link)),
        nodes.paragraph(text=facts),
        found,
        nodes.literal_block(text=study.command),
        classes=["study"],
    )


def draw_reports(app: Sphinx, error: Exception | None) -> None:
    """Put the reports of the stored studies and of the claims beside the pages."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "studies"
        folder.mkdir(exist_ok=True)
        for task in TASKS:
            (folder / f"{task}.html").write_text(report.html(load_study(stored(task))), encoding="utf-8")
        claims = load_claims(ROOT / "results" / "claims.json")
        (folder / "claims.html").write_text(report.claims_html(claims), encoding="utf-8")


def point(app: Sphinx, document: nodes.document) -> None:
    """Point links to files that are shown on the site at their pages, and ambiguous names at what is meant.

    The dash behind an argument's name is drawn here, as dashes are not made of hyphens elsewhere.
    """
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))
    for link in document.findall(pending_xref):
        target = str(link["reftarget"])
        if link["refdomain"] == "doc":
            link["reftarget"] = INCLUDED.get(target.removeprefix(f"{ROOT}/"), target)
        link["reftarget"] = MEANT.get((link.get("py:module", ""), target), link["reftarget"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.config.autodoc_mock_imports = MOCKED
    app.add_directive("public-names", PublicNames)
    app.add_directive("stored-studies", StoredStudies)
    app.connect("doctree-read", point)
    app.connect("build-finished", draw_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

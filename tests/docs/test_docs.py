"""The pages' code runs: each page's blocks in order, in one namespace, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What the site runs itself are blocks of another kind.
WRITTEN = [DOCS.parent / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
PAGES = [page for page in WRITTEN if BLOCK.search(page.read_text(encoding="utf-8"))]


def name(page: Path) -> str:
    return str(page.relative_to(DOCS.parent))


def test_pages_with_code_are_found() -> None:
    assert {"add-a-method.md", "sequences.md", "many-processes.md"} <= {page.name for page in PAGES}


@pytest.mark.filterwarnings("ignore:.*(LeafSpec|does not have many workers)")  # of Lightning
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_on_pages_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"

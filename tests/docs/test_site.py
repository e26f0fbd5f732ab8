"""The documentation site is built without a warning, holds every public name, and works in a browser."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_nb", "pydata_sphinx_theme"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'normwise[docs]'")
    built = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", DOCS, built]
    # Notebooks that do not run do not know their language.
    off = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    command += [] if "LONG" in os.environ else off
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


@pytest.mark.long
def test_notebooks_ran_in_a_kernel(site: Path) -> None:
    """Their cells show results as notebooks do: a bar while a study runs, its report, plotly's figures."""
    shown = {page.stem: page.read_text(encoding="utf-8") for page in (site / "notebooks").glob("*.html")}
    assert re.search(r"<progress value=.(\d+). max=.\1.></progress> \1 of \1 trials done", shown["compare"])
    assert "<iframe srcdoc=" in shown["compare"]
    assert "['scatter']" in re.sub(r"<[^>]*>", "", shown["compare"])


class Page(HTMLParser):
    """What a page can be linked at, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.anchors.add(value)
            elif value and (tag, name) in {("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")}:
                self.links.append(value)


def test_no_link_is_broken(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if not {"studies", "_static"} & {*path.parts}}
    assert len(pages) > 40
    for path, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            there = (path.parent / unquote(target.path)).resolve() if target.path else path
            where = f"{path.relative_to(site)} links to {link}"
            assert there.exists(), f"{where}, which is not there"
            if target.fragment and there in pages:
                assert unquote(target.fragment) in pages[there].anchors, f"{where}: the page has no such place"


def listed() -> Iterator[tuple[str, list[str]]]:
    """Each public module with an ``__all__``, and what that lists; read, as some want packages that are not there."""
    source = DOCS.parent / "src"
    for path in (source / "normwise").rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if any(part.startswith("_") for part in parts):
            continue
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__":
                yield ".".join(parts), ast.literal_eval(line.value)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    inventory = pytest.importorskip("sphinx.util.inventory").InventoryFile.loads(
        (site / "objects.inv").read_bytes(), uri=""
    )
    there = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    for module, names in listed():
        assert module in there, f"{module} has an __all__ and no page: make docs/api/{module}.md like those beside it"
        missing = [name for name in names if f"{module}.{name}" not in there]
        assert not missing, f"docs/api/{module}.md does not describe {missing}"
    for result in ("study.Study", "findings.Diagnosis", "advice.Advice", "surgery.Conversion", "surgery.Inspection"):
        assert {f"normwise.{result}.{name}" for name in ("plot", "to_frame", "to_html", "save", "load")} <= there


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_site_is_searched_and_read(browser, address: str, width: int) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/search.html?q=calibrate")
    page.wait_for_selector("#search-results li a")
    assert any("calibrate" in text for text in page.locator("#search-results li a").all_inner_texts())
    page.locator("#search-results li a").first.click()
    page.wait_for_selector("h1")
    for name in ("index", "start/tutorial", "start/which-norm", "api/normwise", "claims"):
        page.goto(f"{address}/{name}.html")
        widest = page.evaluate("document.documentElement.scrollWidth")
        assert widest <= width, f"{name} is {widest} px wide on a screen of {width}"
    assert not errors
    page.close()

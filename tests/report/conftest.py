"""Pages in a real browser, for every kind of report."""

import pytest


@pytest.fixture
def open_page(browser, tmp_path):
    """Open the text of a page; when the test ends, no error was logged and nothing but the file was asked for."""
    contexts, troubles, requests = [], [], []

    def opened(text, width=1280, scheme="light"):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        contexts[-1].on(
            "request", lambda r: requests.append(r.url) if r.url.partition("?")[0] != path.as_uri() else None
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(300_000)
        page.on("console", lambda m: troubles.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda e: troubles.append(str(e)))
        page.on("dialog", lambda d: troubles.append(d.message))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=300_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
    assert requests == []

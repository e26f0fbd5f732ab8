"""The claims' page in a real browser: figures drawn, no error, no request, light and dark, phone."""

import pytest
from claims_samples import record

import geometry
from normwise import outcomes, report
from normwise.records import Interval


def sample():
    """Lines over names, lines on logarithmic axes, and single numbers, with names that are not harmless."""
    stored = record()
    points = [Interval(v, v / 2, 2 * v) for v in (1e-9, 1e-3, 0.5)]
    evil = "<img src=//evil.example/x onerror=alert(1)>%{x}"
    curve = outcomes.Series(evil, [1.0, 10.0, 100.0], points, "layer", dashed=True)
    logs = outcomes.Figure("Logs", "x", "y", [curve], log_x=True, log_y=True, guides=[0.1])
    bars = [outcomes.Series(n, [float(k)], [Interval(0.2, 0.1, 0.3)], "weight") for k, n in enumerate((evil, "b"))]
    single = outcomes.Figure("Bars", "", "ms", bars, ticks=[evil, "b"], factor=1e3)
    stored.outcomes[0].figures.extend([logs, single])
    return stored


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_drawn_and_nothing_leaves_the_page(browser, tmp_path, scheme):
    troubles, requests = [], []
    path = tmp_path / "claims.html"
    path.write_text(report.claims_html(sample()), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.on("request", lambda r: requests.append(r.url) if r.url.partition("#")[0] != path.as_uri() else None)
    page.on("console", lambda m: troubles.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda e: troubles.append(str(e)))
    page.on("dialog", lambda d: troubles.append(d.message))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=300_000)
    drawn = page.eval_on_selector_all(".chart", "all => all.map(c => !!c.querySelector('.cartesianlayer .trace'))")
    assert drawn == [True] * 3
    assert [found for width in (1280, 390) for found in geometry.troubles(page, width)] == []
    assert page.locator(".chip.holds").count() >= 2
    assert page.locator(".chart image, .chart a").count() == 0
    context.close()
    assert troubles == []
    # The picture of the gallery is in the page itself.
    assert [url for url in requests if not url.startswith("data:")] == []

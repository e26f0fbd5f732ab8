"""The page in a real browser: charts drawn, no error, no request, dark and light, phone, keyboard, paper."""

import json

import pytest
import report_samples as samples

import geometry
from normwise import report
from normwise.report import live

EVIL = "</script><img src=//evil.example/x onerror=alert(1)><a href='//evil.example'><b>&amp;%{x}\u2028"


@pytest.fixture
def visit(open_page):
    """Open a study's report."""
    return lambda study, *args, **options: open_page(report.html(study), *args, **options)


def _undrawn(page):
    return page.eval_on_selector_all(
        ".chart", "all => all.filter(c => !c.querySelector('.cartesianlayer .trace')).map(c => c.dataset.chart)"
    )


def test_all_charts_are_drawn_with_their_marks(visit):
    page = visit(samples.study())
    assert page.locator(".chart").count() == 15
    assert _undrawn(page) == []
    assert page.locator('[data-chart="score"][data-size="32"] .scatterlayer .trace').count() == 7
    assert page.locator('[data-chart="score"][data-size="32"] .errorbars path').count() >= 7
    assert page.locator('[data-chart="time"][data-size="32"] .barlayer .point').count() == 7
    assert page.locator('[data-chart="mean_weights"][data-size="2"] .barlayer .point').count() == 12
    # Six methods have a mean, all 21 runs are there, diverged ones included.
    assert page.locator('[data-chart="curves"] .scatterlayer .trace').count() == 21 + 6
    assert "group" in page.locator('[data-chart="score"][data-size="2"]').text_content()


LONG = "a.rather.long.name.of.a.layer.without.any.space.in.it."
PAGES = {
    "study": lambda: report.html(samples.study()),
    "study with long names": lambda: report.html(samples.hostile(LONG)),
    "live": lambda: live.page(samples.unfinished(), live.Ahead(42, 300.0)),
    "diagnosis": lambda: report.diagnosis_html(samples.diagnosis(EVIL, layers=40)),
    "deep diagnosis": lambda: report.diagnosis_html(samples.diagnosis(LONG, layers=200)),
    "advice": lambda: report.advice_html(samples.advice(EVIL)),
    "conversion": lambda: report.page(samples.conversion(LONG)),
}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_lies_well_on_every_screen(open_page, page):
    """Nothing runs over the edge, labels are there and do not overlap, tables that scroll say so."""
    opened = open_page(PAGES[page]())
    assert _undrawn(opened) == []
    assert [found for width in (1280, 390) for found in geometry.troubles(opened, width)] == []


def test_dark_and_light_differ_and_follow_the_system(visit):
    page = visit(samples.study(), scheme="light")

    def look():
        return page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            document.querySelector('[data-chart="time"] .point path').style.fill,
            document.querySelector('[data-chart="time"] .ytick text').style.fill]"""
        )

    light = look()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "fill => document.querySelector('[data-chart=\"time\"] .ytick text').style.fill !== fill", arg=light[3]
    )
    assert all(a != b for a, b in zip(light, look(), strict=True))


def test_paper_is_light_even_from_a_dark_screen(visit):
    page = visit(samples.study(), scheme="dark")
    tick = "document.querySelector('[data-chart=\"time\"] .ytick text').style.fill"
    before = page.evaluate(tick)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"before => {tick} !== before", arg=before)
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--card')") == "#ffffff"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"before => {tick} === before", arg=before)


def test_a_finger_on_a_chart_scrolls_the_page(visit):
    page = visit(samples.study(), width=390)
    page.add_style_tag(content="html { scroll-behavior: auto !important }")
    chart = page.locator('[data-chart="score"] .nsewdrag').first
    chart.scroll_into_view_if_needed()
    box, before, finger = chart.bounding_box(), page.evaluate("scrollY"), page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, points in [("touchStart", [y]), *(("touchMove", [y - 20 * k]) for k in range(1, 11)), ("touchEnd", [])]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": at} for at in points]})
    page.wait_for_function("before => scrollY > before + 100", arg=before)


def test_hostile_text_is_shown_and_not_obeyed(visit):
    page = visit(samples.hostile(EVIL))
    assert _undrawn(page) == []
    assert page.locator("img, a[href*='evil'], .chart a, iframe").count() == 0
    page.locator('[data-chart="score"][data-size="2"] .scatterlayer .point').first.hover(force=True)
    page.wait_for_selector('[data-chart="score"] .hovertext', timeout=300_000)
    assert page.locator(".chart a").count() == 0
    assert "evil.example" in page.locator('[data-chart="score"] .hovertext').first.text_content()


def test_curves_answer_to_the_keyboard(visit):
    page = visit(samples.study())
    traces = page.locator('[data-chart="curves"] .scatterlayer .trace')
    page.locator('input[name="curve-size"]').first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator('input[name="curve-size"]:checked').get_attribute("value") == "32"
    page.wait_for_function("document.querySelectorAll('[data-chart=\"curves\"] .scatterlayer .trace').length === 28")
    button = page.locator('[data-toggle="method"][value="none"]')
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('[data-chart=\"curves\"] .scatterlayer .trace').length === 24")
    assert button.get_attribute("aria-pressed") == "false"
    assert traces.count() == 24


def test_filter_holds_for_the_whole_page_and_its_address(visit):
    page = visit(samples.study())
    traces = page.locator('[data-chart="score"][data-size="32"] .scatterlayer .trace')
    assert traces.count() == 7
    page.locator('[data-toggle="method"][value="instance"]').click()
    page.locator('[data-toggle="size"][value="2"]').click()
    page.wait_for_function(
        'document.querySelectorAll(\'[data-chart="score"][data-size="32"] .scatterlayer .trace\').length === 6'
    )
    assert page.locator('[data-size="2"]:visible').count() == 0
    assert page.locator('#numbers tr[data-method="instance"]:visible').count() == 0
    assert page.locator('#numbers tr[data-method="group"]:visible').count() == 1
    assert page.evaluate("location.search") == "?hide-method=instance&hide-size=2"
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.locator('[data-toggle="method"][value="instance"]').get_attribute("aria-pressed") == "false"
    page.locator('[data-toggle="size"][value="2"]').click()
    page.wait_for_selector('[data-chart="score"][data-size="2"] .scatterlayer .trace')
    assert _undrawn(page) == []


def test_trials_are_sorted_and_opened(visit):
    study = samples.study()
    page = visit(study)
    page.locator("#trials summary").click()
    head = page.locator("#trials thead button", has_text="Validation")
    column = "#trials tbody tr:not(.opened) td:nth-child(6)"
    head.click()
    shown = [float(text) for text in page.locator(column).all_text_contents()]
    assert shown == sorted(shown)
    head.click()
    assert page.locator("#trials th[aria-sort]").get_attribute("aria-sort") == "descending"
    first = page.locator("#trials tbody button").first
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-chart="trial"] .scatterlayer .trace')
    assert first.get_attribute("aria-expanded") == "true"
    trial = study.trials[int(first.get_attribute("data-trial"))]
    assert f"{trial.parameters:,}" in page.locator("tr.opened").text_content()
    page.keyboard.press("Enter")
    assert page.locator("tr.opened").count() == 0


def test_best_tradeoffs_are_joined_and_answer_to_the_cost(visit):
    study = samples.study()
    page = visit(study)

    def front(cost):
        rows = [s for s in study.standings if s.batch_size == 32]
        rows.sort(key=lambda s: (getattr(s, cost), -s.test.value))
        kept = []
        for s in rows:
            if not kept or s.test.value > kept[-1].test.value:
                kept.append(s)
        return [round(s.test.value * 100, 6) for s in kept]

    drawn = """() => document.querySelector('[data-chart="tradeoff"][data-size="32"]')
        .data.find(t => t.name === 'front').y.map(y => Math.round(y * 1e6) / 1e6)"""
    assert page.evaluate(drawn) == front("step_seconds")
    page.locator('input[name="cost"][value="peak_bytes"]').check(force=True)
    page.wait_for_function(
        f"want => JSON.stringify(({drawn})()) === want", arg=json.dumps(front("peak_bytes")).replace(" ", "")
    )


@pytest.mark.parametrize(
    "study",
    [
        samples.all_diverged(),
        samples.unfinished(),
        samples.study(batch_sizes=(8,), methods=("batch",), seeds=1),
        samples.study(batch_sizes=(1, 2, 4, 8, 16, 32), methods=("batch", "group")),
    ],
    ids=["all diverged", "unfinished", "one of everything", "six batch sizes"],
)
def test_unusual_studies_are_drawn(visit, study):
    page = visit(study)
    assert _undrawn(page) == []
    assert [found for width in (1280, 390) for found in geometry.troubles(page, width)] == []
    assert page.locator("#chart-trouble").is_hidden()


def test_without_scripts_the_numbers_are_there(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report.html(samples.study()), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(path.as_uri())
    assert page.get_by_text("The charts need a current browser").is_visible()
    assert page.locator("#numbers table").count() == 2
    context.close()

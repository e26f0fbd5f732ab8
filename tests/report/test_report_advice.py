"""Advice on the page: all that was said, nothing unescaped, drawn again from its file."""

import dataclasses
import html

import pytest

from normwise import report
from normwise.advice import Check, Cost, Place, Situation, is_advice, load_advice, rank
from normwise.advice.rules import METHODS

EVIL = "</script><img src=//evil.example/x onerror=alert(1)><b>&amp;%{x}"


def told(name="bn1", **changes):
    places = [Place(name, 16, [8, 8], 2), Place(f"{name}.one", 16, [], 2)]
    situation = Situation("conv", ["conv"], 2, devices=2, depth=5, places=places, current=["batch"])
    costs = {method: Cost(0.001 * (i + 1), 1000 * i) for i, method in enumerate(METHODS)}
    check = Check(61.0, ["group", "batch"], f"use {name}", False, 0.01)
    return dataclasses.replace(rank(name, situation, costs), check=check, **changes)


def test_the_page_tells_everything():
    advice = told()
    page = html.unescape(report.advice_html(advice))
    for ranked in advice.ranking:
        assert ranked.spec in page
        assert all(reason.text in page and reason.source in page for reason in ranked.reasons if reason.points)
    for words in ("Use ", "The advice did not hold", "use bn1", "normwise.sync(model)", "bn1.one", "share them with"):
        assert words in page
    assert "Not decided" in report.advice_html(dataclasses.replace(advice, check=Check(1, [], "", None, None)))
    assert "did not hold" not in report.advice_html(dataclasses.replace(advice, check=None))


def test_what_users_hand_over_is_escaped():
    page = report.advice_html(told(EVIL))
    assert "<img" not in page
    assert page.count("</script>") == report.advice_html(told()).count("</script>")


def test_a_stored_page_is_drawn_again(tmp_path):
    advice = told()
    path = tmp_path / "advice.json"
    path.write_text(advice.to_json())
    assert is_advice(path)
    assert not is_advice(tmp_path / "nothing.json")
    assert report.advice_html(load_advice(path)) == report.advice_html(advice)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_chart_is_drawn_and_nothing_overflows(open_page, width, scheme):
    page = open_page(report.advice_html(told(EVIL)), width, scheme)
    shown = sum(r.refused is None for r in told().ranking)
    assert page.locator(".chart .scatterlayer .trace").count() == shown
    assert page.evaluate("document.documentElement.scrollWidth") <= width

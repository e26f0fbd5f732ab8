"""Advice on the page: all that was said, nothing unescaped, drawn again from its file."""

import dataclasses
import html

from report_samples import EVIL
from report_samples import advice as told

from normwise import report
from normwise.advice import Check, is_advice, load_advice


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

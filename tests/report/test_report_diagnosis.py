"""A diagnosis on the page and in the terminal: all that was found, nothing unescaped."""

from report_samples import EVIL, diagnosis

from normwise import report


def test_the_page_tells_everything():
    page = report.diagnosis_html(diagnosis())
    assert "1 error, 5 infos" in page
    for words in ("bn1 is off", "It harms.", "fix(&#39;bn1&#39;)", "message 4", "2 more", "0.75", "50 % / 75 %", "512"):
        assert words in page


def test_what_users_hand_over_is_escaped():
    page = report.diagnosis_html(diagnosis(EVIL))
    assert "<img" not in page
    assert page.count("</script>") == report.diagnosis_html(diagnosis()).count("</script>")


def test_the_terminal_shows_the_gravest_first_and_groups_what_is_alike():
    text = report.diagnosis_plain(diagnosis(), 120)
    assert text.index("near-eps") < text.index("cancelled-bias")
    assert text.count("It is idle.") == 1
    assert "and 2 more: bn13, bn14" in text
    assert "fix('bn1')" in text
    assert "nothing found" in report.diagnosis_plain(diagnosis(findings=[]), 80)
    assert "\x1b" not in report.diagnosis_plain(diagnosis("\x1b[31m"), 80)

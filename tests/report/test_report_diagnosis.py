"""A diagnosis on the page and in the terminal: all that was found, nothing unescaped."""

import pytest

from normwise import report
from normwise.findings import (
    Diagnosis,
    Finding,
    Gap,
    ModelFacts,
    NormFacts,
    NormTrace,
    RunTrace,
    WeightFacts,
    WeightTrace,
)

EVIL = "</script><img src=//evil.example/x onerror=alert(1)><b>&amp;%{x}"


def diagnosis(name="bn1", findings=None):
    norm = NormFacts([name], "BatchNorm2d", "batch", 1, 1, 8, elements=512)
    weights = [WeightFacts([f"{name}.conv{i}"], "Conv2d", 2 * i, 1) for i in range(3)]
    found = [Finding(name, "error", "near-eps", f"{name} is off", {"eps": 1e-5}, "It harms.", f"fix({name!r})")]
    found += [
        Finding(f"{name}{i}", "info", "cancelled-bias", f"message {i}", {}, "It is idle.", "mend()") for i in range(5)
    ]
    return Diagnosis(
        created="2026-01-01",
        facts=ModelFacts(name, "conv", ["conv"], 8, 8),
        run=RunTrace(passes=20, sampled=6, optimizer="SGD", lr=0.1),
        norms=[NormTrace(norm, samples=6, elements=512, mean_gap=0.75, var_factor=1.5, gain=0.12, scatter=0.02)],
        weights=[WeightTrace(w, gradient=10.0**-i, cosine=0.5, moved_mean=0.1 * i) for i, w in enumerate(weights)],
        gap=Gap("accuracy", 0.5, 0.75, 0.1, 128),
        findings=found if findings is None else findings,
    )


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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_charts_are_drawn_and_nothing_overflows(open_page, width, scheme):
    page = open_page(report.diagnosis_html(diagnosis(EVIL)), width, scheme)
    assert page.locator(".chart .scatterlayer .trace").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width

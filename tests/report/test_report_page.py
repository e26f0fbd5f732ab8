"""What the page says, and that nothing in it came through unescaped. The browser's view is in test_report_browser."""

import dataclasses
import html.parser
import json
import subprocess
import sys

import pytest
import report_samples as samples

from normwise import report
from normwise.records import Study, dumps, from_dict, load_study, to_dict
from normwise.report import _view as view

EVIL = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=//evil.example/x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "\u2028\u2029 & &lt; {{ 7 * 7 }} %{x}",
    "<b><a href='//evil.example'>a</a></b>",
]


class Page(html.parser.HTMLParser):
    """Tags, their attributes, the visible text and the embedded data of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.data, self._inside = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id", tag) if tag in {"script", "style"} else self._inside

    def handle_endtag(self, tag):
        self._inside = None if tag in {"script", "style"} else self._inside

    def handle_data(self, data):
        if self._inside == "data":
            self.data += data
        elif self._inside is None:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def sample():
    study = samples.study()
    return study, Page(report.html(study))


def test_verdict_is_first_large_and_in_words(sample):
    _, page = sample
    start = page.text.index("Batch size 2")
    assert page.text[start:].startswith(
        "Batch size 2 Use group norm Group is clearly best at batch size 2. "
        "97 % sure that it costs at most 0.5 points to choose it"
    )
    assert page.text.index("Use batch norm") < page.text.index("Learning curves")
    assert "Caution One of three runs of batch norm diverged." in page.text


def test_every_number_stands_in_the_tables(sample):
    study, page = sample
    for standing in study.standings:
        low, high = standing.test.low * 100, standing.test.high * 100
        assert f"{standing.test.value * 100:.2f} [{low:.2f}, {high:.2f}]" in page.text
        assert standing.method in page.text
    for word in [study.command, study.settings.model, *study.versions.values(), *study.machine.values()]:
        assert word in page.text
    assert "3 of 3" in page.text
    assert " edge " in page.text


def test_every_chart_has_a_label_that_tells_its_numbers(sample):
    study, page = sample
    charts = [attrs for _, attrs in page.tags if attrs.get("class") == "chart"]
    assert {c["data-chart"] for c in charts} == {
        "score", "behind", "curves", "time", "memory", "tradeoff", "mean_weights", "var_weights",
    }  # fmt: skip
    assert all(c["role"] == "img" and len(c["aria-label"]) > 30 for c in charts)
    label = next(c["aria-label"] for c in charts if c["data-chart"] == "score" and c["data-size"] == "32")
    best = next(s for s in study.standings if s.batch_size == 32)
    assert f"{best.method} {best.test.value * 100:.2f} %" in label


def test_the_embedded_study_is_the_study(sample):
    study, page = sample
    assert from_dict(Study, json.loads(page.data)["study"]) == study


def test_no_address_leads_out_of_the_file(sample):
    _, page = sample
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in {"src", "href", "action", "data"}]
    assert links
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert not [tag for tag, _ in page.tags if tag in {"iframe", "object", "embed", "base", "form", "img"}]


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_text_stays_text(evil):
    plain, hostile = Page(report.html(samples.hostile("harmless"))), Page(report.html(samples.hostile(evil)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in hostile.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert " ".join(evil.split()) in hostile.text
    assert json.loads(hostile.data)["study"]["title"].startswith(evil)
    assert "<" not in hostile.data


def test_mixtures_are_averaged_over_complete_final_runs():
    study = samples.study()
    (blend,) = [b for b in view.blends_of(study) if b.batch_size == 32]
    runs = [t for t in view.finals_of(study) if t.setup.method == "switchable" and t.setup.batch_size == 32]
    assert blend.runs == 3
    assert [layer.layer for layer in blend.layers] == samples.LAYERS
    for depth, layer in enumerate(blend.layers):
        for k in range(3):
            expected = sum(t.mixtures[depth].var_weights[k] for t in runs) / 3
            assert layer.var_weights[k] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("study", "says", "is_silent_on"),
    [
        (samples.study(batch_sizes=(8,)), "Use batch norm", "Batch size 2"),
        (samples.study(methods=("none", "batch")), "Use batch norm", "Learned mixtures"),
        (samples.all_diverged(), "No run came through", "advised, best"),
        (samples.unfinished(), "No verdict yet", "Learning curves"),
        (samples.study(batch_sizes=(32,), seeds=1), "Seeds each 1", "Unfinished"),
    ],
    ids=["one batch size", "no switchable", "all diverged", "unfinished", "one seed"],
)
def test_unusual_studies(study, says, is_silent_on):
    text = Page(report.html(study)).text
    assert says in text
    assert is_silent_on not in text


def test_unmeasured_times_are_said_so():
    study = samples.study(batch_sizes=(2,))
    standings = [dataclasses.replace(s, step_seconds=None, peak_bytes=None) for s in study.standings]
    page = Page(report.html(dataclasses.replace(study, standings=standings)))
    assert "Not measured." in page.text
    assert not [a for _, a in page.tags if a.get("data-chart") in {"time", "memory", "tradeoff"}]


def test_cautions_that_hold_everywhere_are_said_once():
    study = samples.study()
    verdicts = [dataclasses.replace(v, cautions=["quick run", *v.cautions]) for v in study.verdicts]
    study = dataclasses.replace(study, verdicts=verdicts)
    for text in (Page(report.html(study)).text, report.plain(study)):
        assert text.count("quick run") == 1
        assert text.count("One of three runs of batch norm diverged.") == 1


def test_a_failed_trial_counts_as_lost_and_says_why():
    study = samples.study()
    failed = dataclasses.replace(study.trials[0], state="failed", reason="shapes do not fit")
    text = Page(report.html(dataclasses.replace(study, trials=[failed]))).text
    assert "All 1 trials, 1 of them diverged or failed" in text
    assert "failed: shapes do not fit" in text


def test_a_verdict_on_a_method_without_standing_is_drawn():
    study = samples.study(batch_sizes=(2,))
    verdict = dataclasses.replace(study.verdicts[0], use="whitening")
    assert "whitening" in Page(report.html(dataclasses.replace(study, verdicts=[verdict]))).text


def test_equal_studies_give_equal_pages():
    assert report.html(samples.study()) == report.html(from_dict(Study, to_dict(samples.study())))


def test_a_stored_study_is_drawn_without_torch(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(dumps(samples.study()), encoding="utf-8")
    code = (
        "import sys; from normwise import report; from normwise.records import load_study; s = load_study(sys.argv[1]);"
        "print(len(report.html(s)), len(report.plain(s))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    study = load_study(path)
    assert done.stdout.split() == [str(len(report.html(study))), str(len(report.plain(study)))]


def test_a_missing_package_is_named(monkeypatch):
    from normwise.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "normwise.report._frame", raising=False)
    monkeypatch.delattr(report, "_frame", raising=False)
    with pytest.raises(MissingDependencyError, match=r"jinja2 and plotly: pip install 'normwise\[compare\]'"):
        report.html(samples.study())

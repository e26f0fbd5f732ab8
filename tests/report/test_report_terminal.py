"""The table in the terminal: verdicts first, whole numbers at 80 and 120 columns, nothing from the user interpreted."""

import dataclasses
import re

import pytest
import report_samples as samples

from normwise import report
from normwise.records import Interval
from normwise.report import _formats as formats


@pytest.mark.parametrize("width", [80, 120])
def test_verdicts_come_first_and_no_number_is_cut(width):
    study = samples.study()
    text = report.plain(study, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert (
        text.index("Batch size 2: use group norm")
        < text.index("Batch size 32: use batch norm")
        < text.index("validation %")
    )
    for standing in study.standings:
        for interval in [standing.valid, standing.test, *filter(None, [standing.behind])]:
            for number in (interval.value, interval.low, interval.high):
                assert f"{number * 100:.2f}".replace("-", "−") in text
        assert standing.method in text
    assert text.count("★") == 3  # one a batch size, one in the legend
    assert "Caution: One of three runs of batch norm diverged." in text


def test_row_of_a_method():
    row = next(line for line in report.plain(samples.study(), 120).splitlines() if "batch " in line and "1/3" in line)
    standing = next(s for s in samples.study().standings if s.method == "batch" and s.batch_size == 2)
    cells = re.split(r"\s{2,}", row.strip())
    low, high = standing.valid.low * 100, standing.valid.high * 100
    assert cells[0] == "batch"
    assert cells[1] == f"{standing.valid.value * 100:.2f} [{low:.2f}, {high:.2f}]"
    assert cells[4] == formats.milliseconds(standing.step_seconds)


@pytest.mark.parametrize("width", [80, 120])
def test_scores_that_are_no_accuracies_keep_all_their_digits(width):
    study = samples.study(batch_sizes=(2,))
    far = Interval(-12.3456, -12.4567, -12.2345)
    standings = [dataclasses.replace(s, valid=far, test=far) for s in study.standings]
    settings = dataclasses.replace(study.settings, score_name="log likelihood")
    text = report.plain(dataclasses.replace(study, standings=standings, settings=settings), width)
    assert "−12.35" in text
    assert text.count("−12.46") == text.count("−12.23") == 14
    assert "…" not in text


def test_nothing_from_the_user_is_markup_or_steers_the_terminal():
    text = report.plain(samples.hostile("[red]\x1b[31m\x07[/red]"), 120)
    assert "[red]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_colours_only_where_the_console_has_them(capsys):
    from rich.console import Console

    Console(width=100, force_terminal=True, color_system="standard").print(report.table(samples.study()))
    assert "\x1b[" in capsys.readouterr().out
    assert "\x1b[" not in report.plain(samples.study())


def test_all_diverged_advises_nothing():
    text = report.plain(samples.all_diverged())
    assert "Batch size 2: no run came through" in text
    assert "use group" not in text
    assert text.count("3/3") == 7


def test_unfinished():
    assert report.plain(samples.unfinished()).startswith("Unfinished")
    assert "No verdict yet." in report.plain(samples.unfinished())


@pytest.mark.parametrize(
    ("value", "text"), [(1.2345, "1.23"), (12.345, "12.3"), (1234.5, "1234"), (0.0, "0"), (0.01234, "0.0123")]
)
def test_significant(value, text):
    assert formats.significant(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "7 s"), (161, "2 min 41 s"), (7300, "2 h 1 min"), (59.7, "1 min 0 s")]
)
def test_duration(seconds, text):
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("probability", "text"), [(0.873, "87 %"), (0.9996, "> 99 %"), (1.0, "100 %"), (0.001, "< 1 %"), (0.0, "0 %")]
)
def test_share_is_never_rounded_to_certainty(probability, text):
    assert formats.share(probability) == text

"""Results are kept, shown in notebooks and handed to pandas, each in the same way."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import normwise
from normwise.advice import Advice
from normwise.errors import InputError, MissingDependencyError, StoreError
from normwise.findings import Diagnosis
from normwise.study import Study
from normwise.surgery import Conversion, Inspection

RESULTS = Path(__file__).parents[1] / "results"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


def diagnosis() -> Diagnosis:
    return normwise.diagnose(model(), [torch.randn(8, 3, 8, 8)])


def advice() -> Advice:
    return normwise.advise(model(), torch.randn(2, 3, 8, 8), batch_size=2)


def inspection() -> Inspection:
    return normwise.inspect(model())


def conversion() -> Conversion:
    return normwise.convert(model(), "group", example_inputs=torch.randn(2, 3, 8, 8))


def study() -> Study:
    return Study.load(RESULTS / "compare-digits.json")


# What makes each, what its repr begins with, some columns, some text of its first rows.
MADE = {
    diagnosis: ("Diagnosis of Sequential: 2 info", {"severity", "code", "layer", "fix"}, "never-updated"),
    advice: ("Advice for Sequential: use ", {"method", "points", "reasons"}, "group"),
    inspection: ("Inspection of 1 layer: ", {"names", "type", "method", "channels"}, "BatchNorm2d"),
    conversion: ("Conversion to group: 1 layer replaced, 0 left", {"layer", "old", "new", "drift"}, "GroupNorm"),
    study: (
        "Study 'Which normalization for digits?': switchable at batch size 2, batch at",
        {"method", "batch_size", "seed", "test_score"},
        "switchable",
    ),
}


@pytest.fixture(scope="module", params=MADE, ids=lambda make: make.__name__)
def made(request):
    return request.param(), *MADE[request.param]


def test_a_result_is_one_line_and_a_table_in_a_notebook(made):
    result, begin, columns, text = made
    assert repr(result).startswith(begin)
    assert "\n" not in repr(result)
    assert {*result._rows()[0]} >= columns
    assert len({tuple(row) for row in result._rows()}) == 1
    shown = result._repr_html_()
    assert text in shown
    assert "<script" not in shown.partition("srcdoc")[0]


def test_a_result_becomes_a_frame(made):
    result, _, columns, _ = made
    if not importlib.util.find_spec("pandas"):
        pytest.skip("pandas is not installed: pip install pandas")
    frame = result.to_frame()
    assert columns <= set(frame.columns)
    assert len(frame) == len(result._rows())
    frame.groupby(sorted(columns)[0])  # cells are plain values


def test_without_pandas_it_says_what_to_install(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        made[0].to_frame()


def test_a_result_comes_back_from_its_file(made, tmp_path):
    result = made[0]
    place = tmp_path / "out"
    result.save(place)
    again = type(result).load(place)
    expected = getattr(result, "record", result)
    assert getattr(again, "record", again) == expected
    assert again._rows() == result._rows()
    result.save(place)  # its own file is replaced
    with pytest.raises(StoreError, match="cannot read"):
        type(result).load(tmp_path / "nowhere.json")
    if not isinstance(result, Study):
        (tmp_path / "mine.json").write_text('{"mine": 1}')
        with pytest.raises(InputError, match="left as it is"):
            result.save(tmp_path / "mine.json")
        with pytest.raises(StoreError, match="is not a"):
            type(result).load(tmp_path / "mine.json")


def test_a_result_is_drawn_as_a_page(made):
    page = made[0].to_html()
    assert page.startswith("<!doctype html>")
    assert made[3] in page


# The charts of each; the first is drawn where none is named.
CHARTS = {
    diagnosis: ["gaps"],
    advice: ["points", "time", "memory"],
    inspection: ["channels", "variance"],
    conversion: ["drift"],
    study: ["score", "behind", "time", "memory", "curves"],
}


@pytest.mark.parametrize("make", CHARTS, ids=lambda make: make.__name__)
def test_a_result_is_plotted(make):
    result, charts = make(), CHARTS[make]
    for name in charts:
        figure = result.plot(name)
        values = [value for trace in figure.data for value in trace.x]
        names = [name for trace in figure.data for name in trace.text or [trace.name] * len(trace.x)]
        assert len(values) == len(names) > 0
        assert json.loads(figure.to_json())["data"]
    assert result.plot() == result.plot(charts[0])
    with pytest.raises(InputError, match=f"no chart 'colour': choose from {', '.join(charts)}"):
        result.plot("colour")


def test_a_plot_says_what_it_cannot_show(monkeypatch):
    with pytest.raises(InputError, match="nothing that could be plotted"):
        normwise.inspect(nn.Linear(2, 2)).plot()
    names = normwise.inspect(nn.ModuleDict({"<b>": nn.BatchNorm1d(2)})).plot().data[0].text
    assert names == ("&lt;b&gt;",)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.delitem(sys.modules, "normwise.report._figures")
    monkeypatch.delattr("normwise.report._figures")
    with pytest.raises(MissingDependencyError, match=r"drawing needs plotly: pip install 'normwise\[compare\]'"):
        inspection().plot()


def test_notebooks_show_text_as_text():
    odd = nn.ModuleDict({"<b>": nn.BatchNorm1d(2)})
    assert "&lt;b&gt;" in normwise.inspect(odd)._repr_html_()
    assert "<b>" not in normwise.inspect(odd)._repr_html_()


def test_what_is_not_finite_is_stored_as_unknown(tmp_path):
    done = conversion()
    done.record.output_drift = float("inf")
    done.save(tmp_path / "conversion.json")
    assert Conversion.load(tmp_path / "conversion.json").output_drift is None

"""A method of one's own, written into a file as a user would, goes everywhere where a name goes."""

import copy
import functools
import pickle
import sys

import pytest
import torch
from torch import nn

import normwise
from normwise import report
from normwise.advice import Advice, load_advice
from normwise.arguments.methods import method_from
from normwise.cli import main
from normwise.errors import InputError, StoreError
from normwise.methods import METHODS
from normwise.nn import Norm
from normwise.nn.own import name_of, named
from normwise.study import Task, make_task
from normwise.study.own import fingerprints, with_methods

METHOD = '''\
"""Layer norm by a power of the deviation: y = weight · (x − μ) / (σ² + eps)^(power / 2) + bias."""

from dataclasses import dataclass

import torch
from torch import nn

from normwise.methods import POOLS, Context, Method, with_parameters  # noqa: F401


@dataclass(frozen=True)
class MyMethod(Method):
    """The method with its power; 1 is layer norm."""

    pools = ("layer",)
    power: float = 1.0

    def affine(self, cells, given: Context):
        """Subtract the mean and divide by a power of the deviation, both of a sample."""
        m = self.pooled("layer", cells, given)
        return with_parameters(m.mean, (m.var + given.eps) ** (-self.power / 2), given)


class Soft(nn.Module):
    """A layer of one's own: y = weight · x / (1 + |x|) + bias."""

    def __init__(self, channels: int, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), float(start)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (1 + x.abs())


def my_layer(channels):
    return Soft(channels, 0.5)


def no_layer(channels):
    return channels


class Broken(Soft):
    def forward(self, x):
        return x.no_such_thing()


class Later(Soft):
    """Fails after a while."""

    def __init__(self, channels):
        super().__init__(channels, 0.7)

    def forward(self, x):
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps > 1:
            raise RuntimeError("gone")
        return super().forward(x)
'''
NETS = """\
import torch
from torch import nn


def make_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def with_norm(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def make_data():
    targets = torch.arange(60) % 3
    noise = torch.randn(60, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return noise + targets.reshape(-1, 1, 1, 1), targets


def loader():
    inputs, targets = make_data()
    return [(inputs[:30], targets[:30]), (inputs[30:], targets[30:])]
"""
SHORT = {"batch_sizes": [6], "seeds": 2, "lrs": [0.05], "epochs": 0.5, "progress": False}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the method's file and a project, from which all is called."""
    (tmp_path / "powers.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "project.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    yield tmp_path
    for name in ("powers", "project"):
        sys.modules.pop(name, None)


@pytest.fixture
def powers(place):
    import powers

    return powers


@pytest.fixture
def project(place):
    import project

    return project


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def test_names_are_those_that_the_user_knows(powers):
    def batch(channels):
        return nn.BatchNorm2d(channels)

    odd = type("<b>", (powers.Soft,), {})
    other = functools.partial(powers.Soft, start=2)
    given = ["batch", powers.MyMethod(0.3), powers.MyMethod(0.5), powers.my_layer, powers.Soft, other, batch, odd]
    given += [lambda channels: powers.Soft(channels, 3.0), " group ( num_groups = 4)", "powers.py:MyMethod( 0.3 )"]
    names = list(named(given, reserved=METHODS))
    assert names == [
        *("batch", "MyMethod(0.3)", "MyMethod(0.5)", "my_layer", "Soft", "Soft(start=2)", "batch #2", "<b>"),
        *("Soft #2", "group(num_groups=4)", "powers.py:MyMethod(0.3)"),
    ]
    # What is given twice counts once, and ours stay ours.
    assert list(named([powers.MyMethod(0.3), powers.MyMethod(0.3), METHODS["batch"], "batch"], METHODS)) == [
        "MyMethod(0.3)",
        "batch",
    ]
    assert name_of(lambda channels: powers.no_layer(channels)) == "lambda"


def test_layers_come_from_methods_classes_and_functions(powers):
    x = torch.randn(4, 8, 5, 5)
    layer = normwise.norm_layer(powers.MyMethod(1.0))(8)
    torch.testing.assert_close(layer(x), normwise.normalize(x, "layer"))
    assert repr(layer).startswith("Norm(my_method, 8")
    assert isinstance(normwise.norm_layer(lambda channels: powers.Soft(channels))(8, dim=1, eps=0.1), powers.Soft)
    assert normwise.norm_layer(powers.Soft, start=2.0)(8, dtype=torch.float64).weight.dtype == torch.float64
    assert normwise.norm_layer(functools.partial(nn.GroupNorm, 4))(8).num_groups == 4
    assert pickle.loads(pickle.dumps(layer)).method.power == 1.0
    with pytest.raises(InputError, match=r"^no_layer gave an int for 4 channels, expected a .*powers.py:\d+\)$"):
        normwise.norm_layer(powers.no_layer)(4)
    with pytest.raises(InputError, match=r"a callable that builds a layer .* got a Soft"):
        normwise.norm_layer(powers.Soft(4))


def test_texts_name_what_stands_in_a_file(place):
    assert method_from("powers.py:MyMethod(0.3)").power == method_from("powers:MyMethod(power=0.3)").power == 0.3
    assert method_from("powers.py:Soft(start=2)")(4).weight[0] == 2
    assert method_from("group(num_groups=4)") == "group(num_groups=4)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("powers.py:nothing", "cannot find 'powers.py:nothing': AttributeError"),
        ("nowhere.py:MyMethod", "cannot find nowhere.py: no such file"),
        ("powers.py:MyMethod(strength=1)", "cannot make .* unexpected keyword argument 'strength'"),
        ("powers.py:MyMethod(1", "cannot read the method"),
        ("powers.py:Soft(2)", "options by name"),
        ("powers.py:POOLS", "got dict"),
        ("btach", r"did you mean 'batch'\? Known are none, batch, .*; or a method of your own: my_file.py:NAME"),
        ("powers.py:Broken", r"powers.py:Broken fails in the first step: AttributeError: .*\(at powers.py:\d+\)$"),
        ("powers.py:no_layer", r"powers.py:no_layer fails in the first step: .* an int for 8 .*\(at powers.py:\d+\)$"),
    ],
)
def test_what_cannot_be_compared_is_one_line(project, text, said):
    with pytest.raises(InputError, match=said) as caught:
        normwise.compare(project.with_norm, project.make_data(), methods=["batch", text], **SHORT)
    assert "\n" not in str(caught.value)


def test_compare_takes_objects_classes_and_functions(powers, project, place):
    given = [
        " batch ( ) ",
        powers.MyMethod(0.3),
        powers.Soft,
        lambda channels: powers.Soft(channels, 2.0),
        powers.Later,
    ]
    odd = type(
        "<b>bold", (powers.Soft,), {"__init__": lambda self, channels: powers.Soft.__init__(self, channels, 3.0)}
    )
    names = ["batch()", "MyMethod(0.3)", "Soft", "Soft #2", "Later", "<b>bold"]
    study = normwise.compare(project.with_norm, project.make_data(), methods=[*given, odd], out=place / "out", **SHORT)
    assert study.record.settings.methods == names
    assert {t.setup.method for t in study.trials if t.state == "complete"} == {*names} - {"Later"}
    lost = [t.reason for t in study.trials if t.setup.method == "Later"]
    assert all(reason.startswith("RuntimeError: gone (at powers.py:") for reason in lost)
    assert any("MyMethod(0.3) is a method of your own, from powers.py:" in n for n in study.record.settings.notes)
    page = (place / "out" / "report.html").read_text(encoding="utf-8")
    assert "MyMethod(0.3)" in page
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page


def test_models_with_layers_of_their_own_are_converted(powers, project):
    study = normwise.compare(project.make_model, project.make_data(), methods=["as_is", powers.MyMethod(0.3)], **SHORT)
    assert "MyMethod(0.3): BatchNorm2d → Norm (1)" in study.record.settings.notes
    assert {t.state for t in study.trials} == {"complete"}


def test_other_processes_get_what_they_can_import(powers, project, place):
    given = [powers.MyMethod(0.3), powers.my_layer, "powers.py:Soft"]
    ways = [{}, {"workers": 2}]
    alone, two = (normwise.compare(project.with_norm, project.make_data(), methods=given, **SHORT, **w) for w in ways)
    scores = [{t.setup.key: t.valid_score for t in study.trials} for study in (alone, two)]
    assert scores[0] == scores[1]
    hidden = lambda channels: powers.Soft(channels)  # noqa: E731
    for way in ({"workers": 2}, {"devices": 2}):
        with pytest.raises(
            InputError, match=r"cannot get the method Soft from here: put it in a file, and give 'my_fi"
        ):
            normwise.compare(project.with_norm, project.make_data(), methods=["batch", hidden], **SHORT, **way)


def test_a_resumed_study_knows_its_methods(powers, project, place):
    again = functools.partial(normwise.compare, project.with_norm, project.make_data(), out=place / "out", **SHORT)
    methods = ["batch", powers.MyMethod(0.3), "other.py:mine"]
    source = "from powers import Soft\n\n\ndef mine(channels):\n    return Soft(channels{})\n"
    (place / "other.py").write_text(source.format(""))
    first = again(methods=methods)
    (place / "other.py").write_text("# A comment changes nothing.\n" + source.format(""))
    assert again(methods=methods).trials == first.trials
    for given in (None, methods[:2], ["batch", powers.MyMethod(0.5), methods[2]]):
        with pytest.raises(StoreError, match=r"methods of your own that this command lacks, .*give them as you did"):
            again(methods=given)
    (place / "other.py").write_text(source.format(", 2.0"))
    with pytest.raises(StoreError, match=r"other code of other\.py:mine"):
        again(methods=methods)


def test_fingerprints_follow_the_code_and_not_its_place(project):
    def print_of(source):
        there = {"nn": nn}
        exec(compile(source, "<typed in>", "exec"), there)
        task, names = with_methods(make_task(project.with_norm, project.make_data()), [there["one"]])
        assert isinstance(task, Task)
        return fingerprints(task, names)["one"]

    plain = "def one(channels):\n    return nn.GroupNorm(2, channels)"
    assert print_of(plain) == print_of("\n\n" + plain.replace(", channels)", ",  channels)  # the same"))
    assert print_of(plain) != print_of(plain.replace("2", "4"))
    pair = "a, b, c = {}\ndef one(channels):\n    return nn.GroupNorm(a + b * c, channels)"
    assert print_of(pair.format("2, 2, 4")) != print_of(pair.format("2, 4, 4"))
    assert print_of("size = 2\n" + plain.replace("2", "size")) != print_of("size = 4\n" + plain.replace("2", "size"))


def test_convert_keeps_weight_and_bias_where_they_only_scale_and_shift(powers, project):
    x, _ = project.make_data()
    model, method = project.make_model(), powers.MyMethod(0.3)
    state, weight = copy.deepcopy(model.state_dict()), model[1].weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    done = normwise.convert(model, method, example_inputs=x, calibrate_with=[x], optimizer=optimizer)
    assert isinstance(model[1], Norm)
    assert model[1].weight is weight
    assert done.record.to == "MyMethod(0.3)"
    assert done.record.output_refitted < done.record.output_drift
    assert all(
        torch.equal(value, state[name]) for name, value in done.backward_state(done.forward_state(state)).items()
    )
    done.undo()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # A weight of another meaning stays the layer's own, and the optimizer learns of it.
    done = normwise.convert(model, lambda channels: powers.Soft(channels), example_inputs=x, optimizer=optimizer)
    assert done.record.replaced[0].new == "Soft"
    assert not done.record.replaced[0].carried
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_convert_fits_a_layer_in_where_channels_come_last_and_activations_follow(powers):
    per_channel = lambda channels: nn.BatchNorm1d(channels)  # noqa: E731
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    x = torch.randn(4, 7, 8)
    normwise.convert(layer, per_channel, example_inputs=x)
    layer.eval()
    with torch.no_grad():  # where torch's encoder layer would compute layer norms by itself
        quick = layer(x)
    torch.testing.assert_close(quick, layer(x.requires_grad_()))
    model = nn.Sequential(normwise.nn.BatchNorm2d(8, activation="relu"))
    assert normwise.convert(model, powers.MyMethod(0.3)).model(torch.randn(2, 8, 4, 4)).min() == 0


def test_convert_says_what_fails_and_changes_nothing(powers, project):
    x, _ = project.make_data()
    model = project.make_model()
    with pytest.raises(InputError, match=r"Broken fails in this model: AttributeError: .*\(at powers.py:\d+\)$"):
        normwise.convert(model, powers.Broken, example_inputs=x)
    assert type(model[1]) is nn.BatchNorm2d
    with pytest.raises(InputError, match=r"got a Soft: .*lambda channels: MyLayer"):
        normwise.convert(model, powers.Soft(8))


def test_a_causal_model_is_told_from_what_the_method_does(powers):
    class Sequence(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv1d(3, 8, 3), norm(8, dim=1), nn.Conv1d(8, 2, 1)

        def forward(self, x):
            return self.head(self.norm(self.conv(nn.functional.pad(x, (2, 0)))))

    data = torch.randn(60, 3, 9), torch.arange(60).reshape(-1, 1).expand(-1, 9) % 2
    with pytest.raises(InputError, match=r"would see what it is to predict with MyMethod\(0.3\)"):
        normwise.compare(Sequence, data, methods=["none", powers.MyMethod(0.3)], **SHORT)


def test_diagnosis_and_inspection_name_the_method(powers, project):
    model = normwise.convert(project.make_model(), powers.MyMethod(0.3)).model
    seen = normwise.diagnose(model, project.loader(), "cross_entropy")
    assert "MyMethod(0.3)" in report.diagnosis_html(seen)
    assert "MyMethod(0.3)" in str(normwise.inspect(model))
    assert normwise.convert(model, "group").record.replaced[0].old == "Norm"


def test_advice_measures_and_trains_it_and_has_learned_nothing(powers, project):
    x, y = project.make_data()
    given = [powers.MyMethod(0.3), "powers.py:my_layer"]
    advice = normwise.advise(project.make_model(), x[:12], methods=given, data=(x, y), verify=10)
    assert isinstance(advice, Advice)
    own = {r.method: r for r in advice.ranking if r.points is None}
    assert list(own) == ["MyMethod(0.3)", "powers.py:my_layer"]
    assert all(r.cost is not None and r.cost.step_seconds > 0 for r in own.values())
    assert own["powers.py:my_layer"].code == 'normwise.convert(model, "powers.py:my_layer")'
    assert {*own} <= {*advice.check.methods}
    assert advice.best.method in METHODS
    with pytest.raises(InputError, match="your method Broken fails in this model"):
        normwise.advise(project.make_model(), x, methods=[powers.Broken])


def test_the_command_line_takes_it(place, capsys):
    options = ["--batch-sizes", "6", "--seeds", "2", "--lrs", "0.05", "--epochs", "0.5", "--workers", "2"]
    methods = "batch,powers.py:MyMethod(0.3),powers.py:my_layer"
    data = ["--data", "project.py:make_data"]
    code, told, said = run(capsys, "compare", "project.py:with_norm", *data, "--methods", methods, *options)
    assert code == 0, said
    assert "powers.py:MyMethod(0.3) is a method of your own" in " ".join(told.split())
    shape = ["--input-shape", "2,3,6,6"]
    code, told, said = run(capsys, "convert", "project.py:make_model", "--to", "powers.py:MyMethod", *shape)
    assert "BatchNorm2d → Norm" in told, said
    options = ["--data", "project.py:loader", "--batch-size", "6", "--verify", "10", "--out", "advice.json"]
    code, told, said = run(capsys, "advise", "project.py:make_model", "--methods", "powers.py:MyMethod", *options)
    assert "powers.py:MyMethod" in told, said
    advice = load_advice("advice.json")
    assert "powers.py:MyMethod" in {r.method for r in advice.ranking} & {*advice.check.methods}
    for arguments in (["convert", "project.py:make_model", "--to"], ["compare", "project.py:with_norm", "--methods"]):
        code, _, said = run(capsys, *arguments, "powers.py:nothing", *data)
        assert (code, said.count("\n")) == (2, 1)

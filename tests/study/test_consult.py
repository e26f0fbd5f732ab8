"""Advice on real models: what the dry run sees, what the code does, what the command says."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import normwise
from normwise import advise, report
from normwise.advice import load_advice
from normwise.advice.rules import METHODS
from normwise.errors import InputError
from normwise.study.consult import check_by_training, measured_costs


def image_net(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), norm(16), nn.ReLU(), nn.Conv2d(16, 32, 3), norm(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


def test_batch_size_decides_for_images():
    x = torch.randn(2, 3, 24, 24)
    small, large = (advise(image_net(), x, batch_size=b, measure=False) for b in (2, 64))
    assert small.best.method in {"switchable", "group", "layer"}
    assert large.best.method in {"batch", "switchable"}
    batch = next(r for r in small.ranking if r.method == "batch")
    assert any(reason.rule == "images-small-batch" and "10.3" in reason.text for reason in batch.reasons)


def test_transformers_and_recurrent_nets_get_layer_norm():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    assert advise(encoder, torch.randn(4, 7, 16), measure=False).best.method == "layer"
    words = nn.Sequential(nn.Embedding(30, 16), encoder)
    assert advise(words, torch.randint(30, (4, 7)), measure=False).best.method == "layer"
    series = nn.Sequential(nn.Linear(5, 16), encoder)
    assert advise(series, torch.randn(4, 7, 5), measure=False).best.method == "switchable"
    recurrent = normwise.nn.LayerNormLSTM(12, 16, batch_first=True)
    assert advise(recurrent, torch.randn(4, 9, 12), measure=False).best.method == "layer"


def test_style_gets_instance_norm():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    assert advise(net, torch.randn(2, 3, 16, 16), task="stylization", measure=False).best.method == "instance"


def test_the_code_runs_and_does_what_it_says():
    model = image_net()
    ranked = {r.method: r for r in advise(model, torch.randn(2, 3, 24, 24), measure=False).ranking}
    assert ranked["batch"].code == "# the model uses it already"
    exec(ranked["group"].code, {"normwise": normwise, "model": model})
    assert sum(isinstance(m, nn.GroupNorm) for m in model) == 2
    # 24 → 11 → 9 pixels, and one pixel where the image is small.
    tiny = image_net()
    told = {r.method: r for r in advise(tiny, torch.randn(4, 3, 7, 7), measure=False).ranking}["instance"]
    assert [e.place for e in told.exemptions] == ["4"]
    exec(told.code, {"normwise": normwise, "model": tiny})
    assert isinstance(tiny[1], nn.InstanceNorm2d)
    assert isinstance(tiny[4], nn.GroupNorm)
    tiny.train()(torch.randn(4, 3, 7, 7))


def test_asking_leaves_the_model_as_it_was():
    model = image_net().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    advise(model, torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), task="classification")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_costs_are_measured_for_what_runs():
    x = torch.randn(8, 3, 24, 24)
    costs = measured_costs(image_net(), lambda model: model(x), {method: {} for method in METHODS})
    assert set(costs) == {"batch", "layer", "group", "instance", "switchable", "weight", "none"}
    assert all(cost.step_seconds > 0 for cost in costs.values())
    assert costs["none"].peak_bytes < costs["switchable"].peak_bytes


def test_costs_are_those_of_the_batch_that_is_meant():
    seen = []

    class Net(nn.Sequential):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    advise(Net(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(8, 3), batch_size=2)
    assert set(seen) == {8, 2}
    seen.clear()
    advise(Net(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(2, 3), batch_size=5)
    assert set(seen) == {2, 5}


def test_a_model_without_norms_is_advised_too():
    hidden = [layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    bare = nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), *hidden, nn.Linear(32, 2))
    told = advise(bare, torch.randn(32, 8))
    assert told.best.method in {"batch", "switchable"}
    assert "norm_layer" in told.best.code
    none = next(r for r in told.ranking if r.method == "none")
    assert none.points < -10


def test_table_shows_the_reasons_and_every_method():
    text = report.advice_plain(advise(image_net(), torch.randn(2, 3, 24, 24), measure=False), 100)
    for part in ("use ", "arXiv", "images-small-batch", "batch", "instance", "normwise.convert"):
        assert part in text


def test_a_check_exempts_the_places_that_the_code_exempts(monkeypatch):
    from normwise.study.tasks.images import digits

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    tasks = []

    def stopped(*, data, **_):
        tasks.append(data)
        raise InterruptedError

    monkeypatch.setattr("normwise.study.comparison.compare", stopped)
    told = advise(model, digits().train.inputs[:32], measure=False)
    instance = next(r for r in told.ranking if r.method == "instance")
    assert [(e.place, e.use) for e in instance.exemptions] == [("4", "layer")]
    with pytest.raises(InterruptedError):
        check_by_training(model, told, digits(), 5)
    built = tasks[0].build(instance.spec)
    assert isinstance(built[1], nn.InstanceNorm2d)
    assert isinstance(built[4], nn.GroupNorm)
    assert built[4].num_groups == 1


def test_verify_trains_on_the_users_data_and_says_whether_it_held():
    from normwise.study.tasks.images import digits, small_convnet

    model = small_convnet(normwise.norm_layer("batch"))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data = digits()
    told = advise(model, data.train.inputs[:16], measure=False, data=data, verify=12)
    check = told.check
    assert told.best.method in check.methods
    assert "batch" in check.methods
    assert check.held is None or (check.behind >= 0 and "batch size 16" in check.headline)
    assert "of training on your data" in report.advice_plain(told)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    short = advise(model, data.train.inputs[:16], measure=False, data=data, verify=0.1).check
    assert short.held is None
    assert "too few" in short.headline
    with pytest.raises(InputError, match="needs data"):
        advise(model, data.train.inputs[:16], measure=False, verify=5)


NETS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))

def batches():
    return [(torch.zeros(2, 3, 9, 9), torch.zeros(2))]

def digits():
    from normwise.study.tasks.images import digits
    return [(part.inputs, part.targets) for part in digits().train.batches(32)]

def digits_net():
    import normwise
    from normwise.study.tasks.images import small_convnet
    return small_convnet(normwise.norm_layer("batch"))
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)

    def command(*arguments):
        program = "from normwise.cli import main; main()"
        done = [sys.executable, "-c", program, "advise", *arguments]
        return subprocess.run(done, capture_output=True, text=True, cwd=tmp_path, check=False)

    return command


def test_command_says_it_as_table_and_as_json(run):
    told = run("nets.py:net", "--data", "nets.py:batches", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["ranking"][0]["method"] in {"group", "layer", "switchable"}
    told = run("nets.py:net", "--input-shape", "2,3,9,9", "--batch-size", "64")
    assert told.returncode == 0, told.stderr
    assert "batch size 64" in told.stdout


DRAW = """
import sys
from normwise.cli import main
try:
    main(["report", "a.json"])
finally:
    assert "torch" not in sys.modules
"""


def test_command_verifies_and_writes_what_is_drawn_again_without_torch(run, tmp_path):
    told = run(
        "nets.py:digits_net", "--data", "nets.py:digits", "--batch-size", "16", "--verify", "8", "--out", "a.json"
    )
    assert told.returncode == 0, told.stderr
    assert "of training on your data" in told.stdout
    assert load_advice(tmp_path / "a.json").check.methods
    drawn = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert drawn.returncode == 0, drawn.stderr
    assert "of training on your data" in drawn.stdout
    assert "ConvNet" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets.py:net"], "give --input-shape"),
        (["nets.py:net", "--input-shape", "2,3,9,9", "--verify", "5"], "and --data to train on"),
        (["nets.py:net", "--input-shape", "2,3,9,9", "--out", "no/advice.json"], "there is no folder no"),
        (["nets.py:nett", "--input-shape", "2,3,9,9"], "cannot find 'nets.py:nett'"),
        (["nets.py:net", "--input-shape", "2,3,9,9", "--task", "art"], "unknown task 'art'"),
        (["nets.py:net", "--input-shape", "2,3,9,9", "--batch-size", "0"], "at least 1"),
        (["nets.py:net", "--input-shape", "2,3,x"], "sizes separated by commas"),
    ],
)
def test_bad_input_ends_in_one_line(run, arguments, message):
    told = run(*arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


def test_unrunnable_input_says_so():
    with pytest.raises((InputError, RuntimeError), match=r"channels|size"):
        advise(image_net(), torch.randn(2, 5, 24, 24))

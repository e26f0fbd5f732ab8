"""Advice on real models: what the dry run sees, what the code does, what the command says."""

import json
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import normwise
from normwise import advise, report
from normwise.advice import load_advice
from normwise.advice.rules import METHODS
from normwise.errors import InputError
from normwise.study.consult import measured_costs
from normwise.study.measure import peak_bytes
from normwise.study.verifying import check_by_training


def image_net(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), norm(16), nn.ReLU(), nn.Conv2d(16, 32, 3), norm(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


def test_batch_size_decides_for_images():
    x = torch.randn(2, 3, 24, 24)
    small, large = (advise(image_net(), x, batch_size=b, measure=False) for b in (1, 256))
    assert small.best.method in {"switchable", "group", "layer", "instance"}
    assert large.best.method == "batch"
    batch = next(r for r in small.ranking if r.method == "batch")
    assert any(reason.rule == "one-sample" and reason.side == "−" for reason in batch.reasons)


def test_transformers_and_recurrent_nets_keep_layer_norm():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    words = nn.Sequential(nn.Embedding(30, 16), encoder)
    assert advise(words, torch.randint(30, (4, 7)), measure=False).best.method == "layer"
    recurrent = normwise.nn.LayerNormLSTM(12, 16, batch_first=True)
    told = advise(recurrent, torch.randn(4, 9, 12), measure=False)
    assert told.best.method == "layer"
    assert all("loops inside" in r.refused for r in told.ranking[1:])


def test_style_gets_instance_norm():
    from normwise.study import load_task

    task = load_task("textures:gravel")
    inputs = task.splits.train.take(slice(2)).load().inputs
    told = advise(task.build("batch"), inputs, task="stylization", measure=False)
    assert told.best.method == "instance"
    assert any(reason.rule == "style" for reason in told.best.reasons)
    assert "stylization" in told.evidence


class Tokens(nn.Module):
    def __init__(self, norm, causal=False):
        super().__init__()
        self.words, self.norm, self.out, self.causal = nn.Embedding(11, 16), norm(16), nn.Linear(16, 11), causal

    def forward(self, x):
        h = self.norm(self.words(x))
        return self.out(h.cumsum(1) if self.causal else h + h.mean(1, keepdim=True))


def test_rms_norm_between_convolutions_is_left_alone_for_want_of_evidence():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), normwise.norm_layer("rms")(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    told = advise(model, torch.randn(4, 3, 8, 8), measure=False)
    assert told.best.method == "as_is"
    assert told.probability is None
    assert "compares rms" in told.abstains
    assert "the model's own layers" in report.advice_plain(told)


def test_methods_that_show_a_causal_model_the_future_are_not_advised():
    told = advise(Tokens(nn.LayerNorm, causal=True), torch.randint(11, (4, 8)), measure=False)
    refused = {r.method for r in told.ranking if r.refused}
    assert {"batch", "switchable", "instance", "group"} <= refused
    assert told.best.method not in refused


def test_a_causal_model_without_norms_is_shown_none_over_positions():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 5, 3)

        def forward(self, x):
            x = self.first(nn.functional.pad(x, (2, 0))).relu()
            return self.second(nn.functional.pad(x, (2, 0)))

    told = advise(Causal(), torch.randn(4, 3, 9), measure=False)
    assert {r.method for r in told.ranking if not r.refused} == {"none", "weight"}
    assert all("the model is causal" in r.refused for r in told.ranking if r.refused)


def test_the_code_runs_and_does_what_it_says():
    model = image_net()
    ranked = {r.method: r for r in advise(model, torch.randn(2, 3, 24, 24), measure=False).ranking}
    assert ranked["batch"].code == "# the model stays as it is"
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


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(3, 6, 3, padding=1)
        self.loop = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        return self.head(self.loop(self.convolution(x).relu().transpose(1, 2))[0][:, -1])


def lazy_net():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


BARE = {
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), (4, 3, 9, 9)),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), (4, 6)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), (4, 7, 6)),
    "recurrent": (Recurrent, (4, 3, 12)),
    "a loop alone": (lambda: nn.LSTM(6, 5, batch_first=True), (4, 7, 6)),
    "lazy": (lazy_net, (4, 3, 8, 8)),
}


@pytest.mark.parametrize("name", BARE)
def test_the_code_for_a_model_without_norms_or_sizes_changes_it(name):
    make, shape = BARE[name]
    told = advise(make(), torch.randn(shape), measure=False)
    possible = [r for r in told.ranking if r.refused is None]
    assert len(possible) >= 3
    for ranked in possible:
        names = {"model": make(), "normwise": normwise}
        before = repr(names["model"])
        exec(ranked.code, names)
        stays = ranked.method == ("batch" if name == "lazy" else "none")
        assert ranked.code.startswith("#") == stays
        assert (repr(names["model"]) == before) == stays
        names["model"].train()(torch.randn(shape))


def test_a_net_that_concatenates_is_not_called_one_without_shortcuts():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.BatchNorm2d(4 + 2 * i), nn.ReLU(), nn.Conv2d(4 + 2 * i, 2, 3, padding=1))
                for i in range(10)
            )

        def forward(self, x):
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return x

    told = advise(Dense(), torch.randn(4, 4, 8, 8), measure=False)
    assert told.situation.concatenations == 10
    assert all(reason.rule != "deep-plain" for ranked in told.ranking for reason in ranked.reasons)


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
    assert set(costs) == set(METHODS)
    assert all(cost.step_seconds > 0 for cost in costs.values())
    assert costs["none"].peak_bytes < costs["switchable"].peak_bytes


def test_what_was_held_before_does_not_hide_what_a_step_holds():
    weight = torch.zeros(100_000, requires_grad=True)

    def step():
        weight.grad = None  # seen or not seen by the profiler, by chance
        kept = [[None] for _ in range(3000)]
        for one in kept:
            one[0] = one  # enough for Python to collect garbage
        (weight * 2).sum().backward()

    found = set()
    for _ in range(20):
        cycle = [torch.zeros(200_000)]
        cycle.append(cycle)
        del cycle
        found.add(peak_bytes(step))
    assert len(found) == 1
    assert found.pop() >= 400_000


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


def test_table_shows_the_evidence_the_reasons_and_every_method():
    hidden = [layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    told = advise(nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), *hidden, nn.Linear(32, 2)), torch.randn(32, 8))
    assert told.best.method == "batch"
    text = report.advice_plain(told, 100)
    for part in ("use batch norm", "measured tasks most like it", "+ 7 sigmoids", "arXiv", "instance", "norm_layer"):
        assert part in text


def test_a_check_exempts_the_places_that_the_code_exempts(monkeypatch):
    from normwise.study.tasks.images import digits

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    tasks = []

    def stopped(end, task, *_):
        tasks.append(task)
        raise InterruptedError

    monkeypatch.setattr("normwise.study.verifying._steps_until", stopped)
    told = advise(model, digits().train.inputs[:32], measure=False)
    instance = next(r for r in told.ranking if r.method == "instance")
    assert [(e.place, e.use) for e in instance.exemptions] == [("4", "layer")]
    with pytest.raises(InterruptedError):
        check_by_training(model, told, digits(), 0)
    built = tasks[0].build(instance.spec)
    assert isinstance(built[1], nn.InstanceNorm2d)
    assert isinstance(built[4], nn.GroupNorm)
    assert built[4].num_groups == 1


def test_verify_trains_on_the_users_data_and_says_whether_it_held():
    from normwise.study.tasks.images import digits, small_convnet

    model = small_convnet(normwise.norm_layer("batch"))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data = digits()
    began = time.perf_counter()
    told = advise(model, data.train.inputs[:16], data=data, verify=12)
    check = told.check
    # Late by a step or a trial at most; twice the time leaves room for a machine that does something else meanwhile.
    assert time.perf_counter() - began < 2 * 12
    assert told.best.method in check.methods
    assert "batch" in check.methods
    assert check.held is None or (check.behind >= 0 and "batch size 16" in check.headline)
    assert "of training on your data" in report.advice_plain(told)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    short = advise(model, data.train.inputs[:16], measure=False, data=data, verify=0.1).check
    assert short.held is None
    assert "too few" in short.headline
    assert "the time allows 0 steps" in short.headline
    with pytest.raises(InputError, match="needs data"):
        advise(model, data.train.inputs[:16], measure=False, verify=5)


def test_a_check_of_a_slow_model_keeps_its_time_as_well():
    class Slow(nn.Sequential):
        def forward(self, x):
            time.sleep(0.15)
            return super().forward(x)

    data = torch.randn(60, 3), torch.arange(60) % 3
    began = time.perf_counter()
    model = Slow(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    check = advise(model, data[0][:8], data=data, verify=8).check
    assert time.perf_counter() - began < 2 * 8
    assert check.held is None
    assert "steps a run, too few to say anything" in check.headline


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
    advice = json.loads(told.stdout)
    assert advice["abstains"] or advice["ranking"][0]["method"] != "batch"
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

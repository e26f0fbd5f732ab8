"""Every call that says it leaves the caller's model alone, over models that are easily harmed."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import normwise
from normwise.errors import InputError, NormwiseError
from normwise.nn import SwitchableNorm1d
from normwise.parametrize import spectral_norm, weight_norm, weight_norms, weight_standardization
from normwise.probe import survey
from normwise.study import consult
from normwise.surgery import describe, find

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    # Torch's remark on the hooks of the zoo, whose input needs no gradient.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


def conv():
    return nn.Conv1d(4, 8, 3)


class Doubled(nn.Module):
    def forward(self, v):
        return 2 * v

    def right_inverse(self, weight):
        return weight / 2


class Counting(nn.Conv1d):
    """Keeps count, a cache and a list in plain attributes, as people's modules do."""

    def __init__(self):
        super().__init__(4, 8, 3)
        self.calls, self.seen, self.last = 0, [], {}

    def forward(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        self.last["y"] = y = super().forward(x)
        return y.detach() + 0 * y


class Failing(nn.Conv1d):
    def forward(self, x):
        self.training = not self.training
        raise KeyError("a forward pass that raises")


def hooked():
    layer = conv()
    layer.register_forward_hook(lambda m, a, y: 2 * y)
    layer.register_forward_pre_hook(lambda m, a: (a[0] + 1,))
    layer.register_full_backward_hook(lambda m, g, h: None)
    layer.register_full_backward_pre_hook(lambda m, g: None)
    return layer


def by_older_hook(function):
    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(conv())

    return make


def tied():
    layer = nn.Conv1d(4, 4, 3)
    other = nn.Conv1d(4, 4, 3, padding=2)
    other.weight = layer.weight
    return nn.Sequential(layer, other, other, nn.Conv1d(4, 8, 1))


def partly_frozen():
    layer = weight_norm(conv())
    return layer.requires_grad_(False)


def non_leaf():
    layer = conv()
    layer.cache = layer.weight * 2
    return layer


FIRST = {
    "torch's weight norm": lambda: parametrizations.weight_norm(conv()),
    "torch's older weight norm": by_older_hook(nn.utils.weight_norm),
    "our weight norm": lambda: weight_norm(conv()),
    "a frozen weight norm": partly_frozen,
    "torch's spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "torch's older spectral norm": by_older_hook(nn.utils.spectral_norm),
    "our spectral norm": lambda: spectral_norm(conv()),
    "weight standardization": lambda: weight_standardization(conv()),
    "a parametrization of one's own": lambda: parametrize.register_parametrization(conv(), "weight", Doubled()),
    "two parametrizations": lambda: parametrizations.weight_norm(
        parametrize.register_parametrization(conv(), "bias", Doubled())
    ),
    "a lazy convolution": lambda: nn.LazyConv1d(8, 3),
    "lazy norms": lambda: nn.Sequential(conv(), nn.LazyBatchNorm1d(), normwise.nn.LazyBatchNorm1d()),
    "tied and shared": tied,
    "pruned": lambda: prune.l1_unstructured(conv(), "weight", 0.5),
    "hooks": hooked,
    "counts and caches": Counting,
    "scripted": lambda: torch.jit.script(conv()),
    "a tensor of a graph": non_leaf,
    "a forward pass that raises": lambda: Failing(4, 8, 3),
    "meta": lambda: conv().to("meta"),
}


def net(kind):
    torch.manual_seed(0)
    layers = [FIRST[kind](), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), SwitchableNorm1d(8), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    model[1].eval()
    model[3].weight.requires_grad_(False)
    return model.to("meta") if kind == "meta" else model


X = torch.randn(6, 4, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(6) % 3
BATCHES = [(X, Y), (2 * X, Y)]
SHORT = [(X[:, :3], Y)]

CALLS = {
    "advise": lambda m: normwise.advise(m, X, batch_size=4),
    "advise on bad data": lambda m: normwise.advise(m, X[:, :3]),
    "diagnose": lambda m: normwise.diagnose(m, BATCHES, nn.functional.cross_entropy, steps=2),
    "diagnose without loss": lambda m: normwise.diagnose(m, BATCHES),
    "diagnose on bad data": lambda m: normwise.diagnose(m, SHORT),
    "diagnose, then bad data": lambda m: normwise.diagnose(m, BATCHES + SHORT),
    "diagnose with a loss that raises": lambda m: normwise.diagnose(m, BATCHES, lambda y, t: 1 / 0),
    "inspect": normwise.inspect,
    "find": find,
    "describe": lambda m: [describe(part) for part in m.modules()],
    "survey": lambda m: survey(m, X),
    "importance": normwise.importance,
    "weight_norms": lambda m: [weight_norms(part) for part in m.modules()],
    "param_groups": lambda m: normwise.param_groups(m, 0.1),
    "convert to none": lambda m: normwise.convert(m, "none", copy=True, strict=False),
    "convert to weight": lambda m: normwise.convert(m, "weight", copy=True, strict=False, example_inputs=X),
    "convert to group": lambda m: normwise.convert(m, "group", copy=True, strict=False, calibrate_with=BATCHES),
    "convert and undo": lambda m: normwise.convert(m, "none", copy=True, strict=False).undo(),
    "convert on bad data": lambda m: normwise.convert(m, "group", copy=True, strict=False, example_inputs=X[:, :3]),
    "convert strictly": lambda m: normwise.convert(m, "weight", where="9", copy=True),
    "calibrate": lambda m: normwise.calibrate(m, BATCHES, copy=True),
    "calibrate layerwise": lambda m: normwise.calibrate(m, iter(BATCHES), copy=True, layerwise=True),
    "calibrate on bad data": lambda m: normwise.calibrate(m, BATCHES + SHORT, copy=True),
    "fold": lambda m: normwise.fold(m, X, copy=True),
    "freeze": lambda m: normwise.freeze(m, copy=True),
    "harden": lambda m: normwise.harden(m, 0.5, X, copy=True),
}


def tensors(module):
    return {**module._parameters, **module._buffers}


def seen(model):
    """What must not change: identities, flags, hooks, plain attributes and values."""
    facts = {}
    for name, module in model.named_modules():
        facts[name] = id(module), type(module), module.training, properties(type(module))
        for key, value in vars(module).items():
            facts[name, key] = id(value)
            if isinstance(value, (dict, list)) and not isinstance(module, torch.jit.ScriptModule):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                facts[name, key, "holds"] = [(k, v if isinstance(v, int) else id(v)) for k, v in items]
            if isinstance(value, torch.Tensor):
                facts[name, key, "graph"] = value.requires_grad, value.is_leaf
    scripted = isinstance(model[0], torch.jit.ScriptModule)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        facts[name, "flags"] = (tensor.requires_grad, tensor.grad is None, type(tensor), scripted or id(tensor))
    return facts


def properties(kind):
    return sorted(set(vars(kind)) - {"__slotnames__"})  # which copyreg caches there


def changes(model, before):
    after = seen(model)
    return {key: (before.get(key), after.get(key)) for key in {*before, *after} if before.get(key) != after.get(key)}


def values(model):
    known = {n: t for n, t in model.state_dict(keep_vars=True).items() if not nn.parameter.is_lazy(t) and not t.is_meta}
    return {name: tensor.detach().clone() for name, tensor in known.items()}


def outputs(model):
    """Of a twin in every value, so that looking changes nothing: evaluation, and training by fixed random numbers."""
    modes = {m: m.training for m in model.modules()}
    kept = {t: t.detach().clone() for t in model.buffers()}
    try:
        given = []
        for training in (False, True):
            for module in modes:
                module.training = training
            torch.manual_seed(3)
            given.append(model(X).detach().clone())
        return given
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in kept.items():
                buffer.copy_(value)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(consult, "_TIMING", 0.0)
    monkeypatch.setattr(consult, "_ROUNDS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", normwise.errors.NormwiseWarning)
        yield


RUNS = [kind for kind in FIRST if kind not in ("meta", "a forward pass that raises")]
MAY_REFUSE = {"meta", "a forward pass that raises", "a tensor of a graph"}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", FIRST)
def test_the_model_is_left_alone(kind, call):
    model = net(kind)
    before, state = seen(model), values(model)
    torch.manual_seed(7)
    error = None
    try:
        CALLS[call](model)
    except Exception as caught:
        error = caught
    lazy = "lazy" in kind and call in ("freeze", "fold", "harden", "calibrate")
    strictly = call == "convert strictly"
    assert error is None or kind in MAY_REFUSE or "bad data" in call or "raises" in call or strictly or lazy, error
    assert not isinstance(error, NormwiseError) or "\n" not in str(error)
    assert not changes(model, before)
    after = values(model)
    assert after.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("kind", [kind for kind in RUNS if "lazy" not in kind])
def test_the_model_computes_what_it_did_before_all_of_the_calls(kind):
    model, twin = net(kind), net(kind)
    for call in CALLS.values():
        try:
            call(model)
        except Exception:  # the test above says which may
            continue
    for mine, expected in zip(outputs(model), outputs(twin), strict=True):
        assert torch.equal(mine, expected)
    for each in (model, twin):
        torch.manual_seed(3)
        each(X).sum().backward()
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (expected.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, expected.grad)


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind not in MAY_REFUSE])
@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "after a training pass"])
def test_a_copy_computes_the_same_and_leads_nowhere_back(kind, ran):
    model = net(kind)
    if ran:
        model(X).sum().backward()
        model.zero_grad()
    if kind == "counts and caches" and ran:
        with pytest.raises(
            InputError, match=r"'0' .Counting. in Sequential holds 'last', a tensor that belongs to a graph"
        ):
            normwise.freeze(model, copy=True)
        return
    twin = normwise.convert(model, "group", where="1", copy=True, strict=False).model
    again = normwise.convert(model, "batch", where="1", copy=True, strict=False).model
    if kind in ("a lazy convolution", "lazy norms") and not ran:
        assert not any(map(nn.parameter.is_lazy, twin[3].parameters()))
        return
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert not own & {id(t) for t in (*twin.parameters(), *twin.buffers())}
    for mine, expected in zip(outputs(again), outputs(model), strict=True):
        torch.testing.assert_close(mine, expected)
    state = values(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    twin(X).sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in values(model).items())
    assert [p.requires_grad for p in twin[0].parameters()] == [p.requires_grad for p in model[0].parameters()]


def test_the_example_of_the_issue():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 8, 3)), nn.GroupNorm(2, 8), nn.Conv1d(8, 8, 3))
    expected = model(X)
    normwise.advise(model, X)
    normwise.convert(model, "none", copy=True)
    assert torch.equal(model(X), expected)
    assert model[0].weight.shape == (8, 4, 3)


def test_a_copy_of_the_users_own_survives_surgery_in_place():
    """Torch's deep copies share the class, so what is taken off the model must not be taken off the average."""
    import copy

    model = nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm1d(8))
    average = copy.deepcopy(model)
    normwise.convert(model, "none")
    assert torch.equal(average[0].weight, model[0].weight)
    average(X)
    other = copy.deepcopy(average)
    normwise.remove_weight_norm(average)
    other(X)


def test_what_cannot_be_copied_is_named():
    with pytest.raises(InputError, match=r"'0' .Conv1d. in Sequential holds 'cache', a tensor that belongs to a graph"):
        normwise.freeze(net("a tensor of a graph"), copy=True)
    model = net("tied and shared")
    model[0][0] = torch.jit.script(model[0][1])
    with pytest.raises(InputError, match="shares a tensor between a scripted part and one that is not"):
        normwise.freeze(model, copy=True)

    class Stubborn(nn.ReLU):
        def __deepcopy__(self, memo):
            return self

    model = nn.Sequential(nn.BatchNorm1d(3), Stubborn())
    with pytest.raises(InputError, match=r"'1' .Stubborn. in Sequential shares its tensors"):
        normwise.freeze(model, copy=True)

    class Locked(nn.ReLU):
        def __init__(self):
            super().__init__()
            self.lock = __import__("threading").Lock()

    with pytest.raises(
        InputError, match=r"'1.0' .Locked. in Sequential cannot be deep-copied .TypeError: cannot pickle"
    ):
        normwise.freeze(nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(Locked())), copy=True)


def test_verification_trains_copies():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(4, 8, 3)), nn.BatchNorm1d(8), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    before, state = seen(model), values(model)
    x = torch.randn(60, 4, 12)
    advice = normwise.advise(model, x[:8], data=(x, torch.arange(60) % 3), verify=0.1, measure=False)
    assert advice.check is not None
    assert not changes(model, before)
    assert all(torch.equal(value, state[name]) for name, value in values(model).items())

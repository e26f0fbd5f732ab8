"""Weight norm against its formula, torch's key schemes, torch's faults, and the data-dependent initialization."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normwise.errors import InputError, NormwiseWarning
from normwise.nn.recurrent import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM
from normwise.parametrize import remove_weight_norm, weight_norm, weight_norm_init, weight_normalize, weight_norms

LAYERS = {
    "linear": lambda: (nn.Linear(4, 3), torch.randn(5, 4)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, groups=2), torch.randn(5, 4, 8)),
    "conv2d": lambda: (nn.Conv2d(3, 6, 3), torch.randn(5, 3, 8, 8)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 6, 3), torch.randn(5, 4, 5, 5)),
    "lstm": lambda: (nn.LSTM(4, 3, 2, bidirectional=True), torch.randn(6, 2, 4)),
    "projected": lambda: (nn.LSTM(4, 3, proj_size=2), torch.randn(6, 2, 4)),
    "gru": lambda: (nn.GRU(4, 3), torch.randn(6, 2, 4)),
    "cell": lambda: (nn.LSTMCell(4, 3), torch.randn(2, 4)),
    "ours": lambda: (LayerNormLSTM(4, 3, bidirectional=True), torch.randn(6, 2, 4)),
    "our cell": lambda: (LayerNormGRUCell(4, 3), torch.randn(2, 4)),
}


def first(output):
    while isinstance(output, tuple):
        output = output[0]
    return output


def numpy_weight(g, v, dim):
    """Salimans & Kingma 2016, eq. 2, in float64."""
    g, v = g.detach().double(), v.detach().double()
    axes = [a for a in range(v.ndim) if a != dim]
    return g * v / v.pow(2).sum(axes, keepdim=True).sqrt()


# Torch says that its projected LSTM does not run on oneDNN.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


@pytest.fixture(params=LAYERS)
def case(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_function_and_gradients_survive_the_split(case):
    layer, x = case
    before = first(layer(x))
    names = {name for name, _ in layer.named_parameters() if name.startswith("weight")}
    assert weight_normalize(layer) is layer
    assert set(weight_norms(layer)) == names
    torch.testing.assert_close(first(layer(x)), before, rtol=1e-5, atol=1e-6)
    first(layer(x)).square().sum().backward()
    for name in names:
        chain = layer.parametrizations[name]
        assert chain.original0.grad.isfinite().all()
        # The direction's gradient stands at right angles to it.
        along = (chain.original1.grad * chain.original1).sum(), chain.original1.grad.norm() * chain.original1.norm()
        assert abs(along[0]) <= 1e-4 * along[1]
    assert any(layer.parametrizations[name].original1.grad.any() for name in names)


def test_training_moves_what_the_layer_computes(case):
    """Torch's recurrent layers keep a list of their weights: a stale one would freeze the function."""
    layer, x = case
    weight_normalize(layer)
    before = first(layer(x)).detach()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    first(layer(x)).sum().backward()
    optimizer.step()
    assert not torch.allclose(first(layer(x)), before)
    with torch.no_grad():
        for name in weight_norms(layer):
            layer.parametrizations[name].original0.zero_()
            assert not getattr(layer, name).any()


def test_weights_follow_the_formula(case):
    layer, _ = case
    weight_normalize(layer)
    for name, step in weight_norms(layer).items():
        chain = layer.parametrizations[name]
        with torch.no_grad():
            chain.original0.uniform_(0.5, 2)
            chain.original1.mul_(3)
        expected = numpy_weight(chain.original0, chain.original1, step.dim)
        torch.testing.assert_close(getattr(layer, name).double(), expected, rtol=1e-5, atol=1e-6)


def test_copies_and_pickles_are_independent_even_after_a_forward_pass(case):
    layer, x = case
    weight_normalize(layer)
    expected = first(layer(x)).detach()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    for twin in twins:
        torch.testing.assert_close(first(twin(x)), expected, rtol=0, atol=0)
        assert weight_norms(twin).keys() == weight_norms(layer).keys()
        remove_weight_norm(twin)
        assert not parametrize.is_parametrized(twin)
        torch.testing.assert_close(first(twin(x)), expected, rtol=1e-6, atol=1e-6)
        assert parametrize.is_parametrized(layer)
        torch.testing.assert_close(first(layer(x)), expected, rtol=0, atol=0)
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())


def test_removal_gives_the_plain_layer_back(case):
    layer, x = case
    names = [name for name, _ in layer.named_parameters()]
    before = first(layer(x)).detach()
    remove_weight_norm(weight_normalize(layer))
    assert sorted(name for name, _ in layer.named_parameters()) == sorted(names)
    torch.testing.assert_close(first(layer(x)), before, rtol=1e-5, atol=1e-6)
    plain = type(layer).__name__
    assert not plain.startswith("Parametrized")
    assert not layer._load_state_dict_pre_hooks
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    first(layer(x)).sum().backward()
    optimizer.step()
    assert not torch.allclose(first(layer(x)), before)


def older(layer, names):
    """The hook API of torch, which warns that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in names:
            nn.utils.weight_norm(layer, name)
    return layer


@pytest.mark.parametrize("kind", ["linear", "conv2d", "lstm"])
def test_both_of_torchs_key_schemes_and_plain_weights_load(kind):
    layer, x = LAYERS[kind]()
    names = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
    sources = {
        "hook": older(copy.deepcopy(layer), names),
        "parametrization": copy.deepcopy(layer),
        "plain": layer,
    }
    for name in names:
        nn.utils.parametrizations.weight_norm(sources["parametrization"], name)
    for key, source in sources.items():
        target = nn.Sequential(weight_normalize(LAYERS[kind]()[0]))
        state = {f"0.{name}": value for name, value in source.state_dict().items()}
        assert any(name.endswith("_g") for name in state) == (key == "hook")
        target.load_state_dict(state)
        torch.testing.assert_close(first(target(x)), first(source(x)), rtol=1e-5, atol=1e-6)
    # And ours loads into torch's.
    theirs = LAYERS[kind]()[0]
    for name in names:
        nn.utils.parametrizations.weight_norm(theirs, name)
    theirs.load_state_dict(weight_normalize(layer).state_dict())
    torch.testing.assert_close(first(theirs(x)), first(layer(x)), rtol=1e-5, atol=1e-6)


def test_one_magnitude_for_the_whole_weight_has_torchs_shape():
    ours, theirs = (
        weight_norm(nn.Linear(4, 3), dim=None),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 3), dim=None),
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_zeros_and_long_half_rows_stay_finite(dtype):
    layer = nn.Linear(40_000, 2, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight[0].zero_()
        layer.weight[1].fill_(3)  # the sum of squares, 360,000, is beyond float16
    weight_norm(layer)
    assert not layer.weight[0].any()
    torch.testing.assert_close(layer.weight[1], torch.full_like(layer.weight[1], 3), rtol=1e-2, atol=0)
    layer.weight.float().sum().backward()
    for part in (layer.parametrizations.weight.original0, layer.parametrizations.weight.original1):
        assert part.grad.isfinite().all()
    with torch.no_grad():
        layer.parametrizations.weight.original1[0].zero_()
    layer.zero_grad()
    layer.weight.float().sum().backward()
    assert not layer.weight[0].any()
    assert layer.parametrizations.weight.original1.grad.isfinite().all()


class Net(nn.Module):
    """Registered in another order than it runs in; with a batch norm, dropout and a layer that never runs."""

    def __init__(self, bias=True):
        super().__init__()
        self.head = nn.Linear(8, 5, bias=bias)
        self.unused = nn.Linear(2, 2)
        self.up = nn.ConvTranspose2d(6, 8, 2, bias=bias)
        self.norm = nn.BatchNorm2d(6)
        self.stem = nn.Conv2d(3, 6, 3, bias=bias)

    def forward(self, x):
        x = self.norm(self.stem(x).relu())
        return self.head(self.up(x).relu().mean((2, 3)))


def outputs_of(model, x):
    found = {}
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: found.update({name: o.detach()}))
        for name, module in model.named_children()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def test_initialization_gives_zero_mean_and_unit_deviation_in_order_of_execution():
    torch.manual_seed(0)
    model = weight_normalize(Net())
    x = 5 + 3 * torch.randn(32, 3, 9, 9)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    with pytest.warns(NormwiseWarning, match="did not pass through unused"):
        assert weight_norm_init(model, x) == ["stem", "up", "head"]
    assert model.training
    for name, buffer in model.named_buffers():
        assert buffer.equal(buffers[name])
    for name, output in outputs_of(model, x).items():
        if name != "norm":
            output = output.movedim(1, 0).flatten(1).double()
            torch.testing.assert_close(output.mean(1), torch.zeros(len(output)).double(), rtol=0, atol=1e-4)
            torch.testing.assert_close(output.std(1, correction=0), torch.ones(len(output)).double(), rtol=1e-4, atol=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_initialization_is_the_papers_formula():
    layer = weight_norm(nn.Linear(4, 3).double())
    x = torch.randn(50, 4).double() + 1
    v = layer.parametrizations.weight.original1.detach().clone()
    t = x @ (v / v.norm(dim=1, keepdim=True)).T
    weight_norm_init(layer, x)
    torch.testing.assert_close(layer.parametrizations.weight.original0[:, 0], 1 / t.std(0, correction=0))
    torch.testing.assert_close(layer.bias, -t.mean(0) / t.std(0, correction=0))
    assert layer.parametrizations.weight.original1.equal(v)


def test_initialization_without_bias_scales_only_and_constant_units_stay():
    model = weight_normalize(Net(bias=False), where=lambda name, _: name != "unused")
    x = torch.randn(32, 3, 9, 9)
    weight_norm_init(model.eval(), x)
    assert not model.training
    stem = outputs_of(model, x)["stem"].movedim(1, 0).flatten(1)
    torch.testing.assert_close(stem.std(1, correction=0), torch.ones(6), rtol=1e-4, atol=0)
    layer = weight_norm(nn.Linear(2, 3))
    g = layer.parametrizations.weight.original0.detach().clone()
    with pytest.warns(NormwiseWarning, match="3 unit"):
        weight_norm_init(layer, torch.ones(4, 2))
    assert layer.parametrizations.weight.original0.equal(g)


def test_a_failed_initialization_changes_nothing():
    model = weight_normalize(Net())
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 3, 9, 9)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="'stem' is not finite"):
        weight_norm_init(model, x)

    class Broken(Net):
        def forward(self, x):
            super().forward(x)
            raise KeyError("late")

    broken = weight_normalize(Broken())
    broken.load_state_dict(before)
    with pytest.raises(KeyError):
        weight_norm_init(broken, torch.randn(4, 3, 9, 9))
    for state in (model.state_dict(), broken.state_dict()):
        assert all(state[key].equal(value) for key, value in before.items())
    assert not any(module._forward_hooks for module in broken.modules())


def test_refusals_say_what_to_do():
    with pytest.raises(InputError, match="no linear or convolutional layer"):
        weight_norm_init(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(InputError, match="dim=0"):
        weight_norm_init(weight_norm(nn.Linear(2, 2), dim=1), torch.ones(1, 2))
    with pytest.raises(InputError, match="groups=1"):
        weight_norm_init(weight_normalize(nn.ConvTranspose1d(4, 4, 2, groups=2)), torch.ones(1, 4, 3))
    with pytest.raises(InputError, match="parametrized already"):
        weight_norm(weight_norm(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="no weight norm to remove"):
        remove_weight_norm(nn.Linear(2, 2))
    with pytest.raises(InputError, match="first forward pass"):
        weight_normalize(nn.LazyLinear(2))
    model = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"'weight' of layer '1' \(ParametrizedLinear\) is parametrized already"):
        weight_normalize(model)
    assert not parametrize.is_parametrized(model[0])
    with pytest.raises(InputError, match="no parameter 'weight'"):
        weight_norm(nn.LSTM(2, 2))
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(InputError, match=r"a\.weight and b\.weight are one parameter"):
        weight_normalize(tied)
    assert not parametrize.is_parametrized(tied["a"])


def test_a_shared_module_is_split_once_and_repetition_is_harmless():
    layer = nn.Linear(2, 2)
    model = weight_normalize(weight_normalize(nn.Sequential(layer, nn.ReLU(), layer, LayerNormGRU(2, 2))))
    assert len(layer.parametrizations.weight) == 1
    assert set(weight_norms(model[3])) == {"weight_ih_l0", "weight_hh_l0"}


def by_older_hook(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


PUT_ON = {"ours": weight_norm, "torch's": nn.utils.parametrizations.weight_norm, "torch's older": by_older_hook}


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("who", PUT_ON)
def test_every_weight_norm_is_known_and_taken_off(who, learns):
    layer, x = nn.Conv1d(4, 6, 3), torch.randn(5, 4, 8)
    layer.weight.requires_grad_(learns)
    expected = layer(x)
    PUT_ON[who](layer)
    for parameter in layer.parameters():
        parameter.requires_grad_(learns)
    assert {name: norm.dim for name, norm in weight_norms(layer).items()} == {"weight": 0}
    assert weight_normalize(layer) is layer  # left as it is
    with pytest.raises(InputError, match="already"):
        weight_norm(layer)
    with pytest.raises(InputError, match="no weight norm on any 'bias'"):
        remove_weight_norm(layer, "bias")
    assert remove_weight_norm(layer, "weight") is layer
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.requires_grad == learns
    assert "weight" not in layer._buffers
    assert type(layer) is nn.Conv1d
    assert not layer._forward_pre_hooks
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("who", PUT_ON)
def test_every_weight_norm_can_be_initialized_from_data(who):
    layer, x = PUT_ON[who](nn.Linear(4, 3)), torch.randn(200, 4)
    assert weight_norm_init(layer, x) == ["Linear" if "older" in who else "ParametrizedLinear"]
    torch.testing.assert_close(layer(x).std(0, correction=0), torch.ones(3), rtol=1e-4, atol=0)


def test_torch_takes_ours_off(case):
    layer, x = case
    expected = first(layer(x)).detach()
    state = copy.deepcopy(layer.state_dict())
    for name in list(weight_norms(weight_normalize(layer))):
        parametrize.remove_parametrizations(layer, name)
    torch.testing.assert_close(first(layer(x)), expected, rtol=1e-5, atol=1e-6)
    layer.load_state_dict(state)
    torch.testing.assert_close(first(layer(x)), expected, rtol=1e-5, atol=1e-6)
    weight_normalize(layer).load_state_dict(state)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(4, 3), lambda: nn.Conv2d(3, 6, 3), lambda: nn.ConvTranspose1d(4, 2, 3)]
)
@pytest.mark.parametrize("dim", [None, -1, -2, 0, 1])
def test_dims_mean_what_they_mean_in_torch(make, dim):
    ours = make()
    torchs, olders = copy.deepcopy(ours), by_older_hook(copy.deepcopy(ours), dim=dim)
    weight_norm(ours, dim=dim)
    nn.utils.parametrizations.weight_norm(torchs, dim=dim)
    for other in (torchs.parametrizations.weight.original0, olders.weight_g):
        torch.testing.assert_close(ours.parametrizations.weight.original0, other)
    with torch.no_grad():
        for g in (ours.parametrizations.weight.original0, torchs.parametrizations.weight.original0, olders.weight_g):
            g.mul_(2).add_(0.5)
    torch.testing.assert_close(ours.weight, torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    ours.load_state_dict(olders.state_dict())
    assert weight_norms(ours)["weight"].dim == weight_norms(torchs)["weight"].dim == weight_norms(olders)["weight"].dim


def test_a_pruned_weight_is_refused():
    pruned = nn.utils.prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5)
    with pytest.raises(InputError, match="computed from other tensors, by a hook"):
        weight_norm(pruned)

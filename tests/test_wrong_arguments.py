"""Arguments of the wrong kind: one line that says what came, what was expected and what to do."""

import pytest
import torch
from torch import nn

import normwise
from normwise import parametrize, probe, surgery
from normwise.errors import NormwiseError
from normwise.nn import switchable_layers

X = torch.randn(4, 3)
BATCHES = [X]


def entered(manager):
    with manager:
        pass


# Every public function that takes a model, called with it.
TAKE_A_MODEL = {
    "advise": lambda m: normwise.advise(m, X),
    "audit_frozen": normwise.audit_frozen,
    "calibrate": lambda m: normwise.calibrate(m, BATCHES),
    "calibrate a copy": lambda m: normwise.calibrate(m, BATCHES, copy=True),
    "compare": lambda m: normwise.compare(lambda: m, (torch.randn(40, 3), torch.arange(40) % 2)),
    "convert": lambda m: normwise.convert(m, "group"),
    "convert a copy": lambda m: normwise.convert(m, "group", copy=True),
    "describe": surgery.describe,
    "diagnose": lambda m: normwise.diagnose(m, BATCHES),
    "find": surgery.find,
    "fold": normwise.fold,
    "freeze": normwise.freeze,
    "frozen_layers": lambda m: list(surgery.frozen_layers(m)),
    "harden": normwise.harden,
    "importance": normwise.importance,
    "inspect": normwise.inspect,
    "is_frozen": surgery.is_frozen,
    "load_published": lambda m: normwise.load_published(m, {}),
    "param_groups": lambda m: normwise.param_groups(m, 0.1),
    "remove_weight_norm": normwise.remove_weight_norm,
    "set_sparsity": lambda m: normwise.nn.set_sparsity(m, 0.5),
    "spectral_norm": parametrize.spectral_norm,
    "statistics_paused": lambda m: entered(surgery.statistics_paused(m)),
    "survey": lambda m: probe.survey(m, X),
    "switchable_layers": lambda m: list(switchable_layers(m)),
    "sync": normwise.sync,
    "unfreeze": normwise.unfreeze,
    "watch": normwise.watch,
    "weight_norm": normwise.weight_norm,
    "weight_norm_init": lambda m: normwise.weight_norm_init(m, X),
    "weight_normalize": normwise.weight_normalize,
    "weight_norms": parametrize.weight_norms,
    "weight_standardization": parametrize.weight_standardization,
}

NO_MODELS = {
    "None": (None, "None"),
    "a text": ("x.pt", "'x.pt'"),
    "a class": (nn.BatchNorm1d, "class BatchNorm1d"),
    "a state_dict": (nn.BatchNorm1d(3).state_dict(), "OrderedDict"),
    "a list": ([nn.BatchNorm1d(3)], "list"),
    "a tensor": (X, "Tensor"),
    "a number": (3, "int"),
    "a function": (lambda: nn.BatchNorm1d(3), "function"),
    "parameters": (nn.BatchNorm1d(3).parameters(), "generator"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
@pytest.mark.parametrize("call", TAKE_A_MODEL)
def test_what_is_no_model_is_refused(call, kind):
    value, said = NO_MODELS[kind]
    if call == "inspect" and kind == "a state_dict":
        assert normwise.inspect(value).layers
        return
    with pytest.raises((NormwiseError, TypeError)) as caught:
        TAKE_A_MODEL[call](value)
    text = str(caught.value)
    assert isinstance(caught.value, NormwiseError)
    assert "\n" not in text
    assert "Module" in text
    assert said in text or call == "compare"


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: normwise.convert(net(), nn.GroupNorm), "GroupNorm failed to build a layer for 4 channels: TypeError"),
        (lambda: normwise.convert(net(), None), "got None: write convert"),
        (lambda: normwise.convert(net(), nn.GroupNorm(1, 4)), "got a GroupNorm: write convert"),
        (lambda: normwise.convert(net(), "bacth"), "unknown method 'bacth'"),
        (lambda: normwise.convert(net(), "group", optimizer="adam"), "optimizer .* got the text 'adam'"),
        (lambda: normwise.convert(net(), "group", where=3), "where must be a name pattern"),
        (lambda: normwise.convert(net(), "group", share="half"), "share must be a number, got the text 'half'"),
        (lambda: normwise.convert(net(), "group", calibrate_with=3), "calibrate_with to give batches"),
        (lambda: normwise.convert(net(), "group", forward="f"), "forward to be a function"),
        (lambda: normwise.norm_layer(nn.GroupNorm(1, 4)), "expected the name of a method.* got a GroupNorm"),
        (lambda: normwise.norm_layer(nn.GroupNorm)(4), "GroupNorm failed to build a layer for 4 channels: TypeError"),
        (lambda: normwise.norm_layer(None), "expected the name of a method"),
        (lambda: normwise.calibrate(net(), None), "cannot use None as data: expected"),
        (lambda: normwise.calibrate(net(), "data"), "cannot use the text 'data' as data"),
        (lambda: normwise.calibrate(net(), 5), "cannot use an int as data"),
        (lambda: normwise.calibrate(net(), {"x": X, "y": X[:2]}), "the columns x, y: .* differ in length"),
        (lambda: normwise.calibrate(net(), BATCHES, batches="3"), "batches must be a whole number, got the text"),
        (lambda: normwise.calibrate(net(), BATCHES, batches=0), "batches must be at least 1, got 0"),
        (lambda: normwise.calibrate(net(), BATCHES, report=3), "report to be a function"),
        (lambda: normwise.calibrate(net(), []), "no batch"),
        (lambda: normwise.diagnose(net(), None), "cannot use None as data"),
        (lambda: normwise.diagnose(net(), torch.utils.data.DataLoader), "cannot use the class DataLoader as data"),
        (
            lambda: normwise.diagnose(net(), BATCHES, "mse"),
            "unknown loss 'mse': torch.nn.functional has no such function",
        ),
        (lambda: normwise.diagnose(net(), BATCHES, steps="3"), "steps must be a whole number, got the text"),
        (lambda: normwise.diagnose(net(), BATCHES, optimizer=0.1), "optimizer must be .* got a float"),
        (lambda: normwise.watch(net(), every=None), "every must be a whole number, got None"),
        (lambda: normwise.watch(net(), 0.1), "optimizer .* got a float"),
        (lambda: normwise.fold(net(), tolerance="small"), "tolerance must be a number, got the text"),
        (lambda: normwise.fold(net(), report="print"), "report to be a function"),
        (lambda: normwise.harden(net(), "most"), "threshold must be a number, got the text 'most'"),
        (lambda: normwise.harden(net(), None), "threshold must be a number, got None"),
        (lambda: normwise.freeze(net(), where=3), "where must be a name pattern"),
        (lambda: normwise.advise(net(), None), "give example_inputs"),
        (lambda: normwise.advise(net(), "x.pt"), "example_inputs .* got the text 'x.pt'"),
        (lambda: normwise.advise(net(), X, batch_size="8"), "batch_size must be a whole number"),
        (lambda: normwise.advise(net(), X, batch_size=0), "batch_size must be at least 1"),
        (lambda: normwise.advise(net(), X, devices="2"), "devices must be a whole number"),
        (lambda: normwise.advise(net(), X, accumulate=None), "accumulate must be a whole number"),
        (lambda: normwise.advise(net(), X, verify="10", data=(X, X)), "verify must be a number"),
        (lambda: normwise.advise(net(), X, forward=3), "forward to be a function"),
        (lambda: normwise.advise(net(), X, task="astrology"), "astrology"),
        (lambda: normwise.param_groups(net(), "fast"), "lr must be a number"),
        (lambda: normwise.param_groups(net(), None), "lr must be a number"),
        (lambda: normwise.weight_norm(nn.Linear(2, 2), dim="0"), "dim"),
        (lambda: normwise.weight_norm(nn.Linear(2, 2), dim=7), "dim=7 is no axis"),
        (lambda: normwise.weight_norm(nn.Linear(2, 2), eps="0"), "eps must be a number"),
        (lambda: normwise.weight_norm(nn.Linear(2, 2), name=None), "no parameter None"),
        (lambda: normwise.weight_norm(nn.Linear(2, 2), "wieght"), "no parameter 'wieght'; it has: weight, bias"),
        (lambda: normwise.sync(net(), "all"), "process_group"),
        (lambda: normwise.inspect("x.pt"), "torch.load"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(call, said):
    with pytest.raises(NormwiseError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)

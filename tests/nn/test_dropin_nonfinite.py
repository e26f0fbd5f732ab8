"""A batch that is not finite does not spoil the running averages."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from namesakes import NAMESAKES
from torch import nn

from normwise.errors import NormwiseWarning
from normwise.nn import BatchNorm1d, BatchNorm2d, InstanceNorm2d, SwitchableNorm2d

LAYERS = {
    "batch": lambda **k: BatchNorm2d(3, **k),
    "instance": lambda **k: InstanceNorm2d(3, track_running_stats=True, **k),
    "switchable": lambda **k: SwitchableNorm2d(3, **k),
}
LAYER = pytest.mark.parametrize("kind", LAYERS)


def batches(bad: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    xs = [torch.randn(4, 3, 5, 5) + k for k in range(4)]
    xs[1][2, 1, 3, 3] = bad
    return xs


@LAYER
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_batch_is_left_out_counted_and_named_once(kind: str, bad: float, momentum: float | None) -> None:
    guarded, clean = LAYERS[kind](momentum=momentum), LAYERS[kind](momentum=momentum)
    model = nn.Sequential(nn.Sequential(nn.Identity(), guarded))
    xs = batches(bad)
    with pytest.warns(NormwiseWarning, match=r"layer '0\.1' \(\w+2d\) met a batch") as caught:
        [model(x) for x in [*xs, xs[1]]]
    assert len(caught) == 1
    for x in (xs[0], xs[2], xs[3]):
        clean(x)
    assert guarded.num_batches_skipped == 2
    torch.testing.assert_close(guarded.state_dict(), clean.state_dict(), rtol=0, atol=0)
    guarded.reset_running_stats()
    assert guarded.num_batches_skipped == 0


def test_only_the_first_layer_of_a_model_warns_and_all_count() -> None:
    layers = [BatchNorm2d(3), nn.Conv2d(3, 3, 1), SwitchableNorm2d(3), nn.Conv2d(3, 3, 1), BatchNorm2d(3)]
    model = nn.ModuleDict({"body": nn.Sequential(*layers)})["body"]
    with pytest.warns(NormwiseWarning, match=r"layer '0' \(BatchNorm2d\)") as caught:
        model(batches(float("nan"))[1])
    assert len(caught) == 1
    assert [layer.num_batches_skipped.item() for layer in model[::2]] == [1, 1, 1]


@LAYER
def test_off_it_is_as_in_torch(kind: str) -> None:
    layer = LAYERS[kind](skip_nonfinite=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in batches(float("nan")):
            layer(x)
    assert layer.running_mean.isnan().any()
    assert layer.num_batches_tracked == (0 if kind == "instance" else 4)


def test_it_can_be_switched_on_a_living_layer() -> None:
    layer = BatchNorm2d(3, skip_nonfinite=False)
    layer.skip_nonfinite = True
    with pytest.warns(NormwiseWarning, match="layer BatchNorm2d met"):
        layer(batches(float("inf"))[1])
    assert layer.running_var.isfinite().all()


def test_the_forward_pass_itself_is_not_touched() -> None:
    x = batches(float("nan"))[1]
    with pytest.warns(NormwiseWarning):
        y = BatchNorm2d(3)(x)
    torch.testing.assert_close(y, nn.BatchNorm2d(3)(x), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_mixed_precision_overflow_is_caught() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), BatchNorm2d(3))
    nn.init.constant_(model[0].weight, 1e5)  # beyond float16
    with torch.autocast("cpu", torch.float16), pytest.warns(NormwiseWarning, match="'1' "):
        model(torch.randn(4, 1, 8, 8))
    assert model[1].num_batches_skipped == 1
    assert model[1].running_mean.isfinite().all()


def test_what_could_not_warn_at_once_warns_when_the_mode_changes() -> None:
    model = nn.Sequential(nn.Identity(), BatchNorm2d(3))
    model[1].num_batches_skipped.add_(1)  # as compiled code or an accelerator leaves it
    with pytest.warns(NormwiseWarning, match="layer '1'"):
        model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()


def test_errors_name_the_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ModuleDict({"norm": BatchNorm1d(6)})["norm"])
    outer = nn.ModuleDict({"body": model})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = outer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["body"](x)

    with pytest.raises(ValueError, match=r"Expected more than 1 value.*\[in layer 'parts\.body\.1' \(BatchNorm1d\)\]"):
        Net()(torch.randn(1, 4))


@LAYER
def test_without_a_host_to_read_the_count_the_result_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [LAYERS[kind](), LAYERS[kind]()]
    xs = batches(float("inf"))
    with pytest.warns(NormwiseWarning):
        [layers[0](x) for x in xs]
    monkeypatch.setattr("normwise.core.moments.readable", lambda t: False)
    monkeypatch.setattr("normwise.nn._state.readable", lambda t: False)
    for x in xs:
        layers[1](x)
    torch.testing.assert_close(dict(layers[1].named_buffers()), dict(layers[0].named_buffers()), rtol=0, atol=0)


def test_make_fx_of_a_training_layer() -> None:
    layer, traced_layer = BatchNorm1d(3), BatchNorm1d(3)
    x = torch.randn(4, 3)
    graph = torch.fx.experimental.proxy_tensor.make_fx(traced_layer)(x)
    torch.testing.assert_close(graph(x), layer(x))


TRACKING = {
    nn.BatchNorm1d: {},
    nn.BatchNorm2d: {},
    nn.BatchNorm3d: {},
    nn.InstanceNorm1d: {"track_running_stats": True},
    nn.InstanceNorm2d: {"track_running_stats": True},
    nn.InstanceNorm3d: {"track_running_stats": True},
}


@pytest.mark.parametrize("cls", [c for c in NAMESAKES if "Lazy" not in c.__name__], ids=lambda c: c.__name__)
def test_buffers_are_those_of_torchs_layer(cls: type[nn.Module]) -> None:
    args = (2, 6) if cls is nn.GroupNorm else (6,)
    for options in ({}, TRACKING.get(cls, {})):
        theirs, ours = cls(*args, **options), NAMESAKES[cls](*args, **options)
        for (name, a), (own, b) in zip(theirs.named_buffers(), ours.named_buffers(), strict=True):
            assert (name, a.shape, a.dtype) == (own, b.shape, b.dtype)
        assert list(ours.state_dict()) == list(theirs.state_dict())


def not_finite(layer: nn.Module) -> None:
    with pytest.warns(NormwiseWarning, match="not finite"):
        layer.train()(batches(float("nan"))[1])
    assert layer.num_batches_skipped == 1


@LAYER
def test_a_layer_made_on_meta_takes_a_checkpoint_and_goes_on(kind: str) -> None:
    checkpoint = LAYERS[kind]().state_dict()
    assigned, emptied = LAYERS[kind](device="meta"), LAYERS[kind](device="meta")
    assigned.load_state_dict(checkpoint, assign=True)
    emptied = emptied.to_empty(device="cpu")
    emptied.load_state_dict(checkpoint)
    with torch.device("meta"):
        under = LAYERS[kind]()
    under.load_state_dict(checkpoint, assign=True)
    for layer in (assigned, emptied, under):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer.eval()
            layer.train()(batches(0.0)[0])
        assert layer.num_batches_skipped == 0
        not_finite(layer)
        assert layer.to("meta").num_batches_skipped.is_meta
        assert layer.to_empty(device="cpu").num_batches_skipped == 0


@LAYER
def test_the_count_goes_where_the_layer_goes(kind: str) -> None:
    layer = LAYERS[kind]()
    not_finite(layer)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    moved = copy.deepcopy(layer).double().half().to("cpu").float().requires_grad_(False)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stored, weights_only=False), moved]
    for twin in copies:
        assert twin.num_batches_skipped.dtype == torch.int64
        assert twin.num_batches_skipped.device == twin.running_mean.device
        twin(batches(float("nan"))[1])
        assert (twin.num_batches_skipped, layer.num_batches_skipped) == (2, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@LAYER
def test_the_count_is_kept_in_compiled_code_and_out_of_exported_graphs(kind: str) -> None:
    layer, bad = LAYERS[kind](momentum=0.2), batches(float("nan"))[1]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for expected in (1, 2):
        compiled(bad)
        assert layer.num_batches_skipped == expected
    for strict in (False, True):
        fresh = LAYERS[kind]()
        program = torch.export.export(fresh, (batches(0.0)[0],), strict=strict)
        assert set(program.graph_signature.buffers) <= dict(fresh.named_buffers()).keys()
        assert not program.constants
        assert fresh.num_batches_skipped == 0


@LAYER
def test_buffers_given_for_one_call_are_the_ones_that_stay_clean(kind: str) -> None:
    layer = LAYERS[kind]()
    buffers = {k: v.clone() for k, v in layer.named_buffers()}
    with pytest.warns(NormwiseWarning):
        torch.func.functional_call(layer, buffers, (batches(float("inf"))[1],))
    torch.testing.assert_close(buffers, dict(layer.named_buffers()))
    assert layer.num_batches_skipped == 1


@LAYER
def test_averaged_models_find_the_buffers_in_pairs(kind: str) -> None:
    model = nn.Sequential(LAYERS[kind]())
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    model(batches(0.0)[0])
    averaged.update_parameters(model)
    torch.testing.assert_close(dict(averaged.module.named_buffers()), dict(model.named_buffers()))


@LAYER
def test_statistics_set_to_none_are_not_kept(kind: str) -> None:
    layer = LAYERS[kind]()
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    assert layer.num_batches_skipped is None
    y = layer(batches(0.0)[0])
    if kind != "instance":  # which torch refuses in evaluation: see test_dropin_promises
        torch.testing.assert_close(y, layer.eval()(batches(0.0)[0]))

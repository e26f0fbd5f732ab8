"""What torch's norm layers promise, kept by ours: each test runs both."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from namesakes import NAMESAKES, pair
from torch import nn

import normwise.nn
from normwise.nn import BatchNorm1d, BatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, RMSNorm

BATCH = [
    (nn.BatchNorm1d, (4, 3)),
    (nn.BatchNorm1d, (4, 3, 5)),
    (nn.BatchNorm2d, (4, 3, 5, 5)),
    (nn.BatchNorm3d, (2, 3, 2, 3, 4)),
]
INSTANCE = [(nn.InstanceNorm1d, (4, 3, 5)), (nn.InstanceNorm2d, (4, 3, 5, 5)), (nn.InstanceNorm3d, (2, 3, 2, 3, 4))]
# One of each kind: torch's class, its positional arguments, an input's shape.
KINDS = [
    (nn.BatchNorm1d, (6,), (4, 6)),
    (nn.BatchNorm2d, (6,), (4, 6, 5, 5)),
    (nn.InstanceNorm2d, (6, 1e-5, 0.1, True, True), (4, 6, 5, 5)),
    (nn.GroupNorm, (2, 6), (4, 6, 5, 5)),
    (nn.LayerNorm, (6,), (4, 5, 6)),
    (nn.RMSNorm, (6,), (4, 5, 6)),
]
KIND = pytest.mark.parametrize(
    ("cls", "args", "shape"), KINDS, ids=lambda v: v.__name__ if inspect.isclass(v) else None
)


def both_raise(cls: type[nn.Module], args: tuple, x: torch.Tensor, *, training: bool = True, **kwargs: object) -> str:
    """Both layers raise the same type; gives our message."""
    theirs, ours = (c(*args, **kwargs).train(training) for c in (cls, NAMESAKES[cls]))
    with pytest.raises((ValueError, RuntimeError)) as expected:
        theirs(x)
    with pytest.raises((ValueError, RuntimeError)) as raised:
        ours(x)
    assert issubclass(raised.type, ValueError) == issubclass(expected.type, ValueError)
    return str(raised.value)


@pytest.mark.parametrize("cls", NAMESAKES, ids=lambda c: c.__name__)
def test_signature_begins_as_torchs_and_ours_is_a_subclass(cls: type[nn.Module]) -> None:
    assert issubclass(NAMESAKES[cls], cls)
    theirs, ours = (inspect.signature(c).parameters for c in (cls, NAMESAKES[cls]))
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if any(p.kind is p.VAR_POSITIONAL for p in ours.values()):  # the lazy ones pass on what they get
        for name in theirs:
            NAMESAKES[cls](**{name: theirs[name].default})
        return
    assert list(ours)[: len(positional)] == positional
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind
    assert all(p.kind is p.KEYWORD_ONLY for n, p in ours.items() if n not in theirs)


@pytest.mark.parametrize("cls", [c for c in NAMESAKES if "Lazy" in c.__name__], ids=lambda c: c.__name__)
def test_lazy_layers_become_ours(cls: type[nn.Module]) -> None:
    ours = NAMESAKES[cls](affine=True, track_running_stats=True, bias=False, activation="relu")
    x = torch.randn(4, 3, *(5,) * int(cls.__name__[-2]))
    empty = NAMESAKES[cls](affine=True, track_running_stats=True, bias=False)
    theirs = cls(affine=True, track_running_stats=True, bias=False)
    torch.testing.assert_close(ours(x), theirs(x).relu(), rtol=1e-4, atol=1e-5)
    assert type(ours) is getattr(normwise.nn, cls.__name__.removeprefix("Lazy"))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    empty.load_state_dict(ours.state_dict())  # materializes
    assert torch.equal(empty.running_mean, ours.running_mean)
    ours(x)
    assert ours.num_batches_skipped == 0


@pytest.mark.parametrize(("cls", "shape"), BATCH + INSTANCE, ids=lambda v: v.__name__ if inspect.isclass(v) else None)
def test_wrong_dimensions(cls: type[nn.Module], shape: tuple[int, ...]) -> None:
    for dims in {1, 2, 3, 4, 5, 6} - {len(s) for c, s in BATCH + INSTANCE if c is cls}:
        if dims == len(shape) - 1 and "Instance" in cls.__name__:
            continue  # the unbatched input, which is allowed: tested below
        x = torch.randn(3, *(2,) * (dims - 1))
        message = both_raise(cls, (3,), x)
        assert message.startswith("expected ")
        assert f"(got {dims}D input)" in message


@pytest.mark.parametrize(
    ("cls", "args", "shape"),
    [
        (nn.BatchNorm1d, (3,), (1, 3)),
        (nn.BatchNorm2d, (3,), (1, 3, 1, 1)),
        (nn.InstanceNorm2d, (3,), (4, 3, 1, 1)),
        (nn.GroupNorm, (3, 3), (1, 3)),
    ],
)
def test_one_value_a_statistic(cls: type[nn.Module], args: tuple, shape: tuple[int, ...]) -> None:
    message, x = both_raise(cls, args, torch.randn(shape)), torch.randn(shape)
    with pytest.raises(ValueError, match="Expected more than 1") as expected:
        cls(*args)(x)
    assert message.startswith(str(expected.value))
    if "Group" not in cls.__name__:
        both_raise(cls, args, torch.randn(shape), training=False, track_running_stats=False)
        tracked = NAMESAKES[cls](*args, track_running_stats=True).eval()
        assert tracked(torch.randn(shape)).shape == shape


def test_a_group_of_one_element_gives_the_bias_as_in_torch() -> None:
    theirs, ours = pair(nn.GroupNorm, 3, 3)
    x = torch.randn(4, 3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_statistics_of_which_one_is_set_to_none(cls: type[nn.Module], name: str) -> None:
    layers = [c(3, track_running_stats=True) for c in (cls, NAMESAKES[cls])]
    for layer in layers:
        setattr(layer, name, None)
        with pytest.raises(ValueError, match="running_mean and running_var must either both be None or neither"):
            layer(torch.randn(4, 3, 5))


@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.InstanceNorm1d])
@pytest.mark.parametrize("flag", [True, False])
def test_statistics_that_are_both_set_to_none(cls: type[nn.Module], flag: bool) -> None:
    theirs, ours = pair(cls, 3, track_running_stats=True)
    x = torch.randn(4, 3, 5)
    for layer in (theirs, ours):
        layer.running_mean = layer.running_var = None
        layer.track_running_stats = flag
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    if cls is nn.InstanceNorm1d and flag:
        for layer in (theirs, ours):
            with pytest.raises(RuntimeError, match="to be defined when use_input_stats is false"):
                layer.eval()(x)
    else:
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_cleared_flag_of_instance_norm_evaluates_on_the_input() -> None:
    theirs, ours = pair(nn.InstanceNorm1d, 3, track_running_stats=True)
    x, before = torch.randn(4, 3, 5), ours.running_mean.clone()
    for training in (True, False):
        theirs.track_running_stats = ours.track_running_stats = False
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-5)
    # Torch's averages have moved now, in evaluation: that is not followed.
    assert torch.equal(ours.running_mean, before)


@pytest.mark.parametrize(
    ("eps", "training", "fails"), [(0.0, True, True), (-1.0, True, True), (-1.0, False, True), (0.0, False, False)]
)
def test_eps_of_batch_norm_is_checked_at_forward(eps: float, training: bool, fails: bool) -> None:
    x = torch.randn(4, 3)
    if fails:
        assert "eps" in both_raise(nn.BatchNorm1d, (3, eps), x, training=training)
    else:
        assert BatchNorm1d(3, eps).train(training)(x).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_an_empty_batch_counts_and_changes_nothing(shape: tuple[int, ...]) -> None:
    theirs, ours = pair(nn.BatchNorm2d, 3)
    before = ours.running_mean.clone()
    x = torch.randn(shape, requires_grad=True)
    y = ours(x)
    y.sum().backward()
    theirs(x.detach())
    assert y.shape == x.grad.shape == shape
    assert torch.equal(ours.running_mean, before)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
    assert ours.num_batches_skipped == 0


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0, 1.5, -0.5])
@pytest.mark.parametrize(("cls", "shape"), [*BATCH, *INSTANCE])
def test_running_averages(cls: type[nn.Module], shape: tuple[int, ...], momentum: float | None) -> None:
    theirs, ours = pair(cls, 3, momentum=momentum, track_running_stats=True)
    for step in range(3):
        x = torch.randn(shape) * (step + 1) + step
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert ours.num_batches_tracked == (0 if cls in dict(INSTANCE) else 3)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_counter_is_an_integer_that_survives_half() -> None:
    layer = BatchNorm2d(3).half()
    assert layer.num_batches_tracked.dtype == layer.num_batches_skipped.dtype == torch.int64
    assert layer.num_batches_tracked.shape == ()
    assert layer.running_mean.dtype == torch.float16


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_without_running_averages(cls: type[nn.Module]) -> None:
    ours = NAMESAKES[cls](3, track_running_stats=False)
    assert ours.running_mean is ours.running_var is ours.num_batches_tracked is None
    assert set(ours.state_dict()) == {n for n, _ in ours.named_parameters()}
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(ours(x), ours.eval()(x))


def test_a_cleared_flag_trains_on_the_batch_and_evaluates_on_the_buffers() -> None:
    theirs, ours = pair(nn.BatchNorm2d, 3)
    x = torch.randn(4, 3, 5, 5)
    theirs.track_running_stats = ours.track_running_stats = False
    before = ours.running_mean.clone()
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.running_mean, before)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 0


def test_state_dict_versions() -> None:
    ours = BatchNorm2d(3)
    assert ours.state_dict()._metadata[""]["version"] == 2
    assert "num_batches_skipped" not in ours.state_dict()
    old = {k: v for k, v in nn.BatchNorm2d(3).state_dict().items() if k != "num_batches_tracked"}
    ours.load_state_dict(old)  # unversioned, strictly
    new = nn.BatchNorm2d(3).state_dict()
    del new["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        ours.load_state_dict(new)
    with pytest.raises(RuntimeError, match=r"Unexpected running stats buffer.* for InstanceNorm2d"):
        InstanceNorm2d(3).load_state_dict({"running_mean": torch.zeros(3)})


@pytest.mark.parametrize(("cls", "shape"), INSTANCE)
@pytest.mark.parametrize("track", [False, True])
def test_unbatched_instance_norm(cls: type[nn.Module], shape: tuple[int, ...], track: bool) -> None:
    theirs, ours = pair(cls, 3, affine=True, track_running_stats=track)
    x = torch.randn(shape[1:])
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_wrong_channels_of_instance_norm_warn_or_raise() -> None:
    x = torch.randn(2, 4, 5, 5)
    both_raise(nn.InstanceNorm2d, (3,), x, affine=True)
    with pytest.warns(UserWarning, match="does not match num_features"):
        assert InstanceNorm2d(3)(x).shape == x.shape


@pytest.mark.parametrize(
    ("cls", "args", "shape"),
    [
        (nn.BatchNorm2d, (3,), (2, 4, 5, 5)),
        (nn.BatchNorm2d, (1,), (2, 4, 5, 5)),  # would broadcast
        (nn.GroupNorm, (2, 4), (2, 6, 5)),
        (nn.GroupNorm, (2, 4), (2, 5, 5)),
        (nn.GroupNorm, (1, 1), (4,)),
        (nn.LayerNorm, (4,), (2, 5)),
        (nn.RMSNorm, (4,), (2, 5)),
    ],
)
def test_wrong_channels(cls: type[nn.Module], args: tuple, shape: tuple[int, ...]) -> None:
    assert both_raise(cls, args, torch.randn(shape)).endswith(f"[in layer {cls.__name__}]")


def test_group_norm_constructor_names_both_numbers_and_a_choice() -> None:
    with pytest.raises(ValueError, match=r"\(10\) must be divisible by num_groups \(4\): 5 would do"):
        GroupNorm(4, 10)


def test_shapes_of_layer_and_rms_norm() -> None:
    for shape, expected in [(3, (3,)), ([2, 3], (2, 3)), (torch.Size([2, 3]), (2, 3))]:
        assert LayerNorm(shape).normalized_shape == RMSNorm(shape).normalized_shape == expected
    assert LayerNorm(3, 1e-5, True, False).bias is None
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = (torch.randn(4, 3) * 1e-3).to(dtype)
        theirs, ours = (cls(3).to(dtype) for cls in (nn.RMSNorm, RMSNorm))
        # The default eps shows in such small values: it is that of the type that is computed in.
        torch.testing.assert_close(ours(x), theirs(x))


@KIND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True], ids=["float32 layer", "half layer"])
def test_half_input(cls: type[nn.Module], args: tuple, shape: tuple, dtype: torch.dtype, own: bool) -> None:
    theirs, ours = pair(cls, *args)
    if own:
        theirs, ours = theirs.to(dtype), ours.to(dtype)
    if cls is nn.RMSNorm and not own:
        return both_raise_or_warn(theirs, ours, torch.randn(shape, dtype=dtype))
    x = torch.randn(shape).to(dtype)
    y = ours(x)
    assert y.dtype == theirs(x).dtype == dtype
    torch.testing.assert_close(y, theirs(x), rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert all(p.grad.dtype == p.dtype for p in ours.parameters())
    return None


def both_raise_or_warn(theirs: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    """RMSNorm of mixed types: whatever torch does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(ours(x), theirs(x))


@KIND
def test_double_input_with_float32_parameters_raises(cls: type[nn.Module], args: tuple, shape: tuple) -> None:
    if cls is nn.RMSNorm:
        theirs, ours = pair(cls, *args)
        return both_raise_or_warn(theirs, ours, torch.randn(shape, dtype=torch.float64))
    both_raise(cls, args, torch.randn(shape, dtype=torch.float64))
    both_raise(cls, args, torch.randint(9, shape))
    return None


@KIND
def test_meta_device(cls: type[nn.Module], args: tuple, shape: tuple) -> None:
    for momentum in (0.1, None) if "Batch" in cls.__name__ else (0,):
        layer = NAMESAKES[cls](*args, device="meta", **({"momentum": momentum} if "Batch" in cls.__name__ else {}))
        x = torch.randn(shape, device="meta", requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == shape
        assert layer.eval()(x).is_meta
        real = layer.to_empty(device="cpu")
        real.reset_parameters()
        torch.testing.assert_close(real.train()(torch.ones(shape)).isnan().any(), torch.tensor(False))
        if hasattr(real, "num_batches_skipped"):
            assert real.num_batches_skipped == 0


@KIND
def test_hooks_and_dtype_argument(cls: type[nn.Module], args: tuple, shape: tuple) -> None:
    layer, seen = NAMESAKES[cls](*args, dtype=torch.float64), []
    layer.register_forward_pre_hook(lambda m, i: (i[0] * 2,))
    layer.register_forward_hook(lambda m, i, o: seen.append(o.dtype) or o + 1)
    layer.register_full_backward_hook(lambda m, gi, go: seen.append(go[0].shape))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert seen == [torch.float64, torch.Size(shape)]


@KIND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_statistics_in_float32(
    cls: type[nn.Module], args: tuple, shape: tuple, dtype: torch.dtype
) -> None:
    ours = NAMESAKES[cls](*args)
    x = (torch.randn(shape) * 30 + 500).to(dtype)  # squares are beyond float16
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        y = ours(leaf)
    y.float().square().sum().backward()
    exact = NAMESAKES[cls](*args).double()(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)
    assert leaf.grad.isfinite().all()
    for buffer in ours.buffers():
        assert buffer.dtype in (torch.float32, torch.int64)


@KIND
def test_activation_is_applied(cls: type[nn.Module], args: tuple, shape: tuple) -> None:
    theirs, _ = pair(cls, *args)
    x = torch.randn(shape)
    for name, function in (
        ("relu", torch.relu),
        ("silu", nn.functional.silu),
        ("leaky_relu", nn.functional.leaky_relu),
    ):
        ours = NAMESAKES[cls](*args, activation=name)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours.eval()(x), function(theirs.eval()(x)), rtol=1e-4, atol=1e-5)


def test_what_goes_by_isinstance_works() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), BatchNorm2d(3))
    data = [torch.randn(4, 1, 8, 8) for _ in range(3)]
    torch.optim.swa_utils.update_bn(data, model)
    means = torch.stack([model[0](x).mean((0, 2, 3)) for x in data]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means, rtol=1e-4, atol=1e-5)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(model)[1]) is nn.SyncBatchNorm

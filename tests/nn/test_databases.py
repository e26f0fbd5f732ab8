"""Torch's own databases of modules and operators, run over our layers: all but the few differences named here."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from databases import MODULES, OPERATORS, Case, module_cases, operator_cases
from namesakes import NAMESAKES, ModuleErrorEnum
from torch import Tensor, nn
from torch.func import functional_call

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the tracer's imports
    from torch.fx.experimental.proxy_tensor import make_fx

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # of the tracer, making fakes of its inputs
)

# All that differs, and why. Each has a test here that it still does, so that none outlives its reason.
DIFFERENCES: dict[str, str] = {
    "torch.jit.script": "cannot compile the *args that every forward pass of ours stands behind. Torch has deprecated "
    "it; torch.jit.trace, torch.export and torch.compile take every layer",
    "vmap over batches, averages captured": "torch refuses; ours normalizes each batch and leaves the averages",
    "GroupNorm(-2, 6)": "torch builds it and refuses its first input; ours is refused when it is built",
    "one value a group": "ours gives exactly the bias, which torch gives to a rounding",
}

ENTRIES: dict[str, Callable[..., Any]] = {
    **{info.module_cls.__name__: lambda *a, info=info: module_cases(info, *a) for info in MODULES},
    **{f"{op.name} {op.variant_test_name}".strip(): lambda *a, op=op: operator_cases(op, *a) for op in OPERATORS},
}
ENTRY = pytest.mark.parametrize("entry", ENTRIES)
CLOSE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 3e-5, "atol": 3e-5},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}


def cases(entry: str, dtype: torch.dtype = torch.float64) -> list[Case]:
    torch.manual_seed(0)
    found = {str(case) + str(list(case.state)): case for case in ENTRIES[entry](dtype)}
    assert found
    return list(found.values())


def outcome(layer: nn.Module, x: Tensor) -> list[Any]:
    """Result, gradients and state after one step."""
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    upstream = torch.linspace(-1, 1, y.numel()).to(y.dtype).reshape(y.shape)
    gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], upstream)
    return [y.detach(), *gradients, *layer.buffers()]


@ENTRY
@pytest.mark.parametrize("dtype", CLOSE, ids=lambda d: str(d).removeprefix("torch."))
def test_a_step_gives_what_torchs_gives(entry: str, dtype: torch.dtype) -> None:
    for case in cases(entry, dtype):
        theirs, ours = case.theirs(), case.ours()
        torch.testing.assert_close(ours(case.x), theirs(case.x), **CLOSE[dtype], equal_nan=True, msg=str(case))
        if case.x.numel():
            wanted, got = outcome(theirs, case.x), outcome(ours, case.x)
            assert [(t.dtype, t.stride()) for t in got[1:]] == [(t.dtype, t.stride()) for t in wanted[1:]], case
            if dtype.itemsize > 2:  # sums of rounded values are as good as their order; test_half_input has those
                close = CLOSE[dtype] | ({} if dtype == torch.float64 else {"atol": 3e-4})
                torch.testing.assert_close(got, wanted, **close, equal_nan=True)
        assert repr(ours) == repr(theirs)


@ENTRY
def test_what_can_be_walked_over_is_what_torchs_layer_has(entry: str) -> None:
    for case in cases(entry):
        theirs, ours = case.theirs(), case.ours()
        for walk in ("named_parameters", "named_buffers", "named_modules", "named_children"):
            a, b = (list(getattr(layer, walk)()) for layer in (theirs, ours))
            assert [name for name, _ in a] == [name for name, _ in b], (case, walk)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert ours.state_dict()._metadata == theirs.state_dict()._metadata
        assert ours.training is theirs.training


@ENTRY
def test_factory_arguments_and_moves(entry: str) -> None:
    for case in cases(entry):
        for options in ({"dtype": torch.float32}, {"dtype": torch.float16}, {"device": "meta", "dtype": torch.float64}):
            theirs, ours = case.theirs(**options), case.ours(**options)
            for move in (lambda m: m, nn.Module.double, nn.Module.half, lambda m: m.to("meta")):
                theirs, ours = move(theirs), move(ours)
                a, b = ({n: (t.dtype, t.device, t.shape) for n, t in m.state_dict().items()} for m in (theirs, ours))
                assert a == b, case
            checkpoint = case.theirs(dtype=torch.float64).state_dict()
            for empty, assign in ((ours.to_empty(device="cpu").double(), False), (case.ours(device="meta"), True)):
                empty.load_state_dict(checkpoint, assign=assign)
                assert not any(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
                empty.train(case.training)(case.x)
                assert getattr(empty, "num_batches_skipped", None) in (None, 0)


@ENTRY
@pytest.mark.parametrize("swapping", [False, True])
def test_conversions_keep_what_torchs_keep(entry: str, swapping: bool) -> None:
    torch.__future__.set_swap_module_params_on_conversion(swapping)
    try:
        for case in cases(entry):
            layer = case.ours()
            held = list(layer.parameters())
            layer.to(torch.float32)
            assert all(a is b for a, b in zip(held, layer.parameters(), strict=True))
            assert layer(case.x.float()).dtype == torch.float32
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@ENTRY
def test_copies(entry: str) -> None:
    for case in cases(entry):
        layer, stored = case.ours(), io.BytesIO()
        layer(case.x)
        torch.save(layer, stored)
        stored.seek(0)
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stored, weights_only=False)]
        twin = case.theirs()
        twin.load_state_dict(layer.state_dict())
        back = case.ours()
        back.load_state_dict(twin.state_dict())
        expected = outcome(layer, case.x)
        for other in [*copies, back]:
            torch.testing.assert_close(outcome(other, case.x), expected, rtol=0, atol=0, equal_nan=True)


@ENTRY
def test_inputs_with_gaps_and_other_orders_of_axes(entry: str) -> None:
    for case in cases(entry):
        expected = outcome(case.ours(), case.x)
        gaps = torch.stack([case.x, torch.full_like(case.x, torch.nan)], -1)[..., 0]
        turned = case.x.transpose(0, -1).contiguous().transpose(0, -1)
        inputs = [gaps, turned]
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if case.x.ndim in formats:
            inputs.append(case.x.contiguous(memory_format=formats[case.x.ndim]))
        for x in inputs:
            layer = case.ours()
            leaf = x.detach().requires_grad_()
            y = layer(leaf)
            torch.testing.assert_close(y, expected[0], equal_nan=True)
            if case.x.ndim in formats:
                assert y.is_contiguous(memory_format=torch.contiguous_format) or x is inputs[-1] or x is turned
            torch.testing.assert_close(outcome(case.ours(), x)[1:], expected[1:], equal_nan=True)
        assert torch.equal(case.x, case.x.clone())


def formula(case: Case, layer: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The layer as a function of its input and parameters, which keeps nothing from call to call."""
    names, buffers = [name for name, _ in layer.named_parameters()], dict(layer.named_buffers())

    def function(x: Tensor, *parameters: Tensor, held: dict[str, Tensor] = buffers) -> Tensor:
        held = {name: b.clone() for name, b in held.items()}
        return functional_call(layer, (dict(zip(names, parameters, strict=True)), held), (x,))

    return function, [case.x, *(p.detach() for p in layer.parameters())]


def few(entry: str) -> list[Case]:
    """For what takes long: the small ones."""
    return [case for case in cases(entry) if 0 < case.x.numel() <= 500 and (case.kwargs.get("eps") or 1) > 0]


@ENTRY
def test_gradients(entry: str) -> None:
    for case in few(entry):
        function, tensors = formula(case, case.ours())
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        options = {"fast_mode": True, "atol": 1e-4}
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True, **options), (
            case
        )
        assert torch.autograd.gradgradcheck(function, leaves, **options), case


@ENTRY
def test_vmap(entry: str) -> None:
    for case in few(entry):
        function, tensors = formula(case, case.ours())
        many = torch.stack([tensors[0], 2 * tensors[0] - 1])
        expected = torch.stack([function(x, *tensors[1:]) for x in many])
        axes = (0, *(None for _ in tensors[1:]))
        torch.testing.assert_close(torch.func.vmap(function, axes)(many, *tensors[1:]), expected, equal_nan=True)
        stacked = [torch.stack([t, t]) for t in tensors[1:]]
        torch.testing.assert_close(torch.func.vmap(function)(many, *stacked), expected, equal_nan=True)


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_vmap_over_batches_with_captured_averages(cls: type[nn.Module]) -> None:
    theirs, ours = (c(3, track_running_stats=True) for c in (cls, NAMESAKES[cls]))
    assert "vmap over batches, averages captured" in DIFFERENCES
    x = torch.randn(2, 4, 3, 5, 5)
    with pytest.raises((ValueError, RuntimeError)):
        torch.func.vmap(theirs)(x)
    torch.testing.assert_close(torch.func.vmap(ours)(x)[0], copy.deepcopy(ours)(x[0]))
    assert ours.running_mean.eq(0).all()


def test_groups_that_torch_takes_longer_to_refuse_or_passes_over() -> None:
    assert {"GroupNorm(-2, 6)", "one value a group"} <= DIFFERENCES.keys()
    with pytest.raises(RuntimeError, match="greater than 0"):
        nn.GroupNorm(-2, 6)(torch.randn(4, 6))
    with pytest.raises(ValueError, match=r"divisible by num_groups \(-2\): 1 would do"):
        NAMESAKES[nn.GroupNorm](-2, 6)
    for groups, shape in ((6, (4, 6)), (1, (4, 1)), (6, (4, 6, 1, 1))):
        theirs, ours = (cls(groups, shape[1]) for cls in (nn.GroupNorm, NAMESAKES[nn.GroupNorm]))
        torch.testing.assert_close(ours(torch.randn(shape)), theirs(torch.randn(shape)), rtol=0, atol=1e-4)


def stepping(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A step of training as a function."""

    def step(leaves: list[Tensor], held: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in leaves]
        y = function(*leaves, held=held)
        return y, *torch.autograd.grad(y.pow(2).sum(), leaves)

    return step


@ENTRY
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(entry: str, mode: str) -> None:
    for case in few(entry)[:1] if mode == "symbolic" else few(entry)[:3]:
        layer = case.ours()
        function, tensors = formula(case, layer)
        step = stepping(function)
        graph = make_fx(step, tracing_mode=mode)(tensors, dict(layer.named_buffers()))
        tensors[0] = tensors[0] * 2 + 1
        held = dict(case.ours().named_buffers())
        torch.testing.assert_close(graph(tensors, held), step(tensors, held), equal_nan=True)


@ENTRY
def test_tracing(entry: str) -> None:
    for case in few(entry)[:4]:
        traced, layer = torch.jit.trace(case.ours(), case.x, check_trace=False), case.ours()
        layer(case.x)
        torch.testing.assert_close(traced(2 * case.x), layer(2 * case.x), equal_nan=True)


@ENTRY
def test_fakes_have_the_right_shape(entry: str) -> None:
    for case in cases(entry):
        with torch._subclasses.FakeTensorMode() as mode:
            y = case.ours(dtype=torch.float64)(mode.from_tensor(case.x))
        theirs = case.theirs()(case.x)
        assert (y.shape, y.dtype) == (theirs.shape, theirs.dtype), case
        assert y.stride() == theirs.stride() or not y.numel(), case


@ENTRY
def test_the_mode_matters_where_it_does_in_torch(entry: str) -> None:
    for case in cases(entry):
        if case.x.numel() == 0:
            continue
        same = []
        for layer in (case.theirs(), case.ours()):
            results = []
            for training in (True, False):
                try:
                    results.append(copy.deepcopy(layer).train(training)(case.x))
                except RuntimeError as problem:
                    results.append(torch.tensor(hash(type(problem))))
            same.append(results[0].shape == results[1].shape and torch.allclose(*results, equal_nan=True))
        assert same[0] == same[1], case


@pytest.mark.parametrize(
    "info", [i for i in MODULES if i.module_error_inputs_func], ids=lambda i: i.module_cls.__name__
)
def test_errors_are_torchs(info: Any) -> None:
    # Of training: in evaluation torch itself does not raise these.
    options = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": True}
    for error in info.module_error_inputs_func(info, **options):
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        for cls in (info.module_cls, NAMESAKES[info.module_cls]):
            # Whatever raises, construction or call, as the database has it.
            early = error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR
            layer = None if early else cls(*made.args, **made.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                cls(*made.args, **made.kwargs) if layer is None else layer(*given.args)


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.module_cls.__name__)
def test_what_cannot_be_scripted(info: Any) -> None:
    case = next(module_cases(info))
    assert "torch.jit.script" in DIFFERENCES
    torch.jit.script(case.theirs())
    with pytest.raises((RuntimeError, ValueError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(case.ours())

"""PyTorch's own samples for its norm layers and functions, run through ours: none is left out."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from namesakes import NAMESAKES, ModuleErrorEnum, ModuleInfo, ModuleInput, module_db, op_db

import normwise
from normwise.methods import Group

INFOS = {info.module_cls: info for info in module_db if info.module_cls in NAMESAKES}
LAZY = {cls for cls in NAMESAKES if "Lazy" in cls.__name__}
OPS = {f"nn.functional.{name}_norm" for name in ("batch", "instance", "group", "layer", "rms")}
# What our functions are called, of those PyTorch has samples for.
METHOD_OPS = [op for op in op_db if op.name in OPS and op.variant_test_name == ""]
INFO = pytest.mark.parametrize("info", INFOS.values(), ids=lambda info: info.module_cls.__name__)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def test_every_namesake_has_samples() -> None:
    # PyTorch's database has none for the lazy classes, which become the others at once: see test_dropin_promises.
    assert set(INFOS) | LAZY == set(NAMESAKES)
    assert {op.name for op in METHOD_OPS} == OPS


def samples(info: ModuleInfo, dtype: torch.dtype, training: bool, grad: bool = False) -> list[ModuleInput]:
    found = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=grad, training=training)
    assert found
    return list(found)


def layers(
    info: ModuleInfo, sample: ModuleInput, training: bool, dtype: torch.dtype
) -> tuple[torch.nn.Module, torch.nn.Module]:
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    theirs = info.module_cls(*args, **kwargs)
    ours = NAMESAKES[info.module_cls](*args, **kwargs)
    assert str(theirs) == str(ours)
    for tensor in [*theirs.parameters(), *theirs.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).train(training), ours.to(dtype).train(training)


def to(sample: ModuleInput, dtype: torch.dtype) -> tuple[list, dict]:
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    assert not kwargs
    return [a.detach().to(dtype).requires_grad_(a.is_floating_point()) for a in args], kwargs


@INFO
@TRAINING
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_forward_backward_and_state_equal_torchs(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    for sample in samples(info, torch.float64, training):
        theirs, ours = layers(info, sample, training, dtype)
        (a,), _ = to(sample, dtype)
        b = a.detach().clone().requires_grad_()
        y, z = theirs(a), ours(b)
        upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
        y.backward(upstream)
        z.backward(upstream)
        close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
        torch.testing.assert_close(z, y, **close)
        torch.testing.assert_close(b.grad, a.grad, **close)
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, **close)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **close)
        assert ours.state_dict()._metadata == theirs.state_dict()._metadata


@INFO
def test_error_inputs_raise_the_same(info: ModuleInfo) -> None:
    found = info.module_error_inputs_func  # of training; in evaluation torch itself does not raise these
    errors = list(found(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)) if found else []
    assert len(errors) == (2 if "Batch" in info.module_cls.__name__ or info.module_cls is torch.nn.GroupNorm else 0)
    for error in errors:
        sample = error.module_error_input
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                NAMESAKES[info.module_cls](*args, **kwargs)
        else:
            layer = NAMESAKES[info.module_cls](*args, **kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                layer(*sample.forward_input.args)


@INFO
@TRAINING
def test_gradients_of_first_and_second_order(info: ModuleInfo, training: bool) -> None:
    for sample in samples(info, torch.float64, training, grad=True):
        _, ours = layers(info, sample, training, torch.float64)
        parameters = dict(ours.named_parameters())
        x = sample.forward_input.args[0]
        if x.numel() == 0:
            assert ours(x).shape == x.shape
            continue

        def function(
            x: torch.Tensor,
            *tensors: torch.Tensor,
            layer: torch.nn.Module = ours,
            names: tuple[str, ...] = tuple(parameters),
        ) -> torch.Tensor:
            return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

        assert torch.autograd.gradcheck(function, (x, *parameters.values()), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (x, *parameters.values()), fast_mode=True)


@INFO
@TRAINING
def test_pickle_copy_and_state_dict_both_ways(info: ModuleInfo, training: bool) -> None:
    for sample in samples(info, torch.float32, training):
        theirs, ours = layers(info, sample, training, torch.float32)
        (x,), _ = to(sample, torch.float32)
        ours(x)
        theirs.load_state_dict(ours.state_dict())
        stored = io.BytesIO()
        torch.save(ours, stored)
        stored.seek(0)
        copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(stored, weights_only=False)]
        expected = ours(x)
        for twin in copies:
            assert type(twin) is type(ours)
            assert twin.training is training
            assert torch.equal(twin(x), expected)


@INFO
@TRAINING
def test_memory_format_and_strides_are_kept(info: ModuleInfo, training: bool) -> None:
    for sample in samples(info, torch.float32, training):
        theirs, ours = layers(info, sample, training, torch.float32)
        (x,), _ = to(sample, torch.float32)
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if x.ndim not in formats or x.shape[1] == 1 or x.numel() == 0:
            assert ours(x).stride() == theirs(x).stride()  # there is one format only
            continue
        last = x.detach().contiguous(memory_format=formats[x.ndim]).requires_grad_()
        y = ours(last)
        assert y.is_contiguous(memory_format=formats[x.ndim])
        torch.testing.assert_close(y, theirs(x), rtol=1e-4, atol=2e-5)
        (grad,) = torch.autograd.grad(y.square().sum(), last)
        assert grad.is_contiguous(memory_format=formats[x.ndim])


@INFO
@TRAINING
def test_inputs_that_are_not_contiguous(info: ModuleInfo, training: bool) -> None:
    for sample in samples(info, torch.float64, training):
        theirs, ours = layers(info, sample, training, torch.float64)
        (x,), _ = to(sample, torch.float64)
        gaps = torch.stack([x.detach(), torch.full_like(x, torch.nan)], -1)[..., 0].requires_grad_()
        assert x.numel() <= 1 or not gaps.is_contiguous()
        y, z = theirs(x), ours(gaps)
        torch.testing.assert_close(z, y)
        for out, leaf in ((y, x), (z, gaps)):
            out.backward(torch.ones_like(out).transpose(0, 1).contiguous().transpose(0, 1))
            assert leaf.grad is not None
        torch.testing.assert_close(gaps.grad, x.grad)


@pytest.mark.parametrize("op", METHOD_OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_function_samples(op: object, dtype: torch.dtype) -> None:
    count = 0
    for sample in op.sample_inputs("cpu", dtype):
        count += 1
        if (
            op.name == "nn.functional.batch_norm" and sample.input.ndim < 2
        ):  # ours needs a channel axis, and an empty vector has none
            with pytest.raises(RuntimeError, match="at least 2 dimensions"):
                OURS[op.name](sample.input, *sample.args, **sample.kwargs)
            continue
        expected = op(sample.input.clone(), *copy.deepcopy(sample.args), **copy.deepcopy(sample.kwargs))
        close = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 2e-5, torch.float64: 1e-9}[dtype]
        ours = OURS[op.name](sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours, expected, rtol=close, atol=close, equal_nan=True)
    assert count >= 6


@pytest.mark.parametrize("op", METHOD_OPS, ids=lambda op: op.name)
def test_gradients_of_function_samples(op: object) -> None:
    count = 0
    for sample in op.reference_inputs("cpu", torch.float64, requires_grad=True):
        if op.name == "nn.functional.batch_norm" and sample.input.ndim < 2:
            continue  # refused: see above
        results = []
        for function in (op, OURS[op.name]):
            own = sample.transform(lambda t: copy.deepcopy(t) if isinstance(t, torch.Tensor) else t)
            leaves = [t for t in (own.input, *own.args, *own.kwargs.values()) if getattr(t, "requires_grad", False)]
            y = function(own.input, *own.args, **own.kwargs)
            upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
            results.append([y, *torch.autograd.grad(y, leaves, upstream, allow_unused=True)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-8)
        count += 1
    assert count >= 6


def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    return normwise.normalize(x, "batch", use_running=not training, momentum=momentum, eps=eps, **given)


def instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    return normwise.normalize(x, "instance", use_running=not use_input_stats, momentum=momentum, eps=eps, **given)


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    return normwise.normalize(x, Group(num_groups), weight=weight, bias=bias, eps=eps)


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    return torch.func.functional_call(normwise.nn.LayerNorm(normalized_shape, eps), {"weight": weight, "bias": bias}, x)


def rms_norm(x, normalized_shape, weight=None, eps=None):
    return torch.func.functional_call(normwise.nn.RMSNorm(normalized_shape, eps), {"weight": weight}, x)


OURS = {f"nn.functional.{f.__name__}": f for f in (batch_norm, instance_norm, group_norm, layer_norm, rms_norm)}


@pytest.mark.parametrize("op", METHOD_OPS, ids=lambda op: op.name)
def test_function_error_inputs(op: object) -> None:
    errors = list(op.error_inputs("cpu")) if op.error_inputs_func else []
    assert len(errors) == {"nn.functional.group_norm": 2, "nn.functional.rms_norm": 3}.get(op.name, 0)
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            OURS[op.name](sample.input, *sample.args, **sample.kwargs)

"""Compiled, traced and exported, the layers compute what they compute otherwise."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from namesakes import pair, swap
from torch import nn

from normwise.nn import (
    BatchNorm2d,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm2d,
    LayerNorm,
    LayerNormGRU,
    RMSNorm,
    SwitchableNorm2d,
)

X = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Every kind of layer in a row, with a shape each of them takes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 6, 1),
        BatchNorm2d(6, activation="leaky_relu"),
        InstanceNorm2d(6, affine=True),
        GroupNorm(2, 6, activation="silu"),
        LayerNorm(5),
        RMSNorm(5),
        InstanceNorm2d(6, track_running_stats=True),
        SwitchableNorm2d(6),
        BatchNorm2d(6, momentum=None),
    )


@pytest.fixture(scope="module")
def compiled() -> tuple[nn.Module, nn.Module]:
    eager, model = network(), network()
    torch._dynamo.reset()
    # Without code generation, which takes minutes for all of these; the next test but one has it for one layer.
    return eager, torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own imports
def test_compiled_training_without_a_graph_break(compiled: tuple[nn.Module, nn.Module]) -> None:
    eager, model = compiled
    for step in range(3):
        leaves = [(X + step).clone().requires_grad_() for _ in range(2)]
        ys = [layer(leaf) for layer, leaf in zip((eager, model), leaves, strict=True)]
        torch.testing.assert_close(ys[1], ys[0], rtol=1e-4, atol=1e-4)
        for y in ys:
            y.square().mean().backward()
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-3, atol=1e-5)
    state = {k.removeprefix("_orig_mod."): v for k, v in model.state_dict().items()}
    torch.testing.assert_close(state, dict(eager.state_dict()), rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="not finite"):
        eager(X * float("nan"))
    model(X * float("nan"))
    assert model._orig_mod[1].num_batches_skipped == 1
    with pytest.warns(UserWarning, match="not finite"):
        model.eval()
    assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_evaluation(compiled: tuple[nn.Module, nn.Module]) -> None:
    eager, model = compiled
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(X), eager.eval()(X), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_generated_code() -> None:
    torch._dynamo.reset()
    eager, model = BatchNorm2d(6, momentum=None), BatchNorm2d(6, momentum=None)
    compiled = torch.compile(model, fullgraph=True)
    for x in (X, X * float("inf"), X + 1):
        y = compiled(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(y, eager(x), rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()), rtol=1e-5, atol=1e-6)
    assert (model.num_batches_tracked, model.num_batches_skipped) == (2, 1)
    model.reset_running_stats()

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (x,)).pow(3).sum()

    parameters = {k: v.detach() for k, v in model.named_parameters()}
    gradients = torch.compile(torch.func.grad(loss), fullgraph=True)(parameters, X)
    torch.testing.assert_close(gradients, torch.func.grad(loss)(parameters, X), rtol=1e-3, atol=1e-3)
    assert model.num_batches_tracked == 0


@pytest.mark.parametrize("training", [False, True])
def test_export(training: bool) -> None:
    eager, model = network().train(training), network().train(training)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},), strict=False)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    for name in ("aten.batch_norm", "aten.instance_norm", "aten.group_norm", "aten.layer_norm", "aten.rms_norm"):
        assert any(t.startswith(name) for t in targets), f"{name} not among {targets}"
    again = torch.randn(7, 6, 5, 5)
    torch.testing.assert_close(program.module(check_guards=False)(again), eager(again), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    model = network().eval()
    traced = torch.jit.trace(model, X)
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    torch.testing.assert_close(torch.jit.load(stored)(X), model(X), rtol=1e-3, atol=1e-4)


def onnx_of(model: nn.Module, x: torch.Tensor, path: Path) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            model.eval(), (x,), path, dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("n")},)
        )
    return onnx.load(path)


def test_onnx_nodes_are_those_of_torchs_layers(tmp_path: Path) -> None:
    def theirs() -> nn.Module:
        layers = [
            nn.Conv2d(6, 6, 1),
            nn.BatchNorm2d(6),
            nn.InstanceNorm2d(6, affine=True),
            nn.GroupNorm(2, 6),
            nn.LayerNorm(5),
        ]
        return nn.Sequential(*layers, nn.RMSNorm(5, eps=1e-5))

    model = theirs()
    expected = [n.op_type for n in onnx_of(model, X, tmp_path / "torch.onnx").graph.node]
    assert swap(model) == 5
    ops = [n.op_type for n in onnx_of(model, X, tmp_path / "ours.onnx").graph.node]
    assert ops == expected
    # Batch norms are folded into a convolution before them by the exporter's optimizer.
    assert {"InstanceNormalization", "LayerNormalization"} <= set(ops)
    ops = [
        n.op_type
        for n in onnx_of(nn.Sequential(nn.ReLU(), pair(nn.BatchNorm2d, 6)[1]), X, tmp_path / "b.onnx").graph.node
    ]
    assert ops == ["Relu", "BatchNormalization"]


def test_onnx_runtime_gives_the_same_numbers(tmp_path: Path) -> None:
    model = network()
    model(X)
    onnx_of(model, X, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for x in (X, torch.randn(2, 6, 5, 5)):
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("layer", "shape", "op"),
    [
        (BatchNorm2d(6), (4, 6, 5, 5), "BatchNormalization"),
        (InstanceNorm2d(6), (4, 6, 5, 5), "InstanceNormalization"),
        (GroupNorm(2, 6), (4, 6, 5, 5), "InstanceNormalization"),  # with reshapes, as torch's
        (LayerNorm(5), (4, 6, 5), "LayerNormalization"),
        (FrozenBatchNorm(6), (4, 6, 5, 5), "BatchNormalization"),
        (SwitchableNorm2d(6), (4, 6, 5, 5), "ReduceMean"),
        (LayerNormGRU(6, 4, bidirectional=True), (5, 2, 6), "LayerNormalization"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_the_older_onnx_exporter_takes_a_layer_by_itself(
    layer: nn.Module, shape: tuple[int, ...], op: str, tmp_path: Path
) -> None:
    x = torch.randn(shape)
    torch.onnx.export(layer.eval(), (x,), tmp_path / "layer.onnx", dynamo=False)
    assert op in {node.op_type for node in onnx.load(tmp_path / "layer.onnx").graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    y, expected = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], layer(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(torch.from_numpy(y), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("over", [("instance", "layer", "batch"), ("layer", "batch"), ("instance", "group")])
def test_switchable_is_a_plain_onnx_graph(over: tuple[str, ...], tmp_path: Path) -> None:
    model = SwitchableNorm2d(6, over=over)
    nn.init.normal_(model.mean_weight)
    nn.init.normal_(model.var_weight)
    model(X)
    graph = onnx_of(model, X, tmp_path / "model.onnx").graph
    assert {n.domain for n in graph.node} <= {""}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(X).detach(), rtol=1e-4, atol=1e-5)

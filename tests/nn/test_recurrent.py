"""Layer-normalized LSTM and GRU against loops written from the paper's equations, and against torch's promises."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from namesakes import ModuleErrorEnum, module_db
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils._pytree import tree_leaves

from normwise.errors import InputError
from normwise.nn.recurrent import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell

KINDS = [LayerNormLSTM, LayerNormGRU]
CELLS = [(LayerNormLSTMCell, LayerNormLSTM), (LayerNormGRUCell, LayerNormGRU)]


def ln(a, gain, bias):
    """Ba et al. 2016, eq. 4, over the last axis."""
    centred = a - a.mean(-1, keepdim=True)
    return gain * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + bias


def lstm_oracle(p, s, x, h, c):
    """One direction over (T, I), one sequence at a time."""
    out = []
    for x_t in x:
        a = ln(p["weight_ih" + s] @ x_t, p["gain_ih" + s], p["bias_ih" + s])
        a = a + ln(p["weight_hh" + s] @ h, p["gain_hh" + s], p["bias_hh" + s])
        i, f, g, o = a.reshape(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(ln(c, p["gain_c" + s], p["bias_c" + s]))
        h = p["weight_hr" + s] @ h if "weight_hr" + s in p else h
        out.append(h)
    return torch.stack(out), h, c


def gru_oracle(p, s, x, h, c):
    H, out = len(h), []

    def part(kind, vector, rows):
        return ln(p[f"weight_{kind}{s}"][rows] @ vector, p[f"gain_{kind}{s}"][rows], p[f"bias_{kind}{s}"][rows])

    gates, candidate = slice(0, 2 * H), slice(2 * H, None)
    for x_t in x:
        r, z = torch.sigmoid(part("ih", x_t, gates) + part("hh", h, gates)).reshape(2, -1)
        n = torch.tanh(part("ih", x_t, candidate) + r * part("hh", h, candidate))
        h = (1 - z) * n + z * h
        out.append(h)
    return torch.stack(out), h, c


def oracle(net, sequences, h0, c0):
    """Every sequence alone, layer by layer, direction by direction; no padding anywhere."""
    p = dict(net.named_parameters())
    if not net.bias:
        zero = {k.replace("weight_", "bias_"): torch.zeros(v.shape[0]).double() for k, v in p.items() if "weight" in k}
        p |= zero | {k.replace("gain_c", "bias_c"): torch.zeros_like(v) for k, v in p.items() if "gain_c" in k}
    one = lstm_oracle if isinstance(net, LayerNormLSTM) else gru_oracle
    ends = ("", "_reverse") if net.bidirectional else ("",)
    outputs, hs, cs = [], torch.zeros_like(h0), torch.zeros_like(c0)
    for b, x in enumerate(sequences):
        for layer in range(net.num_layers):
            parts = []
            for d, end in enumerate(ends):
                k = layer * len(ends) + d
                out, h, c = one(p, f"_l{layer}{end}", x.flip(0) if d else x, h0[k, b], c0[k, b])
                parts.append(out.flip(0) if d else out)
                hs = hs.index_put((torch.tensor(k), torch.tensor(b)), h)
                cs = cs.index_put((torch.tensor(k), torch.tensor(b)), c)
            x = torch.cat(parts, -1)
        outputs.append(x)
    return outputs, hs, cs


def shaken(cls, *args, **kwargs):
    """A float64 network whose gains and biases differ from 1 and 0."""
    torch.manual_seed(0)
    net = cls(*args, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def states(net, samples):
    layers = net.num_layers * (2 if net.bidirectional else 1)
    sizes = (net.proj_size or net.hidden_size, net.hidden_size)
    return [torch.randn(layers, samples, size, dtype=torch.float64, requires_grad=True) for size in sizes]


def as_hx(net, h, c):
    return (h, c) if isinstance(net, LayerNormLSTM) else h


def ends_of(net, last):
    return list(last) if isinstance(net, LayerNormLSTM) else [last]


@pytest.mark.parametrize(("cls", "proj_size"), [(LayerNormLSTM, 0), (LayerNormLSTM, 2), (LayerNormGRU, 0)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("num_layers", "bias"), [(1, True), (2, True), (2, False)])
def test_matches_the_paper_with_gradients(cls, proj_size, bidirectional, num_layers, bias):
    net = shaken(cls, 3, 4, num_layers=num_layers, bidirectional=bidirectional, bias=bias, proj_size=proj_size)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(net, 2)
    output, last = net(x, as_hx(net, h0, c0))
    expected, h, c = oracle(net, x.unbind(1), h0, c0)
    wanted = [torch.stack(expected, 1), *ends_of(net, as_hx(net, h, c))]
    got = [output, *ends_of(net, last)]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    weights = [torch.randn_like(t) for t in got]
    leaves = [x, *ends_of(net, as_hx(net, h0, c0)), *net.parameters()]
    ours, theirs = (
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(ts, weights, strict=True)), leaves)
        for ts in (got, wanted)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    cls=st.sampled_from(KINDS),
    bidirectional=st.booleans(),
    num_layers=st.integers(1, 2),
    projects=st.booleans(),
)
def test_variable_lengths_equal_each_sequence_alone(lengths, cls, bidirectional, num_layers, projects):
    proj_size = 2 if projects and cls is LayerNormLSTM else 0
    net = shaken(cls, 3, 4, num_layers=num_layers, bidirectional=bidirectional, proj_size=proj_size)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    padded = pad_sequence(sequences, padding_value=float("nan")).requires_grad_()
    h0, c0 = states(net, len(lengths))
    packed, last = net(pack_padded_sequence(padded, lengths, enforce_sorted=False), as_hx(net, h0, c0))
    output, back = pad_packed_sequence(packed)
    expected, h, c = oracle(net, sequences, h0, c0)
    assert back.tolist() == lengths
    for b, n in enumerate(lengths):
        torch.testing.assert_close(output[:n, b], expected[b], rtol=1e-11, atol=1e-12)
    for got, wanted in zip(ends_of(net, last), ends_of(net, as_hx(net, h, c)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    weights = [torch.randn_like(t) for t in (packed.data, *ends_of(net, last))]
    loss = sum((t * w).sum() for t, w in zip((packed.data, *ends_of(net, last)), weights, strict=True))
    leaves = [padded, *ends_of(net, as_hx(net, h0, c0)), *net.parameters()]
    grads = torch.autograd.grad(loss, leaves)
    assert all(g.isfinite().all() for g in grads)
    for b, n in enumerate(lengths):
        assert not grads[0][n:, b].any()
    # The same loss from the oracle, whose rows are put into packed order.
    order = packed.sorted_indices.tolist()
    rows = [expected[b][t] for t in range(max(lengths)) for b in order if t < lengths[b]]
    plain = sum(
        (t * w).sum() for t, w in zip((torch.stack(rows), *ends_of(net, as_hx(net, h, c))), weights, strict=True)
    )
    for a, b in zip(grads[1:], torch.autograd.grad(plain, leaves[1:]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("cls", "proj_size"), [(LayerNormLSTM, 0), (LayerNormLSTM, 2), (LayerNormGRU, 0)])
def test_gradcheck_and_second_derivatives(cls, proj_size):
    net = shaken(cls, 2, 3, bidirectional=True, proj_size=proj_size)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(net, 2)

    def run(x, h0, c0):
        output, last = net(x, as_hx(net, h0, c0))
        return output, *ends_of(net, last)

    if cls is LayerNormGRU:
        c0 = c0.detach()
    assert torch.autograd.gradcheck(run, (x, h0, c0))
    assert torch.autograd.gradgradcheck(run, (x, h0, c0), atol=1e-4, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # raised by torch.func.jvp's own imports
@pytest.mark.parametrize("cls", KINDS)
def test_third_derivatives_and_nested_forward_mode(cls):
    """Torch's layer norm kernel, which runs where neither is asked for, has both wrong."""
    net = shaken(cls, 2, 3)
    x, u, v = torch.randn(3, 3, 1, 2, dtype=torch.float64).unbind()
    zeros = torch.zeros(2, 1, 1, 3, dtype=torch.float64)

    def plain(t):
        return torch.stack(oracle(net, t.unbind(1), *zeros)[0], 1)

    def third(function):
        leaf = x.clone().requires_grad_()
        value = (function(leaf) * u.sum()).square().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)
            value = g.square().sum()
        return g

    def second(function):
        return torch.func.jvp(lambda t: torch.func.jvp(function, (t,), (u,))[1], (x,), (v,))[1]

    for derivative in (third, second):
        torch.testing.assert_close(derivative(lambda t: net(t)[0]), derivative(plain), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_forms_of_input_agree_and_have_torchs_shapes(cls, batch_first):
    net = cls(3, 4, 2, batch_first=batch_first, bidirectional=True)
    torchs = getattr(torch.nn, net.mode)(3, 4, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 2, 3)
    given_x = x.transpose(0, 1) if batch_first else x
    output, last = net(given_x)
    reference, reference_last = torchs(given_x)
    assert output.shape == reference.shape
    for a, b in zip(ends_of(net, last), ends_of(net, reference_last), strict=True):
        assert a.shape == b.shape
    alone, alone_last = net(x[:, 1])
    reference, reference_last = torchs(x[:, 1])
    assert alone.shape == reference.shape
    torch.testing.assert_close(alone, output[1] if batch_first else output[:, 1])
    for a, b, whole in zip(*(ends_of(net, s) for s in (alone_last, reference_last, last)), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, whole[:, 1])
    again, _ = net(x[:, 1], as_hx(net, torch.zeros(4, 4), torch.zeros(4, 4)))
    torch.testing.assert_close(again, alone)


@pytest.mark.parametrize(("cell_cls", "cls"), CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_loop_of_cells_is_the_layer(cell_cls, cls, bias):
    cell, net = cell_cls(3, 4, bias=bias), cls(3, 4, bias=bias)
    net.load_state_dict({name + "_l0": value for name, value in cell.state_dict().items()})
    x = torch.randn(5, 2, 3)
    hx, outputs = None, []
    for x_t in x:
        hx = cell(x_t, hx)
        outputs.append(hx[0] if cls is LayerNormLSTM else hx)
    torch.testing.assert_close(torch.stack(outputs), net(x)[0])
    single = cell(x[0, 0])
    single = single[0] if cls is LayerNormLSTM else single
    assert single.shape == (4,)
    torch.testing.assert_close(single, outputs[0][0])


NAMESAKES = {
    torch.nn.LSTM: LayerNormLSTM,
    torch.nn.GRU: LayerNormGRU,
    torch.nn.LSTMCell: LayerNormLSTMCell,
    torch.nn.GRUCell: LayerNormGRUCell,
}


# Torch says that its projected LSTM does not run on oneDNN.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("theirs", NAMESAKES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torchs_own_samples_give_outputs_of_the_same_forms(theirs, training):
    (info,) = [info for info in module_db if info.module_cls is theirs]
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=True, training=training)
    assert len(samples) >= 2
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        nets = [cls(*made.args, **made.kwargs).train(training) for cls in (theirs, NAMESAKES[theirs])]
        assert repr(nets[1]) == "LayerNorm" + repr(nets[0])
        expected, got = (tree_leaves(net(*given.args, **given.kwargs)) for net in nets)
        assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
        sum(t.sum() for t in got).backward()


@pytest.mark.parametrize("theirs", NAMESAKES, ids=lambda c: c.__name__)
def test_torchs_own_error_samples_raise(theirs):
    (info,) = [info for info in module_db if info.module_cls is theirs]
    errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    assert len(errors) >= 4
    for error in errors:
        sample = error.module_error_input
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                NAMESAKES[theirs](*args, **kwargs)
        else:
            net = NAMESAKES[theirs](*args, **kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                net(*sample.forward_input.args)


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("proj_size", [0, 2])
def test_torch_weights_load_and_only_the_gains_are_missing(cls, proj_size):
    if proj_size and cls is LayerNormGRU:
        with pytest.raises(ValueError, match="proj_size"):
            cls(3, 4, proj_size=proj_size)
        return
    net = cls(3, 4, 2, bidirectional=True, proj_size=proj_size)
    options = {"proj_size": proj_size} if proj_size else {}
    torchs = getattr(torch.nn, net.mode)(3, 4, 2, bidirectional=True, **options)
    report = net.load_state_dict(torchs.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {name.split("_l")[0] for name in report.missing_keys} <= {"gain_ih", "gain_hh", "gain_c", "bias_c"}
    assert net.weight_hh_l1_reverse.equal(torchs.weight_hh_l1_reverse)


@pytest.mark.parametrize("cls", KINDS)
def test_plain_and_fused_walks_agree(cls):
    net = shaken(cls, 3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        plain = net(x)[0]
    fused = net(x)[0]
    assert fused.requires_grad
    torch.testing.assert_close(plain, fused, rtol=0, atol=0)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    through_func = torch.func.grad(lambda p: torch.func.functional_call(net, p, (x,))[0].square().sum())(parameters)
    fused.square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, through_func[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cls", KINDS)
def test_scale_of_the_recurrent_weights_does_not_matter(cls):
    """The point of the norm: W_hh and 3 · W_hh give the same network (up to eps)."""
    net = cls(3, 8, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    before = net(x)[0]
    with torch.no_grad():
        net.weight_hh_l0.mul_(3)
    torch.testing.assert_close(net(x)[0], before, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("cls", KINDS)
def test_copies_pickles_halves_and_casts(cls):
    net = cls(3, 4)
    x = torch.randn(5, 2, 3)
    expected = net(x)[0]
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin(x)[0].equal(expected)
    half = copy.deepcopy(net).bfloat16()
    output = half(x.bfloat16())[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x)[0]
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert net.weight_hh_l0.grad.dtype == torch.float32


def test_dropout_lies_between_layers_and_only_in_training():
    net = LayerNormLSTM(3, 16, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert not net(x)[0].equal(net(x)[0])
    net.eval()
    assert net(x)[0].equal(net(x)[0])


@pytest.mark.parametrize("cls", KINDS)
def test_an_empty_batch_passes_and_an_empty_sequence_is_refused(cls):
    net = cls(3, 4)
    output, _ = net(torch.zeros(5, 0, 3))
    assert output.shape == (5, 0, 4)
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        net(torch.zeros(0, 2, 3))


def test_refusals_say_what_came():
    with pytest.raises(InputError, match="hidden_size=1"):
        LayerNormGRU(3, 1)
    with pytest.raises(InputError, match="hidden_size=1"):
        LayerNormLSTMCell(3, 1)
    with pytest.raises(InputError, match="only an LSTM has projections"):
        LayerNormGRU(3, 4, proj_size=2)
    with pytest.raises(RuntimeError, match="got 7 expected 3"):
        LayerNormGRUCell(3, 4)(torch.zeros(2, 7))
    with pytest.raises(RuntimeError, match=r"batch size 2 doesn't match hidden1 batch size 4"):
        LayerNormLSTMCell(3, 4)(torch.zeros(2, 3), (torch.zeros(2, 4), torch.zeros(4, 2)))
    with pytest.raises(RuntimeError, match=r"Expected 3, got 5 \[in layer '1' \(LayerNormGRU\)\]"):
        torch.nn.Sequential(torch.nn.Identity(), LayerNormGRU(3, 4))(torch.zeros(2, 2, 5))
    net = LayerNormLSTM(3, 4)
    with pytest.raises(ValueError, match="2D or 3D, got 4D"):
        net(torch.zeros(1, 1, 1, 3))
    with pytest.raises(RuntimeError, match="Expected 3, got 5"):
        net(torch.zeros(2, 2, 5))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 2, 5\]"):
        net(torch.zeros(2, 2, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 2, 5)))
    with pytest.raises(RuntimeError, match="should also be 2-D but got 3-D"):
        net(torch.zeros(2, 3), (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)))


def test_compiles_without_a_graph_break():
    net = LayerNormGRU(3, 4, bidirectional=True)
    x = torch.randn(3, 2, 3)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], net(x)[0])

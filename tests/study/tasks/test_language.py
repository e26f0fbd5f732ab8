"""Language models: texts and token ids as data, perplexity, and the decoder that methods are compared in."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import normwise
from normwise.errors import DataError, InputError
from normwise.records import Setup
from normwise.study import Part, language_data, load_task, make_task
from normwise.study.optimize import warm_adamw
from normwise.study.tasks.decoder import PLACEMENTS, Decoder
from normwise.study.tasks.language import Perplexity, predicts_next
from normwise.study.trial import Trainer

TEXT = ("It is a truth universally acknowledged, that a single man must be in want of a wife. " * 60).encode()


class Net(nn.Module):
    """A causal model of one's own, with the norm on tokens."""

    def __init__(self, norm, tokens=256, width=12):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(tokens, width), norm(width)
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, tokens)

    def forward(self, ids):
        x = self.embedding(ids)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return self.head(self.norm(x + self.mix(before).relu()))


def test_a_text_becomes_windows_that_predict_their_successor(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    splits = language_data(tmp_path / "text.txt", window=16)
    joined = torch.cat([splits.train.inputs.flatten(), splits.train.targets[-1, -1:]])
    assert bytes(joined.tolist()) == TEXT[: len(joined)]
    assert splits.train.targets.flatten().equal(joined[1:])
    assert predicts_next(splits.train)
    assert not predicts_next(Part(splits.train.inputs, splits.train.inputs))
    trained = splits.train.inputs.numel()
    assert bytes(splits.valid.inputs[0].tolist()) in TEXT[trained:]


@pytest.mark.parametrize("form", ["list", "array", "tensor", "npy"])
def test_token_ids_in_every_form(tmp_path, form):
    ids = torch.arange(2000) % 37
    np.save(tmp_path / "ids.npy", ids.numpy().astype("uint16"))
    given = {"list": ids.tolist(), "array": ids.numpy(), "tensor": ids, "npy": str(tmp_path / "ids.npy")}[form]
    assert language_data(given, window=8).fingerprint() == language_data(ids, window=8).fingerprint()


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [
        (torch.zeros(500), 8, "whole numbers, got torch.float32"),
        (torch.zeros(50, 2, dtype=torch.long), 8, r"of shape \(50, 2\)"),
        (torch.zeros(100, dtype=torch.long), 8, "100 tokens is too short for windows of 8"),
        (torch.arange(500) - 3, 8, "begin at 0, got -3"),
        (torch.arange(500), 0, "window must be"),
    ],
)
def test_what_is_no_text_is_refused(text, window, message):
    with pytest.raises(InputError, match=message):
        language_data(text, window)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nothing\.txt: No such file"):
        language_data(tmp_path / "nothing.txt")


def test_language_data_are_known_by_what_they_are():
    """Targets that are the inputs' successors: perplexity, AdamW and the methods for tokens, unless said otherwise."""
    task = make_task(Net, torch.arange(3000) % 50)
    assert task.score_name == "−perplexity"
    assert "AdamW" in task.optimizer_name
    assert "rms" in task.methods
    labels = make_task(Net, (torch.arange(3000).view(100, 30) % 50, torch.arange(3000).view(100, 30) % 7))
    assert labels.score_name == "accuracy"
    assert "AdamW" in labels.optimizer_name
    assert make_task(Net, torch.arange(3000) % 50, metric="accuracy").score_name == "accuracy"
    with pytest.raises(InputError, match="did you mean 'perplexity'"):
        make_task(Net, torch.arange(3000) % 50, metric="perplexty")


def test_perplexity_counts_tokens_and_leaves_padding_out():
    part = Part(torch.randint(9, (40, 300)), torch.randint(9, (40, 300)))
    part.targets[:, 200:] = -100
    model = nn.Embedding(9, 9)
    expected = nn.functional.cross_entropy(model(part.inputs).flatten(0, 1).double(), part.targets.flatten())
    with torch.no_grad():
        assert Perplexity()(model, part) == pytest.approx(-math.exp(expected))


def test_a_trial_on_ones_own_text_beats_the_untrained_model():
    data = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8)
    task = make_task(Net, language_data(data, window=16))
    trial = Trainer(task, {8: 60}, measure_memory=False)(Setup("final", "layer", 8, 0.01, 0))
    assert trial.state == "complete"
    assert -task.floor > 100
    assert 1 < -trial.valid_score < 0.3 * -task.floor


def test_models_of_transformers_need_no_loss_of_ones_own():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    task = make_task(lambda: transformers.LlamaForCausalLM(config), torch.arange(3000) % 50)
    assert task.converts
    assert "rms" in task.methods
    trial = Trainer(task, {8: 8}, measure_memory=False)(Setup("final", "rms", 8, 0.01, 0))
    assert trial.state == "complete"
    assert trial.valid_score > task.floor


def test_adamw_clips_and_lets_vectors_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer, schedule = warm_adamw(model, 0.1, 100)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(p.ndim < 2 for p in optimizer.param_groups[1]["params"])
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    before = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    schedule.step()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm == pytest.approx(1.0)
    assert optimizer.param_groups[0]["lr"] > before[0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_decoder_has_its_norms_where_they_are_placed_and_sees_no_future(placement):
    torch.manual_seed(0)
    model = Decoder(nn.RMSNorm, 50, 24, 2, 2, placement, qk_norm=nn.RMSNorm).eval()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == {"pre": 5, "post": 4, "sandwich": 9}[placement] + 4
    ids = torch.randint(50, (2, 20))
    changed = ids.clone()
    changed[:, 12:] = 3
    torch.testing.assert_close(model(ids)[:, :12], model(changed)[:, :12])
    assert not model(ids)[:, 12:].equal(model(changed)[:, 12:])
    model.train()(ids).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_positions_turn_by_their_distance_alone():
    torch.manual_seed(0)
    from normwise.study.tasks.decoder import rotated

    query, key = torch.randn(1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64)
    turned = rotated(query.expand(1, 6, 8)) @ rotated(key.expand(1, 6, 8)).mT
    for distance in range(-3, 4):
        diagonal = turned[0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-6, atol=1e-6)


def test_placements_have_tasks():
    for name in ("austen-post", "austen-sandwich"):
        assert load_task(name).build("none") is not None
    with pytest.raises(InputError, match="unknown placement 'mid': known are pre, post, sandwich"):
        Decoder(nn.RMSNorm, placement="mid")


def test_the_command_line_reads_a_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, norm):\n"
        "        super().__init__()\n"
        "        self.embedding, self.norm, self.head = nn.Embedding(256, 12), norm(12), nn.Linear(12, 256)\n\n"
        "    def forward(self, ids):\n"
        "        return self.head(self.norm(self.embedding(ids)))\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "normwise", "compare", "net.py:Net", "--data", "text:text.txt:16", "--methods",
            "layer,rms,none", "--epochs", "1", "--seeds", "2", "--lrs", "0.01", "--batch-sizes", "32", "--workers", "1",
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert all(method in done.stdout for method in ("layer", "rms", "none"))


def test_five_lines_of_python():
    data = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8)
    study = normwise.compare(
        Net,
        language_data(data, window=16),
        methods=["layer", "none"],
        epochs=0.5,
        batch_sizes=[32],
        seeds=2,
        lrs=[0.01],
        progress=False,
    )
    assert {s.method for s in study.standings} == {"layer", "none"}
    assert study.record.settings.score_name == "−perplexity"

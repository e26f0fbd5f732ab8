import gzip
import struct
import zlib
from pathlib import Path

import pytest
import torch

from normwise.errors import DataError
from normwise.records import Cell
from normwise.study import load_task
from normwise.study.tasks.austen import AUSTEN_FOLDER, austen
from normwise.study.tasks.rdata import read_strings
from normwise.study.trial import Trainer


@pytest.fixture(scope="module")
def task():
    return load_task("austen")


def test_the_novels_are_read():
    novels = read_strings(Path(AUSTEN_FOLDER))
    assert len(novels) == 6
    assert "It is a truth universally acknowledged, that a single man in possession" in novels["prideprejudice"]
    assert sum(len(line) + 1 for line in novels["emma"]) == 883_028


def test_windows_predict_their_successor(task):
    splits, characters = austen()
    assert splits.sizes() == {"train": 38298, "valid": 640, "test": 640}
    first, second = splits.train.take(slice(2)).inputs
    text = "".join(characters[i] for i in torch.cat([first, second]).tolist())
    assert text.startswith("EMMA\n\nBy Jane Austen")
    assert splits.train.targets[0].tolist() == torch.cat([first, second])[1:65].tolist()
    assert 3 < -task.floor < 5


@pytest.mark.parametrize("method", ["none", "layer", "group(num_groups=8)"])
def test_the_model_does_not_see_the_future(task, method):
    torch.manual_seed(0)
    model = task.build(method).eval()
    tokens = task.splits.train.inputs[:2]
    changed = tokens.clone()
    changed[:, 40:] = 5
    torch.testing.assert_close(model(tokens)[:, :, :40], model(changed)[:, :, :40])
    assert not model(tokens)[:, :, 40:].equal(model(changed)[:, :, 40:])


def test_a_trial_learns(task):
    trial = Trainer(task, {16: 30}, measure_memory=False)(Cell("final", "layer", 16, 0.004, 3))
    assert trial.state == "complete"
    assert task.floor < trial.valid_score < -2


def serialized(value):
    """A character vector or a list with names, as R writes it."""
    if isinstance(value, list):
        texts = (struct.pack(">ii", 0x40009, len(s.encode())) + s.encode() for s in value)
        return struct.pack(">ii", 16, len(value)) + b"".join(texts)
    if isinstance(value, tuple):
        return struct.pack(f">ii{len(value)}i", 13, len(value), *value)
    body = struct.pack(">ii", 19 | 0x200, len(value)) + b"".join(serialized(v) for v in value.values())
    names = struct.pack(">iiii", 2 | 0x400, 1, 0x40009, 5) + b"names" + serialized(list(value))
    return body + names + struct.pack(">i", 254)


def packed(value):
    return b"X\n" + struct.pack(">iii", 2, 0x30000, 0x20300) + serialized(value)


def test_r_data_of_any_text(tmp_path):
    raw = packed(["£ and \u20ac", ""])
    record = struct.pack(">i", len(raw)) + zlib.compress(raw)
    (tmp_path / "Rdata.rdb").write_bytes(b"junk" + record)
    (tmp_path / "Rdata.rdx").write_bytes(gzip.compress(packed({"variables": {"a": (4, len(record))}})))
    assert read_strings(tmp_path) == {"a": ["£ and \u20ac", ""]}
    with pytest.raises(DataError, match=r"lacks emma, mansfieldpark"):
        load_task(f"austen:{tmp_path}")
    (tmp_path / "Rdata.rdb").write_bytes(b"junk" + record[:-9])
    with pytest.raises(DataError, match="damaged or of another form"):
        read_strings(tmp_path)
    with pytest.raises(DataError, match=r"apt-get install r-cran-janeaustenr"):
        load_task(f"austen:{tmp_path / 'none'}")

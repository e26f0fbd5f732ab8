import pytest
import torch
from tiny_study import tiny_data, tiny_model
from torch import nn

from normwise import records
from normwise.errors import InputError
from normwise.study import Splits, compare, load_task, make_task
from normwise.study.data import Part, split
from normwise.study.tasks.images import digits, fashion_mnist

QUICK = {"methods": ["none", "batch", "switchable"], "seeds": 2, "lrs": [0.1], "epochs": 0.5, "progress": False}


def test_own_model_and_data(tmp_path):
    study = compare(tiny_model, tiny_data(), batch_sizes=[4, 8], out=tmp_path, title="<b>mine</b>", **QUICK)
    assert len(study.trials) == 2 * 3 * (1 + 2)
    assert [v.batch_size for v in study.verdicts] == [4, 8]
    assert study.record.finished
    stored = records.load_study(tmp_path / "study.json")
    assert stored == study.record
    page = (tmp_path / "report.html").read_text()
    assert "<b>mine</b>" not in page
    assert repr(study).startswith("Study '<b>mine</b>': ")
    assert repr(study).endswith("at batch size 8; 18 trials")


def test_same_study_same_scores():
    first, second = (compare(tiny_model, tiny_data(), batch_sizes=[4], **QUICK) for _ in range(2))
    assert [(t.setup, t.valid_score, t.test_loss) for t in first.trials] == [
        (t.setup, t.valid_score, t.test_loss) for t in second.trials
    ]


def test_a_model_that_fails_everywhere_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"fails with every method at batch size 4; with none: RuntimeError: mat1"):
        compare(lambda norm: nn.Linear(5, 3), tiny_data(), batch_sizes=[4], out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_method_that_fails_is_ranked_last_with_its_reason():
    def model(norm):
        # Batch norm of (N, C) has one value per channel at batch size 1.
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), norm(8, 1), nn.ReLU(), nn.Linear(8, 3))

    study = compare(model, tiny_data(), batch_sizes=[1], **QUICK | {"methods": ["none", "batch"]})
    last = study.standings[-1]
    assert (last.method, last.diverged) == ("batch", 2)
    assert any("Batch failed in 2 of 2 runs" in text and "more than 1 value" in text for text in study.verdicts[0].why)


def test_regression_task():
    x = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    task = make_task(tiny_model, (x, x.mean((1, 2, 3), keepdim=True).flatten(1).expand(-1, 3).clone()))
    assert task.score_name == "R²"
    study = compare(data=task, batch_sizes=[4], **QUICK)
    assert all(t.state == "complete" for t in study.trials)


def test_data_must_make_sense():
    with pytest.raises(InputError, match="your own model"):
        compare(data=tiny_data())
    with pytest.raises(InputError, match="differ in length"):
        split(torch.zeros(20, 1), torch.zeros(19))
    with pytest.raises(InputError, match="NaN"):
        split(torch.full((20, 1), float("nan")), torch.zeros(20))
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        load_task("fashion-minst")
    with pytest.raises(InputError, match="the data lack train: they have nothing"):
        make_task(tiny_model, {})


def test_digits_are_split_by_class_without_overlap():
    splits = digits()
    rows = torch.cat([part.inputs.flatten(1) for part in splits])
    assert len(rows) == 1797
    assert splits == Splits(*splits)
    for part in splits:
        share = part.targets.bincount(minlength=10) / len(part.targets)
        assert share.min() > 0.08
        assert share.max() < 0.12
    assert digits().fingerprint() == splits.fingerprint()


def test_fashion_mnist(tmp_path):
    """Reads IDX files of any folder; here ones written on the spot."""
    import gzip
    import struct

    def write(name, shape, values):
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (tmp_path / name).write_bytes(gzip.compress(header + bytes(values)))

    for name, n in (("train", 50), ("t10k", 10)):
        write(f"{name}-images-idx3-ubyte.gz", (n, 2, 3), [i % 251 for i in range(n * 6)])
        write(f"{name}-labels-idx1-ubyte.gz", (n,), [i % 10 for i in range(n)])
    splits = fashion_mnist(tmp_path, train=30, valid=20)
    assert splits.sizes() == {"train": 30, "valid": 20, "test": 10}
    assert splits.train.inputs.shape == (30, 1, 2, 3)
    assert splits.train.inputs.mean().abs() < 1e-5
    assert isinstance(splits.test, Part)
    threads = torch.get_num_threads()
    try:
        # Large enough for torch to share the sum out among threads.
        for name, n in (("train", 9000), ("t10k", 10)):
            write(f"{name}-images-idx3-ubyte.gz", (n, 2, 3), [i * i % 251 for i in range(n * 6)])
            write(f"{name}-labels-idx1-ubyte.gz", (n,), [i % 10 for i in range(n)])
        names = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            names.add(fashion_mnist(tmp_path, train=8000, valid=20).fingerprint())
        assert len(names) == 1
    finally:
        torch.set_num_threads(threads)
    write("t10k-labels-idx1-ubyte.gz", (10,), [1, 2, 3])
    with pytest.raises(Exception, match="cut short"):
        fashion_mnist(tmp_path)

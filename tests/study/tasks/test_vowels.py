import pytest
import torch

from normwise.errors import DataError
from normwise.records import Setup
from normwise.study import load_task
from normwise.study.tasks.vowels import japanese_vowels
from normwise.study.trial import Trainer


@pytest.fixture(scope="module")
def task():
    return load_task("japanese-vowels")


def test_parts(task):
    assert task.splits.sizes() == {"train": 180, "valid": 90, "test": 370}
    lengths = torch.cat([part.inputs[1] for part in task.splits])
    assert (lengths.min(), lengths.max()) == (7, 29)
    for part in task.splits:
        x, lengths = part.inputs
        padding = torch.arange(29) >= lengths[:, None]
        assert (x.transpose(1, 2)[padding] == 0).all()
        assert x.isfinite().all()
    assert all(task.splits.valid.targets.bincount() == 10)
    x, lengths = task.splits.train.inputs
    frames = x.transpose(1, 2)[torch.arange(29) < lengths[:, None]]
    torch.testing.assert_close(frames.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0), torch.ones(12), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["batch", "instance", "group", "layer", "switchable", "none"])
def test_padding_changes_nothing(task, method):
    """The model gives the same on a batch padded further, and with anything in the padding."""
    torch.manual_seed(0)
    model = task.build(method)
    x, lengths = task.splits.train.take(slice(6)).inputs
    longer = torch.nn.functional.pad(x, (0, 5))
    torch.testing.assert_close(model(longer, lengths), model(x, lengths), rtol=1e-4, atol=1e-5)


def test_a_trial_learns(task):
    trial = Trainer(task, {32: 60}, measure_memory=False)(Setup("final", "batch", 32, 0.32, 3))
    assert trial.test_score > 0.85


def test_files_are_checked(tmp_path):
    with pytest.raises(DataError, match=r"no JapaneseVowels_TRAIN.ts in .*pip install --no-deps aeon.*FOLDER"):
        load_task(f"japanese-vowels:{tmp_path}")
    for name in ("TRAIN", "TEST"):
        (tmp_path / f"JapaneseVowels_{name}.ts").write_text("# c\n@problemName x\n@data\n1,2:3,4:1\n")
    with pytest.raises(DataError, match=r"line 4: expected 12 channels and a speaker from 1 to 9"):
        japanese_vowels(tmp_path)
    (tmp_path / "JapaneseVowels_TRAIN.ts").write_text("@data\n1,two:1\n")
    with pytest.raises(DataError, match="line 2: could not convert"):
        japanese_vowels(tmp_path)
    (tmp_path / "JapaneseVowels_TRAIN.ts").write_text("1,2:1\n")
    with pytest.raises(DataError, match="no data"):
        japanese_vowels(tmp_path)

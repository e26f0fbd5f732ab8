import pytest
import torch

from normwise.errors import DataError
from normwise.records import Setup
from normwise.study import load_task
from normwise.study.tasks.austen import austen
from normwise.study.trial import Trainer


@pytest.fixture(scope="module")
def task():
    return load_task("austen")


def test_the_novels_are_those_of_the_stored_studies():
    assert austen()[0].fingerprint() == "d72b6866"


def test_windows_predict_their_successor(task):
    splits, characters = austen()
    assert splits.sizes() == {"train": 38298, "valid": 640, "test": 640}
    first, second = splits.train.take(slice(2)).inputs
    text = "".join(characters[i] for i in torch.cat([first, second]).tolist())
    assert text.startswith("EMMA\n\nBy Jane Austen")
    assert splits.train.targets[0].tolist() == torch.cat([first, second])[1:65].tolist()
    assert 3 < -task.floor < 5


@pytest.mark.parametrize("method", ["none", "layer", "rms"])
def test_the_model_does_not_see_the_future(task, method):
    torch.manual_seed(0)
    model = task.build(method).eval()
    tokens = task.splits.train.inputs[:2]
    changed = tokens.clone()
    changed[:, 40:] = 5
    torch.testing.assert_close(model(tokens)[:, :40], model(changed)[:, :40])
    assert not model(tokens)[:, 40:].equal(model(changed)[:, 40:])


def test_a_trial_learns(task):
    trial = Trainer(task, {16: 30}, measure_memory=False)(Setup("final", "layer", 16, 0.004, 3))
    assert trial.state == "complete"
    assert task.floor < trial.valid_score < -2


def test_texts_of_ones_own(tmp_path):
    for name in ("emma", "mansfieldpark", "prideprejudice", "northangerabbey", "sensesensibility"):
        with pytest.raises(DataError, match=rf"no novels in {tmp_path}: cannot read {name}.txt .*expected emma.txt"):
            load_task(f"austen:{tmp_path}")
        (tmp_path / f"{name}.txt").write_text(f"{name}: £ and \u20ac\n" * 3000, encoding="utf-8")
    splits, characters = austen(tmp_path)
    assert {"£", "\u20ac", "\ufffd"} <= set(characters)
    assert splits.sizes()["test"] == 640
    (tmp_path / "emma.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read emma.txt .*expected .* in UTF-8"):
        load_task(f"austen:{tmp_path}")

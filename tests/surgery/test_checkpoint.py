"""Checkpoints: tensors only, any wrapping, both ways, atomic."""

import os
from pathlib import Path

import pytest
import torch
from models import ConvNet
from torch import nn

from normwise.errors import DataError, InputError, NormwiseError, StoreError
from normwise.surgery import checkpoint


class Code:
    def __reduce__(self):
        return (os.system, ("echo this must not run > /dev/null",))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_there_and_back(tmp_path, suffix):
    model = ConvNet()
    path = tmp_path / f"model{suffix}"
    checkpoint.save(path, checkpoint.Checkpoint(model.state_dict()))
    other = ConvNet()
    checkpoint.load_into(other, checkpoint.load(path))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "model.module."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_wrappings_come_back(tmp_path, prefix, nest):
    model = ConvNet()
    state = {prefix + key: value for key, value in model.state_dict().items()}
    content = state if nest is None else {nest: state, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "in.pt")
    loaded = checkpoint.load_into(ConvNet(), checkpoint.load(tmp_path / "in.pt"))
    assert (loaded.nest, loaded.prefix, set(loaded.state)) == (nest, prefix, set(model.state_dict()))
    checkpoint.save(tmp_path / "out.pt", loaded, tmp_path / "in.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(written if nest is None else written[nest]) == set(state)


def test_code_is_refused(tmp_path):
    torch.save({"model": Code()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match="holds more than tensors"):
        checkpoint.load(tmp_path / "evil.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"bad{suffix}"
    for content in (b"", b"hello", b"PK\x03\x04 not really a zip archive"):
        path.write_bytes(content)
        with pytest.raises(DataError):
            checkpoint.load(path)


def test_other_contents_are_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="holds no state_dict: found a dict with epoch"):
        checkpoint.load(tmp_path / "a.pt")


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match=r"no conv1.weight, .* and \d+ more"):
        checkpoint.load_into(ConvNet(), checkpoint.Checkpoint({"other": torch.ones(1)}))
    state = ConvNet().state_dict() | {"conv1.weight": torch.ones(1)}
    with pytest.raises(DataError, match=r"size mismatch for conv1.weight"):
        checkpoint.load_into(ConvNet(), checkpoint.Checkpoint(state))


def test_the_source_is_never_overwritten(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, checkpoint.Checkpoint(nn.Linear(2, 2).state_dict()))
    before = path.read_bytes()
    (tmp_path / "link.pt").symlink_to(path)
    for target in (path, tmp_path / "." / "model.pt", tmp_path / "link.pt"):
        with pytest.raises(InputError, match="is the source"):
            checkpoint.save(target, checkpoint.load(path), path)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    checkpoint.save(path, checkpoint.Checkpoint({"weight": torch.ones(1)}))

    def full(content, file):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match="No space left"):
        checkpoint.save(path, checkpoint.Checkpoint({"weight": torch.zeros(1)}))
    monkeypatch.undo()
    assert checkpoint.load(path).state["weight"] == 1
    assert os.listdir(tmp_path) == ["model.pt"]


def test_unwritable_places(tmp_path):
    with pytest.raises(StoreError, match="there is no folder"):
        checkpoint.save(tmp_path / "no" / "a.pt", checkpoint.Checkpoint({}))
    with pytest.raises(InputError, match="expected a name ending in"):
        checkpoint.save(tmp_path / "a.txt", checkpoint.Checkpoint({}))


def test_tied_and_strided_tensors_are_written_whole(tmp_path):
    big = torch.arange(12.0).reshape(3, 4)
    state = {"a": big, "b": big, "column": big[:, 1]}
    for suffix in (".pt", ".safetensors"):
        checkpoint.save(tmp_path / f"a{suffix}", checkpoint.Checkpoint(state))
        loaded = checkpoint.load(tmp_path / f"a{suffix}").state
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
        assert loaded["column"].untyped_storage().nbytes() == 12


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    for path, message in (("no/a.pt", "no folder"), ("folder.pt", "is a folder"), ("a.txt", "name ending in")):
        with pytest.raises(NormwiseError, match=message):
            checkpoint.check_target(tmp_path / path)
    checkpoint.check_target(None)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "a.pt", checkpoint.Checkpoint({"weight": torch.zeros(1)}))
    assert os.listdir(tmp_path) == []

"""Checkpoints: tensors only, any wrapping, both ways, atomic."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from models import ConvNet
from torch import nn

from normwise.errors import DataError, InputError, NormwiseError, StoreError
from normwise.nn.published import read_published
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


def kept(content):
    """A function's call in a pickle."""
    return type("Kept", (), {"__reduce__": lambda self: (content, ("1",))})()


@pytest.mark.parametrize("write", [torch.save, "old", "pickle 0", "pickle 2", "pickle 4"])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "builtins.eval"), (Path, "Path")])
def test_what_a_file_would_run_is_named_and_never_advised(tmp_path, write, function, name):
    path, content = tmp_path / "evil.pt", {"model": kept(function)}
    if write == torch.save:
        torch.save(content, path)
    elif write == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(write[-1])))
    for load in (checkpoint.load, read_published):
        with pytest.raises(DataError, match=name) as refused:
            load(path)
        assert "could run code" in str(refused.value)
        assert "weights_only" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_torchscript_program_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(DataError, match="is a TorchScript program, which is not run"):
        checkpoint.load(tmp_path / "a.pt")


STATE = {"weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "nest"),
    [
        ({"state": {"model": STATE}}, ("state", "model")),
        ({"checkpoint": {"state_dict": STATE}, "epoch": 3}, ("checkpoint", "state_dict")),
        (
            {"run": {"state": {"net": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}}},
            ("run", "state", "net"),
        ),
        ({"state": {"ema": STATE, "model": STATE}}, ("state", "model")),
        ({"generator": STATE}, "generator"),
        ({"model": STATE, "deeper": {"state_dict": STATE}}, "model"),
    ],
)
def test_nested_weights_are_found_and_written_back(tmp_path, content, nest):
    torch.save(content, tmp_path / "in.pth.tar")
    found = checkpoint.load(tmp_path / "in.pth.tar")
    assert (found.nest, list(found.state)) == (nest, ["weight"])
    checkpoint.save(tmp_path / "out.pth.tar", found)
    assert checkpoint.load(tmp_path / "out.pth.tar").nest == nest


@pytest.mark.parametrize(
    "content", [{"generator": STATE, "critic": STATE}, {"a": {"model": STATE}, "b": {"model": STATE}}]
)
def test_several_states_are_listed(tmp_path, content):
    torch.save(content, tmp_path / "in.pt")
    with pytest.raises(DataError, match=r"several state_dicts: (generator, critic|a.model, b.model);"):
        checkpoint.load(tmp_path / "in.pt")


def test_a_files_content_and_not_its_name_says_how_it_is_read(tmp_path):
    checkpoint.save(tmp_path / "a.pt", checkpoint.Checkpoint(STATE))
    checkpoint.save(tmp_path / "b.safetensors", checkpoint.Checkpoint(STATE))
    (tmp_path / "a.pt").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").rename(tmp_path / "b.bin")
    for name in ("a.safetensors", "b.bin"):
        assert list(checkpoint.load(tmp_path / name).state) == ["weight"]

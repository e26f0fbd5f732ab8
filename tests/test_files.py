"""What a user's path holds is replaced only where normwise wrote it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normwise import claims, cli, files, outcomes, records
from normwise.errors import InputError, StoreError
from normwise.surgery import checkpoint

NETS = """
import torch
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
def data(): return [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)) for _ in range(2)]
"""
SETTINGS = records.Settings("t", ["none"], [2], [0, 1], [9], {"2": [0.1]}, {}, "", "", "", {}, "")
STUDY = records.Study("T", "", "", SETTINGS, {}, {}, [], [], [], 0.0)
MODEL = ["nets.py:net"]
WRITERS = {
    "diagnose": [*MODEL, "--data", "nets.py:data", "--steps", "1"],
    "advise": [*MODEL, "--input-shape", "2,3,8,8"],
    "report": ["study.json"],
    "study export": ["study.json"],
    "claims docs": ["claims.json"],
    "claims report": ["claims.json"],
    "convert": [*MODEL, "--to", "group"],
    "fold": [*MODEL],
    "calibrate": [*MODEL, "--data", "nets.py:data"],
}
THEIRS = {
    "nets.py": NETS,
    "notes.html": "<!doctype html><p>mine",
    "notes.json": json.dumps({"title": "mine", "version": 1}, indent=2),
    "notes.csv": "a,b\n1,2\n",
    "notes.md": "# mine\n",
    "theirs.pt": None,
    "theirs.safetensors": None,
}


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return stopped.value.code


@pytest.fixture
def place(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    for name, text in THEIRS.items():
        if text is not None:
            Path(name).write_text(text)
    torch.save({"weight": torch.ones(1)}, "theirs.pt")
    save_file({"weight": torch.ones(1)}, "theirs.safetensors", metadata={"format": "pt"})
    Path("study.json").write_text(records.dumps(STUDY))
    Path("claims.json").write_text(records.dumps(outcomes.Claims("2026-01-01", "", {}, {}, [])))
    yield tmp_path
    sys.modules.pop("nets", None)


# A study exported over itself comes back as it was.
REFUSED = [
    (c, n) for c in WRITERS for n in (*THEIRS, "study.json", "claims.json") if (c, n) != ("study export", "study.json")
]


@pytest.mark.parametrize(("command", "name"), REFUSED)
def test_what_is_not_the_commands_own_is_refused(place, capsys, command, name):
    before = {path: path.read_bytes() for path in place.iterdir()}
    assert run(*command.split(), *WRITERS[command], "--out", name) == 2
    error = capsys.readouterr().err
    assert error.startswith("normwise: error: ")
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


OWN = [
    ("diagnose", "d.json"), ("diagnose", "d.html"), ("advise", "a.json"), ("advise", "a.htm"), ("report", "r.html"),
    ("report", "r"), ("study export", "e.csv"), ("study export", "e.json"), ("claims docs", "c.md"),
    ("claims report", "c.html"), ("convert", "w.pt"), ("convert", "w.safetensors"), ("fold", "w.pth"),
    ("calibrate", "w.pt"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name"), OWN)
def test_its_own_file_is_replaced_and_an_empty_one_filled(place, capsys, command, name):
    Path(name).touch()
    for _ in range(2):
        assert run(*command.split(), *WRITERS[command], "--out", name) == 0, capsys.readouterr().err
    assert Path(name).stat().st_size
    assert not list(place.glob(".normwise*"))


def test_one_kind_does_not_replace_another(place, capsys):
    assert run("diagnose", *WRITERS["diagnose"], "--out", "x.html") == 0
    assert run("advise", *WRITERS["advise"], "--out", "x.html") == 2
    assert "holds no page of advice that normwise wrote" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["study.json", "report.html"])
def test_folders_of_results_keep_what_is_the_users(place, name):
    import normwise
    from normwise.study.result import Study

    folder = place / "out"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(InputError, match="it was left as it is"):
        Study(STUDY).save(folder)
    with pytest.raises(InputError, match="it was left as it is"):
        normwise.compare(out=folder, methods=["none"], batch_sizes=[64], seeds=2, epochs=0.1, progress=False)
    assert run("study", "merge", "study.json", "--out", str(folder)) == 2
    assert [p.name for p in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["claims.json", "claims.html"])
def test_folders_of_claims_keep_what_is_the_users(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="it was left as it is"):
        claims.run(["small-batches"], quick=True, out=tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_devices_and_links(tmp_path):
    with pytest.raises(StoreError, match="no ordinary file"):
        files.check_target("/dev/null", "advice")
    files.write_atomic(tmp_path / "a.json", "1")
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    files.write_atomic(tmp_path / "link", "2")
    assert (tmp_path / "a.json").read_text() == "2"
    assert (tmp_path / "link").is_symlink()


def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_kept(tmp_path):
    program = (
        "import os, signal\nfrom normwise.files import replacing\n"
        "with replacing('report.html'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert len(os.listdir(tmp_path)) == 1
    (tmp_path / ".normwise-notes").write_text("mine")
    with files.replacing(tmp_path / "other"):
        files.check_target(tmp_path / "report.html", "study", page=True)
        assert len(os.listdir(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == [".normwise-notes", "other"]


def test_weights_are_told_by_what_is_in_the_file(tmp_path):
    path = tmp_path / "w.pt"
    checkpoint.save(path, checkpoint.Checkpoint({"weight": torch.ones(1)}))
    checkpoint.save(path, checkpoint.Checkpoint({"weight": torch.zeros(1)}))
    torch.save(torch.load(path), path)
    with pytest.raises(InputError, match="holds no weights that normwise wrote"):
        checkpoint.save(path, checkpoint.Checkpoint({"weight": torch.ones(1)}))

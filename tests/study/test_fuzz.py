"""Files that were changed or cut at random: every command works, or says in one line why not; nothing else."""

import random
import re
import shutil

import pytest
from tiny_study import fake_trial, make_settings

from normwise import cli, files, records
from normwise.errors import StoreError
from normwise.study.plan import due
from normwise.study.store import Store
from normwise.study.stored import draw_up

SETTINGS = make_settings(
    ["none", "batch"],
    seeds=[0, 1],
    lrs={"2": [0.05, 0.1]},
    tune_seeds=[1000, 1001],
    tune_ties=1,
    same_as={"as_is": "batch"},
)
COSTS = [records.StepCost(method, 2, [0.01, 0.011, 0.01, 0.012], 1000) for method in SETTINGS.methods]
DAMAGES = 15


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished study, with both of its files."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder, SETTINGS)
    store.note(title="Fuzzed", command="normwise compare", created="2026-11-30", versions={"torch": "2"}, machine={})
    trials = store.work(fake_trial, lambda trials: due(SETTINGS, trials))
    store.note(costs=[records.to_dict(cost) for cost in COSTS])
    files.write_atomic(folder / "study.json", records.dumps(draw_up(SETTINGS, store.about, trials)))
    return folder


def damaged(content: bytes, seed: int) -> bytes:
    """A bit flipped in two of three cases, cut short in the third; what is all zeros says nothing, so seldom there."""
    draw = random.Random(seed)
    if seed % 3 == 2:
        return content[: draw.choice([len(content) - 1, draw.randrange(len(content)), draw.randrange(100)])]
    places = [k for k in range(len(content)) if content[k]] if seed % 3 else range(len(content))
    place = draw.choice(places)
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def tried(capsys, *arguments: str) -> int:
    """Run a command: 0, or 2 and one line. In the process, so that whatever escapes it fails the test."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code in (0, 2), said
    if stopped.value.code == 2:
        assert re.fullmatch(r"normwise: error: [^\n]+\n", said), said
        assert "NORMWISE_TRACEBACK" not in said, said
    return stopped.value.code


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_a_damaged_study_file_is_salvaged_or_named(whole, tmp_path, capsys, caplog, seed):
    content = damaged((whole / "study.db").read_bytes(), seed)
    (tmp_path / "study.db").write_bytes(content)
    for command in ("report", "study export", "study list"):
        tried(capsys, *command.split(), str(tmp_path))
    tried(capsys, "study", "merge", str(tmp_path), str(whole), "--out", str(tmp_path / "both"))
    try:
        store = Store(tmp_path, SETTINGS)
    except StoreError:
        return
    trials = store.work(fake_trial, lambda trials: due(SETTINGS, trials))
    assert {setup.key for setup in due(SETTINGS, trials)} <= {trial.setup.key for trial in trials}
    if "was damaged" in caplog.text:
        assert (tmp_path / "study.db.damaged-1").read_bytes() == content
        assert "finished trial(s) were read from it" in caplog.text
    assert tried(capsys, "report", str(tmp_path)) == 0


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_a_damaged_record_is_drawn_or_named(whole, tmp_path, capsys, seed):
    shutil.copyfile(whole / "study.db", tmp_path / "study.db")
    (tmp_path / "study.json").write_bytes(damaged((whole / "study.json").read_bytes(), seed))
    for command in ("report", "study export"):
        tried(capsys, *command.split(), str(tmp_path))
    tried(capsys, "study", "merge", str(tmp_path), str(whole), "--out", str(tmp_path / "both"))


STRANGE = [b"", b"SQLite format 3", b'{\n  "title": "W', b"[" * 100_000, b"\0" * 4096, b"\xff"]


@pytest.mark.parametrize("content", STRANGE)
@pytest.mark.parametrize("name", ["study.db", "study.json", "claims.json"])
def test_short_and_strange_files_are_named(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    command = ["claims", "report"] if name == "claims.json" else ["report"]
    assert tried(capsys, *command, str(tmp_path)) == 2
    assert tried(capsys, *command, str(tmp_path / name)) == 2
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"SQLite format 3"])
def test_a_study_goes_on_where_its_file_is_empty_or_cut_to_its_first_bytes(tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    assert len(Store(tmp_path, SETTINGS).work(fake_trial, lambda trials: due(SETTINGS, trials))) > 4

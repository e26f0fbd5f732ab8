"""Studies that exist, as a person meets them on the command line."""

import csv
import json
import subprocess
import sys

import pytest
from tiny_study import fake_trial, make_settings

from normwise import cli, files, records
from normwise.study.merging import union
from normwise.study.plan import due
from normwise.study.store import Store
from normwise.study.stored import draw_up, read_study

SETTINGS = make_settings(seeds=[0, 1], lrs={"2": [0.1]})


def fill(where, settings=SETTINGS, name="normwise", trial=fake_trial):
    store = Store(where, settings, name=name)
    for _ in ("tuning", "comparison"):
        store.add([trial(setup) for setup in due(settings, store.trials())])
    return store


def said(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == code, err
    return out if code == 0 else err


def test_list(place, capsys):
    fill(place)
    Store(place, SETTINGS, name="begun")
    Store(place, SETTINGS, name="foreign")._storage.set_study_user_attr(3, "settings", None)
    lines = said(capsys, "study", "list", place).splitlines()
    assert [line.split("  ")[:3] for line in lines] == [
        ["normwise", "tiny", "6 of 6 trials"],
        ["begun", "tiny", "0 of 6 trials"],
        ["foreign", "not made by normwise", "0 of ? trials"],
    ]
    listed = json.loads(said(capsys, "study", "list", place, "--json"))
    assert listed[0]["finished"] == 6
    assert "secret" not in str(listed)


def test_list_looks_into_folders(tmp_path, capsys):
    fill(tmp_path / "a")
    fill(tmp_path / "b" / "c")
    assert len(said(capsys, "study", "list", str(tmp_path)).splitlines()) == 2
    assert "b/d/study.db holds no study" in said(capsys, "study", "list", str(tmp_path / "b" / "d"), code=2)
    (tmp_path / "empty").mkdir()
    assert "there is no study.db" in said(capsys, "study", "list", str(tmp_path / "empty"), code=2)


def test_export(place, tmp_path, capsys):
    fill(place)
    record = records.from_dict(records.Study, json.loads(said(capsys, "study", "export", place)))
    assert record == read_study(place)
    said(capsys, "study", "export", place, "--out", str(tmp_path / "study.json"))
    assert records.load_study(tmp_path / "study.json") == record
    said(capsys, "study", "export", place, "--out", str(tmp_path / "trials.csv"))
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["valid_score"])) for row in rows] == [
        (t.setup.method, t.valid_score) for t in record.trials
    ]
    assert ".json or .csv" in said(capsys, "study", "export", place, "--out", str(tmp_path / "a.xlsx"), code=2)


def test_report_from_a_database_without_torch(place, tmp_path):
    fill(place).note(title="From the database")
    page = tmp_path / "page.html"
    code = (
        "import sys\nfrom normwise.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", place, "--out", str(page)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "From the database" in page.read_text()
    assert "Batch size 2" in done.stdout


def test_reading_does_not_change_anything(tmp_path, capsys):
    for where in ("nowhere", str(tmp_path), str(tmp_path / "study.db")):
        assert "holds no study" in said(capsys, "report", where, code=2)
    assert list(tmp_path.iterdir()) == []
    fill(tmp_path)
    path = tmp_path / "study.db"
    path.write_bytes(path.read_bytes()[:20000])
    before = path.read_bytes()
    assert "study.db is damaged" in said(capsys, "report", str(tmp_path), code=2)
    assert path.read_bytes() == before


def test_merge(place, tmp_path, capsys):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    fill(mine)
    other = make_settings(["none", "layer"], seeds=[1, 2], lrs={"2": [0.1]}, same_as={"as_is": "layer"})
    record = fill(theirs, other)
    files.write_atomic(theirs / "study.json", records.dumps(draw_up(other, {}, record.trials())))
    to = ["--storage", place] if "://" in place else ["--out", place]
    sources = [str(mine / "study.db"), str(theirs / "study.json")]
    assert "10 trials of 2 studies, some are missing" in said(capsys, "study", "merge", *sources, *to)
    merged = read_study(place)
    assert merged.settings.methods == ["none", "batch", "layer"]
    assert merged.settings.seeds == [0, 1, 2]
    assert merged.settings.same_as == {"as_is": "layer"}
    assert {t.setup.key for t in merged.trials} == {
        t.setup.key for store in (Store(mine), Store(theirs)) for t in store.trials()
    }
    assert merged.command == "normwise study merge " + " ".join(sources)
    said(capsys, "study", "merge", *sources, *to)
    assert read_study(place) == merged, "merging again changes nothing"
    store = Store(place, merged.settings)
    done = store.work(fake_trial, lambda trials: due(merged.settings, trials))
    assert len(done) == 3 * (1 + 3)


def test_merge_refuses_what_does_not_belong_together(tmp_path, capsys):
    fill(tmp_path / "a")
    fill(tmp_path / "b", make_settings(seeds=[0, 1], lrs={"2": [0.2]}))
    sources = [str(tmp_path / "a"), str(tmp_path / "b")]
    refused = said(capsys, "study", "merge", *sources, "--out", str(tmp_path / "c"), code=2)
    assert "differ in lrs at batch size 2: [0.1] and [0.2]" in refused
    assert not (tmp_path / "c").exists()
    assert "say where to" in said(capsys, "study", "merge", *sources, code=2)


def test_merge_names_trials_that_differ(tmp_path):
    first = read_study(fill(tmp_path / "a").database.name)
    second = read_study(fill(tmp_path / "b", trial=lambda setup: fake_trial(setup, score=0.5)).database.name)
    both = union([first, second])
    assert both.trials == first.trials
    assert len(both.differing) == len(first.trials)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("mysql://ann:hush@db/x", "cannot keep studies in mysql://ann:***@db/x: expected postgresql://"),
        ("postgresql://ann:hush@db:port/x", "cannot read the URL postgresql://ann:***@db:port/x"),
        ("postgresql://ann:hu@sh@127.0.0.1:1/x", "cannot read the URL postgresql://ann:***@127.0.0.1:1/x: write"),
        ("postgresql://127.0.0.1:1/x?user=ann&password=hush", "cannot use postgresql://127.0.0.1:1/x?"),
        ("postgresql://ann:hush@127.0.0.1:1/x?nonsense=hush", "cannot use postgresql://ann:***@127.0.0.1:1/x?"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_its_password(capsys, tmp_path, storage, message):
    for arguments in (["compare", "--out", str(tmp_path / "out")], ["study", "work"]):
        err = said(capsys, *arguments, "--storage", storage, code=2)
        assert message in err
        assert err.count("\n") == 1
        assert "hu@sh" not in err
        assert "hush@" not in err
        assert "password=hush" not in err

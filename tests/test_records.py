"""Records survive JSON, and refuse what is not one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from normwise.errors import StoreError
from normwise.files import write_atomic
from normwise.records import (
    Interval,
    Mixture,
    Point,
    Setup,
    Trial,
    dumps,
    from_dict,
    load_study,
    to_dict,
)


def trial() -> Trial:
    return Trial(
        setup=Setup("final", "batch", 32, 0.1, 3),
        state="complete",
        valid_score=0.5,
        test_score=1,  # an int is a number too
        valid_loss=None,
        test_loss=0.25,
        steps=10,
        step_seconds=1e-3,
        seconds=2.0,
        peak_bytes=None,
        parameters=7,
        curve=[Point(1, 0.5, 2.0, None)],
        mixtures=[Mixture("layer", ["instance", "batch"], [0.5, 0.5], [0.1, 0.9])],
    )


def test_a_record_survives_json() -> None:
    assert from_dict(Trial, json.loads(dumps(trial()))) == trial()


def test_what_older_files_call_otherwise_is_found() -> None:
    data = to_dict(trial())
    data["cell"] = data.pop("setup")
    assert from_dict(Trial, data) == trial()


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    data = to_dict(trial()) | {"from_the_future": 1}
    del data["curve"], data["reason"]
    assert from_dict(Trial, data).curve == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": "ten"}, r"Trial.steps should be int, got str"),
        ({"steps": True}, r"Trial.steps should be int, got bool"),
        ({"curve": [{"step": 1}]}, r"Trial.curve\[0\] has no field 'epoch'"),
        ({"setup": None}, r"Trial.setup should be dict, got NoneType"),
        ({"valid_score": float("nan")}, r"Trial.valid_score is nan"),
    ],
)
def test_a_wrong_field_is_named(change: dict, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        from_dict(Trial, to_dict(trial()) | change)


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps(Interval(float("nan"), 0, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not JSON"),
        ("[]", "no version number"),
        ('{"version": 99}', "upgrade normwise"),
        ('{"version": 1}', "Study has no field 'title'"),
    ],
)
def test_what_is_not_a_study_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=said):
        load_study(path)


def test_a_write_replaces_whole_files_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.stat().st_mode & stat.S_IRUSR


def test_a_failed_write_says_so_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "kept").write_text("x")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(path, "new")
    assert (path / "kept").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(StoreError, match="No such file or directory"):
        write_atomic(tmp_path / "missing" / "report.html", "new")

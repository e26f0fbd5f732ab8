"""Trials that were run once serve wherever the claims are run again."""

import dataclasses

import pytest

from normwise.claims import CLAIMS, Runs
from normwise.claims.engine import run
from normwise.claims.keeping import TRIALS, read_trials, write_trials
from normwise.errors import StoreError
from normwise.records import Setup, Trial


def test_trials_serve_in_another_folder(small_data, tmp_path, monkeypatch):
    first = run("memory", quick=True, out=tmp_path / "here", progress=False)
    there = tmp_path / "there"
    there.mkdir()
    (there / TRIALS).write_bytes((tmp_path / "here" / TRIALS).read_bytes())
    monkeypatch.setattr("normwise.study.trial.Trainer.__call__", lambda *args: pytest.fail("trained again"))
    again = run("memory", quick=True, out=there, progress=False)
    assert again.outcomes[0].answers == first.outcomes[0].answers


def test_trials_of_other_settings_do_not_count(small_data, tmp_path):
    experiment = CLAIMS["initial-scale"].experiments[0]
    settings = experiment.settings(experiment.task(), quick=True)
    setup = Setup("final", "batch", 32, 0.08, 0)
    write_trials(
        Runs({experiment.name: [Trial.lost(setup, 0.1, "made up")]}, {experiment.name: settings}), tmp_path / "t"
    )
    (found,) = read_trials(tmp_path / "t", {experiment.name: settings})[experiment.name]
    assert found.setup == setup
    longer = dataclasses.replace(settings, epochs={"32": 99.0})
    assert read_trials(tmp_path / "t", {experiment.name: longer}) == {}


def test_a_file_that_cannot_be_read_is_said(small_data, tmp_path):
    (tmp_path / TRIALS).write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match="move the file away"):
        run("memory", quick=True, out=tmp_path, progress=False)

"""Watching and diagnosing a data-parallel model on two real processes."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from watch_scenarios import watched


@pytest.mark.parametrize("synced", [False, True])
def test_values_are_counted_per_process_unless_the_layer_is_synced(synced: bool) -> None:
    first, second = run_ranks(watched, 2, synced)
    torch.testing.assert_close(first["weight"], second["weight"], rtol=0, atol=0)
    for result in (first, second):
        assert (result["ranks"], result["steps"], result["hooks"]) == (2, 8, 0)
        assert result["elements"] == ((16, 16) if synced else (8, 8))
        assert ("few-elements" in result["codes"]) is not synced
    if not synced:
        assert "each of 2 processes has its own" in first["message"]
        assert "normwise.sync(model)" in first["message"]

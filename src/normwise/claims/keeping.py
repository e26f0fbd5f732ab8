"""The trials of claims in one file, so that seeds that were run once serve wherever the claims are run again."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normwise.claims.claim import Runs
from normwise.errors import StoreError
from normwise.files import parse_json, replacing
from normwise.records import Settings, Trial, from_dict, to_dict

TRIALS = "trials.json.gz"
_DIGITS = 7


def write_trials(runs: Runs, path: Path) -> None:
    """Write all trials with the settings that they were made with; those of other experiments in the file stay."""
    kept = _read(path)
    for name, trials in runs.trials_of.items():
        if trials:
            rows = [_short(to_dict(trial)) for trial in sorted(trials, key=lambda t: t.setup.key)]
            kept[name] = {"settings": to_dict(runs.settings_of[name]), "trials": rows}
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), mtime=0))


def read_trials(path: Path, settings: Mapping[str, Settings]) -> dict[str, list[Trial]]:
    """Read the trials of experiments that have these settings still; others do not count."""
    kept = _read(path)
    return {
        name: [from_dict(Trial, row) for row in kept[name]["trials"]]
        for name, wanted in settings.items()
        if name in kept and from_dict(Settings, kept[name]["settings"]) == wanted
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return parse_json(gzip.decompress(path.read_bytes()).decode())
    except (OSError, EOFError, ValueError) as error:
        raise StoreError(f"cannot read the trials {path}: {error}; move the file away to run them again") from error


def _short(value: Any) -> Any:
    """Leave digits away that say nothing."""
    if isinstance(value, float) and math.isfinite(value) and value:
        return round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value

"""What a release says of itself holds together, and its types serve a user's checker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import normwise

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

SCRIPT = '''\
"""What a user may write, under the strictest rules."""

import torch
from torch import nn

import normwise
from normwise import nn as nnw
from normwise import report
from normwise.errors import InputError
from normwise.findings import Diagnosis
from normwise.records import Study, load_study


class Net(nn.Module):
    def __init__(self, norm: nnw.NormFactory) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU())
        self.last = nnw.LayerNorm(8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.body(x).mean((2, 3))
        normalized: torch.Tensor = self.last(pooled)
        return pooled + normalized


class Writer:
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        print(step, metrics)


def layers(x: torch.Tensor) -> list[torch.Tensor]:
    kinds = [
        nnw.BatchNorm2d(3, activation="relu"), nnw.GroupNorm(1, 3), nnw.InstanceNorm2d(3), nnw.SwitchableNorm2d(3),
        nnw.RMSNorm(3), normwise.norm_layer("group")(3), normwise.weight_norm(nn.Linear(3, 3)),
    ]
    return [layer(x) for layer in kinds] + [normwise.normalize(x, "batch"), nnw.BatchNorm2d(3)(x, mask=x > 0)]


def surgery(model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    conversion = normwise.convert(model, "group", calibrate_with=batches)
    print(conversion.record, normwise.inspect(conversion.model))
    normwise.calibrate(model, batches, report=print)
    normwise.fold(model, copy=True)
    normwise.freeze(model)
    print(normwise.audit_frozen(normwise.unfreeze(model)), normwise.harden(model))
    states: dict[str, torch.Tensor] = normwise.average_states([model.state_dict()], counts=[3])
    model.load_state_dict(states)
    return normwise.sync(normwise.to_torch(conversion.model))


def training(model: nn.Module, x: torch.Tensor) -> Diagnosis:
    optimizer = torch.optim.SGD(normwise.param_groups(model, lr=0.1), lr=0.1)
    with normwise.watch(model, optimizer, every=8, writer=Writer()) as w:
        model(x).sum().backward()
    found = normwise.diagnose(model, [x], None, steps=1)
    print(report.diagnosis_html(found), found.worst, [finding.code for finding in found.findings])
    return w.diagnosis()


def study(model: nn.Module, x: torch.Tensor) -> str:
    advice = normwise.advise(model, x, batch_size=4)
    print(advice.best.code, normwise.importance(nnw.SwitchableNorm2d(3)))
    try:
        done = normwise.compare(data="digits", methods=["batch", "group(num_groups=4)"], quick=True, out="out")
    except InputError as error:
        return str(error)
    record: Study = load_study("out/study.json")
    print([(trial.setup.method, trial.test_score) for trial in record.trials], done.record == record)
    return report.html(record)
'''


def test_versions_are_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert normwise.__version__ == PROJECT["version"] == citation["version"]
    assert citation["license"] == PROJECT["license"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] in {normwise.__version__, "Unreleased"}


def test_the_package_says_that_it_is_typed() -> None:
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (Path(normwise.__file__).parent / "py.typed").exists()
    assert len(set(PROJECT["classifiers"])) == len(PROJECT["classifiers"])
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in PROJECT["classifiers"]


def test_a_users_script_passes_the_strictest_types(tmp_path: Path) -> None:
    """As an installed package is seen: from its own annotations, errors within it left out."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "empty.ini").write_text("[mypy]\n", encoding="utf-8")
    source = str(Path(normwise.__file__).parents[1])
    # What it learns of torch takes a minute, and is kept for the next time.
    options = ["--strict", "--config-file=empty.ini", f"--cache-dir={ROOT / '.mypy_cache' / 'script'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--follow-imports=silent", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named mypy" in done.stderr:
        pytest.skip("mypy is not installed: pip install 'normwise[test]'")
    assert done.returncode == 0, done.stdout + done.stderr

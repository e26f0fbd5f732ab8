"""Studies made up for the tests: seven methods at two batch sizes, with everything a real one can hold.

``python tests/report/report_samples.py FILE`` writes the sample's report, to look at.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import sys
from pathlib import Path

from normwise.advice import Advice, Check, Cost, Place, Situation, rank
from normwise.advice.rules import METHODS as ADVISED
from normwise.findings import (
    Diagnosis,
    Finding,
    Gap,
    ModelFacts,
    NormFacts,
    NormTrace,
    RunTrace,
    WeightFacts,
    WeightTrace,
)
from normwise.records import Interval, Mixture, Point, Settings, Setup, Standing, Study, Trial, Verdict
from normwise.surgery.conversion import Drift, Record, Replacement
from normwise.surgery.running import Left

EVIL = "</script><img src=//evil.example/x onerror=alert(1)><b>&amp;%{x}"
METHODS = ["none", "batch", "layer", "weight", "instance", "group", "switchable"]
SCORES = {
    2: {
        "none": 0.1,
        "batch": 0.874,
        "layer": 0.958,
        "weight": 0.951,
        "instance": 0.931,
        "group": 0.966,
        "switchable": 0.962,
    },
    32: {
        "none": 0.921,
        "batch": 0.978,
        "layer": 0.964,
        "weight": 0.955,
        "instance": 0.948,
        "group": 0.971,
        "switchable": 0.9755,
    },
}
SPEED = {"none": 1.0, "batch": 1.25, "layer": 1.3, "weight": 1.15, "instance": 1.35, "group": 1.32, "switchable": 1.9}
MEMORY = {"none": 1.0, "batch": 1.5, "layer": 1.5, "weight": 1.02, "instance": 1.5, "group": 1.5, "switchable": 2.1}
LAYERS = ["features.0.norm", "features.1.norm", "features.2.norm", "head.norm"]
FLOOR = 0.1


def study(batch_sizes: tuple[int, ...] = (2, 32), methods: tuple[str, ...] = tuple(METHODS), seeds: int = 3) -> Study:
    """Make the sample; at batch size 2 ``none`` diverges always and ``batch`` once."""
    rng = random.Random(7)
    lrs = [0.01, 0.03, 0.1]
    trials = []
    for size in batch_sizes:
        for method in methods:
            trials += [_trial(rng, Setup("tune", method, size, lr, 100)) for lr in lrs]
            trials += [_trial(rng, Setup("final", method, size, 0.03, seed)) for seed in range(seeds)]
    standings = [s for size in batch_sizes for s in _standings(trials, size, methods)]
    settings = Settings(
        task="digits",
        methods=list(methods),
        batch_sizes=list(batch_sizes),
        seeds=list(range(seeds)),
        tune_seeds=[100],
        lrs={str(b): lrs for b in batch_sizes},
        epochs={str(b): 3.0 if b < 8 else 8.0 for b in batch_sizes},
        score_name="accuracy",
        optimizer="SGD, momentum 0.9, weight decay 5e-4",
        schedule="one cycle",
        splits={"train": 1077, "validation": 360, "test": 360},
        model="conv net, 4 convolutions, 28,106 parameters",
        notes=["group norm takes 4 groups"],
    )
    return Study(
        title="Digits, a small convolutional net",
        created="2026-01-15T10:30:00+00:00",
        command="normwise compare --data digits --batch-sizes 2 32 --seeds 3",
        settings=settings,
        versions={"normwise": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.9"},
        machine={"processor": "AMD EPYC 7763", "cores": "2", "system": "Linux 6.1"},
        trials=trials,
        standings=standings,
        verdicts=[_verdict([s for s in standings if s.batch_size == b]) for b in batch_sizes],
        seconds=161.4,
    )


def all_diverged() -> Study:
    """Make a study in which nothing trained."""
    whole = study(batch_sizes=(2,))
    trials = [_diverged(t.setup) for t in whole.trials]
    floor = Interval(FLOOR, FLOOR, FLOOR)
    standings = [
        dataclasses.replace(
            s, valid=floor, test=floor, behind=Interval(0, 0, 0), behind_test=Interval(0, 0, 0), tied=True,
            diverged=s.runs, tune_diverged=3, step_seconds=None, peak_bytes=None,
        )
        for s in whole.standings
    ]  # fmt: skip
    verdict = dataclasses.replace(
        whole.verdicts[0],
        headline="Every run diverged; try smaller learning rates.",
        clear=False,
        tied=METHODS,
        confidence=0.0,
    )
    return dataclasses.replace(whole, trials=trials, standings=standings, verdicts=[verdict])


def unfinished() -> Study:
    """Make a study that was stopped while tuning: trials, but nothing compared."""
    whole = study()
    tuned = [t for t in whole.trials if t.setup.stage == "tune"][:5]
    return dataclasses.replace(whole, trials=tuned, standings=[], verdicts=[], finished=False)


def hostile(text: str) -> Study:
    """Put ``text`` into every field that a user's words can reach."""

    def swap(value: object) -> object:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            kept = {"stage", "state", "score_name", "created"}
            return dataclasses.replace(
                value, **{f.name: swap(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in kept}
            )
        if isinstance(value, str):
            # Still distinct, so that methods and layers stay apart.
            return text + value
        if isinstance(value, list):
            return [swap(v) for v in value]
        if isinstance(value, dict):
            return {k if k.isdigit() else swap(k): swap(v) for k, v in value.items()}
        return value

    result = swap(study(methods=("batch", "group", "switchable"), seeds=2))
    assert isinstance(result, Study)
    return result


def diagnosis(name: str = "bn1", findings: list[Finding] | None = None, layers: int = 3) -> Diagnosis:
    """Make a diagnosis of so many weighted layers."""
    norm = NormFacts([name], "BatchNorm2d", "batch", 1, 1, 8, elements=512)
    weights = [WeightFacts([f"{name}.conv{i}"], "Conv2d", 2 * i, 1) for i in range(layers)]
    found = [Finding(name, "error", "near-eps", f"{name} is off", {"eps": 1e-5}, "It harms.", f"fix({name!r})")]
    found += [
        Finding(f"{name}{i}", "info", "cancelled-bias", f"message {i}", {}, "It is idle.", "mend()") for i in range(5)
    ]
    return Diagnosis(
        created="2026-01-01",
        facts=ModelFacts(name, "conv", ["conv"], 8, 8),
        run=RunTrace(passes=20, sampled=6, optimizer="SGD", lr=0.1),
        norms=[NormTrace(norm, samples=6, elements=512, mean_gap=0.75, var_factor=1.5, gain=0.12, scatter=0.02)],
        weights=[
            WeightTrace(w, gradient=10.0 ** -(i % 8), cosine=0.5, moved_mean=0.1 * i) for i, w in enumerate(weights)
        ],
        gap=Gap("accuracy", 0.5, 0.75, 0.1, 128),
        findings=found if findings is None else findings,
    )


def advice(name: str = "bn1", **changes: object) -> Advice:
    """Make advice with costs and a check."""
    places = [Place(name, 16, [8, 8], 2), Place(f"{name}.one", 16, [], 2)]
    situation = Situation("conv", ["conv"], 2, devices=2, depth=5, places=places, current=["batch"])
    costs = {method: Cost(0.001 * (i + 1), 1000 * i) for i, method in enumerate(ADVISED)}
    check = Check(61.0, ["group", "batch"], f"use {name}", False, 0.01)
    return dataclasses.replace(rank(name, situation, costs), check=check, **changes)  # type: ignore[arg-type]


def conversion(name: str, layers: int = 30) -> Record:
    """Make a conversion whose layers drift more the deeper they are."""
    drifts = [(Drift(None, 0.3 * i), Drift(None, 0.02 * i)) for i in range(layers)]
    replaced = [
        Replacement(
            [f"{name}{i}"], "BatchNorm2d", "GroupNorm", ["weight", "bias"], ["running_mean: of each input"], *both
        )
        for i, both in enumerate(drifts)
    ]
    return Record(
        "group", replaced, [Left(name, f"{name} is no norm")], output_drift=1.5, output_refitted=0.1, notes=[name]
    )


def _trial(rng: random.Random, setup: Setup) -> Trial:
    bad = setup.lr == 0.1 and setup.method in {"batch", "weight"}
    if setup.batch_size == 2 and (setup.method == "none" or bad or (setup.method == "batch" and setup.seed == 2)):
        return _diverged(setup)
    top = (
        SCORES.get(setup.batch_size, SCORES[32]).get(setup.method, 0.95)
        + rng.gauss(0, 0.004)
        - 0.02 * (setup.lr != 0.03)
    )
    pace = rng.uniform(2.5, 4.0)
    curve = [
        Point(
            step=40 * i,
            epoch=i * 0.5,
            train_loss=2.3 * math.exp(-pace * i / 6) + 0.02,
            valid_score=top - (top - FLOOR) * math.exp(-pace * i / 3) + rng.gauss(0, 0.004),
        )
        for i in range(1, 13)
    ]
    step = SPEED.get(setup.method, 1) * (1.1e-3 if setup.batch_size < 8 else 4.6e-3) * rng.uniform(0.97, 1.03)
    mixtures = (
        [_mixture(rng, name, i, setup.batch_size) for i, name in enumerate(LAYERS)]
        if setup.method == "switchable"
        else []
    )
    return Trial(
        setup,
        "complete",
        top,
        top - 0.006 + rng.gauss(0, 0.003),
        0.1,
        0.12,
        480,
        step,
        step * 520,
        int(MEMORY.get(setup.method, 1) * setup.batch_size * 90_000),
        28_106,
        curve,
        mixtures,
    )


def _diverged(setup: Setup) -> Trial:
    curve = [Point(20, 0.25, 2.4, 0.12), Point(40, 0.5, 9.8, 0.1)]
    return Trial(
        setup, "diverged", FLOOR, FLOOR, None, None, 61, None, 0.4, None, 28_106, curve, reason="loss is inf at step 61"
    )


def _mixture(rng: random.Random, layer: str, depth: int, batch_size: int) -> Mixture:
    def weights(tilt: float) -> list[float]:
        logits = [
            0.3 + rng.gauss(0, 0.1),
            depth * tilt,
            (1.0 if batch_size > 8 else -1.0) - 0.2 * depth + rng.gauss(0, 0.1),
        ]
        total = sum(map(math.exp, logits))
        return [math.exp(v) / total for v in logits]

    return Mixture(layer, ["instance", "layer", "batch"], weights(0.4), weights(0.1))


def _interval(values: list[float]) -> Interval:
    mean = statistics.fmean(values)
    half = 1.3 * (statistics.stdev(values) if len(values) > 1 else 0.0) / math.sqrt(len(values)) + 0.001
    return Interval(mean, mean - half, mean + half)


def _standings(trials: list[Trial], size: int, methods: tuple[str, ...]) -> list[Standing]:
    finals = {
        m: [t for t in trials if t.setup.stage == "final" and t.setup.method == m and t.setup.batch_size == size]
        for m in methods
    }
    order = sorted(methods, key=lambda m: -statistics.fmean(t.valid_score for t in finals[m]))
    best = finals[order[0]]
    rows = []
    for i, method in enumerate(order):
        own = finals[method]
        behind = _interval([b.valid_score - t.valid_score for b, t in zip(best, own, strict=True)]) if i else None
        behind_test = _interval([b.test_score - t.test_score for b, t in zip(best, own, strict=True)]) if i else None
        rows.append(
            Standing(
                method,
                size,
                0.03,
                method == "none",
                len(own),
                sum(t.state == "diverged" for t in own),
                sum(
                    t.state == "diverged"
                    for t in trials
                    if t.setup.stage == "tune" and t.setup.method == method and t.setup.batch_size == size
                ),
                _interval([t.valid_score for t in own]),
                _interval([t.test_score for t in own]),
                behind,
                behind_test,
                behind is None or behind.low <= 0,
                max(0.7 - 0.3 * i, 0.0),
                own[0].step_seconds,
                own[0].peak_bytes,
                28_106,
            )
        )
    return rows


def _verdict(standings: list[Standing]) -> Verdict:
    best = standings[0].method
    tied = [s.method for s in standings if s.tied]
    clear = len(tied) == 1
    size = standings[0].batch_size
    if clear:
        headline = f"{best.capitalize()} is clearly best at batch size {size}."
    else:
        headline = f"No clear winner at batch size {size}: {best} is the cheapest of the tied."
    why = [f"{best.capitalize()} has the highest validation accuracy, {standings[0].valid.value:.1%}."]
    cautions = []
    if size == 2:
        why.append("Batch statistics over two samples are noisy: batch norm falls behind.")
        cautions.append("One of three runs of batch norm diverged.")
    return Verdict(size, best, best, clear, tied, 0.97 if clear else 0.83, headline, why, cautions)


if __name__ == "__main__":
    from normwise.report import html

    Path(sys.argv[1]).write_text(html(study()), encoding="utf-8")

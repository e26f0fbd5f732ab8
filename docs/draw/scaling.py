"""The numbers of docs/scaling.md: what a study costs beyond its training."""

from __future__ import annotations

import json
from typing import Any

from draw import ROOT

STORED = ROOT / "results" / "engines.json"
NODES, TRIALS = 100, 10_000


def table(found: dict[str, Any]) -> str:
    cores, load = found["machine"]["cores"], found["load_average"][0]
    pause, version = found["settings"]["pause_s"], found["versions"]["postgresql"]
    lines = [
        f"`make bench-engines` on {cores} cores, with PostgreSQL {version} on the same machine; the load was {load}",
        "when it began. Stored in `results/engines.json`. Medians.",
        "",
        "| beyond training, per trial, one worker | median | 9 of 10 below | of which the lock is held |",
        "|---|---|---|---|",
        *(overhead_row(r) for r in [*found["overhead"], *found["growth"]] if r.get("finished", 1)),
        "",
        f"| workers | trials that wait {pause} s: per hour, SQLite | PostgreSQL | of what could be |",
        "|---|---|---|---|",
    ]
    for file, server in pairs(found["waiting"]):
        share = f"{100 * file['of_ideal']:.0f} %, {100 * server['of_ideal']:.0f} %"
        lines.append(row(file["workers"], file["trials_per_hour"], server["trials_per_hour"], share))
    lines += [
        "",
        "| workers | digits at batch size 32: trials per hour, SQLite | PostgreSQL | a trial trains for |",
        "|---|---|---|---|",
    ]
    for file, server in pairs(found["real"]):
        training = f"{file['training_s_per_trial']} s, {server['training_s_per_trial']} s"
        lines.append(row(file["workers"], file["trials_per_hour"], server["trials_per_hour"], training))
    lines += [
        "",
        "The last table has the start of the workers in it. More of them than free cores only slow each other down.",
    ]
    ray, last = found["ray"], found["growth"][-1]
    up, trials, each = ray["cluster_up_s"], ray["trials"], ray["per_trial_beyond_training_ms"]
    lines += [
        "",
        f"A local Ray cluster was up after {up} s. Starting and ending its worker took {around(found)} s of a study of",
        f"{trials} trials; each cost {each} ms beyond its training, the database's share, for Ray is not asked again.",
        f"Opening a study of {last['finished']:,} finished trials takes {last['open_s']} s.",
        "",
    ]
    return "\n".join(lines)


def plan(found: dict[str, Any]) -> str:
    last = found["growth"][-1]
    claim, opened, start = last["locked_ms"] / 1e3, last["open_s"], around(found)
    shortest, hours, minutes = NODES * claim, TRIALS * 10 / NODES / 60, TRIALS * claim / 60
    lines = [
        f"- **Claims.** With {last['finished']:,} trials finished a claim holds the lock for {1e3 * claim:.0f} ms; for",
        f"  {TRIALS:,} trials that is {minutes:.0f} min, which no number of nodes shortens. {NODES} workers keep each",
        f"  other waiting when trials take less than {NODES} × {claim:.2f} s = {shortest:.0f} s; with trials of",
        f"  10 minutes the lock is held {100 * shortest / 600:.0f} % of the time.",
        f"- **Time.** Trials of 10 minutes: {TRIALS:,} × 10 min / {NODES} = {hours:.0f} h, plus the start of a",
        f"  worker ({start} s here) and its first look at the study ({opened} s at its end). The comparison of a",
        "  method waits for the search of its learning rate.",
        f"- **Heartbeats.** One in 5 s from each worker: {NODES / 5:.0f} small transactions a second.",
        f"- **Connections.** {NODES} in training, a few more in claims: `max_connections = {NODES + 20}`.",
        f"- **Size.** A result is 1 to 3 kB: {TRIALS:,} are 30 MB at the most, which every worker holds as well.",
        "",
    ]
    return "\n".join(lines)


def overhead_row(r: dict[str, Any]) -> str:
    name = r.get("storage") or f"PostgreSQL, {r.get('finished'):,} trials finished"
    return row(name, f"{r['median_ms']} ms", f"{r['p90_ms']} ms", f"{r['locked_ms']} ms")


def around(found: dict[str, Any]) -> float:
    return found["ray"]["of_which_before_the_first_trial_and_after_the_last_s"]


def row(*cells: Any) -> str:
    return "| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c) for c in cells) + " |"


def pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    by = {(r["workers"], r["storage"]): r for r in rows}
    return [(by[n, "SQLite"], by[n, "PostgreSQL"]) for n in sorted({n for n, _ in by})]


def parts() -> dict[str, str]:
    found = json.loads(STORED.read_text(encoding="utf-8"))
    return {"table": table(found), "plan": plan(found)}

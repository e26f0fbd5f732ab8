"""Several processes give what one process gives on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios
import torch
from ranks import run_ranks

from normwise.functional import normalize

SUMMED = {f"d{name}" for name in scenarios.LEARNED}
JOINED = {"y", "dx"}


def case(method: str, counts: list[int], space: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"method": method, "counts": counts, "space": space, **more}


def cases(*all_counts: list[int]) -> list[dict[str, Any]]:
    """Both synced methods, with and without derivatives of second order, masks, and one element per cell."""
    found = []
    for counts in all_counts:
        lengths = [(3 * k) % 6 for k in range(sum(counts))]
        lengths[0] = 5
        for method in ("batch", "switchable"):
            for twice in (False, True):
                found += [
                    case(method, counts, (2, 3), twice=twice),
                    case(method, counts, (5,), lengths=lengths, twice=twice),
                ]
            found.append(case(method, counts, (2, 2), options={"activation": "silu"}))
        found += [
            case("batch", counts, ()),
            case("switchable(variance=official)", counts, (2, 2)),
            case("batch_renorm", counts, (3,)),
            case("mean_only_batch", counts, (3,)),
            case("batch_instance", counts, (3,)),
        ]
    return found


@pytest.mark.parametrize(
    ("world_size", "counts"),
    [(2, [[3, 3], [4, 1], [0, 3], [1, 1]]), (4, [[2, 2, 2, 2], [3, 0, 1, 2]])],
    ids=["2 ranks", "4 ranks"],
)
def test_ranks_together_equal_one_process_on_the_joined_batch(world_size: int, counts: list[list[int]]) -> None:
    todo = cases(*counts)
    ranks = run_ranks(scenarios.steps, world_size, todo)
    for k, this in enumerate(todo):
        expected = scenarios.one_step(None, this, None)
        found = [results[k] for results in ranks]
        for name, value in expected.items():
            parts = [f[name] for f in found]
            if name in JOINED:
                together = torch.cat(parts)
            elif name in SUMMED:
                together = torch.stack(parts).sum(0)
            else:
                together = parts[0]
                assert all(torch.equal(p, together) for p in parts), f"the ranks' {name} differ in {this}"
            torch.testing.assert_close(
                together, value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, c=this: f"{n} of {c}: {m}"
            )


def test_groups_share_among_themselves_only() -> None:
    found = run_ranks(scenarios.subgroup, 4)
    x, _ = scenarios.joined([1] * 4, (3,))
    expected = torch.cat([normalize(x[:2], "batch"), normalize(x[2:], "batch")])
    torch.testing.assert_close(torch.cat(found), expected)


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(scenarios.several, 2)


def test_one_message_forward_and_one_backward(two_ranks: list[dict[str, Any]]) -> None:
    assert [found["messages"] for found in two_ranks] == [["all_gather", "reduce_scatter"]] * 2


@pytest.mark.parametrize(
    "cases",
    [
        [("ddp", "torch", [3, 1]), ("ddp", "ours", [0, 4]), ("fsdp2", "torch", [3, 2]), ("fsdp2", "ours", [0, 4])],
        [("ddp", "ours", [2, 0, 1, 3]), ("fsdp2", "torch", [2, 0, 1, 3])],
    ],
    ids=["2 ranks", "4 ranks"],
)
def test_training_under_wrappers_equals_one_process(cases: list[tuple[str, str, list[int]]]) -> None:
    ranks = run_ranks(scenarios.trainings, len(cases[0][2]), cases)
    for k, (wrapper, kind, counts) in enumerate(cases):
        alone = scenarios.model(kind)
        scenarios.train(alone, scenarios.epochs(counts), 1 / sum(counts))
        for name, value in alone.state_dict().items():
            for states in ranks:
                where = f"{name} under {wrapper}, {counts}"
                torch.testing.assert_close(
                    states[k][name], value, rtol=1e-8, atol=1e-8, msg=lambda m, w=where: f"{w}: {m}"
                )


def test_a_nan_on_one_rank_is_skipped_on_all(two_ranks: list[dict[str, Any]]) -> None:
    for before, after, skipped in (found["poisoned"] for found in two_ranks):
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert skipped == 1


def test_synced_layers_run_under_compile(two_ranks: list[dict[str, Any]]) -> None:
    for compiled, plain in (found["compiled"] for found in two_ranks):
        torch.testing.assert_close(compiled, plain)

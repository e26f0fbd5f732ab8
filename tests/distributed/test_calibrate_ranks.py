"""Calibration over two real processes whose loaders differ in length."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calibrate_scenarios import batches, failing, network, uneven, wrapped
from ranks import run_ranks

from normwise.surgery.calibrate import calibrate


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("layerwise", [False, True])
def test_all_ranks_get_the_statistics_of_all_data(layerwise: bool, synced: bool) -> None:
    results = run_ranks(uneven, 2, layerwise, synced)
    model = network()
    x = torch.cat([*batches(0), *batches(1)]).double()
    y = F.conv2d(x, model[0].weight.double(), model[0].bias.double()).transpose(0, 1).flatten(1)
    for result in results:
        torch.testing.assert_close(result["state"]["1.running_mean"].double(), y.mean(1), rtol=2e-6, atol=1e-5)
        torch.testing.assert_close(result["state"]["1.running_var"].double(), y.var(1), rtol=2e-6, atol=1e-5)
        assert (result["elements"], result["batches"], result["ranks"]) == (19 * 6, 5, 2)
    torch.testing.assert_close(results[0]["state"], results[1]["state"], rtol=0, atol=0)
    if layerwise:
        alone = calibrate(network(), [*batches(0), *batches(1)], layerwise=True).state_dict()
        torch.testing.assert_close(results[0]["state"], alone, rtol=1e-5, atol=1e-5)


def test_a_data_parallel_model_does_not_wait_for_other_ranks_in_each_batch() -> None:
    states = run_ranks(wrapped, 2)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_failure_on_one_rank_ends_all_and_leaves_the_statistics(layerwise: bool) -> None:
    first, second = run_ranks(failing, 2, layerwise)
    assert first == ("NormwiseError", "calibration failed on rank 1; see the error there", True)
    assert second == ("OSError", "the disk is gone", True)

"""Methods that make the same network are told, and trained once."""

import torch
from tiny_study import tiny_data, tiny_model
from torch import nn

from normwise.study import compare, make_task
from normwise.study.comparison import make_settings
from normwise.study.equal import without_equals


def written():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


class Silent(nn.Module):
    """A residual branch whose last layer starts at 0, which hides the norm before it."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last, self.head = nn.Conv2d(1, 4, 1), norm(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.last(self.norm(x))).mean((2, 3)))


def same(make_model, methods):
    task = make_task(make_model, tiny_data())
    return without_equals(task, make_settings(task, methods, [8], 2, [0.1], 1))


def test_what_is_equal_here_is_found():
    found = same(written, ["as_is", "batch", "group(num_groups=1)", "layer", "instance", "group(num_groups=4)", "none"])
    assert found.same_as == {"as_is": "batch", "layer": "group(num_groups=1)", "group(num_groups=4)": "instance"}
    assert found.methods == ["batch", "group(num_groups=1)", "instance", "none"]
    assert sum("make the same network" in note for note in found.notes) == 3


def test_what_differs_in_any_way_is_kept():
    """In evaluation alone, in gradients alone, or where first weights of 0 hide it."""
    assert not same(tiny_model, ["batch", "batch(momentum=0.01)"]).same_as
    assert not same(tiny_model, ["none", "weight"]).same_as
    assert not same(Silent, ["none", "batch", "layer", "instance", "switchable", "group(num_groups=2)"]).same_as


def test_a_method_that_fails_is_equal_to_nothing():
    assert not same(tiny_model, ["group(num_groups=3)", "group(num_groups=5)"]).same_as


def test_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    same(tiny_model, ["none", "batch"])
    assert torch.equal(before, torch.get_rng_state())


def test_a_study_trains_equals_once_and_says_so(tmp_path):
    given = {"batch_sizes": [8], "seeds": 2, "epochs": 1, "lrs": [0.1, 0.2], "progress": False, "out": tmp_path}
    study = compare(written, tiny_data(), methods=["as_is", "batch", "none"], **given)
    assert {t.setup.method for t in study.trials} == {"batch", "none"}
    assert {s.method for s in study.standings} == {"batch", "none"}
    (verdict,) = study.verdicts
    assert "The model as it is written is the same as with batch, so it was trained once, as batch." in verdict.why
    from normwise.report import plain

    assert "as_is = batch." in " ".join(plain(study.record).split())
    assert "batch = as_is" in " ".join(study.html().split())
    again = compare(written, tiny_data(), methods=["as_is", "batch", "none"], **given)
    assert again.record.trials == study.record.trials
    assert again.record.costs == study.record.costs

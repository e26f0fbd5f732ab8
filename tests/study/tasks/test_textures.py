import sys

import pytest
import torch

from normwise.errors import InputError, MissingDependencyError
from normwise.records import Setup
from normwise.study import load_task
from normwise.study.tasks.textures import StyleLoss
from normwise.study.trial import Trainer


@pytest.fixture(scope="module")
def task():
    return load_task("textures")


def test_photographs_are_on_one_side_only(task):
    pieces = [{p.numpy().tobytes() for p in part.inputs} for part in task.splits]
    assert [len(p) > 20 for p in pieces] == [True] * 3
    assert not pieces[0] & pieces[1] | pieces[0] & pieces[2] | pieces[1] & pieces[2]
    assert all(part.inputs.min() >= 0 and part.inputs.max() <= 1 for part in task.splits)


def test_the_loss_knows_a_texture(task):
    """Of three textures each is nearest to its own style; the content term knows the photograph."""
    from normwise.study.tasks.textures import STYLES, _image, _pieces

    pieces = {style: _pieces(_image(style)) for style in STYLES}
    for style in STYLES:
        loss = StyleLoss(pieces[style][::2], style_weight=1.0)
        losses = {other: loss(pieces[other][1::2], pieces[other][1::2]).item() for other in STYLES}
        assert min(losses, key=losses.get) == style
    content = StyleLoss(pieces["brick"], style_weight=0.0)
    photographs = task.splits.valid.inputs
    assert content(photographs, photographs) == 0
    assert content(photographs.flip(0), photographs) > 0.3


def test_a_trial_learns(task):
    trial = Trainer(task, {4: 12}, measure_memory=False)(Setup("final", "instance", 4, 0.003, 3))
    assert trial.state == "complete"
    assert trial.valid_score > task.floor
    assert trial.curve[-1].train_loss < trial.curve[0].train_loss


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(InputError, match="unknown texture 'wood': expected one of gravel, brick, grass"):
        load_task("textures:wood")
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingDependencyError, match="'normwise\\[textures\\]'"):
        load_task("textures")
    assert torch.is_grad_enabled()

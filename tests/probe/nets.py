"""Small networks, healthy and with one fault each, and data that they can learn."""

import torch
import torch.nn.functional as F
from torch import nn

import normwise
import normwise.nn as nw

CLASSES, SIZE = 4, 8


def images(count=8, size=32, seed=0, spatial=SIZE):
    """Batches of (image, class): a bright quadrant in noise."""
    random = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        y = torch.randint(CLASSES, (size,), generator=random)
        x = torch.randn(size, 3, spatial, spatial, generator=random)
        half = spatial // 2
        for i, c in enumerate(y.tolist()):
            x[i, :, half * (c // 2) : half * (c // 2) + half, half * (c % 2) : half * (c % 2) + half] += 1.5
        batches.append((x, y))
    return batches


def net(norm1=None, norm2=None, channels=16, bias=False):
    """Two convolutions, each normalized: ``conv1, bn1, conv2, bn2, fc``."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, channels, 3, padding=1, bias=bias), norm1 or nn.BatchNorm2d(channels), nn.ReLU()),
        *(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=bias),
            norm2 or nn.BatchNorm2d(channels),
            nn.ReLU(),
        ),
        *(nn.Flatten(), nn.Linear(channels * (SIZE // 2) ** 2, CLASSES)),
    )


def train(model, batches, epochs=6, lr=0.02, optimizer=None, **options):
    """Train and watch; gives the watch."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    with normwise.watch(model, **options) as w:
        for _ in range(epochs):
            for x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return w


def healthy():
    model = net()
    train(model, images())
    return model


class Sequences(nn.Module):
    """A batch norm over time, told of lengths or not."""

    def __init__(self, told):
        super().__init__()
        self.told = told
        self.conv = nn.Conv1d(5, 8, 3, padding=1, bias=False)
        self.norm = nw.BatchNorm1d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x, lengths):
        x = self.conv(x)
        x = self.norm(x, lengths=lengths) if self.told else self.norm(x)
        return self.fc(x.relu().amax(2))


def sequences(count=8, size=16, padded=True):
    random = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        x = torch.randn(size, 5, 20, generator=random)
        lengths = torch.randint(5, 21, (size,), generator=random) if padded else torch.full((size,), 20)
        lengths[0] = 20
        y = torch.randint(CLASSES, (size,), generator=random)
        for i, n in enumerate(lengths.tolist()):
            x[i, y[i], :n] += 1.0
            x[i, :, n:] = 0
        batches.append((x, lengths, y))
    return batches


class Shared(nn.Module):
    """One norm after both convolutions, or one each."""

    def __init__(self, shared):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.bn2 = self.bn1 if shared else nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


class Idle(nn.Module):
    """Has a norm that its forward pass forgets, or not."""

    def __init__(self, forgets):
        super().__init__()
        torch.manual_seed(0)
        self.forgets = forgets
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x if self.forgets else self.bn(x)).relu().mean((2, 3)))


def deep(activation, norm, depth=12, gain=1.0):
    """Many narrow layers."""
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(32, 32, bias=not norm)
        nn.init.normal_(linear.weight, std=gain / 32**0.5)
        layers += [linear, *([nn.BatchNorm1d(32)] if norm else []), activation()]
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 32), *layers, nn.Linear(32, CLASSES))

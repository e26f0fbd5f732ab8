"""What people bring: models, data sets, losses and metrics, as they write them."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def images(samples=120, classes=3):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % classes
    return torch.randn(samples, 1, 6, 6, generator=generator) + targets.reshape(-1, 1, 1, 1), targets


def pairs():
    return images()


def factory(norm):
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def narrow():
    return nn.Sequential(nn.Conv2d(1, 4, 6), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def mixed():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
    )


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def broken():
    raise KeyError("oh")


class Dicts(Dataset):
    """Draws from all three generators, as augmentation in data sets does."""

    def __init__(self, first, last):
        x, y = images()
        self.x, self.y = x[first:last], y[first:last]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        noise = torch.rand(1).item() + np.random.rand() + random.random()
        return {"image": self.x[i] + noise, "label": self.y[i], "noise": noise}


def dicts():
    return {"train": Dicts(0, 70), "validation": DataLoader(Dicts(70, 95), batch_size=7), "test": Dicts(95, 120)}


def tensor_dataset():
    return TensorDataset(*images())


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def hits(model, loader):
    right = [(model(batch["image"]).argmax(1) == batch["label"]).double() for batch in loader]
    assert len(right) == len(loader)
    return torch.cat(right).mean()


def adam(model, lr=0.01):
    return torch.optim.Adam(model.parameters(), lr=lr)


def fixed(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def rateless(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


class Characters(nn.Module):
    """Gives (N, L, V), as most language models do."""

    def __init__(self, norm):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(7, 16), norm(16, dim=1), nn.Linear(16, 7)

    def forward(self, tokens):
        y = self.embedding(tokens)
        return self.head(self.norm(y.flatten(0, 1)).reshape(y.shape))


def characters():
    tokens = torch.randint(0, 7, (60, 9), generator=torch.Generator().manual_seed(0))
    return tokens, (tokens + 1) % 7


def segmenter(norm):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def masks():
    x, _ = images(60)
    return x, (x[:, 0] > 0.5).long()


def curve(norm):
    return nn.Sequential(nn.Linear(3, 8), norm(8, dim=1), nn.ReLU(), nn.Linear(8, 2))


def points():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    return x, torch.stack([x.sum(1), x[:, 0]], 1)

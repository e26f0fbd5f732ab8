"""A project of one's own, compared from the command line. All parts but the model and the data may be left out.

normwise compare examples/my_project.py:make_model --data examples/my_project.py:make_data --methods batch,group
    --batch-sizes 4,32 --metric examples/my_project.py:metric --loss examples/my_project.py:loss
    --optimizer examples/my_project.py:make_optimizer --augment examples/my_project.py:augment
"""

import sklearn.datasets
import torch
from torch import nn
from torch.utils.data import Dataset


class Digits(Dataset):
    """A data set that gives dicts, as many do."""

    def __init__(self, first, last):
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        self.images, self.labels = images[first:last], labels[first:last]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = torch.tensor(self.images[i], dtype=torch.float32).reshape(1, 8, 8) / 16
        return {"image": image, "label": int(self.labels[i])}


def make_data():
    return {"train": Digits(0, 1000), "valid": Digits(1000, 1400), "test": Digits(1400, 1797)}


def make_model():
    """Written with torch's layers: they are converted to each method that is compared."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=0.1)


def metric(model, loader):
    """Balanced accuracy: higher is better."""
    hits, counts = torch.zeros(10), torch.zeros(10)
    for batch in loader:
        right = model(batch["image"]).argmax(1) == batch["label"]
        hits += batch["label"][right].bincount(minlength=10)
        counts += batch["label"].bincount(minlength=10)
    return (hits / counts).mean()


def make_optimizer(model, lr=3e-3, steps=1000):
    """Called with the learning rate under trial; tried are a quarter, once and four times the default."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)


def augment(batch, generator):
    """Shift by one pixel; the generator draws the same for every method."""
    across, down = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return batch | {"image": batch["image"].roll((down, across), (2, 3))}

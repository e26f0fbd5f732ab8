"""Which normalization should my model use? Run: python examples/own_model.py"""

import sklearn.datasets
import torch
from torch import nn

import normwise


def make_model(norm):
    """Build the model; `norm(channels)` gives the normalization layer under test."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), norm(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), norm(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


if __name__ == "__main__":
    digits = sklearn.datasets.load_digits()
    inputs = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    targets = torch.tensor(digits.target)

    study = normwise.compare(make_model, (inputs, targets), batch_sizes=[4], methods=["batch", "group", "switchable"])
    for verdict in study.verdicts:
        print(verdict.headline)
    study.save("own-study")  # own-study/study.json and own-study/report.html

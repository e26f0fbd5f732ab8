"""Networks with faults that only a measurement shows, and such as only look faulty."""

import torch
import torch.nn.functional as F
from nets import CLASSES, net
from torch import nn
from torch.utils.checkpoint import checkpoint


def after(*norms, channels=16):
    """``net`` with a chain in the place of its first norm."""
    return net(norm1=nn.Sequential(*norms), channels=channels)


class Tokens(nn.Module):
    """Two layer norms in a row, with dropout between or not."""

    def __init__(self, first, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.first, self.between = nn.Linear(3, 8), first, between or nn.Identity()
        self.second, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.fc(x.flatten(2).transpose(1, 2))
        return self.head(self.second(self.between(self.first(x))).mean(1))


class Siamese(nn.Module):
    """One encoder on two inputs; ``shift`` makes the second another kind of data."""

    def __init__(self, shift=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head, self.shift = nn.Linear(16, CLASSES), shift

    def forward(self, x):
        other = x.flip(0) * (1 + self.shift) + self.shift
        pair = [self.encoder(part).mean((2, 3)) for part in (x, other)]
        return self.head(torch.cat(pair, 1))


class OverTime(nn.Module):
    """A layer norm behind a convolution over time, along the channels or along time."""

    def __init__(self, over_time, length=20):
        super().__init__()
        torch.manual_seed(0)
        self.over_time = over_time
        self.conv, self.fc = nn.Conv1d(5, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.norm = nn.LayerNorm(length if over_time else 8)

    def forward(self, x):
        x = self.conv(x)
        x = self.norm(x) if self.over_time else self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.fc(x.relu().mean(2))


class Checkpointed(nn.Module):
    """Runs its body again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.options = net(), {}

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False, **self.options)


class Module(nn.Module):
    """Trains as Lightning does: ``training_step`` calls the network, nobody calls ``forward``."""

    def __init__(self, network):
        super().__init__()
        self.net, self.criterion = network, nn.CrossEntropyLoss()

    def forward(self, x):
        raise AssertionError("nobody calls it")

    def training_step(self, x, y):
        return self.criterion(self.net(x), y)


class InPieces(Module):
    """``training_step`` calls the layers one by one."""

    def training_step(self, x, y):
        for layer in self.net:
            x = layer(x)
        return self.criterion(x, y)


class Gan(nn.Module):
    """A generator and a discriminator, which are trained by turns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(
            *(nn.Linear(8, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()),
            nn.Linear(32, 12),
        )
        self.discriminator = nn.Sequential(
            *(nn.Linear(12, 32, bias=False), nn.LayerNorm(32), nn.LeakyReLU(0.2)),
            nn.Linear(32, 1),
        )

    def train_for(self, steps, detached):
        """Gives nothing; ``detached`` draws what the discriminator learns from without gradients."""
        opt_g, opt_d = (torch.optim.Adam(part.parameters(), 1e-3, (0.5, 0.9)) for part in self.children())
        for _ in range(steps):
            z, real = torch.randn(64, 8), torch.randn(64, 12) + 1
            with torch.set_grad_enabled(not detached):
                fake = self.generator(z)
            opt_d.zero_grad()
            real_score, fake_score = self.discriminator(real), self.discriminator(fake.detach())
            (F.softplus(-real_score) + F.softplus(fake_score)).mean().backward()
            opt_d.step()
            opt_g.zero_grad()
            F.softplus(-self.discriminator(self.generator(torch.randn(64, 8)))).mean().backward()
            opt_g.step()


class Segmenter(nn.Module):
    """Down, up, a skip, and a class for each pixel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.down(x)
        return self.head(torch.cat([x, self.up(self.deep(x))], 1))


class NormedLSTM(nn.Module):
    """An LSTM between layer norms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.lstm, self.after = nn.LayerNorm(6), nn.LSTM(6, 16, batch_first=True), nn.LayerNorm(16)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.after(self.lstm(self.before(x))[0])[:, -1])


class DropsByFunction(nn.Module):
    """Dropout without a module, right before a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.dropout(self.conv(x).relu(), 0.75, self.training)
        return self.fc(self.bn(x).relu().mean((2, 3)))


class WithAuxiliary(nn.Module):
    """Has a branch that nobody calls."""

    def __init__(self):
        super().__init__()
        self.body, self.auxiliary = net(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.body(x)

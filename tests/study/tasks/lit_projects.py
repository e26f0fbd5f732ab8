"""Lightning modules as people write them; apart, because Lightning imports torchvision."""

import lightning
import projects
import torch
from torch import nn


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = projects.plain()

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.body(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        outputs = self.body(x)
        right = (outputs.argmax(1) == y).float()
        self.log_dict({"val_loss": nn.functional.cross_entropy(outputs, y), "val_acc": right.mean()})

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}


class NormedModule(Module):
    def __init__(self, norm):
        super().__init__()
        self.body = projects.factory(norm)


class ByHand(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

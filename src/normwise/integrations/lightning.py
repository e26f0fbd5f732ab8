"""A callback for Lightning's trainer, of the package ``lightning`` or of ``pytorch_lightning``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normwise.errors import MissingDependencyError
from normwise.integrations._training import WatchedTraining

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError as error:
        if error.name != "pytorch_lightning":
            raise
        raise MissingDependencyError(
            "normwise.integrations.lightning needs Lightning: pip install lightning"
        ) from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["NormwiseCallback"]


class NormwiseCallback(WatchedTraining, Callback):
    """Watches the normalization of a Lightning module while it trains: :class:`normwise.watch` as a callback.

    Numbers of every layer go to the trainer's loggers at the sampled steps, under ``normwise/<layer>/<what>``; at the
    end, also that by an exception, the findings are told and kept as ``diagnosis``. All ranks watch, rank zero reports.
    Training stays the same bit for bit. A checkpoint holds nothing of the callback, so it can be added to a resumed run
    and left out of one.

    Args:
        every: distance of sampled steps, as in :class:`normwise.watch`.
        report: called with the :class:`~normwise.findings.Diagnosis` on rank zero; ``None`` for silence.

    Raises:
        InputError: an argument is of the wrong kind; when training starts, the model is compiled or has lazy layers.

    Example:
        >>> from normwise.integrations.lightning import NormwiseCallback
        >>> watching = NormwiseCallback(every=32)    # Trainer(callbacks=[watching])
        >>> print(watching.diagnosis)
        None
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the watch."""
        self._begin(pl_module, trainer.estimated_stepping_batches, _Loggers(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what was found."""
        self._end(trainer.is_global_zero)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell what was found so far: it may say why training failed."""
        self._end(trainer.is_global_zero, failed=True)


class _Loggers:
    """The trainer's loggers, written to by rank zero at the step that they count by."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def log_metrics(self, metrics: dict[str, float], /, step: int) -> None:
        if self._trainer.is_global_zero:
            for logger in self._trainer.loggers:
                # As Lightning's own callbacks do: with several optimizers ``global_step`` counts each.
                logger.log_metrics(metrics, step=self._trainer.fit_loop.epoch_loop._batches_that_stepped)

"""A callback for the Trainer of Hugging Face's ``transformers``."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from normwise.errors import InputError, MissingDependencyError
from normwise.findings import Diagnosis
from normwise.integrations._training import WatchedTraining

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":  # it is there, and something that it needs is not
        raise
    needed = "normwise.integrations.transformers needs transformers: pip install transformers accelerate"
    raise MissingDependencyError(needed) from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["NormwiseCallback"]


class NormwiseCallback(WatchedTraining, TrainerCallback):
    """Watches the normalization of a model that ``transformers.Trainer`` trains: :class:`normwise.watch` as a callback.

    At the end the findings are told and kept as ``diagnosis``. With ``trainer`` numbers of every layer go, at the
    sampled steps, to what it reports to (TensorBoard, Weights & Biases, MLflow, …), under ``normwise/<layer>/<what>``.
    All ranks watch, the first one reports. Training stays the same bit for bit, and a checkpoint holds nothing of the
    callback.

    Args:
        trainer: whose trackers get the numbers; the Trainer gives its callbacks no way to them.
        every: distance of sampled steps, as in :class:`normwise.watch`.
        report: called with the :class:`~normwise.findings.Diagnosis` on the first rank; ``None`` for silence.

    Raises:
        InputError: an argument is of the wrong kind; when training starts, the model is compiled or has lazy layers.

    Example:
        >>> from normwise.integrations.transformers import NormwiseCallback
        >>> watching = NormwiseCallback(every=32)    # Trainer(..., callbacks=[watching])
        >>> print(watching.diagnosis)                # or trainer.add_callback(NormwiseCallback(trainer))
        None
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        *,
        every: int = 16,
        report: Callable[[Diagnosis], Any] | None = print,
    ) -> None:
        super().__init__(every, report)
        if trainer is not None and not hasattr(trainer, "callback_handler"):
            raise InputError(f"trainer is {type(trainer).__name__}, expected a Trainer of transformers")
        self._trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **more: Any,
    ) -> None:
        """Open the watch."""
        assert model is not None
        if args.torch_compile:
            raise InputError("a compiled model does not see hooks: train with torch_compile=False, or without normwise")
        trackers = None if self._trainer is None else _Trackers(self._trainer)
        self._begin(model, state.max_steps, trackers)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Tell what was found."""
        self._end(state.is_world_process_zero)


class _Trackers:
    """What a trainer reports to. Not its ``log``, which would print hundreds of numbers and store them."""

    def __init__(self, trainer: Trainer) -> None:
        # Imported where a Trainer has imported it already, as it is slow.
        from transformers.integrations import INTEGRATION_TO_CALLBACK

        # Weak, so that a trainer that failed can go, and the watch's hooks with it.
        self._trainer = weakref.proxy(trainer)
        self._kinds = tuple(INTEGRATION_TO_CALLBACK.values())

    def log_metrics(self, metrics: dict[str, float], /, step: int) -> None:
        trainer = self._trainer
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, self._kinds):
                callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(metrics), model=trainer.model)

"""Which normalization should this network use? The family of normalizers, and the evidence to choose.

Names are imported on first use, so that ``import normwise`` and the command line's help do not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from normwise._version import __version__

if TYPE_CHECKING:
    from normwise import (
        advice,
        claims,
        core,
        errors,
        findings,
        functional,
        integrations,
        kernels,
        methods,
        nn,
        outcomes,
        parametrize,
        probe,
        records,
        report,
        study,
        surgery,
    )
    from normwise.functional import normalize
    from normwise.methods import METHODS
    from normwise.nn import importance, load_published, norm_layer, param_groups, sync
    from normwise.parametrize import remove_weight_norm, weight_norm, weight_norm_init, weight_normalize
    from normwise.probe import diagnose, watch
    from normwise.study import Splits, Task
    from normwise.study.comparison import compare
    from normwise.study.consult import advise
    from normwise.surgery import (
        audit_frozen,
        average_states,
        calibrate,
        convert,
        fold,
        freeze,
        harden,
        inspect,
        layer_to_rms,
        qk_norm,
        to_torch,
        unfreeze,
    )

_NAMES = {
    "functional": ("normalize",),
    "methods": ("METHODS",),
    "nn": ("importance", "load_published", "norm_layer", "param_groups", "sync"),
    "parametrize": ("remove_weight_norm", "weight_norm", "weight_norm_init", "weight_normalize"),
    "probe": ("diagnose", "watch"),
    "study": ("Splits", "Task", "advise", "compare"),
    "surgery": (
        *("audit_frozen", "average_states", "calibrate", "convert", "fold", "freeze", "harden", "inspect", "to_torch"),
        *("layer_to_rms", "qk_norm", "unfreeze"),
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = (
    *("advice", "claims", "core", "errors", "findings", "integrations", "kernels", "outcomes", "records", "report"),
    *_NAMES,
)

__all__ = [
    "METHODS",
    "Splits",
    "Task",
    "__version__",
    "advice",
    "advise",
    "audit_frozen",
    "average_states",
    "calibrate",
    "claims",
    "compare",
    "convert",
    "core",
    "diagnose",
    "errors",
    "findings",
    "fold",
    "freeze",
    "functional",
    "harden",
    "importance",
    "inspect",
    "integrations",
    "kernels",
    "layer_to_rms",
    "load_published",
    "methods",
    "nn",
    "norm_layer",
    "normalize",
    "outcomes",
    "param_groups",
    "parametrize",
    "probe",
    "qk_norm",
    "records",
    "remove_weight_norm",
    "report",
    "study",
    "surgery",
    "sync",
    "to_torch",
    "unfreeze",
    "watch",
    "weight_norm",
    "weight_norm_init",
    "weight_normalize",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"normwise.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"normwise.{_HOME[name]}"), name)
    raise AttributeError(f"module 'normwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

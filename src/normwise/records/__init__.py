"""Plain records of what was measured, and their JSON. Standard library only.

Everything that is stored or drawn passes through here: ``report`` and ``advise`` read these classes and never import
torch, so that a report can be redrawn from a file years later on a machine without it.
"""

from normwise.records.plain import dumps, from_dict, keys_of, load_record, to_dict
from normwise.records.study import (
    DECIDED,
    STUDY_VERSION,
    UNDECIDED,
    Interval,
    Mixture,
    Point,
    Settings,
    Setup,
    Standing,
    StepCost,
    Study,
    Trial,
    Verdict,
    load_study,
)

__all__ = [
    "DECIDED",
    "STUDY_VERSION",
    "UNDECIDED",
    "Interval",
    "Mixture",
    "Point",
    "Settings",
    "Setup",
    "Standing",
    "StepCost",
    "Study",
    "Trial",
    "Verdict",
    "dumps",
    "from_dict",
    "keys_of",
    "load_record",
    "load_study",
    "to_dict",
]

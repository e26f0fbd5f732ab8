"""Rules that say which normalization to use: records in, records out, no torch.

:func:`normwise.advise` runs a model, asks these rules and measures what each method costs.
"""

from normwise.advice.code import code_for, options_for
from normwise.advice.ranking import rank
from normwise.advice.records import Advice, Check, Cost, Exemption, Ranked, Reason, is_advice, load_advice
from normwise.advice.rules import RULES, VETOES, Rule, Veto
from normwise.advice.situation import TASKS, Place, Situation, situation_of

__all__ = [
    "RULES",
    "TASKS",
    "VETOES",
    "Advice",
    "Check",
    "Cost",
    "Exemption",
    "Place",
    "Ranked",
    "Reason",
    "Rule",
    "Situation",
    "Veto",
    "code_for",
    "is_advice",
    "load_advice",
    "options_for",
    "rank",
    "situation_of",
]

"""Which normalization to use, as trained networks and papers have it: records in, records out, no torch.

:func:`normwise.advise` runs a model, asks what was learned and measures what each method costs.
"""

from normwise.advice.code import code_for, options_for
from normwise.advice.learning import Learned, Prediction, learned
from normwise.advice.ranking import candidates, rank, safe_choice
from normwise.advice.records import Advice, Check, Cost, Exemption, Ranked, Reason, is_advice, load_advice
from normwise.advice.rules import RULES, Rule, strengths
from normwise.advice.situation import TASKS, Place, Situation, situation_of
from normwise.advice.vetoes import VETOES, Veto

__all__ = [
    "RULES",
    "TASKS",
    "VETOES",
    "Advice",
    "Check",
    "Cost",
    "Exemption",
    "Learned",
    "Place",
    "Prediction",
    "Ranked",
    "Reason",
    "Rule",
    "Situation",
    "Veto",
    "candidates",
    "code_for",
    "is_advice",
    "learned",
    "load_advice",
    "options_for",
    "rank",
    "safe_choice",
    "situation_of",
    "strengths",
]

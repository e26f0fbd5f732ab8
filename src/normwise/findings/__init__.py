"""Records of what was found out about one model: its facts, what was measured, what is wrong. Standard library only."""

from normwise.findings.diagnosis import Diagnosis, is_diagnosis, load_diagnosis
from normwise.findings.facts import ModelFacts, NormFacts, WeightFacts
from normwise.findings.finding import SEVERITIES, Finding, fails, gravest_first, worst
from normwise.findings.traces import AttentionTrace, Gap, NormTrace, RunTrace, TokenNorm, TokenTrace, WeightTrace

__all__ = [
    "SEVERITIES",
    "AttentionTrace",
    "Diagnosis",
    "Finding",
    "Gap",
    "ModelFacts",
    "NormFacts",
    "NormTrace",
    "RunTrace",
    "TokenNorm",
    "TokenTrace",
    "WeightFacts",
    "WeightTrace",
    "fails",
    "gravest_first",
    "is_diagnosis",
    "load_diagnosis",
    "worst",
]

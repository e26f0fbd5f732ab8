"""What trained networks taught: how far each method is behind the best, from how much each rule applies.

``learned.json`` is drawn by ``make advice-fit`` from the stored outcomes of ``make advice-bench``: a Bayesian ridge
regression for each method (:class:`sklearn.linear_model.BayesianRidge`), whose few numbers are read here without
scikit-learn; a calibration; and the tasks themselves, to say which were most like a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from normwise.advice.rules import RULES

# The tasks most like a model that are asked what was good on them.
NEAREST = 8


@dataclass(frozen=True)
class Prediction:
    """How many points a method is expected to be behind the best (negative), and the deviation of that.

    ``effects`` has what each rule adds.

    Example:
        >>> Prediction(-1.0, 0.5, {"loop": -0.5}).points
        -1.0
    """

    points: float
    spread: float
    effects: Mapping[str, float]


@dataclass(frozen=True)
class Learned:
    """What ``learned.json`` holds; see :func:`learned`.

    A method within ``tolerance`` points of the best is as good as the best. ``margin`` is how many deviations better
    than the safe choice a method must be expected to be, to be advised. ``reach`` is how far the tasks that the advice
    was judged on lay from those that it had learned from.

    Example:
        >>> learned().tolerance
        1.0
    """

    rules: list[str]
    methods: dict[str, dict[str, Any]]
    calibration: list[float]
    tasks: list[dict[str, Any]]
    tolerance: float
    margin: float
    reach: float

    def predict(self, at: Sequence[float]) -> dict[str, Prediction]:
        """Predict each method's points.

        Args:
            at: how much each rule applies.

        Returns:
            Method → prediction.

        Example:
            >>> from normwise.advice.rules import RULES
            >>> sorted(learned().predict([0.0] * len(RULES)))[:2]
            ['batch', 'derf']
        """
        return {name: self._predicted(of, at) for name, of in self.methods.items()}

    def _predicted(self, of: Mapping[str, Any], at: Sequence[float]) -> Prediction:
        away = [x - middle for x, middle in zip(at, of["centre"], strict=True)]
        effects = {rule: x * effect for rule, x, effect in zip(self.rules, at, of["effects"], strict=True)}
        unsure = sum(
            a * b * c for a, row in zip(away, of["covariance"], strict=True) for b, c in zip(row, away, strict=True)
        )
        return Prediction(of["intercept"] + sum(effects.values()), math.sqrt(unsure + of["noise"]), effects)

    def choose(self, at: Sequence[float], possible: Sequence[str], safe: str) -> tuple[str, str]:
        """Choose a method: the one least behind, if it beats the safe one by ``margin`` deviations of their difference.

        Args:
            at: how much each rule applies.
            possible: the methods to choose from.
            safe: one of them.

        Returns:
            The method; and, where it is the safe one for want of evidence, why.

        Example:
            >>> learned().choose([0.0] * len(RULES), ["layer"], "layer")
            ('layer', '')
        """
        predictions, beyond = self.predict(at), self.beyond(at)
        best = max(possible, key=lambda m: predictions[m].points)
        if beyond or best == safe:
            return safe, beyond
        gain = predictions[best].points - predictions[safe].points
        noise = math.hypot(predictions[best].spread, predictions[safe].spread)
        if gain > self.margin * noise:
            return best, ""
        return safe, f"{best} is expected to be {gain:.1f} points better, which is within the error of ±{noise:.1f}"

    def probability(self, at: Sequence[float]) -> float:
        """How likely the advice is as good as the best, by how far the nearest measured task is from the model.

        Calibrated on tasks of kinds that nothing was learned from.

        Args:
            at: how much each rule applies.

        Returns:
            A number from 0 to 1.

        Example:
            >>> 0 < learned().probability([0.0] * len(RULES)) < 1
            True
        """
        start, slope = self.calibration
        return 1 / (1 + math.exp(-start - slope * self.away(at)))

    def away(self, at: Sequence[float]) -> float:
        """How far the nearest measured task is.

        Args:
            at: how much each rule applies.

        Returns:
            The distance.

        Example:
            >>> learned().away(learned().tasks[0]["at"])
            0.0
        """
        return min(math.dist(task["at"], at) for task in self.tasks)

    def nearest(self, at: Sequence[float]) -> list[dict[str, Any]]:
        """The measured tasks most like a model, the nearest first.

        Args:
            at: how much each rule applies.

        Returns:
            Tasks, each with its ``family`` and how far each method was ``behind`` the best there.

        Example:
            >>> len(learned().nearest(learned().tasks[0]["at"]))
            8
        """
        return sorted(self.tasks, key=lambda task: math.dist(task["at"], at))[:NEAREST]

    def known(self, at: Sequence[float]) -> set[str]:
        """The methods that were tried on one at least of the measured tasks most like a model.

        Args:
            at: how much each rule applies.

        Returns:
            Their names.

        Example:
            >>> learned().known([0.0] * len(RULES)) <= set(learned().methods)
            True
        """
        return {method for task in self.nearest(at) for method in task["behind"]}

    def beyond(self, at: Sequence[float]) -> str:
        """Why nothing was learned of such a model; empty where something was.

        Args:
            at: how much each rule applies.

        Returns:
            Words, or nothing.

        Example:
            >>> learned().beyond(learned().tasks[0]["at"])
            ''
        """
        for rule, x, *seen in zip(RULES, at, *(task["at"] for task in self.tasks), strict=True):
            if x > 0 and not any(seen):
                return f"no measured task has this: {rule.when}"
        if self.away(at) > self.reach:
            return "it is further from all measured tasks than any was on which the advice was judged"
        return ""


@cache
def learned() -> Learned:
    """Read what was learned, once.

    Returns:
        The content of ``learned.json``.

    Example:
        >>> len(learned().rules) == len(RULES)
        True
    """
    data = json.loads(resources.files("normwise.advice").joinpath("learned.json").read_text(encoding="utf-8"))
    return Learned(**{name: data[name] for name in Learned.__dataclass_fields__})

"""Arguments that have another name now: the old one works for a while, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def renamed(old: str, new: str, until: str) -> Callable[[F], F]:
    """Let a function take an argument by its old name, until a version."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            if old in given:
                said = f"{function.__name__}({old}=...) goes with normwise {until}: write {new}=..."
                warnings.warn(said, DeprecationWarning, stacklevel=2)
                given[new] = given.pop(old)
            return function(*args, **given)

        return cast(F, call)

    return decorate

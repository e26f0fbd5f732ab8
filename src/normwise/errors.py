"""What normwise raises and warns with.

The tree::

    NormwiseError               caught by the command line: one line, exit code 2
    ├── InputError              (also ValueError) an argument that cannot be used
    ├── DataError               data that is missing, unreadable or of the wrong form
    ├── StoreError              a study file that is damaged, foreign or not writable
    └── MissingDependencyError  (also ImportError) an extra that is not installed

    NormwiseWarning             (a UserWarning) something was decided for the user

Layers that stand in for a ``torch.nn`` class raise what that class raises (``ValueError``, ``RuntimeError``), so that
code written for torch keeps working.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 300
_OURS = str(Path(__file__).parent)
# Where packages and Python itself lie: what is not there is the user's own code.
_PACKAGES = {"site-packages", "dist-packages"}
_OTHERS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class NormwiseError(Exception):
    """Base of every error that normwise raises on purpose; its text is meant for the user.

    Example:
        >>> from normwise.errors import InputError, NormwiseError
        >>> issubclass(InputError, NormwiseError)
        True
    """


class InputError(NormwiseError, ValueError):
    """An argument that cannot be used: says what came, what was expected and what to do.

    Example:
        >>> from normwise.errors import InputError
        >>> issubclass(InputError, ValueError)
        True
    """


class DataError(NormwiseError):
    """Data that is missing, unreadable or of the wrong form.

    Example:
        >>> from normwise.errors import DataError
        >>> raise DataError("no files in ./data")
        Traceback (most recent call last):
        ...
        normwise.errors.DataError: no files in ./data
    """


class StoreError(NormwiseError):
    """A study's file that is damaged, belongs to something else or cannot be written.

    Example:
        >>> from normwise.errors import StoreError
        >>> raise StoreError("study.db is not a study")
        Traceback (most recent call last):
        ...
        normwise.errors.StoreError: study.db is not a study
    """


class MissingDependencyError(NormwiseError, ImportError):
    """An optional dependency that the called function needs is not installed.

    Example:
        >>> from normwise.errors import MissingDependencyError
        >>> issubclass(MissingDependencyError, ImportError)
        True
    """


class NormwiseWarning(UserWarning):
    """Something that normwise decided for the user, who may want to know.

    Example:
        >>> from normwise.errors import NormwiseWarning
        >>> issubclass(NormwiseWarning, UserWarning)
        True
    """


def described(error: BaseException) -> str:
    r"""Say in one line what the user's own code raised, and where in it.

    Args:
        error: any exception.

    Returns:
        The error's type and text of at most 300 characters, and the file and line of the user's code that is nearest to
        where it was raised, if any is.

    Example:
        >>> described(ValueError("no\nway"))
        'ValueError: no way'
    """
    text = str(error).strip()
    # TorchScript's errors hold a whole traceback, whose last line says what happened.
    text = " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    line = place_of(error)
    return f"{type(error).__name__}{': ' * bool(text)}{text}" + (f" (at {line})" if line and "(at " not in text else "")


def place_of(error: BaseException) -> str | None:
    """Find the line of the user's own code that is nearest to where an error was raised.

    Args:
        error: any exception.

    Returns:
        ``FILE:LINE``; ``None`` where no code of the user had a part in it.

    Example:
        >>> place_of(ValueError("no"))
    """
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    for name, line in reversed(frames):
        if is_users(name):
            return f"{shown_path(name)}:{line}"
    return None


def is_users(file: str) -> bool:
    """Whether a file holds the user's own code, and none of Python's, a package's or ours."""
    return not file.startswith(("<", _OURS, *_OTHERS)) and _PACKAGES.isdisjoint(Path(file).parts)


def shown_path(name: str) -> Path:
    """Shorten a path to what lies below the current folder."""
    path = Path(name)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Say in one line what failed, where the user's own code raises in the body; an interrupt goes through.

    Args:
        what: was done, such as ``"nets.py:make_model failed"``.

    Yields:
        Nothing.

    Raises:
        NormwiseError: as it came.
        InputError: whatever else the code raised, a demand to exit included, as :func:`described`.

    Example:
        >>> with blaming("make_model failed"):
        ...     int("three")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: make_model failed: ValueError: invalid literal for int() with base 10: 'three'
    """
    try:
        yield
    except NormwiseError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {described(error)}") from error

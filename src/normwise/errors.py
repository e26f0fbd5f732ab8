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

"""Methods of one's own in a study: under which names, what they are, and how they reach other processes."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

from normwise.arguments.methods import is_own, several
from normwise.errors import InputError, is_users
from normwise.methods import METHODS, Method
from normwise.nn import check_spec
from normwise.nn.own import Given, builder, name_of, named, place_of_definition
from normwise.study.tasks import Task, nearest
from normwise.study.tasks.convert import AS_IS

# What of a class says where it stands and not what it does.
_OF_THE_PLACE = {"__module__", "__doc__", "__firstlineno__"}


def with_methods(task: Task, methods: Iterable[Given] | Given) -> tuple[Task, list[str]]:
    """Name the methods of a study, and let the task know those that were handed over in Python."""
    found = named(several(methods), reserved={*METHODS, AS_IS})
    handed = {name: given for name, given in found.items() if not isinstance(given, str)}
    if not handed:
        return task, list(found)
    own = {name: given if isinstance(given, Method) else builder(given) for name, given in handed.items()}
    # Its source alone would not tell another process of them.
    return dataclasses.replace(task, own={**task.own, **own}, source=None), list(found)


def check_methods(task: Task, methods: list[str]) -> list[str]:
    """Refuse methods that there are not, and options that they do not have."""
    if not methods:
        raise InputError(f"no method given: expected some of {', '.join(METHODS)}, or a method of your own")
    for method in methods:
        if method == AS_IS:
            if not task.converts:
                raise InputError("as_is is for models with layers of their own: make_model() without a norm")
        elif method in task.own or is_own(method):
            task.given(method)
        elif (name := method.partition("(")[0]) not in METHODS:
            raise InputError(
                f"unknown method {method!r}: {nearest(name, list(METHODS))}Known are {', '.join(METHODS)}; or a method "
                "of your own: my_file.py:NAME, in Python also the object itself"
            )
        else:
            check_spec(method)
    return methods


def fingerprints(task: Task, methods: Iterable[str]) -> dict[str, str]:
    """What tells whether a method of one's own is still the same under its name: a digest of its code, by name."""
    return {method: _digest(task.given(method)) for method in methods if method in task.own or is_own(method)}


def notes(task: Task, methods: Iterable[str]) -> list[str]:
    """Say what the methods of one's own are and where they stand."""
    return [
        f"{method} is a method of your own" + (f", from {place}" if (place := place_of_definition(given)) else "")
        for method in methods
        if not isinstance(given := task.given(method), str)
    ]


def check_travels(task: Task, why: str) -> None:
    """Refuse methods that another process could not get."""
    for name, given in task.own.items():
        try:
            told = pickle.dumps(given)
        except Exception:
            told = b"__main__"
        if b"__main__" in told:
            raise InputError(
                f"{why} cannot get the method {name} from here: put it in a file, and give 'my_file.py:NAME' or import "
                "it from there"
            )


def _digest(given: Any) -> str:
    """What a method is made of, in eight letters: its code, and what an object holds."""
    seen: set[int] = set()
    held = () if isinstance(given, type | FunctionType) else getattr(given, "__dict__", {}).values()
    lines = [line for value in (given, *held) for line in _described(value, seen)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _described(given: Any, seen: set[int]) -> Iterator[str]:
    """The code of a function or class and of what it calls of the user's, without comments and line numbers."""
    if isinstance(given, int | float | str | None):
        yield repr(given)
        return
    if isinstance(given, tuple | list):
        for value in given:
            yield from _described(value, seen)
        return
    if id(given) in seen or not is_users(_file(given)):
        return
    seen.add(id(given))
    if isinstance(given, FunctionType):
        yield from _of_code(given.__code__, given.__doc__)
        yield repr(given.__defaults__)
        inside = [cell.cell_contents for cell in given.__closure__ or () if _filled(cell)]
        for value in (*inside, *(given.__globals__[n] for n in given.__code__.co_names if n in given.__globals__)):
            yield from _described(value, seen)
    elif isinstance(given, type):
        yield given.__qualname__
        for value in (*given.__bases__, *(value for name, value in vars(given).items() if name not in _OF_THE_PLACE)):
            yield from _described(getattr(value, "__func__", getattr(value, "fget", value)), seen)
    elif isinstance(given, partial):
        yield name_of(given)
        yield from _described(given.func, seen)
    elif not isinstance(given, ModuleType):
        yield from _described(type(given), seen)


def _file(given: Any) -> str:
    """Where the code of a function or class stands; nothing where that is no file."""
    if isinstance(given, FunctionType):
        name = given.__code__.co_filename
        return "" if name.startswith("<") and "frozen" not in name else name  # typed in, or made by dataclass
    module = sys.modules.get(given.__module__) if isinstance(given, type) else None
    return getattr(module, "__file__", None) or "<" * (getattr(given, "__module__", None) == "builtins")


def _of_code(code: CodeType, doc: str | None = None) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        elif constant != doc:
            yield repr(constant)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False

"""Methods as texts: names of the family with options, and methods of one's own by where they stand."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from normwise.arguments.lookup import looked_up
from normwise.errors import InputError, blaming


def specs(text: str) -> list[str]:
    """Split methods at the commas that stand in no parentheses."""
    return [spec.strip() for spec in re.split(r",(?![^()]*\))", text) if spec.strip()]


def several(methods: Any) -> list[Any]:
    """One method or several, texts split at their commas."""
    given = methods if isinstance(methods, list | tuple | set | frozenset) else [methods]
    return [one for method in given for one in (specs(method) if isinstance(method, str) else [method])]


def is_own(method: str) -> bool:
    """Whether a text names a method of one's own, ``path.py:NAME`` or ``module:NAME``, and none of the library's."""
    return ":" in method.partition("(")[0]


def method_from(text: str) -> Any:
    """What :func:`normwise.norm_layer` takes for a text: for ``path.py:NAME(options)`` what stands there.

    That is a method, a class of methods, or what builds a layer; options behind it go to the class, or to each layer.
    """
    if not is_own(text):
        return text
    from normwise.methods import Method
    from normwise.nn.own import builder

    address, _, inside = text.partition("(")
    found = looked_up(address.strip())
    positional, options = _options(text, inside)
    is_class = isinstance(found, type) and issubclass(found, Method)
    if is_class:
        with blaming(f"cannot make {text}"):
            return found(*positional, **options)
    if positional or (options and isinstance(found, Method)):
        raise InputError(f"{text}: {address} takes no options here: expected a class of methods, or options by name")
    with blaming(f"cannot use {text}"):
        return found if isinstance(found, Method) else partial(builder(found), **options) if options else builder(found)


def _options(text: str, inside: str) -> tuple[list[Any], dict[str, Any]]:
    """What stands in the parentheses, ``0.3, eps=0.1)``: values, and options by name."""
    from normwise.methods.spec import parse_spec, value_of

    if inside and not inside.rstrip().endswith(")"):
        raise InputError(f"cannot read the method {text!r}: expected path.py:NAME, or path.py:NAME(option=value, ...)")
    pieces = [piece for piece in inside.rstrip()[:-1].split(",") if piece.strip()]
    by_name = ",".join(piece for piece in pieces if "=" in piece)
    return [value_of(piece.strip()) for piece in pieces if "=" not in piece], parse_spec(f"own({by_name})")[1]

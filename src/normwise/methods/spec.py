"""Methods written as text: a name, with options where others than the defaults are wanted."""

from __future__ import annotations

import ast
import re
from typing import Any

from normwise.errors import InputError

_SPEC = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\)\s*)?")


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Read a method with options: ``"group(num_groups=4)"``.

    Values are numbers, ``True``, ``False``, ``None`` or words; ``a+b`` is a sequence of words.

    Args:
        text: the spec; a name alone has no options.

    Returns:
        Name and options, neither of them checked.

    Raises:
        InputError: the text has another form.

    Example:
        >>> parse_spec("switchable(over=instance+batch, variance=official)")
        ('switchable', {'over': ('instance', 'batch'), 'variance': 'official'})
    """
    if not isinstance(text, str):
        raise InputError(f"expected the name of a method, or a method, got {text!r}")
    form = _SPEC.fullmatch(text)
    if form is None:
        raise InputError(f"cannot read the method {text!r}: expected a name, or name(option=value, ...)")
    options = {}
    for piece in filter(str.strip, (form[2] or "").split(",")):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise InputError(f"cannot read {piece.strip()!r} in the method {text!r}: expected option=value")
        options[key] = value_of(value)
    return form[1], options


def value_of(text: str) -> Any:
    """A number, a truth value, None, a sequence of words, or a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(text.split("+")) if "+" in text else text

"""What is collected only where Triton's interpreter is on: ``test_triton.py`` runs it so, in a process of its own."""

import os
from typing import Any


def replace_once_a_launch() -> None:
    """Take half of its time off Triton's interpreter.

    At each call of a function within a kernel it replaces all functions of its language, where at each launch suffices.
    """
    from triton import language
    from triton.runtime import interpreter

    replace = interpreter._patch_lang
    replaced: dict[Any, Any] = {}  # by module

    def once(function: Any) -> Any:
        modules = {m for m in (language, language.core) if any(value is m for value in function.__globals__.values())}
        if modules <= replaced.keys():
            return None
        scope = replace(function)
        if not replaced:
            restore = scope.restore

            def done() -> None:
                inner = {id(other): other for other in replaced.values() if other is not scope}
                replaced.clear()
                for other in inner.values():
                    other.restore()
                restore()

            scope.restore = done
        replaced.update(dict.fromkeys(modules, scope))
        return scope

    interpreter._patch_lang = once


collect_ignore = ["interpreted.py"]
if os.environ.get("TRITON_INTERPRET"):
    collect_ignore = []
    replace_once_a_launch()

"""``METHODS`` is the only list of methods: all else asks a method's traits, so that one's own counts as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import normwise
from normwise.advice import code, rules
from normwise.methods import METHODS

PACKAGE = Path(normwise.__file__).parent
# Tensors are called "weight" as well; a list of methods or a comparison with one has another name beside it.
NAMES = METHODS.keys() - {"weight"}
# Pools have the names of methods that rest on them alone: what is compared with these is a pool, or what a loss takes.
OF_POOLS = {"pool", "pools", "rests_on", "members", "over", "takes"}
# Where methods are named all the same, and why.
NAMED = {
    "advice/": "what papers and trained networks say of a method; read without torch, and held to the traits below",
    "claims/": "a claim of the literature is about the methods that it names",
    "core/checks.py": "what torch says of each pool with a single value",
    "core/formula.py": "what each pool computes",
    "core/method.py": "what the traits say of each pool",
    "pools.py": "the list of pools",
    "report/_palette.py": "each method looks the same in all reports; others get what is left",
    "study/tasks/base.py": "the methods that are compared by default",
    "study/tasks/language.py": "the methods that are compared on tokens by default",
    "study/verdict.py": "how a sentence calls a network without normalization",
}


def texts(node: ast.AST | None) -> set[str]:
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def of_a_pool(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id in OF_POOLS) or (
        isinstance(node, ast.Attribute) and node.attr in OF_POOLS
    )


def named_in(path: Path) -> Iterator[str]:
    """Each list of several methods, and each comparison with one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found: set[str] = set()
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            found = texts(node) & NAMES
        elif isinstance(node, ast.Dict):
            found = set().union(*map(texts, node.keys)) & NAMES
        elif isinstance(node, ast.Compare) and not any(map(of_a_pool, [node.left, *node.comparators])):
            found = set().union(*map(texts, [node.left, *node.comparators])) & NAMES
        if len(found) > (not isinstance(node, ast.Compare)):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {', '.join(sorted(found))}"  # type: ignore[attr-defined]


def test_methods_are_listed_once() -> None:
    sources = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "methods"]
    found = [row for path in sources for row in named_in(path)]
    assert not [row for row in found if not row.startswith(tuple(NAMED))], "ask a trait of the method instead"
    assert [name for name in NAMED if not any(row.startswith(name) for row in found)] == [], "no longer an exception"


def test_what_the_advice_says_of_methods_is_what_they_say_themselves() -> None:
    assert {*rules.METHODS} <= METHODS.keys()
    assert {name for name in rules.METHODS if METHODS[name].over_samples} == code.OVER_SAMPLES
    assert {name for name in rules.METHODS if METHODS[name].per_token is not False} == {*code.OF_TOKENS}

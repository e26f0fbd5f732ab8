"""The problem set leaves out no two values together."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from problems import ACTIVATIONS, LAYOUTS, SHAPES, TOLERANCE, on_every_problem, pairwise, problems

MORE = {"activation": ACTIVATIONS, "pooling": ["instance", "layer", "group"], "affine": ["none", "channel", "cell"]}


def pairs(rows):
    return {((i, row[i]), (j, row[j])) for row in rows for i, j in combinations(range(len(row)), 2)}


@pytest.mark.parametrize(
    "sizes", [(2, 2), (1, 3, 1), (8, 4, 4), (4, 4, 4, 4), (2, 3, 5, 7, 2), (5, 4, 4, 3, 3)], ids=str
)
def test_any_two_values_meet(sizes):
    factors = [range(size) for size in sizes]
    rows = pairwise(*factors)
    assert pairs(rows) == pairs(product(*factors))
    assert len(rows) == len(set(rows)) <= 1.5 * max(a * b for a, b in combinations(sizes, 2))
    assert rows == pairwise(*factors)


@pytest.mark.parametrize("names", [(), ("activation",), ("pooling", "affine")], ids=str)
def test_the_problem_set_covers_each_kind_of_shape(names):
    more = {name: MORE[name] for name in names}
    some, everything = problems(False, **more), problems(True, **more)
    assert len(set(everything)) == len(everything) > 3 * len(some)
    assert set(some) <= set(everything)
    for shapes in SHAPES.values():
        grid = product(shapes, TOLERANCE, LAYOUTS, *more.values())
        assert pairs(row for row in some if row[0] in shapes) == pairs(grid)


@pytest.mark.parametrize("variable", ["", "1"])
def test_the_environment_asks_for_the_whole_grid(variable, monkeypatch):
    monkeypatch.setenv("EVERY_PROBLEM", variable)
    mark = on_every_problem(activation=ACTIVATIONS)
    assert mark.args == (("shape", "dtype", "layout", "activation"), problems(bool(variable), activation=ACTIVATIONS))

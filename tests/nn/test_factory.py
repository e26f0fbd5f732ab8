"""Methods with options, written as text."""

import pytest

from normwise.errors import InputError
from normwise.methods import METHODS
from normwise.nn import check_spec, norm_layer, parse_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch", ("batch", {})),
        (" group ( num_groups = 4 ) ", ("group", {"num_groups": 4})),
        ("batch(momentum=None, eps=1e-3)", ("batch", {"momentum": None, "eps": 1e-3})),
        (
            "switchable(over=instance+batch,sparse=True)",
            ("switchable", {"over": ("instance", "batch"), "sparse": True}),
        ),
        ("none()", ("none", {})),
    ],
)
def test_specs_are_read(text, expected):
    assert parse_spec(text) == check_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group(num_groups=4", "expected a name, or name"),
        ("", "expected a name, or name"),
        ("group(4)", "expected option=value"),
        ("group(groups=4)", "it takes num_groups, eps"),
        ("layer(num_groups=2)", "no option 'num_groups'"),
        ("none(eps=1)", "it takes none"),
        ("gruop", "unknown method 'gruop'"),
        ("group(eps=one)", "eps"),
        ("group(num_groups=0)", "divisible"),
        ("switchable(variance=offical)", "variance"),
        ("weight(init=dtaa)", "init must be data"),
        ("ghost_batch(ghost_size=1)", "at least 2"),
    ],
)
def test_what_cannot_be_is_said(text, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        check_spec(text)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_alone_is_a_spec(method):
    assert check_spec(method) == (method, {})


def test_layers_take_the_options():
    assert norm_layer("group(num_groups=4)")(12).num_groups == 4
    assert norm_layer("batch(eps=0.5)")(12).eps == 0.5
    assert norm_layer("batch(eps=0.5)", eps=0.25)(12).eps == 0.25

"""What the layers are told, and the lines that do it."""

import pytest

from normwise.advice import Exemption, Place, Situation, code_for, options_for, rank


def vectors(batch_size, *channels):
    return Situation("mlp", ["mlp"], batch_size, places=[Place(str(c), c, [], batch_size) for c in channels])


@pytest.mark.parametrize(
    ("places", "options"),
    [
        ([Place("a", 64, [8, 8], 4)], {}),
        ([Place("a", 64, [], 4)], {"num_groups": 8}),
        ([Place("a", 48, [], 4), Place("b", 32, [], 4)], {"num_groups": 4}),
        ([Place("a", 7, [], 4)], {"num_groups": 1}),
        ([Place("a", 16, [2, 2], 4)], {}),
        ([Place("a", 16, [8, 8], 4), Place("b", 32, [2, 1], 4)], {"num_groups": 8}),
        ([Place("a", 16, [8, 8], 4), Place("b", 128, [], 4)], {"num_groups": 8}),
        ([Place("a", 64, [9], 4, per_token=True)], {}),
    ],
)
def test_groups_hold_at_least_eight_values(places, options):
    assert options_for("group", Situation("conv", ["conv"], 4, places=places)) == options


def test_a_mix_leaves_out_what_is_a_single_value():
    assert options_for("switchable", vectors(4, 64)) == {"over": ["layer", "batch"]}
    image = [Place("a", 64, [8, 8], 1)]
    assert options_for("switchable", Situation("conv", ["conv"], 1, places=image)) == {"over": ["instance", "layer"]}
    assert options_for("switchable", Situation("conv", ["conv"], 1, devices=2, places=image)) == {}
    alone = {r.method: r for r in rank("Net", vectors(1, 64)).ranking}
    assert "only layer norm is left" in alone["switchable"].refused


def test_few_places_with_few_values_are_exempted_and_many_are_not():
    def batch(*sizes):
        places = [Place(str(i), 16, [size, size], 2) for i, size in enumerate(sizes)]
        return next(
            r for r in rank("Net", Situation("conv", ["conv"], 2, places=places)).ranking if r.method == "batch"
        )

    few, many = batch(8, 4, 1), batch(8, 1, 1)
    assert [(e.place, e.use) for e in few.exemptions] == [("2", "layer")]
    assert not many.exemptions


def test_code_converts_the_exempted_places_of_a_model_that_has_the_method_already():
    there = Situation("conv", ["conv"], 2, current=["batch"], devices=4)
    code = code_for("batch", {}, [Exemption("bn3", "layer", "")], there)
    assert code.splitlines() == [
        "normwise.convert(model, \"layer\", where=lambda name, layer: name in {'bn3'})",
        "normwise.sync(model)",
    ]
    assert code_for("batch", {}, [], Situation("conv", ["conv"], 2, current=["batch"])).startswith("#")


def test_specs_are_what_compare_takes():
    from normwise.nn import check_spec

    by_name = {r.method: r for r in rank("Net", vectors(4, 64)).ranking}
    assert by_name["group"].spec == "group(num_groups=8)"
    assert check_spec(by_name["switchable"].spec) == ("switchable", {"over": ("layer", "batch")})
    assert by_name["batch"].spec == "batch"

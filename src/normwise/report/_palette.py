"""One colour, one symbol and one name per method, the same in every chart and table.

Colours were chosen together: under normal vision and simulated deuteranopia, protanopia and tritanopia (Machado et
al. 2009) any two differ by at least 20 in CIELAB, and each has 3:1 contrast with the card behind it. Symbols say the
same once more, for print and for those who see no colour at all. ``tests/report/test_report_palette.py`` holds both.
"""

from __future__ import annotations

from dataclasses import dataclass

CARD = {"light": "#ffffff", "dark": "#1b1e24"}


@dataclass(frozen=True)
class Look:
    """How one method is drawn: plotly's symbol name, the same shape as an SVG path in a 16×16 box, a colour a theme."""

    symbol: str
    path: str
    light: str
    dark: str


LOOKS = {
    "none": Look("x", "M3 1 8 6l5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5-5-5z", "#5c5c66", "#868c96"),
    "batch": Look("circle", "M8 2a6 6 0 1 0 .01 0z", "#3361f0", "#4a86ff"),
    "layer": Look("square", "M2.5 2.5h11v11h-11z", "#dd6f00", "#f3d43c"),
    "weight": Look("triangle-down", "M1.5 3h13L8 14.5z", "#c85fbd", "#dd93df"),
    "instance": Look("cross", "M6 1.5h4V6h4.5v4H10v4.5H6V10H1.5V6H6z", "#0a376e", "#c6f2ee"),
    "group": Look("diamond", "M8 1l7 7-7 7-7-7z", "#119c63", "#1fd08a"),
    "switchable": Look("triangle-up", "M8 1.5l6.5 11.5h-13z", "#8a2c0a", "#fa4f36"),
}
# Methods of the user's own take these in turn; from there on they repeat, which the labels make up for.
EXTRA = [
    Look("pentagon", "M8 1l7 5-2.7 8.5H3.7L1 6z", "#6b7a00", "#a8b820"),
    Look("hexagon", "M8 1l6 3.5v7L8 15l-6-3.5v-7z", "#6a3fb5", "#b79cff"),
    Look("hourglass", "M2 2h12L8 8l6 6H2l6-6z", "#007f8a", "#35b6c0"),
    Look("bowtie", "M2 2l6 6 6-6v12L8 8l-6 6z", "#b01e46", "#ff8fa8"),
]

NAMES = {
    "none": "no normalization",
    "batch": "batch norm",
    "layer": "layer norm",
    "weight": "weight norm",
    "instance": "instance norm",
    "group": "group norm",
    "switchable": "switchable norm",
    "as_is": "the model's own layers",
}


def looks(methods: list[str]) -> dict[str, Look]:
    """Give every method its look, the known ones always the same."""
    own = [m for m in methods if m not in LOOKS]
    return {m: LOOKS[m] if m in LOOKS else EXTRA[own.index(m) % len(EXTRA)] for m in methods}

"""The methods' colours can be told apart, also by those who see fewer of them, and from what is behind them."""

import itertools

import numpy as np
import pytest

from normwise.report._palette import CARD, EXTRA, LOOKS, looks

THEMES = ["light", "dark"]
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(color: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _contrast(a: str, b: str) -> float:
    one, other = (_linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (a, b))
    return max(one, other) / min(one, other)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES)
def test_known_methods_differ(theme, vision):
    seen = {name: _lab(np.array(VISION[vision]) @ _linear(getattr(look, theme))) for name, look in LOOKS.items()}
    gaps = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    closest = min(gaps, key=gaps.__getitem__)
    assert gaps[closest] >= 20, closest


@pytest.mark.parametrize("theme", THEMES)
def test_every_colour_stands_out_from_the_card(theme):
    contrasts = {look.symbol: _contrast(getattr(look, theme), CARD[theme]) for look in [*LOOKS.values(), *EXTRA]}
    assert min(contrasts.values()) >= 3, contrasts


def test_symbols_are_unique():
    symbols = [look.symbol for look in [*LOOKS.values(), *EXTRA]]
    assert len(set(symbols)) == len(symbols)


def test_unknown_methods_get_looks_of_their_own_and_known_ones_keep_theirs():
    given = looks(["mine", "batch", "yours", *(f"m{i}" for i in range(10))])
    assert given["batch"] is LOOKS["batch"]
    assert given["mine"] is EXTRA[0]
    assert given["yours"] is EXTRA[1]
    assert set(given.values()) <= {LOOKS["batch"], *EXTRA}

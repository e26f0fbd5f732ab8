"""What the pages say of code and of stored results is what these say; ``make pages`` draws the pages anew."""

from __future__ import annotations

import pytest

from draw import PAGES, drawn


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_drawn_from_what_it_speaks_of(page: str) -> None:
    assert PAGES[page].read_text(encoding="utf-8") == drawn(page), f"run: python docs/draw {page}"

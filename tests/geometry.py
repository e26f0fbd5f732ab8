"""What is wrong with how a page lies on a screen, found from the boxes that a browser gives its texts."""

from __future__ import annotations

from pathlib import Path

LOOK = Path(__file__).with_name("geometry.js").read_text(encoding="utf-8")
FITTED = """() => [...document.querySelectorAll('.chart')].every(
    chart => !chart.clientWidth || chart._fullLayout.width === chart.clientWidth)"""
# What watches sizes has seen them by then.
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
OPEN = "() => { for (const box of document.querySelectorAll('details')) box.open = true; }"


def troubles(page, width: int) -> list[str]:  # type: ignore[no-untyped-def]
    """Lay a page out for a width and list what is wrong."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(OPEN)
    page.wait_for_function(FITTED)
    page.evaluate(DRAWN)
    return [f"at {width} px {what}" for what in page.evaluate(LOOK)]

"""Draw all pages anew, or those that are named."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from draw import PAGES, drawn

for page in sys.argv[1:] or PAGES:
    PAGES[page].write_text(drawn(page), encoding="utf-8")

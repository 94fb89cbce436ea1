"""Takes the pictures of docs/start/demo.md from the report of a finished demonstration.

uv run python docs/pictures.py RUN    needs chromium; writes docs/images/demo-*.png
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
SECTIONS = ("verdict", "worst", "next", "exposure", "ledger", "measures", "limits")
"""Ids of sections of the report."""
FIGURE = "exposures-title"
"""Id of the heading above the figure of all exposures."""
WIDTH, TALLEST = 960, 620
"""Pixels; of a taller section the beginning is shown."""


def main(run: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, device_scale_factor=1.5)
        page.goto((run / "report.html").resolve().as_uri())
        for name in (*SECTIONS, FIGURE):
            box = page.locator(f"#{name}").bounding_box()
            if box is None:
                sys.exit(f"the report has no section {name}")
            height = 380 if name == FIGURE else min(box["height"], TALLEST)
            clip = {**box, "height": height}
            page.screenshot(path=IMAGES / f"demo-{name}.png", clip=clip, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

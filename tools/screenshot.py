"""A PNG, or a PDF, of an HTML file as a headless Chromium shows it: screenshot.py PAGE.html OUT.png

Needs playwright (the `dev` extra) and a Chromium on PATH, or one that CHROMIUM names.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    """The browser that CHROMIUM names, or else the first on PATH."""
    named = os.environ.get("CHROMIUM", "")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def shoot(
    page: Path, out: Path, *, width: int, height: int, scheme: Literal["light", "dark"], part: str
) -> None:
    """Write out: of the whole page if height is 0, of the first element that `part` selects."""
    with sync_playwright() as driver:
        # in a container, where everything is root, Chromium has no sandbox
        browser = driver.chromium.launch(
            executable_path=chromium(), chromium_sandbox=os.geteuid() != 0
        )
        view = browser.new_page(
            viewport={"width": width, "height": height or 900},
            color_scheme=scheme,
            device_scale_factor=2 if width < 600 else 1,
        )
        view.goto(page.resolve().as_uri())
        if out.suffix == ".pdf":
            view.pdf(path=out, prefer_css_page_size=True)
        elif part:
            view.locator(part).first.screenshot(path=out)
        else:
            view.screenshot(path=out, full_page=not height)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path, help=".png, or .pdf as printed")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=0, help="0: the whole page")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--part", default="", help="a CSS selector: only its first element")
    asked = parser.parse_args()
    if chromium() is None:
        parser.error("no Chromium: install one (Debian: apt install chromium), or set CHROMIUM")
    scheme: Literal["light", "dark"] = "dark" if asked.dark else "light"
    shoot(
        asked.page,
        asked.out,
        width=asked.width,
        height=asked.height,
        scheme=scheme,
        part=asked.part,
    )


if __name__ == "__main__":
    main()

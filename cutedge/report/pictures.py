"""Pictures of a page's parts, taken by a Chromium that is installed."""

import os
import shutil
from pathlib import Path

from tracer.errors import CutedgeError, InputError
from tracer.files import write_whole
from tracer.stages import stage

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
"""What a Chromium may be called, in the order in which they are tried."""


def find_browser() -> str:
    """Where a Chromium is. Raises InputError where it or the package that drives it is missing."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--png drives a browser with playwright, which is not installed: "
            "pip install 'cutedge[pictures]' (or pip install playwright)"
        ) from error
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise InputError(
            "--png needs Chromium, Chrome or Edge on PATH (Debian: apt-get install chromium); "
            "without --png the page is written all the same"
        )
    return found


@stage("taking pictures")
def take_pictures(browser: str, page: Path) -> list[Path]:
    """Write a picture of each part of a page that shows something; where they are.

    They lie beside the page and are called after it. The same page, browser and fonts give the same
    pictures. Raises CutedgeError where the browser takes none.
    """
    from playwright.sync_api import Error, sync_playwright

    root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom Chromium gives no sandbox
    taken = []
    try:
        with sync_playwright() as playwright:
            started = playwright.chromium.launch(
                executable_path=browser,
                chromium_sandbox=not root,
                args=["--force-color-profile=srgb", "--disable-gpu", "--disable-lcd-text"],
            )
            shown = started.new_page(
                viewport={"width": 1160, "height": 900}, device_scale_factor=2, color_scheme="light"
            )
            shown.goto(page.resolve().as_uri())
            shown.wait_for_function("document.documentElement.dataset.drawn")
            shown.add_style_tag(content="nav, .tools { display: none !important }")
            for part in shown.locator("section").all():
                if part.locator(".plot, svg.block, table").count():
                    picture = page.with_name(f"{page.stem}-{part.get_attribute('id')}.png")
                    write_whole(picture, part.screenshot(animations="disabled"))
                    taken.append(picture)
            started.close()
    except Error as error:
        said = (error.message.strip().splitlines() or ["it says nothing"])[0]
        raise CutedgeError(f"{browser} took no picture of {page}: {said}") from error
    return taken

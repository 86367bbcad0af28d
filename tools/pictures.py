"""Takes the pictures of docs/pictures from the real pages, in a real browser (``make pictures``).

The same code, browser and fonts give the same bytes: the viewport is fixed, the font is one that is
named, nothing moves, and no page shows a time of the day or how long it took. A picture that is not
listed here is deleted. ``concepts.svg`` is drawn by hand.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cutedge
from cutedge._live_server import Answers, Server, handler
from cutedge.report.pictures import find_browser
from tools.readme import ROOT

PICTURES = ROOT / "docs" / "pictures"
BIN = Path(sys.executable).parent
FONT = '"DejaVu Sans"'
WIDTH, HEIGHT = 1160, 900

TEE_GPU = ["--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie4-x16"]
HOST_CHIP = ["--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite"]
CONFIDENTIAL = "tee-tdx+h100-cc@pcie5-x16-cc"
LIVE = ["offload-linear", "flash-attention", "min-cut"]


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture of a part of a page."""

    name: str
    """Of its file, without .png."""
    page: str
    """One of ``COMMANDS``."""
    part: str
    """A selector of what is in it; empty for the first screen."""
    before: str = ""
    """What the page's address ends with."""


COMMANDS: dict[str, Sequence[Sequence[str]]] = {
    "tee-gpu": (
        ["trace", "llama-3.2-1b", "--seq", "1024", "--out", "llama"],
        ["cutedge", "report", "llama", *TEE_GPU, "--out", "tee-gpu.html"],
    ),
    "private": (
        [
            *("cutedge", "report", "llama", *TEE_GPU, "--policy", "offload-linear"),
            *("--policy", "prompt-private", "--policy", "slalom", "--policy", "all-home"),
            *("--out", "private.html"),
        ],
    ),
    "beside": (
        [
            *("cutedge", "report", "llama", *TEE_GPU, "--beside", CONFIDENTIAL),
            *("--policy", "offload-linear", "--policy", "flash-attention", "--policy", "min-cut"),
            *("--out", "beside.html"),
        ],
    ),
    "host-chip": (
        ["trace", "tinyllama-1.1b", "--seq", "1", "--out", "tinyllama"],
        [
            *("cutedge", "report", "tinyllama", *HOST_CHIP, "--baseline", "host-chip"),
            *("--policy", "host-chip", "--policy", "all-home", "--out", "host-chip.html"),
        ],
    ),
    "design": (
        [
            *("cutedge", "design", "tinyllama-1.1b", "--seq", "1,128", "--device", "chip-8x8"),
            *("--rows", "1..8:1,16,32", "--columns", "1..8:1,16,32", "--sram-kib", "0.75..48"),
            *("--dram-gb-per-second", "3.2", "--clock-mhz", "100", "--dtype", "float32"),
            *("--max-area", "0.8005", "--report", "design.html"),
        ],
    ),
}
"""Page -> the commands that make it."""

SHOTS = (
    Shot("tee-gpu-first", "tee-gpu", "header"),
    Shot("tee-gpu-choose", "tee-gpu", "#choose"),
    Shot("tee-gpu-seen", "tee-gpu", "#seen"),
    Shot("tee-gpu-flows", "tee-gpu", "#flows"),
    Shot("tee-gpu-time", "tee-gpu", "#time"),
    Shot("tee-gpu-block", "tee-gpu", "#block"),
    Shot("tee-gpu-growth", "tee-gpu", "#growth"),
    Shot("private-choose", "private", "#choose", "#x=seconds&y=seen"),
    Shot("beside", "beside", ""),
    Shot("host-chip-first", "host-chip", "header"),
    Shot("host-chip-cycles", "host-chip", "#cycles"),
    Shot("design", "design", ""),
)


def main() -> None:
    browser = find_browser()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for commands in COMMANDS.values():
            for command in commands:
                run(command, folder)
        found = {**taken(browser, folder), "frontier.svg": frontier(folder)}
    for file, data in found.items():
        (PICTURES / file).write_bytes(data)
    for old in PICTURES.glob("*.png"):
        if old.name not in found:
            old.unlink()


def run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")


def frontier(folder: Path) -> bytes:
    """The drawing of docs/guide/plans.md."""
    run(["trace", "edge-10m", "--phase", "decode", "--past", "256", "--out", "decode"], folder)
    plan = ["--mix", "prefill=1,decode=128", "--frontier", "24", "--granularity", "layer"]
    machine = ["--machine", "tee-tdx+rtx-4090@pcie4-x16"]
    run(["cutedge", "partition", "decode", *plan, *machine], folder)
    (drawn,) = folder.rglob("frontier.svg")
    return drawn.read_bytes()


def taken(browser: str, folder: Path) -> dict[str, bytes]:
    """File -> the picture."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=browser,
            chromium_sandbox=not (hasattr(os, "geteuid") and os.geteuid() == 0),
            args=["--force-color-profile=srgb", "--disable-gpu", "--disable-lcd-text"],
        )
        context = started.new_context(
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=1.5,
            color_scheme="light",
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
            bypass_csp=True,
        )
        for shot in SHOTS:
            page = context.new_page()
            file = folder / f"{shot.page}.html"
            file.write_text(file.read_text().replace("system-ui", f"{FONT}, system-ui"))
            page.goto(file.as_uri() + shot.before)
            if page.locator("script#data").count():
                page.wait_for_selector("html[data-drawn]", state="attached")
            page.add_style_tag(content="nav, .tools { display: none !important }")
            found[f"{shot.name}.png"] = picture(page, shot.part)
            page.close()
        with live() as address:
            page = context.new_page()
            page.goto(f"{address}#policy=min-cut&seq=2048&wire=bfloat16")
            page.wait_for_selector("td[data-name=placement]")
            page.wait_for_selector("td.kept", state="detached")
            page.add_style_tag(content=f"body {{ font-family: {FONT} }}")
            found["live.png"] = picture(page, "")
            page.close()
        started.close()
    return found


def picture(page: Any, part: str) -> bytes:
    still: dict[str, str] = {"animations": "disabled", "caret": "hide"}
    shot: Callable[..., bytes] = page.locator(part).screenshot if part else page.screenshot
    return shot(**still)


@contextmanager
def live() -> Iterator[str]:
    """The address of a live page."""
    compared = cutedge.trace("llama-3.2-1b", seq=1024).compare(LIVE, machine=CONFIDENTIAL)
    server = Server(("127.0.0.1", 0), handler(Answers(compared)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    main()

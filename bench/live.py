"""How long the live page takes for a change of its sliders, at random sizes, links and wire dtypes.

In the process, and until the change is drawn in a real Chromium: Llama-3.2-1B, also under policies that
are searched for, and a model of 126 layers. Run it with ``make bench``; it prints and judges nothing.
"""

import random
import shutil
import statistics
import threading
import time
from typing import Any

from playwright.sync_api import Browser, sync_playwright

import cutedge
from cutedge._live_server import Answers, Server, handler

FIXED = ["offload-linear", "fuse-attention", "flash-attention", "host-chip", "all-home"]


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        moved(browser, "llama-3.2-1b", [*FIXED, "min-cut", "layers"])
        moved(browser, "llama-3.1-405b", FIXED)
        browser.close()


def moved(browser: Browser, model: str, policies: list[str]) -> None:
    """Print what changes of the sliders take."""
    compared = cutedge.trace(model, seq=1024).compare(policies, machine="tee-tdx+h200@pcie5-x16")
    answers, numbers = Answers(compared), random.Random(1)
    begun = time.perf_counter()
    question: dict[str, Any] = {"policy": "offload-linear", "sizes": {"seq": 1000}}
    answers.at(question)
    first, taken = time.perf_counter() - begun, []
    for _ in range(40):
        question |= {
            "sizes": {"seq": numbers.randint(2, 8000)},
            "bandwidth": numbers.choice([None, 10 ** numbers.randint(6, 11)]),
            "wire": numbers.choice(["", "bfloat16"]),
        }
        begun = time.perf_counter()
        answers.at(question)
        taken.append(time.perf_counter() - begun)
    server = Server(("127.0.0.1", 0), handler(answers))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    page.wait_for_selector("html[data-milliseconds]", state="attached")
    drawn = []
    for _ in range(20):
        before = page.evaluate("document.documentElement.dataset.drawn")
        page.fill("#number-seq", str(numbers.randint(2, 8000)))
        page.wait_for_selector(f"html[data-drawn='{int(before) + 1}']", state="attached")
        drawn.append(float(page.evaluate("document.documentElement.dataset.milliseconds")))
    page.close()
    server.shutdown()
    server.server_close()
    print(
        f"{model}, {len(compared)} policies: {statistics.median(taken) * 1000:.0f} ms a change in the "
        f"process, {max(taken) * 1000:.0f} at most ({first * 1000:.0f} the first); "
        f"{statistics.median(drawn):.0f} ms until it is drawn, {max(drawn):.0f} at most"
    )


if __name__ == "__main__":
    main()

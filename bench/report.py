"""How fast the page of a report opens: 126 layers beside one of 2, in a real Chromium.

For each the seconds until the last chart is drawn; then, from the top of the page and from where the
run is drawn in time, the most that picking another policy takes until what is on the screen is its,
and painted; the same of opening another layer; and the longest that the page did not answer
meanwhile. Then how long the live page takes for a change: at random sizes, links and wire dtypes, in
the process and until it is drawn. Run it with ``make bench``; it prints and judges nothing.
"""

import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

import cutedge
from cutedge._live_server import Answers, Server, handler

BIN = Path(sys.executable).parent
MACHINES = ["--home", "tee-tdx", "--accel", "h200", "--link", "pcie5-x16"]
POLICIES = ["offload-linear", "fuse-attention", "flash-attention", "host-chip", "all-home"]
WATCH = """
window.longest = 0;
const note = entries => entries.forEach(
    entry => { window.longest = Math.max(window.longest, entry.duration); });
window.observer = new PerformanceObserver(list => note(list.getEntries()));
window.observer.observe({entryTypes: ["longtask"]});
window.busiest = () => { note(window.observer.takeRecords()); return window.longest; };
"""


PICK = """async ([policy, part]) => {
    const root = document.documentElement, select = document.querySelector('#policy');
    if (part) document.querySelector(part).scrollIntoView();
    else scrollTo(0, 0);
    await new Promise(done => setTimeout(done, 300));
    const start = performance.now();
    select.selectedIndex = [...select.options].findIndex(one => one.text === policy);
    select.dispatchEvent(new Event('change'));
    while (root.dataset.answered !== policy) await new Promise(done => setTimeout(done));
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    const taken = performance.now() - start;
    while (!root.dataset.drawn) await new Promise(done => setTimeout(done, 5));
    return taken / 1000;
}"""
OPEN = """async layer => {
    const start = performance.now();
    document.querySelector(`#draw-model [data-layer='${layer}']`).dispatchEvent(new Event('click'));
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return (performance.now() - start) / 1000;
}"""


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as engine:
        folder = Path(name)
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened(browser, page_of(folder, "edge-10m"))  # what starting a browser takes
        for model, *more in (
            ["llama-3.1-405b", "--set", "num_hidden_layers=2"],
            ["llama-3.1-405b"],
        ):
            page = page_of(folder, model, *more)
            drawn, picked, layer, longest = opened(browser, page)
            print(
                f"{' '.join([model, *more])}: {page.stat().st_size / 2**20:.1f} MiB, drawn in "
                f"{drawn:.2f} s, another policy in {picked:.2f} s, another layer in {layer:.2f} s, "
                f"at most {longest:.2f} s busy"
            )
            moved(browser, folder, model)
        browser.close()


def moved(browser: Browser, folder: Path, model: str) -> None:
    """Print what changes of the sliders take, of all policies but those that solve programs."""
    compared = cutedge.load(folder / "trace").compare(
        [*POLICIES, "min-cut", "layers"], machine="tee-tdx+h200@pcie5-x16"
    )
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
        f"  live, {len(compared)} policies: {statistics.median(taken) * 1000:.0f} ms a change in the "
        f"process, {max(taken) * 1000:.0f} at most ({first * 1000:.0f} the first); "
        f"{statistics.median(drawn):.0f} ms until it is drawn, {max(drawn):.0f} at most"
    )


def page_of(folder: Path, *model: str) -> Path:
    page = folder / "report.html"
    policies = [word for policy in POLICIES for word in ("--policy", policy)]
    for command in (
        ["trace", *model, "--seq", "1024", "--out", "trace"],
        ["cutedge", "report", "trace", *MACHINES, *policies, "--out", page],
    ):
        subprocess.run(
            [BIN / command[0], *command[1:]], cwd=folder, check=True, capture_output=True
        )
    return page


def opened(browser: Browser, path: Path) -> tuple[float, float, float, float]:
    """(until all is drawn, the most of a pick, the most of opening a layer, the longest task)"""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(WATCH)
    start = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn")
    drawn = time.perf_counter() - start
    policies = [*POLICIES[1:], POLICIES[0]]
    picked = max(
        page.evaluate(PICK, [policy, part]) for part in (None, "#time") for policy in policies
    )
    layer = max(page.evaluate(OPEN, layer) for layer in "01")
    longest: float = page.evaluate("busiest()")
    page.close()
    return drawn, picked, layer, longest / 1000


if __name__ == "__main__":
    main()

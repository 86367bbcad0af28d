"""How fast the page of a report opens: 126 layers beside one of 2, in a real Chromium.

For each the seconds until the last chart is drawn; then, from the top of the page and from where the
run is drawn in time, the most that picking another policy takes until what is on the screen is its,
and painted; the same of opening another layer; and the longest that the page did not answer
meanwhile. Run it with ``make bench``; it prints and judges nothing.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

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
        browser.close()


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

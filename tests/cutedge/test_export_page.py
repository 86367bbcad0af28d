"""What is exported for Model Explorer, opened in Model Explorer."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import BIN
from tests.support.inprocess import invoke

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of Model Explorer, started with the command that export prints."""
    monkeypatch.chdir(tmp_path)
    for words in (
        ["trace", "edge-10m", "--seq", "9"],
        ["partition"],
        ["export", "model-explorer", "--out", "seen.json"],
    ):
        done = invoke(words[0], *words[1:])
        assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1].split()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            [
                BIN / command[0],
                *command[1:],
                "--no_open_in_browser",
                f"--port={port}",
                "--host=127.0.0.1",
            ],
            stdout=said,
            stderr=said,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as server,
    ):
        try:
            for _ in range(240):  # the address is said once it listens, later on a busy machine
                told = [
                    line for line in (tmp_path / "said").read_text().split() if "?data=" in line
                ]
                if told:
                    break
                time.sleep(0.5)
            yield told[0]
        finally:
            server.kill()


@pytest.mark.slow
def test_model_explorer_shows_the_graph_with_its_overlays(served: str) -> None:
    from tracer.serde import read_trace

    (folder,) = Path("cutedge-out").glob("model=*/variant=*/phase=*/batch=*/past=*/seq=*")
    graph, _ = read_trace(folder)
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-gl=angle",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
            ],
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served)
        page.get_by_text("Aggregated stats").wait_for(timeout=90_000)
        shown = page.inner_text("body")
        browser.close()
    assert errors == []
    assert f"{len(graph.ops)} nodes" in shown
    assert str(sum(op.cost.flops or 0 for op in graph.ops)) in shown  # the sum of the FLOPs
    for overlay in ("FLOPs", "bytes read and written", "device"):
        assert overlay in shown

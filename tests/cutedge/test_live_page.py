"""The live page: over real sockets, in a real Chromium, by the real command."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cutedge
from cutedge._live_server import Answers, Server, handler
from tests.support import BIN
from tests.support.inprocess import invoke
from tracer.words import human

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MACHINE = "tee-tdx+rtx-4090@pcie4-x16"


@pytest.fixture(scope="module")
def served() -> Iterator[int]:
    """The port of a page in this process."""
    compared = cutedge.trace("edge-10m", seq=64).compare(
        ["offload-linear", "min-cut"], machine=MACHINE
    )
    server = Server(("127.0.0.1", 0), handler(Answers(compared)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def ask(
    port: int, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """(status, headers, text) of an answer; headers with _ for - replace what is usual."""
    sent = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = body if isinstance(body, str | None) else json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, text, sent)
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read().decode()
    connection.close()
    return found


def test_answers_are_the_figures_of_partition(served: int) -> None:
    """The page names what it shows; the figures at another size; a placement solved anew."""
    status, headers, page = ask(served, "GET", "/")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert 'id="range-seq"' in page
    question = {"sizes": {"seq": 96, "batch": 1}, "policy": "min-cut", "wire": "bfloat16"}
    status, _, text = ask(served, "POST", "/at", question)
    kept = json.loads(text)
    assert (status, kept["kept"], kept["placements"]) == (
        200,
        True,
        ["by rules", "kept from the start"],
    )
    _, _, text = ask(served, "POST", "/solve", question)
    found = json.loads(text)
    assert (found["kept"], found["placements"][1]) == (False, "solved here")
    there = cutedge.trace("edge-10m", seq=96)
    for n, policy in enumerate(("offload-linear", "min-cut")):
        one = there.partition(policy, machine=MACHINE, wire_dtype="bfloat16").split
        row = dict(zip(found["table"]["columns"], found["table"]["rows"][n], strict=True))
        assert row["all bytes"] == human(one.traffic.totals.payload_bytes)
    assert found["command"] == (
        "cutedge trace edge-10m --batch 1 --seq 96 && cutedge compare --policy offload-linear "
        "--policy min-cut --home tee-tdx --accel rtx-4090 --link pcie4-x16 --wire-dtype bfloat16"
    )
    _, _, text = ask(served, "POST", "/at", {**question, "sizes": {"batch": 2}})
    assert "Batch 2, seq 64: edge-10m is another program there" in json.loads(text)["beyond"]
    _, _, text = ask(served, "POST", "/at", {**question, "bandwidth": 10**9})
    link = json.loads(text)["link"]
    assert link["name"] == "pcie4-x16-as-set.toml"
    assert "value = 1000000000" in link["text"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "said"),
    [
        ("GET", "/", None, {"Host": "evil.example"}, 403, "this is for http://127.0.0.1:"),
        ("GET", "/", None, {"Host": "127.0.0.1"}, 403, "this is for"),
        ("GET", "/", None, {"Sec_Fetch_Site": "cross-site"}, 403, "this is for"),
        ("POST", "/at", {}, {"Origin": "http://evil.example"}, 403, "this is for"),
        ("POST", "/at", {}, {"Origin": "null"}, 403, "this is for"),
        ("POST", "/at", {}, {"Content_Type": "text/plain"}, 415, "application/json"),
        ("GET", "/../../etc/passwd", None, {}, 404, "one page here"),
        ("GET", "/%2e%2e/etc/passwd", None, {}, 404, "one page here"),
        ("GET", "//etc/passwd", None, {}, 404, "one page here"),
        ("POST", "/", {}, {}, 404, "ask /at or /solve"),
        ("POST", "/at", " " * 5000, {}, 413, "4096 bytes at most"),
        ("POST", "/at", "{", {}, 400, "Expecting"),
        ("POST", "/at", "[]", {}, 400, "ask with an object"),
        ("POST", "/at", "[" * 4000, {}, 400, ""),
        ("POST", "/at", {"policy": "nix"}, {}, 400, "policy 'nix'"),
        ("POST", "/at", {"policy": "min-cut", "sizes": {"seq": "9"}}, {}, 400, "whole numbers"),
        ("POST", "/at", {"policy": "min-cut", "sizes": {"seq": 0}}, {}, 400, "seq 0"),
        ("POST", "/at", {"policy": "min-cut", "bandwidth": 0}, {}, 400, "bandwidth 0"),
        ("POST", "/at", {"policy": "min-cut", "latency": -1}, {}, 400, "latency -1"),
        ("POST", "/at", '{"policy": "min-cut", "latency": NaN}', {}, 400, "latency nan"),
        ("POST", "/at", {"policy": "min-cut", "wire": "x"}, {}, 400, "wire 'x'"),
        ("DELETE", "/", None, {}, 501, ""),
    ],
)
def test_others_are_refused(
    served: int, method: str, path: str, body: Any, headers: dict[str, str], status: int, said: str
) -> None:
    """Other names, pages, forms and addresses; what is no question."""
    found, _, text = ask(served, method, path, body, **headers)
    assert found == status
    assert said in text
    assert "Traceback" not in text


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    """Each is said before anything is read."""
    for words, said in (
        (["--port", "9"], "--port is of a live page: say --serve too"),
        (["--serve", "--png"], "writes no file: leave --png out"),
        (["--serve", "--json"], "leave --json out"),
        (["--serve", "--out", "x.html"], "leave --out out"),
    ):
        ran = invoke("report", tmp_path, *words)
        assert ran.returncode == 2
        assert said in " ".join(re.sub(r"[^\w.:-]+", " ", ran.stderr).split())


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """(the real command, the port that it says)."""
    cutedge.trace("edge-10m", seq=64).save(tmp_path / "trace")
    words = ["report", tmp_path / "trace", "--serve", "--port", "0", "--home", "tee-tdx"]
    words += ["--accel", "rtx-4090", "--link", "pcie4-x16"]
    words += ["--policy", "offload-linear", "--policy", "min-cut"]
    started = subprocess.Popen(
        [BIN / "cutedge", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is deaf to Ctrl-C, and so are its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    assert started.stdout is not None
    address = re.match(r"http://127\.0\.0\.1:(\d+)/", started.stdout.readline())
    assert address
    yield started, int(address[1])
    started.kill()
    started.communicate()


@pytest.mark.slow
def test_ctrl_c_ends_it_and_frees_its_port(
    command: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    """With 0 and one word; while it runs its port is busy, and the error says what to do."""
    started, port = command
    busy = invoke("report", tmp_path / "trace", "--serve", "--port", port)
    assert busy.returncode == 1
    assert f"--port {port}: Address already in use. Give another --port" in " ".join(
        busy.stderr.split()
    )
    started.send_signal(signal.SIGINT)
    assert started.wait(10) == 0
    _, said = started.communicate()
    assert said == "stopped\n"
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_in_a_browser(command: tuple[subprocess.Popen[str], int]) -> None:
    """Sliders, numbers, policies, addresses, links as files, both themes, three widths, axe."""
    sync_api = pytest.importorskip("playwright.sync_api")
    started, port = command
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1160, "height": 900})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))

        def drawn(after: int) -> None:
            page.wait_for_selector("html[data-drawn]", state="attached")
            until = time.monotonic() + 20
            while page.evaluate("Number(document.documentElement.dataset.drawn)") <= after:
                assert time.monotonic() < until
                time.sleep(0.02)

        def cell(policy: str, column: str) -> str:
            row = page.locator("#table tbody tr", has=page.get_by_role("button", name=policy))
            return row.locator(f'td[data-name="{column}"]').text_content()

        page.goto(f"http://127.0.0.1:{port}/")
        drawn(0)
        bytes_at_64 = cell("min-cut", "all bytes")
        page.focus("#range-seq")
        for _ in range(12):
            page.keyboard.press("ArrowRight")
        page.wait_for_selector("td.kept")
        seq = int(page.input_value("#number-seq"))
        assert seq > 64
        assert cell("min-cut", "all bytes") != bytes_at_64
        page.fill("#number-seq", "96")
        page.press("#number-seq", "Tab")  # lets go
        page.wait_for_selector("td.kept", state="detached")
        there = cutedge.trace("edge-10m", seq=96)
        for policy in ("offload-linear", "min-cut"):
            one = there.partition(policy, machine=MACHINE).split
            assert cell(policy, "all bytes") == human(one.traffic.totals.payload_bytes)
        assert cell("min-cut", "placement") == "solved here"
        page.get_by_role("button", name="min-cut").click()
        assert page.url.endswith("#policy=min-cut&seq=96")
        with page.expect_response("**/at"):
            page.reload()
        page.wait_for_selector("tr.shown >> text=min-cut")
        assert page.input_value("#number-seq") == "96"
        page.fill("#number-bandwidth", "2")
        page.wait_for_selector("#link:not([hidden])")
        with page.expect_download() as download:
            page.click("#link")
        assert "value = 2000000000" in Path(download.value.path()).read_text()
        page.fill("#number-seq", "2147483647")
        page.wait_for_selector("body.beyond")
        assert page.inner_text("#status")
        page.fill("#number-seq", "100")
        page.wait_for_selector("body:not(.beyond)")
        for width in (360, 1160, 2560):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert said == []
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
        for scheme in ("light", "dark"):
            shown = browser.new_context(bypass_csp=True, color_scheme=scheme).new_page()
            shown.goto(f"http://127.0.0.1:{port}/")
            shown.wait_for_selector("html[data-milliseconds]", state="attached")
            assert axe().run(shown).response["violations"] == []
        started.send_signal(signal.SIGINT)
        assert started.wait(10) == 0
        page.fill("#number-seq", "110")
        page.wait_for_selector("text=The process does not answer")
        browser.close()

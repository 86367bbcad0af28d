"""Models by their id on the hub: from its cache, from a server, and where neither has them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support import ROOT

CONFIG = {"model_type": "gpt2", "n_layer": 3}
COMMIT = "1" * 40
ASK = """
import sys
from tracer.errors import CutedgeError
from tracer.presets import find_config

for model in sys.argv[1:]:
    try:
        print(find_config(model))
    except CutedgeError as error:
        print("error:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """The answers of the hub that matter, over real HTTP."""

    def do_HEAD(self) -> None:
        owner = self.path.split("/")[1]
        status, code = {
            "gone": (404, "RepoNotFound"),
            "gated": (403, "GatedRepo"),
            "bare": (404, "EntryNotFound"),
        }.get(owner, (200, None))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", str(len(json.dumps(CONFIG))))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(json.dumps(CONFIG).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(home: Path, *models: str, endpoint: str = "http://127.0.0.1:9") -> list[str]:
    """What is found for each, or the error, in a process of its own with the cache in ``home``."""
    env = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *models],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.splitlines()


def test_a_model_is_fetched_once_and_then_found_without_a_network(hub, tmp_path):
    names = ("someone/tiny", f"someone/tiny@{COMMIT}")
    wanted = [str((name, CONFIG)) for name in names]
    assert ask(tmp_path, names[0], endpoint=hub) == wanted[:1]
    assert ask(tmp_path, *names) == wanted


REFUSED = {
    "gone/llama-3.2-1b": "neither a path that exists nor a model that the hub shows. Did you",
    "gated/llama": "gated/llama is gated: accept its terms on the hub and log in",
    "bare/model": "bare/model has no config.json on the hub",
}


def test_what_the_hub_refuses(hub, tmp_path):
    for said, (model, why) in zip(
        ask(tmp_path, *REFUSED, endpoint=hub), REFUSED.items(), strict=True
    ):
        assert said.startswith("error: "), model
        assert why in said


def test_a_hub_that_cannot_be_reached_and_a_path_that_is_not_asked_of_it(tmp_path):
    paths = ("models/config.json", "models/build.py:tiny", "a/b/c")
    unreached, *missing = ask(tmp_path, "someone/tiny@v2", *paths)
    assert "error: someone/tiny@v2 is neither a path that exists nor in the local cac" in unreached
    assert len(missing) == len(paths)
    assert all(said.startswith("error: unknown model") for said in missing)

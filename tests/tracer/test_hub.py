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
ASK = "import sys; from tracer.presets import find_config; print(find_config(sys.argv[1]))"


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


def ask(model: str, home: Path, endpoint: str = "http://127.0.0.1:9") -> tuple[str, str]:
    """(what is found, the last line of the error), in a process of its own with an empty cache."""
    env = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, model],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


def test_a_model_is_fetched_once_and_then_found_without_a_network(hub, tmp_path):
    wanted = str(("someone/tiny", CONFIG))
    assert ask("someone/tiny", tmp_path, hub) == (wanted, "")
    assert ask("someone/tiny", tmp_path) == (wanted, "")
    assert ask(f"someone/tiny@{COMMIT}", tmp_path)[0] == str((f"someone/tiny@{COMMIT}", CONFIG))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("gone/llama-3.2-1b", "neither a path that exists nor a model that the hub shows. Did you"),
        ("gated/llama", "gated/llama is gated: accept its terms on the hub and log in"),
        ("bare/model", "bare/model has no config.json on the hub"),
    ],
)
def test_what_the_hub_refuses(model, says, hub, tmp_path):
    found, error = ask(model, tmp_path, hub)
    assert not found
    assert says in error


def test_a_hub_that_cannot_be_reached(tmp_path):
    found, error = ask("someone/tiny@v2", tmp_path)
    assert not found
    assert "someone/tiny@v2 is neither a path that exists nor in the local cache" in error


def test_a_path_that_is_missing_is_not_asked_of_the_hub(tmp_path):
    for model in ("models/config.json", "models/build.py:tiny", "a/b/c"):
        assert "unknown model" in ask(model, tmp_path)[1]

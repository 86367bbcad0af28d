"""What the tests share: traced presets (each once a session) and real processes."""

import gc
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import cutedge
from costmodels.flops import annotate
from tests.support import examples  # noqa: F401  # registers the profiles
from tests.support.processes import Run, run_command
from tracer.graph import OpGraph
from tracer.presets import find_config

os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("COLUMNS", "LINES"):  # the terminals of tests are as wide as these say
    os.environ.pop(_name, None)
"""Tests run side by side already: threads of torch's would wait for those of the others."""

gc.set_threshold(100_000, 50, 50)
"""Graphs live long: looking for cycles among them as often as usual takes a fifth of the time."""


@lru_cache(64)
def _traced(name: str, options: tuple[tuple[str, Any], ...]) -> OpGraph:
    asked = dict(options)
    asked["overrides"] = dict(asked.pop("overrides", ()))
    if asked.get("symbolic", True):
        return cutedge.trace(name, **asked).graph

    from tracer.capture import capture

    return annotate(capture(find_config(name)[1], model=name, **asked).graph)


def pytest_configure(config: pytest.Config) -> None:
    """Where traces are kept, and how many examples are tried of a property.

    No test reads or fills the user's cache: the tests have one of their own among what pytest keeps
    (``pytest --cache-clear`` begins anew). It knows a trace by the tracer's code and by what is
    installed. What a capture gives, whatever lies in a cache, is for the tests that call
    ``capture``. Who runs the slow tests has many examples tried of each property too.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers have it from the process that began
        os.environ["CUTEDGE_CACHE"] = str(config.cache.mkdir("traces"))
    quick = "not slow" in config.option.markexpr
    settings.load_profile("quick" if quick else "thorough")


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked ``few(n)``, the cases after the first ``n`` are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        if mark := item.get_closest_marker("few"):
            test = item.nodeid.partition("[")[0]
            if seen[test] >= mark.args[0]:
                item.add_marker("slow")
            elif item.get_closest_marker("slow") is None:
                seen[test] += 1


@pytest.fixture(scope="session")
def traced() -> Callable[..., OpGraph]:
    """``traced("gpt2", seq=7, ...)``: the annotated op graph of a preset."""

    def trace(name: str, **options: Any) -> OpGraph:
        if "overrides" in options:
            options["overrides"] = tuple(sorted(options["overrides"].items()))
        return _traced(name, tuple(sorted(options.items())))

    return trace


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("trace", "gpt2", "--seq", "7")`` in the test's own directory."""

    def call(command: str, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_command(command, *args, cwd=options.pop("cwd", tmp_path), **options)

    return call


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As ``run``, without a process: for all that a process adds nothing to."""
    from tests.support.inprocess import invoke

    monkeypatch.chdir(tmp_path)
    return invoke

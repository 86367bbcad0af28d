"""Workers that serve run after run, read checkpoints and send to each other; nothing stays."""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from threading import active_count
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cutedge.runtime import RunError
from cutedge.runtime.home import workers
from cutedge.runtime.weights import numbers_of
from cutedge.runtime.wire import Channel, Spec
from tests.support.inprocess import invoke
from tests.support.running import (
    MODEL,
    SHARING,
    TOKEN,
    WEIGHTS,
    Listening,
    children,
    given,
    is_right,
    listening,
    segments,
    split,
    tiny,
    until,
)
from tracer.graph import Role

BOTH = ("one", "other")

APART = """
description = "The first accelerator makes what the second one reads."
default = "accelerator"
[[rule]]
module_path = "*.mlp*"
place = "accelerator 2"
reason = "chosen for a test"
[[rule]]
kind = "norm"
place = "home"
reason = "chosen for a test"
"""


@pytest.fixture(scope="module")
def there() -> Iterator[dict[str, Listening]]:
    """Two workers that serve all the tests here."""
    with ExitStack() as stack:
        allowed = ("--weights", gettempdir())  # where the tests' checkpoints are
        yield {name: stack.enter_context(listening(*allowed)) for name in BOTH}


@pytest.fixture
def remote(there: dict[str, Listening]) -> dict[str, tuple[str, int]]:
    return {name: worker.address for name, worker in there.items()}


@pytest.fixture
def sharing(tmp_path: Path) -> str:
    path = tmp_path / "sharing.toml"
    path.write_text(SHARING)
    return str(path)


@pytest.fixture
def apart(tmp_path: Path) -> str:
    path = tmp_path / "apart.toml"
    path.write_text(APART)
    return str(path)


# --- one run after another ------------------------------------------------------------------------


def test_a_worker_serves_runs_of_all_kinds_in_turn(
    remote: dict[str, tuple[str, int]], sharing: str
) -> None:
    for one in (
        split(accelerators=["one"]),
        split("fuse-attention", ["one"], residency="call"),
        split(accelerators=["one"], link=sharing),
        split(accelerators=["one"]),
    ):
        with workers(["one"], remote=remote, token=TOKEN) as found:
            loaded = one.load(found)
            for _ in range(2):
                assert is_right(loaded.run(given()), one)


def test_verify_with_a_worker_that_listens(
    there: dict[str, Listening], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    worker = f"gpu={there['one'].host}:{there['one'].port}"
    found = invoke(
        "cutedge",
        "verify",
        *MODEL,
        "--policy",
        "offload-linear",
        "--policy",
        "fuse-attention",
        "--worker",
        worker,
        "--transport",
        "tcp",
        "--json",
        "--out",
        tmp_path / "out",
    )
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)["runs"]
    assert [row["bytes_equal"] and row["answer_equal"] for row in rows] == [True, True]


# --- accelerators that send to each other ---------------------------------------------------------


@pytest.mark.parametrize("wire_dtype", [None, "float64"])
def test_accelerators_send_to_each_other(
    wire_dtype: str | None, remote: dict[str, tuple[str, int]], apart: str, sharing: str
) -> None:
    for link in ("tcp-loopback", sharing):
        one = split(apart, BOTH, link=link, wire_dtype=wire_dtype)
        assert any(t.direction == "peer" for t in one.traffic.transfers)
        with workers(BOTH, remote=remote, token=TOKEN) as found:
            session = found["one"].channel.session
            measured = one.run(found)
        assert is_right(measured, one)
        assert sum(call.peer_wire_bytes for call in measured.calls) > 0
        assert not segments(session)


class Crowded(Channel):
    """Has a stranger knock where another accelerator is to connect."""

    __slots__ = ()

    def say(self, **words: Any) -> None:
        if words["do"] == "connect":
            with socket.create_connection(words["address"]) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        Channel.say(self, **words)


def test_a_stranger_is_not_taken_for_another_accelerator(
    remote: dict[str, tuple[str, int]], apart: str
) -> None:
    one = split(apart, BOTH)
    with workers(BOTH, remote=remote, token=TOKEN) as found:
        for worker in found.values():
            worker.channel.__class__ = Crowded
        assert is_right(one.run(found), one)


class Mistaken(Channel):
    """Asks for what is to be sent with a call that there is not."""

    __slots__ = ()

    def say(self, **words: Any) -> None:
        Channel.say(self, **(words | {"call": 99} if words["do"] == "push" else words))


def test_an_accelerator_that_cannot_send_says_why(
    remote: dict[str, tuple[str, int]], apart: str
) -> None:
    """The one that waits for it knows only that it is gone."""
    one = split(apart, BOTH)
    call = next(call for call in one.plan.calls if call.peers)
    [source] = call.peers
    with suppress(RunError), workers(BOTH, remote=remote, token=TOKEN) as found:
        loaded = one.load(found)
        found[source].channel.__class__ = Mistaken
        with pytest.raises(RunError) as caught:
            loaded.run(given())
    assert str(caught.value) == (
        f"call {call.number} of {len(one.plan.calls)}: worker {call.device}: {source} is gone: it "
        f"closed the connection; worker {source}: it was sent a damaged plan (KeyError: (99, "
        f"'{call.device}'))"
    )


# --- checkpoints ----------------------------------------------------------------------------------


def seeded() -> dict[str, torch.Tensor]:
    """The seeded weights of the small model, by name."""
    graph, make = tiny().graph, numbers_of(WEIGHTS)
    owners = {graph.storage(t).id for t in graph.tensors if t.role is Role.PARAMETER}
    return {
        t.name: make(t.name, Spec(t.dtype, t.shape)) for t in map(graph.tensors.__getitem__, owners)
    }


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("index", [True, False])
def test_weights_of_a_checkpoint(
    files: int, index: bool, remote: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    tensors = sorted(seeded().items())
    places = {
        name: f"part-{number % files}.safetensors" for number, (name, _) in enumerate(tensors)
    }
    for file in set(places.values()):
        save_file({n: tensor for n, tensor in tensors if places[n] == file}, tmp_path / file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": places})
        (tmp_path / "model.safetensors.index.json").write_text(text)
    one = split(accelerators=["one"])
    with workers(["one"], remote=remote, token=TOKEN) as found:
        assert is_right(one.run(found, {"checkpoint": str(tmp_path)}), one)


INDEX = "model.safetensors.index.json"
NONE = r" is no index of safetensors: it has no weight_map.*"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({}, "{folder} has no .safetensors files"),
        ({"a.safetensors": b"no"}, "{folder}/a.safetensors: .+"),
        (
            {"a.safetensors": {NAME: torch.zeros(3, 2)}},
            "{folder}/a.safetensors: " + NAME + r" is \[3, 2\], the model has \[128, 64\]",
        ),
        (
            {"a.safetensors": {NAME: None}},
            "{folder} has no tensor " + NAME + ": it is no checkpoint of this model",
        ),
        ({INDEX: b"{"}, "{folder}/" + INDEX + NONE),
        ({INDEX: b"[]"}, "{folder}/" + INDEX + NONE),
        ({INDEX: b"{}"}, "{folder}/" + INDEX + NONE),
        ({INDEX: b'{"weight_map": {"a": 3}}'}, "{folder}/" + INDEX + NONE),
        (
            {INDEX: lambda: json.dumps({"weight_map": dict.fromkeys(seeded(), "b.safetensors")})},
            "{folder}/b.safetensors: .+",
        ),
    ],
)
def test_what_is_no_checkpoint_of_the_model(
    damage: dict[str, Any], message: str, remote: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    for file, content in damage.items():
        if isinstance(content, bytes):
            (tmp_path / file).write_bytes(content)
        elif callable(content):
            (tmp_path / file).write_text(content())
        else:
            changed = {**seeded(), **content}
            save_file({n: t for n, t in changed.items() if t is not None}, tmp_path / file)
    one = split(accelerators=["one"])
    with suppress(RunError), workers(["one"], remote=remote, token=TOKEN) as found:
        loading = partial(one.load, found, {"checkpoint": str(tmp_path)})
        with pytest.raises(RunError) as caught:
            loading()
    wanted = "loading: (tee|worker one): " + message.replace("{folder}", re.escape(str(tmp_path)))
    assert re.fullmatch(wanted, str(caught.value)), str(caught.value)


def test_verify_with_a_checkpoint(
    there: dict[str, Listening], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    folder = tmp_path / "weights"
    folder.mkdir()
    words = [
        "verify",
        *MODEL,
        "--worker",
        f"gpu={there['one'].host}:{there['one'].port}",
        "--weights",
        str(folder),
        "--out",
        str(tmp_path / "out"),
    ]
    found = invoke("cutedge", *words)
    assert found.returncode == 1
    assert found.stderr == f"error: loading: tee: {folder} has no .safetensors files\n"
    save_file(seeded(), folder / "model.safetensors")
    found = invoke("cutedge", *words, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["runs"][0]["answer_equal"]


# --- nothing stays --------------------------------------------------------------------------------


def fewer(now: list[int], before: list[int]) -> bool:
    return all(one <= other for one, other in zip(now, before, strict=True))


def counts(processes: list[int]) -> list[int]:
    """Open files of this process and others, and threads and children of this one."""
    files = [len(os.listdir(f"/proc/{process}/fd")) for process in (os.getpid(), *processes)]
    return [*files, active_count(), len(children(os.getpid()))]


@pytest.mark.parametrize("runs", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_runs_leave_nothing(
    runs: int,
    there: dict[str, Listening],
    remote: dict[str, tuple[str, int]],
    sharing: str,
    apart: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temp = tmp_path / "t"
    temp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    one = split(apart, BOTH, link=sharing)
    processes = [worker.process.pid for worker in there.values()]
    sessions = set()

    def run() -> None:
        with workers(BOTH, remote=remote, token=TOKEN) as found:
            sessions.add(found["one"].channel.session)
            assert is_right(one.run(found), one)

    run()
    before = counts(processes)
    for _ in range(runs):
        run()
    with suppress(ZeroDivisionError), workers(BOTH, remote=remote, token=TOKEN) as found:
        sessions.add(found["one"].channel.session)
        one.load(found).run(given(), lambda call, moved: 1 // (call - 1) and None)
    run()
    assert until(lambda: fewer(counts(processes), before)), (counts(processes), before)
    assert len(sessions) == runs + 3
    assert not any(map(segments, sessions))
    assert not os.listdir(temp)


@pytest.mark.slow
@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("runs", [1, 20])
def test_workers_that_are_started_leave_nothing(
    runs: int, sharing: str, apart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp = tmp_path / "t"
    temp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    one = split(apart, BOTH, link=sharing)
    before = counts([])
    for _ in range(runs):
        with workers(BOTH) as found:
            session = found["one"].channel.session
            assert is_right(one.run(found), one)
        assert not segments(session)
        assert not os.listdir(temp)
    assert fewer(counts([]), before)

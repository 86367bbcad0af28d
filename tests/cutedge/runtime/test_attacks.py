"""Who holds a worker's token has it run ops, and nothing else; who has none does not get so far.

Each attack goes over a real socket, to a worker that is a process of its own, and leaves it serving
the next run. ``docs/guide/security.md`` names these tests.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cutedge.runtime import RunError
from cutedge.runtime.home import _spelled, workers
from cutedge.runtime.wire import Channel, Spec, greet, remove_segments
from tests.support.running import (
    SHARING,
    TOKEN,
    WEIGHTS,
    Listening,
    Split,
    is_right,
    listening,
    memory_peak,
    split,
)

HUGE = 10**15


@pytest.fixture(scope="module")
def there() -> Iterator[Listening]:
    """A worker that serves all the tests here: none of them must harm it."""
    with listening() as worker:
        yield worker
        one = split()
        with workers(["gpu"], remote={"gpu": worker.address}, token=TOKEN) as found:
            assert is_right(one.run(found), one)


@contextmanager
def as_home(worker: Listening, timeout: float = 20.0) -> Iterator[Channel]:
    """A connection to a worker that has been greeted, to say whatever one likes."""
    channel = Channel(socket.socket(), "worker gpu", timeout)
    try:
        channel.connect(worker.address)
        greet(channel, TOKEN, "home")
        yield channel
    finally:
        channel.close()


def plan_of(one: Split) -> dict[str, Any]:
    """What home tells the accelerator of a run, as text carries it."""
    session = {
        "session": "00112233",
        "carriage": [None, 0, 16],
        "weights": WEIGHTS,
        "threads": 1,
        "residency": "run",
    }
    return json.loads(json.dumps(_spelled(one.plan, one.plan.accelerators["gpu"]) | session))


def answered(worker: Listening, plan: Any) -> str:
    """What a worker says of a plan."""
    with as_home(worker) as channel:
        channel.say(do="load", plan=plan)
        with pytest.raises(RunError) as caught:
            channel.hear()
    return str(caught.value).removeprefix("worker gpu: ")


# --- ops and arguments ----------------------------------------------------------------------------


def first_op(plan: dict[str, Any]) -> str:
    return min(plan["invocations"], key=int)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("aten.from_file.default", ["{file}", True, 100]),
        ("aten.from_file.default", ["/etc/passwd", False, 100]),
        ("aten.__class__.__setattr__", ["_size", 3]),
        ("aten.add.__class__", ["x"]),
        ("aten._print.default", ["x"]),
        ("aten.add.__init__", ["x"]),
        ("aten.__getattr__.__globals__", []),
        ("prims.__loader__.load_module", ["os"]),
        ("transformers.grouped_mm_fallback.__module__", []),
        ("profiler._record_function_enter_new.default", ["x", None]),
        ("aten.__dict__.update", []),
        ("aten._make_dep_token.default", []),
        ("os.system.default", ["touch {file}"]),
    ],
)
@pytest.mark.few(6)
def test_no_op_but_those_of_the_list(
    target: str, args: list[Any], there: Listening, tmp_path: Path
) -> None:
    """It is refused by name before anything runs; no file is read, made or changed."""
    file = tmp_path / "file"
    file.write_bytes(b"as it was")
    plan = plan_of(split())
    op = first_op(plan)
    plan["targets"][op] = target
    plan["invocations"][op][0] = [
        arg.replace("{file}", str(file)) if isinstance(arg, str) else arg for arg in args
    ]
    said = answered(there, plan)
    assert said == f"op {op} ({target}): it is in no list of ops that are carried out here"
    assert file.read_bytes() == b"as it was"
    assert os.listdir(tmp_path) == ["file"]


def test_no_argument_leads_anywhere(there: Listening) -> None:
    for argument in (
        {"dtype": "__class__"},
        {"layout": "ops"},
        {"memory_format": "save"},
        {"device": "cuda"},
        {"value": "0"},
        {"like": None},
        {"float": "__import__"},
        {"open": "/etc/passwd"},
        {},
        "/etc/passwd",
        ["/etc/passwd"],
        {"value": 10**9},
    ):
        plan = plan_of(split())
        op = first_op(plan)
        plan["invocations"][op][0][0] = argument
        assert answered(there, plan).startswith(f"op {op} ({plan['targets'][op]}): ")


# --- figures that are not believed ----------------------------------------------------------------


def test_a_run_removes_the_shared_memory_of_no_other(there: Listening) -> None:
    """An empty name would be that of every run on the machine."""
    other = Path("/dev/shm/cutedge-0badcafe00000000")
    other.write_bytes(b"of another run")
    try:
        for session in (
            "",
            "0b",
            "0badca",
            "0badcafe0000",
            "*",
            "../../0b",
            "0BADCAFE",
            "0badcafg",
            " 0badcafe",
            "[!a]",
            None,
            4,
            ["0badcafe"],
            "é" * 8,
        ):
            said = answered(there, plan_of(split()) | {"session": session})
            assert "is no name of a run: 8 hex digits are" in said or "session of" in said, said
        assert other.read_bytes() == b"of another run"
        # Nor does a handle lead there, in a run that has a name of its own.
        one = split(link=sharing_link())
        with (
            suppress(RunError),
            workers(["gpu"], remote={"gpu": there.address}, token=TOKEN, timeout=20) as found,
        ):
            channel = one.load(found).workers["gpu"].channel
            channel.say(do="begin")
            channel.hear()
            channel.session = bytes.fromhex("0badcafe")
            specs = {t: one.plan.crossing[t] for t in one.plan.calls[0].sent}
            channel.send(
                0,
                [
                    (t, torch.zeros(s.shape, dtype=getattr(torch, s.dtype)))
                    for t, s in specs.items()
                ],
            )
            with pytest.raises(RunError, match="home sent a handle on what is not of this run"):
                channel.hear()
        assert other.read_bytes() == b"of another run"
    finally:
        remove_segments(bytes.fromhex("0badcafe"))


def sharing_link() -> str:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        file.write(SHARING)
    return file.name


SIZES: dict[str, Any] = {
    "resident_bytes": (["resident_bytes"], 0, "its plan says 0 bytes of weights, and they are"),
    "resident_bytes of all": (["resident_bytes"], 2**62, "its plan says 4,611,686,018,427,387,904"),
    "negative": (["resident_bytes"], -1, "resident_bytes of its plan is damaged: -1"),
    "fraction": (["resident_bytes"], 1.5, "resident_bytes of its plan is damaged: 1.5"),
    "infinite": (["resident_bytes"], float("inf"), "resident_bytes of its plan is damaged: inf"),
    "longer than 8 bytes": (["threads"], 10**30, "threads of its plan is damaged: 1000000"),
    "pieces of nothing": (["carriage", 0], 0, "pieces of 0 bytes and handles of 16 are not to be"),
    "handles": (["carriage", 2], 2**40, "and handles of 1099511627776 are not to be had"),
    "short handles": (["carriage", 2], 8, "and handles of 8 are not to be had"),
    "residency": (["residency"], "always", "residency of its plan is damaged: 'always'"),
    "name": (["name"], "\x1b[2J", "name of its plan is damaged: "),
    "surrogate": (["name"], "\ud800", "name of its plan is damaged: "),
    "long name": (["name"], "x" * 2000, "name of its plan is damaged: "),
    "calls": (["calls", 0, "ops"], [10**6], "its plan does not say what op 1000000 is"),
    "call": (["calls", 0, "sent"], [10**6], "its plan does not say what tensor 1000000 is"),
    "peers": (["calls", 0, "peers"], {"b": [10**6]}, "its plan does not say what tensor 1000000"),
    "pushes": (["pushes"], [[0, "b", [10**6]]], "its plan does not say what tensor 1000000 is"),
    "ops": (["ops"], [10**6], "its plan does not say what op 1000000 is"),
    "targets": (["targets", "1000000"], "aten.abs.default", "does not say what op 1000000"),
    "kept": (["kept"], ["0"], "kept of its plan is damaged: '0'"),
    "more": (["backdoor"], True, "its plan is damaged: "),
    "seed": (["weights", "seed"], "0", "seed of weights of its plan is damaged: '0'"),
    "spread": (["weights", "spread"], float("nan"), "spread of weights of its plan is damaged"),
}


@pytest.mark.parametrize(("where", "value", "said"), SIZES.values(), ids=SIZES)
def test_what_a_plan_says_is_checked(
    where: list[Any], value: Any, said: str, there: Listening
) -> None:
    plan = plan_of(split())
    place = plan
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    assert said in answered(there, plan)


@pytest.mark.parametrize(
    ("dtype", "form", "said"),
    [
        ("ones", None, "its plan is damaged: 'ones'"),
        ("int8", None, "its plan turns tensor {} from float32 into int8"),
        (None, ["zst", 1, False, 0, 0], "its plan is damaged: 'zst'"),
        (None, ["zstd", 99, False, 0, 0], "its plan packs tensor {} as no float32 can be packed"),
        (None, ["zstd", 1, "yes", 0, 0], "its plan is damaged: 'yes'"),
        (None, ["plain", 0, False, 0, 0], "its plan packs tensor {} as no float32 can be packed"),
        (None, ["blocks", 0, False, 8, 0], "its plan packs tensor {} as no float32 can be packed"),
        (None, ["blocks", 0, False, 8, 2**40], "its plan packs tensor {} as no float32 can be"),
        (None, ["blocks", 0, False, 8, 33], "its plan packs tensor {} as no float32 can be packed"),
        (None, ["blocks", 0, False, 5, 32], "its plan packs tensor {} as no float32 can be packed"),
        (None, ["range", 0, False, 8, 0], "its plan packs tensor {} as no float32 can be packed"),
        (None, ["blocks", 0, False, 8], "its plan is damaged: ['blocks', 0, False, 8]"),
    ],
)
def test_what_crosses_is_checked(
    dtype: str | None, form: list[Any] | None, said: str, there: Listening
) -> None:
    plan = plan_of(split())
    tensor, spec = next((t, s) for t, s in plan["crossing"].items() if s[0] == "float32")
    plan["crossing"][tensor] = [dtype or spec[0], spec[1], form]
    assert said.format(tensor) in answered(there, plan)


@pytest.mark.parametrize("numel", [10**10, 10**15, 2**61])
def test_no_memory_is_taken_for_a_tensor_that_there_is_no_room_for(
    numel: int, there: Listening
) -> None:
    before = memory_peak(there.process.pid)
    plan = plan_of(split())
    op = first_op(plan)
    for made in plan["made"][op]:  # announced
        plan["specs"][str(made)] = ["float32", [numel]]
        plan["crossing"].pop(str(made), None)
    plan["targets"][op] = "aten.zeros.default"
    plan["invocations"][op] = [[[numel]], {}, [], None]
    plan["calls"], plan["pushes"] = [], []
    said = answered(there, plan)
    assert said.startswith(f"op {op} (aten.zeros.default)"), said
    plan["specs"][str(plan["made"][op][0])] = ["float32", [1]]  # or not
    said = answered(there, plan)
    assert said.startswith(f"op {op} (aten.zeros.default)"), said
    plan = plan_of(split())
    plan["parameters"]["1000000"] = "another"
    plan["specs"]["1000000"] = ["float32", [numel]]
    plan["resident_bytes"] += 4 * numel
    assert "bytes, and may take" in answered(there, plan) or "damaged" in answered(there, plan)
    assert memory_peak(there.process.pid) < before + 2**28


def test_no_message_is_longer_than_it_may_be(there: Listening) -> None:
    before = memory_peak(there.process.pid)
    for length in (2**24 + 1, 2**40, 2**63):
        with as_home(there) as channel:
            channel._out(b"ce\x02\x01" + bytes(12) + length.to_bytes(8, "little"))
            with pytest.raises(RunError, match="home sent a message that is out of place"):
                channel.hear()
    for text in (b"[" * 2**20, b'{"a":' * 2**18, b'{"do": ' + b"9" * 10**5 + b"}", b"\xff" * 99):
        with as_home(there) as channel:
            channel._out(b"ce\x02\x01" + bytes(12) + len(text).to_bytes(8, "little"), text)
            with pytest.raises(RunError, match="home sent text that is damaged"):
                channel.hear()
    assert memory_peak(there.process.pid) < before + 2**28


# --- files ----------------------------------------------------------------------------------------


def test_no_checkpoint_is_read_but_where_it_is_allowed(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed / "deep", other):
        folder.mkdir(parents=True)
    (allowed / "link").symlink_to(other)
    with listening("--weights", str(allowed)) as worker:
        for folder in (
            str(other),
            "/etc",
            "/",
            str(allowed / ".." / "other"),
            str(allowed / "link"),
            "",
            ".",
            f"{allowed}2",
        ):
            plan = plan_of(split()) | {"weights": {"checkpoint": folder}}
            said = answered(worker, plan)
            assert said == f"it is not to read {folder}: start it with --weights {folder}"
        plan = plan_of(split()) | {"weights": {"checkpoint": str(allowed / "deep")}}
        with as_home(worker) as channel:
            channel.say(do="load", plan=plan)
            channel.hear()
            specs = {t: Spec(*plan["specs"][str(t)]) for t in plan["data"]}
            channel.send(
                0,
                [
                    (t, torch.zeros(s.shape, dtype=getattr(torch, s.dtype)))
                    for t, s in specs.items()
                ],
            )
            with pytest.raises(RunError, match=r"deep has no \.safetensors files"):
                channel.hear()


def test_an_index_names_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    from cutedge.runtime.weights import Checkpoint

    for name in ("../a.safetensors", "/etc/passwd", "b/a.safetensors", "..", ""):
        index = {"weight_map": {"weight": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(RunError, match="is no index of safetensors"):
            Checkpoint(tmp_path)


def test_what_is_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    """The library that reads tensors would wait for the pipe."""
    from cutedge.runtime.weights import Checkpoint

    index, part = tmp_path / "model.safetensors.index.json", tmp_path / "a.safetensors"
    os.mkfifo(part)
    with pytest.raises(RunError, match=r"a\.safetensors: it is a device or a pipe"):
        Checkpoint(tmp_path)
    index.write_text("[" * 100_000)
    with pytest.raises(RunError, match="is no index of safetensors"):
        Checkpoint(tmp_path)
    index.write_text('{"weight_map": {"weight": "a.safetensors"}}')
    with pytest.raises(RunError, match=r"a\.safetensors: it is a device or a pipe"):
        Checkpoint(tmp_path)("weight", Spec("float32", (1,)))


# --- connections ----------------------------------------------------------------------------------


def test_a_worker_connects_to_no_socket_of_its_machine(there: Listening, tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    server.settimeout(0.2)
    for family, address in (
        (1, str(tmp_path / "s")),
        (16, [0, 0]),
        (40, [2, 1]),
        ("1", "x"),
        (None, None),
        (2, "x"),
        (2, [1, 2]),
        (2, ["h", "1"]),
        (2, ["h"]),
    ):
        with as_home(there) as channel:
            channel.say(
                do="connect", to="b", family=family, address=address, carriage=[None, 0, 16]
            )
            with pytest.raises(RunError, match=r"it connects to no socket of family|is damaged"):
                channel.hear()
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()


def drip(address: tuple[str, int], stop: Callable[[], bool], seconds: float) -> None:
    """Say a byte now and then, as long as that is taken."""
    with suppress(OSError), socket.create_connection(address) as connection:
        while not stop():
            connection.send(b"c")
            time.sleep(seconds)

"""Whatever goes wrong in a run: one clear line, in time, and nothing is left."""

import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pytest
import torch

from cutedge.runtime import RunError
from cutedge.runtime.door import Door
from cutedge.runtime.home import workers
from cutedge.runtime.plan import DevicePlan
from cutedge.runtime.wire import Channel, Spec
from cutedge.runtime.worker import Service, _Session
from tests.support import BIN
from tests.support.inprocess import invoke
from tests.support.running import (
    MODEL,
    SHARING,
    TOKEN,
    Listening,
    Split,
    children,
    given,
    is_alive,
    is_right,
    listening,
    segments,
    split,
    until,
)
from tracer.capture.runnable import Runnable

HUGE = 2**50
"""More bytes than a machine has."""

CALLS = 8
"""Of offload-linear on a model with one layer."""


@pytest.fixture(scope="module")
def there() -> Iterator[Listening]:
    """A worker that serves all the tests here, begun as a user's is: none of them must harm it."""
    with listening(warm=False) as worker:
        yield worker


def put(message: bytes, at: int, kind: str, number: int) -> bytes:
    """A message with another number in one place."""
    changed = bytearray(message)
    struct.pack_into(f"<{kind}", changed, at, number)
    return bytes(changed)


def text(said: bytes, sort: int = 1, length: int | None = None) -> bytes:
    size = len(said) if length is None else length
    return struct.pack("<2sBBIIIQ", b"ce", 2, sort, 0, 0, 0, size) + said


class Record:
    """In the place of a socket: what would be sent."""

    family = socket.AF_UNIX

    def __init__(self) -> None:
        self.sent = b""

    def settimeout(self, seconds: float) -> None:
        pass

    def send(self, data: Any) -> int:
        self.sent += bytes(data)
        return len(data)


def as_bytes(call: int, tensors: Any) -> bytes:
    record = Record()
    Channel(record, "").send(call, tensors)  # type: ignore[arg-type]
    return record.sent


# Of a message: magic at 0, version at 2, sort at 3, tensors at 4, call at 8, piece at 12, bytes at
# 16; of its first tensor: id at 24, dtype at 28, axes at 29, their order at 32, bytes at 40.
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda m: b"GET / HTTP/1.1\r\nHost: cutedge\r\n", "sent what is no message of cut"),
    "version": (lambda m: put(m, 2, "B", 1), "sent what is no message of cutedge 2"),
    "sort": (lambda m: put(m, 3, "B", 77), "sent a message that is out of place"),
    "piece out of turn": (lambda m: put(m, 3, "B", 3), "sent a message that is out of place"),
    "count": (lambda m: put(m, 4, "I", 2**32 - 1), "sent 4294967295 tensors for call"),
    "piece": (lambda m: put(m, 12, "I", 1), "were to come"),
    "huge": (lambda m: put(m, 16, "Q", HUGE), f"a piece of {HUGE} bytes; "),
    "tensor": (lambda m: put(m, 24, "I", 10**9), "sent tensor 1000000000, which is not of call"),
    "dtype": (lambda m: put(m, 28, "B", 5), r"sent tensor \d+ as complex128, \d axes, \d+ bytes; "),
    "no dtype": (lambda m: put(m, 28, "B", 255), r"sent tensor \d+ as dtype 255, "),
    "axes": (lambda m: put(m, 29, "B", 16), r"sent tensor \d+ as \w+, 16 axes"),
    "order": (lambda m: put(m, 32, "Q", 0x11), r"sent tensor \d+ with damaged axes"),
    "huge tensor": (lambda m: put(m, 40, "Q", HUGE), rf"\d axes, {HUGE} bytes; it is"),
    "text": (lambda m: text(b"{]"), "sent text that is damaged"),
    "list": (lambda m: text(b"[1]"), "sent text that is damaged"),
    "nested": (lambda m: text(b"[" * 100_000), "sent text that is damaged"),
    "huge text": (lambda m: text(b"", length=HUGE), "sent a message that is out of place"),
    "huge error": (lambda m: text(b"", 4, HUGE), "sent a message that is out of place"),
    "cut": (lambda m: m[:-1], "is gone: it closed the connection"),
    "nothing": (lambda m: b"", "is gone: it closed the connection"),
}

EACH = pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)


# --- a worker that does harm ----------------------------------------------------------------------


@contextmanager
def evil(session: type[_Session]) -> Iterator[tuple[str, int]]:
    """A worker in a thread, of a kind that is none; where it listens."""
    listener = socket.create_server(("127.0.0.1", 0))

    def once() -> None:
        door = Door(listener, TOKEN)
        channel = door.homes.get()
        channel.timeout = 10.0
        try:
            session(channel, door, Service(TOKEN, timeout=10.0)).run()
        except RunError:
            pass  # home went away
        finally:
            channel.close()
            door.close()

    thread = Thread(target=once, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def run_at(address: tuple[str, int], one: Split, timeout: float = 10.0) -> None:
    with workers(["gpu"], remote={"gpu": address}, token=TOKEN, timeout=timeout) as found:
        one.run(found)


def failed(session: type[_Session], one: Split, timeout: float = 10.0) -> str:
    """What home says of a run on a worker of that kind."""
    with evil(session) as address, pytest.raises(RunError) as caught:
        run_at(address, one, timeout)
    return str(caught.value)


def replying(damage: Callable[[bytes], bytes]) -> type[_Session]:
    """A worker whose reply to call 2 is damaged."""

    class Session(_Session):
        def _call(self, head: tuple[int, ...], number: int) -> None:
            if number < 2:
                return super()._call(head, number)
            call = self.calls[number]
            self.channel.accept(
                head, number, {t: self.crossing[t] for t in call["sent"]}, self.dtypes
            )
            specs = {t: self.crossing[t] for t in call["received"]}
            self.channel.connection.sendall(damage(as_bytes(number, zeros(specs))))
            raise RunError("closed")

    return Session


def zeros(specs: dict[int, Spec]) -> list[tuple[int, Any]]:
    return [
        (number, torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)))
        for number, spec in specs.items()
    ]


@EACH
@pytest.mark.few(10)
def test_home_refuses_a_damaged_reply(damage: Callable[[bytes], bytes], message: str) -> None:
    said = failed(replying(damage), split())
    assert re.fullmatch(rf"call 2 of {CALLS}: worker gpu .*{message}.*", said), said


def test_words_where_tensors_were_to_come() -> None:
    said = failed(replying(lambda _: text(b"{}")), split())
    assert said == f"call 2 of {CALLS}: worker gpu sent text where call 2 was to follow"


def test_what_a_worker_says_of_itself_is_passed_on() -> None:
    said = failed(replying(lambda _: text(b"the chip is on fire", 4)), split())
    assert said == f"call 2 of {CALLS}: worker gpu: the chip is on fire"


REPORT = {
    "unpack_seconds": 0.0,
    "take_in_seconds": 0.0,
    "compute_seconds": 0.0,
    "pack_seconds": 0.0,
    "peer_payload_bytes": 0,
    "peer_wire_bytes": 0,
    "peak_memory_bytes": 0,
    "peer_tensors": {},
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "calls of worker gpu's report is damaged: None"),
        ({"calls": 3, "ops": {}}, "calls of worker gpu's report is damaged: 3"),
        ({"calls": {}, "ops": {}}, "unread of worker gpu's report is damaged: None"),
        ({"calls": {}, "ops": {}, "unread": []}, "worker gpu answered what no worker does"),
        ({"calls": {}, "ops": {}, "unread": [-1]}, "unread of worker gpu's report is damaged: -1"),
        ({"calls": {}, "ops": {}, "more": 1}, "worker gpu's report is damaged: {'calls': {}, "),
        ({"calls": {}, "ops": {"-1": 0.5}}, "ops of worker gpu's report is damaged: '-1'"),
        ({"calls": {}, "ops": {"1": float("nan")}}, "ops of worker gpu's report is damaged: nan"),
        ({"calls": {}, "ops": {"1": 1e300}}, "ops of worker gpu's report is damaged: 1e+300"),
        ({"calls": {}, "ops": {"1": -1}}, "ops of worker gpu's report is damaged: -1"),
        (
            {"calls": {}, "ops": {"1000000": 0.5}, "unread": []},
            "worker gpu reports ops that are not its own",
        ),
        ({"calls": {"0": REPORT | {"peak_memory_bytes": 2**63}}, "ops": {}}, "is damaged: 9223372"),
        ({"calls": {"0": REPORT | {"compute_seconds": "1"}}, "ops": {}}, "is damaged: '1'"),
    ],
)
def test_a_report_that_is_none(words: dict[str, Any], said: str) -> None:
    class Session(_Session):
        def _report(self) -> None:
            self.channel.say(**words)

    found = failed(Session, split())
    assert found.startswith("reporting: ")
    assert said in found


def test_a_worker_that_never_answers() -> None:
    awake = Event()

    class Session(_Session):
        def _call(self, head: tuple[int, ...], number: int) -> None:
            awake.wait(20)

    start = time.monotonic()
    said = None
    with evil(Session) as address:
        with (
            pytest.raises(RunError) as caught,
            workers(["gpu"], remote={"gpu": address}, token=TOKEN, timeout=0.5) as found,
        ):
            split().run(found)
        said, took = str(caught.value), time.monotonic() - start
        awake.set()
    assert said == f"call 0 of {CALLS}: worker gpu said nothing for 0.5 s"
    assert took < 5


def slowly(channel: Channel, message: bytes, whole: int = 0) -> None:
    """Send the first bytes of a message at once, and the others one by one: never is it silent."""
    channel.connection.sendall(message[:whole])
    with suppress(OSError):  # home has hung up
        for place in range(whole, len(message)):
            channel.connection.sendall(message[place : place + 1])
            time.sleep(0.02)


def slow_reply(whole: int) -> type[_Session]:
    class Session(_Session):
        def _call(self, head: tuple[int, ...], number: int) -> None:
            specs = {t: self.crossing[t] for t in self.calls[number]["received"]}
            slowly(self.channel, as_bytes(number, zeros(specs)), whole)
            raise RunError("closed")

    return Session


class SlowReport(_Session):
    def _report(self) -> None:
        slowly(self.channel, text(b" " * 500 + b"{}"), 24)
        raise RunError("closed")


class SlowLoad(_Session):
    def _load(self, plan: Any) -> None:
        slowly(self.channel, text(b'{"sending": true}' + b" " * 500))
        raise RunError("closed")


@pytest.mark.parametrize(
    ("session", "doing"),
    [
        (SlowLoad, "loading"),
        (slow_reply(0), f"call 0 of {CALLS}"),
        (slow_reply(24), f"call 0 of {CALLS}"),
        (SlowReport, "reporting"),
    ],
    ids=["loading", "header", "payload", "report"],
)
def test_a_worker_that_sends_a_byte_now_and_then(session: type[_Session], doing: str) -> None:
    """A message has so long in all, however it is spread: 0.3 s, a header 0.6 s."""
    start = time.monotonic()
    said = failed(session, split(), 0.3)
    assert re.fullmatch(rf"{doing}: worker gpu took longer than 0\.[36]\d* s", said), said
    assert time.monotonic() - start < 5


def test_a_worker_that_greets_a_byte_now_and_then() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greeting() -> None:
            connection, _ = listener.accept()
            with connection:
                slowly(Channel(connection, ""), text(b" " * 500 + b'{"challenge": "x"}'), 24)

        thread = Thread(target=greeting, daemon=True)
        thread.start()
        start = time.monotonic()
        with pytest.raises(RunError) as caught:
            run_at(listener.getsockname(), split(), 0.3)
        late = r"connecting: worker gpu took longer than 0\.3\d* s"
        assert re.fullmatch(late, str(caught.value)), caught.value
        assert time.monotonic() - start < 5
        thread.join(20)
        assert not thread.is_alive()


class Hoarder(_Session):
    """Offers, after the run, what home has not asked for."""

    def _fetch(self, tensors: Any) -> None:
        self.channel.say(found=[0, 1, 2])


def test_a_worker_that_offers_what_was_not_asked_for() -> None:
    said = failed(Hoarder, split())
    assert said == "reporting: worker gpu has tensors that it was not asked for"


# --- a home that does harm ------------------------------------------------------------------------


@contextmanager
def calling(there: Listening) -> Iterator[tuple[Channel, Split]]:
    """A connection to a worker that waits for call 0."""
    one = split()
    remote = {"gpu": there.address}
    with suppress(RunError), workers(["gpu"], remote=remote, token=TOKEN, timeout=20) as found:
        channel = one.load(found).workers["gpu"].channel
        channel.say(do="begin")
        channel.hear()
        yield channel, one


@EACH
@pytest.mark.few(10)
def test_a_worker_refuses_a_damaged_request(
    damage: Callable[[bytes], bytes], message: str, there: Listening
) -> None:
    with calling(there) as (channel, one):
        specs = {t: one.plan.crossing[t] for t in one.plan.calls[0].sent}
        channel.connection.sendall(damage(as_bytes(0, zeros(specs))))
        with suppress(OSError):  # it may have hung up already
            channel.connection.shutdown(socket.SHUT_WR)
        with pytest.raises(RunError, match=rf"^worker gpu: home .*{message}") as caught:
            channel.hear()
    assert "\n" not in str(caught.value)
    assert there.process.poll() is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"do": "dance"}, "it was asked for what a worker does not do"),
        ({}, "it was asked for what a worker does not do"),
        ({"do": "load", "plan": {}}, "name of its plan is damaged: None"),
        ({"do": "load", "plan": [1]}, "its plan is damaged: [1]"),
        ({"do": "push", "call": 0, "to": "moon"}, "it was sent a damaged plan (KeyError: "),
        (
            {"do": "connect", "to": "b", "family": 99, "address": "x", "carriage": [None, 0, 16]},
            "it connects to no socket of family 99",
        ),
        (
            {
                "do": "connect",
                "to": "b",
                "family": int(socket.AF_INET),
                "address": ["localhost", 1],
                "carriage": [None, 0, 16],
            },
            "b cannot be reached at localhost:1: Connection refused",
        ),
        (
            {
                "do": "connect",
                "to": "b",
                "family": int(socket.AF_INET),
                "address": ["localhost", HUGE],
                "carriage": [None, 0, 16],
            },
            f"b cannot be reached at localhost:{HUGE}: ",
        ),
        ({"do": "accept", "of": "b", "carriage": [None, 0, 16]}, "b does not connect"),
        ({"do": "fetch", "tensors": 3}, "what is to be fetched is damaged: 3"),
    ],
)
def test_a_worker_refuses_what_it_does_not_do(
    words: dict[str, Any], message: str, there: Listening
) -> None:
    with calling(there) as (channel, _):
        channel.say(**words)
        if "of" in words:
            channel.say(enough=True)
        with pytest.raises(RunError, match=re.escape(f"worker gpu: {message}")):
            channel.hear()


def test_a_worker_says_why_while_it_is_sent_a_long_message(there: Listening) -> None:
    """It refuses the header; home, which is still sending, must hear that and no broken pipe."""
    one = split()
    long = next(iter(one.plan.calls[0].sent))
    why = r"^worker gpu: home sent 1 tensors for call 0, a piece of 67108864 bytes"
    with calling(there) as (channel, _), pytest.raises(RunError, match=why):
        channel.send(0, [(long, torch.zeros(2**24))])


def test_a_worker_serves_on_after_all_that(there: Listening) -> None:
    one = split()
    with workers(["gpu"], remote={"gpu": there.address}, token=TOKEN) as found:
        assert is_right(one.run(found), one)


# --- plans that cannot be carried out -------------------------------------------------------------


def with_instructions(device: DevicePlan, **changes: Any) -> DevicePlan:
    return replace(device, instructions=replace(device.instructions, **changes))


def one_is(device: DevicePlan, target: str | None) -> DevicePlan:
    """A device whose last op is another, or is not there."""
    op = [op for op in device.ops if op in device.instructions.invocations][-1]
    if target is not None:
        return with_instructions(device, targets={**device.instructions.targets, op: target})
    there = {n: how for n, how in device.instructions.invocations.items() if n != op}
    return with_instructions(device, invocations=there)


AT_HOME, AT_GPU = "loading: tee: ", "loading: worker gpu: "
NO_OP = r"op \d+ \({}\): it is in no list of ops that are carried out here"


@pytest.mark.parametrize(
    ("where", "target", "message"),
    [
        ("tee", "os.system.default", AT_HOME + NO_OP.format("os.system.default")),
        ("gpu", "os.system.default", AT_GPU + NO_OP.format("os.system.default")),
        ("tee", "aten.nosuch.default", AT_HOME + NO_OP.format("aten.nosuch.default")),
        ("gpu", "aten.nosuch.default", AT_GPU + NO_OP.format("aten.nosuch.default")),
        ("gpu", "nonsense", AT_GPU + NO_OP.format("nonsense")),
        ("gpu", None, AT_GPU + r"its plan does not say what op \d+ is"),
    ],
)
def test_an_op_that_is_none(where: str, target: str | None, message: str, there: Listening) -> None:
    one = split()
    plan = one.plan
    if where == "tee":
        plan = replace(plan, home=one_is(plan.home, target))
    else:
        plan = replace(plan, accelerators={"gpu": one_is(plan.accelerators["gpu"], target)})
    with pytest.raises(RunError) as caught:
        run_at(there.address, replace(one, plan=plan))
    assert re.fullmatch(message, str(caught.value))


# --- memory ---------------------------------------------------------------------------------------


def larger(device: DevicePlan, numel: int) -> DevicePlan:
    """A device with one more parameter, of so many numbers."""
    device = replace(device, parameters={**device.parameters, 10**6: "another"})
    return with_instructions(
        device, specs={**device.instructions.specs, 10**6: Spec("float32", (numel,))}
    )


@pytest.mark.parametrize(
    ("numel", "most", "message"),
    [
        (64, 100, r"its weights and constants need [\d,]+ bytes, and may take 100"),
        (HUGE, None, r"its weights and constants need [\d,]+ bytes, and may take [\d,]+"),
        pytest.param(
            HUGE,
            2**70,
            r"there is no memory for its [\d,]+ bytes of weights",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("where", ["tee", "gpu"])
def test_no_memory_for_the_weights(
    where: str, numel: int, most: int | None, message: str, there: Listening
) -> None:
    one = split()
    plan = one.plan
    if where == "tee":
        plan = replace(plan, home=larger(plan.home, numel))
    else:
        plan = replace(plan, accelerators={"gpu": larger(plan.accelerators["gpu"], numel)})
    local = where == "gpu" and most is not None
    with (
        pytest.raises(RunError) as caught,
        workers(
            ["gpu"],
            remote={} if local else {"gpu": there.address},
            token=TOKEN,
            memory_bytes={} if most is None else {"gpu": most},
        ) as found,
    ):
        replace(one, plan=plan).load(found, memory_bytes=most if where == "tee" else None)
    who = "tee" if where == "tee" else "worker gpu"
    assert re.fullmatch(f"loading: {who}: {message}", str(caught.value))


# --- processes that are killed --------------------------------------------------------------------


@pytest.fixture
def sharing(tmp_path: Path) -> str:
    """A link whose messages all lie in shared memory."""
    path = tmp_path / "sharing.toml"
    path.write_text(SHARING)
    return str(path)


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.few(1)
def test_a_worker_that_is_killed_or_stopped_in_a_call(answer: bool, sharing: str) -> None:
    one, session = split(link=sharing), b""
    said: list[str] = []
    start = 0.0

    def stop(call: int, _: int) -> None:
        nonlocal start
        if call == 2:  # call 3 is sent to a process that does not run
            start = time.monotonic()
            os.kill(process.pid, signal.SIGSTOP)
            if answer:
                Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()

    with suppress(RunError), workers(["gpu"], timeout=20) as found:
        process, channel = found["gpu"].process, found["gpu"].channel
        assert process is not None
        loaded, session = one.load(found), channel.session
        channel.timeout = 20 if answer else 0.5
        channel.connection.settimeout(channel.timeout)
        with pytest.raises(RunError) as caught:
            loaded.run(given(), stop)
        said = str(caught.value)
    assert said.startswith(f"call 3 of {CALLS}: worker gpu ")
    assert said.endswith(
        "(its process has ended: killed by SIGKILL)" if answer else "said nothing for 0.5 s"
    )
    assert time.monotonic() - start < 5
    assert process.poll() is not None
    assert not segments(session)


class Verify:
    """`cutedge verify` that goes on and on, as a user starts it, in a folder of its own."""

    def __init__(self, folder: Path, link: str) -> None:
        self.temp, self.out = folder / "t", folder / "out"
        self.temp.mkdir()
        environment = {**os.environ, "TMPDIR": str(self.temp)}
        self.process = subprocess.Popen(
            [
                BIN / "cutedge",
                "verify",
                *MODEL,
                "--runs",
                "1000000",
                "--link",
                link,
                "--out",
                self.out,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def ended(self, how: signal.Signals) -> tuple[int, str]:
        """End it as a terminal does, all of its group; its exit code and what it printed."""
        os.killpg(self.process.pid, how)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out + err


@pytest.mark.parametrize(
    ("how", "where"),
    [
        pytest.param(signal.SIGKILL, "run", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "run", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "start", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "start", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "run", marks=pytest.mark.slow),
    ],
)
def test_ending_verify_ends_all_of_it(
    how: signal.Signals, where: str, tmp_path: Path, sharing: str
) -> None:
    before = segments()
    verify = Verify(tmp_path, sharing)
    try:
        running = verify.process.poll
        assert until(lambda: children(verify.process.pid) or running() is not None, 60)
        started = children(verify.process.pid)
        if where == "run":
            assert until(lambda: segments() - before or running() is not None, 60)
        assert running() is None, verify.process.communicate()
        code, said = verify.ended(how)
        assert "Traceback" not in said
        if how == signal.SIGINT:
            assert code == 130
            assert re.fullmatch("interrupted; (nothing|what) was written.*\n", said)
        left = segments() - before
        assert until(lambda: not any(map(is_alive, started)), 30), "a worker lives on"
        assert until(lambda: not left & segments(), 30), "shared memory stays"
        assert until(lambda: not os.listdir(verify.temp), 30), "a temporary folder stays"
        assert not list(verify.out.glob("policy=*")), "a table of a run that has not ended"
    finally:
        verify.process.kill()


# --- what the commands say ------------------------------------------------------------------------


def refused(*words: str | Path) -> str:
    """What a command that ends with exit code 1 says, which is one line."""
    found = invoke("cutedge", *words)
    assert found.returncode == 1, found.stderr
    [line] = found.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.slow
def test_verify_without_the_memory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = refused("verify", *MODEL, "--memory", "gpu=1KiB", "--out", out)
    found = re.fullmatch(
        r"loading: worker gpu: its weights and constants need ([\d,]+) bytes, and may take 1,024",
        said,
    )
    assert found, said
    assert int(found[1].replace(",", "")) == split().plan.accelerators["gpu"].resident_bytes
    assert not list(out.glob("policy=*"))


def test_verify_without_the_memory_for_the_whole_model(
    there: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsplit(*_: Any) -> None:
        torch.empty(HUGE)

    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    monkeypatch.setattr(Runnable, "unsplit", unsplit)
    worker = f"gpu={there.host}:{there.port}"
    said = refused("verify", *MODEL, "--worker", worker, "--out", tmp_path / "out")
    assert said.endswith("as a whole has no room in tee's memory, to compare the answer")


def test_verify_with_a_worker_that_has_another_token(
    there: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", "another token than the worker's")
    said = refused(
        "verify", *MODEL, "--worker", f"gpu={there.host}:{there.port}", "--out", tmp_path / "out"
    )
    assert said == "connecting: worker gpu: the token is wrong"


def test_verify_with_no_worker_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = refused("verify", *MODEL, "--worker", f"gpu=127.0.0.1:{port}", "--out", tmp_path / "out")
    assert said == (
        f"connecting: worker gpu cannot be reached at 127.0.0.1:{port}: Connection refused"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpu"], "--worker 'gpu': write DEVICE=HOST:PORT, as in gpu=10.0.0.2:7411"),
        (["gpu=h:99999"], "--worker 'gpu=h:99999': write DEVICE=HOST:PORT"),
        (["npu=h:1"], "--worker of 'npu' is not one of gpu."),
        (["gpu=h:1", "gpu=h:2"], "--worker 'gpu=h:2': each device has one worker"),
    ],
)
def test_verify_refuses_workers_that_are_none(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    options = [word for text in words for word in ("--worker", text)]
    found = invoke("cutedge", "verify", *MODEL, *options)
    assert found.returncode == 2
    assert message in found.stderr


@pytest.mark.parametrize("token", ["", "fifteen letters"])
def test_no_worker_without_a_long_token(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", token)
    found = invoke("cutedge", "worker", "--listen", "127.0.0.1:0")
    assert found.returncode == 2
    assert "one of 16 characters or more into CUTEDGE_TOKEN" in found.stderr
    found = invoke("cutedge", "verify", *MODEL, "--worker", "gpu=127.0.0.1:1")
    assert found.returncode == 2
    assert "the workers' token, 16 characters or more, into CUTEDGE_TOKEN" in found.stderr


@pytest.mark.parametrize("listen", ["host", "host:x", "127.0.0.1:65536"])
def test_no_worker_without_a_port(listen: str) -> None:
    found = invoke("cutedge", "worker", "--listen", listen)
    assert found.returncode == 2
    assert f"--listen {listen!r}: write HOST:PORT, as in 127.0.0.1:7411" in found.stderr


def test_no_worker_on_a_port_that_is_taken(
    there: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    said = refused("worker", "--listen", f"127.0.0.1:{there.port}")
    assert said == f"cannot listen on 127.0.0.1:{there.port}: Address already in use"


def test_a_stranger_learns_nothing_and_does_no_harm(there: Listening) -> None:
    for said in (b"GET / HTTP/1.1\r\n\r\n" * 4, text(b"[" * 4096), text(b"", length=HUGE), b""):
        with socket.create_connection(there.address) as connection:
            connection.settimeout(5)
            connection.sendall(said)
            answer = b""
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                while more := connection.recv(4096):
                    answer += more
            assert b"proof" not in answer
            assert TOKEN.encode() not in answer
    test_a_worker_serves_on_after_all_that(there)


@pytest.mark.usefixtures("cold")
@pytest.mark.slow
def test_a_folder_of_the_user_is_not_where_a_worker_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with workers(["gpu"]) as found:
        assert found["gpu"].process is not None


@pytest.mark.slow
def test_a_temporary_folder_with_a_path_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(RunError, match="set TMPDIR to a short path, or use TCP"):
        workers(["gpu"]).__enter__()
    assert not os.listdir(deep)

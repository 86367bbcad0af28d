"""Who knocks at a worker: greeted side by side, within a deadline, served in turn; and by TLS."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cutedge.runtime import RunError
from cutedge.runtime.door import BUSY, MOST_KNOCKING, MOST_WAITING, Door
from cutedge.runtime.home import workers
from cutedge.runtime.secure import identity, stays_here, trust
from cutedge.runtime.wire import Channel, greet
from tests.support.inprocess import invoke
from tests.support.running import MODEL, TOKEN, is_right, listening, split
from tracer.errors import InputError


@contextmanager
def door(**options: Any) -> Iterator[tuple[Door, tuple[str, int]]]:
    """A door in this process, and where it is."""
    listener = socket.create_server(("127.0.0.1", 0))
    made = Door(listener, TOKEN, **options)
    try:
        yield made, listener.getsockname()
    finally:
        made.close()


@contextmanager
def knocking(address: tuple[str, int], timeout: float = 5.0) -> Iterator[Channel]:
    channel = Channel(socket.socket(), "worker", timeout)
    try:
        channel.connect(address)
        yield channel
    finally:
        channel.close()


def seconds_until_closed(connection: socket.socket, say: bytes = b"", every: float = 0.05) -> float:
    """How long the other end keeps a connection whose own end says a byte of ``say`` at a time."""
    start = time.monotonic()
    connection.settimeout(every)
    with suppress(OSError):
        for n in range(200):
            if n < len(say):
                connection.send(say[n : n + 1])
            with suppress(TimeoutError):
                if not connection.recv(1000):
                    break
    return time.monotonic() - start


HELLO = b"ce\x02\x01" + bytes(12) + (4096).to_bytes(8, "little") + b" " * 4096


@pytest.mark.parametrize("say", [b"", HELLO, b"ce", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n"])
def test_a_greeting_ends_at_its_deadline_however_it_is_spread(say: bytes) -> None:
    """A byte every 50 ms would be in time for a deadline that counts from the last byte."""
    with door(greeting_seconds=0.5) as (_, address), socket.create_connection(address) as one:
        assert seconds_until_closed(one, say) < 3


def test_who_is_slow_keeps_nobody_out() -> None:
    """Forty who say a byte now and then, and one who greets: let in at once."""
    with door(greeting_seconds=5.0) as (made, address):
        slow = [socket.create_connection(address) for _ in range(MOST_KNOCKING + 8)]
        for n, connection in enumerate(slow):
            with suppress(OSError):
                connection.send(b"ce"[: n % 3])
        start = time.monotonic()
        with knocking(address) as channel:
            greet(channel, TOKEN, "home")
            made.homes.get(timeout=5).close()
        assert time.monotonic() - start < 2
        for connection in slow:
            connection.close()


def test_who_knocks_first_makes_way() -> None:
    with door(greeting_seconds=30.0) as (_, address):
        slow = [socket.create_connection(address) for _ in range(MOST_KNOCKING)]
        time.sleep(0.3)  # all are in
        with knocking(address):
            assert seconds_until_closed(slow[0]) < 3
            slow[1].settimeout(0.2)
            with pytest.raises(TimeoutError):
                slow[1].recv(1)
        for connection in slow:
            connection.close()


def test_one_home_is_served_at_a_time_and_another_is_told_so() -> None:
    with (
        door(busy_seconds=0.3) as (made, address),
        knocking(address) as first,
        knocking(address) as second,
        knocking(address) as third,
    ):
        greet(first, TOKEN, "home")
        served = made.homes.get(timeout=5)
        greet(second, TOKEN, "home")
        start = time.monotonic()
        with pytest.raises(RunError, match=f"worker: {BUSY}"):
            second.hear()
        assert time.monotonic() - start < 3
        greet(third, TOKEN, "home")  # as the first run ends
        served.close()
        made.leave()
        made.homes.get(timeout=5).close()


def test_few_homes_wait() -> None:
    with door(busy_seconds=20.0) as (made, address), knocking(address) as first:
        greet(first, TOKEN, "home")
        served = made.homes.get(timeout=5)
        waiting = [Channel(socket.socket(), "worker", 5.0) for _ in range(MOST_WAITING + 1)]
        for channel in waiting:
            channel.connect(address)
            greet(channel, TOKEN, "home")
        start = time.monotonic()
        with pytest.raises(RunError, match=BUSY):
            waiting[-1].hear()
        assert time.monotonic() - start < 4
        for channel in (*waiting, served):
            channel.close()


@pytest.mark.parametrize(
    "role", ["peer 00112233 b", "peer", "peer  ", "nobody", "", "home ", "peer b"]
)
def test_nobody_is_let_in_whom_no_run_waits_for(role: str) -> None:
    with door() as (made, address), knocking(address) as channel:
        made.expect(bytes.fromhex("44556677"))
        greet(channel, TOKEN, role)
        with pytest.raises(RunError, match="worker is gone"):
            channel.hear()
        assert made.homes.empty()


def test_the_peer_of_a_run_is_let_in() -> None:
    here, there = socket.socketpair()
    home = Channel(here, "home", 5.0)
    with door() as (made, address), knocking(address) as channel:
        made.expect(bytes.fromhex("00112233"))
        greet(channel, TOKEN, "peer 00112233 another one")
        peer = made.peer("another one", 5.0, home)
        peer.say(hello=True)
        assert channel.hear() == {"hello": True}
        peer.close()
        with pytest.raises(RunError, match=r"^b does not connect$"):
            made.peer("b", 0.2, home)
        there.close()
        with pytest.raises(RunError, match=r"^b does not connect$"):
            made.peer("b", 20.0, home)  # home is gone
    home.close()


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_silent_home_is_let_go_and_the_next_is_served() -> None:
    with listening("--idle", "0.5") as worker:
        with knocking(worker.address, 20.0) as channel:
            greet(channel, TOKEN, "home")
            with pytest.raises(RunError, match=r"^worker: home said nothing for 0.5 s$"):
                channel.hear()
        with knocking(worker.address, 20.0) as channel:  # nor does it help to be slow
            greet(channel, TOKEN, "home")
            start = time.monotonic()
            with suppress(OSError):
                for byte in HELLO:
                    channel.connection.send(bytes([byte]))
                    time.sleep(0.1)
            assert time.monotonic() - start < 5
        one = split()
        with workers(["gpu"], remote={"gpu": worker.address}, token=TOKEN) as found:
            assert is_right(one.run(found), one)


@pytest.mark.slow
def test_a_home_is_served_while_strangers_hold_connections() -> None:
    """Each says a byte now and then, and comes again when it is sent away."""
    ended: list[bool] = []

    def starve(address: tuple[str, int]) -> None:
        while not ended:
            with suppress(OSError), socket.create_connection(address) as connection:
                while not ended:
                    connection.send(b"c")
                    time.sleep(0.05)

    with listening() as worker:
        strangers = [Thread(target=starve, args=(worker.address,), daemon=True) for _ in range(20)]
        for stranger in strangers:
            stranger.start()
        time.sleep(0.5)
        one = split()
        start = time.monotonic()
        try:
            with workers(["gpu"], remote={"gpu": worker.address}, token=TOKEN, timeout=60) as found:
                assert time.monotonic() - start < 5
                assert is_right(one.run(found), one)
        finally:
            ended.append(True)
        for stranger in strangers:
            stranger.join(10)


# --- TLS ------------------------------------------------------------------------------------------


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ca.pem``, ``worker.pem`` and ``worker.key``, which it signed; and those of a stranger."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    (folder / "other names").write_text("subjectAltName=DNS:elsewhere.example")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "stranger"):
        openssl(
            folder,
            "req",
            "-x509",
            *key,
            "-keyout",
            f"{authority}.key",
            "-out",
            f"{authority}.pem",
            "-days",
            "2",
            "-subj",
            f"/CN={authority}",
        )
    for name, authority, names in (
        ("worker", "ca", "names"),
        ("false", "stranger", "names"),
        ("away", "ca", "other names"),
    ):
        openssl(
            folder,
            "req",
            *key,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            "/CN=worker",
        )
        openssl(
            folder,
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            f"{authority}.pem",
            "-CAkey",
            f"{authority}.key",
            "-days",
            "2",
            "-extfile",
            names,
            "-out",
            f"{name}.pem",
        )
    return folder


def options(files: Path, name: str = "worker") -> list[str]:
    return [
        "--tls-cert",
        str(files / f"{name}.pem"),
        "--tls-key",
        str(files / f"{name}.key"),
        "--tls-ca",
        str(files / "ca.pem"),
    ]


def test_verify_by_tls(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between the accelerators."""
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    with listening(*options(files)) as worker:
        words = [
            "verify",
            *MODEL,
            "--worker",
            f"gpu=127.0.0.1:{worker.port}",
            "--out",
            str(tmp_path / "out"),
        ]
        found = invoke("cutedge", *words, "--tls-ca", files / "ca.pem", "--json")
        assert found.returncode == 0, found.stderr
        assert '"bytes_equal": true' in found.stdout
        found = invoke("cutedge", *words)
        assert found.stderr == (
            "error: connecting: worker gpu: it speaks TLS alone: give --tls-ca\n"
        )
        found = invoke("cutedge", *words, "--tls-ca", files / "stranger.pem")
        assert "worker gpu at 127.0.0.1:" in found.stderr
        assert "is not to be trusted: " in found.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("false", "is not to be trusted: "),
        ("away", "is not to be trusted: IP address mismatch"),
        (None, r"does not speak TLS as it must \(.+\): is it started with --tls-cert\?$"),
    ],
)
def test_a_worker_that_is_another_is_told_nothing(name: str | None, said: str, files: Path) -> None:
    tls = identity(files / f"{name}.pem", files / f"{name}.key") if name else None
    trusted = trust(files / "ca.pem")
    with door(tls=tls) as (made, address):
        with pytest.raises(RunError, match=said):
            workers(["gpu"], remote={"gpu": address}, token=TOKEN, trust=trusted).__enter__()
        assert made.homes.empty()


def test_a_greeting_by_tls_has_the_same_deadline(files: Path) -> None:
    tls = identity(files / "worker.pem", files / "worker.key")
    with door(greeting_seconds=0.5, tls=tls) as (_, address):
        for say in (b"", b"\x16", b"\x16\x03\x01\x20\x00" + b"\x00" * 9000):
            with socket.create_connection(address) as one:
                assert seconds_until_closed(one, say) < 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tls-cert", "worker.pem"], "--tls-cert and --tls-key go together: give both"),
        (["--tls-key", "worker.key"], "--tls-cert and --tls-key go together: give both"),
        (["--tls-cert", "worker.pem", "--tls-key", "false.key"], "are no certificate and its key"),
        (["--tls-cert", "names", "--tls-key", "worker.key"], "are no certificate and its key"),
        (["--tls-ca", "names"], "names is no certificate in PEM"),
    ],
)
def test_files_that_are_no_certificates(
    words: list[str], said: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    monkeypatch.chdir(files)
    found = invoke("cutedge", "worker", "--listen", "127.0.0.1:0", *words)
    assert found.returncode == 2
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_key_with_a_passphrase_is_not_asked_for(files: Path) -> None:
    openssl(files, "ec", "-in", "worker.key", "-out", "locked.key", "-aes256", "-passout", "pass:x")
    with pytest.raises(InputError, match=r"locked.key has a passphrase: give a key without one"):
        identity(files / "worker.pem", files / "locked.key")


def test_what_leaves_the_machine_in_the_clear_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(stays_here, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")))
    assert not any(map(stays_here, ("0.0.0.0", "::", "10.0.0.2", "gpu-box", "localhost.example")))
    monkeypatch.setenv("CUTEDGE_TOKEN", TOKEN)
    found = invoke("cutedge", "verify", *MODEL, "--worker", "gpu=192.0.2.1:1", "--timeout", "0.1")
    assert found.stderr.startswith(
        "warning: what goes to and from 192.0.2.1 is in the clear, and whoever is on the way can "
        "change it: give --tls-ca\n"
    )
    assert found.stderr.count("in the clear") == 1

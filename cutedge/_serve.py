"""A worker that listens for whoever has its token: ``cutedge worker``.

It imports no more than a worker needs: what traces a model takes seconds to load, and has no place
in a process that runs nothing but ops.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from cutedge._machines import read_size
from cutedge.runtime import secure
from cutedge.runtime.secure import LEAST_TOKEN, TOKEN, clear_text, trust
from cutedge.runtime.wire import remove_segments
from cutedge.runtime.worker import Service
from cutedge.runtime.worker import serve as answer
from tracer.errors import CutedgeError, InputError
from tracer.interrupts import at_interrupt, say_at_interrupt


def serve(
    listen: str,
    *,
    memory: str | None,
    timeout: float,
    idle: float,
    weights: tuple[Path, ...],
    identity: tuple[Path, Path] | None,
    tls_ca: Path | None,
    warn: Callable[[str], None],
    listening: Callable[[str], None],
) -> None:
    """Be a worker on ``HOST:PORT`` for whoever has its token: ``cutedge worker``.

    ``identity`` is the certificate and key that TLS is taken with. Raises InputError for what
    cannot be understood, CutedgeError where it cannot listen.
    """
    host, _, port = f":{listen}".rpartition(":")
    host = host.removeprefix(":") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise InputError(f"--listen {listen!r}: write HOST:PORT, as in 127.0.0.1:7411")
    token = os.environ.pop(TOKEN, "")
    if len(token) < LEAST_TOKEN:
        raise InputError(
            f"a worker runs what it is sent by whoever has its token: put one of {LEAST_TOKEN} "
            f"characters or more into {TOKEN}, here and where verify runs"
        )
    most = None if memory is None else read_size(memory)
    if memory is not None and most is None:
        raise InputError(f"--memory {memory!r}: write a size, as in 4GiB or 1000000")
    service = Service(
        token,
        timeout,
        idle,
        most,
        weights,
        None if identity is None else secure.identity(*identity),
        None if tls_ca is None else trust(tls_ca),
    )
    if identity is None:
        for warning in clear_text([host], "--tls-cert and --tls-key"):
            warn(warning)
    listener = socket.socket()
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
        except OSError as error:
            raise CutedgeError(
                f"cannot listen on {host}:{port}: {error.strerror or error}"
            ) from error
        listener.listen()
        listening(f"listening on {':'.join(map(str, listener.getsockname()))}")
        say_at_interrupt("stopped")
        sessions: list[bytes] = []
        with at_interrupt(lambda: [*map(remove_segments, sessions)]):
            answer(listener, service, begun=sessions.append)

"""The page of ``report --serve``: answers to its sliders, for browsers on this machine alone.

Whoever opens another page in the same browser must learn nothing from this one. So it listens on
127.0.0.1, answers requests that name it so (a name of another site that leads here is refused:
DNS rebinding), takes questions as JSON from its own page alone, and knows three addresses.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from cutedge._compare import Comparison
from cutedge._live import BeyondError, Live, Point, link_file
from cutedge._verdict import command_on, trace_command
from cutedge.report.live import live_page
from tracer.errors import CutedgeError, InputError
from tracer.graph import FLOATING
from tracer.interrupts import at_interrupt, say_at_interrupt
from tracer.summary import headline

PORT = 8765
"""Where the page is, unless the user says."""

MOST_BYTES = 4096
"""Of a question."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def serve_page(compared: Comparison, port: int | None, listening: Callable[[str], None]) -> None:
    """Show a comparison on a page with sliders until Ctrl-C: ``cutedge report --serve``.

    ``listening`` is told where it is. Raises InputError for what formulas do not tell, CutedgeError
    where the port is not free.
    """
    answers = Answers(compared)
    port = PORT if port is None else port
    try:
        server = Server(("127.0.0.1", port), handler(answers))
    except OSError as error:
        raise CutedgeError(
            f"--port {port}: {error.strerror or error}. Give another --port; 0 takes one that is free"
        ) from error
    say_at_interrupt("stopped")
    with server, at_interrupt(lambda: os._exit(0)):
        answers.warm()
        listening(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # in a notebook
            return


class Server(ThreadingHTTPServer):
    """Ends with the process, and is silent of pages that were left."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was left before its answer came."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Answers:
    """What the page asks, and what it is told."""

    def __init__(self, compared: Comparison) -> None:
        """Raises InputError as ``Live`` does."""
        self.live = Live(compared.trace, compared.compared)
        self._shown = self.live.policies[compared.shown]
        self._solving = Lock()
        self._asked = 0

    @property
    def page(self) -> str:
        """The page itself."""
        live = self.live
        machine, meta = live.machine, live.meta
        link = live.link(live.start)
        most = {"batch": 1024, "seq": 131072, "past": 131072}
        sliders: list[dict[str, Any]] = [
            {
                "name": name,
                "title": {"seq": "new tokens (seq)", "past": "cached tokens (past)"}.get(
                    name, name
                ),
                "unit": "",
                "least": 1,
                "most": max(most[name], meta.variables[name]),
                "value": meta.variables[name],
                "described": meta.variables[name],
                "whole": True,
            }
            for name in live.sizes
        ]
        bandwidth, latency = link.sent_bandwidth_bytes_per_second, link.sent_latency_seconds
        for name, unit, least, greatest, described in (
            ("bandwidth", "GB/s", 1e-3, 1e3, None if bandwidth is None else bandwidth / 1e9),
            ("latency", "µs", 1e-2, 1e5, None if latency is None else latency * 1e6),
        ):
            sliders.append(
                {
                    "name": name,
                    "title": f"{name} of {link.name}",
                    "unit": unit,
                    "least": least,
                    "most": greatest,
                    "value": None,
                    "described": described,
                    "whole": False,
                }
            )
        own = [] if machine.options.int8_speedup is not None else [""]
        lacking = [name for name in ("batch", "seq", "past") if name not in live.sizes]
        fixed = f"This trace has no formula in {' and '.join(lacking)}. " if lacking else ""
        apart = (
            link.sent_bandwidth_bytes_per_second != link.received_bandwidth_bytes_per_second
            or link.sent_latency_seconds != link.received_latency_seconds
        )
        if apart:
            fixed += f"What is described of {link.name} differs by direction; what is set does not."
        told = {
            "model": meta.model,
            "devices": list(machine.devices),
            "sliders": sliders,
            "wires": [*own, *FLOATING],
            "wire": machine.wire_dtype or "",
            "fixed": fixed,
            "shown": self._shown,
        }
        return live_page(headline(meta), told)

    def warm(self) -> None:
        """Count what is the same at all places of the sliders, before anyone waits for it."""
        self.live.at(self.live.start, self._shown)

    def at(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The figures at a place of the sliders. Raises InputError for what is no such place."""
        live, (point, shown) = self.live, self._point(asked)
        try:
            seen = live.at(point, shown)
        except BeyondError as error:
            return {"beyond": f"{str(error)[:1].upper()}{str(error)[1:]}.", "kept": False}
        meta = live.meta_at(point)
        setting = live.compared.setting
        link = live.link(point)
        there = replace(setting, machine=live.machine_at(point))
        words = [f"--policy {name}" for name in live.policies]
        again = f"{trace_command(meta)} && {command_on(there, 'compare', *words)}"
        is_set = (point.bandwidth_bytes_per_second, point.latency_seconds) != (None, None)
        if is_set:
            again = again.replace(f"--link {link.name}", f"--link {link.name}.toml")
        machine = live.machine
        return {
            "of": f"{headline(meta)}; {machine.home} calls {machine.accelerators[0]} over "
            f"{link.name}",
            "limit": seen.limit,
            "scores": [asdict(one) for one in seen.scores],
            "table": asdict(seen.table),
            "policies": list(seen.policies),
            "placements": list(seen.placements),
            "kept": seen.kept,
            "shown": seen.shown,
            "notes": list(seen.notes),
            "step": "These commands give the same figures"
            + (", with the link as a file beside them:" if is_set else ":"),
            "command": again,
            "link": {"name": f"{link.name}.toml", "text": link_file(link)} if is_set else None,
        }

    def solve(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The same, with all placements solved there; ``solved`` is False where another question came
        meanwhile, and some are not."""
        point, _ = self._point(asked)
        self._asked += 1
        mine = self._asked
        with self._solving:
            try:
                solved = self.live.solve(point, lambda: mine == self._asked)
            except BeyondError as error:
                return {"error": f"{str(error)[:1].upper()}{str(error)[1:]}."}
        return {**self.at(asked), "solved": solved}

    def _point(self, asked: Mapping[str, Any]) -> tuple[Point, str]:
        """(where the sliders are, the policy that is shown). Raises InputError."""
        live = self.live
        sizes = asked.get("sizes", {})
        bandwidth, latency = asked.get("bandwidth"), asked.get("latency")
        wire, shown = asked.get("wire") or None, asked.get("policy")
        if not isinstance(sizes, dict) or not all(type(size) is int for size in sizes.values()):
            raise InputError("sizes: give whole numbers by name")
        if bandwidth is not None and not (type(bandwidth) is int and 0 < bandwidth < 2**63):
            raise InputError(f"bandwidth {bandwidth!r}: give whole bytes a second, more than 0")
        if latency is not None and not (type(latency) in (int, float) and 0 <= latency < 1e9):
            raise InputError(f"latency {latency!r}: give seconds, 0 or more")
        if shown not in live.policies:
            raise InputError(f"policy {shown!r}: one of {', '.join(live.policies)}")
        if wire is not None and wire not in FLOATING:
            raise InputError(f"wire {wire!r}: one of {', '.join(FLOATING)}")
        variables = live.meta.variables
        moved = tuple(
            (name, sizes[name])
            for name in live.sizes
            if name in sizes and sizes[name] != variables[name]
        )
        return Point(moved, bandwidth, latency, wire), shown


def handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    """What takes requests to answers."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "cutedge", ""
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            if not self._is_ours():
                return
            if self.path != "/":
                self._say(HTTPStatus.NOT_FOUND, {"error": "there is one page here: /"})
                return
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", answers.page.encode())

        def do_POST(self) -> None:
            if not self._is_ours():
                return
            answer = {"/at": answers.at, "/solve": answers.solve}.get(self.path)
            length = self.headers.get("Content-Length", "")
            if answer is None:
                self._say(HTTPStatus.NOT_FOUND, {"error": "ask /at or /solve"})
            elif self.headers.get("Content-Type") != "application/json":
                self._say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "ask in application/json"})
            elif not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
                error = f"ask in {MOST_BYTES} bytes at most"
                self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": error})
            else:
                try:
                    asked = json.loads(self.rfile.read(int(length)))
                    if not isinstance(asked, dict):
                        raise InputError("ask with an object")
                    self._say(HTTPStatus.OK, answer(asked))
                except (CutedgeError, ValueError, RecursionError) as error:
                    self._say(HTTPStatus.BAD_REQUEST, {"error": str(error)})

        def _is_ours(self) -> bool:
            """Whether it is asked by its own name, and by its own page or by hand."""
            port = self.server.server_port  # type: ignore[attr-defined]  # an HTTPServer has it
            names = [f"{host}:{port}" for host in ("127.0.0.1", "localhost")]
            origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
            ours = (
                self.headers.get("Host") in names
                and (origin is None or origin in [f"http://{name}" for name in names])
                and site in (None, "same-origin", "none")
            )
            if not ours:
                self._say(HTTPStatus.FORBIDDEN, {"error": f"this is for http://{names[0]}/ alone"})
            return ours

        def _say(self, status: HTTPStatus, answer: Mapping[str, Any]) -> None:
            if status != HTTPStatus.OK:
                self.close_connection = True  # what was sent with it may not have been read
            text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
            self._send(status, "application/json; charset=utf-8", text.encode())

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """No line for each slider that moves."""

    return Handler

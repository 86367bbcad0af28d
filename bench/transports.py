"""What moving a tensor to another process and one back takes: sockets, ZeroMQ, Arrow Flight.

Two processes on this machine, a request and a reply of the same size, into memory that torch can
compute on; Unix sockets where the library has them. Run it with ``make bench``; it prints and
judges nothing. ZeroMQ is left out where pyzmq is not installed.
"""

import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

with suppress(ImportError):
    import zmq

SIZES = (4 * 2**10, 8 * 2**20, 128 * 2**20)
ROUNDS = {SIZES[0]: 500, SIZES[1]: 40, SIZES[2]: 8}
HEADER = 8


def read(connection: socket.socket, view: memoryview) -> None:
    while view:
        view = view[connection.recv_into(view) :]


def receive(connection: socket.socket) -> np.ndarray[Any, Any] | None:
    header = bytearray(HEADER)
    with suppress(OSError):
        if not (first := connection.recv_into(header)):
            return None
        read(connection, memoryview(header)[first:])
    made = np.empty(int.from_bytes(header, "little"), np.uint8)
    read(connection, memoryview(made))
    return made


def send(connection: socket.socket, tensor: np.ndarray[Any, Any]) -> None:
    connection.sendall(len(tensor).to_bytes(HEADER, "little"))
    connection.sendall(memoryview(tensor))


def socket_server(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    connection, _ = listener.accept()
    while (got := receive(connection)) is not None:
        send(connection, got)


def socket_client(path: str) -> Callable[[np.ndarray[Any, Any]], int]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)

    def trip(tensor: np.ndarray[Any, Any]) -> int:
        send(connection, tensor)
        made = receive(connection)
        assert made is not None
        return len(made)

    return trip


def zmq_server(path: str) -> None:
    replies = zmq.Context().socket(zmq.REP)
    replies.bind(f"ipc://{path}")
    while True:
        frame = replies.recv(copy=False)
        replies.send(np.frombuffer(frame.buffer, np.uint8), copy=False)


def zmq_client(path: str) -> Callable[[np.ndarray[Any, Any]], int]:
    requests = zmq.Context().socket(zmq.REQ)
    requests.connect(f"ipc://{path}")

    def trip(tensor: np.ndarray[Any, Any]) -> int:
        requests.send(tensor, copy=False)
        return len(np.frombuffer(requests.recv(copy=False).buffer, np.uint8))

    return trip


class Echo(flight.FlightServerBase):  # type: ignore[misc]
    """Sends back what it is sent."""

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        begun = False
        for chunk in reader:
            if not begun:
                writer.begin(chunk.data.schema)
                begun = True
            writer.write_batch(chunk.data)


def flight_server(path: str) -> None:
    Echo(f"grpc+unix://{path}").serve()


def flight_client(path: str) -> Callable[[np.ndarray[Any, Any]], int]:
    client = flight.connect(f"grpc+unix://{path}")
    schema = pa.schema([pa.field("bytes", pa.uint8())])
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))
    writer.begin(schema)

    def trip(tensor: np.ndarray[Any, Any]) -> int:
        writer.write_batch(pa.record_batch([pa.array(tensor)], schema=schema))
        return len(reader.read_chunk().data.column(0).to_numpy(zero_copy_only=True))

    return trip


def main() -> None:
    ways = {"sockets": (socket_server, socket_client), "Flight": (flight_server, flight_client)}
    if "zmq" in globals():
        ways["ZeroMQ"] = (zmq_server, zmq_client)
    for name, (server, client) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/s"
            process = get_context("fork").Process(target=server, args=(path,), daemon=True)
            process.start()
            while not Path(path).exists():
                time.sleep(0.01)
            time.sleep(0.2)
            trip = client(path)
            for size in SIZES:
                tensor = np.random.default_rng(0).integers(0, 255, size, np.uint8)
                trip(tensor)
                taken = []
                for _ in range(ROUNDS[size]):
                    start = time.perf_counter()
                    assert trip(tensor) == size
                    taken.append(time.perf_counter() - start)
                middle = statistics.median(taken)
                print(
                    f"{name:8} {size:>11,} bytes there and back  {middle * 1e3:9.3f} ms  "
                    f"{2 * size / middle / 1e9:6.2f} GB/s"
                )
            process.kill()


if __name__ == "__main__":
    main()

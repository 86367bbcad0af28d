"""Perfetto's own trace processor, asked in SQL: the arbiter of what a trace says.

Either ``$TRACE_PROCESSOR`` names a ``trace_processor_shell``, or the build of it for web pages is
in the virtual environment (`make trace-processor`) and runs in node, with the ``perfetto``
package's own client at this end.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHELL = os.environ.get("TRACE_PROCESSOR")
WASM = Path(sys.prefix) / "trace-processor"
NODE = shutil.which("node")

MISSING = (
    None
    if SHELL or (NODE and WASM.exists())
    else "no trace processor: set TRACE_PROCESSOR, or run make trace-processor"
)
"""Why a trace cannot be asked here; None where it can."""

Rows = list[dict[str, Any]]


@contextmanager
def asking(trace: Path) -> Iterator[Any]:
    """``ask(sql)`` gives the rows of a query over ``trace``."""
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig
    from perfetto.trace_processor.platform import PlatformDelegate
    from perfetto.trace_processor.protos import ProtoFactory
    from perfetto.trace_processor.rpc import TraceProcessorRpc

    if SHELL:
        with TraceProcessor(trace=str(trace), config=TraceProcessorConfig(SHELL)) as shell:
            yield lambda sql: [vars(row) for row in shell.query(sql)]
        return
    protos = ProtoFactory(PlatformDelegate())
    with _Pipe([str(NODE), str(Path(__file__).with_suffix(".cjs")), str(WASM)]) as pipe:
        calls = protos.TraceProcessorRpc.TraceProcessorMethod
        stream = protos.TraceProcessorRpcStream()
        stream.msg.add(
            seq=0,
            request=calls.Value("TPM_APPEND_TRACE_DATA"),
            append_trace_data=trace.read_bytes(),
        )
        stream.msg.add(seq=1, request=calls.Value("TPM_FINALIZE_TRACE_DATA"))
        pipe.send(stream.SerializeToString())
        client = TraceProcessorRpc(pipe, protos)
        for _ in range(2):
            protos.TraceProcessorRpc.FromString(client._read_payload())

        def ask(sql: str) -> Rows:
            found = client.execute_query(sql)
            assert not found.error, found.error
            rows = TraceProcessor.QueryResultIterator(found.column_names, found.batch)
            return [vars(row) for row in rows]

        yield ask


class _Pipe:
    """The transport that the package's client speaks over."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def send(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def read(self, size: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise ConnectionError("the trace processor has ended")
        return data

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "_Pipe":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

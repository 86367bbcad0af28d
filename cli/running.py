"""Commands that run a placement for real: verify, and the worker for another machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from cli.app import command, say, warn
from cli.options import Json, MachineOptions, Model, Search, Tracing

if TYPE_CHECKING:
    from cutedge._verify import Verification

TlsCa = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help="Connect to workers elsewhere by TLS, and believe certificates that this one signed.",
    ),
]


@dataclass(frozen=True, slots=True)
class Running:
    """How splits are run."""

    weights: Annotated[
        Path | None, Option(help="A folder with .safetensors; random numbers when left out.")
    ] = None
    seed: Annotated[int, Option(min=0, help="Of random weights, inputs and cache.")] = 0
    transport: Annotated[
        Literal["unix", "tcp"], Option(help="Sockets to workers on this machine.")
    ] = "unix"
    workers: Annotated[
        list[str] | None,
        Option(
            "--worker",
            help="A worker that listens elsewhere: gpu=HOST:PORT; CUTEDGE_TOKEN has its token.",
        ),
    ] = None
    tls_ca: TlsCa = None
    runs: Annotated[int, Option(min=1, help="Run so often; the fastest is what is measured.")] = 1
    timeout: Annotated[float, Option(min=0.1, help="Seconds that a worker may be silent.")] = 300.0


@command("cutedge verify llama-3.2-1b --seq 1024 --policy offload-linear")
def verify(
    model: Model,
    tracing: Tracing,
    machine: MachineOptions,
    search: Search,
    running: Running,
    policies: Annotated[
        list[str] | None,
        Option("--policy", help="A policy to run, again and again; offload-linear."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        Option(help="Write link.toml and a device file each, fitted to what was measured."),
    ] = None,
    out: Annotated[Path | None, Option(help="Directory for the tables.")] = None,
    as_json: Json = False,
) -> None:
    """Run a split for real, count what crosses, and check it against prediction and model."""
    import cutedge
    from cli.printing import print_json
    from cutedge._verify import calibrate as write_devices
    from cutedge._verify import check_verify, socket_link
    from cutedge._workspace import default_folder

    options = socket_link(asdict(machine), running.transport) | asdict(search)
    chosen = policies or ["offload-linear"]
    said = check_verify(chosen, running.workers or (), running.tls_ca, options)
    for warning in said:
        warn(warning)
    traced = cutedge.trace(model, **asdict(tracing))
    splits = [traced.partition(one, **options) for one in chosen]
    for warning in traced.warnings:
        warn(warning)
    folder = out or default_folder(traced.graph)
    verified = [split.verify(**asdict(running)) for split in splits]
    for warning in dict.fromkeys(one for each in verified for one in each.warnings):
        if warning not in said:
            warn(warning)
    files = [one.save(folder) for one in verified]
    if as_json:
        pairs = zip(verified, files, strict=True)
        print_json({"runs": [{**one.summary, "measured_calls": str(at)} for one, at in pairs]})
    else:
        _print(verified, files)
    for one in verified:
        one.check()
    if calibrate is not None:
        for warning in write_devices(verified, calibrate):
            warn(warning)


def _print(verified: "Sequence[Verification]", files: Sequence[Path]) -> None:
    from cli.printing import print_table
    from cutedge._rows import packed_rows, verify_rows
    from tracer.summary import headline
    from tracer.words import duration, human

    rows = [(each.split, each.measured, each.verdict) for each in verified]
    say(headline(verified[0].trace.graph.meta))
    say(
        "predicted / measured, by processes of their own over sockets; the answer against the "
        "unsplit model's"
    )
    say()
    print_table(
        "policy, calls>1, payload>2, on the wire>5, bytes, transfer time>4, run>3, answer off by>1",
        verify_rows(verified),
    )
    say()
    for one, m, v in rows:
        slowest = sorted(
            zip(one.traffic.calls, m.calls, strict=True), key=lambda pair: -pair[1].call_seconds
        )[:3]
        longest = ", ".join(f"{c.label} {duration(t.call_seconds)}" for c, t in slowest)
        held = ", ".join(f"{name} {human(size)}" for name, size in m.peak_memory_bytes.items())
        say(
            f"{one.policy}: {v.transfers_measured} transfers compared one by one; "
            f"peak memory {held}; " + (f"longest calls {longest}" if longest else "no calls")
        )
    if packed := packed_rows(verified):
        print_table(
            "policy<3, packed, by, of<4, count>5, plain>6, predicted / measured>1, ratio>", packed
        )
        say()
    for each in verified:
        for what, told in (("", each.packed), ("secrets: ", each.proof), ("masks: ", each.masks)):
            if told is not None:
                say(f"{each.split.policy}, {what}{told}")
    for file in files:
        say(f"written to {file}")


@command(
    "CUTEDGE_TOKEN=$(openssl rand -hex 32) cutedge worker --listen 127.0.0.1:7411", tables=False
)
def worker(
    listen: Annotated[
        str, Option(help="HOST:PORT, or a port of this machine alone.")
    ] = "127.0.0.1:7411",
    memory: Annotated[
        str | None,
        Option(
            help="Take at most so many bytes of weights, as in 4GiB; what is free when left out."
        ),
    ] = None,
    timeout: Annotated[
        float, Option(min=0.1, help="Seconds that another accelerator may be silent.")
    ] = 300.0,
    idle: Annotated[
        float, Option(min=0.1, help="Seconds that home may be silent before it is let go.")
    ] = 600.0,
    weights: Annotated[
        list[Path] | None,
        Option(
            help="A folder that checkpoints may be read from; again for another. No folder when "
            "left out."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        Option(exists=True, dir_okay=False, help="Take TLS alone, with this certificate."),
    ] = None,
    tls_key: Annotated[
        Path | None, Option(exists=True, dir_okay=False, help="The certificate's key.")
    ] = None,
    tls_ca: TlsCa = None,
) -> None:
    """Hold weights and carry out calls for `verify --worker` on this or another machine."""
    from cutedge._serve import serve
    from tracer.errors import InputError

    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together: give both")
    serve(
        listen,
        memory=memory,
        timeout=timeout,
        idle=idle,
        weights=tuple(weights or ()),
        identity=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        tls_ca=tls_ca,
        warn=warn,
        listening=lambda text: typer.echo(text, err=True),
    )

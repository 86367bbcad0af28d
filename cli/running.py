"""Commands that run a placement for real: verify, and the worker for another machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from cli.app import command, warn
from cli.options import Json, MachineOptions, Model, Search, Tracing

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
    from cli.printing import print_all, print_json
    from cutedge._rows import verify_shown
    from cutedge._verify import calibrate as write_devices
    from cutedge._verify import check_verify, socket_link
    from cutedge._workspace import default_folder

    options = socket_link(asdict(machine), running.transport) | asdict(search)
    chosen = policies or ["offload-linear"]
    said = check_verify(chosen, running.workers or (), running.tls_ca, options)
    warn(*said)
    traced = cutedge.trace(model, **asdict(tracing))
    splits = [traced.partition(one, **options) for one in chosen]
    warn(*traced.warnings)
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
        print_all(verify_shown(verified, files))
    for one in verified:
        one.check()
    if calibrate is not None:
        warn(*write_devices(verified, calibrate))


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

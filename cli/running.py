"""Commands that run a placement for real: verify, and the worker for another machine."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.app import Json, command, say, warn
from cli.machines import Accel, Home, LinkNames, Memory
from cli.splitting import MaxCalls, ResidencyName, TimeLimit, WireDtype  # fmt: skip
from cli.tracing import (
    Attn,
    Batch,
    Cache,
    Dtype,
    Logits,
    Model,
    Past,
    Phase,
    Seq,
    Settings,
    Source,
)  # fmt: skip
from cutedge._machines import read_machines, read_size
from cutedge._request import Request
from tracer.errors import CutedgeError, InputError, choose
from tracer.stages import stage

if TYPE_CHECKING:
    from cutedge.runtime.home import Measured
    from cutedge.runtime.leaks import Proof, Secrets
    from cutedge.runtime.verify import Verdict
    from partition.tables import Partition
    from tracer.capture.runnable import Runnable
    from tracer.graph import OpGraph

TOKEN = "CUTEDGE_TOKEN"
"""The environment variable that has the token which home and its workers share."""

LEAST_TOKEN = 16


TlsCa = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False,
        help="Connect to workers elsewhere by TLS, and believe certificates that this one signed.",
    ),
]  # fmt: skip


class VerifyError(CutedgeError):
    """What ran is not what was predicted."""


@command("cutedge verify llama-3.2-1b --seq 1024 --policy offload-linear")
def verify(
    model: Model,
    seq: Seq = None,
    batch: Batch = 1,
    phase: Phase = "prefill",
    past: Past = None,
    source: Source = None,
    cache: Cache = False,
    dtype: Dtype = None,
    attn: Attn = "eager",
    logits: Logits = "last",
    settings: Settings = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy to run, again and again; offload-linear."),
    ] = None,
    home: Home = "tee",
    accel: Accel = None,
    wire_dtype: WireDtype = None,
    residency: ResidencyName = "run",
    link: LinkNames = None,
    max_calls: MaxCalls = None,
    memory: Memory = None,
    time_limit: TimeLimit = 60.0,
    weights: Annotated[
        Path | None,
        typer.Option(help="A folder with .safetensors; random numbers when left out."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights, inputs and cache.")] = 0,
    transport: Annotated[
        Literal["unix", "tcp"], typer.Option(help="Sockets to workers on this machine.")
    ] = "unix",
    worker: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A worker that listens elsewhere: gpu=HOST:PORT; {TOKEN} has its token."
        ),
    ] = None,
    tls_ca: TlsCa = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Run so often; the fastest is what is measured.")
    ] = 1,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a worker may be silent.")
    ] = 300.0,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Write link.toml and a device file each, fitted to what was measured."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the tables.")] = None,
    as_json: Json = False,
) -> None:
    """Run a split for real, count what crosses, and check it against prediction and model."""
    from cli.printing import print_json
    from costmodels.flops import annotate
    from cutedge._placing import partition_of, setting_of
    from cutedge._workspace import default_folder, remember
    from cutedge.runtime.leaks import Secrets
    from cutedge.runtime.lineage import carriers
    from cutedge.runtime.secure import trust
    from cutedge.runtime.verify import judge, unsplit
    from cutedge.runtime.weights import given_numbers
    from cutedge.runtime.wire import Carriage
    from partition.policy import load_policy, named_by
    from partition.tables import remove_stale, write_partition
    from tracer.interrupts import uninterrupted
    from tracer.presets import parse_overrides
    from tracer.serde import write_reach, write_trace

    chosen = {name: load_policy(name) for name in policies or ["offload-linear"]}
    here = {"unix": "unix-socket", "tcp": "tcp-loopback"}[transport]
    machines = read_machines(home, accel, link or [here], memory, wire_dtype)
    for between in machines.links.among(machines.home, machines.accelerators).values():
        Carriage.of(between)
    remote = _addresses(worker or [], machines.accelerators)
    trusted = None if tls_ca is None else trust(tls_ca)
    if trusted is None:
        _warn_of_clear_text([host for host, _ in remote.values()], "--tls-ca")
    asked = Request(
        model, {"batch": batch, "seq": seq, "past": past, "source": source}, phase=phase,
        cache=cache, dtype=dtype, attn=attn, logits=logits,
        overrides=parse_overrides(settings or []),
    )  # fmt: skip
    traced, warnings, reach, _ = asked.traced(full=False, use_cache=True)
    for warning in warnings:
        warn(warning)
    graph, runnable = annotate(traced), asked.runnable()
    if (traced.ops, traced.tensors, traced.edges) != (
        runnable.graph.ops,
        runnable.graph.tensors,
        runnable.graph.edges,
    ):
        raise VerifyError(f"{graph.meta.model} is traced as another program than it is run as")
    setting = setting_of(graph, machines, residency, max_calls, time_limit)
    folder = out or default_folder(graph)
    with uninterrupted():
        trace_id = write_trace(graph, folder)
        write_reach(folder, trace_id, reach)
        remove_stale(folder, trace_id)
        remember(folder)
    made = [partition_of(graph, trace_id, policy, setting, machines) for policy in chosen.values()]
    numbers = {
        "seed": seed, "spread": runnable.spread,
        **({"checkpoint": str(weights.resolve())} if weights else {}),
    }  # fmt: skip
    given = given_numbers(graph, seed)
    measured, proofs = [], []
    for one, policy in zip(made, chosen.values(), strict=True):
        named = {str(s): named_by(graph, s) for s in policy.secrets if setting.untrusted}
        derived = [str(s) for s in policy.secrets if s.derived]
        secrets = Secrets(
            setting.untrusted, named, carriers(graph, runnable.invocations, named, derived)
        )
        with _progress(one) as progress:
            found, proof = _run(
                one, runnable, given, numbers, transport, remote, trusted, timeout, runs,
                machines.memory_bytes, secrets, progress,
            )  # fmt: skip
        measured.append(found)
        proofs.append(proof)
    reference = unsplit(graph, runnable, given, numbers, machines.home)
    verdicts = [
        judge(graph, one.traffic, found, reference, wire_dtype)
        for one, found in zip(made, measured, strict=True)
    ]
    files = []
    for one, found in zip(made, measured, strict=True):
        files.append(_write(graph, trace_id, one, found, write_partition(one, folder)))
    if as_json:
        rows = [_row(*found) for found in zip(made, measured, verdicts, proofs, files, strict=True)]
        print_json({"runs": rows})
    else:
        _print(graph, made, measured, verdicts, proofs, files)
    _refuse(made, verdicts, proofs)
    if calibrate is not None:
        _calibrate(graph, made, measured, files, calibrate)


def _addresses(
    given: Sequence[str], accelerators: Sequence[str]
) -> dict[str, tuple[str, int]]:  # fmt: skip
    """``gpu=10.0.0.2:7411`` as where a worker listens."""
    found: dict[str, tuple[str, int]] = {}
    for text in given:
        match = re.fullmatch(r"(.+)=(.+):(\d{1,5})", text)
        if match is None or int(match[3]) > 65535:
            raise InputError(f"--worker {text!r}: write DEVICE=HOST:PORT, as in gpu=10.0.0.2:7411")
        choose(match[1], accelerators, "--worker of")
        if match[1] in found or (match[2], int(match[3])) in found.values():
            raise InputError(f"--worker {text!r}: each device has one worker, and each worker one")
        found[match[1]] = (match[2], int(match[3]))
    if found and len(os.environ.get(TOKEN, "")) < LEAST_TOKEN:
        raise InputError(f"--worker: put the workers' token, {LEAST_TOKEN} characters or more, "
                         f"into {TOKEN}")  # fmt: skip
    return found


def _warn_of_clear_text(hosts: Sequence[str], option: str) -> None:
    """Say once where bytes leave this machine without TLS."""
    from cutedge.runtime.secure import stays_here

    if away := [host for host in hosts if not stays_here(host)]:
        typer.echo(
            f"warning: what goes to and from {', '.join(away)} is in the clear, and whoever is on "
            f"the way can change it: give {option}", err=True,
        )  # fmt: skip


@contextmanager
def _progress(one: "Partition") -> "Iterator[Callable[[int, int], None]]":
    """A stage of as many calls as a placement makes."""
    with stage(f"running {one.policy}", len(one.traffic.calls)) as done:
        yield lambda call, moved: done(call + 1)


def _run(
    one: "Partition", runnable: "Runnable", given: Mapping[int, Any],
    numbers: Mapping[str, Any], transport: Any, remote: Mapping[str, tuple[str, int]],
    trusted: Any, timeout: float, runs: int, memory: Mapping[str, int],
    secrets: "Secrets", progress: Callable[[int, int], None],
) -> "tuple[Measured, Proof | None]":  # fmt: skip
    """(the fastest of a placement's runs, what a run before them shows of its secrets)"""
    from cutedge.runtime.home import load, workers
    from cutedge.runtime.leaks import Witness
    from cutedge.runtime.plan import make_plan

    plan = make_plan(
        one.graph, runnable.invocations, one.placement,
        wire_dtype=one.wire_dtype, residency="call" if one.residency == "call" else "run",
    )  # fmt: skip
    with workers(
        list(plan.accelerators), transport=transport, timeout=timeout, remote=remote,
        token=os.environ.get(TOKEN) if remote else None, memory_bytes=memory, trust=trusted,
    ) as found:  # fmt: skip
        for name in secrets.untrusted:
            if name in found:
                found[name].channel.forbidden = secrets.carriers
        loaded = load(
            plan, found, data=runnable.data, weights=numbers, links=one.links,
            wire_dtype=one.wire_dtype, residency=one.residency,
            memory_bytes=memory.get(plan.home.name),
        )  # fmt: skip
        proof = None
        if secrets.named:  # in a run of its own: to look takes time
            witness = Witness.of(plan, one.graph, secrets, one.wire_dtype)
            loaded.run(given, progress, witness)
            proof = witness.prove(runnable, given, numbers, one.links)
        measured = [loaded.run(given, progress) for _ in range(runs)]
    return min(measured, key=lambda run: run.seconds), proof


def _write(
    graph: "OpGraph", trace_id: str, one: "Partition", found: "Measured", folder: Path
) -> Path:  # fmt: skip
    from cutedge.runtime.measured import write_measured
    from cutedge.runtime.wire import MESSAGE_BYTES, TENSOR_BYTES
    from tracer.serde import trace_metadata

    return write_measured(
        graph.meta, found.calls, [call.label for call in one.traffic.calls], one.identity,
        {**trace_metadata(graph.meta, trace_id), "policy": one.policy,
         "run_seconds": repr(found.seconds), "home_seconds": repr(found.home_seconds)},
        {"message": MESSAGE_BYTES, "tensor": TENSOR_BYTES}, folder,
    )  # fmt: skip


def _calibrate(
    graph: "OpGraph", made: "Sequence[Partition]", measured: "Sequence[Measured]",
    files: Sequence[Path], folder: Path,
) -> None:  # fmt: skip
    """Write the link and the devices as measured into a folder, for --link, --home and --accel."""
    from costmodels.calibrate import fit, write_link
    from costmodels.fit_device import fit_device, write_device
    from cutedge.runtime.measured import read_measured

    folder.mkdir(parents=True, exist_ok=True)
    called = max(range(len(made)), key=lambda n: len(made[n].traffic.calls))
    found = fit(*read_measured(files[called]))
    for warning in found.warnings:
        warn(warning)
    write_link(found, folder / "link.toml")
    here: dict[str, list[Mapping[int, float]]] = {}
    for one in measured:  # what torch runs on one processor here is one device
        for name, seconds in one.op_seconds.items():
            here.setdefault(one.devices[name], []).append(seconds)
    policies = ", ".join(one.policy for one in made)
    for name, device in measured[0].devices.items():
        fitted = fit_device(graph, here[device])
        write_device(fitted, f"{graph.meta.model} ({policies})", folder / f"{name}.toml")


def _row(
    one: "Partition", found: "Measured", verdict: "Verdict", proof: "Proof | None", file: Path
) -> dict[str, Any]:  # fmt: skip
    """``verify --json``, of one policy."""
    return {
        "policy": one.policy, "link": one.links.name, "wire": one.wire,
        "wire_dtype": one.wire_dtype, "residency": one.residency, **asdict(verdict),
        "bytes_equal": verdict.bytes_equal,
        "answer_equal": verdict.answer_equal, "run_seconds_predicted": one.run_seconds,
        "run_seconds_measured": found.seconds,
        "seconds_predicted": one.traffic.totals.seconds,
        "seconds_measured": sum(c.seconds for c in found.calls),
        "home_seconds_predicted": one.home_seconds,
        "home_seconds_measured": found.home_seconds,
        "accelerator_seconds_predicted": one.accelerator_seconds,
        "accelerator_seconds_measured": sum(c.accelerator_seconds for c in found.calls),
        "load_seconds": found.load_seconds, "peak_memory_bytes": found.peak_memory_bytes,
        "ran_on": found.devices, "measured_calls": str(file),
        "secrets": None if proof is None else asdict(proof),
    }  # fmt: skip


def _print(
    graph: "OpGraph", made: "Sequence[Partition]", measured: "Sequence[Measured]",
    verdicts: "Sequence[Verdict]", proofs: "Sequence[Proof | None]", files: Sequence[Path],
) -> None:  # fmt: skip
    from cli.printing import Column, console, duration, human, mib, print_table
    from tracer.summary import headline

    def against(predicted: float | None, seconds: float) -> str:
        if not predicted:
            return f"{duration(seconds)}"
        return f"{duration(predicted)} / {duration(seconds)} ({predicted / seconds - 1:+.1%})"

    out = console()
    out.print(headline(graph.meta))
    out.print(
        "predicted / measured, by processes of their own over sockets; the answer against the "
        "unsplit model's"
    )
    say()
    print_table(
        [
            Column("policy"), Column("calls", ">", 1), Column("payload", ">", 2),
            Column("on the wire", ">", 5), Column("bytes", "<"), Column("transfers", ">", 4),
            Column("run", ">", 3), Column("answer off by", ">", 1),
        ],
        [
            (
                one.policy, f"{v.calls_predicted} / {v.calls_measured}",
                f"{mib(v.total_payload_bytes_predicted)} / {mib(v.total_payload_bytes_measured)}",
                f"{v.total_wire_bytes_predicted:,} / {v.total_wire_bytes_measured:,} B",
                "equal" if v.bytes_equal else "NOT EQUAL",
                against(one.traffic.totals.seconds, sum(c.seconds for c in m.calls)),
                against(one.run_seconds, m.seconds),
                f"{v.max_abs_difference:.3g} of {v.max_abs_result:.3g}",
            )
            for one, m, v in zip(made, measured, verdicts, strict=True)
        ],
    )  # fmt: skip
    say()
    for one, m, v in zip(made, measured, verdicts, strict=True):
        slowest = sorted(
            zip(one.traffic.calls, m.calls, strict=True), key=lambda pair: -pair[1].call_seconds
        )[:3]
        held = ", ".join(f"{name} {human(size)}" for name, size in m.peak_memory_bytes.items())
        out.print(
            f"{one.policy}: {v.transfers_measured} transfers compared one by one; "
            f"peak memory {held}; longest calls "
            + (", ".join(f"{c.label} {duration(t.call_seconds)}" for c, t in slowest) or "none")
        )
    for one, proof in zip(made, proofs, strict=True):
        if proof is not None:
            out.print(f"{one.policy}, secrets: {proof}")
    for file in files:
        out.print(f"written to {file}")


def _refuse(
    made: "Sequence[Partition]", verdicts: "Sequence[Verdict]",
    proofs: "Sequence[Proof | None]",
) -> None:  # fmt: skip
    """Fail where a secret was seen, and where the bytes or the answer are not as they must be."""
    for one, verdict, proof in zip(made, verdicts, proofs, strict=True):
        if proof is not None and proof.leaks:
            more = f"; and {len(proof.leaks) - 1} more" if len(proof.leaks) > 1 else ""
            raise VerifyError(f"{one.policy}: {proof.leaks[0]}{more}")
        if not verdict.bytes_equal:
            more = f" and {len(verdict.unequal) - 1} more" if len(verdict.unequal) > 1 else ""
            raise VerifyError(f"{one.policy}: {verdict.unequal[0]}{more}")
        if not verdict.answer_equal:
            name, apart = verdict.largest_differences[0]
            raise VerifyError(
                f"{one.policy}: {name} is off the unsplit model's by {apart:.3g}, and its largest "
                f"is {verdict.max_abs_result:.3g}: {verdict.tolerance:.3g} would be rounding"
            )


@command("CUTEDGE_TOKEN=$(openssl rand -hex 32) cutedge worker --listen 127.0.0.1:7411")
def worker(
    listen: Annotated[
        str, typer.Option(help="HOST:PORT, or a port of this machine alone.")
    ] = "127.0.0.1:7411",
    memory: Annotated[
        str | None, typer.Option(help="Take at most so much weights, as in 4GiB; what is free.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that another accelerator may be silent.")
    ] = 300.0,
    idle: Annotated[
        float, typer.Option(min=0.1, help="Seconds that home may be silent before it is let go.")
    ] = 600.0,
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder that checkpoints may be read from; again for another; nowhere."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Take TLS alone, with this certificate."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The certificate's key.")
    ] = None,
    tls_ca: TlsCa = None,
) -> None:
    """Hold weights and carry out calls for `verify --worker` on this or another machine."""
    import socket

    from cutedge.runtime.secure import identity, trust
    from cutedge.runtime.wire import remove_segments
    from cutedge.runtime.worker import Service, serve
    from tracer.interrupts import at_interrupt, say_at_interrupt

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
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together: give both")
    service = Service(
        token, timeout, idle, most, tuple(weights or ()),
        None if tls_cert is None or tls_key is None else identity(tls_cert, tls_key),
        None if tls_ca is None else trust(tls_ca),
    )  # fmt: skip
    if tls_cert is None:
        _warn_of_clear_text([host], "--tls-cert and --tls-key")
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
        typer.echo(f"listening on {':'.join(map(str, listener.getsockname()))}", err=True)
        say_at_interrupt("stopped")
        sessions: list[bytes] = []
        with at_interrupt(lambda: [*map(remove_segments, sessions)]):
            serve(listener, service, begun=sessions.append)

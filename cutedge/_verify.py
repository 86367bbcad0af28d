"""A split that is run for real: what crossed and what came out, beside what was predicted."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.weights import as_computed
from cutedge._machines import machine_of
from cutedge._placing import check_words
from cutedge.runtime import RunError
from cutedge.runtime.home import Loaded, Measured, load, workers
from cutedge.runtime.leaks import MaskProof, SecrecyProof, Secrets, Witness, masked_alone
from cutedge.runtime.lineage import carriers
from cutedge.runtime.masks import Masking, masked_invocations, masking_of
from cutedge.runtime.packed import Packed, groups_of, packings_of, write_packings
from cutedge.runtime.plan import Plan, make_plan
from cutedge.runtime.secure import LEAST_TOKEN, TOKEN, clear_text, trust
from cutedge.runtime.verify import Verdict, difference, judge, unsplit
from cutedge.runtime.weights import given_numbers
from cutedge.runtime.wire import MESSAGE_BYTES, TENSOR_BYTES, Carriage
from partition.accounting import Traffic, account
from partition.masks import MaskedGraph, seen_through
from partition.policy import named_by
from partition.split import Split
from partition.tables import write_partition
from partition.wire_format import WireFormat
from tracer.errors import CutedgeError, InputError, choose
from tracer.stages import stage

if TYPE_CHECKING:
    from cutedge._partition import Partition
    from cutedge._trace import Trace
    from tracer.capture.runnable import Runnable

Transport = Literal["unix", "tcp"]
"""The sockets to workers on this machine."""

_SOCKETS = {"unix": "unix-socket", "tcp": "tcp-loopback"}


class VerifyError(CutedgeError):
    """What ran is not what was predicted."""


@dataclass(frozen=True, slots=True)
class Verification:
    """A split that was run, by processes of its own over sockets."""

    split: Split
    """As it was counted for the sockets that it ran over."""
    measured: Measured
    """The fastest of its runs."""
    verdict: Verdict
    """What was counted and what came out, beside prediction and unsplit model."""
    proof: SecrecyProof | None
    """What a run before them showed of its secrets; None where it has no secrets."""
    trace: "Trace"
    warnings: tuple[str, ...]
    """What a user must know before trusting the figures, a line each."""
    packed: Packed | None = None
    """What packing did; None where nothing was packed."""
    numbers: str = ""
    """Which numbers its parameters had, in words."""
    masks: MaskProof | None = None
    """What a run before them showed of its masks; None where nothing is masked."""

    @property
    def failure(self) -> str | None:
        """What is not as it must be: a secret that was seen, bytes, the answer; None if nothing."""
        verdict, proof, policy = self.verdict, self.proof, self.split.policy
        wrong = verdict.unequal if proof is None or not proof.leaks else proof.leaks
        if self.masks is not None and self.masks.leaks:
            wrong = self.masks.leaks
        packed, on = self.packed, self.measured.devices.values()
        if (
            not wrong
            and packed
            and packed.is_lossless
            and packed.max_abs_difference
            and {*on} == {"cpu"}
        ):
            wrong = (
                f"what is packed without loss changes the answer by "
                f"{packed.max_abs_difference:.3g}",
            )
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            return f"{policy}: {wrong[0]}{more}"
        if verdict.answer_equal:
            return None
        name, apart = verdict.largest_differences[0]
        return (
            f"{policy}: {name} is off the unsplit model's by {apart:.3g}, and its largest is "
            f"{verdict.max_abs_result:.3g}: {verdict.tolerance:.3g} would be rounding"
        )

    def check(self) -> "Verification":
        """Itself, where all is as predicted. Raises VerifyError saying what is not."""
        if self.failure is not None:
            raise VerifyError(self.failure)
        return self

    @property
    def summary(self) -> dict[str, Any]:
        """Predicted and measured figures by name, as ``verify --json`` has them."""
        one, run, verdict = self.split, self.measured, self.verdict
        return {
            "policy": one.policy,
            "link": one.link,
            "wire": one.wire,
            "wire_dtype": one.wire_dtype,
            "residency": one.residency,
            **asdict(verdict),
            "bytes_equal": verdict.bytes_equal,
            "answer_equal": verdict.answer_equal,
            "at_least": bool(one.left_out),
            "left_out": list(one.left_out),
            "run_seconds_predicted": one.run_seconds,
            "run_seconds_measured": run.seconds,
            "seconds_predicted": one.traffic.totals.seconds,
            "seconds_measured": sum(c.seconds for c in run.calls),
            "home_seconds_predicted": one.home_seconds,
            "home_seconds_measured": run.home_seconds,
            "accelerator_seconds_predicted": one.accelerator_seconds,
            "accelerator_seconds_measured": sum(c.accelerator_seconds for c in run.calls),
            "load_seconds": run.load_seconds,
            "peak_memory_bytes": run.peak_memory_bytes,
            "ran_on": run.devices,
            "secrets": None if self.proof is None else asdict(self.proof),
            "masks": None if self.masks is None else asdict(self.masks),
            "packed": None
            if self.packed is None
            else {
                "max_abs_difference": self.packed.max_abs_difference,
                "is_lossless": self.packed.is_lossless,
                "groups": [{**asdict(one), "ratio": one.ratio} for one in self.packed.groups],
            },
        }

    def save(self, folder: str | Path) -> Path:
        """Write the tables of the trace, of the split and of its calls; where the last are."""
        from cutedge.runtime.measured import write_measured
        from tracer.serde import trace_metadata

        one, run, meta = self.split, self.measured, self.trace.graph.meta
        return write_measured(
            meta,
            run.calls,
            [call.label for call in one.traffic.calls],
            one.identity,
            {
                **trace_metadata(meta, self.trace.id),
                "policy": one.policy,
                "run_seconds": repr(run.seconds),
                "home_seconds": repr(run.home_seconds),
            },
            {"message": MESSAGE_BYTES, "tensor": TENSOR_BYTES},
            write_partition(one, self.trace.save(folder)),
        )


def verify(
    partition: "Partition",
    seed: int,
    weights: Path | None,
    transport: Transport,
    addresses: Sequence[str],
    tls_ca: Path | None,
    runs: int,
    timeout: float,
) -> Verification:
    """Run a partition: ``Partition.verify``."""
    trace, machine = partition.trace, partition.setting.machine
    remote = _addresses(addresses, machine.accelerators)
    trusted = None if tls_ca is None else trust(tls_ca)
    warnings = [] if trusted else clear_text([host for host, _ in remote.values()], "--tls-ca")
    split, links, said = _over_sockets(partition.split, transport)
    narrow = [t for t in split.traffic.transfers if t.tensor.op is None and t.tensor.is_packed]
    if narrow:
        raise InputError(
            f"{split.policy} is sent weights in {split.graph.meta.weights}, and verify runs them in "
            f"{narrow[0].tensor.dtype}: leave --weights out, or take --weights-at device"
        )
    runnable, numbers = _runnable(trace), _numbers(trace, seed, weights)
    given = given_numbers(trace.graph, seed)
    masking = masking_of(split.graph, runnable, given, numbers, links)
    invocations = masked_invocations(split.graph, runnable.invocations)
    plan = make_plan(
        split.graph, invocations, split.placement, wire=split.wire_format, residency=split.residency
    )
    secrets, memory = _secrets(partition, runnable), machine.memory_bytes
    with workers(
        list(plan.accelerators),
        transport=transport,
        timeout=timeout,
        remote=remote,
        token=os.environ.get(TOKEN) if remote else None,
        memory_bytes=memory,
        trust=trusted,
    ) as running:
        for name in secrets.untrusted:
            if name in running:
                running[name].channel.forbidden = secrets.carriers

        def take(one: Plan) -> Loaded:
            return load(
                one,
                running,
                data=runnable.data,
                weights=numbers,
                links=links,
                residency=split.residency,
                memory_bytes=memory.get(plan.home.name),
                masking=masking,
            )

        packings = packings_of(split)
        unpacked = None
        if packings:  # to say what packing does to the answer
            wire = WireFormat(split.wire_dtype)
            loaded = take(
                make_plan(
                    split.graph, invocations, split.placement, wire=wire, residency=split.residency
                )
            )
            unpacked = loaded.run(given).results
        loaded = take(plan)
        proof, masks = None, None
        with stage(f"running {split.policy}", len(split.traffic.calls)) as done:

            def progress(call: int, moved: int) -> None:
                done(call + 1)

            if secrets.named:  # in a run of its own: to look takes time
                fixed = None if masking is None else masking.fixed
                witness = Witness.of(plan, split.graph, secrets, fixed)
                loaded.run(given, progress, witness)
                proof = witness.prove(runnable, given, numbers, links)
            if masking is not None:
                masks = _prove_masks(masking, loaded, runnable, given, numbers, links)
            measured = min(
                (loaded.run(given, progress) for _ in range(runs)), key=lambda run: run.seconds
            )
    reference = _unsplit(trace, seed, weights, machine.home)
    epsilon = max((one.epsilon for one in packings), default=0.0)
    epsilon = max(epsilon, 0.0 if masking is None else masking.epsilon)
    verdict = judge(
        split.graph, split.traffic, measured, reference, _counted(split, links, measured), epsilon
    )
    packed = None
    if unpacked is not None:
        apart = map(difference, measured.results, unpacked)
        packed = Packed(groups_of(split, measured), max(apart, default=0.0), packings)
    told, words = (*warnings, *said), _in_words(seed, weights)
    return Verification(split, measured, verdict, proof, trace, told, packed, words, masks)


def _prove_masks(
    masking: Masking,
    loaded: Loaded,
    runnable: "Runnable",
    given: "Mapping[int, Any]",
    weights: Mapping[str, Any],
    links: Links,
) -> MaskProof:
    """A run of its own, in which all that crosses is set beside what masks hide."""
    hidden = masked_alone(masking.graph, loaded.plan, runnable)
    witness = Witness.of(loaded.plan, masking.graph, hidden, masking.fixed)
    loaded.run(given, witness=witness)
    found = witness.prove(runnable, given, weights, links)
    return MaskProof(len(hidden.named), found.tensors_compared, found.leaks, masking.epsilon)


def _counted(split: Split, links: Links, measured: Measured) -> Traffic:
    """The prediction, with the bytes that came out where a ratio stood in for them."""
    if not split.traffic.totals.estimated_payload_bytes:
        return split.traffic
    sizes = {one.tensor: one.payload_bytes for one in measured.crossed}
    wire = replace(split.wire_format, sizes=sizes)
    return account(split.graph, split.placement, links, wire=wire, residency=split.residency)


def _over_sockets(split: Split, transport: Transport) -> tuple[Split, Links, list[str]]:
    """(a split counted for the sockets that it runs over, these, what there is to say of that)."""
    links, placement = split.links, split.placement
    assert links is not None  # the split was just made
    try:
        for link in links.among(placement.home, placement.accelerators).values():
            Carriage.of(link)
        return split, links, []
    except RunError as error:
        links = Links(load_link(_SOCKETS[transport]))
        said = f"bytes on the wire are those of {links.name}, which runs here: {error}"
        return split.over(links), links, [said]


@lru_cache(maxsize=1)
def _runnable(trace: "Trace") -> "Runnable":
    """The model of a trace, to be run. Raises InputError for a trace that was read from a file."""
    made, graph = trace.runnable(), annotate(as_computed(trace.graph))
    runs = annotate(made.graph)
    if (graph.ops, graph.tensors, graph.edges) != (runs.ops, runs.tensors, runs.edges):
        raise VerifyError(f"{graph.meta.model} is traced as another program than it is run as")
    return made


def _numbers(trace: "Trace", seed: int, weights: Path | None) -> dict[str, Any]:
    """Which numbers the parameters have: random ones, or those of a checkpoint."""
    checkpoint = {} if weights is None else {"checkpoint": str(weights.resolve())}
    return {"seed": seed, "spread": _runnable(trace).spread, **checkpoint}


def _in_words(seed: int, weights: Path | None) -> str:
    """The same, as a source says it."""
    return f"weights of {weights.name}" if weights else f"random weights of seed {seed}"


@lru_cache(maxsize=1)
def _unsplit(trace: "Trace", seed: int, weights: Path | None, home: str) -> "Mapping[int, Any]":
    """What the whole model answers, by itself."""
    return unsplit(
        trace.graph,
        _runnable(trace),
        given_numbers(trace.graph, seed),
        _numbers(trace, seed, weights),
        home,
    )


def _secrets(partition: "Partition", runnable: "Runnable") -> Secrets:
    """What the policy of a partition keeps from its devices, and every tensor that carries it."""
    graph, secrets = partition.trace.graph, partition.rules.secrets
    untrusted = partition.setting.untrusted
    named = {str(secret): named_by(graph, secret) for secret in secrets if untrusted}
    derived = [str(secret) for secret in secrets if secret.derived]
    carried = carriers(graph, runnable.invocations, named, derived)
    there = partition.split.graph
    if isinstance(there, MaskedGraph) and carried:  # those of each secret, by what that allows
        covers = [
            (carriers(graph, runnable.invocations, {name: named[name]}, derived).keys(), allowed)
            for name, allowed in ((str(secret), secret.allow_masked) for secret in secrets)
        ]
        weak = seen_through(there, {t for its, _ in covers for t in its}, covers)
        behind = {t: one.plain for t, one in there.masks.items()} | dict(there.copies)
        carried |= {t: carried[behind[t]] for t in sorted(weak) if behind[t] in carried}
    return Secrets(untrusted, named, carried)


def _addresses(given: Sequence[str], accelerators: Sequence[str]) -> dict[str, tuple[str, int]]:
    """``gpu=10.0.0.2:7411`` as where a worker listens."""
    addresses: dict[str, tuple[str, int]] = {}
    for text in given:
        match = re.fullmatch(r"(.+)=(.+):(\d{1,5})", text)
        if match is None or int(match[3]) > 65535:
            raise InputError(f"--worker {text!r}: write DEVICE=HOST:PORT, as in gpu=10.0.0.2:7411")
        choose(match[1], accelerators, "--worker of")
        address = match[2], int(match[3])
        if match[1] in addresses or address in addresses.values():
            raise InputError(f"--worker {text!r}: each device has one worker, and each worker one")
        addresses[match[1]] = address
    if addresses and len(os.environ.get(TOKEN, "")) < LEAST_TOKEN:
        raise InputError(
            f"--worker: put the workers' token, {LEAST_TOKEN} characters or more, into {TOKEN}"
        )
    return addresses


def calibrate(verified: Sequence[Verification], folder: Path) -> tuple[str, ...]:
    """Write link, devices and packings as measured into a folder, for --link, --home, --accel, --pack.

    The link is that of the split with most calls. What a user must know of the fits comes back.
    """
    from costmodels.calibrate import fit, write_link
    from costmodels.fit_device import fit_device, write_device
    from cutedge.runtime.measured import measured_log

    folder.mkdir(parents=True, exist_ok=True)
    most = max(verified, key=lambda one: len(one.split.traffic.calls))
    framing = {"message": MESSAGE_BYTES, "tensor": TENSOR_BYTES}
    fitted = fit(*measured_log("the run", most.measured.calls, framing))
    write_link(fitted, folder / "link.toml")
    here: dict[str, list[Mapping[int, float]]] = {}
    for one in verified:  # what torch runs on one processor here is one device
        for name, seconds in one.measured.op_seconds.items():
            here.setdefault(one.measured.devices[name], []).append(seconds)
    graph = verified[0].trace.graph
    policies = ", ".join(one.split.policy for one in verified)
    for name, device in verified[0].measured.devices.items():
        about = f"{graph.meta.model} ({policies})"
        write_device(fit_device(graph, here[device]), about, folder / f"{name}.toml")
    write_packings([(one.split, one.measured, one.numbers) for one in verified], folder)
    return (
        *fitted.warnings,
        *(["link.toml: the seconds of packing are in it"] if most.packed is not None else []),
    )


def check_verify(
    policies: Sequence[str],
    addresses: Sequence[str],
    tls_ca: Path | None,
    options: Mapping[str, Any],
) -> list[str]:
    """What is to be said before anything runs; InputError for what cannot be understood."""
    check_words(policies, **options)
    named = {key: options[key] for key in ("machine", "home", "accel", "link", "memory")}
    remote = _addresses(addresses, machine_of(**named).accelerators)
    if tls_ca is not None:
        trust(tls_ca)
        return []
    return clear_text([host for host, _ in remote.values()], "--tls-ca")


def socket_link(machine: Mapping[str, Any], transport: Transport) -> dict[str, Any]:
    """The options of a machine, with the sockets of ``transport`` where they name no link."""
    named = machine["link"] or "@" in (machine["machine"] or "")
    return {**machine, "link": machine["link"] if named else [_SOCKETS[transport]]}

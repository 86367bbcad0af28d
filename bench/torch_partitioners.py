"""Torch's own partitioners beside cutedge's placements, on the same graphs.

Each graph goes to ``torch.fx`` with one node an op and with the sizes of all that the ops make and
hold. What a partitioner decides becomes a placement again, which is validated and recounted as any
other: calls, payload bytes, seconds of a run. Run it with ``make bench``; it prints and judges
nothing, and is the same each time but for the seconds that deciding takes.
"""

import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx
from torch.fx.experimental.accelerator_partitioner import Partitioner
from torch.fx.experimental.partitioner_utils import (
    Device,
    NodeLatency,
    PartitionerConfig,
    PartitionMode,
)
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.fx.passes.shape_prop import TensorMetadata

from costmodels.devices import load_device
from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from costmodels.roofline import time_ops
from partition.accounting import account
from partition.optimise import place
from partition.placement import Placement, validate
from partition.policy import apply_policy, free_ops, load_policy
from partition.run import compute_seconds
from partition.setting import Setting
from partition.stored import storages
from tracer.capture import capture
from tracer.graph import Kind, OpGraph
from tracer.presets import preset

MODEL, SEQ = "llama-3.2-1b", 1024
LAYERS = (1, 2, 4, 8, 16)
HOME, ACCELERATOR, LINK = "tee-tdx", "rtx-4090", "pcie4-x16"
POLICIES = ("offload-linear", "min-cut-nonlinear-home", "min-cut-norm-home", "fastest")
TIME_LIMIT = 45.0

# aot_based is told its partitions, and sparse_nn has devices for embeddings that are modules alone.
MODES = (PartitionMode.size_based, PartitionMode.kl_based, PartitionMode.cost_aware)

# Where one device can hold the whole graph, every mode puts it there without a search. So each of
# the two holds this share of it, by torch's count: all that is ever made, and what is stored.
MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Decision:
    """What a partitioner came to."""

    placement: Placement
    partitions: int | None = None
    """Into how many it cut the graph; None for a policy, which makes none."""


# --- to torch and back ----------------------------------------------------------------------------


def run(*reads: object) -> None:
    """What every node of an fx graph calls: no partitioner runs the graph."""


def fx_graph(graph: OpGraph) -> fx.GraphModule:
    """One node for each op that has a device, ``meta["op"]`` its id.

    A node reads the ops whose results must come to it. What lies on devices instead (parameters,
    constants, cached state) is a ``get_attr`` of its size.
    """
    made, root = fx.Graph(), torch.nn.Module()
    nodes: dict[int, fx.Node] = {}
    stored: dict[int, fx.Node] = {}
    for op in graph.ops:
        if op.kind is Kind.INPUT and not graph.is_everywhere(op.id):
            nodes[op.id] = made.placeholder(op.name)
    needed = storages(graph)
    for op in graph.ops:
        if op.id in nodes or graph.is_everywhere(op.id):
            continue
        for tensor in sorted(needed[op.id] - stored.keys()):
            size = graph.tensors[tensor].bytes
            root.register_buffer(f"stored_{tensor}", torch.empty(size, device="meta"))
            stored[tensor] = _sized(made.get_attr(f"stored_{tensor}"), size)
        reads = dict.fromkeys(nodes[t.op] for t in graph.flowing(op.id) if t.op is not None)
        if op.kind is Kind.OUTPUT:
            nodes[op.id] = made.output(tuple(reads))
        else:
            held = [stored[tensor] for tensor in sorted(needed[op.id])]
            nodes[op.id] = made.call_function(run, (*reads, *held))
    for number, node in nodes.items():
        node.meta["op"] = number
        _sized(node, sum(t.bytes for t in graph.outputs(number)))
    return fx.GraphModule(root, made)


def _sized(node: fx.Node, size: int) -> fx.Node:
    """The node as one that makes so many bytes."""
    node.meta["tensor_meta"] = TensorMetadata(
        torch.Size([size]), torch.uint8, False, (1,), None, False, {}
    )
    return node


def placement_of(graph: OpGraph, devices: Mapping[int, str]) -> Placement:
    """The ops on the devices of their partitions, those in no partition at home.

    Neither partitioner knows that home has the inputs and must have the output, and neither places
    constants and cached state: both are mended here, and nothing else.
    """
    chosen: list[str | None] = []
    for op in graph.ops:
        if graph.is_everywhere(op.id):
            chosen.append(None)
        elif op.kind in (Kind.INPUT, Kind.OUTPUT):
            chosen.append(HOME)
        else:
            chosen.append(devices.get(op.id, HOME))
    count = len(chosen)
    placement = Placement(HOME, tuple(chosen), (False,) * count, ("torch",) * count)
    validate(graph, placement)
    return placement


# --- who decides ----------------------------------------------------------------------------------


def by_policy(graph: OpGraph, name: str, setting: Setting) -> Decision:
    return Decision(place(graph, load_policy(name), setting).placement)


def supported_by(graph: OpGraph, name: str) -> frozenset[int]:
    """The ops that a policy lets onto the accelerator: those it has there, and those it frees."""
    policy = load_policy(name)
    fixed = apply_policy(graph, policy, home=HOME, accelerators=(ACCELERATOR,))
    there = (op for op, device in enumerate(fixed.devices) if device == ACCELERATOR)
    return free_ops(graph, policy).union(there)


def by_capability(graph: OpGraph, made: fx.GraphModule, supported: frozenset[int]) -> Decision:
    """The supported ops on the accelerator, also where a partition is a single op.

    The partitioner knows no bytes and leaves no supported op at home; what it chooses is which of
    them are a partition together.
    """

    class Supported(OperatorSupportBase):
        def is_node_supported(self, submodules: object, node: fx.Node) -> bool:
            return node.meta.get("op") in supported

    partitioner = CapabilityBasedPartitioner(made, Supported(), allows_single_node_partition=True)
    partitions = partitioner.propose_partitions()
    devices = {node.meta["op"]: ACCELERATOR for each in partitions for node in each.nodes}
    return Decision(placement_of(graph, devices), len(partitions))


def by_memory(
    graph: OpGraph, made: fx.GraphModule, mode: PartitionMode, setting: Setting
) -> Decision:
    """Two devices of equal memory, which hold the graph together and neither of them alone.

    Its model has one latency a node wherever it runs (here the accelerator's), one rate of the
    link, and nothing for a call; it cannot pin a node to a device, so it has no policy's rules.
    Raises RuntimeError where it ends without a device for each partition.
    """
    sizes = [n.meta["tensor_meta"].shape.numel() for n in made.graph.nodes if n.op != "output"]
    memory = int(MEMORY_SHARE * sum(sizes))
    gibibyte = setting.machine.links.of(ACCELERATOR).tensor_seconds(2**30, "send")
    assert gibibyte is not None
    taken = setting.times[ACCELERATOR].ops
    latency = {
        node: NodeLatency(0.0, taken[node.meta["op"]].seconds or 0.0)
        for node in made.graph.nodes
        if node.op == "call_function"
    }
    names = (HOME, ACCELERATOR)
    config = PartitionerConfig(
        [Device(name, memory, number) for number, name in enumerate(names)],
        mode,
        transfer_rate_bytes_per_sec=2**30 / gibibyte,
        node_to_latency_mapping=latency,
    )
    partitioner = Partitioner()
    partitioner.partition_graph(made, torch.nn.Module(), config)
    devices = {}
    for each in partitioner.partitions:
        if not each.logical_device_ids:
            raise RuntimeError(f"partition {each.partition_id} was given no device")
        for node in each.nodes & latency.keys():  # inputs and what is stored are in several
            devices[node.meta["op"]] = names[each.logical_device_ids[0]]
    return Decision(placement_of(graph, devices), len(partitioner.partitions))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where the block takes longer; it must be Python code, as torch's is."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"timed out after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Every second from then on: an exception inside a __del__ is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- side by side ---------------------------------------------------------------------------------


def figures(graph: OpGraph, setting: Setting, decision: Decision) -> str:
    """What the placement comes to, recounted from it alone."""
    traffic = account(graph, decision.placement, setting.machine.links)
    assert traffic.totals.seconds is not None
    run = traffic.totals.seconds + sum(compute_seconds(decision.placement, setting.times).values())
    partitions = "" if decision.partitions is None else f"{decision.partitions:,}"
    return (
        f"{partitions:>10} {len(traffic.calls):6,} "
        f"{traffic.totals.payload_bytes / 2**20:12,.4f} {run:9.4f}"
    )


def main() -> None:
    devices = [load_device(name) for name in (HOME, ACCELERATOR)]
    print(f"{MODEL}, prefill of {SEQ} tokens: {HOME} calls {ACCELERATOR} over {LINK}")
    timed_out: dict[str, int] = {}
    for layers in LAYERS:
        graph = annotate(
            capture(
                preset(MODEL), model=MODEL, seq=SEQ, overrides={"num_hidden_layers": layers}
            ).graph
        )
        times = {device.name: time_ops(graph, device) for device in devices}
        setting = Setting(Machine(HOME, (ACCELERATOR,), Links(load_link(LINK))), times=times)
        by_policy(graph, "fastest", setting)  # imports what the solvers need
        rows: list[tuple[str, Callable[[], Decision]]] = []
        for name in POLICIES:
            supported = supported_by(graph, name)
            rows += [
                (name, partial(by_policy, graph, name, setting)),
                ("  torch capability", partial(by_capability, graph, fx_graph(graph), supported)),
            ]
        for mode in MODES:
            rows.append(
                (f"torch {mode.name}", partial(by_memory, graph, fx_graph(graph), mode, setting))
            )
        print(
            f"\nlayers: {layers}, ops: {len(graph.ops):,}\n"
            f"{'decided by':24} {'seconds':>8} {'partitions':>10} {'calls':>6} {'payload MiB':>12} "
            f"{'run s':>9}"
        )
        for name, decide in rows:
            if name in timed_out:
                print(f"{name:24} not run: timed out at layers: {timed_out[name]}")
                continue
            gc.collect()  # what a trace leaves behind is no partitioner's work
            start = time.perf_counter()
            try:
                with within(TIME_LIMIT):
                    decision = decide()
            except TimeoutError as error:
                timed_out[name] = layers
                print(f"{name:24} {error}", flush=True)
            except RuntimeError as error:
                print(f"{name:24} {type(error).__name__}: {error}", flush=True)
            else:
                taken = time.perf_counter() - start
                print(f"{name:24} {taken:8.3f} {figures(graph, setting, decision)}", flush=True)


if __name__ == "__main__":
    main()

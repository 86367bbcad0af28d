"""How long the exact placements of a model of 126 layers take, solver by solver.

Three splits in bytes with the linears and matmuls on the accelerator, and one in time with nothing
but the norms pinned. Run it with ``make bench``; it prints and judges nothing.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from costmodels.flops import annotate
from partition.mincut import cut_value, fast_cut, network_of, reference_cut
from partition.problem import Problem, allowed_devices, payload_costs, recount
from partition.solve import solve
from tracer.capture import capture
from tracer.graph import Kind, OpGraph
from tracer.presets import preset

MODEL, SEQ = "llama-3.1-405b", 1024
HOME, ACCELERATOR = "tee", "gpu"
TIME_LIMIT = 30.0

# Round figures of no device in particular: what counts here is how long the solvers take.
HOME_FLOPS_PER_NS, ACCELERATOR_FLOPS_PER_NS = 1_000, 50_000
HOME_BYTES_PER_NS, ACCELERATOR_BYTES_PER_NS, LINK_BYTES_PER_NS = 50, 1_000, 10
CALL_BYTES, CALL_NS = 2**20, 100_000

Made = TypeVar("Made")


def timed(make: Callable[[], Made]) -> tuple[Made, float]:
    """What it makes, and the wall seconds."""
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


def in_bytes(graph: OpGraph, home: tuple[Kind, ...]) -> Problem:
    pins = {}
    for op in graph.ops:
        if op.kind in (Kind.LINEAR, Kind.MATMUL, Kind.EMBEDDING):
            pins[op.id] = ACCELERATOR
        elif op.kind in home:
            pins[op.id] = HOME
    return Problem(
        graph,
        HOME,
        (ACCELERATOR,),
        allowed_devices(graph, HOME, (ACCELERATOR,), pins),
        transfer_cost=payload_costs(graph, (HOME, ACCELERATOR)),
    )


def in_nanoseconds(graph: OpGraph) -> Problem:
    pins = {op.id: HOME for op in graph.ops if op.kind is Kind.NORM}
    costs = {}
    for op in graph.ops:
        moved = 0 if op.is_view else op.cost.read_bytes + op.cost.write_bytes
        for device, flops, size in (
            (HOME, HOME_FLOPS_PER_NS, HOME_BYTES_PER_NS),
            (ACCELERATOR, ACCELERATOR_FLOPS_PER_NS, ACCELERATOR_BYTES_PER_NS),
        ):
            costs[op.id, device] = max((op.cost.flops or 0) // flops, moved // size)
    payload = payload_costs(graph, (HOME, ACCELERATOR))
    return Problem(
        graph,
        HOME,
        (ACCELERATOR,),
        allowed_devices(graph, HOME, (ACCELERATOR,), pins),
        op_cost=costs,
        transfer_cost={key: size // LINK_BYTES_PER_NS for key, size in payload.items()},
    )


def main() -> None:
    graph = annotate(capture(preset(MODEL), model=MODEL, seq=SEQ).graph)
    print(
        f"{MODEL}, prefill of {SEQ} tokens: {len(graph.ops):,} ops, {len(graph.tensors):,} "
        f"tensors, {len(graph.edges):,} edges"
    )
    solve(in_bytes(graph, ()))  # imports what the solvers need
    problems = {
        "bytes, inputs and output at home": (in_bytes(graph, ()), CALL_BYTES),
        "bytes, norms too": (in_bytes(graph, (Kind.NORM,)), CALL_BYTES),
        "bytes, norms and softmax too": (in_bytes(graph, (Kind.NORM, Kind.SOFTMAX)), CALL_BYTES),
        "nanoseconds, norms at home": (in_nanoseconds(graph), CALL_NS),
    }
    for name, (problem, call_cost) in problems.items():
        free = sum(len(choice) > 1 for choice in problem.allowed)
        network, building = timed(lambda problem=problem: network_of(problem))
        side, fast = timed(lambda network=network: fast_cut(network))
        same, reference = timed(lambda network=network: reference_cut(network))
        called = replace(problem, call_cost={ACCELERATOR: call_cost})
        found = solve(called, time_limit=TIME_LIMIT, solver="program")
        print(
            f"\n{name}: {free:,} free ops, network of {network.nodes:,} nodes and "
            f"{len(network.capacity):,} arcs ({building:.3f} s to build)\n"
            f"  fast cut       {fast:7.3f} s  {cut_value(network, side):,}\n"
            f"  networkx       {reference:7.3f} s  {'the same' if same == side else 'DIFFERENT'}\n"
            f"  with calls     {found.seconds:7.3f} s  {found.objective:,} at {call_cost:,} a call,"
            f" gap {found.gap:.2g}, {'proven' if found.proven else 'not proven'}, "
            f"{recount(called, found.placement).calls} calls"
        )


if __name__ == "__main__":
    main()

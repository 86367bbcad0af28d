"""The best placement on two devices as a minimum cut: exact where only ops, transfers and storages
cost, a transfer is paid once (residency ``run``), and nothing limits calls or memory.

Home is the source side. What is paid when an op, a reader or a storage is on one side is an arc
that leads from the source side to the sink side exactly then:

- an op that costs more at home: op -> sink; more on the accelerator: source -> op;
- a tensor that is sent once, however many read it: maker -> a -> each reader;
- and received once: each reader -> b -> maker;
- a storage on the accelerator: source -> w -> each op that needs it; at home: op -> w -> sink;
- a parameter that is sent once: source -> p -> each op that reads it, or where it may lie on the
  accelerator for one op, that op -> p: with several such ops it is no cut any more.

Ops with one allowed device are merged into the terminal that stands for it, the ops of a unit into
one node.

Many cuts may be minimal. Both solvers return the one with the most ops at home: the ops from which
the sink cannot be reached in the residual network. It is the same for every maximum flow.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from partition.placement import PlacementError
from partition.problem import Problem, candidates
from partition.stored import lying_with, readers_of_sent, state_readers, storages
from tracer.graph import Kind

if TYPE_CHECKING:
    import networkx as nx

HOME, ACCELERATOR = 0, 1
"""The nodes of the network that are the source and the sink."""

_LARGEST_FLOW = 2**30 - 1
"""scipy's maximum flow computes in 32 bits with sign and silently wraps; a residual capacity may
reach the sum of two."""

_LARGEST_CAPACITY = 2**61 - 1
"""The same for the 64 bits of the arrays."""


@dataclass(frozen=True, slots=True)
class Network:
    """A problem as a flow network: the cost of a placement is ``base`` plus the cut's capacity."""

    node: Sequence[int | None]
    """By op: ``HOME``, ``ACCELERATOR`` or the number of its unit; None for ops without a device."""
    nodes: int
    """How many there are, the two terminals and the auxiliary ones among them."""
    capacity: Mapping[tuple[int, int], int]
    """(tail, head) -> capacity, in the problem's unit."""
    base: int
    """What every placement pays."""


def is_cut(problem: Problem) -> bool:
    """Whether the minimum cut is the whole answer to a problem."""
    return (
        len(problem.accelerators) == 1
        and problem.residency == "run"
        and problem.most_calls is None
        and not any(problem.call_cost.values())
        and not problem.memory_bytes
        and not (problem.streams and (problem.storage_cost or _may_lie(problem)))
    )


def _may_lie(problem: Problem) -> bool:
    """Whether a parameter may be sent, or not be for one of several ops with it on the accelerator."""
    choices, (accelerator,) = candidates(problem), problem.accelerators
    return any(
        all(problem.home in choices[op] for op in readers.lying)
        and sum(accelerator in choices[op] for op in readers.lying) > 1
        for readers in readers_of_sent(problem.graph, problem.streams).values()
    )


def network_of(problem: Problem, *, forward: bool = False) -> Network:
    """The network of a problem with one accelerator; its limits and calls are left out.

    ``forward`` makes it dearer than all else that an op at home, other than the output, waits for
    one on the accelerator: what comes home are results. Raises PlacementError for several
    accelerators.
    """
    if len(problem.accelerators) != 1:
        raise PlacementError(f"a minimum cut has two sides, not {len(problem.devices)}")
    graph, home, accelerator = problem.graph, problem.home, problem.accelerators[0]
    node: list[int | None] = []
    nodes = 2
    for op, choice in enumerate(candidates(problem)):
        if len(choice) == 1:
            node.append(HOME if choice[0] == home else ACCELERATOR)
        elif choice and problem.units and problem.units[op] != op:
            node.append(node[problem.units[op]])
        elif choice:
            node.append(nodes)
            nodes += 1
        elif graph.is_everywhere(op):
            node.append(None)
        else:
            raise PlacementError(f"op {op} ({graph.ops[op].name}) may run on no device")

    def of(ops: Collection[int]) -> set[int]:
        return {number for op in ops if (number := node[op]) is not None}

    # (from nodes, to nodes) -> what is paid once when one of the first is at home and one of the
    # second on the accelerator. One side is always a single node.
    paid: dict[tuple[frozenset[int], frozenset[int]], int] = defaultdict(int)

    at_home, away = frozenset({HOME}), frozenset({ACCELERATOR})
    for op, number in enumerate(node):
        if number is not None:
            one = frozenset({number})
            paid[one, away] += problem.op_cost.get((op, home), 0)
            paid[at_home, one] += problem.op_cost.get((op, accelerator), 0)
    renewed = state_readers(graph)
    for tensor in graph.tensors:
        if tensor.op is not None and graph.crosses(tensor):
            maker = frozenset(of([tensor.op]))
            readers = frozenset(of([*graph.needed_by(tensor.id), *renewed.get(tensor.id, ())]))
            sent, received = (tensor.id, home, accelerator), (tensor.id, accelerator, home)
            paid[maker, readers] += problem.transfer_cost.get(sent, 0)
            paid[readers, maker] += problem.transfer_cost.get(received, 0)
    for device, needed in (
        (home, storages(graph)),
        (accelerator, lying_with(graph, problem.streams)),
    ):
        needing: dict[int, set[int]] = defaultdict(set)
        for op, stored in enumerate(needed):
            for storage in stored:
                needing[storage].update(of([op]))
        for storage, ops in needing.items():
            ends = (frozenset(ops), away) if device == home else (at_home, frozenset(ops))
            paid[ends] += problem.storage_cost.get((storage, device), 0)
    for parameter, read in readers_of_sent(graph, problem.streams).items():
        lying = of(read.lying) - {HOME}
        if ACCELERATOR not in lying and len(lying) < 2:
            key = frozenset(lying or {HOME}), frozenset(of(read.sent))
            paid[key] += problem.transfer_cost.get((parameter, home, accelerator), 0)
    if forward:
        never = 2 * sum(paid.values()) or 1
        for reader in graph.ops:
            if reader.kind is not Kind.OUTPUT:
                makers = {t.op for t in graph.flowing(reader.id) if t.op is not None}
                for source in makers:
                    paid[frozenset(of([reader.id])), frozenset(of([source]))] += never
    return _network(node, nodes, paid)


def _network(
    node: Sequence[int | None],
    nodes: int,
    paid: Mapping[tuple[frozenset[int], frozenset[int]], int],
) -> Network:
    """Arcs for what is paid once, with an auxiliary node where one side is several nodes."""
    capacity: dict[tuple[int, int], int] = defaultdict(int)
    base = 0
    for (tails, heads), cost in paid.items():
        # What is certain to be on its side decides for all beside it; what is certain to be on the
        # other side, and a node facing itself, decides nothing.
        tails = frozenset({HOME}) if HOME in tails else tails - {ACCELERATOR}
        heads = frozenset({ACCELERATOR}) if ACCELERATOR in heads else heads - {HOME}
        if len(tails) == 1:
            heads -= tails
        elif len(heads) == 1:
            tails -= heads
        if not cost or not tails or not heads:
            continue
        if HOME in tails and ACCELERATOR in heads:
            base += cost
        elif len(tails) == len(heads) == 1:
            capacity[min(tails), min(heads)] += cost
        else:
            # Infinity need be no more than the cost: who pays it once has nothing left to save.
            for tail in tails:
                capacity[tail, nodes] += cost
            for head in heads:
                capacity[nodes, head] += cost
            nodes += 1
    return Network(tuple(node), nodes, dict(capacity), base)


def cut_graph(network: Network) -> "nx.DiGraph[int]":
    """The network for networkx, from node ``HOME`` to node ``ACCELERATOR``."""
    import networkx as nx

    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(network.nodes))
    for (tail, head), capacity in network.capacity.items():
        graph.add_edge(tail, head, capacity=capacity)
    return graph


def reference_cut(network: Network) -> set[int]:
    """The nodes on the home side of the minimum cut with the most of them, by networkx."""
    import networkx as nx
    from networkx.algorithms.flow import preflow_push

    residual = preflow_push(cut_graph(network), HOME, ACCELERATOR)
    open_arcs: Any = nx.DiGraph()
    open_arcs.add_nodes_from(residual)
    for tail, head, arc in residual.edges(data=True):
        if arc["flow"] < arc["capacity"]:
            open_arcs.add_edge(tail, head)
    return set(residual) - nx.ancestors(open_arcs, ACCELERATOR) - {ACCELERATOR}


def fast_cut(network: Network) -> set[int]:
    """The nodes on the home side of the same cut, by scipy.

    scipy's flow has 32 bits. Larger capacities are solved from their high bits down: a maximum flow
    of the capacities shifted right, shifted back, is a flow of the capacities themselves, and what
    can be added to it is less than one unit of the last shift an arc. So each round is exact with
    a smaller shift, the last with none. Capacities that do not fit into 64 bits when divided by
    their greatest common divisor go to networkx.
    """
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    if not network.capacity:
        return set(range(network.nodes)) - {ACCELERATOR}
    unit = gcd(*network.capacity.values())
    if max(network.capacity.values()) // unit > _LARGEST_CAPACITY:
        return reference_cut(network)
    ends = np.array(list(network.capacity), dtype=np.int64)
    values = np.array([c // unit for c in network.capacity.values()], dtype=np.int64)
    shape = (network.nodes, network.nodes)
    residual: Any = csr_array((values, (ends[:, 0], ends[:, 1])), shape=shape)
    largest = int(values.max())
    while True:
        shift = max(0, largest.bit_length() - _LARGEST_FLOW.bit_length())
        scaled = residual.copy()
        scaled.data = (np.minimum(residual.data, largest) >> shift).astype(np.int32)
        scaled.eliminate_zeros()
        flow = maximum_flow(scaled, HOME, ACCELERATOR).flow.astype(np.int64)
        flow.data <<= shift
        residual = residual - flow
        residual.eliminate_zeros()
        if shift == 0:
            break
        largest = min(largest, residual.nnz << shift)
    away = breadth_first_order(residual.T.tocsr(), ACCELERATOR, return_predecessors=False)
    return set(range(network.nodes)) - set(away.tolist())


def cut_devices(problem: Problem, network: Network, home_side: set[int]) -> list[str | None]:
    """By op: the device of the side that its node is on."""
    return [
        None if number is None else problem.home if number in home_side else problem.accelerators[0]
        for number in network.node
    ]


def cut_value(network: Network, home_side: set[int]) -> int:
    """What the placement of a cut costs: its capacity and the base."""
    return network.base + sum(
        capacity
        for (tail, head), capacity in network.capacity.items()
        if tail in home_side and head not in home_side
    )

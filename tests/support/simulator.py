"""A run of a placed graph, step by step with what each device holds: slow, from the rules alone."""

from collections.abc import Callable

from partition.accounting import Traffic
from partition.placement import Placement
from tests.support.oracle import moving_inputs
from tracer.graph import OpGraph

What = tuple[int, str, int]
"""(request, ``op`` or ``transfer``, its id)"""


def simulate(
    graph: OpGraph,
    where: Placement,
    traffic: Traffic,
    seconds: Callable[[int], float],
    residency: str,
    requests: int = 1,
    concurrency: int | None = None,
    *,
    synchronous: bool = False,
) -> dict[What, tuple[float, float]]:
    """When each op and each transfer starts and ends, if whatever is free takes what can go first.

    ``seconds`` is of an op. All links take ``concurrency`` messages, both directions together, or one
    in each; a ``synchronous`` one holds up the device that sends.
    """
    home = where.home
    call_of = {op: call for call in traffic.calls for op in call.ops}
    step: dict[int, int] = {}
    for op in graph.ops:
        if op.id in call_of:
            step[op.id] = call_of[op.id].step
        elif where.devices[op.id] == home:
            makers = [graph.tensors[t].op for t in moving_inputs(graph, op.id)]
            step[op.id] = max((step[maker] for maker in makers), default=0)

    work: dict[What, tuple[list[str], float]] = {}  # -> what it occupies, and its seconds
    room: dict[str, int] = {}  # of what takes more than one at a time
    rank: dict[What, tuple[int, ...]] = {}
    for request in range(requests):
        for op, at in step.items():
            what = (request, "op", op)
            device = where.devices[op]
            work[what] = ([device], seconds(op))
            call = call_of.get(op)
            inside = (0, call.id, 1) if call else (1, 0, 0)
            rank[what] = (request, at, *inside, op)
        for move in traffic.transfers:
            what = (request, "transfer", move.id)
            ends = [move.src_device, move.dst_device]
            link = " to ".join(ends if concurrency is None else sorted(ends))
            room[link] = concurrency or 1
            work[what] = ([link, ends[0]] if synchronous else [link], move.seconds)
            part = 2 if move.direction == "receive" else 0
            rank[what] = (request, traffic.calls[move.call].step, 0, move.call, part, move.id)

    held: dict[tuple[int, str], set[int]] = {}
    now_calling: dict[tuple[int, str], int] = {}  # -> the position among the accelerator's calls
    calls: dict[str, list[int]] = {}
    for call in traffic.calls:
        calls.setdefault(call.device, []).append(call.id)
    when: dict[What, tuple[float, float]] = {}
    over: set[What] = set()
    now = 0.0

    def is_open(request: int, call: int) -> bool:
        """Whether a call has begun or may begin, where an accelerator forgets between calls."""
        device = traffic.calls[call].device
        if residency == "run":
            return True
        return calls[device][now_calling.get((request, device), 0)] == call

    def can_go(what: What) -> bool:
        request, kind, number = what
        if kind == "op":
            device = where.devices[number]
            if number in call_of and not is_open(request, call_of[number].id):
                return False
            return moving_inputs(graph, number) <= held.get((request, device), set())
        move = traffic.transfers[number]
        if not is_open(request, move.call):
            return False
        before = [
            (request, "transfer", other.id)
            for other in traffic.transfers[:number]
            if (other.call, other.src_device, other.dst_device)
            == (move.call, move.src_device, move.dst_device)
        ]
        source = held.get((request, move.src_device), set())
        return move.tensor.id in source and over.issuperset(before)

    def end(what: What) -> None:
        request, kind, number = what
        over.add(what)
        if kind == "op":
            made = {t.id for t in graph.tensors if t.op == number}
            held.setdefault((request, where.devices[number]), set()).update(made)
            call = call_of.get(number)
        else:
            move = traffic.transfers[number]
            held.setdefault((request, move.dst_device), set()).add(move.tensor.id)
            call = traffic.calls[move.call]
        if residency == "call" and call:
            parts = {(request, "op", op) for op in call.ops}
            parts |= {(request, "transfer", t.id) for t in traffic.transfers if t.call == call.id}
            if parts <= over:
                held[request, call.device] = set()
                now_calling[request, call.device] = calls[call.device].index(call.id) + 1

    while len(over) < len(work):
        for what, (_, ends) in list(when.items()):
            if ends == now and what not in over:
                end(what)
        while instant := [w for w in work if w not in when and work[w][1] == 0 and can_go(w)]:
            for what in instant:
                when[what] = (now, now)
                end(what)
        for what in sorted(work, key=lambda w: rank[w]):
            used = [each for other in when if other not in over for each in work[other][0]]
            if what in when or not can_go(what):
                continue
            if all(used.count(each) < room.get(each, 1) for each in work[what][0]):
                when[what] = (now, now + work[what][1])
        running = [ends for what, (_, ends) in when.items() if what not in over]
        assert running or len(over) == len(work), "nothing can go on"
        now = min(running, default=now)
    return when

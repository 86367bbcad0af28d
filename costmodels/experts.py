"""Mixtures of experts: whose weights are read, which depends on the tokens.

It is assumed that each token goes to k of E experts, uniformly and independently. Code that runs
all experts on every token is counted as it runs; ``mixed`` says what it would be if it routed.
"""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from operator import mul
from typing import Any

from tracer.graph import Op, OpGraph, Role, Tensor
from tracer.kinds import base_name

GROUPED = frozenset({"_grouped_mm", "grouped_mm_fallback"})
"""Products of rows with one matrix of a stack each."""

STATE = (Role.PARAMETER, Role.BUFFER)
_OF_ROWS = frozenset({"embedding", "index", "index_select"})
"""Those that take whole rows of what they read."""
_CHOOSE = frozenset({"topk", "max", "argmax", "sort", "argsort"})
_PASS_ON = frozenset({"to", "_to_copy", "histc", "cumsum"})
"""What keeps the experts' numbers or counts them, also where those are written as floats."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Rows that meet one expert of a stack each, where values decide which."""

    stack: Tensor
    """The weights [experts, ...]."""
    stored_bytes: int
    """What they take in memory."""
    rows: int
    """Pairs of a token and an expert that it goes to."""
    chosen: int | None
    """How many experts a token goes to; None where the graph does not show it."""
    choices: int
    """What it chooses among: the experts, and more where a choice may be none of them."""

    @property
    def share(self) -> Fraction:
        """The part of the stack that one token meets, all of it where that is not shown."""
        return Fraction(1) if self.chosen is None else Fraction(self.chosen, self.choices)

    @property
    def experts_read(self) -> Decimal:
        """Distinct experts that some row meets: how many to expect, else how many at most."""
        experts = self.stack.shape[0]
        if self.chosen is None:
            return Decimal(min(experts, self.rows))
        return expected_experts(self.chosen, experts, self.choices, self.rows // self.chosen)

    @property
    def bytes_read(self) -> int:
        """Of the stack, to the nearest byte."""
        return round(self.experts_read * self.stored_bytes / self.stack.shape[0])

    @property
    def assumption(self) -> str:
        """What ``experts_read`` rests on."""
        experts = self.stack.shape[0]
        if self.chosen is None:
            return (
                "how tokens choose their experts is not shown: at most one expert a row, "
                f"{self.experts_read} of {experts} experts' weights read"
            )
        none = self.choices - experts
        among = f"{experts} experts" + (f" and {none} choices of none" if none else "")
        return (
            f"each token goes to {self.chosen} of {among}, uniformly and independently: "
            f"{self.experts_read:.1f} experts' weights read on average"
        )


def expected_experts(chosen: int, experts: int, choices: int, tokens: int) -> Decimal:
    """The expected number of distinct experts that ``tokens`` reach.

    Each token goes to ``chosen`` different ones of ``choices``, uniformly and independently, of
    which ``experts`` have weights: one of these is missed by a token with probability
    1 - chosen/choices, and by all with that to the power of ``tokens``. Decimal, so that a table
    is the same on every machine.
    """
    return experts * (1 - (1 - Decimal(chosen) / choices) ** tokens)


def routing_of(graph: OpGraph, op: Op) -> Routing | None:
    """What an op reads of a stack of experts; None for an op that reads all it is given.

    A grouped product of rows [m, k] and a stack [experts, k, n] (or of a stack and columns), and a
    gather from parameters by what a router chose. A product with the whole stack, as of a model
    that runs every expert on every token, does not route.
    """
    found = routed(graph, op)
    return None if found is None else route(graph, *found)


def route(graph: OpGraph, stack: Tensor, rows: int, tokens: int, choices: int) -> Routing:
    """The routing of ``routed``, in numbers."""
    choices = max(choices, stack.shape[0])
    shown = tokens > 0 and rows % tokens == 0 and 0 < rows // tokens <= choices
    stored = min(stack.bytes, graph.storage(stack).bytes)
    return Routing(stack, stored, rows, rows // tokens if shown else None, choices)


def routed(graph: OpGraph, op: Op) -> tuple[Tensor, Any, Any, Any] | None:
    """(stack, rows, tokens, choices of each token) of an op as ``routing_of`` takes it.

    Tokens and choices are 0 where what chose is not shown. All but the stack are formulas where
    the graph's sizes are.
    """
    name, inputs = base_name(op.target), graph.inputs(op.id)
    if name not in GROUPED and name not in _OF_ROWS:  # nearly all: at once
        return None
    ranks = [len(t.shape) for t in inputs]
    if name in GROUPED and ranks[:2] in ([2, 3], [3, 2]) and len(inputs) > 2:
        left = ranks[0] == 2  # rows are split among the experts, else columns are
        split, stack = inputs[:2] if left else (inputs[1], inputs[0])
        rows = split.shape[0 if left else 1]
        chooser = _chooser(graph, inputs[2])
    elif name in _OF_ROWS and len(inputs) == 2 and graph.storage(inputs[0]).role in STATE:
        stack, index = inputs
        rows = index.numel
        chooser = _chooser(graph, index)
        if chooser is None or graph.outputs(op.id)[0].shape != index.shape + stack.shape[1:]:
            return None  # a look-up by what the user asks for, or along another axis
    else:
        return None
    return stack, rows, *(chooser or (0, 0))


def _chooser(graph: OpGraph, index: Tensor) -> tuple[int, int] | None:
    """(tokens, choices of each) of the scores that integers come from, None where that is unclear.

    Scores are floats [..., choices]; a top-k or a maximum along the last axis makes integers of
    them. What comes after (sorting, counting, reshaping the experts' numbers) is followed back to
    the nearest choice: the last one, where a router narrows its choice step by step. A table that
    has the experts of each token of the vocabulary chooses too, among 0: how many is not shown.
    """
    front = [index]
    for tensor in front:  # breadth first: it grows
        if tensor.op is None:
            continue
        op, reads = graph.ops[tensor.op], graph.inputs(tensor.op)
        scores = [t for t in reads if graph.is_float(t.dtype)]
        if _is_table(graph, op):
            return reduce(mul, tensor.shape[:-1], 1), 0  # as many as there are experts
        if not scores or op.is_view or base_name(op.target) in _PASS_ON:
            front += [t for t in reads if t not in front]
            continue
        *tokens, choices = scores[0].shape or (0,)
        if base_name(op.target) in _CHOOSE and tensor.shape[: len(tokens)] == tuple(tokens):
            return reduce(mul, tokens, 1), choices
        return None
    return None


def _is_table(graph: OpGraph, op: Op) -> bool:
    """Whether an op takes rows of whole numbers that the model keeps."""
    if base_name(op.target) not in _OF_ROWS:
        return False
    table = graph.inputs(op.id)[0]
    kept = graph.storage(table).role is Role.BUFFER
    return kept and len(table.shape) == 2 and not graph.is_float(table.dtype)


@dataclass(frozen=True, slots=True)
class Mixing:
    """A product of every token with every expert of a stack, though each goes to a few."""

    stack: Tensor
    """The weights [experts, ...]."""
    chosen: int
    """How many experts a token goes to: the others are run and count for nothing."""

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.stack.shape[0]

    @property
    def share(self) -> Fraction:
        """The part of the work, and of the stack, that is of a token's own experts."""
        return Fraction(self.chosen, self.experts)


def mixed(graph: OpGraph) -> dict[int, Mixing]:
    """Id of an op -> what it mixes: products with a whole stack [experts, k, n] in a layer where
    scores [tokens, experts] are chosen among for just as many tokens as each expert is run on."""
    chosen: dict[tuple[int | None, int, int], list[Op]] = {}
    for op in graph.ops:
        if base_name(op.target) not in _CHOOSE:
            continue
        scores = graph.inputs(op.id)[:1]
        if scores and graph.is_float(scores[0].dtype):
            *tokens, choices = scores[0].shape or (0,)
            chosen.setdefault((op.layer, choices, reduce(mul, tokens, 1)), []).append(op)
    found: dict[int, Mixing] = {}
    for op in graph.ops if chosen else ():
        if base_name(op.target) not in ("bmm", "matmul", "baddbmm"):
            continue
        made = graph.outputs(op.id)[0]
        if len(made.shape) != 3:
            continue
        experts, rows = made.shape[:2]
        choosing = chosen.get((op.layer, experts, rows), [])
        if experts < 2 or not choosing:
            continue
        stacks = [t for t in graph.inputs(op.id) if _is_stack(graph, t)]
        if len(stacks) != 1 or stacks[0].shape[0] != experts:
            continue
        if best := [o for o in choosing if base_name(o.target) == "topk"][-1:]:
            few = graph.outputs(best[0].id)[0].shape[-1]
        else:  # the best, then the best of the others
            few = len(choosing)
        if 0 < few < experts:
            found[op.id] = Mixing(stacks[0], few)
    return found


def _is_stack(graph: OpGraph, tensor: Tensor) -> bool:
    return len(tensor.shape) == 3 and graph.storage(tensor).role is Role.PARAMETER


def active_parameters(graph: OpGraph) -> int:
    """The parameters that take part in the arithmetic of one token, as they are published: all that
    are read but the experts that it goes past, and tables of which it looks up a row.

    An embedding that is tied to the head counts, since the head multiplies with all of it. Of
    experts that code runs on every token those count that a token goes to; those that are not shown
    to be chosen count whole.
    """
    share: dict[int, int | Fraction] = {}  # storage -> the part of it that a token meets
    mixing = mixed(graph)
    for op in reversed(_reading_parameters(graph)):
        routing = routing_of(graph, op) or mixing.get(op.id)
        looked_up = _looked_up(graph, op)
        whole: int | Fraction = 1
        if op.is_view or op.is_constant:  # as much as of what it makes, which is read later
            made = (share.get(graph.storage(t).id, 0) for t in graph.outputs(op.id))
            whole = max(made, default=1)
        for tensor in graph.inputs(op.id):
            part = 0 if tensor is looked_up else whole
            if routing and tensor is routing.stack:
                part = routing.share
            stored = graph.storage(tensor).id
            if part > share.get(stored, 0):
                share[stored] = part
    owners = [t for t in graph.tensors if t.role is Role.PARAMETER and t.alias_of is None]
    return graph.meta.parameters - round(sum(t.numel * (1 - share.get(t.id, 0)) for t in owners))


def _reading_parameters(graph: OpGraph) -> list[Op]:
    """The ops that read a parameter, or a view or a constant of one, in execution order."""
    found: set[int] = set()
    front = [t for t in graph.tensors if graph.storage(t).role is Role.PARAMETER]
    for tensor in front:  # it grows
        for number in graph.readers(tensor.id):
            op = graph.ops[number]
            if number not in found and (op.is_view or op.is_constant):
                front += graph.outputs(number)
            found.add(number)
    return [graph.ops[number] for number in sorted(found)]


def _looked_up(graph: OpGraph, op: Op) -> Tensor | None:
    """The parameter that an op takes whole rows of, if it does."""
    inputs = graph.inputs(op.id)
    if base_name(op.target) not in _OF_ROWS or len(inputs) < 2:
        return None
    return inputs[0] if graph.storage(inputs[0]).role is Role.PARAMETER else None


def assumptions(graph: OpGraph) -> tuple[str, ...]:
    """What the costs of an annotated graph assume, each once."""
    return tuple(dict.fromkeys(op.cost.assumption for op in graph.ops if op.cost.assumption))

"""Graphs of single calls, to ask what each costs."""

import json
from collections.abc import Sequence
from typing import Any

from costmodels.flops import annotate
from tracer.formula import Formula, const, var
from tracer.graph import Kind, Op, OpCost, OpGraph, Role, TraceMeta
from tracer.program import Node, Program, Value, build_graph

SEQ = var("seq")
Size = int | Formula


class Calls:
    """A graph of single calls on inputs and parameters, annotated: ``cost`` of each."""

    def __init__(self, seq: int = 6, *, symbolic: bool = True) -> None:
        self.program = Program()
        self.meta = TraceMeta(
            model="hand",
            phase="prefill",
            batch=1,
            seq=seq,
            past=0,
            dtype="float32",
            attn="eager",
            logits="all",
            symbolic=("seq",) if symbolic else (),
            parameters=0,
        )

    def input(self, *shape: Size, dtype: str = "float32") -> int:
        name = f"in_{len(self.program.values)}"
        value = self._value(shape, dtype, name, Role.INPUT)
        self.program.nodes.append(Node("input", (), (value,), "", ""))
        return value

    def state(self, *shape: Size, role: Role = Role.PARAMETER, dtype: str = "float32") -> int:
        return self._value(shape, dtype, f"state_{len(self.program.values)}", role)

    def call(
        self, target: str, *args: int, out: Sequence[Size], dtype: str = "float32", **told: Any
    ) -> int:
        """``told`` is what the op is told beside its tensors."""
        made = self._value(out, dtype, "", Role.ACTIVATION)
        arguments = tuple((name, json.dumps(value)) for name, value in told.items())
        self.program.nodes.append(Node(target, args, (made,), "", "", arguments=arguments))
        return made

    def graph(self) -> OpGraph:
        self.program.nodes.append(Node("output", (len(self.program.values) - 1,), (), "", ""))
        return annotate(build_graph(self.program, self.meta))

    def ops(self) -> list[Op]:
        """The calls, without the inputs and the output."""
        return [op for op in self.graph().ops if op.kind not in (Kind.INPUT, Kind.OUTPUT)]

    def cost(self) -> OpCost:
        return self.ops()[-1].cost

    def _value(self, shape: Sequence[Size], dtype: str, name: str, role: Role) -> int:
        sizes = tuple(s if isinstance(s, Formula) else const(s) for s in shape)
        return self.program.add(Value(dtype, sizes, name, role))

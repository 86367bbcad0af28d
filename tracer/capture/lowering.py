"""The exported graph as a program: noise gone, aliases known, sizes as formulas."""

import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from math import prod
from string import ascii_letters
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from tracer.capture.arguments import Counted, arguments, draws, op_name, written
from tracer.capture.errors import Untraceable, place, within
from tracer.capture.extents import find_extents
from tracer.capture.invocations import invocation
from tracer.capture.kv_cache import State
from tracer.capture.memory import Held, held, layout_of, memory_of, plain_views
from tracer.capture.runs import MetaRun
from tracer.capture.senses import Axis
from tracer.formula import Formula, const, maximum, minimum, var
from tracer.graph import Role
from tracer.program import Invocation, Layout, Node, Program, Sharing, Value
from tracer.stages import check_time

_einsum = torch.einsum

_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def lower(
    exported: ExportedProgram,
    module: torch.nn.Module,
    sizes: Mapping[str, int],
    *,
    rename: Callable[[str], str] = lambda path: path,
    inputs: Mapping[str, Sequence[Axis]] = MappingProxyType({"input_ids": ("batch", "seq")}),
    states: Sequence[State] = (),
    returned: int = 0,
    conditions: Sequence[str] = (),
    samples: Sequence[Mapping[str, int]] = (),
    runnable: bool = False,
    fixed: Mapping[Any, int] = MappingProxyType({}),
) -> Program:
    """The program of an exported module, at any size.

    ``sizes`` are those of the trace: what shares memory with what is taken from a run of the graph
    there, since a reshape may have to copy at one size and not at another. ``rename`` turns what
    the export calls modules and parameters into their names in ``module``. ``inputs`` are the
    tensors that the export takes, in order, ``states`` all that ``module`` keeps between steps, and
    the last ``returned`` of its results are states. Raises Untraceable for a size that no
    formula can say. ``conditions`` go into the program as they are; ``samples`` are small sizes at
    which the export is right, to see what masks hide. A ``runnable`` program knows how each node is
    carried out at ``sizes``. ``fixed`` are symbols of torch's that are numbers here.
    """
    program = _Lowering(
        exported, module, sizes, rename, inputs, states, returned, samples, runnable, fixed
    ).program
    program.conditions = tuple(conditions)
    return program


class _Lowering:
    def __init__(
        self,
        exported: ExportedProgram,
        module: torch.nn.Module,
        sizes: Mapping[str, int],
        rename: Callable[[str], str],
        inputs: Mapping[str, Sequence[Axis]],
        states: Sequence[State],
        returned: int,
        samples: Sequence[Mapping[str, int]],
        runnable: bool,
        fixed: Mapping[Any, int],
    ) -> None:
        self.rename = rename
        self.runnable = runnable
        self.program = Program()
        self.value_of: dict[torch.fx.Node, int | tuple[int, ...]] = {}
        self.owner: dict[int, int] = {}  # storage -> the value that owns it
        self.names: dict[str, int] = {}  # parameter or buffer name -> value
        self.states: dict[str, int] = {}  # name of a state -> value
        self.layouts: dict[int, Layout] = {}  # a view that is held beside its owner -> where it is
        self.sizes: dict[Any, Formula] = {symbol: const(n) for symbol, n in fixed.items()}
        self._add_state(module)
        signature = exported.graph_signature
        self.lifted = dict(signature.inputs_to_lifted_tensor_constants)
        """Placeholder -> its name there, of the numbers that are nobody's parameter or buffer."""
        state = {
            **{k: rename(v) for k, v in signature.inputs_to_parameters.items()},
            **{k: rename(v) for k, v in signature.inputs_to_buffers.items()},
            **self._views(exported, module),
            **self._numbers(),
        }
        nodes = list(exported.graph.nodes)
        self.position = {node: number for number, node in enumerate(nodes)}
        self.inputs = dict(
            zip(
                (
                    n
                    for n in nodes
                    if n.op == "placeholder" and n.name not in state and self._is_tensor(n)
                ),
                inputs,
                strict=True,
            )
        )
        self._name_sizes(inputs)
        for kept in states:
            shape = tuple(const(a) if isinstance(a, int) else var(a) for a in kept.axes)
            dtype = str(kept.dtype).removeprefix("torch.")
            value = Value(dtype, shape, kept.name, Role.KV_CACHE)
            self.states[kept.name] = self.program.add(value)
        for node in nodes:
            made = _tensors(node.meta.get("val"))
            by_data = any(free_unbacked_symbols(t.shape) for t in made)
            if by_data or any(map(torch._C._functorch.is_batchedtensor, made)):
                path, kind = _module(node)
                where = within(rename(path), kind) + place(node.meta.get("stack_trace", ""))
                why = (
                    "its sizes depend on the data"
                    if by_data
                    else "an export hides what a vmap does"
                )
                raise Untraceable(why, where, by_data=by_data)
        self.real = self._run(exported, sizes)
        self.extents, unknown = find_extents(
            nodes, _data(exported, nodes, self.inputs), self._written(nodes), self._size, samples
        )
        self.program.masks_unknown = tuple(dict.fromkeys(unknown.values()))
        for node in nodes:
            match node.op:
                case "placeholder":
                    self._placeholder(node, state.get(node.name))
                case "call_function":
                    self._call(node)
                case "output":
                    self._output(node, returned)
        self._forget_unread(map(state.__getitem__, self.lifted))
        if runnable:
            self.program.data = {
                self.program.values[self._index(node)].name: value
                for node in nodes
                if (name := self.lifted.get(node.name))
                and (value := exported.constants[name]) is not None
            }

    def _forget_unread(self, constants: Iterable[str]) -> None:
        """Take the name off each of the ``constants`` that nothing reads: it is in no graph."""
        read = {arg for node in self.program.nodes for arg in node.args}
        for index in {self.names[name] for name in constants if name in self.names} - read:
            self.program.values[index] = replace(self.program.values[index], name="")

    def _output(self, node: torch.fx.Node, returned: int) -> None:
        """The results; each state among them is marked where it comes from.

        Its mark is a node in the block that made it, or that first reads what is handed back as it
        was given, so that it is repeated with the block. It has the state before the run as well.
        """
        results = [n for n in _flat(node.args) if self._is_tensor(n)]
        kept = results[len(results) - returned :]
        given = [self.states[name] for name in self.inputs.values() if name in self.states]
        met: dict[int, int] = {}  # value -> the node where it first occurs
        for i, n in enumerate(self.program.nodes):
            for value in (*n.args, *n.outs):
                met.setdefault(value, i)
        marks: dict[int, list[Node]] = {}
        for line, result in enumerate(kept):
            value = self._index(result)
            at = met.get(value, len(self.program.nodes) - 1)
            maker = self.program.nodes[at]
            renewed = (value, *given[line : line + 1])  # a new cache is filled from nothing
            mark = Node("state", renewed, (), maker.path, maker.module_type)
            marks.setdefault(at, []).append(mark)
        self.program.nodes[:] = [
            node for i, made in enumerate(self.program.nodes) for node in (made, *marks.get(i, ()))
        ]
        self.program.returned = tuple(map(self._index, results))
        outputs = results[: len(results) - returned]
        args = tuple(dict.fromkeys(self._index(n) for n in outputs))
        self.program.nodes.append(Node("output", args, (), "", ""))

    def _run(
        self, exported: ExportedProgram, sizes: Mapping[str, int]
    ) -> Mapping[torch.fx.Node, Any]:
        """What each node makes, as meta tensors at ``sizes``; as traced where it cannot be run.

        Raises Untraceable when a formula gives another shape than the run.
        """
        traced = {node: node.meta.get("val") for node in exported.graph.nodes}
        signature = exported.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        lifted = signature.inputs_to_lifted_tensor_constants
        names |= {node: name for node, name in lifted.items() if node not in self.lifted}
        kept = {**exported.constants, **exported.state_dict}  # what shares memory there does here
        inputs = [
            kept[names[node.name]] if node.name in names else self._meta(value, sizes)
            for node, value in traced.items()
            if node.op == "placeholder"
        ]
        recorder = _Recorder(exported.graph_module)
        self.drawn = recorder.drawn
        try:
            with MetaRun():
                recorder.run(*inputs, enable_io_processing=False)
        except Exception:  # code that looks at values, or a seq that the example rules out
            self.program.assumed = None
            return traced
        if any("_assert_scalar" in str(node.target) for node in traced):
            self.program.assumed = None  # the run might fail at other sizes
        for node, made in recorder.made.items():
            if node.op == "output":
                continue
            shaped, ran = _tensors(traced[node]), _tensors(made)
            if len(shaped) != len(ran):
                raise Untraceable(f"{node.target} makes as many tensors as sizes have it")
            for symbolic, real in zip(shaped, ran, strict=True):
                shape = tuple(self._size(size).evaluate(sizes) for size in symbolic.shape)
                if shape != tuple(real.shape):
                    problem = f"{node.target} makes {tuple(real.shape)}, its formula {shape}"
                    raise Untraceable(problem)
        return recorder.made

    def _meta(self, value: Any, sizes: Mapping[str, int]) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = [self._size(size).evaluate(sizes) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")

    def _add_state(self, module: torch.nn.Module) -> None:
        """Parameters and buffers, also those that the exported part does not read."""
        shares = {one.name: one for one in held(module)}
        values: dict[str, int] = {}

        def add(one: Held) -> int:
            if one.name not in values:
                role = Role.PARAMETER if one.is_parameter else Role.BUFFER
                owner = None if one.owner == one.name else add(shares[one.owner])
                values[one.name] = self._add_value(one.tensor, one.name, role, owner)
            return values[one.name]

        for one in shares.values():
            index = add(one)
            self.names[one.name] = index if one.layout else values[one.owner]
            if one.layout:
                self.layouts[index] = one.layout

    def _views(self, exported: ExportedProgram, module: torch.nn.Module) -> dict[str, str]:
        """Placeholder -> its name, of plain attributes that share memory: with what the module
        holds, or with each other. They are read as buffers are that are views of others."""
        views = {one.name: one for one in plain_views(module)}
        names = {
            (memory_of(v.tensor), layout_of(v.tensor), v.tensor.dtype): v for v in views.values()
        }

        def add(one: Held) -> int:
            if one.name not in self.names:
                owner = None
                if one.owner != one.name:
                    owner = self.names.get(one.owner)
                    owner = add(views[one.owner]) if owner is None else owner
                index = owner
                if index is None or one.layout:
                    index = self._add_value(one.tensor, one.name, Role.CONSTANT, owner)
                if one.layout:
                    self.layouts[index] = one.layout
                self.names[one.name] = index
            return self.names[one.name]

        found = {}
        for placeholder, name in [*self.lifted.items()]:
            tensor = exported.constants[name]
            one = names.get((memory_of(tensor), layout_of(tensor), tensor.dtype))
            if one is not None:
                del self.lifted[placeholder]
                found[placeholder] = one.name
                add(one)
        return found

    def _numbers(self) -> dict[str, str]:
        """Placeholder -> name, of what the code makes of Python's numbers: by the module whose code
        it is and counted there, so that blocks that are alike have the same."""
        found: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for placeholder, name in self.lifted.items():
            path, dot, last = name.rpartition(".")
            if last.startswith("lifted_tensor"):
                path = self.rename(path)
                name = f"{path}{dot}lifted_tensor_{counts[path]}"
                counts[path] += 1
            found[placeholder] = name
        return found

    def _name_sizes(self, inputs: Mapping[str, Sequence[Axis]]) -> None:
        """Learn which of torch's symbols is which size, from the inputs."""
        for node, name in self.inputs.items():
            for axis, size in zip(inputs[name], node.meta["val"].shape, strict=True):
                if isinstance(size, torch.SymInt) and isinstance(axis, str):
                    self.sizes[size.node.expr] = var(axis)

    def _is_tensor(self, node: torch.fx.Node) -> bool:
        return isinstance(node.meta.get("val"), torch.Tensor)

    def _add_value(self, tensor: torch.Tensor, name: str, role: Role, alias: int | None) -> int:
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(self._size(size) for size in tensor.shape)
        return self.program.add(Value(dtype, shape, name, role, alias))

    def _size(self, size: Any) -> Formula:
        if isinstance(size, int):
            return const(size)
        return self._formula(size.node.expr)

    def _formula(self, expr: Any) -> Formula:
        known = self.sizes.get(expr)
        if known is None:
            known = self.sizes[expr] = self._convert(expr)
        return known

    def _convert(self, expr: Any) -> Formula:
        if expr.is_Integer or expr.is_Rational:
            return const(Fraction(int(expr.p), int(expr.q)))
        args = [self._formula(arg) for arg in expr.args]
        match expr:
            case sympy.Add():
                return reduce(operator.add, args)
            case sympy.Mul():
                return reduce(operator.mul, args)
            case sympy.Pow() if expr.exp.is_Integer and expr.exp >= 0:
                return args[0] ** int(expr.exp)
            case FloorDiv() | CleanDiv():
                return args[0] // args[1]
            case Mod() | PythonMod():
                return args[0] % args[1]
            case Max() | sympy.Max():
                return maximum(*args)
            case Min() | sympy.Min():
                return minimum(*args)
        if free_unbacked_symbols(expr):
            raise Untraceable("its sizes depend on the data", by_data=True)
        raise Untraceable(f"a size is {expr}, which no formula can say")

    def _placeholder(self, node: torch.fx.Node, name: str | None) -> None:
        if not self._is_tensor(node):
            return
        tensor = node.meta["val"]
        if name is not None:
            self.value_of[node] = self._viewed(node, self._named(tensor, name))
        elif self.inputs[node] in self.states:
            self.value_of[node] = self.states[self.inputs[node]]
        else:
            index = self._add_value(tensor, self.inputs[node], Role.INPUT, None)
            self.value_of[node] = index
            self.program.nodes.append(Node("input", (), (index,), "", ""))
        self.owner[memory_of(self.real[node])] = self._owner(self._index(node))

    def _viewed(self, node: torch.fx.Node, value: int) -> int:
        """A parameter or buffer as it is read: one that is a view of another is made of that."""
        layout, owner = self.layouts.get(value), self._owner(value)
        if layout is None or not node.users:
            return value
        made = self._add_value(node.meta["val"], "", Role.ACTIVATION, owner)
        shape, strides, offset = layout
        how = Invocation([{"value": owner}, [*shape], [*strides], offset], {})
        path = self.program.values[value].name.rpartition(".")[0]
        self.program.nodes.append(
            Node(
                "aten.as_strided.default",
                (owner,),
                (made,),
                path,
                "",
                is_view=True,
                invocation=how if self.runnable else None,
            )
        )
        return made

    def _named(self, tensor: torch.Tensor, name: str) -> int:
        """A parameter, a buffer, or a tensor that the code made from Python numbers.

        Of those without elements there is one: each block makes some, where its state begins.
        """
        if name not in self.names and tensor.numel() == 0:
            dtype = str(tensor.dtype).removeprefix("torch.")
            name = "_".join(["empty", dtype, *map(str, tensor.shape)])
        if name not in self.names:
            self.names[name] = self._add_value(tensor, name, Role.CONSTANT, None)
        return self.names[name]

    def _index(self, node: torch.fx.Node) -> int:
        value = self.value_of[node]
        assert isinstance(value, int)
        return value

    def _call(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem:
            source, position = node.args
            if isinstance(source, torch.fx.Node) and source in self.value_of:
                many = self.value_of[source]
                if isinstance(many, tuple) and isinstance(position, int):
                    self.value_of[node] = many[position]
            return
        results = _tensors(node.meta.get("val"))
        changed = [n for n in written(node) if isinstance(self.value_of.get(n), int)]
        if not results and not changed:
            return  # an assertion, a size: no tensor comes of it
        inputs = [n for n in _flat((node.args, node.kwargs)) if n in self.value_of]
        real = _tensors(self.real[node])
        if same := self._no_op(node, inputs):
            self.value_of[node] = self._index(same)
            self.owner.setdefault(memory_of(real[0]), self._owner(self._index(same)))
            return
        outs = []
        view = not changed
        for result, memory in zip(results, map(memory_of, real), strict=True):
            outs.append(self._add_value(result, "", Role.ACTIVATION, self.owner.get(memory)))
            view = view and memory in self.owner
            self.owner.setdefault(memory, outs[-1])
        args = [self._index(n) for n in inputs]
        how = invocation(node, self._index, self.real) if self.runnable else None
        many = not isinstance(node.meta["val"], torch.Tensor)
        self.value_of[node] = tuple(outs) if many else outs[0]
        shared = []
        given = {memory_of(made): out for made, out in zip(real, outs, strict=True)}
        for target in changed:
            # Later readers see the new values: of the tensor written to, and of all that share its
            # memory. The op makes those too, from what they were before.
            new = given.get(memory_of(self.real[target]))
            if new is None:
                new = self._renewed(target)
                outs.append(new)
            self.value_of[target] = new
            for other in self._sharing(target, node):
                if other in changed:
                    continue
                args.append(self._index(other))
                outs.append(self._renewed(other))
                self.value_of[other] = outs[-1]
                layouts = layout_of(self.real[other]), layout_of(self.real[target])
                shared.append(Sharing(args[-1], outs[-1], *layouts))
        how = how and replace(how, shared=tuple(shared))
        path, module_type = _module(node)
        path = self.rename(path)
        self.program.nodes.append(
            Node(
                str(node.target),
                tuple(args),
                tuple(outs),
                path,
                module_type,
                view,
                self.extents.get(node),
                is_identity(node),
                how,
                () if view else arguments(node.target, node.args, node.kwargs, self._size),
                self.drawn.get(node, int(draws(node))),
            )
        )

    def _renewed(self, node: torch.fx.Node) -> int:
        """What a tensor is once an op has written into its memory."""
        owner = self._owner(self._index(node))
        return self._add_value(node.meta["val"], "", Role.ACTIVATION, owner)

    def _written(self, nodes: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
        """The nodes whose memory an op writes in place."""
        memories = {node: {*map(memory_of, _tensors(self.real.get(node)))} for node in nodes}
        mutated: set[int] = set()
        for node in memories:
            if node.op == "call_function":
                mutated.update(*(memories.get(changed, ()) for changed in written(node)))
        return {node for node, memory in memories.items() if not memory.isdisjoint(mutated)}

    def _owner(self, value: int) -> int:
        alias = self.program.values[value].alias_of
        return value if alias is None else alias

    def _sharing(self, written: torch.fx.Node, by: torch.fx.Node) -> list[torch.fx.Node]:
        """The other tensors in the memory of ``written`` that something after ``by`` reads."""
        memory = memory_of(self.real[written])
        return [
            node
            for node, value in self.value_of.items()
            if node not in (written, by)
            and isinstance(value, int)
            and memory_of(self.real[node]) == memory
            and any(self.position[user] > self.position[by] for user in node.users)
        ]

    def _no_op(self, node: torch.fx.Node, inputs: Sequence[torch.fx.Node]) -> Any:
        """The input that a node hands on unchanged (a cast to the same dtype, a dropout in
        evaluation, a slice of everything), None for a node that does something."""
        if not inputs or not self._is_tensor(node):
            return None
        if op_name(node) in _DROPOUTS:
            return None if draws(node) else inputs[0]
        source, result = inputs[0].meta["val"], node.meta["val"]
        if not isinstance(source, torch.Tensor) or op_name(node) == "copy":
            return None
        # Memory is that of a run: an export makes the tensors anew that code keeps from before it.
        kept = memory_of(self.real[inputs[0]]) == memory_of(self.real[node])
        same = kept and _layout(source) == _layout(result) and not written(node)
        return inputs[0] if same else None


_NEUTRAL: Mapping[str, float] = {
    **dict.fromkeys(("mul", "div", "true_divide", "floor_divide", "pow"), 1),
    **dict.fromkeys(("add", "sub", "__lshift__", "__rshift__"), 0),
    **dict.fromkeys(("bitwise_left_shift", "bitwise_right_shift"), 0),
}
"""Op -> the number that leaves its other operand as it is."""


def is_identity(node: torch.fx.Node) -> bool:
    """Whether a node does arithmetic of a tensor and a number that leaves the tensor as it is."""
    name, numbers = op_name(node), node.args[1:2]
    return name in _NEUTRAL and numbers == (_NEUTRAL[name],) and not isinstance(numbers[0], bool)


def _data(
    exported: ExportedProgram, nodes: Iterable[torch.fx.Node], inputs: Collection[torch.fx.Node]
) -> dict[torch.fx.Node, torch.Tensor | None]:
    """The numbers in each placeholder that is no input, None where nobody knows them.

    Parameters count as zeros: what a mask hides is hidden whatever they are.
    """
    signature = exported.graph_signature
    lifted = signature.inputs_to_lifted_tensor_constants
    found: dict[torch.fx.Node, torch.Tensor | None] = {}
    for node in nodes:
        if node.op != "placeholder" or node in inputs:
            continue
        value = node.meta.get("val")
        if node.name in signature.inputs_to_parameters:
            found[node] = torch.zeros((), dtype=value.dtype).expand(value.shape)
        else:
            kept = exported.constants.get(lifted.get(node.name, ""))
            found[node] = kept if isinstance(kept, torch.Tensor) and not kept.is_meta else None
    return found


def spelled_out(equation: Any, *operands: Any) -> torch.Tensor:
    """``torch.einsum`` as what torch carries out: one batched product for each operand after the
    first, from left to right; what only one of the two has left to sum is summed before.

    No shape tells what an einsum multiplies. An equation that says more (a diagonal, an ellipsis
    that broadcasts, an order of its own) stays as it is.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    ordered = len(operands) > 2 and torch.backends.opt_einsum.is_available()
    parts = None if ordered else _letters(equation, operands)
    if parts is None:
        return _einsum(equation, *operands)
    (of, *others), result = parts
    made, *rest = operands
    for n, (these, operand) in enumerate(zip(others, rest, strict=True)):
        needed = {*result, *"".join(others[n + 1 :])}
        made, of = _multiplied(made, of, operand, these, needed)
    made, of = _summed(made, of, set(result))
    return made.permute([of.index(c) for c in result])


def _letters(equation: Any, operands: Sequence[Any]) -> tuple[list[str], str] | None:
    """(the letters of each operand's axes, those of the result); None for more than letters."""
    if not isinstance(equation, str) or ("..." in equation and "->" not in equation):
        return None  # axes as numbers; axes that have no letter in the result
    plainly = _without_ellipsis(equation.replace(" ", ""), operands)
    left, arrow, result = plainly.partition("->")
    if not arrow:
        result = "".join(sorted(c for c in {*left} - {","} if left.count(c) == 1))
    letters = left.split(",")
    plain = all(len({*part}) == len(part) and "." not in part for part in [*letters, result])
    plain = plain and {*result} <= {*left}
    sizes: dict[str, Any] = {}
    for part, operand in zip(letters, operands, strict=False):
        for letter, size in zip(part, operand.shape, strict=False):
            other = sizes.setdefault(letter, size)
            plain = plain and (size is other or type(size) is not int or size == other)
    return (letters, result) if plain and len(letters) == len(operands) else None


def _summed(x: torch.Tensor, letters: str, kept: Collection[str]) -> tuple[torch.Tensor, str]:
    """``x`` without the axes that are not kept, and the letters of those that it has then."""
    gone = [axis for axis, letter in enumerate(letters) if letter not in kept]
    left = "".join(letter for letter in letters if letter in kept)
    return (x.sum(gone) if gone else x), left


def _multiplied(
    x: torch.Tensor, a: str, y: torch.Tensor, b: str, needed: Collection[str]
) -> tuple[torch.Tensor, str]:
    """The product of two tensors, summed over what both have and is not ``needed``: (it, letters).

    ``a`` and ``b`` are the letters of their axes.
    """
    x, a = _summed(x, a, {*b, *needed})
    y, b = _summed(y, b, {*a, *needed})
    both = [c for c in a if c in b and c in needed]
    summed = [c for c in a if c in b and c not in needed]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    size = {**dict(zip(a, x.shape, strict=True)), **dict(zip(b, y.shape, strict=True))}
    shape = [prod(size[c] for c in part) for part in (both, rows, summed, columns)]
    order = "".join([*both, *rows, *columns])
    if not summed:  # each element of one meets one of the other
        x = x.permute([a.index(c) for c in both + rows])[(..., *[None] * len(columns))]
        y = y.permute([b.index(c) for c in both + columns])
        y = y.reshape([*(size[c] for c in both), *[1] * len(rows), *(size[c] for c in columns)])
        return x * y, order
    x = x.permute([a.index(c) for c in both + rows + summed])
    y = y.permute([b.index(c) for c in both + summed + columns])
    x = x.reshape(shape[0], shape[1], shape[2])
    y = y.reshape(shape[0], shape[2], shape[3])
    return torch.bmm(x, y).reshape([size[c] for c in order]), order


def _without_ellipsis(equation: str, operands: Sequence[Any]) -> str:
    """An equation with letters for the axes under its ellipsis, where all have the same ones."""
    parts = equation.partition("->")[0].split(",")
    under = [
        x.shape[: x.dim() - len(part) + 3]
        for part, x in zip(parts, operands, strict=False)
        if part.startswith("...")
    ]
    if not under or any(sizes != under[0] for sizes in under):
        return equation
    new = [letter for letter in ascii_letters if letter not in equation]
    return equation.replace("...", "".join(new[: len(under[0])]))


class _Recorder(torch.fx.Interpreter):
    """Runs an exported graph and keeps what each node makes."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.made: dict[torch.fx.Node, Any] = {}
        self.drawn: dict[torch.fx.Node, int] = {}
        """How often a node draws random values, of those that do."""

    def run_node(self, node: torch.fx.Node) -> Any:
        """Run a node as usual; its tensors stay alive, so that no two share an address."""
        check_time()
        if draws(node):
            with Counted() as counted:
                made = super().run_node(node)
            self.drawn[node] = counted.number
        else:
            made = super().run_node(node)
        if op_name(node) == "scaled_dot_product_attention":
            # Every fused kernel lays its result out as [batch, seq, heads, dim]; meta does not.
            made = made.transpose(-2, -3).contiguous().transpose(-2, -3)
        self.made[node] = made
        return made


def _tensors(made: Any) -> list[torch.Tensor]:
    """The tensors that a node makes: one, several, or not one."""
    results = made if isinstance(made, list | tuple) else [made]
    return [result for result in results if isinstance(result, torch.Tensor)]


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors in the same memory that are the same elements of it."""
    numbers = [*tensor.shape, *tensor.stride(), tensor.storage_offset()]
    plain = [n.node.expr if isinstance(n, torch.SymInt) else n for n in numbers]
    return (tensor.dtype, tensor.dim(), *plain)


def _flat(tree: Any) -> list[torch.fx.Node]:
    """The graph nodes in an argument list, in order."""
    nodes: list[torch.fx.Node] = []
    torch.fx.map_arg(tree, nodes.append)
    return nodes


def _module(node: torch.fx.Node) -> tuple[str, str]:
    """(path, class name) of the innermost module whose code called the node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else kind.__qualname__
    # A module that is called again has the number of the call behind an @.
    return re.sub(r"@\d+", "", path), name.rpartition(".")[2]

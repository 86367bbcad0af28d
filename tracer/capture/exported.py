"""A program that torch exported before, out of its archive: as a task whose export is there."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._export.serde import schema
from torch._export.serde.serialize import (
    SCHEMA_VERSION,
    GraphModuleDeserializer,
    _dict_to_dataclass,
    deserialize_scalar_type,
)
from torch._export.verifier import load_verifier
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from tracer.capture.errors import first_line
from tracer.capture.kv_cache import CacheKind, State
from tracer.capture.phases import MANY, SIZES, Task, Way
from tracer.capture.readings import Reading
from tracer.capture.senses import Axis, Input
from tracer.errors import CutedgeError, InputError
from tracer.pt2_files import Exported
from tracer.words import plain


class ExportedTask(Task):
    """An exported program at sizes. Raises InputError for sizes that it was not exported for."""

    def __init__(self, read: Exported, sizes: Mapping[str, int | None]) -> None:
        """Raises CutedgeError for a program that this torch cannot read."""
        given = _loaded(read)
        module = _holding(given, read)
        found = _read(given, read)
        reading, fixed, self._ranges = found.reading, found.fixed, found.ranges
        self._given_states, self._order = found.states, found.order
        for name, (least, most) in self._ranges.items():
            size = sizes.get(name)
            if size is not None and not (least <= size <= most or (size == 1 and least == 2)):
                raise InputError(
                    f"{read.file} was exported for {name} {least:,} to {most:,}: --{name} {size} is "
                    "not among them"
                )
        step = found.states and reading.sizes.get("seq") == 1
        phase = "decode" if step else "prefill"
        super().__init__(
            module, read.name, reading, phase=phase, sizes=sizes, logits="all", cache=False
        )
        self.given, self.fixed, self.returned = given, fixed, read.returned
        self.name = _root_class(given) or self.name

    def _state(self) -> tuple[str | None, CacheKind | None]:
        """The state that it is given."""
        return None, CacheKind(None, self._given_states, {})

    def axes(self, layers: Collection[int] | None = None) -> dict[str, tuple[Axis, ...]]:
        """The sizes of each tensor input, in the order of the program."""
        found = super().axes(layers)
        return {name: found[name] for name in self._order}

    def ways(self) -> list[Way]:
        """The one in which it was exported."""
        if self._ranges:
            return [Way(self._ranges, self.sizes)]
        here = ", ".join(f"{name} {size}" for name, size in self.sizes.items() if size)
        return [Way({}, self.sizes, f"sizes are exact at {here}, formulas are null")]

    def alike(self, way: Way | None) -> tuple[tuple[str, int, int], ...]:
        """As the archive has the ranges of its sizes; one of 1 is apart, as it is everywhere."""
        symbols = {} if way is None else way.bounds
        return tuple(
            (name, *((size, size) if size == 1 or name not in symbols else symbols[name]))
            for name, size in self.sizes.items()
        )


def _loaded(read: Exported) -> ExportedProgram:
    """The program as torch has it, on the meta device."""
    told = read.program
    version, ours = told["schema_version"]["major"], SCHEMA_VERSION[0]
    if version != ours:
        when = "a newer" if version > ours else "an older"
        raise CutedgeError(
            f"{read.file} was saved by {when} torch (schema {version}; torch {torch.__version__} "
            f"reads {ours}): save it with the torch that is installed here"
        )
    _check_ops(read)
    try:
        graph = _dict_to_dataclass(schema.GraphModule, told["graph_module"])
        ranges = {
            name: ValueRanges(
                *(_end(ends[key], key == "max_val") for key in ("min_val", "max_val"))
            )
            for name, ends in told["range_constraints"].items()
        }
        parts = _tensors(read, graph.graph.tensor_values, graph.signature)
        made = GraphModuleDeserializer().deserialize(graph, *parts, None, ranges)
        known = made.names_to_symbols
        count = len(made.signature.user_inputs)
        return ExportedProgram(
            root=made.graph_module,
            graph=made.graph_module.graph,
            graph_signature=made.signature,
            state_dict=made.state_dict,
            range_constraints={known[n]: ends for n, ends in ranges.items() if n in known},
            module_call_graph=[_called(count)],
            constants=made.constants,
            verifiers=[load_verifier("TRAINING")],
        )
    except Exception as error:  # whatever torch makes of a program that is none
        raise CutedgeError(
            f"{read.file} cannot be read by torch {torch.__version__}: "
            f"{plain(first_line(error.__cause__ or error), 160)}. Save it with the torch that is "
            "installed here"
        ) from error


def _check_ops(read: Exported) -> None:
    """Raise where an op is called that is not there."""
    for target in sorted(
        {node["target"] for node in read.program["graph_module"]["graph"]["nodes"]}
    ):
        if not target.startswith("torch.ops."):
            continue
        _, _, library, name, overload = target.split(".")
        found = getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
        if not isinstance(found, torch._ops.OpOverload):
            raise CutedgeError(
                f"{read.file} calls {library}.{name}.{overload}, which torch {torch.__version__} "
                "does not have here: a newer torch has it, or a library that is to be imported"
            )
        if any(word in name for word in ("from_file", "save", "load", "print")):
            raise CutedgeError(
                f"{read.file} is hostile: it calls {library}.{name}, which no model does"
            )


def _end(number: int | None, last: bool) -> Any:
    """An end of a range, as torch has one that is open."""
    from torch.utils._sympy.numbers import int_oo

    return sympy.Integer(number) if number is not None else int_oo if last else -int_oo


def _called(inputs: int) -> Any:
    """How the whole is called, which nobody does: with so many arguments, for one result."""
    from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
    from torch.utils._pytree import tree_structure

    given, made = tree_structure(((0,) * inputs, {})), tree_structure(0)
    return ModuleCallEntry("", ModuleCallSignature([], [], given, made))


def _tensors(
    read: Exported, values: Mapping[str, Any], signature: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(parameters and buffers, constants), without numbers but for small constants.

    Shapes are those that the graph has for them. Of two in one file what shares memory does here.
    """
    state: dict[str, torch.Tensor] = {}
    constants: dict[str, Any] = {}
    memory: dict[str, torch.Tensor] = {}
    for spec in signature.input_specs:
        match spec.type:
            case "parameter":
                name, argument, into = spec.parameter.parameter_name, spec.parameter.arg.name, state
            case "buffer":
                name, argument = spec.buffer.buffer_name, spec.buffer.arg.name
                into = state if spec.buffer.persistent else constants
            case "tensor_constant":
                constant = spec.tensor_constant
                name, argument, into = constant.tensor_constant_name, constant.arg.name, constants
            case _:
                continue
        told, part = values[argument], read.parts.get(name)
        dtype = deserialize_scalar_type(told.dtype)
        shape, stride, offset = _numbers(told.sizes), _numbers(told.strides), 0
        if part is not None and part.meta is not None:
            meta = _dict_to_dataclass(schema.TensorMeta, part.meta)
            offset = _numbers([meta.storage_offset])[0]
            if (_numbers(meta.sizes), deserialize_scalar_type(meta.dtype)) != (shape, dtype):
                raise ValueError(f"{name} has another shape than the graph reads")
            stride = _numbers(meta.strides)
        span = 1 + offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if part is not None and part.data is not None and spec.type == "tensor_constant":
            flat = torch.frombuffer(bytearray(part.data) or bytearray(8), dtype=dtype)
            made = flat.as_strided(shape, stride, offset).clone()
        else:
            under = f"{dtype} {name if part is None else part.file}"
            if under not in memory or memory[under].numel() < span:
                grown = torch.empty(0 if 0 in shape else span, dtype=dtype, device="meta")
                if under in memory:  # one that was met before lies in the same
                    grown.set_(memory[under].untyped_storage(), 0, grown.shape)
                memory[under] = grown
            made = memory[under].as_strided(shape, stride, offset)
        into[name] = torch.nn.Parameter(made, False) if spec.type == "parameter" else made
    return state, constants


def _numbers(sizes: Iterable[Any]) -> tuple[int, ...]:
    numbers = tuple(size.as_int for size in sizes)
    if not all(0 <= number < 2**48 for number in numbers):
        raise ValueError(f"a weight of {numbers}")
    return numbers


def _holding(exported: ExportedProgram, read: Exported) -> torch.nn.Module:
    """A module that holds what the program's did, under the same names, and runs nothing."""
    module = torch.nn.Module()
    signature = exported.graph_signature
    kept = {**exported.constants, **exported.state_dict}
    for name in signature.parameters:
        _put(module, name, kept[name], read)
    for name in signature.buffers:
        _put(module, name, kept[name], read)
    return module


def _put(module: torch.nn.Module, name: str, tensor: torch.Tensor, read: Exported) -> None:
    *path, last = name.split(".")
    for step in path:
        if not hasattr(module, step):
            module.add_module(step, torch.nn.Module())
        module = getattr(module, step)
    if not isinstance(module, torch.nn.Module) or hasattr(module, last):
        raise CutedgeError(f"{read.file} is damaged: two of its tensors are called {name}")
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)


def _root_class(exported: ExportedProgram) -> str:
    """The class of the module that was exported; empty where the archive does not say it."""
    for node in exported.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            if not path:
                return str(kind).rpartition(".")[2]
    return ""


# --- what it reads --------------------------------------------------------------------------------

_CACHED = re.compile(r".*?_(key|value)s?_cache_(\d+)")
"""What torch calls the keys or values of a layer that a cache of transformers holds."""

_OF_AN_ENCODER = ("encoder_", "cross_attention")


@dataclass(frozen=True, slots=True)
class _Found:
    """What a program reads."""

    reading: Reading
    states: tuple[State, ...]
    """Cached state that it is given, layer by layer."""
    order: tuple[str, ...]
    """The names of all inputs and states, in the program's order."""
    fixed: Mapping[sympy.Symbol, int]
    """Symbols that are no size of a trace, at the numbers that they had."""
    ranges: Mapping[str, tuple[int, int]]
    """The least and the greatest of each size that is a symbol."""


def _read(exported: ExportedProgram, read: Exported) -> _Found:
    """What a program reads, in the sizes of a trace.

    An archive does not keep what the sizes were called: they are told by what they are sizes of.
    """
    signature = exported.graph_signature
    given = [
        (node.name, node.meta["val"])
        for node in exported.graph.nodes
        if node.op == "placeholder"
        and node.name in signature.user_inputs
        and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    both = any(name.startswith("decoder_") for name, _ in given)
    named: dict[Any, str] = {}
    numbers: dict[str, int] = {}
    axes: dict[str, list[Axis]] = {}
    for name, tensor in given:
        axes[name] = []
        for size, meaning in zip(
            tensor.shape, _meanings(name, tensor, both, read.cached), strict=True
        ):
            symbol = size.node.expr if isinstance(size, torch.SymInt) else None
            if symbol is not None and symbol.is_Symbol and meaning:
                if symbol not in named and meaning not in numbers:
                    named[symbol] = meaning
                    numbers[meaning] = _hint(size)
            elif symbol is None and meaning and meaning not in numbers:
                numbers[meaning] = size
            axes[name].append(named.get(symbol) or (_hint(size) if symbol is not None else size))
    fixed: dict[sympy.Symbol, int] = {}
    notes = []
    for name, tensor in given:
        for place, size in enumerate(tensor.shape):
            if not isinstance(size, torch.SymInt):
                continue
            for symbol in size.node.expr.free_symbols - named.keys() - fixed.keys():
                fixed[symbol] = int(size.node.shape_env.backed_var_to_val[symbol])
                notes.append(
                    f"axis {place} of {name} is a size of its own, taken as it was exported: "
                    f"{_hint(size)}"
                )
    ranges = {}
    for symbol, name in named.items():
        ends = exported.range_constraints.get(symbol)
        least = max(2, int(ends.lower)) if ends is not None and ends.lower.is_finite else 2
        most = int(ends.upper) if ends is not None and ends.upper.is_finite else MANY
        ranges[name] = (least, min(most, MANY))
    why = {
        name: f"it was exported for {numbers[name]} alone"
        if name in numbers
        else "it reads nothing that has such a size"
        for name in SIZES
        if name not in ranges
    }

    def run(*_: Any, **__: Any) -> Any:
        raise NotImplementedError  # its export is there

    inputs = tuple(
        Input(name, tuple(axes[name]), tensor.dtype)
        for name, tensor in given
        if name not in read.cached
    )
    states = {
        name: State(_path(name), tensor.dtype, tuple(axes[name]))
        for name, tensor in given
        if name in read.cached
    }
    order = tuple(states[name].name if name in states else name for name, _ in given)
    by_layer = tuple(sorted(states.values(), key=lambda state: (state.layer, state.path[-1])))
    reading = Reading(inputs, run, numbers, why, tuple(notes))
    return _Found(reading, by_layer, order, fixed, ranges)


def _path(name: str) -> tuple[str, ...]:
    """Where a cache keeps an input, as ``State.path``."""
    if match := _CACHED.fullmatch(name):
        return ("layers", match[2], f"{match[1]}s")
    return (name,)


def _hint(size: Any) -> int:
    """The number that a size was when the program was exported."""
    return int(size.node.hint)


def _meanings(
    name: str, tensor: torch.Tensor, both: bool, cached: Collection[str]
) -> Iterator[str]:
    """What each axis of an input is, by its name, its dtype and its rank; empty for no size.

    ``both`` says that an encoder's tokens are read beside a decoder's; ``cached`` are states.
    """
    rank, floats = tensor.dim(), tensor.is_floating_point()
    tokens = "source" if _is_source(name, both) else "seq"
    for axis in range(rank):
        if axis == 0:
            yield "batch" if rank > 1 or floats else ""
        elif name in cached and rank == 4:
            yield "past" if axis == 2 else ""
        elif name not in cached and axis == 1 and (rank == 2 or (rank == 3 and floats)):
            yield tokens if not floats or rank == 3 else ""
        else:
            yield ""


def _is_source(name: str, both: bool) -> bool:
    return name.startswith(_OF_AN_ENCODER) or (both and not name.startswith("decoder_"))

"""An ONNX file as a program: its nodes as the ops of torch that do the same, torch-free.

The weights are not looked at, and a file of weights beside the model is not opened. The sizes of
inputs are put in as numbers, and the ``onnx`` package infers all other shapes; what computes shapes
alone is computed here, and is no op. A node that no op of torch is like keeps its own name
(``onnx.NAME``): it has bytes and no FLOPs, and is named where a total lacks it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.captured import Capture
from tracer.errors import CutedgeError, InputError
from tracer.files import open_file
from tracer.formula import const
from tracer.graph import Role, TraceMeta
from tracer.onnx_ops import OF_NOTHING, OF_THE_FIRST, POOLS, SAME, SCALARS, VIEWS
from tracer.onnx_shapes import Proto, attributes, inferred, types_of
from tracer.program import Node, Program, Value, build_graph
from tracer.reach import Reach
from tracer.summary import attention_kind
from tracer.words import plain

if TYPE_CHECKING:
    import numpy as np

_MOST_BYTES = 2**31
"""Of a file: those that are larger keep their weights beside it."""

_SMALL = 2**12
"""Elements of a weight whose numbers are kept: what is larger is no shape."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A model as its file has it, without its weights."""

    name: str
    """What the model's tables are called by: the file's name without its end."""
    file: str
    """The file, as the user calls it."""
    model: Proto
    """The model, in which large weights are inputs that have a shape and no numbers."""
    weights: Mapping[str, tuple[int, ...]]
    """Weights and constants, and their shapes."""
    digest: str
    """A hash of the model apart from the numbers in its weights."""


def read_onnx(path: Path) -> OnnxFile:
    """The model in a file. Raises InputError for what is none, or where ``onnx`` is missing."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise InputError(
            f"{path} needs the onnx package: pip install 'cutedge[onnx]', or pip install onnx"
        ) from error
    try:
        with open_file(path) as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(len(data))
        model = onnx.load_model_from_string(data)
        if not model.graph.node or not model.opset_import:
            raise ValueError("no graph")
    except (DecodeError, ValueError) as error:
        raise CutedgeError(f"{path} is no ONNX model, or it is cut or damaged") from error
    newest = onnx.defs.onnx_opset_version()
    asked = max(
        (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0
    )
    if asked > newest:
        raise CutedgeError(
            f"{path} is of a newer ONNX (opset {asked}; onnx {onnx.__version__} knows {newest}): "
            "pip install --upgrade onnx"
        )
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    weights = _lightened(model)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return OnnxFile(path.stem, str(path), model, weights, digest)


def _lightened(model: Proto) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights, by name; in the model large ones become inputs."""
    from onnx import helper

    graph = model.graph
    found = {one.name: tuple(one.dims) for one in graph.initializer}
    given = {one.name for one in graph.input}
    small = []
    for one in graph.initializer:
        if prod(one.dims) <= _SMALL and not one.external_data:
            small.append(one)
        elif one.name not in given:
            told = helper.make_tensor_value_info(one.name, one.data_type, one.dims)
            graph.input.append(told)
    del graph.initializer[:]
    graph.initializer.extend(small)
    return found


# --- sizes ----------------------------------------------------------------------------------------

_SIZES = (("past", "past"), ("source|encoder", "source"), ("batch", "batch"))
_TOKENS = re.compile(r"seq|length|tokens?$|time")
_DEFAULTS = {"batch": 1, "seq": 1024, "past": 0, "source": 1024}
_STATE = re.compile(r"past(?:_key_values)?[._](\d+)[._](?:(\w+)[._])?(key|value)s?")
_STATE_AFTER = re.compile(r"present(?:_key_values)?[._](\d+)[._](?:(\w+)[._])?(key|value)s?")


def _named(dim: Proto, axis: int, rank: int, is_integer: bool) -> str | None:
    """The size of a trace that an axis of an input is, None for a number or a name of its own."""
    if dim.HasField("dim_value"):
        return None
    name = dim.dim_param.lower()
    for words, size in _SIZES:
        if re.search(words, name) and "+" not in name:
            return size
    if _TOKENS.search(name) and "total" not in name and "+" not in name:
        return "seq"
    if axis == 0 and (rank > 1 or not is_integer):
        return "batch"
    return "seq" if axis == 1 and rank == 2 and is_integer else None


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the open axes of a model's inputs are."""

    defaults: Mapping[str, int]
    """The sizes of a trace that it has, at their defaults."""
    axes: Mapping[str, tuple[int | str, ...]]
    """Input -> its axes: numbers, sizes of a trace, or the model's own names."""
    own: frozenset[str]
    """The names of axes that are no size of a trace, which ``--set`` gives numbers."""


def _sizes(read: OnnxFile) -> _Sizes:
    from onnx import TensorProto as Types

    axes: dict[str, tuple[int | str, ...]] = {}
    sizes: set[str] = set()
    own: set[str] = set()
    for one in read.model.graph.input:
        if one.name in read.weights:
            continue
        told = one.type.tensor_type
        integer = told.elem_type in (Types.INT64, Types.INT32, Types.BOOL)
        dims = list(told.shape.dim)
        found: list[int | str] = []
        for axis, dim in enumerate(dims):
            size = _named(dim, axis, len(dims), integer)
            found.append(size or dim.dim_param or dim.dim_value)
            if size:
                sizes.add(size)
            elif dim.dim_param and not _sum(dim.dim_param, _DEFAULTS):
                own.add(dim.dim_param)
        axes[one.name] = tuple(found)
    defaults = {name: size for name, size in _DEFAULTS.items() if name in sizes}
    return _Sizes(defaults, axes, frozenset(own))


def _sum(name: str, sizes: Mapping[str, int]) -> int | None:
    """``past_sequence_length + 1``, ``total_sequence_length`` at sizes; None for another name."""
    if "total" in name.lower():
        return sizes["past"] + sizes["seq"]
    total = 0
    for term in name.split("+"):
        word = term.strip().lower()
        known = next((size for words, size in _SIZES if re.search(words, word)), None)
        known = known or ("seq" if _TOKENS.search(word) else None)
        if not word.isdigit() and known is None:
            return None
        total += int(word) if word.isdigit() else sizes[known or ""]
    return total


# --- what each node is ----------------------------------------------------------------------------


class _Reader:
    """A model at sizes, node by node, as a ``Program``."""

    def __init__(self, read: OnnxFile, numbers: Mapping[str, tuple[int, ...]]) -> None:
        self.read, self.program = read, Program()
        self.graph, self.known = inferred(read, numbers)
        self.types = types_of(self.graph)
        self.value_of: dict[str, int] = {}
        self.layouts: dict[int, np.ndarray[Any, Any]] = {}
        self.buffers = {
            name
            for node in self.graph.node
            if node.op_type == "BatchNormalization"
            for name in node.input[3:5]
        }
        self.roots = dict(_inverted_roots(self.graph))
        for name in read.weights:
            if name not in self.known or self._is_weight(name):
                self._add(name, self._role(name), name)
        for one in self.graph.input:
            if one.name not in read.weights:
                self._input(one.name)
        for node in self.graph.node:
            self._node(node)
        self._outputs()

    def _is_weight(self, name: str) -> bool:
        dtype, shape = self._type(name)
        return dtype in _FLOATING and prod(shape) > 1

    def _role(self, name: str) -> Role:
        if not self._is_weight(name):
            return Role.CONSTANT
        return Role.BUFFER if name in self.buffers else Role.PARAMETER

    def _type(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self.types:
            made = next((node for node in self.graph.node if name in node.output), None)
            by = f", which {plain(made.op_type)} makes," if made is not None else ""
            raise CutedgeError(
                f"{self.read.file}: the shape of {plain(name)}{by} is not known from the file: it "
                "depends on the data, or on an op that onnx does not know"
            )
        return self.types[name]

    def _add(self, name: str, role: Role, called: str = "", owner: int | None = None) -> int:
        dtype, shape = self._type(name)
        value = Value(dtype, tuple(map(const, shape)), called, role, owner)
        index = self.value_of[name] = self.program.add(value)
        return index

    def _input(self, name: str) -> None:
        match = _STATE.fullmatch(name)
        if match:
            slot = f"{match[2]}." if match[2] else ""
            self._add(name, Role.KV_CACHE, f"cache.{match[1]}.{slot}{match[3]}s")
            return
        index = self._add(name, Role.INPUT, name)
        self.program.nodes.append(Node("input", (), (index,), "", ""))

    def _outputs(self) -> None:
        results = [one.name for one in self.graph.output]
        given = {_key(match): name for name in self.value_of if (match := _STATE.fullmatch(name))}
        args = []
        for name in results:
            match = _STATE_AFTER.fullmatch(name)
            if match is None:
                args.append(self._value(name))
                continue
            before = given.get(_key(match))
            pair = (self._value(name), *([] if before is None else [self.value_of[before]]))
            self.program.nodes.append(Node("state", pair, (), "", ""))
        self.program.nodes.append(Node("output", tuple(dict.fromkeys(args)), (), "", ""))

    def _value(self, name: str) -> int:
        if name not in self.value_of:  # a number that was computed here, or a small constant
            self._add(name, Role.CONSTANT, name)
        return self.value_of[name]

    # --- nodes ---

    def _node(self, node: Proto) -> None:
        names = [name for name in node.input if name]
        outs = [name for name in node.output if name]
        kind = node.op_type if node.domain in ("", "ai.onnx") or node.op_type in SAME else ""
        if node.op_type == "Constant" or all(name in self.known for name in outs):
            return
        if node.op_type == "Sqrt" and outs[0] in self.roots:
            return  # one op with what inverts it
        if SAME.get(kind) == "":
            self.value_of[outs[0]] = self._value(names[0])
            if len(outs) > 1 and outs[1] in self.types:
                self._add(outs[1], Role.CONSTANT, outs[1])
            return
        target, read, told = self._target(node, kind, names)
        path, module_type = _place(node)
        owner = self._shared(node, kind, read, outs)
        if kind in VIEWS and owner is None:
            target = (
                "aten.reshape.default" if kind in ("Reshape", "Flatten") else "aten.clone.default"
            )
        args = [self._value(name) for name in read]
        made = tuple(self._add(name, Role.ACTIVATION, "", owner) for name in outs)
        self.program.nodes.append(
            Node(target, tuple(args), made, path, module_type, owner is not None, arguments=told)
        )

    def _target(
        self, node: Proto, kind: str, names: list[str]
    ) -> tuple[str, list[str], tuple[tuple[str, str], ...]]:
        """(the op of torch, the tensors that it reads, what it is told beside them)"""
        told: tuple[tuple[str, str], ...] = ()
        noted = attributes(node)
        if kind in ("Reciprocal", "Div") and names[-1] in self.roots:
            names, target = [self.roots[names[-1]]], "rsqrt"
        elif kind == "Gemm":
            names, target = self._gemm(names, noted)
        elif kind == "Gather":
            weight = names[0] in self.read.weights and len(self._type(names[0])[1]) == 2
            table = weight and noted.get("axis", 0) == 0
            target = "embedding" if table else "index_select"
        elif kind in POOLS:
            sides = list(noted["kernel_shape"])
            target, told = POOLS[kind].format(len(sides)), (("kernel_size", json.dumps(sides)),)
            names = names[:1]
        elif kind in OF_NOTHING:
            target, names = OF_NOTHING[kind], []
        elif kind in OF_THE_FIRST:
            target, names = OF_THE_FIRST[kind], names[:1]
            if kind == "Resize" and noted.get("mode", b"nearest") != b"nearest":
                target = "upsample_bilinear2d"
        elif kind in SAME:
            target = SAME[kind]
            if kind == "ConvTranspose":
                told = (("transposed", "true"),)
            if kind in SCALARS:
                many = [
                    name
                    for name in names
                    if prod(self._type(name)[1]) > 1 or name not in self.known
                ]
                names = many or names
        else:
            return f"onnx.{node.op_type}", names, told
        return f"aten.{target}" if "." in target else f"aten.{target}.default", names, told

    def _is_number(self, name: str) -> bool:
        return name in self.known and prod(self._type(name)[1]) == 1

    def _gemm(self, names: list[str], told: Mapping[str, Any]) -> tuple[list[str], str]:
        """(what is read, the op) of a product of two matrices, one or both of them turned."""
        a, b, *bias = names
        if told.get("transA"):
            a = self._turned(a)
        if told.get("transB"):
            return [a, b, *bias], "linear"
        return ([*bias, a, b], "addmm") if bias else ([a, b], "mm")

    def _turned(self, name: str) -> str:
        dtype, shape = self._type(name)
        turned = f"{name}.T"
        self.types[turned] = dtype, shape[::-1]
        source = self._value(name)
        owner = self.program.values[source].alias_of
        made = self._add(turned, Role.ACTIVATION, "", source if owner is None else owner)
        self.program.nodes.append(Node("aten.t.default", (source,), (made,), "", "", True))
        return turned

    # --- what shares memory ---

    def _shared(
        self, node: Proto, kind: str, read: Sequence[str], outs: Sequence[str]
    ) -> int | None:
        """The value whose memory a view's results lie in; None where it has to be copied."""
        if kind not in VIEWS:
            return None
        source = self._value(read[0])
        layouts = self._viewed(node, kind, self._layout(read[0], source), outs)
        if layouts is None:
            return None
        for name, layout in zip(outs, layouts, strict=True):
            self.layouts[len(self.program.values) + outs.index(name)] = layout
        owner = self.program.values[source].alias_of
        return source if owner is None else owner

    def _layout(self, name: str, index: int) -> "np.ndarray[Any, Any]":
        """Where the elements of a tensor lie: an array over no memory, which is never read."""
        import numpy as np

        if index not in self.layouts:
            shape = self._type(name)[1]
            strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
            byte = np.zeros(1, np.int8)
            self.layouts[index] = np.lib.stride_tricks.as_strided(byte, shape, strides)
        return self.layouts[index]

    def _viewed(
        self, node: Proto, kind: str, layout: "np.ndarray[Any, Any]", outs: Sequence[str]
    ) -> "list[np.ndarray[Any, Any]] | None":
        """The layouts of a view's results, None where no view has them."""
        import numpy as np

        told, shape = attributes(node), self._type(outs[0])[1]
        if kind == "Transpose":
            return [np.transpose(layout, told.get("perm"))]
        if kind == "Expand":
            return [np.broadcast_to(layout, shape)]
        if kind == "Slice":
            return self._sliced(node, layout, shape)
        if kind == "Split":
            axis = told.get("axis", 0)
            ends = np.cumsum([self._type(name)[1][axis] for name in outs])
            return list(np.split(layout, ends[:-1], axis))
        view = layout.view()
        try:
            view.shape = shape
        except AttributeError:  # its elements do not lie so
            return None
        return [view]

    def _sliced(
        self, node: Proto, layout: "np.ndarray[Any, Any]", shape: tuple[int, ...]
    ) -> "list[np.ndarray[Any, Any]] | None":
        given: list[Any] = [self.known.get(name) if name else None for name in node.input[1:]]
        if len(given) < 2 or given[0] is None or given[1] is None:
            return [layout[tuple(slice(0, size) for size in shape)]]
        starts, ends, axes, steps = (*given, None, None)[:4]
        axes = range(len(starts)) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        picked = [slice(None)] * layout.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if step < 0:
                return None  # torch has no view that goes backwards
            picked[int(axis)] = slice(int(start), int(end), int(step))
        return [layout[tuple(picked)]]


def _inverted_roots(graph: Proto) -> Iterator[tuple[str, str]]:
    """(result, argument) of each square root that is inverted and read by nothing else."""
    roots = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Sqrt"}
    ones = {one.name for one in graph.initializer if _is_one(one)}
    readers: dict[str, list[Proto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for name, argument in roots.items():
        match readers.get(name, []):
            case [node] if node.op_type == "Reciprocal" or (
                node.op_type == "Div" and node.input[0] in ones
            ):
                yield name, argument


def _is_one(told: Proto) -> bool:
    from onnx import numpy_helper

    return prod(told.dims) == 1 and bool((numpy_helper.to_array(told) == 1).all())


_FLOATING = ("float64", "float32", "float16", "bfloat16")


def _key(match: re.Match[str]) -> tuple[str | None, ...]:
    return match[1], match[2], match[3]


def _place(node: Proto) -> tuple[str, str]:
    """(path, class) of the module whose code a node is of, as torch's exporters note it."""
    noted = {one.key: one.value for one in node.metadata_props}
    try:
        scopes, classes = (
            json.loads(noted[f"pkg.torch.onnx.{key}"].replace("'", '"'))
            for key in ("name_scopes", "class_hierarchy")
        )
        inner = max(len(scopes) - 2, 0)  # the last is the node
        return str(scopes[inner]), str(classes[inner]).rpartition(".")[2]
    except (KeyError, ValueError, IndexError, TypeError):
        path = node.name.strip("/").split("/")[:-1] if node.name.startswith("/") else []
        return ".".join(path), ""


# --- a trace --------------------------------------------------------------------------------------


def capture_onnx(
    read: OnnxFile, asked: Mapping[str, int | None], own: Mapping[str, Any]
) -> Capture:
    """The op graph of a model at sizes; ``own`` are numbers for axes that are no size of a trace.

    Raises InputError for sizes that it does not have, CutedgeError where shapes are not known.
    """
    found = _sizes(read)
    for name, size in asked.items():
        if size is not None and name not in found.defaults:
            fixed = "no axis of its inputs is such a size"
            raise InputError(f"{read.name}: leave --{name} out: {fixed}")
    for name in own:
        if name not in found.own:
            has = (
                f"those of its own are {', '.join(sorted(found.own))}"
                if found.own
                else "it has none"
            )
            raise InputError(f"--set {name}: {read.file} has no such axis without a number; {has}")
    if missing := sorted(found.own - own.keys()):
        raise InputError(
            f"{read.file}: {plain(missing[0])} is an axis without a number: give one with "
            f"--set {plain(missing[0])}=..."
        )
    given = {name: size for name, size in asked.items() if size is not None}
    sizes = {**dict.fromkeys(_DEFAULTS, 0), "batch": 1, **found.defaults, **given}
    numbers = {name: tuple(_numbers(axes, sizes, own)) for name, axes in found.axes.items()}
    reader = _Reader(read, numbers)
    dtype = next((reader.types[n][0] for n in read.weights if reader._is_weight(n)), "float32")
    step = sizes["past"] > 0 and sizes["seq"] == 1
    meta = TraceMeta(
        model=read.name,
        phase="decode" if step else "prefill",
        **sizes,  # type: ignore[arg-type]  # sizes alone
        dtype=dtype,
        attn="eager",
        logits="all",
        symbolic=(),
        parameters=_parameters(reader.program),
        overrides=tuple((name, json.dumps(value)) for name, value in sorted(own.items())),
        versions=_versions(),
    )
    graph = build_graph(reader.program, meta)
    graph = graph.with_meta(_replaced(meta, attention_kind(graph)))
    here = ", ".join(f"{name} {size}" for name, size in sizes.items() if name in found.defaults)
    notes = (f"sizes are exact at {here or 'those of the file'}, formulas are null",)
    reach = Reach(
        tuple((name, size, size) for name, size in sizes.items()),
        notes=notes,
        defaults=tuple({**dict.fromkeys(_DEFAULTS, 0), "batch": 1, **found.defaults}.items()),
    )
    return Capture(graph, reach.warnings(read.name, sizes), reach, None)


def _numbers(
    axes: Iterable[int | str], sizes: Mapping[str, int], own: Mapping[str, Any]
) -> Iterator[int]:
    for axis in axes:
        if isinstance(axis, int):
            yield axis
        elif axis in sizes:
            yield sizes[axis]
        else:
            number = own.get(axis, _sum(axis, sizes))
            if type(number) is not int or not 0 <= number < 2**31:
                raise InputError(f"--set {axis}={number}: it is no size")
            yield number


def _parameters(program: Program) -> int:
    """Weights that are parameters, each counted once."""
    shapes = (v.shape for v in program.values if v.role is Role.PARAMETER)
    return sum(int(prod(shape, start=const(1)).evaluate({})) for shape in shapes)


def _versions() -> tuple[tuple[str, str], ...]:
    from importlib.metadata import version

    return tuple((name, version(name)) for name in ("cutedge", "onnx"))


def _replaced(meta: TraceMeta, attn: str) -> TraceMeta:
    from dataclasses import replace

    return replace(meta, attn=attn)

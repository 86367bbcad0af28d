"""config -> model on the meta device -> torch.export -> op graph. The only file that needs torch.

No weights exist at any moment: parameters are shapes on torch's meta device.
"""

import contextlib
import inspect
import io
import json
import logging
import operator
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sympy
import torch
import transformers
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod
from transformers import masking_utils

from tracer.errors import CutedgeError, InputError, suggest
from tracer.formula import Formula, const, maximum, minimum, var
from tracer.graph import OpGraph, Role, TraceMeta
from tracer.kinds import base_name
from tracer.program import TRACED_LAYERS, Node, Program, Stack, Value, build_graph, stamp

EXAMPLE_BATCH, EXAMPLE_SEQ = 3, 7
"""Sizes that a symbolic export runs at: small, odd, unlike each other and any size of a model."""

MANY = 2**20
"""Upper bound that a symbolic size is declared with where the model sets none."""


@dataclass(frozen=True, slots=True)
class Capture:
    """What came out of a capture."""

    graph: OpGraph
    warnings: tuple[str, ...]
    """One line for each thing a user must know before trusting the figures."""


def capture(
    config: Mapping[str, Any],
    *,
    model: str,
    batch: int = 1,
    seq: int = 1024,
    dtype: str = "float32",
    attn: str = "eager",
    logits: str = "last",
    overrides: Mapping[str, Any] | None = None,
    symbolic: bool = True,
    full: bool = False,
) -> Capture:
    """The op graph of the model that a config describes, prefilling ``batch`` x ``seq`` tokens.

    ``symbolic=False`` traces at the concrete sizes alone. ``full=True`` traces every layer; without
    it, equal layers are traced once and repeated. Raises InputError for a config that makes no
    model, CutedgeError for a model that cannot be exported.
    """
    with _quiet(), _as_it_runs():
        module = _build(config, overrides or {}, model=model, dtype=dtype, attn=attn)
        task = _Prefill(module, model, batch, seq, logits)
        notes = task.notes()
        ways = [way for way in task.ways() if symbolic or not way.symbolic]
        failure: _Untraceable | None = None
        for way in ways:
            try:
                program = _program(module, task, way, full)
                break
            except _Untraceable as error:
                failure = failure or error
        else:
            assert failure is not None
            raise task.refusal(failure, overrides or {}) from failure
        if failure is not None:
            notes.append(f"{model} cannot be traced for every batch and seq ({failure}): {way.note}")
        elif way.note:
            notes.append(way.note)
    meta = TraceMeta(
        model=model, phase="prefill", batch=batch, seq=seq, past=0, dtype=dtype, attn=attn,
        logits=task.logits, symbolic=way.symbolic, parameters=_parameter_count(module),
        overrides=tuple((k, json.dumps(v)) for k, v in sorted((overrides or {}).items())),
        versions=tuple((name, version(name)) for name in ("cutedge", "torch", "transformers")),
        repeated_layers=program.repeated,
    )  # fmt: skip
    return Capture(build_graph(program, meta), tuple(notes))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No chatter of the libraries: what a user must know comes as a warning or an error of ours."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()  # torch prints the whole graph of a failed export
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _as_it_runs() -> Iterator[None]:
    """Trace what a model does when it runs, not what transformers does for an export's sake.

    While exporting, transformers makes a mask where a run needs none (is_causal does for sdpa), and
    looks for sequences packed in one row, which inputs without position ids never are.
    """
    with (
        patch.object(masking_utils, "is_torchdynamo_exporting", lambda: False),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None),
    ):
        yield


def _first_line(error: BaseException) -> str:
    """The error in a line, without torch's advice on its own debugging."""
    first, *rest = str(error).strip().splitlines() or [""]
    if first.endswith(":") and rest:  # the reason stands in the second line
        first += f" {rest[0].strip()}"
    line = first.partition(" For more information")[0]
    return f"{type(error).__name__}: {line}".rstrip(".!: ")


class _Untraceable(Exception):
    """torch.export, or the lowering of what it gave, cannot carry this model; one line says why."""

    def __init__(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/transformers/models/" in f.filename.replace("\\", "/")]
        place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        super().__init__(_first_line(error) + place)


# --- the model ------------------------------------------------------------------------------------


def _build(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, model: str, dtype: str, attn: str
) -> torch.nn.Module:
    """The model of a config, in evaluation mode, with parameters that have shapes and no data."""
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{model}: transformers {version('transformers')} knows no model_type {kind!r}."
            + suggest(str(kind), transformers.CONFIG_MAPPING.keys())
        )
    config_class = transformers.CONFIG_MAPPING[kind]
    previous = torch.get_default_dtype()
    try:
        known = {*config, *config_class().to_dict(), *config_class.attribute_map}
        for key in overrides:
            if key.split(".")[0] not in known:
                raise InputError(
                    f"--set {key}: the config of {model} ({config_class.__name__}) has no such "
                    "field." + suggest(key, known)
                )
        merged = _override(config, overrides, config_class.attribute_map)
        settings = config_class.from_dict(merged, attn_implementation=attn)
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device("meta"):
            module: torch.nn.Module = _model_class(settings, config)(settings)
    except InputError:
        raise
    except Exception as error:  # any mistake in a config surfaces as any exception of transformers
        raise InputError(
            f"{model}: no model can be built from this config: {_first_line(error)}."
            + (f" Check --set {', '.join(overrides)}." if overrides else " Check the config.json.")
        ) from error
    finally:
        torch.set_default_dtype(previous)
    # A few modules choose their parameters' dtype themselves; the user's choice holds for all.
    # Buffers (RoPE's frequencies) keep the precision that their code asks for.
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return module.eval()


def _override(
    config: Mapping[str, Any], overrides: Mapping[str, Any], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """The config with the overrides applied; a dot in a key reaches into a nested table."""
    result: dict[str, Any] = json.loads(json.dumps(config))
    for key, value in overrides.items():
        first, *rest = key.split(".")
        path = [aliases.get(first, first), *rest]
        table = reduce(lambda t, k: t.setdefault(k, {}), path[:-1], result)
        table[path[-1]] = value
    return result


def _model_class(settings: Any, config: Mapping[str, Any]) -> Any:
    """The class that the config names, else the causal LM of its type, else the bare model."""
    for name in config.get("architectures") or ():
        if (found := getattr(transformers, name, None)) is not None:
            return found
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(settings) in mapping:
            return mapping[type(settings)]
    raise InputError(f"no architecture for model_type {settings.model_type!r}")


def _parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to export: which sizes stay symbols, and within which bounds."""

    bounds: Mapping[str, tuple[int, int]]
    """Symbol -> (least, greatest size); a size that is not here is concrete."""
    note: str = ""
    """What a user must know of a trace made in this way."""

    @property
    def symbolic(self) -> tuple[str, ...]:
        """The sizes that stay symbols."""
        return tuple(self.bounds)


class _Prefill:
    """Prefill: the inputs of one forward over ``batch`` x ``seq`` new tokens, without a cache.

    Raises CutedgeError for a model that reads something else than tokens.
    """

    def __init__(
        self, module: torch.nn.Module, model: str, batch: int, seq: int, logits: str
    ) -> None:
        accepted = inspect.signature(module.forward).parameters
        self.settings: Any = module.config
        self.name, self.model = type(module).__name__, model
        if "input_ids" not in accepted or getattr(self.settings, "is_encoder_decoder", False):
            raise CutedgeError(
                f"{model}: {self.name} does not run on token ids alone; "
                "models that do can be traced (decoders and encoders of text)"
            )
        self.sizes = {"batch": batch, "seq": seq}
        self.options: dict[str, Any] = {}
        if "use_cache" in accepted:
            self.options["use_cache"] = False
        self.logits = "all"
        if logits == "last" and "logits_to_keep" in accepted:
            self.options["logits_to_keep"] = 1
            self.logits = "last"
        self.ignored = logits == "last" and self.logits == "all" and "CausalLM" in self.name

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model has positions for, None when it sets no limit."""
        return getattr(self.settings, "max_position_embeddings", None)

    @property
    def run_sizes(self) -> dict[str, int]:
        """The sizes of the trace, not beyond the model's positions: a run must be possible."""
        return {**self.sizes, "seq": min(self.sizes["seq"], self.positions or MANY)}

    def notes(self) -> list[str]:
        """What a user must know whatever way the trace is made."""
        found = []
        if self.positions is not None and self.sizes["seq"] > self.positions:
            found.append(
                f"seq {self.sizes['seq']} is beyond the {self.positions} positions of "
                f"{self.model}: the figures follow the formulas, the real model was not made for it"
            )
        if self.ignored:
            found.append(f"{self.name} makes the logits of every token, not of the last alone")
        return found

    def ways(self) -> list[_Way]:
        """How to try the export, the most telling way first."""
        seq = self.sizes["seq"]
        most = max(self.positions or MANY, EXAMPLE_SEQ)
        batches = (2, MANY)
        here = f"batch {self.sizes['batch']}, seq {seq}"
        concrete = _Way({}, f"sizes are exact at {here}, formulas are null")
        if seq == 1:  # a size of one is special to torch (it broadcasts): no formula in seq
            return [_Way({"batch": batches}, "seq 1 gives no formulas in seq"), concrete]
        ways = [_Way({"batch": batches, "seq": (2, most)})]
        window = getattr(self.settings, "sliding_window", None)
        if isinstance(window, int) and EXAMPLE_SEQ < window <= most:
            # Where a window ends, a model may take another path: stay on this side of it.
            side, words = ((2, window - 1), "below") if seq < window else ((window, most), "from")
            note = f"the formulas hold for seq {words} {window}, its sliding window"
            ways.append(_Way({"batch": batches, "seq": side}, note))
        return [*ways, concrete]

    def refusal(self, failure: Exception, overrides: Mapping[str, Any]) -> CutedgeError:
        """The error for a model that no way could trace."""
        said = f"{self.model} cannot be traced: {failure}."
        if overrides:
            return InputError(f"{said} Check --set {', '.join(overrides)}.")
        return CutedgeError(f"{said} Try --attn sdpa or another --seq.")

    def example(self, way: _Way) -> dict[str, Any]:
        """The inputs to export with: symbols at sizes that are small, odd and unlike others."""
        sizes = dict(self.sizes)
        for name, size in (("batch", EXAMPLE_BATCH), ("seq", EXAMPLE_SEQ)):
            if name in way.bounds:
                sizes[name] = max(size, way.bounds[name][0])
        shape = (sizes["batch"], sizes["seq"])
        return {"input_ids": torch.zeros(shape, dtype=torch.int64, device="meta")}


# --- export ---------------------------------------------------------------------------------------


def _program(module: torch.nn.Module, task: _Prefill, way: _Way, full: bool) -> Program:
    """The program of the model, exported in one way."""
    stack = None if full else _stack(module)
    if stack is not None:
        with _shortened(module, stack):
            exported = _export(module, task, way)
        stamped = stamp(_Lowering(exported, module, task.run_sizes).program, stack)
        if stamped is not None:
            return stamped
    return _Lowering(_export(module, task, way), module, task.run_sizes).program


def _export(module: torch.nn.Module, task: _Prefill, way: _Way) -> ExportedProgram:
    example = task.example(way)
    dims = {
        axis: Dim(name, min=way.bounds[name][0], max=way.bounds[name][1])
        for axis, name in enumerate(("batch", "seq"))
        if name in way.bounds
    }
    shapes = dict.fromkeys(example, dims) | dict.fromkeys(task.options)
    inputs = {**example, **task.options}
    try:
        return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch and the model's own code may raise anything here
        raise _Untraceable(error) from error


def _stack(module: torch.nn.Module) -> Stack | None:
    """The module's one list of equal blocks, None when there is none or more than one.

    Blocks are equal when their classes, parameters, buffers and attributes are (an attribute that
    is just the block's index aside), and when no list in the config gives them unlike entries.
    """
    found: list[Stack] = []
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) > TRACED_LAYERS + 1:
            if not any(name.startswith(other.path + ".") for other in found):
                found.append(Stack(name, len(child)))
    if len(found) != 1:
        return None
    (stack,) = found
    blocks = [_attributes(block) for block in module.get_submodule(stack.path).children()]
    if any(block.keys() != blocks[0].keys() for block in blocks):
        return None
    for name in blocks[0]:
        values = [block[name] for block in blocks]
        if any(value != values[0] for value in values) and values != list(
            map(str, range(len(blocks)))
        ):
            return None
    for value in vars(module.config).values():
        if isinstance(value, list | tuple) and len(value) == stack.depth:
            if any(entry != value[0] for entry in value):
                return None
    return stack


def _attributes(block: torch.nn.Module) -> dict[str, str]:
    """All that tells one block from another: classes, parameters, buffers, plain attributes."""
    found = {}
    for name, module in block.named_modules():
        found[f"{name}:"] = f"{type(module).__module__}.{type(module).__qualname__}"
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            found[f"{name}:{key}"] = "" if tensor is None else f"{tensor.shape} {tensor.dtype}"
        for key, value in vars(module).items():
            if not key.startswith("_"):
                found[f"{name}.{key}"] = _describe(value)
    return found


def _describe(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | torch.Size | torch.dtype):
        return repr(value)
    if isinstance(value, list | tuple):
        return repr([_describe(item) for item in value])
    if isinstance(value, dict):
        return repr({str(k): _describe(v) for k, v in value.items()})
    # Anything else is alike only when it is the same object (the config, an activation function).
    return f"{type(value).__qualname__} at {id(value)}"


@contextlib.contextmanager
def _shortened(module: torch.nn.Module, stack: Stack) -> Iterator[None]:
    """The model with four blocks of its stack: the first two, an even one halfway, and the last.

    Blocks far apart show code that looks at a block's index, and the config counts four layers, so
    that code which treats the last one apart does so here too: then the repetition is refused.
    """
    parent, _, name = stack.path.rpartition(".")
    owner = module.get_submodule(parent)
    blocks = module.get_submodule(stack.path)
    settings: dict[str, Any] = vars(module.config)
    counts = [k for k, v in settings.items() if "layer" in k and v == stack.depth]
    chosen = [blocks[i] for i in (0, 1, stack.depth // 4 * 2, stack.depth - 1)]
    setattr(owner, name, torch.nn.ModuleList(chosen))
    settings.update(dict.fromkeys(counts, TRACED_LAYERS))
    try:
        yield
    finally:
        setattr(owner, name, blocks)
        settings.update(dict.fromkeys(counts, stack.depth))


# --- lowering -------------------------------------------------------------------------------------


class _Lowering:
    """The exported graph as a program: noise gone, aliases known, sizes as formulas.

    ``sizes`` are those of the trace: what shares memory with what is taken from a run of the graph
    there, since a reshape may have to copy at one size and not at another.
    """

    def __init__(
        self, exported: ExportedProgram, module: torch.nn.Module, sizes: Mapping[str, int]
    ) -> None:
        self.program = Program()
        self.value_of: dict[torch.fx.Node, int | tuple[int, ...]] = {}
        self.owner: dict[int, int] = {}  # storage -> the value that owns it
        self.names: dict[str, int] = {}  # parameter or buffer name -> value
        self.sizes: dict[Any, Formula] = {}
        self._add_state(module)
        signature = exported.graph_signature
        state = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        nodes = list(exported.graph.nodes)
        self.position = {node: number for number, node in enumerate(nodes)}
        self._name_sizes(nodes, state)
        self.real = self._run(exported, sizes)
        for node in nodes:
            match node.op:
                case "placeholder":
                    self._placeholder(node, state.get(node.name))
                case "call_function":
                    self._call(node)
                case "output":
                    results = [n for n in _flat(node.args) if self._is_tensor(n)]
                    args = tuple(dict.fromkeys(self._index(n) for n in results))
                    self.program.nodes.append(Node("output", args, (), "", ""))

    def _run(
        self, exported: ExportedProgram, sizes: Mapping[str, int]
    ) -> Mapping[torch.fx.Node, Any]:
        """What each node makes, as meta tensors at ``sizes``; as traced where it cannot be run.

        Raises _Untraceable when a formula gives another shape than the run.
        """
        traced = {node: node.meta.get("val") for node in exported.graph.nodes}
        inputs = [value for node, value in traced.items() if node.op == "placeholder"]
        recorder = _Recorder(exported.graph_module)
        try:
            recorder.run(*(self._meta(v, sizes) for v in inputs), enable_io_processing=False)
        except Exception:  # code that looks at values, or a seq that the example rules out
            return traced
        for node, made in recorder.made.items():
            if node.op == "output":
                continue
            for symbolic, real in zip(_tensors(traced[node]), _tensors(made), strict=True):
                shape = tuple(self._size(size).evaluate(sizes) for size in symbolic.shape)
                if shape != tuple(real.shape):
                    problem = f"{node.target} makes {tuple(real.shape)}, its formula {shape}"
                    raise _Untraceable(ValueError(problem))
        return recorder.made

    def _meta(self, value: Any, sizes: Mapping[str, int]) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = [self._size(size).evaluate(sizes) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")

    def _add_state(self, module: torch.nn.Module) -> None:
        """Parameters and buffers, also those that the exported part does not read."""
        owners: dict[int, int] = {}
        for role, tensors in (
            (Role.PARAMETER, module.named_parameters(remove_duplicate=False)),
            (Role.BUFFER, module.named_buffers(remove_duplicate=False)),
        ):
            for name, tensor in tensors:
                storage = _memory(tensor)
                index = self._add_value(tensor, name, role, owners.get(storage))
                owners.setdefault(storage, index)
                self.names[name] = owners[storage]

    def _name_sizes(self, nodes: Sequence[torch.fx.Node], state: Mapping[str, str]) -> None:
        """Learn which of torch's symbols is the batch and which the sequence, from the inputs."""
        for node in nodes:
            if node.op == "placeholder" and node.name not in state and self._is_tensor(node):
                for name, size in zip(("batch", "seq"), node.meta["val"].shape, strict=False):
                    if isinstance(size, torch.SymInt):
                        self.sizes[size.node.expr] = var(name)

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
        raise _Untraceable(NotImplementedError(f"a size is {expr}, which no formula can say"))

    def _placeholder(self, node: torch.fx.Node, name: str | None) -> None:
        if not self._is_tensor(node):
            return
        tensor = node.meta["val"]
        if name is not None:
            if name not in self.names:  # a tensor that the code made from Python numbers
                self.names[name] = self._add_value(tensor, name, Role.CONSTANT, None)
            self.value_of[node] = self.names[name]
        else:
            index = self._add_value(tensor, node.name, Role.INPUT, None)
            self.value_of[node] = index
            self.program.nodes.append(Node("input", (), (index,), "", ""))
        self.owner[_memory(self.real[node])] = self._index(node)

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
        if not results:
            return  # an assertion, a size: no tensor comes of it
        inputs = [n for n in _flat((node.args, node.kwargs)) if n in self.value_of]
        real = _tensors(self.real[node])
        if same := self._no_op(node, inputs):
            self.value_of[node] = self._index(same)
            self.owner.setdefault(_memory(real[0]), self._owner(self._index(same)))
            return
        outs = []
        mutates = _mutates(str(node.target))
        view = not mutates
        for result, memory in zip(results, map(_memory, real), strict=True):
            outs.append(self._add_value(result, "", Role.ACTIVATION, self.owner.get(memory)))
            view = view and memory in self.owner
            self.owner.setdefault(memory, outs[-1])
        args = [self._index(n) for n in inputs]
        many = not isinstance(node.meta["val"], torch.Tensor)
        self.value_of[node] = tuple(outs) if many else outs[0]
        if mutates and inputs:
            # Later readers see the new values: of the tensor written to, and of all that share its
            # memory. The op makes those too, from what they were before.
            self.value_of[inputs[0]] = outs[0]
            for other in self._sharing(inputs[0], node):
                args.append(self._index(other))
                owner = self._owner(self._index(other))
                outs.append(self._add_value(other.meta["val"], "", Role.ACTIVATION, owner))
                self.value_of[other] = outs[-1]
        path, module_type = _module(node)
        self.program.nodes.append(
            Node(str(node.target), tuple(args), tuple(outs), path, module_type, view)
        )

    def _owner(self, value: int) -> int:
        alias = self.program.values[value].alias_of
        return value if alias is None else alias

    def _sharing(self, written: torch.fx.Node, by: torch.fx.Node) -> list[torch.fx.Node]:
        """The other tensors in the memory of ``written`` that something after ``by`` reads."""
        memory = _memory(self.real[written])
        return [
            node
            for node, value in self.value_of.items()
            if node not in (written, by)
            and isinstance(value, int)
            and _memory(self.real[node]) == memory
            and any(self.position[user] > self.position[by] for user in node.users)
        ]

    def _no_op(self, node: torch.fx.Node, inputs: Sequence[torch.fx.Node]) -> Any:
        """The input that a node hands on unchanged (a cast to the same dtype, a dropout in
        evaluation, a slice of everything), None for a node that does something."""
        if not inputs or not self._is_tensor(node):
            return None
        if base_name(str(node.target)) in ("dropout", "feature_dropout", "alpha_dropout"):
            return None if node.args[2] else inputs[0]
        source, result = inputs[0].meta["val"], node.meta["val"]
        if not isinstance(source, torch.Tensor) or base_name(str(node.target)) == "copy":
            return None
        same = _layout(source) == _layout(result) and not _mutates(str(node.target))
        return inputs[0] if same else None


class _Recorder(torch.fx.Interpreter):
    """Runs an exported graph and keeps what each node makes."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.made: dict[torch.fx.Node, Any] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        """Run a node as usual; its tensors stay alive, so that no two share an address."""
        self.made[node] = super().run_node(node)
        return self.made[node]


def _tensors(made: Any) -> list[torch.Tensor]:
    """The tensors that a node makes: one, several, or none."""
    results = made if isinstance(made, list | tuple) else [made]
    return [result for result in results if isinstance(result, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    """The identity of the memory under a tensor."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _mutates(target: str) -> bool:
    """Whether an ATen op writes into its first argument (``aten.add_.Tensor``)."""
    return base_name(target) != target.split(".")[1]


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same elements of the same memory."""
    numbers = [*tensor.shape, *tensor.stride(), tensor.storage_offset()]
    plain = [n.node.expr if isinstance(n, torch.SymInt) else n for n in numbers]
    return (_memory(tensor), tensor.dtype, tensor.dim(), *plain)


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

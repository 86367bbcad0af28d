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

import sympy
import torch
import transformers
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

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
    with _quiet():
        module = _build(config, overrides or {}, model=model, dtype=dtype, attn=attn)
        task = _Prefill(module, logits)
        notes = task.notes(model, seq)
        # A size of one is special to torch (it broadcasts), so no formula in seq holds there.
        fixed = {"seq": 1} if seq == 1 else {}
        program = None
        if symbolic:
            try:
                program = _program(module, task, fixed, full)
            except _Untraceable as error:
                notes.append(
                    f"{model} cannot be traced with symbolic batch and seq ({error}); "
                    f"traced at batch {batch}, seq {seq}: sizes are exact, formulas are null"
                )
        if program is None:
            fixed = {"batch": batch, "seq": seq}
            try:
                program = _program(module, task, fixed, full)
            except _Untraceable as error:
                raise CutedgeError(
                    f"{model} cannot be traced: {error}. Try --attn sdpa or another --seq."
                ) from error
    meta = TraceMeta(
        model=model, phase="prefill", batch=batch, seq=seq, past=0, dtype=dtype, attn=attn,
        logits=task.logits, symbolic=tuple(v for v in ("batch", "seq") if v not in fixed),
        parameters=_parameter_count(module),
        overrides=tuple((k, json.dumps(v)) for k, v in sorted((overrides or {}).items())),
        versions=tuple((name, version(name)) for name in ("cutedge", "torch", "transformers")),
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


def _first_line(error: BaseException) -> str:
    """The error in a line, without torch's advice on its own debugging."""
    line = (str(error).strip().splitlines() or [""])[0].partition(" For more information")[0]
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
    return module.to(getattr(torch, dtype)).eval()


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


class _Prefill:
    """Prefill: the inputs of one forward over ``batch`` x ``seq`` new tokens, without a cache."""

    def __init__(self, module: torch.nn.Module, logits: str) -> None:
        accepted = inspect.signature(module.forward).parameters
        self.settings: Any = module.config
        self.options: dict[str, Any] = {}
        if "use_cache" in accepted:
            self.options["use_cache"] = False
        self.logits = "all"
        self.ignored_last = logits == "last" and "logits_to_keep" not in accepted
        if logits == "last" and "logits_to_keep" in accepted:
            self.options["logits_to_keep"] = 1
            self.logits = "last"

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model has positions for, None when it sets no limit."""
        return getattr(self.settings, "max_position_embeddings", None)

    def notes(self, model: str, seq: int) -> list[str]:
        if self.positions is not None and seq > self.positions:
            return [
                f"seq {seq} is beyond the {self.positions} positions of {model}: "
                "the figures follow the formulas, the real model was not made for it"
            ]
        return []

    def example(self, batch: int, seq: int) -> dict[str, Any]:
        return {"input_ids": torch.zeros(batch, seq, dtype=torch.int64, device="meta")}


# --- export ---------------------------------------------------------------------------------------


def _program(
    module: torch.nn.Module, task: _Prefill, fixed: Mapping[str, int], full: bool
) -> Program:
    """The program of the model with the sizes in ``fixed`` concrete and the others symbolic."""
    stack = None if full else _stack(module)
    if stack is not None:
        with _shortened(module, stack):
            exported = _export(module, task, fixed)
        stamped = stamp(_lower(exported, module), stack)
        if stamped is not None:
            return stamped
    return _lower(_export(module, task, fixed), module)


def _export(module: torch.nn.Module, task: _Prefill, fixed: Mapping[str, int]) -> ExportedProgram:
    example = task.example(fixed.get("batch", EXAMPLE_BATCH), fixed.get("seq", EXAMPLE_SEQ))
    most = {"batch": MANY, "seq": max(task.positions or MANY, EXAMPLE_SEQ)}
    dims = {
        axis: Dim(name, min=2, max=most[name])
        for axis, name in enumerate(("batch", "seq"))
        if name not in fixed
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
    """The model with four blocks of its stack: the first two, one halfway, and the last.

    Blocks far apart show code that looks at a block's index, and the config counts four layers, so
    that code which treats the last one apart does so here too: then the repetition is refused.
    """
    parent, _, name = stack.path.rpartition(".")
    owner = module.get_submodule(parent)
    blocks = module.get_submodule(stack.path)
    settings: dict[str, Any] = vars(module.config)
    counts = [k for k, v in settings.items() if "layer" in k and v == stack.depth]
    chosen = [blocks[i] for i in (0, 1, stack.depth // 2, stack.depth - 1)]
    setattr(owner, name, torch.nn.ModuleList(chosen))
    settings.update(dict.fromkeys(counts, TRACED_LAYERS))
    try:
        yield
    finally:
        setattr(owner, name, blocks)
        settings.update(dict.fromkeys(counts, stack.depth))


# --- lowering -------------------------------------------------------------------------------------


def _lower(exported: ExportedProgram, module: torch.nn.Module) -> Program:
    """The exported graph as a program: noise gone, aliases known, sizes as formulas."""
    return _Lowering(exported, module).program


class _Lowering:
    def __init__(self, exported: ExportedProgram, module: torch.nn.Module) -> None:
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
        self._name_sizes(nodes, state)
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

    def _add_state(self, module: torch.nn.Module) -> None:
        """Parameters and buffers, also those that the exported part does not read."""
        owners: dict[int, int] = {}
        for role, tensors in (
            (Role.PARAMETER, module.named_parameters(remove_duplicate=False)),
            (Role.BUFFER, module.named_buffers(remove_duplicate=False)),
        ):
            for name, tensor in tensors:
                storage = tensor.untyped_storage()._cdata
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
        storage = tensor.untyped_storage()._cdata
        if name is not None:
            if name not in self.names:  # a tensor that the code made from Python numbers
                self.names[name] = self._add_value(tensor, name, Role.CONSTANT, None)
            self.value_of[node] = self.names[name]
        else:
            index = self._add_value(tensor, node.name, Role.INPUT, None)
            self.value_of[node] = index
            self.program.nodes.append(Node("input", (), (index,), "", ""))
        self.owner[storage] = self._index(node)

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
        made = node.meta.get("val")
        results = [made] if isinstance(made, torch.Tensor) else made
        if not isinstance(results, list | tuple) or not any(
            isinstance(result, torch.Tensor) for result in results
        ):
            return  # an assertion, a size: no tensor comes of it
        inputs = [n for n in _flat((node.args, node.kwargs)) if n in self.value_of]
        if same := self._no_op(node, inputs):
            self.value_of[node] = self._index(same)
            return
        mutates = base_name(str(node.target)) != str(node.target).split(".")[1]
        outs = []
        view = not mutates
        for result in results:
            storage = result.untyped_storage()._cdata
            outs.append(self._add_value(result, "", Role.ACTIVATION, self.owner.get(storage)))
            view = view and storage in self.owner
            self.owner.setdefault(storage, outs[-1])
        args = tuple(self._index(n) for n in inputs)
        path, module_type = _module(node)
        self.program.nodes.append(
            Node(str(node.target), args, tuple(outs), path, module_type, view)
        )
        self.value_of[node] = outs[0] if isinstance(made, torch.Tensor) else tuple(outs)
        if mutates and inputs:  # later readers of the changed tensor see the new value
            self.value_of[inputs[0]] = outs[0]

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
        same = _layout(source) == _layout(result) and str(node.target).split(".")[1][-1] != "_"
        return inputs[0] if same else None


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same elements of the same memory."""
    numbers = [*tensor.shape, *tensor.stride(), tensor.storage_offset()]
    plain = [n.node.expr if isinstance(n, torch.SymInt) else n for n in numbers]
    return (tensor.untyped_storage()._cdata, tensor.dtype, tensor.dim(), *plain)


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

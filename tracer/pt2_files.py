"""What a .pt2 archive of ``torch.export.save`` says, read as data: torch-free, nothing unpickled.

Torch's own loader unpickles the example inputs, some weights and some constants, looks the targets
of calls up attribute by attribute, and hands the texts of sizes to ``eval``. None of that is needed
for an op graph: shapes are in the program's JSON, and what shares memory is in the JSON beside the
weights. Here the JSON alone is read, and what would run code at torch's hands is checked or dropped.
"""

import ast
import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.errors import CutedgeError, InputError
from tracer.files import open_file, parse_json
from tracer.words import plain

Json = Any
"""What JSON may hold."""

SUFFIX = ".pt2"

_MOST_MEMBERS, _MOST_JSON, _MOST_CONSTANT = 2**18, 2**30, 2**20
"""Members of an archive, bytes of its JSON, and of a constant whose numbers are looked at."""

_END = 22
"""Bytes of the end of an archive without a comment, as torch writes it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a weight or a constant lies."""

    file: str
    """The member that holds it: two with one have memory in common."""
    meta: Mapping[str, Json] | None
    """Its shape, strides and offset; None where it is pickled."""
    data: bytes | None = None
    """The bytes of its member, of a small constant that is not pickled."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported program as its archive has it."""

    name: str
    """What the model's tables are called by: the file's name without its end."""
    file: str
    """The file, as the user calls it."""
    program: Mapping[str, Json]
    """Its JSON, with wrapped calls in line, and without what only torch's tools read."""
    parts: Mapping[str, Part]
    """By the name of a parameter, a buffer or a constant."""
    cached: tuple[str, ...]
    """The inputs that are cached state, in order, and last among the results what they are then."""
    returned: int
    """How many results are cached state."""
    digest: str
    """A hash of all that was read: equal for programs that trace alike."""


def read_pt2(path: Path) -> Exported:
    """The program in an archive. The weights are not read, however large they are.

    Raises InputError for what is no such archive, CutedgeError for one that is damaged or hostile.
    """
    try:
        with open_file(path) as stream:
            stream.seek(-min(_END, stream.seek(0, 2)), 2)
            if not stream.read().startswith(b"PK\5\6"):  # else the end of an archive inside it
                raise zipfile.BadZipFile
            with zipfile.ZipFile(stream) as archive:
                return _read(path, archive)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise CutedgeError(
            f"{path} is no .pt2 archive of torch.export.save, or it is cut or damaged: save it anew"
        ) from error
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CutedgeError(
            f"{path} is damaged: what it says of its program is not what torch.export.save writes"
        ) from error


def _read(path: Path, archive: zipfile.ZipFile) -> Exported:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) > _MOST_MEMBERS or len(members) < len(archive.infolist()):
        raise CutedgeError(f"{path} is damaged: it has too many members, or one of them twice")
    hashed = hashlib.sha256()

    def content(name: str, most: int) -> bytes:
        info = members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CutedgeError(f"{path}: {plain(name)} is compressed, as torch writes no archive")
        if info.file_size > most:
            raise CutedgeError(
                f"{path}: {plain(name)} has {info.file_size:,} bytes, which is absurd"
            )
        data = archive.read(name)
        hashed.update(f"\n{name} {len(data)}\n".encode() + data)
        return data

    place = _program_in(path, members)
    before, after = place.partition("models/")[::2]
    program = parse_json(content(place, _MOST_JSON))
    parts: dict[str, Part] = {}
    for folder, told in (
        ("weights", f"{before}data/weights/{after[:-5]}_weights_config.json"),
        ("constants", f"{before}data/constants/{after[:-5]}_constants_config.json"),
    ):
        if told not in members:  # one that an older torch wrote has them pickled
            continue
        for name, one in parse_json(content(told, _MOST_JSON))["config"].items():
            file = f"{before}data/{folder}/{one['path_name']}"
            if file not in members:
                raise CutedgeError(f"{path} is damaged: it lacks {plain(file)}, which has {name}")
            meta = None if one["use_pickle"] else one["tensor_meta"]
            small = folder == "constants" and members[file].file_size <= _MOST_CONSTANT
            data = content(file, _MOST_CONSTANT) if small and meta else None
            parts[name] = Part(f"{folder}/{one['path_name']}", meta, data)
    one = _Checked(path, program)
    digest = hashed.hexdigest()
    return Exported(path.stem, str(path), one.program, parts, one.cached, one.returned, digest)


def _program_in(path: Path, members: Mapping[str, object]) -> str:
    """The member that holds the program. Raises InputError where there is not one."""
    if "serialized_exported_program.json" in members:  # before torch 2.8
        return "serialized_exported_program.json"
    found = [name for name in members if re.fullmatch(r"(?:[^/]+/)?models/[^/]+\.json", name)]
    if any("/data/aotinductor/" in f"/{name}" for name in members) and not found:
        raise InputError(
            f"{path} is a compiled package of AOTInductor: it holds machine code and no graph. "
            "Give the archive that torch.export.save wrote"
        )
    if not found:
        raise InputError(f"{path} is no .pt2 archive of torch.export.save: it holds no program")
    if len(found) > 1:
        names = ", ".join(sorted(plain(Path(name).stem) for name in found))
        raise InputError(f"{path} holds {len(found)} programs ({names}): save one in a file")
    return found[0]


# --- what is in the JSON --------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATORS = _words("""
    add sub mul truediv floordiv mod pow neg pos and_ or_ xor not_ invert lshift rshift eq ne lt le
    gt ge getitem abs truth index""")
_MATH = _words("ceil floor trunc sqrt pow log log2 exp")
_SYM = _words("sym_int sym_float sym_not sym_ite sym_max sym_min sym_sum sym_sqrt")
_OP = re.compile(r"torch\.ops\.(?!higher_order\.)[A-Za-z_]\w*\.\w+\.\w+")
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
"""Calls of a graph of their own that does what it would do in line."""

_FUNCTIONS = _words("""
    Integer Rational Float Add Mul Mod Max Min FloorDiv ModularIndexing Where PythonMod CleanDiv
    CeilToInt FloorToInt CeilDiv LShift RShift FloatPow FloatTrueDiv IntTrueDiv TruncToFloat
    TruncToInt RoundToInt RoundDecimal ToFloat Identity Equality Unequality StrictLessThan LessThan
    StrictGreaterThan GreaterThan And Or Not Eq Ne Lt Le Gt Ge""")
"""What the text of a size may call: sums, products and the like."""

_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,9}")
_LONGEST_SIZE, _MOST_NUMBER, _LARGEST_POWER = 5000, 2**63, 8


class _Checked:
    """A program's JSON with all that torch reads of it checked."""

    def __init__(self, path: Path, program: Json) -> None:
        self.path = path
        module = program["graph_module"]
        for key in ("major", "minor"):
            if type(program["schema_version"][key]) is not int:
                raise ValueError(key)
        graph = self._in_line(module["graph"])
        if graph["custom_obj_values"]:
            kinds = {str(o.get("class_fqn")) for o in graph["custom_obj_values"].values()}
            raise InputError(
                f"{path} holds objects of {plain(', '.join(sorted(kinds)))}: they are pickled code "
                "and data of their own, which is not loaded. Export the model without them"
            )
        for node in graph["nodes"]:
            node["metadata"] = self._metadata(node["metadata"])
            self._check_target(node["target"])
        self._check_sizes(graph)
        signature = module["signature"]
        given, made = _states(module)
        self.cached = _states_given(signature["input_specs"], given)
        results, self.returned = self._results(graph, signature["output_specs"], made)
        if len(results) < len(graph["outputs"]):
            graph["is_single_tensor_return"] = False
        graph["outputs"] = [out for _, out in results]
        self.program = {
            "graph_module": {
                "graph": graph,
                "signature": {
                    "input_specs": signature["input_specs"],
                    "output_specs": [spec for spec, _ in results],
                },
                "module_call_graph": [],
                "metadata": {},
            },
            "opset_version": {},
            "range_constraints": self._ranges(program["range_constraints"]),
            "schema_version": program["schema_version"],
            "verifiers": ["TRAINING"],
            "torch_version": str(program.get("torch_version", ""))[:40],
            "guards_code": [],
        }

    def _results(
        self, graph: Mapping[str, Json], specs: Json, states: list[bool]
    ) -> tuple[list[tuple[Json, Json]], int]:
        """(the results with their specs, cached state last, how many are that).

        What a run writes into buffers and inputs is no result, nor is what it was given.
        """
        pairs = zip(specs, graph["outputs"], strict=True)
        results = [(spec, out) for spec, out in pairs if "user_output" in spec]
        if len(states) != len(results):
            states = [False] * len(results)
        inputs = {_name(one) for one in graph["inputs"]} - {None}
        told = [*zip(states, results, strict=True)]
        kept = [one for is_state, one in told if is_state]
        made = [one for is_state, one in told if not is_state and _name(one[1]) not in inputs]
        return [*made, *kept], len(kept)

    def _metadata(self, told: Mapping[str, Json]) -> dict[str, str]:
        """Where in the model's code and modules a call is; all else is for torch's tools."""
        kept = {}
        for key in ("nn_module_stack", "stack_trace"):
            if text := str(told.get(key) or ""):
                kept[key] = text
        if "_empty_nn_module_stack" in kept.get("nn_module_stack", ""):
            del kept["nn_module_stack"]
        return kept

    def _check_target(self, target: str) -> None:
        """Raise for what is no op: torch would take any attribute of its own (``torch.os``)."""
        module, _, name = target.rpartition(".")
        known = {"_operator": _OPERATORS, "math": _MATH, "torch": _SYM}
        if name in known.get(module, ()) or _OP.fullmatch(target):
            return
        if target.startswith("torch.ops.higher_order."):
            raise InputError(
                f"{self.path} calls {plain(name)}, which runs a graph of its own by what the data "
                "is: such a program is not traced"
            )
        raise CutedgeError(
            f"{self.path} is damaged or hostile: it calls {plain(target, 60)}, which is no op of "
            "torch; nothing of it was run"
        )

    def _ranges(self, told: Mapping[str, Json]) -> dict[str, Json]:
        for symbol, ends in told.items():
            numbers = [ends[key] for key in ("min_val", "max_val")]
            if not _SYMBOL.fullmatch(symbol):
                raise ValueError(symbol)
            if not all(n is None or type(n) is int for n in numbers):
                raise ValueError(numbers)
        return dict(told)

    def _check_sizes(self, tree: Json) -> None:
        """Raise where the text of a size, which torch evaluates, is more than arithmetic."""
        for key, value in _fields(tree):
            if key == "expr_str":
                try:
                    sound = len(value) <= _LONGEST_SIZE and _is_size(ast.parse(value, mode="eval"))
                except (SyntaxError, ValueError, MemoryError):
                    sound = False
                if not sound:
                    raise CutedgeError(
                        f"{self.path} is damaged or hostile: {plain(value, 60)} is no size; nothing "
                        "of it was run"
                    )
            elif key == "as_int" and not (
                type(value) is int and -_MOST_NUMBER <= value < _MOST_NUMBER
            ):
                raise ValueError(value)
            elif key in ("device", "as_device") and isinstance(value, dict):
                value.update(type="meta", index=None)  # no memory is taken, whatever runs

    # --- wrapped calls ---

    def _in_line(self, graph: dict[str, Json]) -> dict[str, Json]:
        """A graph with the calls of ``_WRAPPERS`` replaced by what they call."""
        nodes: list[Json] = []
        said: dict[str, str] = {}
        for node in graph["nodes"]:
            node = _renamed(node, said) if said else node
            if node["target"].rpartition(".")[2] not in _WRAPPERS:
                nodes.append(node)
                continue
            args = [given["arg"] for given in node["inputs"]]
            at = next(i for i, arg in enumerate(args) if "as_graph" in arg)
            called, inner = (
                args[at]["as_graph"]["name"],
                self._in_line(args[at]["as_graph"]["graph"]),
            )
            # What it makes gets names of its own, what it is given those of the caller.
            names = {name: f"{called}_in_{name}" for name in _made(inner)}
            given = [_name(arg) for arg in args[at + 1 :]]
            pairs = zip(map(_name, inner["inputs"]), given, strict=True)
            names |= {one: other for one, other in pairs if one and other}
            made = [_name(one) for one in _flat(node["outputs"])]
            for one, other in zip(made, map(_name, inner["outputs"]), strict=True):
                if one and other:
                    said[one] = names.get(other, other)
            nodes += _renamed(inner["nodes"], names)
            for values in (*_VALUES, "custom_obj_values"):
                for name, value in inner[values].items():
                    graph[values].setdefault(names.get(name, name), value)
        return {**graph, "nodes": nodes, "outputs": _renamed(graph["outputs"], said)}


_HELD = {"parameter", "buffer", "tensor_constant", "custom_obj", "token"}
"""What an input may be that is no argument."""

_CACHES = ("past_key_values", "cache_params")
"""What the models of transformers call their cache, among arguments and results."""


def _states(module: Mapping[str, Json]) -> tuple[list[bool], list[bool]]:
    """(whether each argument is cached state, the same of each result); empty where nobody knows."""
    whole = next((one["signature"] for one in module["module_call_graph"] if not one["fqn"]), None)
    if not whole:
        return [], []
    (_, arguments), (_, results) = (parse_json(whole[key]) for key in ("in_spec", "out_spec"))
    by_place, by_name = arguments["children_spec"]
    places = (whole.get("forward_arg_names") or [])[: len(by_place["children_spec"])]
    places += [""] * (len(by_place["children_spec"]) - len(places))
    return [*_cached(by_place, places), *_cached(by_name)], [*_cached(results)]


def _states_given(specs: Json, told: list[bool]) -> tuple[str, ...]:
    """The inputs that are cached state, where it is known of each argument whether it is."""
    user = [spec for spec in specs if not spec.keys() & _HELD]
    if len(told) != len(user):
        return ()
    states = [spec["user_input"]["arg"] for spec, one in zip(user, told, strict=True) if one]
    return tuple(filter(None, map(_name, states)))


def _cached(spec: Mapping[str, Json], names: list[str] | None = None) -> Iterator[bool]:
    """Of each leaf of a tree of arguments or results, whether it is in a cache."""
    parts = spec["children_spec"]
    if names is None:
        told = parse_json(spec["context"] or "null") if isinstance(spec["context"], str) else None
        listed = isinstance(told, list) and len(told) == len(parts)
        names = [*map(str, told)] if listed and told else [""] * len(parts)
    if spec["type"] is None:
        yield False
    for name, part in zip(names, parts, strict=True):
        yield from [name in _CACHES] * _leaves(part)


def _leaves(spec: Mapping[str, Json]) -> int:
    return 1 if spec["type"] is None else sum(map(_leaves, spec["children_spec"]))


_VALUES = ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values")


def _made(graph: Mapping[str, Json]) -> Iterator[str]:
    """The names of all that a graph is given and makes."""
    for values in _VALUES:
        yield from graph[values]
    for node in graph["nodes"]:
        yield from filter(None, map(_name, _flat(node["outputs"])))


def _flat(outputs: Json) -> Iterator[Json]:
    """The results of a call, one by one."""
    for one in outputs:
        if "as_tensors" in one:
            yield from ({"as_tensor": tensor} for tensor in one["as_tensors"])
        else:
            yield one


def _name(argument: Mapping[str, Json]) -> str | None:
    """What an argument that is a value of the graph is called; None for a number or a text."""
    ((_, value),) = argument.items()
    name = (value.get("name") or value.get("as_name")) if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _renamed(tree: Json, names: Mapping[str, str]) -> Json:
    """JSON with the values of the graph under other names."""
    if isinstance(tree, list):
        return [_renamed(part, names) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1 and (key := next(iter(tree))) in ("name", "as_name"):
        return {key: names.get(tree[key], tree[key])}
    return {key: _renamed(part, names) for key, part in tree.items()}


def _fields(tree: Json) -> Iterator[tuple[str, Json]]:
    """All (key, value) of JSON, at any depth."""
    if isinstance(tree, list):
        for part in tree:
            yield from _fields(part)
    elif isinstance(tree, dict):
        for key, part in tree.items():
            yield key, part
            yield from _fields(part)


def _is_size(tree: ast.AST) -> bool:
    """Whether a parsed text is arithmetic of symbols and whole numbers, and small."""
    match tree:
        case ast.Expression(body):
            return _is_size(body)
        case ast.Constant(bool() | int() | float() as number):
            return -_MOST_NUMBER <= number < _MOST_NUMBER
        case ast.Name(name):
            return bool(_SYMBOL.fullmatch(name))
        case ast.UnaryOp(ast.USub() | ast.UAdd() | ast.Not(), one):
            return _is_size(one)
        case ast.BinOp(base, ast.Pow(), ast.Constant(int() as power)):
            return abs(power) <= _LARGEST_POWER and not _is_number(base) and _is_size(base)
        case ast.BinOp(one, ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv(), other):
            return _is_size(one) and _is_size(other)
        case ast.Compare(one, _, others):
            return all(map(_is_size, [one, *others]))
        case ast.Call(ast.Name("Symbol"), [ast.Constant(str() as name)], keywords):
            return bool(_SYMBOL.fullmatch(name)) and all(
                isinstance(one.value, ast.Constant) and isinstance(one.value.value, bool)
                for one in keywords
            )
        case ast.Call(ast.Name("Pow" | "PowByNatural"), [base, power], []):
            return _is_power(power, _is_number(base)) and _is_size(base)
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS:
            return all(map(_is_size, args))
    return False


def _is_power(tree: ast.AST, of_number: bool) -> bool:
    """Whether it is -1, or a small power of what is no number, which would be computed at once."""
    match tree:
        case ast.Call(ast.Name("Integer"), [inside], []):
            return _is_power(inside, of_number)
        case ast.UnaryOp(ast.USub(), ast.Constant(1)):
            return True
        case ast.Constant(int() as power):
            return not of_number and power <= _LARGEST_POWER
    return False


def _is_number(tree: ast.AST) -> bool:
    """Whether no symbol is in a parsed text, so that its powers are computed at once."""
    return not any(
        (isinstance(part, ast.Constant) and isinstance(part.value, str))
        or (isinstance(part, ast.Name) and _SYMBOL.fullmatch(part.id))
        for part in ast.walk(tree)
    )

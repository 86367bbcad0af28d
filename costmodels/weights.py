"""Weight formats: what parameters take where they are stored, tensor by tensor.

A format is a TOML file: how a matrix is encoded (bits an element, and what each group of elements
has beside: scales, zero points), and rules for the tensors that are stored otherwise. Weights are
turned into the compute dtype while they are read: FLOPs and what ops compute in stay as they are.
``stored`` puts the bytes on a graph's tensors; what is resident, read, paged and moved follows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from costmodels.described import Figure, check_figure_keys
from costmodels.weight_parts import PARTS, Model, Weight, weights_of
from tracer.errors import InputError, alike, choose
from tracer.formula import const, parse
from tracer.graph import FLOATING, ITEM_BYTES, MODEL_DTYPES, OpGraph, Role, Tensor
from tracer.summary import renewals
from tracer.toml_files import check_keys, find_table, find_toml, is_path, read_toml, shipped_names


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a matrix is stored. A row is what a product sums over; a group lies within a row."""

    name: str
    element_bits: float
    """Of each element."""
    group_elements: int = 0
    """Elements that share what ``group_bits`` has; 0 for a whole row."""
    group_rows: int = 1
    """Rows that a group goes over; 0 for the whole matrix."""
    group_bits: float = 0
    """What each group has: scales, zero points, minima."""
    column_bits: float = 0
    """What each column has: its place in an order of activation."""
    matrix_bits: float = 0
    """What each matrix has: a scale of the scales."""
    otherwise: str | None = None
    """The encoding of a matrix whose rows are no whole number of groups; None where a last group
    may be short."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure comes from, by its key."""

    def bytes(self, rows: int, inputs: int, matrices: int = 1) -> int:
        """Bytes of so many matrices with ``rows`` rows of ``inputs`` elements in all.

        >>> Encoding("q8_0", 8, 32, group_bits=16).bytes(4096, 4096)  # 4096 x 128 x 34
        17825792
        """
        if not rows or not inputs:
            return 0
        along = -(-inputs // (self.group_elements or inputs))
        each = rows // matrices
        across = matrices * -(-each // (self.group_rows or each))
        bits = (
            rows * inputs * self.element_bits
            + along * across * self.group_bits
            + matrices * (inputs * self.column_bits + self.matrix_bits)
        )
        return -int(-bits // 8)

    @property
    def bits_an_element(self) -> float:
        """Of whole groups, what each has beside shared out."""
        return self.element_bits + self.group_bits / (self.group_elements or 1)

    def fits(self, inputs: int) -> bool:
        """Whether rows of so many elements can be stored so."""
        return self.otherwise is None or inputs % (self.group_elements or inputs) == 0


@dataclass(frozen=True, slots=True)
class EncodingRule:
    """Tensors that are stored otherwise; all of its conditions hold."""

    parts: tuple[str, ...]
    """``weight_parts.PARTS``."""
    encoding: str
    """A dtype, or a file's encoding."""
    layers: str = ""
    """``more``: of the first and the last eighth, and every third between; ``first 4``;
    ``first 1/8``. Empty for all."""
    experts: int | None = None
    """In a model with so many experts."""
    depth: int | None = None
    """In a model with so many layers."""
    queries_a_key: int | None = None
    """In a model where so many heads of queries, or more, share one of keys."""
    names: tuple[str, ...] = ()
    """Patterns of module names, of which one matches; empty for all."""

    def holds(self, weight: Weight, model: Model, name: str) -> bool:
        """Whether it is for a weight."""
        return (
            weight.part in self.parts
            and _among(self.layers, weight.number, weight.of)
            and self.experts in (None, model.experts)
            and self.depth in (None, model.layers)
            and (self.queries_a_key or 0) <= model.queries_a_key
            and (not self.names or any(re.search(pattern, name) for pattern in self.names))
        )


_MOST_REPEATS = 4
"""Of a pattern; each one more multiplies the time that a name takes by its length."""

_FIRST = re.compile(r"first (1/)?([1-9][0-9]{0,5})")


def _among(layers: str, number: int, of: int) -> bool:
    """Whether a layer is among those that a rule is for."""
    if layers == "more":
        eighth = of // 8
        return number < eighth or number >= 7 * of // 8 or (number - eighth) % 3 == 2
    match = _FIRST.fullmatch(layers)
    if match is None:
        return True
    return number < (of // int(match[2]) if match[1] else int(match[2]))


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the parameters of a model are stored."""

    name: str
    """What users call it; of a file, its name without .toml."""
    description: str
    """What it is, in a line."""
    encoding: str
    """Of what no rule is for: a dtype, or a file's encoding."""
    rules: tuple[EncodingRule, ...] = ()
    """The first that holds decides."""
    own: Mapping[str, Encoding] = field(default_factory=dict)
    """Encodings that no shipped file has, by what they are called here."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where figures and rules come from, by key."""

    def encoding_of(self, weight: Weight, model: Model, name: str = "") -> Encoding:
        """How a weight is stored: by the rules, or what a format's tool takes where it cannot."""
        found = next((r.encoding for r in self.rules if r.holds(weight, model, name)), None)
        one = self._encoding(found or self.encoding)
        while not one.fits(weight.inputs):
            assert one.otherwise is not None  # else it fits
            one = self._encoding(one.otherwise)
        return one

    def _encoding(self, name: str) -> Encoding:
        return self.own.get(name) or shipped_encoding(name)


FIGURES: Mapping[str, Figure] = {
    "element_bits": Figure(positive=True, most=64),
    "group_elements": Figure(whole=True, positive=True),
    "group_rows": Figure(whole=True),
    "group_bits": Figure(most=2**32),
    "column_bits": Figure(most=2**32),
    "matrix_bits": Figure(most=2**32),
}
"""The figures of an encoding, as fields of ``Encoding``."""

TEXTS = ("description", "encoding", "otherwise", "rules_of", "source")
_CONDITIONS = ("layers", "experts", "depth", "queries_a_key", "names")
_FOLDER = files("costmodels") / "data" / "weights"


def weight_names() -> list[str]:
    """The formats that come with cutedge."""
    return shipped_names(_FOLDER)


def load_weights(name: str) -> WeightFormat:
    """A format by its name, a dtype, or a TOML file by its path. Raises InputError.

    >>> load_weights("Q4_K_M").encoding
    'q4_k'
    """
    return _load(name, ())


def _load(name: str, within: tuple[str, ...]) -> WeightFormat:
    """A format that those ``within`` which it is take rules of."""
    if dtype := alike(name, MODEL_DTYPES):
        return WeightFormat(dtype, f"every parameter in {dtype}", dtype)
    if name in within:
        raise InputError(f"{name}: its rules_of leads back to it: {' -> '.join([*within, name])}")
    return _parse(*find_table(name, "weight format", _FOLDER), (*within, name))


@lru_cache
def shipped_encoding(name: str) -> Encoding:
    """The encoding of a shipped file, or a plain dtype. Raises InputError."""
    return _find_encoding(name)


def _find_encoding(name: str) -> Encoding:
    if name in FLOATING:
        return Encoding(name, 8 * ITEM_BYTES[name])
    path, text = find_toml(name, "encoding", _FOLDER, weight_names())
    table = read_toml(path, text)
    if "element_bits" not in table:
        raise InputError(f"{path} has no element_bits: it is a mixture, no encoding")
    return _encoding(path, table)


def _parse(path: Path, table: Mapping[str, Any], within: tuple[str, ...]) -> WeightFormat:
    figures = [key for key in FIGURES if key in table]
    check_figure_keys(
        table,
        path,
        required=["description", *(["element_bits"] if figures else ["encoding"])],
        optional=[*TEXTS, "tensor", *FIGURES],
    )
    for key in TEXTS:
        if key in table and not (isinstance(table[key], str) and table[key].strip()):
            raise InputError(f"{path}: {key} must be text")
    if figures and "encoding" in table:
        raise InputError(f"{path}: give figures, or the encoding of another file, not both")
    own = {path.stem: _encoding(path, table)} if figures else {}
    rules, sources = _rules(path, table)
    if "rules_of" in table:
        other = _load(table["rules_of"], within)
        rules, sources = [*rules, *other.rules], {**other.sources, **sources}
    for one in own.values():
        sources |= one.sources
    encoding = path.stem if figures else table["encoding"]
    for name in (encoding, *(rule.encoding for rule in rules)):
        _follow(path, name, own)
    return WeightFormat(path.stem, table["description"], encoding, tuple(rules), own, sources)


def _follow(path: Path, name: str | None, own: dict[str, Encoding]) -> None:
    """Look an encoding up, and those that it names as ``otherwise``.

    What users' files have becomes ``own``: it is read once. Raises InputError where a way leads
    back, since a matrix that fits no encoding of it would be asked about for ever.
    """
    passed: list[str] = []
    while name is not None:
        if name in passed:
            raise InputError(
                f"{path}: otherwise leads back to {name}: {' -> '.join([*passed, name])}"
            )
        passed.append(name)
        if is_path(name) and name not in own:
            own[name] = _find_encoding(name)
        name = (own.get(name) or shipped_encoding(name)).otherwise


def _encoding(path: Path, table: Mapping[str, Any]) -> Encoding:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, figure in FIGURES.items():
        if key in table:
            values[key], sources[key] = figure.read(f"{path}: [{key}]", table[key])
    if not isinstance(table.get("otherwise", ""), str):
        raise InputError(f"{path}: otherwise must be text")
    return Encoding(path.stem, otherwise=table.get("otherwise"), sources=sources, **values)


def _rules(path: Path, table: Mapping[str, Any]) -> tuple[list[EncodingRule], dict[str, str]]:
    entries = table.get("tensor", [])
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise InputError(f"{path}: [[tensor]]: a table for each rule is wanted")
    rules: list[EncodingRule] = []
    sources: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path}: [[tensor]] {number}"
        check_keys(entry, where, required=("parts", "as", "source"), optional=_CONDITIONS)
        for key in ("parts", "names"):
            value = entry.get(key, ["vector"])
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise InputError(f"{where}: {key} must be a list of texts")
        for pattern in entry.get("names", ()):
            if not is_quick(pattern):
                raise InputError(f"{where}: names: {pattern!r} is no {QUICK}")
        for part in entry["parts"]:
            choose(part, tuple(PARTS), f"{where}: parts")
        layers = entry.get("layers", "")
        if layers not in ("", "more") and not _FIRST.fullmatch(str(layers)):
            raise InputError(f"{where}: layers is more, first 4 or first 1/8, not {layers!r}")
        for key in ("experts", "depth", "queries_a_key"):
            if key in entry and (type(entry[key]) is not int or entry[key] < 1):
                raise InputError(f"{where}: {key} must be a whole number above 0")
        for key in ("as", "source"):
            if not isinstance(entry[key], str) or not entry[key].strip():
                raise InputError(f"{where}: {key} must be text")
        sources[f"tensor {number}"] = entry["source"]
        rules.append(
            EncodingRule(
                tuple(entry["parts"]),
                entry["as"],
                layers,
                entry.get("experts"),
                entry.get("depth"),
                entry.get("queries_a_key"),
                tuple(entry.get("names", ())),
            )
        )
    return rules, sources


QUICK = f"regular expression without a repeated group and with at most {_MOST_REPEATS} repeats"
"""What a pattern of names must be."""


def is_quick(pattern: str) -> bool:
    """Whether a text is a regular expression that is soon done with a name that it does not match.

    >>> is_quick("(q|k)_proj"), is_quick("(a+)+b"), is_quick("(")
    (True, False, False)
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    alone = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern, flags=re.DOTALL)
    return not re.search(r"\)[*+{]", alone) and len(re.findall("[*+{]", alone)) <= _MOST_REPEATS


# --- on a graph -----------------------------------------------------------------------------------

MOST_BYTES = 2**50
"""Of all parameters: what a run reads of them many times is an integer of a table still."""


def stored(graph: OpGraph, weights: WeightFormat) -> OpGraph:
    """A graph with the bytes of its parameters as a format stores them; costs are those of before.

    >>> from costmodels.weights import load_weights
    >>> import cutedge
    >>> graph = cutedge.trace("edge-10m", seq=64).graph
    >>> from tracer.summary import parameter_bytes
    >>> parameter_bytes(graph), parameter_bytes(stored(graph, load_weights("float16")))
    (39788544, 19894272)
    """
    found, model = weights_of(graph)
    ways = {
        storage: weights.encoding_of(weight, model, graph.tensors[storage].name)
        for storage, weight in found.items()
    }
    sizes = {}
    for storage, way in ways.items():
        owner, weight = graph.tensors[storage], found[storage]
        rows = owner.numel // weight.inputs
        sizes[storage] = way.bytes(rows, weight.inputs, max(rows // max(weight.outputs, 1), 1))
    return with_bytes(graph, sizes, weights.name, _other(found, ways, weights.encoding))


def with_bytes(graph: OpGraph, sizes: Mapping[int, int], name: str, other: str = "") -> OpGraph:
    """A graph where storages take so many bytes, and views of them their share.

    Raises InputError where that is more than the tables' integers have room for.
    """
    if (total := sum(sizes.values())) > MOST_BYTES:
        raise InputError(
            f"weights {name}: {graph.meta.model} would take {total:.3g} bytes, and no more than "
            f"{MOST_BYTES:.3g} can be counted with: look over the sizes that it gives"
        )

    def sized(tensor: Tensor) -> Tensor:
        owner = graph.storage(tensor)
        if owner.id not in sizes:
            return tensor
        share = Fraction(sizes[owner.id], max(owner.numel, 1))
        return _packed(tensor, share)

    meta = replace(graph.meta, weights=name, weights_other=other)
    return OpGraph(meta, graph.ops, map(sized, graph.tensors), graph.edges)


def as_computed(graph: OpGraph) -> OpGraph:
    """A graph with every tensor in its dtype: what a run of it has; costs are those of before."""

    def plain(tensor: Tensor) -> Tensor:
        if not tensor.is_packed:
            return tensor
        size, exprs = ITEM_BYTES[tensor.dtype], tensor.shape_expr
        text = None if exprs is None else str(prod(map(parse, exprs), start=const(size)))
        return replace(tensor, bytes=tensor.numel * size, bytes_expr=text)

    meta = replace(graph.meta, weights="", weights_other="", kv_dtype="")
    return OpGraph(meta, graph.ops, map(plain, graph.tensors), graph.edges)


def quantised(graph: OpGraph, dtype: str) -> OpGraph:
    """A graph with every float as an integer of ``dtype``; costs are those of before."""

    def whole(tensor: Tensor) -> Tensor:
        if tensor.dtype not in FLOATING:
            return tensor
        if tensor.is_packed:
            return replace(tensor, dtype=dtype)
        size, exprs = ITEM_BYTES[dtype], tensor.shape_expr
        text = None if exprs is None else str(prod(map(parse, exprs), start=const(size)))
        return replace(tensor, dtype=dtype, bytes=tensor.numel * size, bytes_expr=text)

    ops = (replace(op, dtype=dtype) if op.dtype in FLOATING else op for op in graph.ops)
    meta = replace(graph.meta, dtype=dtype)
    return OpGraph(meta, ops, map(whole, graph.tensors), graph.edges)


def _packed(tensor: Tensor, bytes_an_element: Fraction) -> Tensor:
    size = round(tensor.numel * bytes_an_element)
    text = tensor.bytes_expr
    if text is not None:
        plain = parse(text)
        scale = bytes_an_element / ITEM_BYTES[tensor.dtype]
        constant = not any(plain.growth(("batch", "past", "source", "seq")))
        text = str(size) if constant else str(plain * scale.numerator // scale.denominator)
    return replace(tensor, bytes=size, bytes_expr=text)


def cache_in(graph: OpGraph, name: str) -> OpGraph:
    """A graph with cached keys and values in a dtype, or in an encoding with groups of elements.

    Those are [batch, heads, tokens, width]; the state of a convolution or of a recurrence, which is
    computed with, stays as it is. Raises InputError where there is
    no such dtype, and where rows of the cache are no whole number of groups.
    """
    way = cache_encoding(name)
    computed = {t.id for pair in renewals(graph) if pair[1].op not in graph.state_ops for t in pair}
    packed: set[int] = set()
    for tensor in graph.tensors:
        kept = tensor.role is Role.KV_CACHE and tensor.op in graph.state_ops
        if (
            kept
            and len(tensor.shape) == 4
            and graph.is_float(tensor.dtype)
            and tensor.id not in computed
        ):
            packed.add(graph.storage(tensor).id)
            if tensor.numel and not way.fits(tensor.shape[-1]):
                raise InputError(
                    f"--kv-dtype {name}: a row of {tensor.name} has {tensor.shape[-1]} values, no "
                    f"whole number of groups of {way.group_elements}"
                )
    bits = Fraction(way.bits_an_element)
    tensors = [
        _packed(tensor, bits / 8) if graph.storage(tensor).id in packed else tensor
        for tensor in graph.tensors
    ]
    meta = replace(graph.meta, kv_dtype=way.name)
    return OpGraph(meta, graph.ops, tensors, graph.edges)


def cache_encoding(name: str) -> Encoding:
    """What a row of cached keys or values is stored in, by what users call it."""
    if name in FLOATING or name == "fp8":
        return shipped_encoding("float8_e4m3fn" if name == "fp8" else name)
    known = [one for one in weight_names() if _is_for_caches(one)]
    choose(name, (*FLOATING, "fp8", *known), "--kv-dtype")
    return shipped_encoding(name)


def _is_for_caches(name: str) -> bool:
    """Whether an encoding stores each row by itself."""
    try:
        way = shipped_encoding(name)
    except InputError:
        return False
    rest = (way.group_rows - 1, way.column_bits, way.matrix_bits)
    return way.group_elements > 0 and not any(rest) and way.otherwise is not None


def _other(found: Mapping[int, Weight], ways: Mapping[int, Encoding], most: str) -> str:
    """What is not in the encoding that most is in: ``head some ffn_down in q6_k``."""
    parts: dict[str, set[str]] = {}
    for storage, way in ways.items():
        parts.setdefault(way.name, set()).add(found[storage].part)

    def said(part: str) -> str:
        return f"some {part}" if sum(part in some for some in parts.values()) > 1 else part

    return ", ".join(
        f"{' '.join(said(part) for part in PARTS if part in some)} in {name}"
        for name, some in sorted(parts.items())
        if name != most
    )

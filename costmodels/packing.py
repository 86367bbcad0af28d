"""Packings: how a tensor's payload is encoded to cross, what that saves and what it takes.

A packing is a TOML file. Its ``codec`` says what is done: ``blocks`` quantises floats in groups
along the last dimension, each with a scale of 16 bits (GGUF's q8_0: 34 bytes for 32 values);
``range`` writes whole numbers in the fewest bytes that hold their range, and bool as bits: of both
the bytes are exact. ``zstd`` and ``lz4`` lose nothing, and how far they shrink a tensor depends on
its values: a ratio by dtype stands in, and the bytes are an estimate. Seconds a byte are of the
processors of the two ends, by the bytes that are packed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from costmodels.described import Figure, check_figure_keys
from tracer.errors import InputError, choose
from tracer.graph import FLOATING, ITEM_BYTES
from tracer.toml_files import find_table, shipped_names

CODECS = ("plain", "zstd", "lz4", "blocks", "range")
"""What a packing may do."""

COMPRESSED = ("zstd", "lz4")
"""Of these the ones whose bytes depend on the values."""

SCALE_BYTES = 2
"""Of a block's scale, a float16."""

_MOST_LEVEL = 19
_MOST_GROUP = 2**16
_PARTS = 10_000
"""A ratio counts in parts of so many, so that the bytes have a formula in whole numbers."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a packing makes of tensors of one dtype: all that packing and unpacking need."""

    codec: str
    """Of ``CODECS``, but for ``plain``."""
    level: int = 0
    """How hard zstd tries."""
    byte_planes: bool = False
    """Whether the first bytes of all elements go before all second ones, and so on."""
    bits: int = 0
    """Of an element, in blocks and by range."""
    group: int = 0
    """Elements of a block."""

    def fits(self, dtype: str) -> bool:
        """Whether it says something, and of such a dtype: what comes from elsewhere may not."""
        if self.codec == "blocks":
            sound = self.bits in (4, 8) and self.group % 2 == 0 and 0 < self.group <= _MOST_GROUP
            return sound and dtype in FLOATING
        if self.codec == "range":
            whole = dtype in ITEM_BYTES and "float" not in dtype and not dtype.startswith("complex")
            fewer = self.bits % 8 == 0 and 0 < self.bits < 8 * ITEM_BYTES.get(dtype, 0)
            return self.bits == 1 if dtype == "bool" else whole and fewer
        return self.codec in COMPRESSED and self.level <= _MOST_LEVEL

    def packed_bytes(self, shape: Sequence[Any]) -> Any:
        """The bytes of a packed tensor, where no value decides them; shapes may be formulas.

        >>> Form("blocks", bits=8, group=32).packed_bytes((2, 33))  # 2 rows of 2 blocks of 34
        136
        >>> Form("range", bits=24).packed_bytes((1, 10)), Form("range", bits=1).packed_bytes((9,))
        (30, 2)
        """
        if self.codec == "blocks":
            *rows, last = shape or (1,)
            blocks = prod(rows, start=1) * ((last + (self.group - 1)) // self.group)
            return blocks * (self.group * self.bits // 8 + SCALE_BYTES)
        if self.codec == "range":
            elements = prod(shape, start=1)
            if self.bits % 8 == 0:
                return elements * (self.bits // 8)
            return (elements * self.bits + 7) // 8
        return None


@dataclass(frozen=True, slots=True)
class Packing:
    """How a tensor's payload is encoded to cross.

    >>> q8_0 = load_packing("q8_0")
    >>> q8_0.payload_bytes("float32", (1, 1024, 2048)), q8_0.is_lossless
    (2228224, False)
    """

    name: str
    """What users call it; of a file, its name without .toml."""
    description: str
    """What it is, in a line."""
    codec: str
    """Of ``CODECS``."""
    level: int = 0
    """How hard zstd tries."""
    byte_planes: bool = False
    """Whether it compresses the bytes of the elements apart: all first ones, all second ones ..."""
    group_elements: int = 0
    """Elements of a block; 0 where it has no blocks."""
    element_bits: int = 0
    """Of an element of a block."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Dtype -> packed bytes over bytes. What is compressed of a dtype that is not here counts with
    its plain bytes: it takes no more."""
    pack_seconds_per_byte: float | None = None
    """What the end that sends takes, by the bytes before packing; None where it is not known."""
    unpack_seconds_per_byte: float | None = None
    """What the end that receives takes, likewise."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each figure comes from, by its key."""

    @property
    def is_lossless(self) -> bool:
        """Whether what is unpacked is what was packed, to the bit."""
        return self.codec != "blocks"

    @property
    def is_exact(self) -> bool:
        """Whether its bytes follow from dtype and shape; else a ratio stands in."""
        return self.codec not in COMPRESSED

    @property
    def epsilon(self) -> float:
        """Half of what two values of a block that come out different are apart, by the largest."""
        return 0.0 if self.is_lossless else 2.0 ** -(self.element_bits - 1)

    @property
    def seconds_per_byte(self) -> float | None:
        """Of both ends together, by the bytes before packing; None where one is not known.

        >>> load_packing("plain").seconds_per_byte
        0.0
        """
        if self.codec == "plain":
            return 0.0
        if self.pack_seconds_per_byte is None or self.unpack_seconds_per_byte is None:
            return None
        return self.pack_seconds_per_byte + self.unpack_seconds_per_byte

    def packs(self, dtype: str, values: int | None = None) -> bool:
        """Whether it says what becomes of a dtype: ``plain`` does of all, that nothing does."""
        return self.codec == "plain" or self.form(dtype, values) is not None

    def form(self, dtype: str, values: int | None = None) -> Form | None:
        """What it makes of a dtype; None of one that it leaves as it is.

        ``values`` says that elements are from 0 to one below it, where that is known.

        >>> load_packing("range").form("int64", 128256).bits
        24
        >>> load_packing("range").form("int64") is None
        True
        """
        if self.codec == "blocks" and dtype in FLOATING:
            form = Form("blocks", bits=self.element_bits, group=self.group_elements)
            least = form.packed_bytes((self.group_elements,))
            return form if least < self.group_elements * ITEM_BYTES[dtype] else None
        if self.codec == "range" and dtype == "bool":
            return Form("range", bits=1)
        if self.codec == "range" and values is not None and dtype in ITEM_BYTES:
            width = max(1, -(-(values - 1).bit_length() // 8))
            return Form("range", bits=8 * width) if width < ITEM_BYTES[dtype] else None
        if self.codec in COMPRESSED:
            return Form(self.codec, self.level, self.byte_planes)
        return None

    def payload_bytes(self, dtype: str, shape: Sequence[Any], values: int | None = None) -> Any:
        """Of a tensor that it packs; a shape of formulas gives a formula.

        Raises ValueError for one that it leaves as it is (``form``).
        """
        if (form := self.form(dtype, values)) is None:
            raise ValueError(f"{self.name} packs no {dtype}")
        if (size := form.packed_bytes(shape)) is not None:
            return size
        plain = prod(shape, start=1) * ITEM_BYTES[dtype]
        return (plain * round(self.ratios.get(dtype, 1.0) * _PARTS) + (_PARTS - 1)) // _PARTS

    @property
    def summary(self) -> dict[str, Any]:
        """All that its description says, by name."""
        figures = {**{f"{t}_ratio": ratio for t, ratio in self.ratios.items()}}
        for key in (*_BLOCKS, *_SECONDS):
            if key in self.sources:
                figures[key] = getattr(self, key)
        about = {"packing": self.name, "description": self.description, "codec": self.codec}
        return {**about, **figures, "sources": dict(self.sources)}


@dataclass(frozen=True, slots=True)
class SizedPacking:
    """How tensors that are large enough are packed."""

    packings: tuple[Packing, ...]
    """One; or several, of which each tensor has the one that takes the fewest seconds on its link."""
    at_least_bytes: int = 0
    """The bytes of a tensor, in its own dtype, from which on it is packed."""
    text: str = ""
    """As the user wrote it, a file by its name without .toml."""


BEST = "best"


def packings_of(text: str) -> tuple[tuple[Packing, ...], str]:
    """(the packings that a text names, as it is told): one, or several of which the fastest is taken.

    ``best`` is all that come with cutedge and lose nothing, ``best,q8_0`` one more. Raises
    InputError.
    """
    first, *others = text.split(",")
    found = [load_packing(one) for one in ([first] if first != BEST else others)]
    told = ",".join(([BEST] if first == BEST else []) + [one.name for one in found])
    if first == BEST:
        found = [one for one in map(load_packing, packing_names()) if one.is_lossless] + found
    elif others:
        raise InputError(f"{text}: several of which the fastest is taken begin with {BEST}")
    return (*found,), told


_RATIO = Figure(positive=True, most=1)
_BLOCKS: Mapping[str, Figure] = {
    "group_elements": Figure(whole=True, positive=True, most=_MOST_GROUP),
    "element_bits": Figure(whole=True, positive=True, most=8),
}
_SECONDS = ("pack_seconds_per_byte", "unpack_seconds_per_byte")
_HEADS: Mapping[str, tuple[type, str]] = {
    "description": (str, "text"),
    "codec": (str, "text"),
    "level": (int, "a whole number"),
    "byte_planes": (bool, "true or false"),
}

_FOLDER = files("costmodels") / "data" / "packings"


FIGURES: Mapping[str, str] = {
    "group_elements": "values of a block; of blocks",
    "element_bits": "of a value of a block, 8 or 4; of blocks",
    "DTYPE_ratio": "packed bytes over bytes of a dtype (`float32_ratio`), at most 1; of zstd and lz4",
    "pack_seconds_per_byte": "what the end that sends takes, by the bytes before packing",
    "unpack_seconds_per_byte": "what the end that receives takes, likewise",
}
"""What a description may say in figures."""


def packing_names() -> list[str]:
    """The packings that come with cutedge, from the one that packs nothing."""
    return sorted(shipped_names(_FOLDER), key=lambda name: (name != "plain", name))


def load_packing(name: str) -> Packing:
    """A packing by its name, or by the path of a TOML file. Raises InputError naming file and key.

    >>> load_packing("ZSTD").name
    'zstd'
    """
    return (
        _shipped(name) if name in packing_names() else _parse(*find_table(name, "packing", _FOLDER))
    )


@cache
def _shipped(name: str) -> Packing:
    return _parse(*find_table(name, "packing", _FOLDER))


def _parse(path: Path, table: dict[str, Any]) -> Packing:
    figures: dict[str, Figure] = {
        **_BLOCKS,
        **{f"{dtype}_ratio": _RATIO for dtype in ITEM_BYTES},
        **dict.fromkeys(_SECONDS, Figure()),
    }
    optional = ("level", "byte_planes", *figures)
    check_figure_keys(table, path, required=("description", "codec"), optional=optional)
    heads = {key: table.pop(key) for key in _HEADS if key in table}
    for key, value in heads.items():
        kind, words = _HEADS[key]
        if type(value) is not kind:
            raise InputError(f"{path}: {key} must be {words}, not {value!r}")
    codec = heads["codec"]
    choose(codec, CODECS, f"{path}: codec")
    for key in (*heads, *table):
        if key not in _SECONDS and not _is_of(key, codec):
            raise InputError(f"{path}: {key} is of no use to the codec {codec}")
    if not 0 <= heads.get("level", 1) <= _MOST_LEVEL:
        raise InputError(f"{path}: level must be 0 to {_MOST_LEVEL}, not {heads['level']!r}")
    read = {key: figures[key].read(f"{path}: [{key}]", entry) for key, entry in table.items()}
    for key in _BLOCKS if codec == "blocks" else ():
        if key not in read:
            raise InputError(f"{path}: key {key!r} is missing: blocks have it")
    found = {key: value for key, (value, _) in read.items()}
    if codec == "blocks" and found["element_bits"] not in (4, 8):
        raise InputError(f"{path}: [element_bits]: a value of a block has 4 or 8 bits")
    if codec == "blocks" and found["group_elements"] % 2:
        raise InputError(f"{path}: [group_elements]: a block has an even number of values")
    ratios = {
        dtype: float(found.pop(f"{dtype}_ratio"))
        for dtype in ITEM_BYTES
        if f"{dtype}_ratio" in found
    }
    return Packing(
        path.stem,
        **heads,
        ratios=ratios,
        **{key: int(value) if key in _BLOCKS else value for key, value in found.items()},  # type: ignore[arg-type]
        sources={key: source for key, (_, source) in read.items()},
    )


def _is_of(key: str, codec: str) -> bool:
    """Whether a key of a description says something of a codec."""
    if key in _BLOCKS:
        return codec == "blocks"
    if key in ("level", "byte_planes") or key.endswith("_ratio"):
        return codec in COMPRESSED and (key != "level" or codec == "zstd")
    return True

"""Files of weights that are damaged or lie: one is refused by its name, or all its bytes are counted.

Seeds are fixed. ``make test`` has some hundred cases of each kind, ``make test-all`` many thousands.
Other people's files have no hash beside them: what a header says is held against itself.
"""

import json
import os
import random
import re
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import process_time

import pytest

from costmodels.weight_files import stored_as
from costmodels.weight_parts import weights_of
from tests.support.graphs import two_layers
from tests.support.weights import gguf, safetensors
from tracer.errors import InputError
from tracer.summary import parameter_bytes

SEED = 17


model = cache(two_layers)

CALLED = {"embedding": "token_embd", "head": "output", "ffn_up": "ffn_up", "ffn_down": "ffn_down"}
GGUF, SAFE, INDEX = "m.gguf", "m.safetensors", "m.safetensors.index.json"


def a_gguf() -> bytes:
    """Q8_0, vectors in float32."""
    tensors = {}
    for storage, weight in weights_of(model())[0].items():
        layer = "" if weight.layer is None else f"blk.{weight.layer}."
        kind = 0 if weight.part == "vector" else 8
        name = CALLED.get(weight.part, f"norm{storage}")
        tensors[f"{layer}{name}.weight"] = model().tensors[storage].shape, kind
    return gguf(tensors)


def a_safetensors(part: int | None = None) -> bytes:
    owned = [model().tensors[storage] for storage in weights_of(model())[0]]
    chosen = owned if part is None else owned[part::2]
    return safetensors({t.name: (t.shape, 2 * t.numel) for t in chosen})


def an_index(folder: Path) -> bytes:
    places = {}
    for part in (0, 1):
        name = f"part-{part}.safetensors"
        (folder / name).write_bytes(a_safetensors(part))
        told = json.loads((folder / name).read_bytes()[8:])
        places |= dict.fromkeys(told.keys() - {"__metadata__"}, name)
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()


FILES: dict[str, Callable[[Path], bytes]] = {
    GGUF: lambda folder: a_gguf(),
    SAFE: lambda folder: a_safetensors(),
    INDEX: an_index,
}


def counted(file: Path) -> int:
    """All bytes that are counted: of parameters, and of what is of no parameter."""
    read = stored_as(model(), file)
    match = re.match(r"([\d,]+) bytes of the file", read.meta.weights_other)
    return parameter_bytes(read) + (int(match[1].replace(",", "")) if match else 0)


LAST = 24
"""Bytes at the end of a GGUF header: the axes, the type and the place of its last tensor. Nothing
in a header alone can be held against these."""


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A bit flipped; now and then a piece lost, doubled or put for another, or a number that lies."""
    changed = bytearray(data)
    end = len(data) - LAST
    one, other = sorted((draw.randrange(end), draw.randrange(end)))
    match draw.randrange(10):
        case 0:
            return data[:one]
        case 1:
            return data[:one] + data[min(other, one + 40) :]
        case 2:
            return data[:other] + data[one:]
        case 3:
            lie = draw.choice([0, 1, 2**31, 2**60, 2**63, 2**64 - 1])
            changed[one : one + 8] = struct.pack("<Q", lie)
        case 4:
            lies = [b"-1", b"1e9", b"null", b"NaN", b"[]", b"{}", b'"x"', b"9" * 30, b"\\u0000"]
            changed[one : one + draw.randrange(3)] = draw.choice(lies)
        case _:
            changed[one] ^= 1 << draw.randrange(8)
    return bytes(changed)


def read_damaged(name: str, count: int, folder: Path) -> int:
    """Read ``count`` damaged files; how many were refused."""
    whole, file = FILES[name](folder), folder / name
    file.write_bytes(whole)
    right = counted(file)
    draw = random.Random(f"{SEED} {name}")
    refused = 0
    for number in range(count):
        file.write_bytes(data := damaged(whole, draw))
        begun = process_time()
        said = ""
        try:
            assert counted(file) == right
        except InputError as error:
            said = str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {data!r}") from error
        assert not said or str(file) in said, f"case {number}: {said}"
        assert process_time() - begun < 1, f"case {number}: {data!r}"
    return refused


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_or_counted_whole(name: str, tmp_path: Path) -> None:
    assert read_damaged(name, 200, tmp_path) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_thousands_of_damaged_files(name: str, tmp_path: Path) -> None:
    assert read_damaged(name, 10_000, tmp_path) > 5000


# --- files that lie -------------------------------------------------------------------------------

TEXT = struct.pack("<Q", 1) + b"k"
LIST, STRING, WORD = 9, 8, 4


def head(tensors: int = 0, entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


def tensor(*shape: int, kind: int = 0, place: int = 0, name: bytes = b"k") -> bytes:
    text = struct.pack("<Q", len(name)) + name
    return text + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)


def aligned(to: int) -> bytes:
    key = b"general.alignment"
    return struct.pack("<Q", len(key)) + key + struct.pack("<II", WORD, to)


LIES = {
    "nothing": b"",
    "2^60 tensors": head(2**60),
    "2^60 entries": head(0, 2**60),
    "2^60 texts": head(0, 1) + TEXT + struct.pack("<IIQ", LIST, STRING, 2**60),
    "2^62 numbers": head(0, 1) + TEXT + struct.pack("<IIQ", LIST, 10, 2**62),
    "a text of 2^63": head(0, 1) + struct.pack("<Q", 2**63),
    "a text of 2^23": head(0, 1) + struct.pack("<Q", 2**23),
    "lists of lists": head(0, 1)
    + TEXT
    + struct.pack("<I", LIST)
    + struct.pack("<IQ", LIST, 1) * 5000,
    "2^31 axes": head(1) + TEXT + struct.pack("<I", 2**31),
    "five axes": head(1) + tensor(1, 1, 1, 1, 1),
    "2^252 elements": head(1) + tensor(2**63, 2**63, 2**63, 2**63),
    "half a block": head(1) + tensor(33, kind=8),
    "beyond the end": head(1) + tensor(32, place=2**40),
    "two in one place": head(2) + tensor(32) + tensor(32, name=b"l"),
    "one twice": head(2) + tensor(32) + tensor(32, place=128),
    "a gap": head(2) + tensor(32) + tensor(32, name=b"l", place=160),
    "before the first": head(2) + tensor(32, kind=99, place=64) + tensor(32, name=b"l"),
    "an unknown type and no data": head(2) + tensor(32) + tensor(32, kind=99, place=128, name=b"l"),
    "more than its tensors": head(1) + tensor(32) + bytes(400),
    "an alignment of 0": head(1, 1) + aligned(0) + tensor(32),
    "no UTF-8": head(1) + tensor(32, name=b"\xff"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gguf_that_lies_is_refused_at_once(lie: str, tmp_path: Path) -> None:
    file = tmp_path / GGUF
    file.write_bytes(LIES[lie])
    begun = process_time()
    with pytest.raises(InputError, match=r"m\.gguf is no \.gguf file, or its header is cut or dam"):
        stored_as(model(), file)
    assert process_time() - begun < 0.5


def test_a_gguf_without_end_is_soon_refused(tmp_path: Path) -> None:
    """Zeros are empty texts: a file of them has holes, and no bytes on the disk."""
    file = tmp_path / GGUF
    file.write_bytes(head(2**16, 2**16))
    os.truncate(file, 2**40)
    begun = process_time()
    with pytest.raises(InputError):
        stored_as(model(), file)
    assert process_time() - begun < 2


def test_a_gguf_may_be_aligned_otherwise_and_have_no_axes(tmp_path: Path) -> None:
    """What ggml's writers make: 64 bytes from one tensor to the next, and a scalar of 4."""
    from costmodels.gguf_files import _gguf

    data = head(2, 1) + aligned(64) + tensor(32, kind=8) + tensor(place=64, name=b"l")
    (tmp_path / GGUF).write_bytes(data + bytes(-len(data) % 64 + 128))
    held = _gguf(tmp_path / GGUF).tensors
    assert [(one.shape, one.bytes) for one in held.values()] == [((32,), 34), ((), 4)]


def told(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def one(**other: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **other}


HEADERS = {
    "nothing": b"",
    "2^63 long": struct.pack("<Q", 2**63) + b"{}",
    "longer than it is": struct.pack("<Q", 9) + b"{}",
    "a list": struct.pack("<Q", 2) + b"[]",
    "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no UTF-8": struct.pack("<Q", 2) + b"\xff\xfe",
    "a number of 5000 digits": struct.pack("<Q", 5000) + b"9" * 5000,
    "no shape": told(a={"dtype": "F32", "data_offsets": [0, 8]}),
    "no dtype": told(a={"shape": [2], "data_offsets": [0, 8]}),
    "negative": told(a=one(data_offsets=[0, -8])),
    "backwards": told(a=one(data_offsets=[8, 0])),
    "not a number": told(a=one(data_offsets=[0, float("nan")])),
    "true": told(a=one(data_offsets=[False, 8])),
    "a half": told(a=one(shape=[2.0])),
    "another shape": told(a=one(shape=[3])),
    "a shape of texts": told(a=one(shape=["2"])),
    "2^63": told(a=one(shape=[2**63], data_offsets=[0, 2**65])),
    "a dtype that is a list": told(a=one(dtype=[])),
    "a gap": told(a=one(), b=one(data_offsets=[9, 17])),
    "one over the other": told(a=one(), b=one(data_offsets=[4, 12])),
    "more than its tensors": told(a=one()) + bytes(9),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_safetensors_that_lie_are_refused(lie: str, tmp_path: Path) -> None:
    file = tmp_path / SAFE
    file.write_bytes(HEADERS[lie])
    with pytest.raises(InputError, match=r"m\.safetensors is no \.safetensors file, or its header"):
        stored_as(model(), file)


INDICES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no index"),
    "nested": (b"[" * 200_000, "is no index"),
    "a list": (b'{"weight_map": ["a"]}', "is no index"),
    "empty": (b'{"weight_map": {}}', "its weight_map is empty"),
    "a number": (b'{"weight_map": {"a": 1}}', "is no index"),
    "a path": (b'{"weight_map": {"a": "../part-0.safetensors"}}', "to files beside it"),
    "a zero": (b'{"weight_map": {"a": "\\u0000.safetensors"}}', "is not beside it"),
    "half a letter": (b'{"weight_map": {"a": "\\ud800.safetensors"}}', "is not beside it"),
    "metadata": (b'{"metadata": [], "weight_map": {"a": "b.safetensors"}}', "is not beside it"),
    "another download": (b'{"weight_map": {"a": "part-0.safetensors"}}', "has no a: they are not"),
}


@pytest.mark.parametrize("lie", INDICES)
def test_an_index_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    an_index(tmp_path)
    content, said = INDICES[lie]
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)):
        stored_as(model(), tmp_path / INDEX)


def test_a_tensor_is_in_one_file_alone(tmp_path: Path) -> None:
    whole = json.loads(an_index(tmp_path))
    (tmp_path / "twice.safetensors").write_bytes(a_safetensors())
    whole["weight_map"]["lm_head.weight"] = "twice.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(whole))
    with pytest.raises(InputError, match="is in two of its files"):
        stored_as(model(), tmp_path / INDEX)


@pytest.mark.parametrize("dims", [(2**20, 2**31), (2**62,)])
def test_more_bytes_than_can_be_counted_with(dims: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / SAFE).write_bytes(
        told(
            **{
                t.name: one(shape=[0], data_offsets=[0, 0])
                for t in model().tensors
                if t.name.endswith("weight") and t.name != "lm_head.weight"
            }
            | {"lm_head.weight": {"dtype": "X", "shape": dims, "data_offsets": [0, 2**60]}}
        )
    )
    with pytest.raises(InputError, match=r"would take 1\.15e\+18 bytes"):
        stored_as(model(), tmp_path / SAFE)

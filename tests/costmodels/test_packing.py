"""Packings: bytes against counts by hand and against rows one by one; files that are wrong."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.packing import load_packing, packing_names
from tests.support.examples import examples
from tracer.errors import InputError
from tracer.formula import const, parse
from tracer.graph import ITEM_BYTES


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "values", "expected"),
    [
        # 1024 rows of 2048 / 32 = 64 blocks of 34 bytes
        ("q8_0", "float32", (1, 1024, 2048), None, 1024 * 64 * 34),
        ("q8_0", "bfloat16", (1, 1024, 2048), None, 1024 * 64 * 34),  # whatever it is packed from
        ("q8_0", "float32", (3, 33), None, 3 * 2 * 34),  # each row ends a block of its own
        ("q8_0", "float32", (5,), None, 34),
        ("q8_0", "float32", (), None, 34),
        ("q8_0", "float32", (0, 32), None, 0),
        ("q4_0", "float32", (2, 64), None, 2 * 2 * 18),
        ("range", "bool", (3, 3), None, 2),  # 9 bits
        ("range", "int64", (1, 1024), 128256, 3 * 1024),  # 17 bits
        ("range", "int64", (7,), 65536, 2 * 7),
        ("range", "int64", (7,), 65537, 3 * 7),
        ("range", "int32", (7,), 256, 7),
        ("range", "int64", (7,), 1, 7),
        ("lz4", "complex64", (7,), None, 7 * 8),  # no ratio is known: it takes no more
    ],
)
def test_bytes_by_hand(name, dtype, shape, values, expected):
    assert load_packing(name).payload_bytes(dtype, shape, values) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "values"),
    [
        ("q8_0", "int64", None),
        ("q8_0", "bool", None),
        ("q8_0", "float8_e4m3fn", None),  # 34 bytes for 32
        ("range", "int64", None),  # of a range that is not known
        ("range", "int64", 2**60),
        ("range", "int8", 256),
        ("range", "float32", None),
        ("plain", "float32", None),
    ],
)
def test_what_is_left_as_it_is(name, dtype, values):
    packing = load_packing(name)
    assert packing.form(dtype, values) is None
    with pytest.raises(ValueError, match=f"{name} packs no {dtype}"):
        packing.payload_bytes(dtype, (4, 4), values)


@examples(30)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.sampled_from(["q8_0", "q4_0", "zstd", "lz4", "zstd-planes"]),
)
def test_bytes_row_by_row_and_as_a_formula(shape, name):
    packing = load_packing(name)
    found = packing.payload_bytes("float32", shape)
    if packing.is_exact:
        rows = 1
        for size in shape[:-1]:
            rows *= size
        block = {"q8_0": 34, "q4_0": 18}[name]
        assert found == sum(block for _ in range(rows) for _ in range(0, shape[-1], 32))
    else:
        plain = ITEM_BYTES["float32"]
        for size in shape:
            plain *= size
        assert plain * packing.ratios["float32"] <= found < plain * packing.ratios["float32"] + 1.01
        assert found <= plain
    sizes = [const(size) for size in shape[:-1]]
    formula = packing.payload_bytes("float32", [*sizes, parse("batch + 3")])
    there = packing.payload_bytes("float32", [*shape[:-1], 14])
    assert (const(0) + formula).evaluate({"batch": 11}) == there


@pytest.mark.parametrize("name", packing_names())
def test_every_packing_that_comes_with_it(name):
    packing = load_packing(name)
    assert all(packing.sources.values())
    assert packing.is_lossless == (packing.codec != "blocks")
    assert packing.seconds_per_byte is not None
    for dtype, ratio in packing.ratios.items():
        assert ceil(ratio) == 1, dtype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("codec = 'zstd'", "key 'description' is missing"),
        ("description = 'd'", "key 'codec' is missing"),
        ("description = 'd'\ncodec = 'zst'", "codec 'zst' is not one of .* Did you mean zstd"),
        ("description = 'd'\ncodec = 'lz4'\nlevel = 2", "level is of no use to the codec lz4"),
        ("description = 'd'\ncodec = 'zstd'\nlevel = 20", "level must be 0 to 19"),
        ("description = 'd'\ncodec = 'zstd'\nlevel = true", "level must be a whole number"),
        ("description = 'd'\ncodec = 'zstd'\nfloat = 2", "unknown key 'float'"),
        (
            "description = 'd'\ncodec = 'zstd'\n[float32_ratio]\nvalue = 1.5\nsource = 's'",
            "value must be a number, more than 0 and at most 1",
        ),
        ("description = 'd'\ncodec = 'zstd'\n[float32_ratio]\nvalue = 0.5", "'source' is missing"),
        ("description = 'd'\ncodec = 'blocks'", "key 'group_elements' is missing"),
        (
            "description = 'd'\ncodec = 'blocks'\n[group_elements]\nvalue = 32\nsource = 's'\n"
            "[element_bits]\nvalue = 5\nsource = 's'",
            "has 4 or 8 bits",
        ),
        (
            "description = 'd'\ncodec = 'range'\n[pack_seconds]\nvalue = 1\nsource = 's'",
            "lacks its unit: pack_seconds_per_byte",
        ),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"mine.toml.*{message}"):
        load_packing(str(file))


def test_an_unknown_name_suggests():
    with pytest.raises(InputError, match=r"unknown packing 'zst'.*Did you mean zstd"):
        load_packing("zst")

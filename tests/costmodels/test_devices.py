"""Descriptions of devices: what the shipped ones say, and which files are refused."""

import json
import tomllib
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest

from costmodels.devices import (
    ARRAY_FIGURES,
    FIGURES,
    KEYS,
    NPU_RATES,
    PEAK,
    PEAK_DTYPES,
    PHASE_FIGURES,
    TILE_FIGURES,
    Array,
    device_names,
    load_device,
)
from costmodels.energy import load_energy
from costmodels.links import link_names
from tests.support.inprocess import invoke
from tracer.errors import InputError

BY_DTYPE = (PEAK, *NPU_RATES)
SHIPPED = {
    name: tomllib.loads(
        (files("costmodels") / "data" / "devices" / f"{name}.toml").read_text(encoding="utf-8")
    )
    for name in device_names()
}


def dump(table: dict[str, Any]) -> str:
    """A description as TOML, its figures as inline tables."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(one)}" for key, one in value.items()) + "}"
        return repr(value) if isinstance(value, float) else json.dumps(value)

    return "\n".join(f"{key} = {inline(value)}" for key, value in table.items())


@pytest.fixture
def load(tmp_path):
    """``load(table)`` reads it from the file mine.toml."""

    def read(content):
        path = tmp_path / "mine.toml"
        path.write_text(content if isinstance(content, str) else dump(content), encoding="utf-8")
        return load_device(str(path))

    return read


# --- what the shipped ones say --------------------------------------------------------------------


def test_the_devices_that_come_with_cutedge():
    wanted = {
        "rtx-4090",
        "h100-sxm",
        "h200",
        "a100-80g",
        "l40s",
        "mi300x",
        "ryzen-7950x",
        "tee-sgx",
        "tee-tdx",
        "h100-cc",
        "chip-8x8",
        "systolic-8x8",
        "systolic-128x128",
        "coral-usb",
        "ethos-u55-256",
        "gemmini-16x16",
        "pocket-tpu",
    }
    assert wanted <= set(SHIPPED)
    trusted = {name for name in SHIPPED if load_device(name).trusted}
    assert trusted == {"tee-sgx", "tee-tdx", "h100-cc", "h200-cc"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_has_its_source(name, load):
    device, table = load_device(name), SHIPPED[name]
    figures = {f"{key}.{dtype}" for key in BY_DTYPE for dtype in table.get(key, {})}
    figures |= {key for key in table if isinstance(table[key], dict) and key not in BY_DTYPE}
    figures |= load_energy(table["energy"])[1].keys() if "energy" in table else set()
    assert set(device.sources) == figures
    assert all(len(source) > 10 for source in device.sources.values())
    # The same file read by its path is the same device, but for its name.
    again = load(table)
    assert (again.name, again.sources) == ("mine", device.sources)
    assert again.peak_flops_per_second == device.peak_flops_per_second


@pytest.mark.parametrize(
    ("name", "dtype", "rate"),
    [
        # Units x FLOPs a unit and cycle, dense x clock: 2:4 sparsity would be twice as much.
        ("rtx-4090", "float32", 16384 * 2 * 2.52e9),
        ("rtx-4090", "bfloat16", 128 * 512 * 2.52e9),  # SMs, FP32 accumulate
        ("rtx-4090", "float8_e4m3fn", 128 * 1024 * 2.52e9),
        ("rtx-4090", "int8", 128 * 2048 * 2.52e9),
        ("rtx-4090", "tfloat32", 128 * 256 * 2.52e9),
        ("rtx-4090", "float64", 128 * 2 * 2 * 2.52e9),
        ("l40s", "float32", 18176 * 2 * 2.52e9),
        ("l40s", "float16", 142 * 1024 * 2.52e9),
        ("l40s", "float8_e4m3fn", 142 * 2048 * 2.52e9),
        ("l40s", "int8", 142 * 2048 * 2.52e9),
        ("l40s", "tfloat32", 142 * 512 * 2.52e9),
        ("a100-80g", "float32", 6912 * 2 * 1.41e9),
        ("a100-80g", "float64", 108 * 128 * 1.41e9),
        ("a100-80g", "tfloat32", 108 * 1024 * 1.41e9),
        ("a100-80g", "bfloat16", 108 * 2048 * 1.41e9),
        ("a100-80g", "int8", 108 * 4096 * 1.41e9),
        ("h100-sxm", "float32", 16896 * 2 * 1.98e9),
        ("h100-sxm", "float64", 132 * 256 * 1.98e9),
        ("h100-sxm", "tfloat32", 132 * 2048 * 1.83e9),
        ("h100-sxm", "bfloat16", 132 * 4096 * 1.83e9),
        ("h100-sxm", "float8_e4m3fn", 132 * 8192 * 1.83e9),
        ("h200", "bfloat16", 132 * 4096 * 1.83e9),
        ("h200", "int8", 132 * 8192 * 1.83e9),
        ("a100-pcie-80g", "int8", 108 * 4096 * 1.41e9),
        ("h100-pcie", "float32", 14592 * 2 * 1.755e9),
        ("h100-pcie", "bfloat16", 114 * 4096 * 1.62e9),
        ("h100-pcie", "int8", 114 * 8192 * 1.62e9),
        ("h100-nvl", "float32", 16896 * 2 * 1.785e9),
        ("rtx-3090", "float32", 10496 * 2 * 1.695e9),
        ("rtx-3090", "bfloat16", 82 * 512 * 1.695e9),  # SMs, FP32 accumulate
        ("rtx-3090", "int8", 82 * 2048 * 1.695e9),
        ("rtx-3090-ti", "float32", 10752 * 2 * 1.86e9),
        ("rtx-3090-ti", "float16", 84 * 512 * 1.86e9),
        ("a10", "float32", 9216 * 2 * 1.695e9),
        ("a10", "bfloat16", 72 * 1024 * 1.695e9),
        ("rtx-2080", "float32", 2944 * 2 * 1.71e9),
        ("rtx-2080", "float16", 46 * 512 * 1.71e9),
        ("rtx-2080", "int8", 46 * 2048 * 1.71e9),
        ("mi300x", "float64", 304 * 256 * 2.1e9),
        ("mi300x", "tfloat32", 304 * 1024 * 2.1e9),
        ("mi300x", "float16", 304 * 2048 * 2.1e9),
        ("mi300x", "float8_e4m3fnuz", 304 * 4096 * 2.1e9),
        ("mi300x", "int8", 304 * 4096 * 2.1e9),
        ("ryzen-7950x", "float32", 16 * 32 * 5.34e9),  # between base and boost clock
        ("tee-sgx", "float32", 4 * 32 * 3.4e9),
        ("tee-tdx", "float32", 64 * 64 * 1.9e9),
        ("tee-tdx", "bfloat16", 64 * 1024 * 1.9e9),
    ],
)
def test_a_peak_is_what_the_units_can_do(name, dtype, rate):
    assert load_device(name).peak_flops_per_second[dtype] == pytest.approx(rate, rel=0.015)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        # Bits of the bus / 8 x transfers a second.
        ("rtx-4090", 384 / 8 * 21e9),
        ("l40s", 384 / 8 * 18e9),
        ("a100-80g", 5120 / 8 * 3.186e9),
        ("a100-pcie-80g", 5120 / 8 * 3.024e9),
        ("h100-pcie", 5120 / 8 * 3.125e9),
        ("h100-nvl", 6144 / 8 * 5.1e9),
        ("rtx-3090", 384 / 8 * 19.5e9),
        ("rtx-3090-ti", 384 / 8 * 21e9),
        ("a10", 384 / 8 * 12.5e9),
        ("rtx-2080", 256 / 8 * 14e9),
        ("h100-sxm", 5120 / 8 * 5.23e9),
        ("h200", 6144 / 8 * 6.25e9),
        ("mi300x", 8192 / 8 * 5.2e9),
        ("tee-sgx", 128 / 8 * 2.133e9),
        ("tee-tdx", 512 / 8 * 5.6e9),
    ],
)
def test_a_bandwidth_is_what_the_bus_can_do(name, rate):
    found = load_device(name).memory_bandwidth_bytes_per_second
    assert found == pytest.approx(rate, rel=0.01)


def test_figures_of_the_reference_documents():
    card = load_device("rtx-4090")
    assert card.peak_flops_per_second["float32"] == 82.58e12
    assert card.memory_bandwidth_bytes_per_second == 1008e9
    assert card.memory_bytes == 25769803776
    # Its "Flop:byte": 82:1 for the card, 40:1 for the CPU (2735/67 is 40.8, cut off).
    assert round(card.ridge("float32")) == 82
    assert int(load_device("ryzen-7950x").ridge("float32")) == 40
    # 1979 dense FP8 TFLOPS at 3350 GB/s are 590:1.
    assert int(load_device("h100-sxm").ridge("float8_e4m3fn")) == 590
    array = load_device("chip-8x8").array
    assert replace(array, phases=None) == Array("fixed", 8, 8, 8, 532, 100e6)
    # 1024 operations in 532 cycles: "1.92 operations a cycle".
    assert f"{load_device('chip-8x8').array.peak_flops_per_second / 100e6:.2f}" == "1.92"


def test_a_confidential_gpu_is_the_same_gpu():
    plain, confidential = load_device("h100-sxm"), load_device("h100-cc")
    assert confidential.peak_flops_per_second == plain.peak_flops_per_second
    assert confidential.sources == plain.sources


def test_what_may_be_left_out():
    device = load_device("ryzen-7950x")
    assert (device.launch_seconds, device.efficiency_ratio) == (None, 1)
    assert device.memory_bytes is device.enclave_bytes is device.paging_bytes_per_second is None
    assert device.array is device.host_link is None


def test_a_ridge_needs_a_peak_and_a_bandwidth():
    with pytest.raises(InputError, match=r"ryzen-7950x has no peak for int8; it has float32"):
        load_device("ryzen-7950x").ridge("int8")
    with pytest.raises(InputError, match="chip-8x8 has no peak for int8; it has none"):
        load_device("chip-8x8").ridge("int8")


# --- files that are refused -----------------------------------------------------------------------

ALWAYS = (
    "description",
    "trusted",
    "array_dataflow",
    *ARRAY_FIGURES,
    *TILE_FIGURES,
    PEAK,
    NPU_RATES[0],
    "memory_bandwidth_bytes_per_second",
    "enclave_bytes",
    "paging_bytes_per_second",
)
"""Keys that every shipped file which has them must have."""

# One reader reads all files: each key in a file that has it.
EVERY_KEY = list({key: (name, key) for name, table in SHIPPED.items() for key in table}.values())
EVERY_FIGURE = [
    (name, (key, *inner))
    for name, key in EVERY_KEY
    if isinstance(value := SHIPPED[name][key], dict)
    for inner in ([(next(iter(value)),)] if key in BY_DTYPE else [()])
]


def changed(table: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The description with another value at a path of keys; None deletes it."""
    first, *rest = keys
    if rest:
        return {**table, first: changed(table[first], tuple(rest), value)}
    without = {key: old for key, old in table.items() if key != first}
    return without if value is None else {**table, first: value}


@pytest.mark.parametrize(("name", "key"), [pair for pair in EVERY_KEY if pair[1] in ALWAYS])
def test_a_required_key_that_is_missing(load, name, key):
    with pytest.raises(InputError, match=rf"mine.toml: key '{key}' is missing"):
        load(changed(SHIPPED[name], (key,), None))


@pytest.mark.parametrize(
    ("name", "key"), [pair for pair in EVERY_KEY if pair[1] not in (*ALWAYS, *PHASE_FIGURES)]
)
def test_any_other_key_may_be_missing(load, name, key):
    load(changed(SHIPPED[name], (key,), None))


@pytest.mark.parametrize(("name", "key"), EVERY_KEY)
def test_a_misspelt_key(load, name, key):
    wrong = key[:3] + key[4:]
    table = {wrong if old == key else old: value for old, value in SHIPPED[name].items()}
    with pytest.raises(InputError, match=rf"mine.toml: .*{wrong}.*{key}"):
        load(table)


@pytest.mark.parametrize("key", [key for key in KEYS if key in {PEAK, *FIGURES, *ARRAY_FIGURES}])
def test_a_key_without_its_unit(load, key):
    units = (
        "_flops_per_second",
        "_bytes_per_second",
        "_bytes",
        "_elements",
        "_ratio",
        "_seconds",
        "_hertz",
    )
    bare = next(key.removesuffix(unit) for unit in units if key.endswith(unit))
    figure = {"value": 1, "source": "s"}
    with pytest.raises(InputError, match=rf"mine.toml: key '{bare}' lacks its unit: .*{key}"):
        load({**SHIPPED["rtx-4090"], bare: figure})


@pytest.mark.parametrize(("name", "keys"), EVERY_FIGURE)
def test_a_figure_without_source_or_value(load, name, keys):
    where = rf"mine.toml: \[{'.'.join(keys)}\]"
    for part in ("value", "source"):
        with pytest.raises(InputError, match=rf"{where}: key '{part}' is missing"):
            load(changed(SHIPPED[name], (*keys, part), None))
    with pytest.raises(InputError, match=rf"{where}: source must say where"):
        load(changed(SHIPPED[name], (*keys, "source"), " "))


@pytest.mark.parametrize(
    ("name", "keys"), [pair for pair in EVERY_FIGURE if pair[1][0] not in PHASE_FIGURES]
)
def test_a_figure_that_is_no_positive_number(load, name, keys):
    for value in (-1, 0, "1", True, [1], float("inf"), float("nan")):
        with pytest.raises(InputError, match=rf"mine.toml: \[{'.'.join(keys)}\]: value must be"):
            load(changed(SHIPPED[name], (*keys, "value"), value))


@pytest.mark.parametrize(
    "key",
    [
        key
        for key in {**FIGURES, **ARRAY_FIGURES, **TILE_FIGURES}
        if key.endswith(("_bytes", "_elements", "_cycles")) and "per_second" not in key
    ],
)
def test_a_count_must_be_whole(load, key):
    name = "tee-sgx" if key == "enclave_bytes" else "chip-8x8" if key not in FIGURES else "rtx-4090"
    with pytest.raises(InputError, match=rf"mine.toml: \[{key}\]: value must be a whole number"):
        load({**SHIPPED[name], key: {"value": 8.5, "source": "s"}})


FIGURE = {"value": 1, "source": "s"}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("rtx-4090", {"enclave_bytes": FIGURE}, "'paging_bytes_per_second' is missing"),
        ("rtx-4090", {"paging_bytes_per_second": FIGURE}, "'enclave_bytes' is missing"),
        ("rtx-4090", {"array_dataflow": "os"}, "'array_rows_elements' is missing"),
        ("rtx-4090", {"tile_cycles": FIGURE}, "'array_dataflow' is missing"),
        ("rtx-4090", {"clock_hertz": FIGURE}, "'array_dataflow' is missing"),
        ("rtx-4090", {PEAK: {}}, rf"\[{PEAK}\]: a table for each dtype"),
        ("rtx-4090", {PEAK: 5}, rf"\[{PEAK}\]: a table for each dtype"),
        ("rtx-4090", {PEAK: {"flot32": FIGURE}}, r"unknown key 'flot32'.*mean float32"),
        ("rtx-4090", {PEAK: {"bool": FIGURE}}, "unknown key 'bool'"),
        ("rtx-4090", {PEAK: {"float32": 5}}, rf"\[{PEAK}.float32\]: a table with value"),
        ("rtx-4090", {"memory_bytes": 5}, r"\[memory_bytes\]: a table with value and source"),
        ("rtx-4090", {"trusted": 1}, "trusted must be true or false"),
        ("rtx-4090", {"description": " "}, "description must be text"),
        ("rtx-4090", {"host_link": 5}, "host_link must be text"),
        ("rtx-4090", {"efficiency_ratio": {"value": 1.1, "source": "s"}}, "at most 1,"),
        ("chip-8x8", {PEAK: {"int8": FIGURE}}, "'memory_bandwidth_bytes_per_second' is missing"),
        ("chip-8x8", {"array_dataflow": "ows"}, r"array_dataflow 'ows' is not one of fixed, os"),
        ("chip-8x8", {"array_dataflow": ["os"]}, "array_dataflow must be text"),
        ("chip-8x8", {"array_dataflow": "os"}, "'array_depth_elements' is for .*fixed, not os"),
        ("systolic-8x8", {"tile_cycles": FIGURE}, "'tile_cycles' is for .*fixed, not os"),
        ("systolic-8x8", {"array_dataflow": "fixed"}, "'array_depth_elements' is missing"),
    ],
)
def test_what_does_not_go_together(load, name, changes, says):
    with pytest.raises(InputError, match=rf"mine.toml: .*{says}"):
        load({**SHIPPED[name], **changes})


def test_a_key_that_stands_twice(load):
    text = dump(SHIPPED["rtx-4090"])
    for again in ("trusted = true\n" + text, text + "\n[memory_bytes]\nvalue = 1\n"):
        with pytest.raises(InputError, match=r"mine.toml: not valid TOML"):
            load(again)


def test_a_launch_may_cost_nothing_and_an_array_may_have_peaks_too(load):
    nothing = {"launch_seconds": {"value": 0, "source": "by definition"}}
    assert load({**SHIPPED["rtx-4090"], **nothing}).launch_seconds == 0
    both = load({**SHIPPED["rtx-4090"], **SHIPPED["chip-8x8"]})
    assert both.array
    assert both.ridge("float32") == load_device("rtx-4090").ridge("float32")


def test_peaks_may_be_of_any_number_that_is_multiplied():
    assert {"float32", "bfloat16", "tfloat32", "int8", "float8_e4m3fn"} <= set(PEAK_DTYPES)
    assert not {"bool", "complex64"} & set(PEAK_DTYPES)


# --- cutedge devices ------------------------------------------------------------------------------


def parsed(done):
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_devices_lists_them_all():
    listed = parsed(invoke("cutedge", "devices", "--json"))["devices"]
    assert [one["device"] for one in listed] == device_names()
    for one in listed:
        alone = parsed(invoke("cutedge", "devices", one["device"], "--json"))
        assert alone == {"version": 1, "devices": [one]}
        device = load_device(one["device"])
        assert one[PEAK] == device.peak_flops_per_second
        assert one["ridge_flops_per_byte"] == {
            dtype: rate / device.memory_bandwidth_bytes_per_second
            for dtype, rate in device.peak_flops_per_second.items()
        }
    text = invoke("cutedge", "devices").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert set(device_names()) <= set(rows)
    # 82.58e12 / 1008e9 = 81.9, 165.2e12 / 1008e9 = 163.9, 660.6e12 / 1008e9 = 655.4.
    assert rows["rtx-4090"].split() == [
        "rtx-4090",
        "no",
        "82.58",
        "165.2",
        "660.6",
        "1008",
        "24.0",
        "GiB",
        "81.9",
        "163.9",
        "655.4",
    ]
    assert rows["chip-8x8"].split("  ")[0] == "chip-8x8"
    assert "8 x 8 x 8" in rows["chip-8x8"]
    assert "532" in rows["chip-8x8"]


@pytest.mark.parametrize("name", device_names())
def test_devices_shows_every_figure_with_its_source(name):
    done = invoke("cutedge", "devices", name)
    assert (done.returncode, done.stderr) == (0, "")
    device, lines = load_device(name), done.stdout.splitlines()
    assert lines[0] == f"{name}: {device.description}"
    assert lines[1].startswith("trusted" if device.trusted else "not trusted")
    for key, source in device.sources.items():
        assert any(
            line.startswith(key.removeprefix(f"{PEAK}.")) and line.endswith(source)
            for line in lines
        ), key
    for dtype in device.peak_flops_per_second:
        assert any(
            line.startswith(dtype) and f"{device.ridge(dtype):.2f}" in line for line in lines
        )


def test_a_device_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(dump(SHIPPED["tee-sgx"]), encoding="utf-8")
    (shown,) = parsed(invoke("cutedge", "devices", path, "--json"))["devices"]
    assert (shown["device"], shown["enclave_bytes"]) == ("mine", 90 * 2**20)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rtx-4080", ["unknown device 'rtx-4080'", "mean rtx-4090"]),
        ("gone.toml", ["device file gone.toml", "No such file"]),
    ],
)
def test_a_device_that_is_not_there(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("cutedge", "devices", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for words in says:
        assert words in done.stderr


@pytest.mark.parametrize("name", device_names())
def test_a_host_link_is_one_of_cutedge(name):
    assert load_device(name).host_link in (None, *link_names())

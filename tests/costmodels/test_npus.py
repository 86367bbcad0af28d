"""Chips with units of their own: by hand, as properties, over many sizes, and in a split."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cutedge
from costmodels.arrays import Options, gemm_cost
from costmodels.chip import (
    PARTS_OF_A_BIT,
    ChipWork,
    buffers_of,
    chip_time,
    off_chip_shares,
    widths_of,
)
from costmodels.devices import Array, ArrayMemory, Device, Npu, device_names, load_device
from costmodels.flops import annotate
from costmodels.many import Over, op_groups, time_group
from costmodels.memory import memory_need
from costmodels.roofline import time_graph, time_ops
from costmodels.weights import load_weights, quantised, stored
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tracer.errors import InputError
from tracer.graph import Kind
from tracer.reach import resized

SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 50}
NPUS = [name for name in device_names() if load_device(name).npu is not None]
ARRAY = Array("ws", 8, 4, depth=None, tile_cycles=None, clock_hertz=1e8)
BUFFERS = ArrayMemory(512, 512, 512, 2e8, accumulator_bytes=4)


@pytest.fixture
def graph(traced):
    """gpt2 with one small layer, in int8."""
    return annotate(quantised(traced("gpt2", seq=8, overrides=SMALL), "int8"))


def chip(**figures) -> Device:
    return Device("mine", "", trusted=False, peak_flops_per_second={}, npu=Npu(1e8, **figures))


# --- by hand --------------------------------------------------------------------------------------


def test_what_a_product_takes_by_hand():
    """[4, 32] x [32, 16] in int8: 2048 MACs; 128 + 64 bytes of activations, 512 of weights."""
    work = ChipWork(Kind.LINEAR, "int8", 4096, 704, 512, (1, 4, 16, 32))
    rates = {"int8": 8.0}
    mine = chip(
        macs_per_cycle=rates,
        sram_bytes=256,
        sram_bytes_per_second=4e8,
        dram_bytes_per_second=1e8,
        dma_bytes_per_cycle=0.5,
        dma_setup_cycles=10,
    )
    # 2048 / 8 cycles; 704 bytes at 4 a cycle; of the weights half, at half a byte a cycle (the
    # engine is slower than the DRAM): 512 cycles, in two transfers of at most 128 bytes.
    taken = chip_time(mine, work, Options(), (0.5, 0.0))
    assert taken.spent == pytest.approx(
        {"compute": 256e-8, "sram": 176e-8, "dram": (256 / 0.5 + 2 * 10) * 1e-8}
    )
    assert taken.seconds == taken.spent["dram"]
    inside = chip_time(mine, work, Options())
    assert inside.spent["dram"] == 0
    assert inside.seconds == pytest.approx(256e-8)
    assert chip_time(mine, replace(work, dtype="int16"), Options()) is None


def test_what_else_takes_by_hand():
    """A softmax of 5 operations an element on a unit of 4 a cycle, and what has no rate."""
    work = ChipWork(Kind.SOFTMAX, "int8", 5 * 64, 128)
    rates = {"int8": 4.0}
    mine = chip(macs_per_cycle=rates, vector_operations_per_cycle=rates)
    assert chip_time(mine, work, Options()).seconds == pytest.approx(80e-8)
    bare = chip(macs_per_cycle=rates)
    assert chip_time(bare, work, Options()) is None
    assert chip_time(bare, replace(work, kind=Kind.COPY, flops=0), Options()).seconds == 0
    said = chip(macs_per_cycle=rates, kinds=("linear", "softmax"))
    assert chip_time(said, work, Options()).seconds == 0
    assert said.unknown[-1] == "the rate of mine for all but products"
    assert chip_time(said, replace(work, kind=Kind.NORM), Options()) is None
    assert chip_time(mine, replace(work, flops=None), Options()) is None


def test_an_array_and_a_unit_beside_it(graph):
    """Products take the cycles of the array, all else those of the unit."""
    array = load_device("systolic-8x8").array
    both = replace(
        chip(vector_operations_per_cycle={"int8": 2.0}, kinds=("linear", "matmul", "norm")),
        array=array,
    )
    time = time_ops(graph, both)
    for op, at in zip(graph.ops, time.ops, strict=True):
        if op.cost.gemm is not None:
            gemm = op.cost.gemm
            alone = gemm_cost(array, gemm.m, gemm.k, gemm.n, batch=gemm.batch)
            assert (at.gemm, at.seconds, at.bound) == (alone, alone.seconds, "compute")
        elif op.kind is Kind.NORM:
            assert at.seconds == pytest.approx(op.cost.flops / 2e8)
    assert {graph.ops[n].kind for n, at in enumerate(time.ops) if at.seconds is None} == {
        Kind.EMBEDDING,
        Kind.ELEMENTWISE,
        Kind.SOFTMAX,
    } | ({Kind.COPY} & {op.kind for op in graph.ops})


def test_an_array_waits_for_its_buffers_by_hand():
    """[1, 8] x [8, 4], one fold of 8 + 1 + 10 = 19 cycles, numbered from 0; int8 by int4 into int8.

    A cycle has 2 bytes of the DRAM. Before it the 8 bytes of the left operand and the 16 of 32
    weights of 4 bits come: 12 cycles; after it 4 results of the accumulator's 4 bytes go: 8.
    """
    device = Device("mine", "", False, {}, array=ARRAY, array_memory=BUFFERS)
    widths = (8 * PARTS_OF_A_BIT, 4 * PARTS_OF_A_BIT, 8 * PARTS_OF_A_BIT)
    work = ChipWork(Kind.LINEAR, "int8", 64, 44, 32, (1, 1, 4, 8), widths)
    taken = chip_time(device, work, Options())
    assert taken.gemm.cycles == 18
    assert taken.memory.stall_cycles == 12 + 8
    assert taken.seconds == pytest.approx((18 + 20) * 1e-8)
    assert taken.spent == pytest.approx({"compute": 18e-8, "dram": 20e-8})


def test_the_width_of_each_operand(graph):
    """int8 throughout; weights of 4.5 bits are so in their buffer."""
    linear = next(op for op in graph.ops if op.kind is Kind.LINEAR)
    assert widths_of(graph, linear) == (128, 128, 128)
    packed = stored(graph, load_weights("q4_0"))
    assert widths_of(packed, linear) == (128, 72, 128)
    assert widths_of(graph, graph.ops[0]) is None
    words = buffers_of(BUFFERS, (128, 72, 128), 1e8)
    assert (words.ifmap_words, words.filter_words, words.ofmap_words) == (512, 910, 128)
    assert words.dram_words_per_cycle == Fraction(2 * 128)


# --- properties -----------------------------------------------------------------------------------

BYTES = st.integers(0, 2**24)


@examples(60)
@given(BYTES, BYTES, st.integers(1, 2**22))
def test_what_has_no_room_comes_once(lying, weights, sram):
    """Weights first: of what lies beyond the SRAM as many as there are; then of all else."""
    weights = min(weights, lying)
    mine = chip(macs_per_cycle={"int8": 1.0}, sram_bytes=sram)
    of_weights, of_others = off_chip_shares(mine, lying, weights)
    assert 0 <= of_weights <= 1
    assert 0 <= of_others <= 1
    outside = of_weights * weights + of_others * (lying - weights)
    assert outside == pytest.approx(max(lying - sram, 0))
    assert of_others == 0 or of_weights == 1 or weights == 0
    many = off_chip_shares(mine, np.array([lying]), np.array([weights]))
    assert [share.tolist() for share in many] == [[of_weights], [of_others]]


@examples(40)
@given(
    st.sampled_from(["sram_bytes", "sram_bytes_per_second", "dram_bytes_per_second"]),
    st.floats(1, 50),
    st.tuples(*[st.integers(1, 200)] * 4),
)
def test_more_of_a_memory_is_never_slower(figure, more, gemm):
    batch, m, n, k = gemm
    left, right, made = batch * m * k, batch * k * n, batch * m * n
    moved = left + right + made
    work = ChipWork(Kind.LINEAR, "int8", 2 * batch * m * n * k, moved, right, gemm)
    figures = {"sram_bytes": 2048, "sram_bytes_per_second": 1e8, "dram_bytes_per_second": 1e7}
    wider = {**figures, figure: int(figures[figure] * more)}
    taken = []
    for each in (figures, wider):
        mine = chip(macs_per_cycle={"int8": 4.0}, **each)
        taken.append(chip_time(mine, work, Options(), off_chip_shares(mine, moved, right)))
    assert taken[1].seconds <= taken[0].seconds
    assert all(one.seconds == max(one.spent.values()) for one in taken)
    slower = replace(BUFFERS, dram_bytes_per_second=1e8)
    waits = [
        chip_time(Device("a", "", False, {}, array=ARRAY, array_memory=memory), work, Options())
        for memory in (slower, replace(slower, dram_bytes_per_second=1e8 * more))
    ]
    assert waits[1].seconds <= waits[0].seconds
    assert waits[0].seconds >= waits[0].gemm.seconds


@pytest.mark.parametrize("name", [*NPUS, "buffers"])
@pytest.mark.parametrize("weights", [None, "q4_0"])
def test_many_sizes_at_once_are_each_size_alone(traced, name, weights):
    device = (
        Device("buffers", "", False, {}, array=replace(ARRAY, arrays=2), array_memory=BUFFERS)
        if name == "buffers"
        else load_device(name)
    )
    graph = quantised(traced("gpt2", seq=8, overrides=SMALL), "int8")
    graph = annotate(graph if weights is None else stored(graph, load_weights(weights)))
    sizes = {"batch": [1, 3, 1], "seq": [2, 8, 100]}
    over = Over({name: np.array(values) for name, values in sizes.items()})
    groups = op_groups(graph, over)
    fixed = {"past": graph.meta.past, "source": graph.meta.source}
    each = [resized(graph, {**fixed, **{key: sizes[key][n] for key in sizes}}) for n in range(3)]
    each = [annotate(one) for one in each]
    lying = [memory_need(one).live_bytes for one in each]
    read = [
        sum(op.cost.param_bytes for op in one.ops if device.runs(op.kind.value)) for one in each
    ]
    alone = [time_graph(one, device) for one in each]
    for op, number in enumerate(groups.of):
        if number is None:
            continue
        found = time_group(
            device, groups.groups[number], Options(), np.array(lying), weight_bytes=np.array(read)
        )
        seconds = [time.ops[op].seconds for time in alone]
        assert (None if found.seconds is None else found.seconds.tolist()) == (
            None if seconds[0] is None else seconds
        )


# --- as users meet them ---------------------------------------------------------------------------


def test_a_model_that_is_counted_as_quantised(traced):
    plain = traced("gpt2", seq=8, overrides=SMALL)
    counted = annotate(quantised(plain, "int8"))
    assert counted.meta.dtype == "int8"
    for before, after in zip(plain.tensors, counted.tensors, strict=True):
        assert after.bytes == (before.numel if before.dtype == "float32" else before.bytes)
    assert [op.cost.flops for op in counted.ops] == [op.cost.flops for op in plain.ops]
    with pytest.raises(InputError, match="nothing here runs it so"):
        cutedge.trace("edge-10m", seq=8, dtype="int8")._request.runnable()


def test_what_a_chip_does_not_run_falls_to_the_host(graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("far.toml").write_text('description = "all away"\ndefault = "accelerator"\n')
    words = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    assert invoke("trace", "gpt2", "--seq", "8", "--dtype", "int8", *words).returncode == 0
    told = json.loads(invoke("cost", "--device", "coral-usb", "--json").stdout)["costs"][0]
    assert told["refused_kinds"] == {"embedding": 1, "matmul": 2}
    assert told["left_out"][1:] == [
        "the SRAM bandwidth of coral-usb",
        "the rate of coral-usb for all but products",
    ]
    assert "coral-usb does not run" in invoke("cost", "--device", "coral-usb").stdout
    machine = ("--home", "ryzen-7950x", "--accel", "coral-usb", "--policy", "far.toml")
    done = invoke("partition", *machine)
    assert done.returncode == 0, done.stderr
    page = invoke("report", *machine, "--out", "page.html")
    assert page.returncode == 0, page.stderr
    assert "it has no one roof" in Path("page.html").read_text()
    said = invoke("limits", "edge-10m", "--device", "coral-usb").stderr
    assert "coral-usb counts cycles: limits are of a device that holds the model" in said
    sql = "SELECT DISTINCT kind, p.device, p.reason FROM placement p JOIN ops USING (op_id)"
    rows = json.loads(invoke("cutedge", "query", sql, "--json").stdout)["rows"]
    at_home = {row["kind"]: row["reason"] for row in rows if row["device"] == "ryzen-7950x"}
    assert at_home.keys() == {"embedding", "matmul", "input", "output"}
    assert at_home["matmul"] == "coral-usb runs no matmul: it falls to ryzen-7950x"


BASE = {"description": "d", "trusted": False, "op_kinds": ["linear"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[macs_per_cycle.int8]\nvalue = 1\nsource = 's'", "'clock_hertz' is missing"),
        ("[clock_hertz]\nvalue = 1\nsource = 's'", "'macs_per_cycle' is missing"),
        ("op_kinds = ['linaer']\n[clock_hertz]\nvalue = 1\nsource = 's'", "'macs_per_cycle' is"),
        ("macs_per_cycle = 5\n[clock_hertz]\nvalue = 1\nsource = 's'", "a table for each dtype"),
    ],
)
def test_a_file_that_lacks_something(tmp_path, text, says):
    file = tmp_path / "mine.toml"
    kinds = "" if "op_kinds" in text else "op_kinds = ['linear']\n"
    file.write_text(f"description = 'd'\ntrusted = false\n{kinds}{text}\n")
    with pytest.raises(InputError, match=f"mine.toml: .*{says}"):
        load_device(str(file))


@pytest.mark.parametrize(
    ("name", "added", "says"),
    [
        ("coral-usb", "[peak_flops_per_second.int8]\nvalue = 1\nsource = 's'", "bandwidth"),
        ("coral-usb", "[sram_ifmap_bytes]\nvalue = 1\nsource = 's'", "'array_dataflow' is missing"),
        ("gemmini-16x16", "[macs_per_cycle.int8]\nvalue = 1\nsource = 's'", "without an array"),
        ("systolic-8x8", "[sram_ifmap_bytes]\nvalue = 9\nsource = 's'", "'sram_filter_bytes'"),
        ("systolic-8x8", "[dram_bytes_per_second]\nvalue = 9\nsource = 's'", "chip with buffers"),
    ],
)
def test_what_does_not_go_together(tmp_path, name, added, says):
    file = tmp_path / "mine.toml"
    file.write_text(f"{Path(f'costmodels/data/devices/{name}.toml').read_text()}\n{added}\n")
    with pytest.raises(InputError, match=f"mine.toml: .*{says}"):
        load_device(str(file))
    wrong = Path(f"costmodels/data/devices/{NPUS[0]}.toml").read_text()
    file.write_text(wrong.replace('["linear", ', '["linaer", '))
    with pytest.raises(InputError, match="op_kinds must be a list of some of linear"):
        load_device(str(file))


def test_speedups_of_a_chip_with_buffers_are_refused(graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = Path(__file__).parents[2] / "costmodels/data/devices/systolic-8x8.toml"
    keys = ("sram_ifmap_bytes", "sram_filter_bytes", "sram_ofmap_bytes", "dram_bytes_per_second")
    more = "".join(f"\n[{key}]\nvalue = 4096\nsource = 's'\n" for key in keys)
    Path("mine.toml").write_text(text.read_text() + more)
    assert invoke("trace", "edge-10m", "--seq", "8").returncode == 0
    told = json.loads(invoke("cost", "--device", "mine.toml", "--json").stdout)["costs"][0]
    assert told["seconds_by_bound"].keys() == {"dram"}
    assert told["seconds"] > told["cycles"] / 1e8
    done = invoke("cost", "--device", "mine.toml", "--chips", "4")
    assert "mine has buffers" in done.stderr
    assert done.returncode == 2


def test_layers_over_two_chips_and_weights_that_are_sent(tmp_path, monkeypatch):
    """Each layer's products on the chip that has it; what the chips take together is what one takes.

    Weights that lie at home cross in the format that they are stored in: bytes of a linear, all of
    them read once, are those of the trace.
    """
    monkeypatch.chdir(tmp_path)
    rule = '[[rule]]\nlayer = [{}]\nkind = ["linear", "matmul"]\nplace = "{}"\n'
    head = 'description = "d"\ndefault = "home"\n'
    Path("two.toml").write_text(
        head + rule.format("0, 1", "accelerator 1") + rule.format("2, 3", "accelerator 2")
    )
    Path("one.toml").write_text(head + rule.format("0, 1, 2, 3", "accelerator 1"))
    assert invoke("trace", "edge-10m", "--seq", "8", "--dtype", "int8").returncode == 0
    chips = ("--home", "tee-tdx", "--accel", "a=gemmini-16x16", "--accel", "b=gemmini-16x16")
    found = {}
    for name, *more in (("one",), ("two",), ("two", "--weights-at", "home", "--weights", "q8_0")):
        done = invoke(
            "partition", "--policy", f"{name}.toml", *chips, "--link", "pcie-gen3", *more, "--json"
        )
        assert done.returncode == 0, done.stderr
        found[name, *more] = json.loads(done.stdout)
    one, two, sent = found.values()
    assert sum(two["cycles"].values()) == one["cycles"]["a"]
    assert {*two["cycles"]} == {"a", "b"}
    weights = 4 * (4 * 256 * 256 + 2 * 256 * 1024)
    biases = 4 * (4 * 256 + 1024 + 256)
    more = sent["sent_payload_bytes"] - two["sent_payload_bytes"]
    assert more == weights * 34 // 32 + biases * 4  # of 32 elements a scale; biases in float32

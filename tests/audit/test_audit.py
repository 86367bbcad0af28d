"""Every figure that the rules decide, in many splits of many models, against a second accounting.

``pytest -m slow tests/audit -n 2 --dist load`` is the whole of it.
"""

import ast
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.audit.accounting import Account, Link, Trace, account, evaluate, framing_of
from tests.audit.cases import CASES, LINKS, Asked, Case, Way, audit, split, ways, weight_ways
from tests.audit.comparing import compare_split

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_figure_is_what_the_rules_say(case: Case, tmp_path, record_property):
    found = audit(case, tmp_path, ways(range(9)))
    record_property("figures compared", found.compared)
    assert not found.differ, f"{len(found.differ)} disagree:\n" + "\n".join(found.differ[:20])


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case("branches", "--batch 2 --seq 6")], ids=str)
def test_a_module_with_every_corner_is_what_the_rules_say(case: Case, tmp_path, record_property):
    found = audit(case, tmp_path, [*ways(range(6))][::4])
    record_property("figures compared", found.compared)
    assert not found.differ, f"{len(found.differ)} disagree:\n" + "\n".join(found.differ[:20])


WEIGHTY = [Case("branches", "--batch 2 --seq 6"), Case("gpt2", "--phase decode --past 8 --batch 2")]


@pytest.mark.slow  # every placement of small graphs is tried in the solvers' own tests
@pytest.mark.parametrize("case", WEIGHTY, ids=str)
def test_parameters_that_are_sent_are_what_the_rules_say(case: Case, tmp_path, record_property):
    found = audit(case, tmp_path, [*weight_ways(range(4))][:: 1 if case is WEIGHTY[0] else 2])
    record_property("figures compared", found.compared)
    assert not found.differ, f"{len(found.differ)} disagree:\n" + "\n".join(found.differ[:20])


# --- that it is a second one ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["accounting", "comparing", "policies"])
def test_the_second_accounting_shares_no_code_with_the_first(name):
    tree = ast.parse((HERE / f"{name}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(node.module)
    ours = {"tests.audit.accounting", "tests.audit.comparing"}
    outside = {module for module in imported - ours if module.partition(".")[0] != "pyarrow"}
    assert outside <= sys.stdlib_module_names | {"collections.abc"}
    text = (HERE / f"{name}.py").read_text()
    assert "import_module" not in text
    assert "__import__" not in text


# --- that it counts as a reader of the rules does -------------------------------------------------

HOME, GPU, NPU = "home", "gpu", "npu"


def graph(*ops: tuple[str, str, int, list[str]], results: tuple[str, ...] = ()) -> Trace:
    """A graph of ops, each with a name, a kind, the numbers that it makes and what it reads.

    A kind ``kv_cache`` is the input of cached state; ``results`` with a ``!`` are cached state too.
    """
    rows = [*ops, ("output", "output", 0, [name.rstrip("!") for name in results])]
    state = {name.rstrip("!") for name in results if name.endswith("!")}
    number = {name: i for i, (name, *_) in enumerate(rows)}
    made = {
        i: {
            "tensor_id": i,
            "op_id": i,
            "name": name,
            "dtype": "float32",
            "shape": [size],
            "bytes": 4 * size,
            "role": "kv_cache" if kind == "kv_cache" or name in state else "",
            "label": None,
            "alias_of": None,
        }
        for i, (name, kind, size, _) in enumerate(rows[:-1])
    }
    return Trace(
        {
            i: {
                "op_id": i,
                "name": name,
                "kind": "input" if kind == "kv_cache" else kind,
                "is_constant": kind == "constant",
            }
            for i, (name, kind, _, _) in enumerate(rows)
        },
        made,
        [
            {"src_op": number[source], "dst_op": i, "tensor_id": number[source], "arg_index": place}
            for i, (_, _, _, read) in enumerate(rows)
            for place, source in enumerate(read)
        ],
        {},
    )


def moved(trace: Trace, found: Account) -> list[tuple[Any, ...]]:
    return [
        (trace.tensors[m.tensor]["name"], m.source, m.destination, m.call, m.payload_bytes)
        for m in found.moved
    ]


def test_a_parameter_at_home_is_sent_once_or_with_each_call_that_reads_it():
    # x -> a (gpu, call 1) -> h (home) -> b (gpu, call 2); a and b read w, and c (gpu) a view of v.
    trace = graph(
        ("x", "input", 10, []),
        ("a", "linear", 10, ["x"]),
        ("h", "norm", 10, ["a"]),
        ("b", "linear", 10, ["h"]),
        results=("b",),
    )
    weight = {**trace.tensors[0], "op_id": None, "role": "parameter", "dtype": "bfloat16"}
    tensors = {
        **trace.tensors,
        9: {**weight, "tensor_id": 9, "name": "w", "bytes": 20},
        10: {**weight, "tensor_id": 10, "name": "tied", "bytes": 20, "alias_of": 9},
    }
    edges = [
        *trace.edges,
        *(
            {"src_op": None, "dst_op": op, "tensor_id": tensor, "arg_index": 1}
            for op, tensor in ((1, 9), (3, 10))
        ),
    ]
    trace = Trace(trace.ops, tensors, edges, {})
    placed = dict(enumerate([HOME, GPU, HOME, GPU, HOME]))

    def weights(**options: Any) -> list[tuple[Any, ...]]:
        return [
            one for one in moved(trace, account(trace, placed, HOME, **options)) if one[0] == "w"
        ]

    first, second = (("w", HOME, GPU, (step, GPU), 20) for step in (1, 2))
    assert weights() == []
    assert weights(streams={1, 3}, wire_dtype="float32") == [first]
    assert weights(streams={1, 3}, residency="call") == [first, second]
    assert weights(streams={3}) == []  # it lies there for a
    assert account(trace, placed, HOME, streams={1, 3}).resident_bytes == {HOME: 20}
    assert account(trace, placed, HOME, streams={3}).resident_bytes == {GPU: 20}


def test_what_is_read_again_is_sent_again_to_an_accelerator_that_forgets():
    # x -> a (gpu, call 1) -> h (home) -> b (gpu, call 2), which reads x and a too; 40 bytes each.
    trace = graph(
        ("x", "input", 10, []),
        ("a", "linear", 10, ["x"]),
        ("h", "norm", 10, ["a"]),
        ("b", "linear", 10, ["h", "x", "a"]),
        results=("b",),
    )
    placed = dict(enumerate([HOME, GPU, HOME, GPU, HOME]))
    kept = account(trace, placed, HOME)
    assert kept.calls == {(1, GPU): [1], (2, GPU): [3]}
    once = [
        ("x", HOME, GPU, (1, GPU), 40),
        ("a", GPU, HOME, (1, GPU), 40),
        ("h", HOME, GPU, (2, GPU), 40),
        ("b", GPU, HOME, (2, GPU), 40),
    ]
    assert moved(trace, kept) == once
    again = [("x", HOME, GPU, (2, GPU), 40), ("a", HOME, GPU, (2, GPU), 40)]
    assert sorted(moved(trace, account(trace, placed, HOME, residency="call"))) == sorted(
        once + again
    )


def test_of_cached_state_the_new_row_crosses_with_the_first_call_that_reads_it():
    # 100 rows of 4 bytes are cached; home makes one more, which call 2 reads through the state, and
    # call 3 again. Call 1 does not need it, though it might have had it.
    trace = graph(
        ("x", "input", 1, []),
        ("cache", "kv_cache", 100, []),
        ("row", "norm", 1, ["x"]),
        ("after", "copy", 101, ["cache", "row"]),
        ("q", "linear", 1, ["x"]),
        ("h", "norm", 1, ["q"]),
        ("scores", "matmul", 101, ["h", "after"]),
        ("p", "softmax", 101, ["scores"]),
        ("y", "matmul", 1, ["p", "after"]),
        results=("y", "after!"),
    )
    placed = dict(enumerate([HOME, None, HOME, None, GPU, HOME, GPU, HOME, GPU, HOME]))
    for residency in ("run", "call"):
        found = account(trace, placed, HOME, residency=residency)
        assert moved(trace, found) == [
            ("x", HOME, GPU, (1, GPU), 4),
            ("row", HOME, GPU, (2, GPU), 4),
            ("q", GPU, HOME, (1, GPU), 4),
            ("h", HOME, GPU, (2, GPU), 4),
            ("scores", GPU, HOME, (2, GPU), 404),
            ("p", HOME, GPU, (3, GPU), 404),
            ("y", GPU, HOME, (3, GPU), 4),
        ]
        assert found.resident_bytes == {GPU: 404}


def test_a_row_that_is_made_where_its_state_lies_crosses_nowhere():
    trace = graph(
        ("x", "input", 1, []),
        ("cache", "kv_cache", 100, []),
        ("row", "linear", 1, ["x"]),
        ("after", "copy", 101, ["cache", "row"]),
        ("q", "linear", 1, ["x"]),
        ("h", "norm", 1, ["q"]),
        ("scores", "matmul", 101, ["h", "after"]),
        results=("scores", "after!"),
    )
    placed = dict(enumerate([HOME, None, GPU, None, GPU, HOME, GPU, HOME]))
    found = account(trace, placed, HOME, residency="call")
    assert moved(trace, found) == [
        ("x", HOME, GPU, (1, GPU), 4),
        ("q", GPU, HOME, (1, GPU), 4),
        ("h", HOME, GPU, (2, GPU), 4),
        ("scores", GPU, HOME, (2, GPU), 404),
    ]


def test_a_view_of_the_whole_cache_at_home_crosses_whole():
    trace = graph(
        ("x", "input", 1, []),
        ("cache", "kv_cache", 100, []),
        ("after", "copy", 101, ["cache", "x"]),
        ("turned", "view", 101, ["after"]),
        ("scores", "matmul", 1, ["turned"]),
        results=("scores", "after!"),
    )
    placed = dict(enumerate([HOME, None, None, HOME, GPU, HOME]))
    found = account(trace, placed, HOME)
    assert moved(trace, found) == [
        ("turned", HOME, GPU, (1, GPU), 404),
        ("scores", GPU, HOME, (1, GPU), 4),
    ]
    assert found.resident_bytes == {HOME: 404}


def test_of_two_accelerators_each_has_its_calls_and_what_one_makes_goes_straight_to_the_other():
    # gpu -> npu -> gpu: three calls, since a call is over before what it makes is read elsewhere.
    trace = graph(
        ("x", "input", 1, []),
        ("a", "linear", 10, ["x"]),
        ("b", "linear", 20, ["a"]),
        ("c", "linear", 30, ["b", "a"]),
        results=("c",),
    )
    placed = dict(enumerate([HOME, GPU, NPU, GPU, HOME]))
    found = account(trace, placed, HOME)
    assert found.calls == {(1, GPU): [1], (2, NPU): [2], (3, GPU): [3]}
    assert moved(trace, found) == [
        ("x", HOME, GPU, (1, GPU), 4),
        ("a", GPU, NPU, (2, NPU), 40),
        ("b", NPU, GPU, (3, GPU), 80),
        ("c", GPU, HOME, (3, GPU), 120),
    ]
    forgets = account(trace, placed, HOME, residency="call")
    assert not [m for m in forgets.moved if m.direction == "peer"]
    # x; a home, to npu and back to gpu; b home and to gpu; c.
    assert sum(m.payload_bytes for m in forgets.moved) == 4 + 3 * 40 + 2 * 80 + 120


def test_constants_are_on_every_device_and_lie_there():
    trace = graph(
        ("x", "input", 1, []),
        ("mask", "constant", 25, []),
        ("a", "linear", 1, ["x", "mask"]),
        ("b", "norm", 1, ["a", "mask"]),
        results=("b",),
    )
    found = account(trace, dict(enumerate([HOME, None, GPU, HOME, HOME])), HOME)
    assert [name for name, *_ in moved(trace, found)] == ["x", "a"]
    assert found.resident_bytes == {GPU: 100, HOME: 100}
    assert found.cut_edges == 2


def test_framing():
    link = Link(31, 7, 19, 5)
    assert framing_of(link, "send", [100, 50]) == (31, [107, 57])
    assert framing_of(link, "receive", [100]) == (19, [105])
    # 170 bytes in pieces of 64: three messages.
    assert framing_of(Link(31, 7, 19, 5, chunk=64), "send", [100, 70])[0] == 3 * 31
    # 60 is under the threshold of 64 and its handle is 3; 2 is less than a handle.
    assert framing_of(Link(31, 7, 19, 5, 64, 3), "send", [64, 60, 2]) == (31, [71, 10, 9])


def test_formulas():
    sizes = {"batch": 2, "seq": 8, "past": 3}
    assert evaluate("4*batch*seq**2 - 3*past + 1", sizes) == 4 * 2 * 64 - 9 + 1
    assert evaluate("Min(8*past, 7*seq) + Max(0, past - 4)", sizes) == 24
    with pytest.raises(ValueError, match="no formula has"):
        evaluate("open('x')", sizes)


# --- that it sees what is wrong -------------------------------------------------------------------


@pytest.mark.slow
def test_one_wrong_figure_in_a_table_is_seen(tmp_path):
    case = Case("autoencoder", "--batch 2")
    trace = case.trace(tmp_path, case.options)
    way = Way("offload-linear")
    assert not split(trace, tmp_path, way).differ
    (folder,) = (path.parent for path in tmp_path.rglob("summary.parquet"))
    asked = Asked("tee", way.accelerators, "run", None, {"": Link(*LINKS["plain"].values())})
    told = set()
    for name in ("calls", "transfers", "summary", "placement"):
        path = folder / f"{name}.parquet"
        table = pq.read_table(path, partitioning=None)
        for column in table.column_names:
            whole = path.read_bytes()
            first, *others = table[column].to_pylist()
            wrong = (
                "1"
                if isinstance(first, str)
                else [*first, 1]
                if column == "ops"
                else [("gpu", 1)]
                if column == "resident_bytes"
                else first + 1
                if isinstance(first, int) and not isinstance(first, bool)
                else None
            )
            if wrong is None:
                continue
            place = table.column_names.index(column)
            field = table.schema.field(column)
            values = pa.array([wrong, *others], field.type)
            pq.write_table(table.set_column(place, field, values), path)
            if compare_split(trace, folder, asked, None).differ:
                told.add(f"{name}.{column}")
            path.write_bytes(whole)
    assert not compare_split(trace, folder, asked, None).differ
    assert told >= {
        "placement.op_id",
        "placement.device",
        "calls.call_id",
        "calls.device",
        "calls.ops",
        "calls.sent_payload_bytes",
        "calls.sent_wire_bytes",
        "calls.received_payload_bytes",
        "calls.received_wire_bytes",
        "transfers.tensor_id",
        "transfers.tensor_name",
        "transfers.src_op",
        "transfers.src_device",
        "transfers.dst_device",
        "transfers.call_id",
        "transfers.direction",
        "transfers.wire_dtype",
        "transfers.payload_bytes",
        "transfers.wire_bytes",
        "transfers.bytes_expr",
        "transfers.seq_degree",
        "transfers.module_path",
        "summary.calls",
        "summary.transfers",
        "summary.cut_edges",
        "summary.sent_payload_bytes",
        "summary.sent_wire_bytes",
        "summary.received_payload_bytes",
        "summary.received_wire_bytes",
        "summary.peer_payload_bytes",
        "summary.peer_wire_bytes",
        "summary.total_payload_bytes",
        "summary.total_wire_bytes",
        "summary.total_bytes_expr",
        "summary.resident_bytes",
    }

"""The figures of a report are those of the library, each recounted in another way."""

import json
import re
import sys
from dataclasses import replace
from itertools import accumulate, pairwise
from types import ModuleType

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutedge.report import figures
from cutedge.report.axes import byte_ticks, decades, log_byte_ticks, number_ticks
from cutedge.report.block import block, blocks, cut_layer, middle_layer
from cutedge.report.execution import WAITS, execution
from cutedge.report.figures import Missing
from cutedge.report.layout import GAP, MARGIN, lay_out
from cutedge.report.overview import overview
from cutedge.report.rooflines import cycles, roofline
from cutedge.report.sight import sight
from partition.accounting import account
from partition.run import times_under
from partition.schedule import Scheduling
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tests.support.reports import HOST_CHIP, SYNCHRONOUS, TEE_GPU, TWO_GPUS, UNDESCRIBED, trace_to
from tracer.graph import Kind
from tracer.reach import graph_at
from tracer.stacks import layer_names

CASES = [
    ("offload-linear", TEE_GPU, "run"),
    ("offload-linear", TEE_GPU, "call"),
    ("min-cut-softmax-free", TEE_GPU, "run"),
    ("host-chip", HOST_CHIP, "run"),
    ("min-cut-norm-home", TWO_GPUS, "run"),
    ("flash-attention", UNDESCRIBED, "call"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return trace_to(tmp_path_factory.mktemp("small"), "edge-10m", "--seq", "128")


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]['home']}-{case[2]}")
def split(request, small):
    policy, machines, residency = request.param
    return small.split(policy, **machines, residency=residency)[0]


def test_flows_are_the_totals(split):
    found, totals, home = figures.flows(split), split.traffic.totals, split.placement.home
    out = {}
    for one in found.links:
        if found.columns[one.source] == 0:
            out[found.nodes[one.source]] = out.get(found.nodes[one.source], 0) + one.payload_bytes
    back = [one for one in found.links if found.columns[one.target] == 2]
    assert sum(out.values()) == totals.payload_bytes
    assert out[home] == totals.sent_payload_bytes
    received = [o.payload_bytes for o in back if found.nodes[o.target] == home]
    assert sum(received) == totals.received_payload_bytes
    for node, column in enumerate(found.columns):  # what flows into a kind of tensor flows out
        if column == 1:
            into = sum(o.payload_bytes for o in found.links if o.target == node)
            assert into == sum(o.payload_bytes for o in found.links if o.source == node)


def test_flows_by_label_are_those_of_the_transfers(small):
    made, _ = small.split("offload-linear", **TEE_GPU)
    found = figures.flows(made)
    for label in ("attention_scores", "attention_probs", "q"):
        node = found.nodes.index(label)
        moved = [t.payload_bytes for t in made.traffic.transfers if t.tensor.label == label]
        assert sum(o.payload_bytes for o in found.links if o.target == node) == sum(moved) > 0


def test_what_is_too_much_to_be_named_is_drawn_together(small, monkeypatch):
    made, _ = small.split("offload-linear", **TEE_GPU)
    whole = made.traffic.totals.payload_bytes
    monkeypatch.setattr(figures, "MOST_NAMES", 2)
    monkeypatch.setattr(figures, "MOST_CALLS", 2)
    few = figures.flows(made)
    assert [n for n, c in zip(few.nodes, few.columns, strict=True) if c == 1][-1] == "other tensors"
    assert few.columns.count(1) == 3
    assert sum(o.payload_bytes for o in few.links) == 2 * whole
    calls = figures.by_call(made)
    assert calls.categories[-1] == f"others  × {len(made.traffic.calls) - 8}"  # 4 layers, 2 sorts
    assert sum(sum(one.values) for one in calls.series) == whole


def test_bars_add_up(split):
    ops, transfers = split.graph.ops, split.traffic.transfers
    layers, calls = figures.by_layer(split), figures.by_call(split)
    for bars in (layers, calls):
        assert sum(sum(s.values) for s in bars.series) == split.traffic.totals.payload_bytes
        for one in bars.series:
            source, target = one.name.split(" → ")
            pair = [t for t in transfers if (t.src_device, t.dst_device) == (source, target)]
            assert sum(one.values) == sum(t.payload_bytes for t in pair)
            assert one.device == source
    for n, name in enumerate(layers.categories):
        layer = None if name == "outside" else int(name)
        moved = [t.payload_bytes for t in transfers if ops[t.tensor.op].layer == layer]
        assert sum(s.values[n] for s in layers.series) == sum(moved)
    counted = sum(int(name.rpartition("× ")[2]) for name in calls.categories)
    assert counted == len(split.traffic.calls)


def test_growth_is_what_is_counted_at_those_sizes(small):
    names = ["offload-linear", "flash-attention", "min-cut-nonlinear-home", "all-home"]
    made = [small.split(name, **UNDESCRIBED)[0] for name in names]
    found = figures.growth(made, small.reach)
    assert found.variable == "seq"
    assert found.here == 128
    assert found.note == "all-home moves nothing."
    by_name = {one.policy: one for one in made}
    for line in found.lines:
        (name,) = line.policies
        for size, value in zip(found.sizes, line.values, strict=True):
            if size <= 4096:
                at = {**small.graph.meta.variables, "seq": size}
                there = graph_at(small.graph, small.reach, at)
                one = by_name[name]
                again = account(there, one.placement, one.links, residency=one.residency)
                assert value == again.totals.payload_bytes


def test_crossings_are_all_changes_of_the_lesser(small):
    """Every size between the ends is tried."""
    names = ["flash-attention", "min-cut-nonlinear-home"]
    made = [small.split(name, **UNDESCRIBED)[0] for name in names]
    found = figures.growth(made, small.reach)
    first, other = (figures.parse(one.traffic.total_expr) for one in made)
    sizes = range(found.sizes[0], 5000)
    least = [
        min((0, 1), key=lambda n, size=size: (first, other)[n].evaluate({"batch": 1, "seq": size}))
        for size in sizes
    ]
    changed = [size for size, (a, b) in zip(sizes[1:], pairwise(least), strict=True) if a != b]
    assert [one.size for one in found.crossings] == changed != []
    for one in found.crossings:
        values = [f.evaluate({"batch": 1, "seq": one.size}) for f in (first, other)]
        assert one.payload_bytes == min(values)


def test_policies_that_move_the_same_share_a_line(small):
    made = [small.split(name, **TEE_GPU)[0] for name in ("min-cut", "fastest")]
    assert made[0].traffic.total_expr == made[1].traffic.total_expr
    found = figures.growth(made, small.reach)
    assert [line.policies for line in found.lines] == [["min-cut", "fastest"]]


def test_ops_are_under_their_roof(small):
    made, setting = small.split("offload-linear", **TEE_GPU)
    for name in ("tee-tdx", "rtx-4090"):
        time = setting.times[name]
        found = roofline(made, name, time)
        (roof,) = found.roofs
        assert roof.ridge == time.device.ridge("float32")
        bandwidth = time.device.memory_bandwidth_bytes_per_second * time.device.efficiency_ratio
        for mark in found.marks:
            limit = min(roof.flops_per_second, bandwidth * mark.intensity)
            assert mark.rate <= limit * (1 + 1e-9)
            assert found.x_range[0] < mark.intensity < found.x_range[1]
            assert found.y_range[0] < mark.rate < found.y_range[1]
        drawn = sum(mark.share for mark in found.marks)
        assert drawn <= 1 + 1e-9
        # What is drawn and what is not are all that the device does.
        rest = [
            time.ops[op.id].seconds
            for op in made.graph.ops
            if made.placement.devices[op.id] == name and not op.cost.flops
        ]
        assert (1 - drawn) * made.compute_seconds[name] == pytest.approx(sum(rest), abs=1e-12)


def test_cycles_are_those_of_the_partition(small):
    made, setting = small.split("host-chip", **HOST_CHIP)
    time = setting.times["chip-8x8"]
    found = cycles(made, "chip-8x8", time)
    useful, other = found.series
    assert sum(useful.values) + sum(other.values) == made.cycles["chip-8x8"]
    on_chip = [
        time.ops[op.id].gemm
        for op in made.graph.ops
        if made.placement.devices[op.id] == "chip-8x8" and not op.is_view
    ]
    products = [gemm for gemm in on_chip if gemm is not None]
    wanted = sum(g.cycles * g.useful_macs / g.padded_macs for g in products)  # of fixed tiles
    assert sum(useful.values) == pytest.approx(wanted, abs=len(useful.values))
    assert isinstance(cycles(made, "ryzen-7950x", setting.times["ryzen-7950x"]), Missing)
    assert isinstance(roofline(made, "chip-8x8", time), Missing)


def test_drawings_without_data_say_why(small, tmp_path):
    home, _ = small.split("all-home", **UNDESCRIBED)
    for figure in (figures.flows, figures.by_layer, figures.by_call):
        assert "Nothing crosses" in figure(home).why
    assert "nothing" in figures.growth([home], small.reach).why.lower()
    split, _ = small.split("offload-linear", **UNDESCRIBED)
    assert "cutedge devices" in roofline(split, "gpu", None).why
    assert "no array" in cycles(split, "gpu", None).why
    one = trace_to(tmp_path, "edge-10m", "--seq", "1")
    alone, _ = one.split("offload-linear", **UNDESCRIBED)
    assert "larger batch than 1" in figures.growth([alone], one.reach).why


def test_a_block_has_each_of_its_transfers_once(split):
    drawn, graph, layer = block(split), split.graph, middle_layer(split.graph)
    inside = {op for op, name in enumerate(layer_names(graph)) if name == layer}
    wanted = []
    for t in split.traffic.transfers:
        # From the transfer's side: it is in the drawing if an op of the block makes what moves, or
        # needs it where it arrives.
        devices = split.placement.devices
        here = [op for op in graph.needed_by(t.tensor.id) if op in inside]
        if t.tensor.op in inside or any(devices[op] == t.dst_device for op in here):
            wanted.append(t.payload_bytes)
    found = [box.payload_bytes for box in drawn.boxes if box.sort == "transfer"]
    assert sorted(found) == sorted(wanted)


def test_a_block_has_its_ops_and_is_drawn_apart(split):
    drawn, graph, names = block(split), split.graph, layer_names(split.graph)
    working = [
        op
        for op in graph.ops
        if names[op.id] == middle_layer(graph) and not op.is_view and not graph.is_everywhere(op.id)
    ]
    shown = sum(
        int(found[1]) if (found := re.match(r"(\d+) ops: ", box.text)) else 1
        for box in drawn.boxes
        if box.sort == "op"
    )
    assert shown == len(working)
    lanes = {lane.device: lane for lane in drawn.lanes}
    for box in drawn.boxes:
        lane = lanes[None if box.sort == "transfer" else box.device]
        assert lane.left <= box.x - box.width / 2
        assert box.x + box.width / 2 <= lane.right
        others = (b for b in drawn.boxes if b.y == box.y and b is not box)
        assert all(abs(b.x - box.x) >= (b.width + box.width) / 2 for b in others)
    for wire in drawn.wires:
        assert all(a[1] < b[1] for a, b in pairwise(wire.points))
        assert wire.width == 1.2 if wire.device is None else 1.2 <= wire.width <= 16.0


def test_lines_are_as_wide_as_their_bytes(small):
    made, _ = small.split("offload-linear", **TEE_GPU)
    drawn = block(made)
    sizes = {box.payload_bytes for box in drawn.boxes if box.sort == "transfer"}
    widths = [wire.width for wire in drawn.wires if wire.device]
    assert max(widths) == 16.0
    assert {max(round(16.0 * size / max(sizes), 2), 1.2) for size in sizes} <= set(widths)


@pytest.mark.parametrize("split", [CASES[1], CASES[2]], indirect=True, ids=lambda case: case[0])
def test_every_layer_has_the_block_that_is_drawn_of_it_alone(split):
    found = blocks(split, {})
    assert found.shown == cut_layer(split) == middle_layer(split.graph)
    assert len(found.drawings) < len(found.layers) == 5  # of 4 layers, and of what is in none
    for name, one in found.layers.items():
        alone, drawing = block(split, name), found.drawings[one.drawing]
        assert one.title == alone.title
        assert one.labels == [box.label for box in alone.boxes]
        assert one.texts == [box.text for box in alone.boxes]
        for own, shared in zip(alone.boxes, drawing.boxes, strict=True):
            assert (own.sort, own.device, own.payload_bytes) == (
                shared.sort,
                shared.device,
                shared.payload_bytes,
            )


@pytest.mark.parametrize(
    ("given", "layer"),
    [
        ({"layers.0.": "tee"}, "0"),  # the first layer makes what crosses to the others
        ({"layers.0.": "tee", "layers.1.": "tee", "layers.2.": "tee"}, "2"),
        ({}, "outside"),  # the tokens go there and the logits come back
    ],
    ids=str,
)
def test_the_block_that_comes_up_is_the_one_that_is_cut(small, given, layer):
    made = small.split("min-cut", **UNDESCRIBED)[0]
    assert set(made.placement.devices) <= {"gpu", "tee", None}
    devices = [
        next((to for part, to in given.items() if part in op.module_path), device)
        if device is not None and op.kind not in (Kind.INPUT, Kind.OUTPUT)
        else device
        for op, device in zip(made.graph.ops, made.placement.devices, strict=True)
    ]
    placement = replace(made.placement, devices=devices)
    traffic = account(made.graph, placement, made.links)
    assert cut_layer(replace(made, placement=placement, traffic=traffic)) == layer


# --- when it runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "machines", "asked"),
    [
        ("offload-linear", TEE_GPU, None),
        ("min-cut-norm-home", TWO_GPUS, Scheduling("overlap", 3)),
        ("host-chip", HOST_CHIP, Scheduling("serial")),
        ("offload-linear", SYNCHRONOUS, None),
    ],
)
def test_what_is_drawn_in_time_is_the_schedule(small, policy, machines, asked):
    made, setting = small.split(policy, **machines)
    times = times_under(made.graph, made.placement, made.traffic.transfers, setting.times)
    laid = made.laid_out(times, asked or Scheduling("overlap"))
    drawn = execution(replace(made, schedule=laid) if asked else made, times)
    wanted = [slot for slot in laid.slots if slot.task.seconds != 0]
    starts = [step * drawn.tick_seconds for step in accumulate(drawn.start)]
    assert starts == pytest.approx([slot.start for slot in wanted], abs=drawn.tick_seconds)
    taken = [drawn.durations[n] for n in drawn.length]
    assert taken == [slot.task.seconds for slot in wanted]
    assert [drawn.devices[n] for n in drawn.device] == [
        slot.task.uses[0]
        if slot.task.transfer is None
        else made.traffic.transfers[slot.task.transfer].src_device
        for slot in wanted
    ]
    for n, slot in zip(drawn.lane, wanted, strict=True):
        assert drawn.lanes[n].name.startswith(slot.task.uses[0])
    for n, slot in zip(drawn.also, wanted, strict=True):
        assert [drawn.lanes[n - 1].name] * bool(n) == [*slot.task.uses[1:]]
    # The critical path is without a gap, and takes the makespan.
    critical = [seconds for seconds, on in zip(taken, drawn.critical, strict=True) if on]
    assert sum(critical) == pytest.approx(laid.makespan_seconds, rel=1e-9)
    for n, (back, wait) in enumerate(zip(drawn.waits, drawn.wait, strict=True)):
        assert (back > 0) == (wait > 0)
        if back:
            ended = starts[n - back] + taken[n - back]
            assert starts[n] == pytest.approx(ended, abs=3 * drawn.tick_seconds)
    assert {WAITS[n - 1] for n in drawn.wait if n} <= {"data", "order", "resource"}
    assert drawn.requests == (asked.requests if asked else 1)


def test_without_seconds_nothing_is_drawn_in_time(small):
    made, setting = small.split("offload-linear", **UNDESCRIBED)
    assert "cutedge devices" in execution(made, setting.times).why


@pytest.mark.parametrize(("policy", "machines", "residency"), CASES)
def test_the_layers_of_an_overview_are_the_whole(small, policy, machines, residency):
    split, setting = small.split(policy, **machines, residency=residency)
    times = times_under(split.graph, split.placement, split.traffic.transfers, setting.times)
    devices = setting.machine.devices
    found = overview(split, devices, times)
    assert found.layers == ("outside", "0", "1", "2", "3")
    if split.run is None:
        assert found.measure == "FLOPs"
        assert sum(found.costs) == sum(op.cost.flops or 0 for op in split.graph.ops)
    else:
        assert sum(found.costs) == pytest.approx(split.run.seconds, rel=1e-9)
    assert all(sum(parts) == pytest.approx(1, abs=1e-3) for parts in found.devices)
    if split.policy == "offload-linear":  # the scores cross, which grow with the square of seq
        assert found.growths == (2, 3, 3, 3, 3)


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=50),
    st.lists(st.tuples(st.integers(0, 2), st.integers(20, 120)), min_size=26, max_size=26),
)
@examples(15)
def test_any_graph_is_laid_out_downwards_in_its_lanes(ends, nodes):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(26))
    graph.add_edges_from((min(pair), max(pair)) for pair in ends if pair[0] != pair[1])
    lanes, widths = ({n: float(one[i]) for n, one in enumerate(nodes)} for i in (0, 1))
    lanes = {n: int(lane) for n, lane in lanes.items()}
    laid = lay_out(graph, lanes, widths)
    assert laid == lay_out(graph, lanes, widths)
    for (source, target), route in laid.routes.items():
        assert route[0] == laid.places[source]
        assert route[-1] == laid.places[target]
        steps = {round(b[1] - a[1], 6) for a, b in pairwise(route)}
        assert len(steps) == 1  # a row each
        assert steps.pop() > 0
    for n, (x, y) in laid.places.items():
        left, right = laid.lanes[lanes[n]]
        assert left + MARGIN - 0.1 <= x - widths[n] / 2
        assert x + widths[n] / 2 <= right - MARGIN + 0.1
        for m, (other, row) in laid.places.items():
            if m < n and row == y and lanes[m] == lanes[n]:
                assert abs(x - other) >= (widths[n] + widths[m]) / 2 + GAP - 0.2


@given(st.integers(1, 10**15))
def test_marks_of_axes(most):
    for ticks in (byte_ticks(most), number_ticks(most)):
        steps = {b - a for a, b in pairwise(ticks.values)}
        assert ticks.values[0] == 0
        assert len(steps) == 1
        assert 3 <= len(ticks.values) <= 7 or most < 4
        assert ticks.values[-1] <= most < ticks.values[-1] + steps.pop()
    logs = log_byte_ticks(most, most * 1000)
    assert len(logs.values) <= 8
    assert logs.values[0] <= most
    assert all(most <= value <= most * 1000 for value in decades(most, most * 1000).values)
    assert byte_ticks(512 * 2**20).texts[1] == "128 MiB"


# --- the command ----------------------------------------------------------------------------------


def test_the_page_is_whole_and_always_the_same(small, tmp_path):
    pages = []
    for name in ("a.html", "b.html"):
        ran = invoke(
            "cutedge",
            "report",
            small.folder,
            "--home",
            "tee-tdx",
            "--accel",
            "rtx-4090",
            "--link",
            "pcie5-x16-cc",
            "--out",
            tmp_path / name,
            "--json",
        )
        assert ran.returncode == 0, ran.stderr
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    said = json.loads(ran.stdout)
    assert said["page"] == str(tmp_path / "b.html")
    headline = said["headlines"]["offload-linear"]
    assert f'<h1 id="headline">{headline}</h1>' in pages[0]
    assert re.match(
        r"Under offload-linear, pcie5-x16-cc has \d+\.\d% of the known time; ", headline
    )
    assert len(pages[0].encode()) < 1e6
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(?!data:)', pages[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_the_page_lies_beside_the_tables_when_no_place_is_named(tmp_path):
    one = trace_to(tmp_path / "trace", "edge-10m", "--seq", "16")
    ran = invoke("cutedge", "report", one.folder, "--policy", "min-cut", "--baseline", "min-cut")
    assert ran.returncode == 0, ran.stderr
    assert f"written to {one.folder / 'report.html'}" in ran.stdout
    assert "offload-linear" not in (one.folder / "report.html").read_text().split("<script>", 1)[0]


def test_a_masked_policy_has_a_page(small, tmp_path):
    words = ("--home", "tee-tdx", "--accel", "a=rtx-4090", "--accel", "b=h100-cc")
    policies = ("--policy", "slalom", "--policy", "prompt-private")
    page = tmp_path / "page.html"
    ran = invoke("cutedge", "report", small.folder, *words, *policies, "--out", page)
    assert ran.returncode == 0, ran.stderr
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    masked, private = (sheet["seen"] for sheet in data["sheets"])
    assert set(masked["devices"]) <= {"a", "b (trusted)"}
    # What the page says is what the partition has found.
    made = small.split("slalom", "tee-tdx", ["a=rtx-4090", "b=h100-cc"], [])[0]
    wanted = {s.what.words: s.how.value for one in made.exposed for s in one.seen}
    column = masked["devices"].index("a")
    assert {row["what"]: row["cells"][column]["how"] for row in masked["rows"]} == wanted
    assert "masked" in wanted.values()
    prompt = next(row for row in private["rows"] if row["what"] == "prompt tokens")
    assert "plain" not in {
        cell["how"]
        for name, cell in zip(private["devices"], prompt["cells"], strict=True)
        if name == "a"
    }


def test_the_first_transfer_of_a_sort_is_named(small):
    made, setting = small.split("offload-linear", **TEE_GPU)
    drawn = sight(made, setting.untrusted)
    scores = next(row for row in drawn.rows if row.what == "attention scores")
    first = next(
        t
        for t in made.traffic.transfers
        if t.dst_device == "rtx-4090" and t.tensor.label == "attention_probs"
    )
    assert f"with call {first.call + 1} of {len(made.traffic.calls)} calls" in scores.cells[0].text


def test_no_name_can_end_the_data(small, tmp_path):
    ran = invoke(
        "cutedge",
        "report",
        small.folder,
        "--policy",
        "offload-linear",
        "--home",
        "</script><b>",
        "--out",
        tmp_path / "page.html",
    )
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == page.count("<script")
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data)["devices"] == ["</script><b>", "gpu"]


def test_without_a_browser_there_are_no_pictures(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", ModuleType("playwright.sync_api"))
    monkeypatch.setattr("cutedge.report.pictures.BROWSERS", ("no-such-browser",))
    ran = invoke("cutedge", "report", small.folder, "--png", "--out", tmp_path / "page.html")
    assert ran.returncode == 2
    assert "apt-get install chromium" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_playwright_one_line_says_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    ran = invoke("cutedge", "report", small.folder, "--png", "--out", tmp_path / "page.html")
    assert ran.returncode == 2
    assert "pip install 'cutedge[pictures]'" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_named(small, tmp_path):
    ran = invoke("cutedge", "report", small.folder, "--out", tmp_path / "no" / "page.html")
    assert ran.returncode == 1
    assert f"cannot write {tmp_path / 'no' / 'page.html'}" in ran.stderr

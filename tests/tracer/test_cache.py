"""The cache of traces: what it gives is what a fresh capture would, or nothing."""

import json
import os
import shutil
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costmodels.flops import annotate
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tracer import cache
from tracer.capture import capture
from tracer.files import MANIFEST
from tracer.formula import parse
from tracer.graph import Edge, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.presets import preset, preset_names
from tracer.reach import Reach, beyond_positions, holds, same_memory
from tracer.serde import write_trace


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "traces"


def traced(config, model, *, batch=1, seq=32, past=0, **options):
    return capture(config, model=model, batch=batch, seq=seq, past=past, **options)


def find(at, key="0" * 32):
    sizes = dict(zip(("batch", "seq", "past"), (*at, 0), strict=False))
    return cache.find(key, sizes)


def keep(captured, key="0" * 32):
    cache.keep(key, captured.graph, captured.reach)


# --- what the cache gives -------------------------------------------------------------------------

SHORT = {"num_hidden_layers": 1}
WINDOWED = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "sliding_window": 24,
}
HYBRID = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "sliding_window": 24,
    "max_position_embeddings": 256,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options", "at", "others", "misses"),
    [
        # (batch, seq[, past]): other sizes that the trace reaches, and some that it does not
        (preset("llama-3.2-1b") | SHORT, {}, (1, 32), [(1, 131073)], [(2, 32), (1, 1)]),
        (preset("llama-3.2-1b") | SHORT, {}, (1, 32), [(1, 2)], [(2, 32), (1, 1)]),
        pytest.param(
            preset("llama-3.2-1b") | SHORT,
            {"logits": "all", "attn": "sdpa"},
            (3, 32),
            [(2, 16)],
            [(1, 32), (3, 1)],
            marks=pytest.mark.slow,
        ),
        (
            preset("gpt2") | {"n_layer": 2},
            {"dtype": "bfloat16"},
            (1, 700),
            [(1, 32), (1, 1500)],
            [(5, 700)],
        ),
        pytest.param(
            preset("bert-base") | SHORT,
            {},
            (2, 600),
            [(2, 32), (4, 512)],
            [(1, 600)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            preset("llama-3.2-1b"),
            {"overrides": {"num_key_value_heads": 4}},
            (1, 32),
            [(1, 333)],
            [],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            preset("qwen2.5-3b") | SHORT,
            {"full": True},
            (1, 32),
            [(1, 333)],
            [],
            marks=pytest.mark.slow,
        ),
        pytest.param(WINDOWED, {}, (1, 16), [(1, 23), (1, 40)], [], marks=pytest.mark.slow),
        pytest.param(
            WINDOWED,
            {"attn": "sdpa"},
            (1, 16),
            [(1, 23), (1, 2)],
            [(1, 24), (1, 40)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            WINDOWED,
            {"attn": "sdpa"},
            (1, 40),
            [(1, 24), (1, 77)],
            [(1, 23), (1, 2)],
            marks=pytest.mark.slow,
        ),
        pytest.param(HYBRID, {}, (1, 16), [(1, 23)], [(4, 16)], marks=pytest.mark.slow),
        pytest.param(HYBRID, {}, (2, 100), [(3, 90), (2, 300)], [], marks=pytest.mark.slow),
        pytest.param(
            preset("llama-3.2-1b") | SHORT,
            {"seq": 32, "cache": True},
            (1, 32),
            [(1, 64)],
            [],
            marks=pytest.mark.slow,
        ),
        (
            preset("llama-3.2-1b") | SHORT,
            {"phase": "decode"},
            (1, 1, 64),
            [(1, 1, 2), (1, 1, 1000)],
            [(2, 1, 64), (1, 1, 1)],
        ),
        pytest.param(
            WINDOWED,
            {"phase": "decode"},
            (1, 1, 10),
            [(1, 1, 20)],
            [(1, 1, 24), (1, 1, 100)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            WINDOWED,
            {"phase": "decode"},
            (2, 1, 60),
            [(3, 1, 60)],
            [(2, 1, 61), (2, 1, 10)],
            marks=pytest.mark.slow,
        ),
        (
            preset("gpt2") | {"n_layer": 2},
            {"phase": "decode"},
            (1, 1, 100),
            [(1, 1, 1024), (1, 1, 1600)],
            [],
        ),  # it has 1024 positions
        pytest.param(
            preset("llama-3.2-1b") | SHORT,
            {},
            (1, 16, 64),
            [(1, 20, 99)],
            [(1, 1, 64)],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.few(1)
def test_a_trace_at_other_sizes_is_what_a_fresh_capture_is(
    config, options, at, others, misses, place, tmp_path
):
    def fresh(at):
        sizes = dict(zip(("batch", "seq", "past"), at, strict=False))
        return traced(config, "mine", **{**options, **sizes})

    first = fresh(at)
    keep(first)
    reached = [sizes for sizes in others if find(sizes) is not None]
    assert reached == others
    assert [sizes for sizes in misses if find(sizes) is not None] == []
    for sizes in [at, *others]:
        found, made = find(sizes), first if sizes == at else fresh(sizes)
        assert found.warnings == made.warnings
        assert found.graph.meta == made.graph.meta
        assert found.graph.ops == made.graph.ops
        assert found.graph.tensors == made.graph.tensors
        assert found.graph.edges == made.graph.edges
        for name, graph in (("found", found.graph), ("made", made.graph)):
            write_trace(annotate(graph), tmp_path / name)
        for table in ("ops", "tensors", "edges"):
            one, other = (tmp_path / n / f"{table}.parquet" for n in ("found", "made"))
            assert one.read_bytes() == other.read_bytes()


def test_a_trace_without_formulas_is_for_its_own_sizes_alone(small, place):
    keep(small)
    assert find((1, 16)) is not None
    assert find((1, 17)) is None
    assert find((2, 16)) is None


# --- what shares memory ---------------------------------------------------------------------------


def _chain(steps, sizes):
    """Ops on [batch, seq, 4, 8]: the graph by formulas, and whether torch copies at each op."""
    exprs, real = ["batch", "seq", "4", "8"], torch.empty(sizes["batch"], sizes["seq"], 4, 8)
    shapes, targets, views = [list(exprs)], ["input"], []
    for kind, value in steps:
        before = real.untyped_storage()._cdata
        if kind == "permute":
            exprs, real = [exprs[i] for i in value], real.permute(value)
        elif kind == "slice":
            axis, text = value
            exprs[axis] = text
            real = real[(slice(None),) * axis + (slice(parse(text).evaluate(sizes)),)]
        else:
            exprs = [str(parse(e)) for e in value]
            real = real.reshape([parse(e).evaluate(sizes) for e in exprs])
        targets.append(f"aten.{kind}.default")
        shapes.append(list(exprs))
        views.append(real.untyped_storage()._cdata == before)
    ops, tensors = [], []
    for i, (target, shape) in enumerate(zip(targets, shapes, strict=True)):
        view = i > 0 and views[i - 1]
        ops.append(Op(i, f"o{i}", target, Kind.COPY, "", "", None, None, False, view, "int8"))
        tensors.append(
            Tensor(
                i,
                i,
                f"o{i}",
                Role.ACTIVATION,
                None,
                "int8",
                (),
                tuple(shape),
                0,
                None,
                None,
                0 if view else None,
            )
        )
    return ops, tensors, views


@st.composite
def _steps(draw):
    """A permutation, maybe a cut, and a regrouping, as attentions do them."""
    order = list(draw(st.sampled_from(list(permutations(range(4))))))
    names = ["batch", "seq", "4", "8"]
    cuts = {"seq": ["5", "seq - 1", "min(6, seq)"], "8": ["4", "seq"], "4": ["2"], "batch": ["1"]}
    steps = []
    if draw(st.booleans()):
        axis = draw(st.sampled_from(range(4)))
        names[axis] = draw(st.sampled_from(cuts[names[axis]]))
        steps.append(("slice", (axis, names[axis])))
    steps.append(("permute", order))
    now = [names[i] for i in order]
    at = draw(st.sampled_from(range(3)))
    merged = [*now[:at], f"({now[at]})*({now[at + 1]})", *now[at + 2 :]]
    steps.append(("reshape", draw(st.sampled_from([merged, names, sorted(now)]))))
    return steps


@examples(60)
@given(_steps(), st.integers(1, 3), st.integers(5, 9), st.integers(1, 3), st.integers(5, 9))
def test_where_memory_is_said_to_be_shared_alike_torch_shares_it_alike(
    steps, batch, seq, other_batch, other_seq
):
    one, other = (
        {"batch": b, "seq": s, "past": 0} for b, s in ((batch, seq), (other_batch, other_seq))
    )
    try:
        ops, tensors, views = _chain(steps, one)
        *_, other_views = _chain(steps, other)
    except RuntimeError:  # a cut longer than the axis
        return
    graph = _graph(ops, tensors)
    if same_memory(graph, one, other):
        assert views == other_views


def _graph(ops, tensors):
    meta = TraceMeta("m", "prefill", 1, 2, 0, "int8", "eager", "last", ("batch", "seq"), 0)
    return OpGraph(meta, ops, tensors, [Edge(i - 1, i, i - 1, 0) for i in range(1, len(ops))])


def _pair(target, read, made, is_view=True):
    ops = [
        Op(0, "x", "input", Kind.INPUT, "", "", None, None, False, False, "int8"),
        Op(1, "y", target, Kind.VIEW, "", "", None, None, False, is_view, "int8"),
    ]
    tensors = [
        Tensor(i, i, "", Role.ACTIVATION, None, "int8", (), shape, 0, None, None, alias)
        for i, (shape, alias) in enumerate([(read, None), (made, 0 if is_view else None)])
    ]
    return _graph(ops, tensors)


CHUNKS = ("(seq // 8)", "(seq // (seq // 8))")


@pytest.mark.parametrize(
    ("graph", "one", "other", "same"),
    [
        # an axis of one element can be joined with anything
        (_pair("aten.reshape.default", ("batch", "seq", "8"), ("batch*seq", "8")), 16, 17, True),
        (_pair("aten.expand.default", ("seq - 1", "1"), ("seq - 1", "8")), 2, 3, False),
        # a cut that leaves all of an axis
        (_pair("aten.slice.Tensor", ("64", "64"), ("seq", "64")), 16, 32, True),
        (_pair("aten.slice.Tensor", ("64", "64"), ("seq", "64")), 16, 64, False),
        (_pair("aten.slice.Tensor", ("1", "64"), ("1", "seq")), 16, 64, True),  # but an axis alone
        (_pair("aten.slice.Tensor", ("seq", "64"), ("((seq + 1) // 2)", "64")), 16, 32, False),
        # all rows but one, of a number of rows that is itself a quotient
        (_pair("aten.slice.Tensor", ("(seq // 8) + 1", "64"), ("(seq // 8)", "64")), 16, 32, True),
        # chunks, whose formulas do not show that they have all elements; one alone
        (_pair("aten.view.default", ("seq", "64"), (*CHUNKS, "64")), 16, 32, True),
        (_pair("aten.view.default", ("seq", "64"), (*CHUNKS, "64")), 16, 8, False),
        # [seq, 4] seen as [4, seq] without moving anything, where seq is 4
        (_pair("aten.view.default", ("4", "seq"), ("seq", "4")), 4, 5, False),
        # overlapping windows, and what nobody knows
        (_pair("aten.as_strided.default", ("seq", "8"), ("seq", "2", "8")), 16, 17, False),
        (_pair("mine.op.default", ("seq", "8"), ("seq", "2")), 16, 17, False),
        (_pair("mine.op.default", ("seq", "8"), ("seq", "2"), is_view=False), 16, 17, True),
        # no whole number
        (_pair("aten.expand.default", ("1",), ("(seq)/2",)), 16, 17, False),
    ],
)
def test_what_sharing_memory_may_depend_on(graph, one, other, same):
    sizes = [{"batch": 2, "seq": seq, "past": 0} for seq in (one, other)]
    assert same_memory(graph, *sizes) is same


@pytest.mark.parametrize(
    ("condition", "true", "false"),
    [
        ("seq < 4096", 4095, 4096),
        ("Eq(Mod(seq, 64), 0)", 128, 129),
        ("Ne(seq, 77)", 76, 77),
        ("(seq >= 8) & (seq <= 16)", 16, 17),
        ("(seq < 8) | (seq > 16)", 17, 16),
        ("Eq(Min(64*seq + 64, 256*seq), 64*seq + 64)", 1, 0),
        ("Eq(seq//2 - 3, Max(4, FloorDiv(seq, 3)))", 14, 20),
        ("seq**2/2 > 50", 11, 10),
    ],
)
def test_conditions_in_the_words_of_sympy(condition, true, false):
    assert holds(condition, {"seq": true})
    assert not holds(condition, {"seq": false})


@pytest.mark.parametrize("unknown", ["u0 > 3", "Foo(seq)", "seq.real", "open('x')", "1 <", "1.5"])
def test_a_condition_that_cannot_be_read_is_never_met(unknown):
    with pytest.raises(ValueError, match=r"cond|Call|Attr|Constant"):
        holds(unknown, {"seq": 3})
    everywhere = tuple((name, 0, 9) for name in ("batch", "seq", "past"))
    for reach in (Reach(everywhere, holding=(unknown,)), Reach(everywhere, failing=(unknown,))):
        assert not reach.covers({"batch": 1, "seq": 3, "past": 0})


def test_the_positions_are_spoken_of_at_the_new_sizes():
    assert beyond_positions("m", {"seq": 16, "past": 0}, 16) is None
    assert beyond_positions("m", {"seq": 17, "past": 0}, None) is None
    assert "seq 17 is beyond the 16" in beyond_positions("m", {"seq": 17, "past": 0}, 16)
    assert "seq 1 after past 16" in beyond_positions("m", {"seq": 1, "past": 16}, 16)


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_is_of_all_that_decides(monkeypatch, tmp_path):
    config, options = {"model_type": "llama", "hidden_size": 8}, {"attn": "eager", "full": False}
    keys = {
        cache.key(config, options),
        cache.key(config | {"hidden_size": 16}, options),
        cache.key(config, options | {"attn": "sdpa"}),
        cache.key(config, options | {"full": True}),
        cache.key(config, options | {"overrides": {"hidden_size": 16}}),
    }
    (tmp_path / "mamba_ssm-2.2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    keys.add(cache.key(config, options))  # another package: transformers may take another path
    source = Path(cache.__file__).parent
    changed = tmp_path / "tracer"
    shutil.copytree(source, changed, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "__file__", str(changed / "cache.py"))
    assert cache.key(config, options) in keys  # the same code elsewhere
    with (changed / "capture" / "lowering.py").open("a") as code:
        code.write("# changed\n")
    keys.add(cache.key(config, options))
    assert len(keys) == 7


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CUTEDGE_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/cutedge"),
        ({"XDG_CACHE_HOME": "not/absolute", "HOME": "/h"}, "/h/.cache/cutedge"),
        ({"CUTEDGE_CACHE": "", "HOME": "/h"}, "/h/.cache/cutedge"),
    ],
)
def test_where_the_cache_is(environment, folder, monkeypatch):
    for name in ("CUTEDGE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_folder() == Path(folder)


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return capture(preset("edge-10m") | SHORT, model="edge-10m", seq=16, symbolic=False)


def same_rows(one: OpGraph, other: OpGraph) -> bool:
    return (one.meta, one.ops, one.tensors, one.edges) == (
        other.meta,
        other.ops,
        other.tensors,
        other.edges,
    )


def test_whatever_is_damaged_is_a_miss_and_goes(small, place):
    keep(small)
    (entry,) = place.iterdir()
    files = {path.name: path.read_bytes() for path in entry.iterdir()}
    assert sorted(files) == [
        MANIFEST,
        "edges.parquet",
        "ops.parquet",
        "record.json",
        "tensors.parquet",
    ]
    for name, data in files.items():
        middle = len(data) // 2
        for broken in (
            b"",
            data[:middle],
            data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        ):
            keep(small)
            whole = find((1, 16))
            assert whole is not None
            (entry / name).write_bytes(broken)
            found = find((1, 16))
            if len(broken) < len(data) or found is None:
                assert found is None
                assert not entry.exists()
            else:  # a bit that no row hangs on, as of a column's statistics
                assert same_rows(found.graph, whole.graph)
        keep(small)
        (entry / name).unlink()
        assert find((1, 16)) is None
        shutil.rmtree(entry, ignore_errors=True)


def test_tables_of_another_entry_are_a_miss(small, place):
    keep(small)
    (entry,) = place.iterdir()
    config = preset("edge-10m") | SHORT | {"vocab_size": 4000}
    other = capture(config, model="edge-10m", seq=16, symbolic=False)
    write_trace(other.graph, entry)
    assert find((1, 16)) is None


def test_the_most_recently_used_are_kept_and_nothing_else_is_touched(small, place, monkeypatch):
    monkeypatch.setattr(cache, "KEPT", 3)
    keys = [f"{n:032x}" for n in range(5)]
    mine = [place / "notes.txt", place / "a-folder", place / ("f" * 32)]
    place.mkdir(parents=True)
    mine[0].write_text("mine")
    mine[1].mkdir()
    mine[2].mkdir()
    left, fresh = place / ".new-left", place / ".new-fresh"
    left.mkdir()
    fresh.mkdir()
    os.utime(left, (1, 1))
    for age, key in enumerate(keys[:3]):
        keep(small, key)
        for entry in place.glob(f"{key}-*"):
            os.utime(entry, (1000 + age, 1000 + age))
    assert find((1, 16), keys[0]) is not None  # now the most recently used
    keep(small, keys[3])
    assert [find((1, 16), key) is not None for key in keys] == [True, False, True, True, False]
    assert all(path.exists() for path in (*mine, fresh))
    assert not left.exists()


def test_an_unusable_folder_is_no_cache(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path(os.devnull), tmp_path / "a\udcff"):
        monkeypatch.setenv("CUTEDGE_CACHE", str(folder))
        keep(small)
    monkeypatch.setenv("CUTEDGE_CACHE", str(tmp_path / "file"))
    assert find((1, 16)) is None


def test_what_is_kept_again_is_one_entry(small, place):
    keep(small)
    keep(small)
    assert len(list(place.iterdir())) == 1


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_option_is_of_the_key(place, tmp_path, monkeypatch):
    def cached(*options):
        done = invoke("trace", "edge-10m", "--seq", "24", "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["cached"]

    monkeypatch.chdir(tmp_path)
    assert not cached("--no-cache")
    assert not place.exists()
    ways = [
        [],
        ["--attn", "sdpa"],
        ["--batch", "2"],
        ["--dtype", "bfloat16"],
        ["--logits", "all"],
        ["--set", "vocab_size=999"],
        ["--full"],
    ]
    assert [cached(*way) for way in ways] == [False] * len(ways)
    assert [cached(*way) for way in ways] == [True] * len(ways)
    assert not cached("--no-cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_at_another_seq_is_what_a_fresh_capture_is(name, place):
    at, other = (1, 48), (1, 200)
    keep(capture(preset(name), model=name, batch=at[0], seq=at[1]))
    found, made = find(other), capture(preset(name), model=name, batch=other[0], seq=other[1])
    assert found is not None
    assert (found.graph.meta, found.warnings) == (made.graph.meta, made.warnings)
    assert (found.graph.ops, found.graph.tensors) == (made.graph.ops, made.graph.tensors)

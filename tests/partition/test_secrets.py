"""What a secret covers, against an oracle of its own, and what no policy may show."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from costmodels.links import Links, load_link
from costmodels.machine import Machine
from partition.accounting import account
from partition.optimise import place
from partition.policy import load_policy, secret_tensors
from partition.problem import InfeasibleError
from partition.secrets import covered, lookups, ways_to_keep
from partition.seen import What, derived, recoverable, what_is
from partition.setting import Setting
from tests.support.graphs import HOME, Builder
from tests.support.inprocess import invoke
from tracer.graph import Gemm, Kind, OpCost, OpGraph, Role
from tracer.serde import read_trace

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": False,
}

FREE = 'description = "t"\ndefault = "free"\nobjective = "bytes"\n'
PLACES = [
    '[[rule]]\nkind = ["linear", "embedding"]\nplace = "accelerator"\n',
    '[[rule]]\nkind = ["matmul", "norm"]\nplace = "accelerator"\n',
    '[[rule]]\ntarget = ["aten.reshape*", "aten.mul*"]\nplace = "accelerator"\n',
]


class Traces(dict[str, Path]):
    """A small Llama, in prefill and over a cache, its head tied to the embedding or not; each is
    traced where a test asks for it: ``tied prefill``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        head, phase = name.split()
        config = self.folder / f"{head}.json"
        config.write_text(json.dumps(TINY | {"tie_word_embeddings": head == "tied"}))
        sizes = ["--seq", "8"] if phase == "prefill" else ["--past", "8"]
        self[name] = self.folder / f"{head}-{phase}"
        done = invoke("trace", config, "--phase", phase, *sizes, "--out", self[name])
        assert done.returncode == 0, done.stderr
        return self[name]


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> Traces:
    return Traces(tmp_path_factory.mktemp("secrets"))


# --- the oracle: from the tables alone ------------------------------------------------------------

MOVE = {
    "view",
    "reshape",
    "transpose",
    "unsqueeze",
    "expand",
    "slice",
    "contiguous",
    "clone",
    "cat",
    "to",
    "_to_copy",
    "split",
    "select",
    "squeeze",
    "permute",
}


class Tables:
    """A trace and a partition of it, read with DuckDB."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace
        ask = duckdb.connect().sql
        at = f"'{trace}/{{}}.parquet'".format
        self.tensors = ask(f"select tensor_id, op_id, name from {at('tensors')}").fetchall()
        self.target = dict(ask(f"select op_id, target from {at('ops')}").fetchall())
        self.edges = ask(f"select dst_op, tensor_id, arg_index from {at('edges')}").fetchall()
        self.made: dict[int, list[int]] = {}
        for tensor, op, *_ in self.tensors:
            self.made.setdefault(op, []).append(tensor)

    def moved(self, marked: set[int]) -> set[int]:
        """All that moving values alone makes of ``marked``: what no one may get at least."""
        found = set(marked)
        grew = True
        while grew:
            grew = False
            for op, tensor, at in self.edges:
                name = self.target[op].split(".")[-2] if "." in self.target[op] else ""
                if tensor in found and (name in MOVE or (name == "embedding" and at == 0)):
                    fresh = set(self.made.get(op, ())) - found
                    found |= fresh
                    grew = grew or bool(fresh)
        return found

    def on(self, devices: Sequence[str | None], came: set[int], device: str) -> set[int]:
        """What is on a device: made there, sent there, or stored where an op there reads it."""
        found = came | {t for t, op, *_ in self.tensors if op is not None and devices[op] == device}
        front = [t for op, t, _ in self.edges if devices[op] == device]
        while front:  # parameters, constants and cached state, and what they are made of
            tensor = front.pop()
            maker = self.tensors[tensor][1]
            if maker is None or devices[maker] is None:
                found.add(tensor)
                front += [t for op, t, _ in self.edges if op == maker and maker is not None]
        return found


SECRETS = [
    'label = "attention_output"',
    'label = "q"',
    'label = "k"',
    'label = "logits"',
    'name = "add_7"',
    'name = ["expand_2", "expand_3"]',
    'name = "model.embed_tokens.weight"',
    'name = "*inv_freq"',
    'name = "*.weight"',
    'name = "cat_1"',
    'label = "input_ids"',
    'name = "input_ids"',
    'module_path = "model.layers.0.mlp*"',
]
IN_DECODE = ['name = "cache.*"', 'name = "cache.0.keys"', 'name = "cat_3"', 'label = "v"']


def checked(trace: Path, text: str, folder: Path, link: str = "none") -> str:
    """``kept`` or ``refused``, what a policy does; an assertion fails where it leaks."""
    file = folder / "mine.toml"
    file.write_text(text)
    policy, (graph, _) = load_policy(str(file)), read_trace(trace)
    setting = Setting(Machine(HOME, ("gpu",), Links(load_link(link))), time_limit=20.0)
    marked = set(secret_tensors(graph, policy))
    assert marked
    try:
        placement = place(graph, policy, setting).placement
    except InfeasibleError as error:
        return "refused" if "secret" in str(error) else str(error)
    tables, traffic = Tables(trace), account(graph, placement, setting.machine.links)
    came = {t.tensor.id for t in traffic.transfers if t.dst_device == "gpu"}
    leaked = tables.moved(marked) & tables.on(placement.devices, came, "gpu")
    assert not leaked, (text, {tables.tensors[t][2] for t in leaked})
    return "kept"


@pytest.mark.parametrize(
    ("phase", "each"),
    [
        ("prefill", 10),
        pytest.param("decode", 1, marks=pytest.mark.slow),
        pytest.param("prefill", 1, marks=pytest.mark.slow),
    ],
)
def test_no_policy_sends_what_a_secret_was_moved_into(traces, tmp_path, phase, each):
    """It is kept, or refused; never half. Each so manieth pair of a rule and a secret is tried."""
    secrets = SECRETS + IN_DECODE * (phase == "decode")
    pairs = [(places, secret) for places in PLACES for secret in secrets]
    outcomes = Counter(
        checked(traces[f"tiny {phase}"], f"{FREE}{places}[[secret]]\n{secret}\n", tmp_path)
        for places, secret in pairs[::each]
    )
    assert set(outcomes) == {"kept", "refused"}
    assert min(outcomes.values()) > 5 / each


def test_a_secret_next_to_a_fixed_policy_is_checked(traces, tmp_path):
    """Of two layers each has a product of scores on the GPU, whose result comes home."""
    rules = """description = "t"
default = "home"
[[rule]]
kind = ["linear", "matmul"]
place = "accelerator"
[[secret]]
"""
    file = tmp_path / "fixed.toml"
    file.write_text(rules + 'label = "attention_scores"\nreason = "who looks at whom"\n')
    done = invoke("partition", traces["tiny prefill"], "--policy", file)
    assert done.returncode == 1
    assert done.stderr == (
        "error: fixed shows attention_scores to gpu: 2 transfers, 2 made there "
        "(secret: who looks at whom)\n"
    )
    # Weights lie where they are read: that is shown too.
    file.write_text(rules + 'name = "lm_head.weight"\n')
    done = invoke("partition", traces["tiny prefill"], "--policy", file)
    assert done.stderr == (
        "error: fixed shows lm_head.weight to gpu: 1 kept there (secret: name = lm_head.weight)\n"
    )
    file.write_text(rules.replace('"matmul"', '"norm"') + 'label = "attention_scores"\n')
    assert invoke("partition", traces["tiny prefill"], "--policy", file).returncode == 0


# --- look-ups -------------------------------------------------------------------------------------


def test_who_has_the_table_may_not_have_the_rows(traces, tmp_path):
    """Tied, the head's weight is the table: on the GPU is either it or what was looked up.

    Where linears run on the GPU the head does, so the embeddings stay; where the head may be at
    home, it depends on what is cheaper. By hand below: the better of the two.
    """
    tied, plain = (read_trace(traces[f"{name} prefill"])[0] for name in ("tied", "tiny"))
    for graph in (tied, plain):
        ids = {t.id for t in graph.tensors if t.name == "input_ids"}
        assert covered(graph, ids) == ids
        (one,) = lookups(graph, ids)
        assert graph.tensors[one.table].name == "model.embed_tokens.weight"
        assert {graph.tensors[t].name for t in one.rows} == {"embedding_0"}
        rows, table = ways_to_keep(graph, ids, ["gpu"])
        assert rows == {"gpu": ids | one.rows}
        assert table == {"gpu": ids | {one.table}}
    head = '[[rule]]\nmodule_path = "lm_head"\nplace = "accelerator"\n'
    norms = '[[rule]]\nmodule_path = "model.layers.0.input_layernorm"\nplace = "accelerator"\n'
    secret = '[[secret]]\nlabel = "input_ids"\n'
    trace = traces["tied prefill"]
    assert checked(trace, f"{FREE}{head}{secret}", tmp_path) == "kept"
    assert checked(trace, f"{FREE}{norms}{secret}", tmp_path) == "kept"
    assert checked(trace, f"{FREE}{head}{norms}{secret}", tmp_path) == "refused"
    assert checked(traces["tiny prefill"], f"{FREE}{head}{norms}{secret}", tmp_path) == "kept"


# --- what carries values, by hand -----------------------------------------------------------------


def names(graph: OpGraph, tensors: Iterable[int]) -> set[str]:
    return {graph.tensors[t].name for t in tensors}


def of(graph: OpGraph, *wanted: str) -> set[str]:
    return names(graph, covered(graph, [t.id for t in graph.tensors if t.name in wanted]))


def targeted(graph: OpGraph, **targets: str) -> OpGraph:
    """The graph with other targets for some ops, by name."""
    return graph.with_ops(
        replace(op, target=f"aten.{targets[op.name]}.default") if op.name in targets else op
        for op in graph.ops
    )


def test_forward_and_back_but_not_through_arithmetic():
    b = Builder()
    x = b.input("x", [8])
    a = b.op("a", x, shape=[8], kind=Kind.MATMUL)
    v = b.view("v", a)
    c = b.op("c", v, shape=[8], kind=Kind.COPY)
    other = b.op("other", x, shape=[8])
    both = b.op("cat", c, other, shape=[16], kind=Kind.COPY)
    end = b.op("end", both, shape=[16], kind=Kind.LINEAR)
    graph = targeted(b.finish(end), cat="cat")
    assert of(graph, "a") == {"a", "v", "c", "cat"}
    assert of(graph, "c") == {"a", "v", "c", "cat"}
    assert of(graph, "cat") == {"a", "v", "c", "cat", "other"}
    assert of(graph, "end") == {"end"}
    assert of(graph, "x") == {"x"}


def test_the_parts_of_a_split_have_nothing_of_one_another():
    b = Builder()
    x = b.input("x", [8])
    qkv = b.op("qkv", x, shape=[24], kind=Kind.LINEAR)
    q, k = b.split("s", qkv, shapes=[[8], [16]])
    kk = b.op("kk", k, shape=[16], kind=Kind.COPY)
    qq = b.op("qq", q, shape=[8], kind=Kind.COPY)
    whole = b.op("whole", qkv, shape=[24], kind=Kind.COPY)
    graph = b.finish(kk, qq, whole)
    assert of(graph, "s.0") == {"s.0", "qq", "qkv", "whole"}
    assert of(graph, "qkv") == {"qkv", "s.0", "s.1", "qq", "kk", "whole"}


def test_a_mask_leaves_values_as_they_are():
    """A constant's numbers are in the code, a parameter's are not."""
    b = Builder()
    x = b.input("x", [8])
    w = b.parameter("w", [8])
    mask = b.constant("mask", shape=[8])
    scaled = b.constant("scaled", w, mask, shape=[8])
    masked = b.op("masked", x, mask, shape=[8])
    biased = b.op("biased", x, scaled, shape=[8])
    weighted = b.op("weighted", x, w, shape=[8])
    graph = b.finish(masked, biased, weighted)
    assert of(graph, "x") == {"x", "masked"}


def test_a_sum_of_one_is_that_one():
    for size, found in ((1, {"x", "sum"}), (2, {"x"})):
        b = Builder()
        x = b.input("x", [8, size])
        graph = b.finish(b.op("sum", x, shape=[8], kind=Kind.REDUCTION))
        assert of(graph, "x") == found


def test_cached_state_is_secret_in_the_next_run_too():
    """New rows of a secret cache are covered; the older rows of what is appended are it as well."""
    b = Builder()
    x = b.input("x", [1, 4])
    cache = b.input("cache", [6, 4], role=Role.KV_CACHE)
    row = b.op("row", x, shape=[1, 4], kind=Kind.LINEAR)
    grown = b.op("grown", cache, row, shape=[7, 4], kind=Kind.COPY)
    scores = b.op("scores", x, grown, shape=[1, 7], kind=Kind.MATMUL)
    b.tensors[grown] = replace(b.tensors[grown], role=Role.KV_CACHE)
    graph = targeted(b.finish(scores, grown), grown="cat")
    everything = {"cache", "row", "grown"}
    for marked in everything:
        assert of(graph, marked) == everything


def test_an_op_that_no_table_knows_may_hand_on_all_it_reads():
    b = Builder()
    x = b.input("x", [8])
    odd = b.op("odd", x, shape=[8])
    graph = targeted(b.finish(odd), odd="never_heard_of")
    assert of(graph, "x") == {"x", "odd"}


# --- what matches nothing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[[secret]]\nlabel = "attention_score"',
            "secret 1 (label = attention_score) matches nothing in tiny, prefill: no tensor has label "
            "attention_score. Did you mean attention_scores?",
        ),
        ('[[secret]]\nmodule_path = "model.layer.*"', "Did you mean model.layers."),
        ('[[secret]]\nname = "past_key_values*"', "no tensor has name past_key_values*."),
        ('[[secret]]\nlabel = "q"\nmodule_path = "lm_head"', "meets all of it together"),
        ('[[secret]]\nstack = "model.layer"', "no tensor has stack model.layer. Did you mean mode"),
        ('[[secret]]\nlayer = 2\nstack = "*.layers"', "no tensor has layer 2."),
        ('[[rule]]\nlabel = "attention_score"\nplace = "home"', "rule 1 (label = attention_sc"),
        ('[[rule]]\ntarget = "aten.lineer.*"\nplace = "home"', "Did you mean aten.linear"),
        ('[[rule]]\nkind = "attention"\nplace = "home"', "no op has kind attention. There are"),
    ],
)
def test_what_matches_nothing_is_an_error_that_suggests(traces, tmp_path, text, says):
    file = tmp_path / "mine.toml"
    file.write_text(f"{FREE}{text}\n")
    done = invoke("partition", traces["tiny prefill"], "--policy", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert not [*traces["tiny prefill"].glob("policy=mine")]  # the one that is optional has its own
    file = file.rename(tmp_path / "optional.toml")
    file.write_text(f"{FREE}{text}\noptional = true\n")
    assert invoke("partition", traces["tiny prefill"], "--policy", file).returncode == 0


def test_of_a_secrets_values_those_that_match_nothing_are_warned_of(traces, tmp_path):
    file = tmp_path / "several.toml"
    file.write_text(f'{FREE}[[secret]]\nlabel = ["logits", "input_id"]\n')
    done = invoke("partition", traces["tiny prefill"], "--policy", file)
    assert done.returncode == 0
    assert done.stderr == (
        f"warning: {file}: no tensor has the secret label input_id. Did you mean input_ids?\n"
    )


# --- what is seen, and what can be worked out -----------------------------------------------------


@pytest.mark.slow
def test_each_tensor_of_a_llama_is_what_a_person_would_call_it(traces):
    """By hand from the names of its modules, of which the classification looks at not one."""
    for phase in ("prefill", "decode"):
        graph = read_trace(traces[f"tiny {phase}"])[0]
        called: dict[str, set[str]] = {}
        for tensor, what in zip(graph.tensors, what_is(graph), strict=True):
            if tensor.op is not None and what is not None and not graph.ops[tensor.op].is_view:
                path = graph.ops[tensor.op].module_path.split(".")[-1]
                called.setdefault(path, set()).add(what.value)
        assert called["embed_tokens"] == {"embeddings"}
        for linear in ("gate_proj", "up_proj", "act_fn", "mlp"):
            assert called[linear] == {"mlp_activations"}
        for linear in ("down_proj", "o_proj"):
            assert called[linear] == {"hidden_states"}
        for linear in ("q_proj", "k_proj", "v_proj"):
            assert called[linear] == {"qkv"}
        assert called["lm_head"] == {"logits"}
        assert called["input_layernorm"] == {"hidden_states", "other"}  # other: one number a row
        inputs = {
            what_is(graph)[t.id]
            for op in graph.ops
            if op.kind is Kind.INPUT
            for t in graph.outputs(op.id)
        }
        assert inputs == {What.PROMPT_TOKENS} | ({What.KV_CACHE} if phase == "decode" else set())


def product(name: str, gemm: Gemm) -> OpGraph:
    b = Builder()
    x = b.input("x", [gemm.m, gemm.k])
    w = b.parameter("w", [gemm.n, gemm.k])
    graph = b.finish(b.op(name, x, w, shape=[gemm.m, gemm.n], kind=Kind.LINEAR))
    return graph.with_ops(
        replace(op, cost=OpCost(gemm=gemm)) if op.kind is Kind.LINEAR else op for op in graph.ops
    )


@pytest.mark.parametrize(("columns", "back"), [(8, True), (9, True), (7, False)])
def test_a_product_is_undone_where_its_weight_is_square_or_tall(columns, back):
    """x W with 8 unknowns a row and as many equations as W has columns."""
    graph = product("y", Gemm(1, 4, columns, 8))
    x, w, y = (next(t.id for t in graph.tensors if t.name == name) for name in "xwy")
    assert (x in recoverable(graph, {w, y})) is back
    assert x not in recoverable(graph, {y})
    (one,) = derived(graph, {x}, {w, y})
    assert (one.tensor.name, len(one.ops), one.linear, one.recoverable) == ("y", 1, True, back)


def test_a_difference_gives_back_what_was_added():
    b = Builder()
    x, y = b.input("x", [8]), b.input("y", [8])
    graph = b.finish(b.op("sum", x, y, shape=[8]))
    graph = targeted(graph, sum="add")
    x, y, total = (next(t.id for t in graph.tensors if t.name == n) for n in ("x", "y", "sum"))
    assert recoverable(graph, {total, y}) == {x: 2}
    assert recoverable(graph, {total}) == {}


def test_derived_forbids_what_arithmetic_makes_of_a_secret(traces, tmp_path):
    """All of a Llama is made of its tokens: nothing is left for the GPU."""
    trace = traces["tiny prefill"]
    one = '[[rule]]\nmodule_path = "*.up_proj"\nplace = "accelerator"\n'
    secret = '[[secret]]\nlabel = "input_ids"\n'
    assert checked(trace, f"{FREE}{one}{secret}", tmp_path) == "kept"
    assert checked(trace, f"{FREE}{one}{secret}derived = true\n", tmp_path) == "refused"
    assert checked(trace, f"{FREE}{secret}derived = true\n", tmp_path) == "kept"


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("policy", "hidden"),
    [
        ("prompt-private", {"prompt_tokens", "logits"}),
        ("kv-private", {"kv_cache"}),
        ("activations-private", {what.value for what in What}),
    ],
)
def test_the_policies_with_secrets_keep_them(traces, phase, policy, hidden):
    done = invoke("partition", traces[f"tiny {phase}"], "--policy", policy, "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)["seen"]["gpu"]
    assert {what for what, how in seen.items() if how == "not_at_all"} >= hidden & set(seen)
    if policy != "activations-private":
        assert seen["hidden_states"] == "plain"
    if policy == "prompt-private":  # a sum of the first layer, less what was added to it
        assert seen["embeddings"] == "recoverable"


def test_a_secret_has_a_price_and_no_advice_handles_it(traces, tmp_path):
    """The optimum with a secret, less its price, is the optimum without it."""
    trace, file = traces["tiny prefill"], tmp_path / "priced.toml"
    labels = '["attention_scores", "attention_probs"]'
    file.write_text(f'{FREE}{PLACES[0]}[[secret]]\nlabel = {labels}\nreason = "who"\n')
    priced = json.loads(invoke("partition", trace, "--policy", file, "--explain", "--json").stdout)
    free = json.loads(invoke("partition", trace, "--policy", "min-cut", "--json").stdout)
    file.write_text(f"{FREE}{PLACES[0]}")
    without = json.loads(invoke("partition", trace, "--policy", file, "--json").stdout)
    (price,) = [one for one in priced["prices"] if one["reason"] == "who"]
    kept, bare = (one["objective_value"] for one in (priced, without))
    assert price["saved"] == kept - bare > 0
    assert free["seen"]["gpu"]["attention_scores"] == "plain"
    assert priced["seen"]["gpu"]["attention_scores"] != "plain"
    relief = (priced["bottleneck"] or {}).get("relief") or {"moved_ops": []}
    assert "softmax" not in relief["moved_ops"]


def test_a_secret_on_the_command_line(traces):
    done = invoke("partition", traces["tiny prefill"], "--secret", "attention_scores")
    assert done.returncode == 1
    assert "shows attention_scores to gpu: 2 transfers, 2 made there" in done.stderr
    done = invoke("partition", traces["tiny prefill"], "--secret", "logit")
    assert done.returncode == 2
    assert "Did you mean logits" in done.stderr

"""Policies with ``[[protect]]``: what a file may say, the optimum by trial, what secrets are kept."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cutedge
from costmodels.flops import annotate
from costmodels.links import Link, Links, load_link
from costmodels.machine import Machine
from partition.accounting import account
from partition.masking import hides
from partition.masks import MaskedGraph
from partition.optimise import place
from partition.policy import Policy, Rule, Secret, load_policy, policy_names
from partition.prices import prices
from partition.problem import InfeasibleError, NotFoundError, memory_of
from partition.protects import Protect
from partition.schemes import Protection
from partition.secrets import covered, present, reached
from partition.seen import How, What, derived, seen
from partition.setting import Setting
from partition.wire_format import WireFormat
from tests.support.costs import device
from tests.support.examples import examples
from tests.support.graphs import Builder, describe
from tests.support.masked import against, all_placements, linear, protected_graphs, rewritten
from tests.support.oracle import RESIDENCY, oracle_moves, oracle_payload, oracle_turns
from tracer.errors import InputError
from tracer.graph import Kind, OpGraph

NONE = load_link("none")
AWAY = 'default = "accelerator"\n'
LINEAR = '[[protect]]\nkind = "linear"\n'


def policy(folder: Path, text: str) -> Policy:
    path = folder / "mine.toml"
    path.write_text(f'description = "a test"\n{text}', encoding="utf-8")
    return load_policy(str(path))


def setting(**options) -> Setting:
    return Setting(Machine("tee", ("gpu",), Links(NONE)), **options)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[protect]]\nkind = "linear"', "protect 1: key 'scheme' is missing"),
        ('[[protect]]\nscheme = "rank-one"', "protect 1: no condition; give at least one of kind"),
        (f'{LINEAR}scheme = "one-time-pads"', "protect 1: scheme.*Did you mean one-time-pad"),
        (f'{LINEAR}scheme = ["rank-one"]', "protect 1: scheme: .* is not one of"),
        (f'{LINEAR}scheme = "rank-one"\nfoo = 1', "protect 1: unknown key 'foo'; known are scheme"),
        ('[[protect]]\nkind = "linaer"\nscheme = "rank-one"', "kind.*Did you mean linear"),
        ('[[protect]]\nlayer = "0"\nscheme = "rank-one"', "layer must be a whole number"),
        (f'{LINEAR}scheme = "one-time-pad"\nbits = 32', "bits is of one-time-pad-mod, not of one-"),
        (f'{LINEAR}scheme = "rank-one"\nscale = 2', "scale is of one-time-pad, not of rank-one"),
        (f'{LINEAR}scheme = "one-time-pad-mod"\nbits = 16', "bits must be 32 or 64"),
        (f'{LINEAR}scheme = "one-time-pad"\nscale = "wide"', "scale must be a number above 0"),
        (f'{LINEAR}scheme = "one-time-pad"\nscale = nan', "scale must be a number above 0"),
        (f'{LINEAR}scheme = "one-time-pad"\nscale = true', "scale must be a number above 0"),
        (
            f'{LINEAR}scheme = "one-time-pad"\npads = "later"',
            "'later' is not one of offline, online",
        ),
        (f'{LINEAR}scheme = "permutation"\naxis = "rows"', "'rows' is not one of tokens, channels"),
        (f'{LINEAR}scheme = "one-time-pad"\ncheck = ""', "check: '' is not one of freivalds"),
        (f'{LINEAR}scheme = "one-time-pad"\ntrials = 2', "trials are of a check: say check = "),
        (
            f'{LINEAR}scheme = "freivalds"\ntrials = 0',
            "trials must be a whole number from 1 to 1000",
        ),
        (f'{LINEAR}scheme = "freivalds"\ntrials = true', "trials must be a whole number from 1"),
        (f'{LINEAR}scheme = "freivalds"\ncheck = "freivalds"', "check is of the other schemes"),
        (f'{LINEAR}scheme = "rank-one"\noptional = 1', "optional must be true or false"),
        (f'{LINEAR}scheme = "rank-one"\nreason = 3', "reason must be text"),
        ("protect = 1", r"protects are written as \[\[protect\]\] tables"),
        (
            '[[secret]]\nlabel = "q"\nallow_masked = ["rank-one"]',
            "allow_masked: rank-one is not known",
        ),
        (
            '[[secret]]\nlabel = "q"\nallow_masked = "pad"',
            "allow_masked: 'pad' is not one of one-time",
        ),
        ('[[secret]]\nlabel = "q"\nallow_masked = 3', "allow_masked must be a text or a list"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, says):
    with pytest.raises(InputError, match=f"mine.toml.*{says}"):
        policy(tmp_path, AWAY + text)


def test_one_cut_has_no_room_for_masks(tmp_path):
    free = 'default = "free"\nobjective = "bytes"\ncut = "layers"\n'
    with pytest.raises(
        InputError, match=r"masks are made there: leave out cut, or \[\[protect\]\]"
    ):
        policy(tmp_path, f'{free}{LINEAR}scheme = "rank-one"')


def attending(*, seq: int = 4) -> OpGraph:
    """Rows of a table, q and k of them, a softmax of their product, times v; a projection."""
    b = Builder(seq=seq)
    table = b.parameter("table", (9, 6))
    ids = b.input("input_ids", ("batch", "seq"), "int64")
    shape = ("batch", "seq", 6)
    x = b.op("embed", table, ids, shape=shape, kind=Kind.EMBEDDING)
    q, k = linear(b, "q", x, 6, label="q"), linear(b, "k", x, 6, label="k")
    v = b.view("v", linear(b, "v", x, "seq", label="v"))
    scores = against(b, "scores", q, k, label="attention_scores")
    square = ("batch", "seq", "seq")
    sums = b.op("softmax", scores, shape=square, kind=Kind.SOFTMAX, label="attention_probs")
    mixed = against(b, "mixed", sums, v)
    return annotate(b.finish(b.op("end", mixed, shape=square)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('module_path = "layers.*"\nscheme = "rank-one"', "matches nothing.*no op has module_path"),
        ('kind = "softmax"\nscheme = "rank-one"', r"softmax \(aten.softmax.int\) is no product of"),
        ('kind = "embedding"\nscheme = "one-time-pad"', "embed .* is no product of two matrices"),
        ('kind = "matmul"\nscheme = "one-time-pad"', "needs stored weights, and scores"),
        ('kind = "matmul"\nscheme = "orthogonal"', "needs stored weights, and scores"),
        ('kind = "linear"\nscheme = "embedded-additive"', "for two activations, and q"),
    ],
)
def test_what_a_scheme_is_not_for(tmp_path, text, says):
    wrong = policy(tmp_path, f"{AWAY}[[protect]]\n{text}")
    with pytest.raises(InputError, match=rf"mine: protect 1 \(.*\).*{says}") as error:
        place(attending(), wrong, setting())
    assert "by a rule" in str(error.value) or "optional = true" in str(error.value)
    # What stays at home needs no scheme, and what may match nothing no op.
    home = text if "layers" not in text else f"{text}\noptional = true"
    fine = policy(tmp_path, f'default = "home"\n[[protect]]\n{home}')
    assert not isinstance(place(attending(), fine, setting()).graph, MaskedGraph)


@pytest.mark.slow
def test_attention_in_one_op_and_experts_have_no_scheme(traced, tmp_path):
    """The shipped policies leave both at home."""
    flash = traced("edge-10m", seq=8, attn="sdpa")
    rule = policy(tmp_path, f'{AWAY}[[protect]]\nkind = "attention"\nscheme = "embedded-additive"')
    with pytest.raises(InputError, match=r"attention.* is no product of two matrices"):
        place(flash, rule, setting())
    experts = traced("mixtral-8x7b", seq=7, overrides={"num_hidden_layers": 2})
    for graph in (flash, experts):
        for name in ("slalom", "slalom-verified", "masked-all", "rank-one"):
            placed = place(graph, load_policy(name), setting())
            assert isinstance(placed.graph, MaskedGraph)
            left = [
                op
                for op, where in zip(placed.graph.ops, placed.placement.devices, strict=True)
                if where == "tee" and op.kind in (Kind.ATTENTION, Kind.LINEAR)
            ]
            assert {op.kind for op in left} == (
                {Kind.ATTENTION} if graph is flash else {Kind.LINEAR}
            )
            assert all("grouped_mm" in op.target for op in left if op.kind is Kind.LINEAR)


def test_the_first_table_that_names_an_op_protects_it(tmp_path):
    rules = policy(
        tmp_path,
        'default = "home"\n[[rule]]\nkind = ["linear", "matmul"]\nplace = "accelerator"\n'
        '[[protect]]\nmodule_path = ["q", "k"]\nscheme = "rank-one"\nreason = "no pads"\n'
        '[[protect]]\nkind = ["linear"]\nscheme = "one-time-pad"\nscale = 3\n'
        '[[protect]]\nkind = "matmul"\nlabel = "attention_*"\nscheme = "permutation"\n'
        'axis = "channels"\ncheck = "freivalds"\ntrials = 4\n',
    )
    placed = place(attending(), rules, setting())
    assert isinstance(placed.graph, MaskedGraph)
    names = {placed.graph.plain.ops[op].name: how for op, how in placed.graph.protected.items()}
    assert names == {
        "q": Protection("rank-one"),
        "k": Protection("rank-one"),
        "v": Protection("one-time-pad", scale=3.0),
        "scores": Protection("permutation", axis="channels", check="freivalds", trials=4),
    }
    single = place(attending(seq=1), rules, setting()).graph  # of one row rank-one hides nothing
    assert isinstance(single, MaskedGraph)
    assert {single.plain.ops[op].name for op in single.protected} == {"v"}


def test_every_shipped_policy_with_masks_names_what_it_protects(traced):
    graph = traced("llama-3.2-1b", seq=16, overrides={"num_hidden_layers": 2})
    masks = [name for name in policy_names() if load_policy(name).protects]
    assert masks == ["slalom", "slalom-verified", "rank-one", "masked-all", "private-optimal"]
    products = {op.id for op in graph.ops if op.kind in (Kind.LINEAR, Kind.MATMUL)}
    for name in masks[:-1]:
        placed = place(graph, load_policy(name), setting())
        assert isinstance(placed.graph, MaskedGraph)
        away = {
            op
            for op, where in enumerate(placed.graph.plain_placement(placed.placement).devices)
            if where == "gpu" and graph.ops[op].kind is not Kind.EMBEDDING
        }
        assert away <= products
        shown = away - placed.graph.protected.keys()
        assert [graph.ops[op].module_path for op in shown] == ["lm_head"] * (name == "rank-one")


# --- secrets --------------------------------------------------------------------------------------

PRODUCTS = '[[rule]]\nkind = ["linear", "matmul"]\nplace = "accelerator"\n'
FIXED = f'default = "home"\n{PRODUCTS}'
LINEARS = FIXED.replace(', "matmul"', "")
NOT_ENOUGH = ["one-time-pad", "rank-one", "orthogonal", "permutation", "freivalds"]


@pytest.mark.parametrize("scheme", NOT_ENOUGH)
@pytest.mark.parametrize("tensor", ["embed", "q"], ids=["operand", "result"])
def test_no_scheme_but_integers_keeps_a_secret(tmp_path, scheme, tensor):
    """Neither what is masked nor what comes back, whatever a secret allows."""
    allow = 'allow_masked = "one-time-pad-mod"'
    text = f'[[secret]]\nname = "{tensor}"\n{allow}\n{LINEAR}scheme = "{scheme}"\n'
    only = 'default = "home"\n[[rule]]\nmodule_path = "q"\nplace = "accelerator"\n'
    with pytest.raises(InfeasibleError, match=f"mine shows {tensor} to gpu"):
        place(attending(), policy(tmp_path, only + text), setting())
    bound = only.replace('"home"', '"free"\nobjective = "bytes"')
    with pytest.raises(InfeasibleError, match="secret"):
        place(attending(), policy(tmp_path, bound + text), setting())
    free = bound.replace("accelerator", "free")
    placed = place(attending(), policy(tmp_path, free + text), setting())
    assert placed.placement.accelerators == ()


@pytest.mark.parametrize("what", ["embed", "q"])
def test_a_secret_may_be_seen_masked(tmp_path, what):
    secret = f'[[secret]]\nname = "{what}"\n'
    text = f'{FIXED}{LINEAR}scheme = "one-time-pad-mod"\n'
    scores = '[[protect]]\nkind = "matmul"\nscheme = "rank-one"\n'
    allow = 'allow_masked = "one-time-pad-mod"\n'
    linears = text.replace(FIXED, LINEARS)
    assert place(attending(), policy(tmp_path, linears + secret + allow), setting())
    with pytest.raises(InfeasibleError, match=f"shows {what}"):  # not where it does not say so
        place(attending(), policy(tmp_path, linears + secret), setting())
    if what == "q":  # nor where another op has it under another mask
        with pytest.raises(InfeasibleError, match="shows q"):
            place(attending(), policy(tmp_path, text + scores + secret + allow), setting())
        with pytest.raises(InfeasibleError, match="shows q"):
            place(attending(), policy(tmp_path, text + secret + allow), setting())
    else:  # scores are made of it by arithmetic
        strict = f"{secret}{allow}derived = true\n"
        assert place(attending(), policy(tmp_path, linears + strict), setting())
        with pytest.raises(InfeasibleError, match="shows embed"):
            place(attending(), policy(tmp_path, text + scores + strict), setting())


def test_of_several_secrets_each_must_allow_the_scheme(tmp_path):
    text = (
        f'{LINEARS}{LINEAR}scheme = "one-time-pad-mod"\n'
        '[[secret]]\nname = "embed"\nallow_masked = "one-time-pad-mod"\n[[secret]]\n'
    )
    with pytest.raises(InfeasibleError, match="shows embed or q"):
        place(attending(), policy(tmp_path, f'{text}name = ["embed", "q"]'), setting())


def test_parameters_as_integers_are_parameters_all_the_same(tmp_path):
    text = (
        f'{FIXED}{LINEAR}scheme = "one-time-pad-mod"\n[[secret]]\nname = "q.weight"\n'
        'allow_masked = "one-time-pad-mod"\n'
    )
    with pytest.raises(InfeasibleError, match=r"shows q.weight to gpu: 1 kept there"):
        place(attending(), policy(tmp_path, text), setting())


def test_rows_of_a_table_that_lies_away_are_no_better_hidden(tmp_path):
    """Who has the table and its rows in another order has the token ids."""
    b = Builder(seq=4)
    table = b.parameter("table", (9, 6))
    rows = []
    for name in ("input_ids", "public"):
        ids = b.input(name, ("batch", "seq"), "int64")
        shape = ("batch", "seq", 6)
        rows.append(b.op(f"{name}.rows", table, ids, shape=shape, kind=Kind.EMBEDDING, path=name))
    graph = annotate(b.finish(linear(b, "q", rows[0], 6), rows[1]))
    secret = '[[secret]]\nname = "input_ids"\nallow_masked = "one-time-pad-mod"\n'
    for scheme, kept in (("permutation", False), ("one-time-pad-mod", True)):
        alone = f'default = "home"\n[[rule]]\nmodule_path = "q"\nplace = "accelerator"\n{secret}'
        alone += f'{LINEAR}scheme = "{scheme}"\n'
        assert place(graph, policy(tmp_path, alone), setting())  # the table is at home
        table_too = policy(tmp_path, alone.replace('"q"', '["q", "public"]'))
        if kept:
            assert place(graph, table_too, setting())
        else:
            with pytest.raises(InfeasibleError, match="shows input_ids"):
                place(graph, table_too, setting())


# --- what is seen ---------------------------------------------------------------------------------


def sights(graph: OpGraph, rules: Policy) -> dict[What, tuple[How, str | None]]:
    at = setting()
    placed = place(graph, rules, at)
    traffic = at.account(placed.graph, placed.placement, WireFormat())
    found = seen(placed.graph, placed.placement, traffic, ["gpu"])
    return {one.what: (one.how, one.example) for one in found}


@pytest.mark.parametrize(
    ("weights", "pairs", "q", "scores", "attack"),
    [
        ("one-time-pad", "", How.MASKED, How.NOT_AT_ALL, None),
        ("one-time-pad-mod", "", How.MASKED, How.NOT_AT_ALL, None),
        ("freivalds", "", How.PLAIN, How.RECOVERABLE, None),  # Q K' can be computed
        ("permutation", "", How.RECOVERABLE, How.RECOVERABLE, "in another place"),
        ("one-time-pad", "embedded-additive", How.RECOVERABLE, How.RECOVERABLE, "up to one scalar"),
        ("one-time-pad", "rank-one", How.MASKED, How.RECOVERABLE, None),
        ("one-time-pad", "freivalds", How.PLAIN, How.PLAIN, None),
    ],
)
def test_what_is_seen_through_masks(tmp_path, weights, pairs, q, scores, attack):
    text = f'{LINEAR}scheme = "{weights}"\n'
    text += f'[[protect]]\nkind = "matmul"\nscheme = "{pairs}"\n' if pairs else ""
    base = FIXED if pairs else LINEARS
    found = sights(attending(), policy(tmp_path, base + text))
    assert (found[What.QKV][0], found[What.ATTENTION_SCORES][0]) == (q, scores)
    assert found[What.WEIGHTS][0] is How.PLAIN  # as integers too
    if attack:
        assert attack in (found[What.QKV][1] or "")
    if pairs == "embedded-additive":
        assert "scalars" in (found[What.ATTENTION_SCORES][1] or "") or "softmax" in (
            found[What.ATTENTION_SCORES][1] or ""
        )


def test_a_checked_result_is_made_of_a_secret_in_plain(tmp_path):
    """What ``derived`` tells of arithmetic is told of a result that is checked alone."""
    text = f'{LINEAR}scheme = "freivalds"\n'
    graph, at = attending(), setting()
    rules = policy(tmp_path, LINEARS + text)
    placed = place(graph, rules, at)
    traffic = at.account(placed.graph, placed.placement, WireFormat())
    there = present(placed.graph, placed.placement, traffic)["gpu"]
    rows = next(t.id for t in graph.tensors if t.name == "embed")
    made = derived(placed.graph, {rows}, there)
    assert {one.tensor.name for one in made} == {"q", "k", "v"}


# --- the optimum ----------------------------------------------------------------------------------

SLOW = Link(
    "slow",
    "",
    0,
    0,
    0,
    0,
    sent_bandwidth_bytes_per_second=1000,
    received_bandwidth_bytes_per_second=500,
    sent_latency_seconds=0.01,
    received_latency_seconds=0.02,
)

FEW = examples(5)
SMALL = protected_graphs(ops=4)


def by_label(graph: OpGraph, protected: dict[int, Protection]) -> tuple[OpGraph, list[Protect]]:
    """The graph with a label for each protected op, and the tables that protect it by that."""
    named = graph.with_labels({graph.outputs(op)[0].id: f"op {op}" for op in protected})
    tables = [
        Protect((("label", (f"op {op}",)),), how, "", optional=False)
        for op, how in protected.items()
    ]
    return named, tables


def free(objective: dict[str, float], tables: Iterable[Protect], *secrets: Secret) -> Policy:
    return Policy("mine", "", "free", (), objective, secrets=secrets, protects=tuple(tables))


@given(data=st.data())
@FEW
def test_the_fewest_bytes_are_those_of_trying_all(data):
    """Each placement is masked from the beginning, and counted from the rules alone."""
    graph, protected = data.draw(SMALL)
    graph, tables = by_label(graph, protected)
    residency, calls = data.draw(RESIDENCY), data.draw(st.none() | st.integers(0, 2))
    wire = data.draw(st.sampled_from([None, "bfloat16"]))
    hidden = {op: how for op, how in protected.items() if hides(graph, graph.ops[op], how)}
    machine = Machine("tee", ("gpu",), Links(NONE), wire)
    best = min(
        sum(oracle_payload(there.tensors[t], wire) for t, *_ in oracle_moves(there, at, residency))
        for where in all_placements(graph, ("gpu",))
        for there, at in [rewritten(graph, where, hidden, wire)]
        if calls is None or len(oracle_turns(there, at)) <= calls
    )
    placed = place(graph, free({"bytes": 1}, tables), Setting(machine, residency, max_calls=calls))
    assert placed.solution is not None
    assert (placed.solution.objective, placed.solution.proven) == (best, True), protected
    traffic = account(
        placed.graph, placed.placement, machine.links, wire=WireFormat(wire), residency=residency
    )
    assert traffic.totals.payload_bytes == best


@pytest.mark.parametrize(
    "accelerators", [("gpu",), pytest.param(("gpu", "npu"), marks=pytest.mark.slow)]
)
@given(data=st.data())
@FEW
def test_the_least_seconds_are_those_of_trying_all(accelerators, data):
    """With several devices, or calls that keep nothing, the answer may be a bound; never beyond it."""
    graph, protected = data.draw(protected_graphs(ops=4 if len(accelerators) == 1 else 2))
    graph, tables = by_label(graph, protected)
    residency = data.draw(RESIDENCY)
    integers = data.draw(st.sampled_from([(), ("gpu",), ("tee", "gpu")]))
    rate = {"tee": data.draw(st.sampled_from([30.0, 300.0, 3000.0])), "gpu": 3e4, "npu": 2e4}
    described = {
        name: replace(
            device(name, rate[name]),
            peak_flops_per_second=dict.fromkeys(
                ("float32", *(("int32", "int64") if name in integers else ())), rate[name]
            ),
        )
        for name in ("tee", *accelerators)
    }
    machine = Machine("tee", accelerators, Links(SLOW), None, described)
    hidden = {op: how for op, how in protected.items() if hides(graph, graph.ops[op], how)}
    best = float("inf")
    for where in all_placements(graph, accelerators):
        there, at = rewritten(graph, where, hidden)
        times = machine.times(there)
        taken = [times[d].ops[op].seconds for op, d in enumerate(at.devices) if d]
        if None not in taken:
            moving = account(there, at, machine.links, residency=residency).totals.seconds
            best = min(best, 1e9 * (moving + sum(taken)))
    placed = place(
        graph, free({"seconds": 1}, tables), Setting(machine, residency, machine.times(graph))
    )
    proof = placed.solution
    assert proof is not None
    told = describe(placed.graph, placed.placement)
    assert proof.bound <= best + 2, told
    assert proof.objective >= best - 2, told
    if residency == "run" and len(accelerators) == 1:
        assert proof.proven, told
    assert proof.objective <= best + 2 or not proof.proven, told


@given(data=st.data())
@FEW
def test_the_best_that_keeps_a_secret_is_that_of_trying_all(data):
    graph, protected = data.draw(SMALL)
    graph, tables = by_label(graph, protected)
    able = [t for t in graph.tensors if t.op is None or graph.ops[t.op].kind is not Kind.OUTPUT]
    marked = data.draw(st.sampled_from(able))
    allowed = data.draw(st.sampled_from([(), ("one-time-pad-mod",)]))
    strict = data.draw(st.booleans())
    secret = Secret((("name", (marked.name,)),), "", derived=strict, allow_masked=allowed)
    kept = covered(graph, {marked.id})
    kept |= reached(graph, kept) if strict else frozenset()
    hidden = {op: how for op, how in protected.items() if hides(graph, graph.ops[op], how)}

    def shows(there: OpGraph, at) -> bool:
        """Whether a tensor is away, or stands there for it, that is no integer under a pad."""
        masks = there.masks if isinstance(there, MaskedGraph) else {}
        for tensor in there.tensors:
            ops = {*there.readers(tensor.id), *(() if tensor.op is None else (tensor.op,))}
            if "gpu" not in {at.devices[op] for op in ops}:
                continue
            if tensor.id in masks:
                one = masks[tensor.id]
                if one.plain in kept and one.protection.scheme not in allowed:
                    return True
            elif any(tensor.name in (n, f"{n}.masked", f"{n}.int32", f"{n}.int64") for n in names):
                return True
        return False

    names = {graph.tensors[t].name for t in kept}
    found = [
        sum(oracle_payload(there.tensors[t], None) for t, *_ in oracle_moves(there, at, "run"))
        for where in all_placements(graph, ("gpu",))
        for there, at in [rewritten(graph, where, hidden)]
        if not shows(there, at)
    ]
    placed = place(graph, free({"bytes": 1}, tables, secret), setting())
    assert placed.solution is not None
    assert (placed.solution.objective, placed.solution.proven) == (min(found), True)
    assert not shows(placed.graph, placed.placement)


@given(data=st.data(), room=st.integers(60, 600))
@FEW
def test_what_does_not_fit_is_not_placed(data, room):
    """The best that fits away, or an error that says that masks found no room."""
    graph, protected = data.draw(SMALL)
    graph, tables = by_label(graph, protected)
    hidden = {op: how for op, how in protected.items() if hides(graph, graph.ops[op], how)}
    machine = Machine("tee", ("gpu",), Links(NONE), memory_bytes={"gpu": room})
    found = []
    for where in all_placements(graph, ("gpu",)):
        there, at = rewritten(graph, where, hidden)
        moves = account(there, at, machine.links)
        if memory_of(there, at, moves.transfers).get("gpu", 0) <= room:
            found.append(moves.totals.payload_bytes)
    try:
        placed = place(graph, free({"bytes": 1}, tables), Setting(machine))
    except NotFoundError:
        return
    assert placed.solution is not None
    assert placed.solution.objective == min(found)


def test_what_lies_longer_without_masks_has_no_room():
    """X is made away and read at home, where it is cheaper, by two products of one mask. With it X
    lies away until that is made, without it until the second product: beside 96 bytes that come
    between them and 96 that are made of these."""
    b = Builder(seq=4)
    shape = ("batch", "seq", 6)
    x = b.input("x", shape)
    big = b.op("big", x, shape=shape, path="away")
    between = b.op("act", linear(b, "q", big, 6), shape=shape)
    more = b.op("more", between, shape=shape, path="away")
    graph = annotate(b.finish(b.op("end", linear(b, "k", big, 6), more, shape=shape)))
    tables = [Protect((("kind", ("linear",)),), Protection("one-time-pad"), "")]
    pinned = Rule((("module_path", ("away",)),), "accelerator", "")
    rules = replace(free({"bytes": 1}, tables), rules=(pinned,))
    machine = Machine("tee", ("gpu",), Links(NONE), memory_bytes={"gpu": 3 * 96})
    placed = place(graph, rules, Setting(machine))
    assert placed.placement.devices == ("tee", "gpu", "tee", "tee", "gpu", "tee", "tee", "tee")
    with pytest.raises(NotFoundError, match="with its masks takes 288 bytes at gpu, of 287"):
        place(graph, rules, Setting(replace(machine, memory_bytes={"gpu": 287})))


def test_home_that_has_no_seconds_for_a_mask_keeps_the_op(tmp_path):
    """Pads of the run in integers are multiplied at home, which here has floats alone."""
    b = Builder(seq=4)
    graph = annotate(b.finish(linear(b, "up", b.input("x", ("batch", "seq", 6)), 6)))
    described = {"tee": device("tee", 1.0), "gpu": device("gpu", 1e9)}
    rates = {"float32": 1e9, "int32": 1e9}
    described["gpu"] = replace(described["gpu"], peak_flops_per_second=rates)
    machine = Machine("tee", ("gpu",), Links(SLOW), None, described)
    at = Setting(machine, times=machine.times(graph))
    text = f'{LINEAR}scheme = "one-time-pad-mod"\npads = "online"\n'
    seconds = 'default = "free"\nobjective = "seconds"\n'
    home = place(graph, policy(tmp_path, seconds + text), at)
    assert home.placement.accelerators == ()
    offline = place(graph, policy(tmp_path, seconds + text.replace("online", "offline")), at)
    assert offline.placement.accelerators == ("gpu",)
    other = '[[rule]]\nkind = "norm"\nplace = "free"\noptional = true\n'
    pinned = policy(tmp_path, f'default = "accelerator"\nobjective = "seconds"\n{other}{text}')
    with pytest.raises(
        InputError, match=r"op 1 .*on gpu, whose mask.*pad \(int32\) has no cost on tee"
    ):
        place(graph, pinned, at)


def test_a_protection_has_a_price():
    """Without it the linear is away and 192 bytes cross; with integers of 64 bits all is at home."""
    b = Builder(seq=4)
    x = b.input("x", ("batch", "seq", 6))
    grown = b.op("grow", linear(b, "up", x, 6), shape=("batch", "seq", 6))
    graph = annotate(b.finish(grown))
    how = Protection("one-time-pad-mod", bits=64)
    tables = [Protect((("kind", ("linear",)),), how, "why")]
    pinned = replace(
        load_policy("offload-linear"),
        name="mine",
        objective={"bytes": 1},
        default="free",
        protects=tuple(tables),
    )
    placed = place(graph, pinned, setting())
    assert placed.solution is not None
    # X - R and (X - R) W in 8 bytes each, and 96 if what follows is away: it is not.
    assert placed.solution.objective == 2 * 24 * 8
    price = next(
        p for p in prices(graph, pinned, setting(), placed.solution) if "protect" in p.rule
    )
    assert (price.ops, price.saved, price.reason, price.proven) == (1, 384 - 192, "why", True)


@pytest.mark.slow
def test_what_each_protection_of_a_fixed_policy_costs():
    """As much as the totals with it are above those without it."""
    trace, rules = cutedge.trace("edge-10m", seq=64), load_policy("masked-all")
    linears, products = rules.protects
    for machine in ("tee-tdx+rtx-4090@pcie5-x16", None):
        made = trace.partition(rules, machine=machine)
        by_rule = {(one.rule, one.unit): one for one in made.explain()[1]}
        units = ("bytes", "ns") if machine else ("bytes",)
        assert len(by_rule) == 2 * len(units)
        for protect, left in ((linears, products), (products, linears)):
            bare = trace.partition(replace(rules, protects=(left,)), machine=machine)
            for unit, key in zip(units, ("total_payload_bytes", "run_seconds"), strict=False):
                price = by_rule[f"protect {protect}: {protect.protection}", unit]
                with_it, without = made.summary[key], bare.summary[key]
                scale = 1 if unit == "bytes" else 1e9
                assert price.saved == round(scale * (with_it - without))
                assert price.ops > 0
    # 2 products in 4 layers: operands once more, results three times more.
    heads, seq, width = 4, 64, 64
    operands = 3 * heads * seq * width + heads * seq * seq
    results = heads * seq * seq + heads * seq * width
    price = by_rule[f"protect {products}: {products.protection}", "bytes"]
    assert price.saved == 4 * 4 * (operands + 3 * results)

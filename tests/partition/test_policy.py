"""Policies: which op a rule takes, what the shipped ones do, and a user's own file end to end."""

from collections import Counter
from math import prod
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from partition.accounting import account
from partition.conditions import OF_OPS
from partition.placement import Placement, validate
from partition.policy import (
    Secret,
    apply_policy,
    cautions,
    fixed_policy_names,
    idle_rules,
    load_policy,
    named_by,
)
from tests.support.graphs import Builder
from tracer.errors import InputError
from tracer.graph import Edge, Kind, Op, OpGraph, Role, Tensor, TraceMeta
from tracer.kinds import base_name
from tracer.serde import write_trace
from tracer.stacks import place_of

LAYER = "model.layers.0"
ATTN = f"{LAYER}.attn"

# name, target, kind, module path, class of the module, what it reads, shape, label
ROWS = [
    ("ids", "input", "input", "", "", [], (1, 8), None),
    ("mask", "aten.full.default", "constant", "model", "Model", [], (8, 8), None),
    (
        "embed",
        "aten.embedding.default",
        "embedding",
        "model.embed",
        "Embedding",
        ["ids"],
        (8, 64),
        None,
    ),
    ("norm", "aten.rms_norm.default", "norm", f"{LAYER}.norm", "RMSNorm", ["embed"], (8, 64), None),
    ("q", "aten.linear.default", "linear", f"{ATTN}.q_proj", "Linear", ["norm"], (4, 8, 16), "q"),
    ("k", "aten.linear.default", "linear", f"{ATTN}.k_proj", "Linear", ["norm"], (2, 8, 16), "k"),
    ("v", "aten.addmm.default", "linear", f"{ATTN}.v_proj", "Conv1D", ["norm"], (4, 8, 16), "v"),
    ("k_axis", "aten.unsqueeze.default", "view", ATTN, "Attn", ["k"], (2, 1, 8, 16), "k"),
    ("k_spread", "aten.expand.default", "view", ATTN, "Attn", ["k_axis"], (2, 2, 8, 16), "k"),
    ("k_heads", "aten.reshape.default", "copy", ATTN, "Attn", ["k_spread"], (4, 8, 16), "k"),
    (
        "qk",
        "aten.matmul.default",
        "matmul",
        ATTN,
        "Attn",
        ["q", "k_heads"],
        (4, 8, 8),
        "attention_scores",
    ),
    (
        "masked",
        "aten.add.Tensor",
        "elementwise",
        ATTN,
        "Attn",
        ["qk", "mask"],
        (4, 8, 8),
        "attention_scores",
    ),
    (
        "probs",
        "aten.softmax.int",
        "softmax",
        ATTN,
        "Attn",
        ["masked"],
        (4, 8, 8),
        "attention_probs",
    ),
    (
        "pv",
        "aten.matmul.default",
        "matmul",
        ATTN,
        "Attn",
        ["probs", "v"],
        (4, 8, 16),
        "attention_output",
    ),
    (
        "up",
        "aten.linear.default",
        "linear",
        "model.layers.1.mlp.up",
        "Linear",
        ["pv"],
        (8, 64),
        None,
    ),
    ("act", "aten.mul.Tensor", "elementwise", "model.layers.1.mlp", "MLP", ["up"], (8, 64), None),
    ("head", "aten.linear.default", "linear", "lm_head", "Linear", ["act"], (8, 99), "logits"),
    ("results", "output", "output", "", "", ["head"], None, None),
]
NAMES = [row[0] for row in ROWS]


def build() -> OpGraph:
    """One attention with grouped K, an MLP op in layer 1 and a head; tensor ids are op ids."""
    ops, tensors, edges = [], [], []
    for n, (name, target, kind, path, module_type, reads, shape, label) in enumerate(ROWS):
        constant = kind == "constant"
        ops.append(
            Op(
                n,
                name,
                target,
                Kind(kind),
                path,
                module_type,
                *place_of(path),
                constant,
                kind == "view",
                "float32",
            )
        )
        edges += [Edge(NAMES.index(r), n, NAMES.index(r), i) for i, r in enumerate(reads)]
        if shape is not None:
            role = {"input": Role.INPUT, "constant": Role.CONSTANT}.get(kind, Role.ACTIVATION)
            tensors.append(
                Tensor(
                    n,
                    n,
                    name,
                    role,
                    label,
                    "float32",
                    shape,
                    None,
                    4 * prod(shape),
                    None,
                    None,
                    None,
                )
            )
    meta = TraceMeta("toy", "prefill", 1, 8, 0, "float32", "eager", "all", (), 0)
    return OpGraph(meta, ops, tensors, edges)


GRAPH = build()
HEADER = 'description = "a test"\ndefault = "{default}"\n'


def policy_file(folder: Path, rules: str, default: str = "home") -> str:
    """The path of a policy file; ``rules`` is one line a rule, its entries separated by ``;``."""
    text = HEADER.format(default=default)
    for rule in filter(None, map(str.strip, rules.splitlines())):
        entries = [entry.strip() for entry in rule.split(";")]
        text += "\n".join(["[[rule]]", *entries]) + "\n"
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def place(folder: Path, rules: str, default: str = "home") -> Placement:
    policy = load_policy(policy_file(folder, rules, default))
    return apply_policy(GRAPH, policy, home="tee", accelerators=("gpu",))


def on(placement: Placement, device: str | None) -> str:
    """The names of the ops on a device."""
    return " ".join(n for n, d in zip(NAMES, placement.devices, strict=True) if d == device)


# --- conditions -----------------------------------------------------------------------------------


ONE_CONDITION = [
    ('kind = "matmul"', "qk pv"),
    ('kind = ["matmul", "softmax"]', "qk probs pv"),
    ('kind = "view"', "k_axis k_spread"),
    ('kind = "other"', ""),
    ('target = "aten.addmm.default"', "v"),
    ('target = "aten.linear.*"', "q k up head"),
    ('target = "aten.linear"', ""),
    ('target = ["aten.softmax.*", "*.Tensor"]', "masked probs act"),
    ('target = "aten.ADD.*"', ""),
    ('target = "*add*"', "v masked"),
    ('module_path = "model.layers.0.*"', "norm q k v k_axis k_spread k_heads qk masked probs pv"),
    ('module_path = "model.layers.0.attn"', "k_axis k_spread k_heads qk masked probs pv"),
    ('module_path = "*.[qk]_proj"', "q k"),
    ('module_path = "*.?_proj"', "q k v"),
    ('module_path = "*.[!qk]_proj"', "v"),
    ('module_path = "layers"', ""),
    ('module_path = ["lm_head", "model.embed"]', "embed head"),
    ('module_type = "Linear"', "q k up head"),
    ('module_type = "linear"', ""),
    ('module_type = ["Conv*", "*Norm"]', "norm v"),
    ('label = "q"', "q"),
    ('label = "k"', "k k_axis k_spread k_heads"),
    ('label = "attention_*"', "qk masked probs pv"),
    ('label = "?"', "q k v k_axis k_spread k_heads"),
    ('label = ["logits", "attention_probs"]', "probs head"),
    # An op whose tensors have no label is no "*" either.
    ('label = "*"', "q k v k_axis k_spread k_heads qk masked probs pv head"),
    ('stack = "model.layers"', "norm q k v k_axis k_spread k_heads qk masked probs pv up act"),
    (
        'stack = ["*.layers", "encoder"]',
        "norm q k v k_axis k_spread k_heads qk masked probs pv up act",
    ),
    ('stack = "layers"', ""),
    ('stack = "*"', "norm q k v k_axis k_spread k_heads qk masked probs pv up act"),
    ("layer = 1", "up act"),
    ("layer = 0", "norm q k v k_axis k_spread k_heads qk masked probs pv"),
    ("layer = [1, 7]", "up act"),
    ("layer = 10", ""),
    ('pattern = "attention-core"', "qk masked probs pv"),
    ('pattern = "kv-broadcast"', "k_axis k_spread k_heads"),
    ('pattern = ["kv-broadcast", "attention-core"]', "k_axis k_spread k_heads qk masked probs pv"),
]


@pytest.mark.parametrize(("condition", "expected"), ONE_CONDITION)
def test_a_condition_takes_these_ops(tmp_path, condition, expected):
    placement = place(tmp_path, f'{condition}; place = "accelerator"')
    assert on(placement, "gpu") == expected
    validate(GRAPH, placement)


def test_every_condition_has_a_case():
    assert {condition.split(" ")[0] for condition, _ in ONE_CONDITION} == set(OF_OPS)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ('kind = "linear"; layer = 0', "q k v"),
        ('stack = "model.layers"; layer = 1', "up act"),
        ('stack = "decoder.layers"; layer = 1', ""),
        ('kind = "linear"; layer = [0, 1]; module_type = "Linear"', "q k up"),
        ('kind = ["linear", "matmul"]; label = ["q", "attention_output"]', "q pv"),
        ('pattern = "attention-core"; kind = "matmul"', "qk pv"),
        ('pattern = "attention-core"; module_path = "*.mlp*"', ""),
        ('target = "aten.*"; module_path = "*mlp*"; module_type = "MLP"; layer = 1', "act"),
    ],
)
def test_all_conditions_of_a_rule_must_hold(tmp_path, conditions, expected):
    assert on(place(tmp_path, f'{conditions}; place = "accelerator"'), "gpu") == expected


# --- rules together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            """kind = "linear"; module_path = "lm_head"; place = "home"
            kind = "linear"; place = "accelerator" """,
            "q k v up",
        ),
        (
            """kind = "linear"; place = "accelerator"
            kind = "linear"; module_path = "lm_head"; place = "home" """,
            "q k v up head",
        ),
        (
            """kind = "linear"; layer = 0; place = "home"
            kind = "linear"; place = "accelerator"
            kind = ["linear", "matmul"]; place = "accelerator" """,
            "qk pv up head",
        ),
    ],
)
def test_the_first_rule_that_matches_wins(tmp_path, rules, expected):
    assert on(place(tmp_path, rules), "gpu") == expected


@pytest.mark.parametrize(
    ("default", "at_home", "away"),
    [
        ("home", [n for n in NAMES if n != "mask"], []),
        (
            "accelerator",
            ["ids", "results"],
            [n for n in NAMES if n not in ("ids", "mask", "results")],
        ),
    ],
)
def test_the_default_takes_what_no_rule_matches(tmp_path, default, at_home, away):
    placement = place(tmp_path, "", default)
    assert on(placement, "tee").split() == at_home
    assert on(placement, "gpu").split() == away
    validate(GRAPH, placement)


@pytest.mark.parametrize("rule", ['kind = ["input", "output", "constant"]', 'target = "*"'])
@pytest.mark.parametrize("default", ["home", "accelerator"])
def test_inputs_and_outputs_are_at_home_and_constants_nowhere(tmp_path, rule, default):
    placement = place(tmp_path, f'{rule}; place = "accelerator"', default)
    assert placement.home == "tee"
    assert {n: placement.devices[NAMES.index(n)] for n in ("ids", "mask", "results")} == {
        "ids": "tee",
        "mask": None,
        "results": "tee",
    }
    assert on(placement, None) == "mask"
    validate(GRAPH, placement)


def test_the_devices_are_called_as_the_user_calls_them(tmp_path):
    policy = load_policy(policy_file(tmp_path, 'kind = "matmul"; place = "accelerator"'))
    placement = apply_policy(GRAPH, policy, home="phone", accelerators=("edge box",))
    assert placement.home == "phone"
    assert placement.accelerators == ("edge box",)
    assert set(placement.devices) == {"phone", "edge box", None}


# --- reasons --------------------------------------------------------------------------------------


def test_reasons_say_which_rule_and_pinned_says_whether_any(tmp_path):
    placement = place(
        tmp_path,
        """kind = "matmul"; place = "accelerator"; reason = "products go out"
           layer = [0, 1]; kind = ["linear", "norm"]; module_path = "*"; place = "accelerator"
           pattern = "attention-core"; place = "home" """,
    )
    rows = zip(placement.devices, placement.pinned, placement.reasons, strict=True)
    found = dict(zip(NAMES, rows, strict=True))
    products = ("gpu", True, "products go out")
    spelled_out = ("gpu", True, "kind = linear|norm, module_path = *, layer = 0|1")
    core = ("tee", True, "pattern = attention-core")
    default = ("tee", False, "no rule matches: the default")
    fixed = ("tee", True, "inputs and outputs are at home")
    assert found == {
        "ids": fixed,
        "mask": (None, True, "constant: computed at load where it is needed"),
        "embed": default,
        "norm": spelled_out,
        "q": spelled_out,
        "k": spelled_out,
        "v": spelled_out,
        "k_axis": default,
        "k_spread": default,
        "k_heads": default,
        "qk": products,
        "masked": core,
        "probs": core,
        "pv": products,
        "up": spelled_out,
        "act": default,
        "head": default,
        "results": fixed,
    }


@pytest.mark.parametrize(
    ("rules", "idle"),
    [
        ('kind = "matmul"; place = "accelerator"', []),
        ('kind = "reduction"; place = "accelerator"', ["kind = reduction"]),
        (
            """module_path = "model.layer.*"; place = "accelerator"
            layer = [0]; place = "accelerator"
            kind = "linear"; layer = [5, 6]; place = "home" """,
            ["module_path = model.layer.*", "kind = linear, layer = 5|6"],
        ),
        # A rule that comes too late still matches: it is no misspelling.
        (
            """kind = ["linear"]; place = "accelerator"
            module_type = "Linear"; place = "accelerator" """,
            [],
        ),
        (
            'pattern = "kv-broadcast"; label = "v"; place = "home"',
            ["label = v, pattern = kv-broadcast"],
        ),
    ],
)
def test_idle_rules_are_those_that_match_no_op(tmp_path, rules, idle):
    policy = load_policy(policy_file(tmp_path, rules))
    assert [str(rule) for rule in idle_rules(GRAPH, policy)] == idle


# --- the shipped policies -------------------------------------------------------------------------

GPT2 = ("gpt2", (("n_layer", 2),))
LLAMA = ("llama-3.2-1b", (("num_hidden_layers", 2),))
BERT = ("bert-base", (("num_hidden_layers", 2),))

# What one layer's attention does between its two products: scale, mask and softmax. BERT looks
# both ways, and without padding it has no mask.
CORE = {"mul": 1, "add": 1, "softmax": 1}
BOTH_WAYS = {"mul": 1, "softmax": 1}
# What repeat_kv does to K and to V; K is transposed for the product afterwards.
SPREAD = {"unsqueeze": 2, "expand": 2, "reshape": 2, "transpose": 1}


def shipped(traced, model) -> tuple[OpGraph, dict[str, Placement]]:
    name, overrides = model
    graph = traced(name, seq=8, overrides=dict(overrides))
    return graph, {
        policy: apply_policy(graph, load_policy(policy), home="tee", accelerators=("gpu",))
        for policy in fixed_policy_names()
    }


def away(placement: Placement) -> set[int]:
    return {op for op, device in enumerate(placement.devices) if device == "gpu"}


def test_the_shipped_policies_come_from_home_to_fused():
    fused = ["offload-linear", "fuse-attention", "flash-attention"]
    assert fixed_policy_names() == ["all-home", *fused, "host-chip"]
    for name in fixed_policy_names():
        policy = load_policy(name)
        assert policy.name == name
        assert policy.default == "home"
        assert policy.description.endswith(".")
        assert all(rule.place == "accelerator" and rule.reason for rule in policy.rules)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layers", "linears", "core", "spread"),
    [
        # 4 (fused qkv, out, two of the MLP) a layer and the head
        pytest.param(GPT2, 2, 2 * 4 + 1, CORE, {}, id="gpt2"),
        # 7 (q, k, v, o, gate, up, down) a layer and the head; 8 heads of K and V for 32 of Q
        pytest.param(LLAMA, 2, 2 * 7 + 1, CORE, SPREAD, id="llama"),
        # 6 (q, k, v, out, two of the MLP) a layer and two of the head
        pytest.param(BERT, 2, 2 * 6 + 2, BOTH_WAYS, {}, id="bert"),
    ],
)
@pytest.mark.few(2)
def test_who_is_on_the_accelerator(traced, model, layers, linears, core, spread):
    graph, placements = shipped(traced, model)
    for placement in placements.values():
        validate(graph, placement)
    plain = [name for name in fixed_policy_names() if not load_policy(name).protects]
    home, offload, fuse, flash, chip = (away(placements[name]) for name in plain)
    assert chip == {op for op in offload if graph.ops[op].kind is not Kind.EMBEDDING}

    assert home == set()
    assert Counter(graph.ops[op].kind.value for op in offload) == {
        "linear": linears,
        "matmul": 2 * layers,
        "embedding": 1,
    }

    assert offload < fuse <= flash
    for more, each in ((fuse - offload, core), (flash - fuse, spread)):
        for layer in range(layers):
            found = (graph.ops[op] for op in more if graph.ops[op].layer == layer)
            assert Counter(base_name(op.target) for op in found) == each, layer
        assert len(more) == layers * sum(each.values())


@pytest.mark.parametrize("model", [GPT2, BERT], ids=["gpt2", "bert"])
@pytest.mark.few(1)
def test_flash_is_fuse_where_every_head_has_its_own_k_and_v(traced, model):
    graph, placements = shipped(traced, model)
    assert placements["flash-attention"].devices == placements["fuse-attention"].devices
    flash = load_policy("flash-attention")
    assert [str(rule) for rule in idle_rules(graph, flash)] == ["pattern = kv-broadcast"]
    assert idle_rules(graph, load_policy("fuse-attention")) == []


def test_flash_differs_from_fuse_where_heads_share_k_and_v(traced):
    graph, placements = shipped(traced, LLAMA)
    assert idle_rules(graph, load_policy("flash-attention")) == []
    sent = {}
    for name in ("fuse-attention", "flash-attention"):
        traffic = account(graph, placements[name], Links(load_link("none")))
        sent[name] = {
            t.tensor.label: t.payload_bytes
            for t in traffic.transfers
            if t.direction == "send" and t.tensor.label in ("k", "v")
        }
    # 8 tokens of 64 float32, with 32 heads and with 8
    assert sent["fuse-attention"] == {"k": 32 * 8 * 64 * 4, "v": 32 * 8 * 64 * 4}
    assert sent["flash-attention"] == {"k": 8 * 8 * 64 * 4, "v": 8 * 8 * 64 * 4}


@pytest.mark.slow
def test_one_attention_op_is_offloaded_whole(traced):
    graph = traced("gpt2", seq=8, attn="sdpa", overrides={"n_layer": 1})
    placement = apply_policy(
        graph, load_policy("offload-linear"), home="tee", accelerators=("gpu",)
    )
    kinds = Counter(graph.ops[op].kind for op in away(placement))
    assert kinds == {Kind.LINEAR: 5, Kind.ATTENTION: 1, Kind.EMBEDDING: 1}
    fused = apply_policy(graph, load_policy("flash-attention"), home="tee", accelerators=("gpu",))
    assert away(fused) == away(placement)


# --- a user's own file, end to end ----------------------------------------------------------------

MINE = {
    "offload-linear": """
        description = "offload-linear in other words"
        default = "home"
        [[rule]]
        target = ["aten.linear.*", "aten.matmul.*", "aten.embedding.*"]
        module_path = "*"
        place = "accelerator"
    """,
    "fuse-attention": """
        description = "everything of kinds that stay is named, all else goes"
        default = "accelerator"
        [[rule]]
        pattern = "attention-core"
        place = "accelerator"
        [[rule]]
        kind = ["elementwise", "softmax", "norm", "reduction", "copy", "view", "other"]
        place = "home"
    """,
    "all-home": """
        description = "what is sent out is called back by the rule before it"
        default = "home"
        [[rule]]
        kind = ["linear", "matmul", "embedding"]
        place = "home"
        [[rule]]
        module_type = ["Linear", "Embedding"]
        place = "accelerator"
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("same_as", sorted(MINE))
def test_a_users_policy_gives_what_the_shipped_one_gives(traced, cli, tmp_path, same_as):
    write_trace(shipped(traced, BERT)[0], tmp_path / "trace")
    (tmp_path / "my policy.toml").write_text(MINE[same_as], encoding="utf-8")
    for policy in (same_as, "my policy.toml"):
        done = cli("partition", "trace", "--policy", policy)
        assert (done.returncode, done.stderr) == (0, "")
    tables = {}
    for policy in (same_as, "my policy"):
        (folder,) = (tmp_path / "trace").glob(f"policy={policy}/wire=float32/residency=run/*")
        read = {
            name: pq.read_table(folder / f"{name}.parquet", partitioning=None)
            for name in ("placement", "transfers", "calls", "summary")
        }
        read = {name: table.drop_columns(["policy"]) for name, table in read.items()}
        read["placement"] = read["placement"].select(["op_id", "device"])
        tables[policy] = {name: table.to_pylist() for name, table in read.items()}
    assert tables["my policy"] == tables[same_as]
    assert bool(tables[same_as]["calls"]) == (same_as != "all-home")


@pytest.mark.parametrize("command", ["partition", "cutedge compare"])
def test_a_users_rule_that_matches_nothing_is_an_error_unless_it_is_optional(
    cli, tmp_path, command
):
    write_trace(GRAPH, tmp_path / "trace")
    misspelt = """kind = "linear"; place = "accelerator"
                  module_path = "model.layer.*"; place = "accelerator\""""
    policy_file(tmp_path, misspelt)
    done = cli(*command.split(), "trace", "--policy", "mine.toml")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: mine: rule 2 (module_path = model.layer.*) matches nothing in toy, prefill: "
        "no op has module_path model.layer.*. Did you mean model.layers."
    )
    policy_file(tmp_path, misspelt + "; optional = true")
    done = cli(*command.split(), "trace", "--policy", "mine.toml")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: mine.toml: no op matches the rule module_path = model.layer.*\n"
    )


NO_ATTENTION = "found no attention in this trace, so it is the same as offload-linear"


def one_linear() -> OpGraph:
    build = Builder()
    x = build.input("x", ("batch", "seq", 4))
    weight = build.parameter("weight", (6, 4))
    return build.finish(build.op("linear", x, weight, shape=("batch", "seq", 6), kind=Kind.LINEAR))


@pytest.mark.parametrize(
    ("policy", "caution"),
    [
        ("all-home", []),
        ("offload-linear", []),
        ("fuse-attention", [NO_ATTENTION]),
        ("flash-attention", [NO_ATTENTION]),
    ],
)
def test_a_policy_for_attentions_says_when_there_is_none(policy, caution):
    graph, rules = one_linear(), load_policy(policy)
    assert cautions(graph, rules) == caution
    assert cautions(GRAPH, rules) == []
    if caution:  # and it is true
        placements = [
            apply_policy(graph, load_policy(name), home="tee", accelerators=("gpu",)).devices
            for name in (policy, "offload-linear")
        ]
        assert placements[0] == placements[1]


@pytest.mark.slow
def test_what_a_model_need_not_have_is_not_warned_of(traced):
    for name in fixed_policy_names():
        for attn in ("eager", "sdpa"):  # no K to spread
            graph = traced("gpt2", seq=8, attn=attn, overrides={"n_layer": 2})
            assert cautions(graph, load_policy(name)) == []


def test_every_policy_that_does_less_than_it_says_is_warned_of(cli, tmp_path):
    write_trace(annotate(one_linear()), tmp_path / "trace")
    done = cli("cutedge", "compare", "trace")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"warning: {name}: {NO_ATTENTION}" for name in ("fuse-attention", "flash-attention")
    ]


# --- names of files -------------------------------------------------------------------------------


@pytest.mark.parametrize("shipped", fixed_policy_names())
def test_a_file_called_like_a_policy_of_cutedge_is_refused(tmp_path, shipped):
    """Its tables would lie where those of the shipped one belong."""
    path = tmp_path / f"{shipped}.toml"
    path.write_text(HEADER.format(default="home"), encoding="utf-8")
    with pytest.raises(InputError, match=f"{shipped}: rename the file, e.g. my-{shipped}.toml"):
        load_policy(str(path))
    renamed = path.rename(tmp_path / f"my-{shipped}.toml")
    assert load_policy(str(renamed)).name == f"my-{shipped}"


def test_two_files_of_one_name_are_not_compared(cli, tmp_path):
    write_trace(GRAPH, tmp_path / "trace")
    for folder, place in (("a", "home"), ("b", "accelerator")):
        (tmp_path / folder).mkdir()
        policy_file(tmp_path / folder, f'kind = "linear"; place = "{place}"')
    done = cli("cutedge", "compare", "trace", "--policy", "a/mine.toml", "--policy", "b/mine.toml")
    assert done.returncode == 2
    assert done.stderr == (
        "error: a/mine.toml and b/mine.toml are both called mine, and their tables would be in "
        "one directory: rename one of the files\n"
    )
    assert not list((tmp_path / "trace").glob("policy=*"))


def test_a_secret_names_tensors_by_the_stack_and_the_layer_that_make_them():
    """Parameters are made by no op."""
    secret = Secret((("stack", ("*.layers",)), ("layer", ("1",))), "")
    assert {GRAPH.tensors[t].name for t in named_by(GRAPH, secret)} == {"up", "act"}
    assert named_by(GRAPH, Secret((("stack", ("layers",)),), "")) == frozenset()


@pytest.mark.parametrize("layer", ['"1"', "1.5", "true", "[]", '[1, "2"]'])
def test_the_layer_of_a_secret_is_a_whole_number(tmp_path, layer):
    file = tmp_path / "mine.toml"
    text = 'description = "d"\ndefault = "free"\nobjective = "bytes"\n[[secret]]\n'
    file.write_text(f"{text}layer = {layer}\n")
    with pytest.raises(InputError, match="secret 1: layer must be a whole number or a list"):
        load_policy(str(file))

"""What crosses in a run has no secret's values: by the ops, by the numbers, and by the tables."""

import json
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import Phase, given
from hypothesis import strategies as st

from costmodels.links import Links, load_link
from costmodels.machine import Machine
from cutedge.runtime import RunError
from cutedge.runtime.home import _check_there
from cutedge.runtime.leaks import Sight, alike
from cutedge.runtime.lineage import carriers
from cutedge.runtime.plan import make_plan
from cutedge.runtime.wire import Channel
from partition.accounting import account
from partition.optimise import place
from partition.placement import Placement
from partition.policy import Policy, Rule, Secret
from partition.problem import InfeasibleError
from partition.secrets import covered
from partition.setting import Setting
from partition.split import Split
from partition.tables import write_partition
from partition.wire_format import WireFormat
from tests.support.examples import examples
from tests.support.graphs import HOME, describe, graphs, placements
from tests.support.inprocess import invoke
from tests.support.running import MODEL, TOKEN, listening
from tracer.graph import Kind, OpGraph
from tracer.program import Invocation
from tracer.serde import write_trace

SEED = torch.Generator().manual_seed(0)
X = torch.randn(2, 8, 16, generator=SEED)
OTHER = torch.randn(2, 8, 16, generator=SEED)
IDS = torch.randint(100, (1, 8), generator=SEED)
ORDER = torch.randperm(16, generator=SEED)


def equal(one: torch.Tensor, other: torch.Tensor, *dtypes: str) -> bool:
    lengths = frozenset(size for size in (*one.shape, *other.shape) if size >= 4)
    sight = Sight(frozenset(), lengths, frozenset(("float32", *dtypes)))
    return alike(sight.of(one), sight.of(other))


MOVED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda x: x,
    "view": lambda x: x.reshape(2, 8, 4, 4),
    "flat": lambda x: x.flatten(),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "heads": lambda x: x.reshape(2, 8, 4, 4).transpose(1, 2).contiguous(),
    "wider": lambda x: x.double(),
    "slice": lambda x: x[:, 2:5],
    "slice of columns": lambda x: x[..., 3:9],
    "slice of heads": lambda x: x.reshape(2, 8, 4, 4)[:, 1:, :3],
    "gather": lambda x: x.flatten(0, 1)[[3, 3, 9, 12]],
    "rows in another order": lambda x: x.flatten(0, 1)[ORDER],
    "columns in another order": lambda x: x[..., ORDER],
    "rows and columns in another order": lambda x: x.flatten(0, 1)[ORDER][:, ORDER],
    "some rows, columns in another order": lambda x: x[:, :3, ORDER],
    "cat": lambda x: torch.cat([OTHER.to(x.dtype), x], 1),
    "stack": lambda x: torch.stack([OTHER.to(x.dtype), x], -2),
    "pad": lambda x: torch.nn.functional.pad(x, (0, 0, 1, 3)),
    "expand": lambda x: x[:, None].expand(2, 3, 8, 16),
}


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16])
def test_values_are_known_again_wherever_they_are_moved(
    moved: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    x = (X * 1000).to(dtype)
    for sent in (moved(x), moved(x).bfloat16(), moved(x).to(torch.bfloat16).float()):
        assert equal(x, sent, "bfloat16")
        assert equal(sent, x, "bfloat16")


def attended(x: torch.Tensor) -> torch.Tensor:
    """Of causal attention: the first row is that of V, and 1 row of 8 is no leak of V."""
    weights = torch.tril(torch.ones(8, 8)).softmax(-1) * 0 + torch.tril(torch.rand(8, 8))
    return (weights / weights.sum(-1, keepdim=True)) @ x


@pytest.mark.parametrize(
    "sent",
    [
        OTHER,
        X + OTHER,
        X * 2,
        -X,
        X @ torch.randn(16, 16, generator=SEED),
        attended(X),
        X.argsort(),
        torch.zeros(2, 8, 16),
        torch.ones(2, 8, 16),
        torch.eye(16),
        torch.arange(16.0),
        X > 0,
        X[0, :1, :3],
        X.sum(-1),
        X.softmax(-1),
    ],
)
def test_what_arithmetic_makes_has_other_values(sent: torch.Tensor) -> None:
    assert not equal(X, sent, "bfloat16")
    assert not equal(sent, X, "bfloat16")


def test_numbers_one_after_another_tell_nothing() -> None:
    """Places in some order are the same places; token ids are not."""
    assert not equal(torch.arange(8), torch.tensor([3, 1, 2, 0, 7, 6, 5, 4]))
    assert not equal(torch.zeros(8, 8), torch.zeros(8, 8))
    assert not equal(torch.full((2, 16), 0.5), torch.full((2, 16), 0.5))
    assert equal(IDS, IDS.flip(-1).int())
    assert equal(IDS, IDS.float().T)
    assert not equal(IDS, IDS + 1)


# --- by the command -------------------------------------------------------------------------------

FIXED = """description = "t"
default = "home"
[[rule]]
module_path = {}
place = "accelerator"
[[secret]]
{}
"""

AFTER = {
    "view": "x.view(2, 4, 16)",
    "contiguous": "x.transpose(1, 2).contiguous()",
    "cast": "x.bfloat16()",
    "slice": "x[:, 2:7]",
    "permutation": "x[:, self.order]",
    "cat": "torch.cat([other, x], 1)",
}

CODE = f"""
import torch
from torch.nn import Linear


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.other = Linear(16, 16), Linear(16, 16)
        self.after = torch.nn.ModuleDict({{name: Linear(16, 4) for name in {[*AFTER]}}})
        self.after["contiguous"] = Linear(8, 4)
        self.after["cast"].bfloat16()
        self.register_buffer("order", torch.tensor([7, 2, 0, 1, 5, 3, 6, 4]))

    def forward(self, x):
        x, other = self.first(x), self.other(x)
        return {", ".join(f"self.after['{name}']({what})" for name, what in AFTER.items())}


def build():
    return Model(), torch.randn(1, 8, 16)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that hands one tensor on in every way of moving values."""
    file = tmp_path_factory.mktemp("moved") / "moved.py"
    file.write_text(CODE)
    return file


Verify = Callable[..., Any]


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verify]:
    """The command, for a policy by its text or name; one worker serves all the runs here."""
    folder = tmp_path_factory.mktemp("verified")
    file = folder / "mine.toml"
    with listening() as worker, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTEDGE_TOKEN", TOKEN)
        there = ("--worker", f"gpu={worker.host}:{worker.port}", "--out", folder)

        def verify(policy: str, *words: str | Path) -> Any:
            file.write_text(policy)
            policies = ("--policy", file if "\n" in policy else policy)
            return invoke("cutedge", "verify", *words, *policies, *there)

        yield verify


LABELS = 'label = ["attention_scores", "attention_probs"]'


def test_verify_proves_a_secret(verified: Verify) -> None:
    """Linears away: scores, what is added, what is scaled and their softmax are at home."""
    done = verified(FIXED.format('["*_proj", "lm_head"]', LABELS), *MODEL, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["runs"]
    assert found["secrets"] == {
        "secrets": 1,
        "secret_tensors": 4,
        "untrusted": ["gpu"],
        "tensors_compared": found["transfers_measured"],
        "leaks": [],
    }
    assert found["transfers_measured"] > 10


def test_verify_speaks_of_no_secrets_where_there_are_none(verified: Verify) -> None:
    done = verified("offload-linear", *MODEL, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["secrets"] is None


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The placement's own check is out of order: the runtime knows by itself."""
    monkeypatch.setattr("partition.optimise.check_kept", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", AFTER)
@pytest.mark.few(3)
def test_what_carries_a_secret_is_refused_before_it_is_sent(
    name: str, verified: Verify, code: Path
) -> None:
    secret = 'module_path = "first"\nreason = "it is mine"'
    done = verified(FIXED.format(f'"after.{name}"', secret), f"{code}:build", "--json")
    assert done.returncode == 1
    assert "is not sent to worker gpu, which is not trusted: it has the values" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_what_is_made_or_lies_at_a_wrong_place_is_refused(verified: Verify, code: Path) -> None:
    secret = 'module_path = "first"\nreason = "it is mine"'
    for away, how in (("first", "is made by op 1 on"), ("other", None)):
        done = verified(FIXED.format(f'"{away}"', secret), f"{code}:build", "--json")
        assert done.returncode == (how is not None), done.stderr
        assert f"{how} worker gpu, which is not trusted" in done.stderr or how is None
    weight = 'name = "other.weight"'
    done = verified(FIXED.format('"other"', weight), f"{code}:build", "--json")
    assert done.returncode == 1
    assert "lies with worker gpu, which is not trusted: it has the values of a s" in done.stderr


@pytest.mark.usefixtures("unchecked")
def test_values_alone_give_a_leak_away(
    verified: Verify, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at the ops: each way in which the tensor is handed on is found by its numbers.

    ``other`` is made of the same input by another weight, and is no leak.
    """
    monkeypatch.setattr("cutedge._verify.carriers", lambda *_: {})
    secret = 'module_path = "first"'
    for option in ([], ["--wire-dtype", "bfloat16"]):
        policy = FIXED.format('["after.*", "other"]', secret)
        done = verified(policy, f"{code}:build", "--json", *option)
        assert done.returncode == 1
        found = json.loads(done.stdout)["runs"][0]["secrets"]
        assert len(found["leaks"]) == len(AFTER), found
        assert found["tensors_compared"] == 2 + 2 * len(AFTER)
        assert all("has the values of a secret (module_path = first)" in t for t in found["leaks"])
        assert "mine: view" in done.stderr
        assert " from tee to gpu in call " in done.stderr
    done = verified(FIXED.format('["first"]', secret), f"{code}:build", "--json")
    assert done.returncode == 1  # what it made it has seen
    assert " from gpu to tee in call 0 has the values of a secret" in done.stderr
    monkeypatch.undo()
    done = verified(FIXED.format('["other"]', secret), f"{code}:build")
    assert done.returncode == 0, done.stderr
    assert (
        "mine, secrets: 8 tensors of 1 secret kept from gpu; 2 tensors that crossed compared with "
        "their values: not one is equal\n" in done.stdout
    )


# --- by the tables --------------------------------------------------------------------------------

TARGETS = {
    "clone": (0,),
    "contiguous": (0,),
    "_to_copy": (0,),
    "slice": (0,),
    "index": (0,),
    "permute": (0,),
    "view": (0,),
    "split": (0,),
    "constant_pad_nd": (0,),
    "masked_fill": (0, 2),
    "cat": None,
    "stack": None,
    "maximum": None,
    "where": (1, 2),
    "embedding": (0,),
    "exp": (),
    "silu": (),
    "pow": (),
    "matmul": (),
    "softmax": (),
    "rms_norm": (),
    "linear": (),
}
"""Name of an op -> the arguments whose values are in its results, as torch documents it; all where
None."""


BODY = frozenset(Kind) - {Kind.INPUT, Kind.OUTPUT, Kind.CONSTANT}


@st.composite
def cases(draw: st.DrawFn) -> tuple[OpGraph, list[str], Policy, tuple[str, ...], Placement]:
    """A graph, the names of secret tensors in it, a policy that keeps them, the accelerators, and
    a placement that makes the secrets at home and does not ask where they go."""
    graph = draw(graphs())
    ops = [
        replace(op, target=f"aten.{draw(st.sampled_from([*TARGETS]))}.default")
        if op.target.startswith("aten.") and not op.is_view and op.kind is not Kind.OTHER
        else op
        for op in graph.ops
    ]
    graph = graph.with_ops(ops)
    activations = [t.name for t in graph.tensors if graph.crosses(t)]
    names = draw(st.lists(st.sampled_from(activations), min_size=1, max_size=2))
    names += draw(st.lists(st.sampled_from([t.name for t in graph.tensors]), max_size=1))
    secret = Secret((("name", tuple(names)),), "")
    kinds = draw(st.permutations(sorted({op.kind.value for op in ops if op.kind in BODY})))[:2]
    default = draw(st.sampled_from(["free", "free", "home"]))
    rules = tuple(Rule((("kind", (kind,)),), "accelerator", "", optional=True) for kind in kinds)
    objective = {"bytes": 1} if default == "free" else None
    policy = Policy("mine", "t", default, rules, objective, secrets=(secret,))
    accelerators = draw(st.sampled_from([("gpu",), ("gpu", "npu")]))
    anywhere = draw(placements(graph, accelerators))
    own = {t.op for t in graph.tensors if t.name in names}
    devices = [d and (HOME if op in own else d) for op, d in enumerate(anywhere.devices)]
    return graph, names, policy, accelerators, replace(anywhere, devices=devices)


def rows(folder: Path, table: str, *columns: str) -> list[tuple[Any, ...]]:
    [file] = folder.rglob(f"{table}.parquet")
    return list(zip(*pq.read_table(file, columns=list(columns)).to_pydict().values(), strict=True))


def tainted(folder: Path, secret: Collection[str]) -> set[int]:
    """The tensors that moving values alone makes of the secret ones, these and their memory too."""
    tensors = {
        t: (op, name, owner)
        for t, op, name, owner in rows(folder, "tensors", "tensor_id", "op_id", "name", "alias_of")
    }
    target = dict(rows(folder, "ops", "op_id", "target"))
    edges = rows(folder, "edges", "dst_op", "tensor_id", "arg_index")
    owner = {
        t: t if op is not None or over is None else over for t, (op, _, over) in tensors.items()
    }
    found = {owner[t] for t, (_, name, _) in tensors.items() if name in secret}
    for op in sorted(target):  # in the order that they run in
        moved = TARGETS.get(target[op].split(".")[1] if "." in target[op] else "", ())
        if any(
            owner[t] in found and (moved is None or arg in moved)
            for dst, t, arg in edges
            if dst == op
        ):
            found |= {t for t, (maker, _, _) in tensors.items() if maker == op}
    return {t for t in tensors if owner[t] in found}


def present(folder: Path, device: str) -> set[int]:
    """The tensors that are made on a device, come there or lie there."""
    maker = dict(rows(folder, "tensors", "tensor_id", "op_id"))
    edges = rows(folder, "edges", "dst_op", "tensor_id")
    where = dict(rows(folder, "placement", "op_id", "device"))
    there = {t for t, dst in rows(folder, "transfers", "tensor_id", "dst_device") if dst == device}
    there |= {t for t, op in maker.items() if op is not None and where[op] == device}
    front = [t for op, t in edges if where[op] == device]
    while front:  # what is stored, and what of it is worked out wherever it is read
        tensor = front.pop()
        if maker[tensor] is None or where[maker[tensor]] is None:
            there.add(tensor)
            front += [t for op, t in edges if op == maker[tensor]]
    return there


def is_refused(
    graph: OpGraph, placement: Placement, secret: Collection[int], channel: Channel
) -> bool:
    """Whether a run of a placement is refused, by what it makes, holds and sends; none is sent."""
    invocations = {
        op.id: Invocation([{"value": t.id} for t in graph.inputs(op.id)], {})
        for op in graph.ops
        if op.kind not in (Kind.INPUT, Kind.OUTPUT)
    }
    found = carriers(graph, invocations, {"one": secret})
    cover = covered(graph, secret)
    assert found.keys() == cover, f"{found.keys() ^ cover} {describe(graph, placement)}"
    plan = make_plan(graph, invocations, placement)
    channel.forbidden = found
    try:
        for device in plan.accelerators.values():
            _check_there(device, channel)
        for call in plan.calls:
            channel.check([*call.sent, *(t for sent in call.peers.values() for t in sent)])
    except RunError:
        return True
    return False


def test_no_placement_shows_a_secret_and_the_runtime_would_refuse_it(tmp_path: Path) -> None:
    """Random graphs, secrets and policies: what is kept, a taint over the tables finds kept.

    A random placement beside each, which keeps nothing: what the taint finds the runtime refuses.
    """
    outcomes: Counter[str] = Counter()
    link = Links(load_link("none"))
    one, other = socket.socketpair()
    channel = Channel(one, "worker gpu")

    @examples(10, derandomize=True, database=None, phases=[Phase.generate])
    @given(cases())
    def tried(case: tuple[OpGraph, list[str], Policy, tuple[str, ...], Placement]) -> None:
        graph, names, policy, accelerators, anywhere = case
        setting = Setting(Machine(HOME, accelerators, link), time_limit=5.0)
        named = {t.id for t in graph.tensors if t.name in names}
        try:
            kept = [place(graph, policy, setting).placement]
        except InfeasibleError:
            kept = []
        outcomes["refused"] += not kept
        for placement in (*kept, anywhere):
            for file in tmp_path.rglob("*.parquet"):
                file.unlink()
            traffic = account(graph, placement, link)
            trace_id = write_trace(graph, tmp_path)
            made = Split(
                graph, trace_id, "mine", placement, traffic, link.name, link, WireFormat(), "run"
            )
            write_partition(made, tmp_path)
            taint = tainted(tmp_path, names)
            assert taint <= covered(graph, named), describe(graph, placement)
            leaks = taint & set[int]().union(*(present(tmp_path, d) for d in accelerators))
            refused = is_refused(graph, placement, named, channel)
            if placement is anywhere:
                assert refused or not leaks, describe(graph, placement)
                outcomes["leaks"] += bool(leaks)
                outcomes["beyond what is named"] += bool(leaks - named)
            else:
                assert not leaks, describe(graph, placement)
                assert not refused, describe(graph, placement)
                outcomes["kept, and used"] += bool(placement.accelerators)

    with one, other:
        tried()
    assert min(outcomes.values()) > 0, outcomes

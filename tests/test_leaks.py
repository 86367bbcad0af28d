"""What crosses in a run has no secret's values: by the ops, by the numbers, and by the tables."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cutedge.runtime.leaks import Sight, alike
from tests.inprocess import invoke
from tests.running import MODEL, TOKEN, listening

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
        OTHER, X + OTHER, X * 2, -X, X @ torch.randn(16, 16, generator=SEED), attended(X),
        X.argsort(), torch.zeros(2, 8, 16), torch.ones(2, 8, 16), torch.eye(16), torch.arange(16.0),
        X > 0, X[0, :1, :3], X.sum(-1), X.softmax(-1),
    ],
)  # fmt: skip
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
    found = json.loads(done.stdout)
    assert found["secrets"] == {
        "secrets": 1, "secret_tensors": 4, "untrusted": ["gpu"],
        "tensors_compared": found["transfers_measured"], "leaks": [],
    }  # fmt: skip
    assert found["transfers_measured"] > 10


def test_verify_speaks_of_no_secrets_where_there_are_none(verified: Verify) -> None:
    done = verified("offload-linear", *MODEL, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["secrets"] is None


def test_what_a_wrong_placement_shows_is_refused_before_it_is_sent(
    verified: Verify, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The placement's own check is out of order: the runtime knows by itself."""
    monkeypatch.setattr("partition.optimise.check_kept", lambda *_: None)
    secret = 'module_path = "first"\nreason = "it is mine"'
    for name in AFTER:
        done = verified(FIXED.format(f'"after.{name}"', secret), f"{code}:build", "--json")
        assert done.returncode == 1
        assert "is not sent to worker gpu, which is not trusted: it has the values" in done.stderr
    for place, how in (("first", "is made by op 1 on"), ("other", None)):
        done = verified(FIXED.format(f'"{place}"', secret), f"{code}:build", "--json")
        assert done.returncode == (how is not None), done.stderr
        assert f"{how} worker gpu, which is not trusted" in done.stderr or how is None
    weight = 'name = "other.weight"'
    done = verified(FIXED.format('"other"', weight), f"{code}:build", "--json")
    assert done.returncode == 1
    assert "lies with worker gpu, which is not trusted: it has the values of a s" in done.stderr


def test_values_alone_give_a_leak_away(
    verified: Verify, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at the ops: each way in which the tensor is handed on is found by its numbers.

    ``other`` is made of the same input by another weight, and is no leak.
    """
    monkeypatch.setattr("partition.optimise.check_kept", lambda *_: None)
    monkeypatch.setattr("cutedge.runtime.lineage.carriers", lambda *_: {})
    secret = 'module_path = "first"'
    for option in ([], ["--wire-dtype", "bfloat16"]):
        policy = FIXED.format('["after.*", "other"]', secret)
        done = verified(policy, f"{code}:build", "--json", *option)
        assert done.returncode == 1
        found = json.loads(done.stdout)["secrets"]
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

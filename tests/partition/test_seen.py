"""What untrusted devices see, in tables, `compare` and `report`."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from tests.support.inprocess import invoke

FREE = 'description = "x"\ndefault = "free"\nobjective = "bytes"\n'
FREE += '[[rule]]\nkind = ["linear"]\nmodule_path = "*fc1"\nplace = "accelerator"\n'
NAMED = ("offload-linear", "fuse-attention", "all-home")
POLICIES = tuple(word for name in NAMED for word in ("--policy", name))


def asked(*words: str | Path) -> Any:
    done = invoke(*map(str, words), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def query(sql: str, folder: str | Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = asked("cutedge", "query", sql, "--trace", folder)["rows"]
    return rows


def compared(*words: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = asked("cutedge", "compare", "t", *words)["partitions"]
    return entries


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with chdir(tmp_path_factory.mktemp("seen")):
        assert invoke("trace", "edge-10m", "--seq", "8", "--out", "t").returncode == 0
        Path("free.toml").write_text(FREE)
        yield Path()


def test_the_tables_say_what_is_seen():
    """Whatever crosses to an untrusted device it sees plain; the map is that of the JSON."""
    found = asked("partition", "t", "--policy", "offload-linear")
    folder = found["folder"]
    (row,) = query("SELECT seen, seen['gpu']['qkv'] AS qkv FROM summary", folder)
    assert row == {"seen": found["seen"], "qkv": "plain"}
    sent = query("SELECT DISTINCT what FROM transfers WHERE dst_device = 'gpu'", folder)
    assert {one["what"] for one in sent} >= {"prompt_tokens", "hidden_states", "attention_scores"}
    for one in sent:
        assert found["seen"]["gpu"][one["what"]] == "plain"
    counted = query(
        "SELECT what, count(*) AS sent FROM transfers WHERE dst_device = 'gpu' GROUP BY what",
        folder,
    )
    (exposed,) = found["exposed"]
    told = {one["what"]: one["sent"] for one in exposed["seen"] if one["sent"]}
    assert told == {one["what"]: one["sent"] for one in counted}
    by_label = query(
        "SELECT DISTINCT label, what FROM transfers WHERE label IN ('q', 'k', 'v', 'logits')",
        folder,
    )
    assert {(one["label"], one["what"]) for one in by_label} == {
        ("q", "qkv"),
        ("k", "qkv"),
        ("v", "qkv"),
        ("logits", "logits"),
    }


def test_the_tables_say_what_is_secret():
    """A trusted accelerator may have it; one that is not gets none of it."""
    options = ("--policy", "offload-linear", "--secret", "qkv", "--accel", "h100-cc")
    trusted = asked("partition", "t", *options)
    assert trusted["seen"] == {}
    rows = query(
        "SELECT secret, what, count(*) AS n FROM transfers GROUP BY ALL", trusted["folder"]
    )
    # Of 4 layers q, k and v come back, and what is made of them by views goes there again.
    assert sum(one["n"] for one in rows if one["secret"]) == 4 * 3 * 2
    assert {one["what"] for one in rows if one["secret"]} == {"qkv"}
    kept = asked("partition", "t", "--policy", "free.toml", "--secret", "attention_scores")
    (row,) = query(
        "SELECT count(*) FILTER (secret AND dst_device <> 'tee') AS shown, count(*) AS n "
        "FROM transfers",
        kept["folder"],
    )
    assert row["shown"] == 0 < row["n"]


def test_compare_sorts_and_filters_by_what_is_seen():
    found = compared(*POLICIES)
    assert [one["policy"] for one in found] == list(NAMED)
    by_bytes = compared(*POLICIES, "--sort", "bytes")
    assert [one["policy"] for one in by_bytes] == ["all-home", "fuse-attention", "offload-linear"]
    fewest = compared(*POLICIES, "--sort", "seen")
    assert fewest[0]["policy"] == "all-home"
    (kept,) = compared(*POLICIES, "--unseen", "qkv")
    assert (kept["policy"], kept["baseline"]) == ("all-home", "offload-linear")
    assert kept["saved_bytes"] == found[0]["total_payload_bytes"]
    shown = invoke("cutedge", "compare", "t", *POLICIES, "--unseen", "qkv").stdout
    assert "without fuse-attention: gpu sees q/k/v (plain)" in shown
    none = ("--policy", "offload-linear", "--unseen", "qkv")
    assert compared(*none) == []
    trusted = compared(*POLICIES, "--accel", "h100-cc", "--unseen", "qkv")
    assert [one["policy"] for one in trusted] == list(NAMED)  # which may see all of it


def test_what_is_to_be_unseen_is_a_sort_of_tensor():
    done = invoke("cutedge", "compare", "t", "--unseen", "qvk")
    assert done.returncode == 2
    assert "Did you mean qkv?" in done.stderr
    done = invoke("cutedge", "compare", "t", "--over", "seq", "8..16", "--unseen", "qkv")
    assert done.returncode == 2


def test_compare_takes_secrets_as_partition_does():
    secret = ("--secret", "attention_scores")
    policies = ("--policy", "offload-linear", "--policy", "free.toml")
    (entry,) = compared(*policies, *secret)
    alone = asked("partition", "t", "--policy", "free.toml", *secret)
    assert {"version": 1} | {key: entry[key] for key in alone if key != "version"} == alone
    assert entry["baseline"] == entry["policy"]  # offload-linear shows the scores
    shown = invoke("cutedge", "compare", "t", *policies, *secret).stdout
    assert "without offload-linear: " in shown
    assert "shows attention_scores to gpu" in shown
    refused = invoke("cutedge", "compare", "t", *policies, *secret, "--baseline", "offload-linear")
    assert refused.returncode == 2
    assert "name another --baseline" in refused.stderr
    unknown = invoke("cutedge", "compare", "t", *policies, "--secret", "attention_score")
    assert unknown.returncode == 2
    assert "Did you mean attention_scores" in unknown.stderr


def test_what_is_made_of_a_secret_is_told_with_its_ops():
    words = ("t", "--policy", "free.toml", "--secret", "attention_scores")
    found = asked("partition", *words)["derived"]["gpu"]
    targets = {row["op_id"]: row["target"] for row in query("SELECT op_id, target FROM ops", "t")}
    assert found
    for one in found:
        assert one["targets"] == [targets[op] for op in one["ops"]]
    nearest = found[0]
    names = ", ".join(name.split(".")[1] for name in nearest["targets"][:4])
    said = invoke("partition", *words).stdout
    assert f"of what is secret: {len(nearest['ops'])} op" in said
    assert f" away ({names}" in said


def test_a_report_says_in_words_what_is_seen():
    done = invoke("report", "t", "--policy", "offload-linear", "--out", "r.html")
    assert done.returncode == 0, done.stderr
    page = Path("r.html").read_text()
    seen = asked("partition", "t", "--policy", "offload-linear")["exposed"][0]["words"]
    assert seen.startswith("plain: prompt tokens, ")
    assert f"What gpu sees is {seen}." in page
    done = invoke(
        "report", "t", "--policy", "free.toml", "--secret", "attention_scores", "--out", "s.html"
    )
    assert done.returncode == 0, done.stderr
    assert "attention_scores secret" in Path("s.html").read_text()

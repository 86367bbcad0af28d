"""Packings through the library and the commands that take ``--pack``."""

import json

import duckdb
import pytest

import cutedge
from costmodels.packing import load_packing
from partition.tables import read_split
from tests.support.inprocess import invoke
from tracer.errors import InputError

SMALL = {"num_hidden_layers": 1}
SLOW = "tee-tdx+h100-cc@1gbe"


@pytest.fixture(scope="module")
def traced():
    return cutedge.trace("edge-10m", seq=16, overrides=SMALL)


def test_columns_say_what_is_packed_and_are_read_back(traced, tmp_path):
    made = traced.partition("offload-linear", machine=SLOW, pack=["range", "zstd:16KiB", "q8_0"])
    rows = made.transfers.to_pylist()
    ids, *others = sorted(rows, key=lambda row: row["packing"] != "range")
    # 16 ids below 26,010 or so: 2 bytes each; floats of 16 KiB and more by zstd
    assert (ids["packing"], ids["payload_bytes"], ids["plain_bytes"]) == ("range", 32, 128)
    assert ids["payload_status"] == "exact"
    for row in others:
        large = row["plain_bytes"] >= 2**14
        assert row["packing"] == ("zstd" if large else "q8_0")
        assert row["payload_status"] == ("estimate" if large else "exact")
        if not large:
            row_bytes = 64 if (row["label"] or "").startswith("attention_") else 128
            if (
                row["label"] != "attention_output"
            ):  # 34 bytes for 32 values, or for rows of 16 scores
                assert row["payload_bytes"] * row_bytes == row["plain_bytes"] * 34
    summary = made.summary
    assert (summary["pack"], summary["payload_status"]) == ("range+zstd:16KiB+q8_0", "estimate")
    assert summary["plain_payload_bytes"] == sum(row["plain_bytes"] for row in rows)
    assert "wire=float32+range+zstd%3A16KiB+q8_0" in str(made.split.folder)
    made.save(tmp_path)
    read = read_split(traced.save(tmp_path), tmp_path / made.split.folder)
    assert read.traffic.transfers == made.split.traffic.transfers
    assert read.wire == made.split.wire
    plain = traced.partition("offload-linear", machine=SLOW)
    assert plain.summary["pack"] is None
    assert plain.summary["plain_payload_bytes"] == plain.summary["total_payload_bytes"]


def test_the_optimum_is_of_the_packed_seconds(traced, tmp_path):
    """A packing that costs nothing, on a slow link: what went nowhere before goes away."""
    free = tmp_path / "free.toml"
    free.write_text(
        "description = 'blocks for nothing'\ncodec = 'blocks'\n"
        + "".join(
            f"[{key}]\nvalue = {value}\nsource = 'this test'\n"
            for key, value in {
                "group_elements": 32,
                "element_bits": 4,
                "pack_seconds_per_byte": 0,
                "unpack_seconds_per_byte": 0,
            }.items()
        )
    )
    costly = tmp_path / "costly.toml"
    costly.write_text(free.read_text().replace("value = 0\n", "value = 1\n", 1))
    found = {
        name: traced.partition("fastest", machine=SLOW, pack=pack and [str(pack)]).summary
        for name, pack in (("plain", None), ("free", free), ("costly", costly))
    }
    assert all(one["optimal"] for one in found.values())
    assert found["free"]["run_seconds"] <= found["plain"]["run_seconds"]
    assert found["plain"]["run_seconds"] <= found["costly"]["run_seconds"]
    forced = {
        name: traced.partition("offload-linear", machine=SLOW, pack=pack and [str(pack)]).summary
        for name, pack in (("plain", None), ("free", free), ("costly", costly))
    }
    # every payload byte goes at the bandwidth of the link, and one second a byte is lost
    saved = forced["plain"]["total_payload_bytes"] - forced["free"]["total_payload_bytes"]
    faster = forced["plain"]["seconds"] - forced["free"]["seconds"]
    assert faster == pytest.approx(saved / 117685305)
    slower = forced["costly"]["seconds"] - forced["free"]["seconds"]
    packed = traced.partition(
        "offload-linear", machine=SLOW, pack=[str(free)]
    ).transfers.to_pylist()
    assert slower == pytest.approx(sum(r["plain_bytes"] for r in packed if r["packing"] == "free"))


def test_what_cannot_be_packed_is_said(traced, tmp_path):
    with pytest.raises(InputError, match=r"unknown packing 'zst'.*Did you mean zstd"):
        traced.partition(pack="zst")
    with pytest.raises(InputError, match="several of which the fastest is taken begin with best"):
        traced.partition(pack="q8_0,zstd")
    with pytest.raises(
        InputError, match="chooses by seconds, and the link zmq-ipc has no bandwidth"
    ):
        traced.partition(pack="best")
    with pytest.raises(InputError, match="of one link, and here are 1gbe, b=pcie4-x16"):
        traced.partition(pack="best", accel=["a", "b"], link=["a=1gbe", "b=pcie4-x16"])
    rules = tmp_path / "mine.toml"
    rules.write_text(
        "description = 'd'\ndefault = 'accelerator'\n[[pack]]\nlabel = 'logts'\npacking = 'q8_0'\n"
    )
    with pytest.raises(
        InputError, match=r"pack 1 .label = logts. packs nothing.*Did you mean logits"
    ):
        traced.partition(str(rules))


def test_a_rule_may_choose_the_fastest(traced, tmp_path):
    """As the option does, of the tensors that it names; by a link without seconds it cannot."""
    rules = tmp_path / "chosen.toml"
    rules.write_text(
        "description = 'd'\ndefault = 'accelerator'\n[[rule]]\nkind = 'norm'\nplace = 'home'\n"
        "[[pack]]\nkind = 'norm'\npacking = 'best,q8_0'\nat_least_bytes = 300\n"
    )
    plain = tmp_path / "plain.toml"
    plain.write_text(rules.read_text().partition("[[pack]]")[0])
    chosen = traced.partition(str(rules), machine=SLOW).transfers.to_pylist()
    every = traced.partition(str(plain), machine=SLOW, pack="best,q8_0:300").transfers.to_pylist()
    made_by_norms = {one["transfer_id"] for one in chosen if one["packing"] != "plain"}
    assert made_by_norms
    for one, other in zip(chosen, every, strict=True):
        if one["transfer_id"] in made_by_norms:
            named = {key: one[key] for key in ("share", "wire", "policy")}
            assert one == {**other, **named}
    with pytest.raises(InputError, match=r"\[\[pack\]\] packing = best chooses by seconds"):
        traced.partition(str(rules))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["offload-linear", "packed"])
@pytest.mark.few(1)
def test_a_generation_and_a_sweep_pack_as_partition_does(policy, tmp_path):
    """By rules and by options, and from a size on that some steps have and others do not."""
    rules = tmp_path / "packed.toml"
    rules.write_text(
        "description = 'd'\ndefault = 'accelerator'\n[[rule]]\nkind = 'norm'\nplace = 'home'\n"
        "[[pack]]\nlabel = 'logits'\npacking = 'q4_0'\n"
    )
    by = str(rules) if policy == "packed" else policy
    packs = ["range+zstd:2KiB+q8_0", "best,q8_0:200"]
    options = {"machine": SLOW, "pack": ["range", "zstd:2KiB", "q8_0"]}  # 512 scores of 4 heads
    made = cutedge.generate("edge-10m", prompt=127, new=4, policy=by, **options)
    steps = [
        cutedge.trace("edge-10m", phase="decode", past=step.past).partition(by, **options).summary
        for step in made.steps
    ]
    for step, wanted in zip(made.steps, steps, strict=True):
        assert step.total_payload_bytes == wanted["total_payload_bytes"]
        assert step.payload_status == wanted["payload_status"]
        assert step.run_seconds == pytest.approx(wanted["run_seconds"], rel=1e-12)
    assert (made.summary["pack"], made.payload_status) == ("range+zstd:2KiB+q8_0", "estimate")
    grid = {"phase": "decode", "past": [step.past for step in made.steps], "policy": by}
    machine = {"pair": "tee-tdx+h100-cc", "link": "1gbe", "pack": ["none", *packs]}
    swept = cutedge.sweep("edge-10m", tmp_path / "s", jobs=1, **grid, **machine)
    assert swept.rows == 9
    options["pack"] = packs[1]
    steps += [
        cutedge.trace("edge-10m", phase="decode", past=step.past).partition(by, **options).summary
        for step in made.steps
    ]
    rows = duckdb.sql(
        f"FROM '{tmp_path}/s/**/*.parquet' WHERE pack IS NOT NULL ORDER BY pack DESC, past"
    )
    names = ("pack", "calls", "total_payload_bytes", "seconds", "run_seconds", "payload_status")
    wanted = [tuple(step[name] for name in names) for step in steps]
    assert rows.select(*names).fetchall() == wanted


def test_a_cache_that_moves_is_packed():
    """4 layers x 2 x 256 values x 64 tokens in blocks: 34 bytes for 32."""
    policies = {"policy": "all-home", "decode_policy": "min-cut"}
    made = cutedge.generate("edge-10m", prompt=64, new=3, machine=SLOW, pack="q8_0", **policies)
    assert made.moved_cache_bytes == 4 * 2 * 256 * 64 // 32 * 34
    plain = cutedge.generate("edge-10m", prompt=64, new=3, machine=SLOW, **policies)
    assert plain.moved_cache_bytes == 4 * 2 * 256 * 64 * 4
    # blocks take 3.86 ns a byte before packing, and save 1 - 17/64 of it on the link
    packing = 3.86e-9 * plain.moved_cache_bytes
    saved = (plain.moved_cache_bytes - made.moved_cache_bytes) / 117685305
    assert made.move_seconds == pytest.approx(plain.move_seconds + packing - saved)


@pytest.mark.slow
def test_what_a_run_measures_is_a_packing(traced, tmp_path, monkeypatch):
    """zstd over sockets: the same answer, the bytes as counted, and a file with what was measured."""
    monkeypatch.chdir(tmp_path)
    words = ["edge-10m", "--seq", "16", "--set", "num_hidden_layers=1"]
    done = invoke("verify", *words, "--pack", "zstd", "--calibrate", "here", "--json")
    assert done.returncode == 0, done.stderr
    (ran,) = json.loads(done.stdout)["runs"]
    assert ran["bytes_equal"]
    assert ran["answer_equal"]
    packed = ran["packed"]
    assert (packed["is_lossless"], packed["max_abs_difference"]) == (True, 0.0)
    assert sum(one["transfers"] for one in packed["groups"]) == ran["transfers_measured"]
    total = sum(one["payload_bytes_measured"] for one in packed["groups"])
    assert total == ran["total_payload_bytes_measured"]
    floats = [one for one in packed["groups"] if one["dtype"] == "float32"]
    ratio = sum(one["payload_bytes_measured"] for one in floats) / sum(
        one["plain_bytes"] for one in floats
    )
    made = load_packing("here/zstd.toml")
    assert made.ratios["float32"] == pytest.approx(ratio, abs=5e-5)
    assert made.seconds_per_byte > 0
    assert "random weights of seed 0" in made.sources["float32_ratio"]
    # the measured ratio predicts a run of the same closely
    again = cutedge.load(str(traced.save(tmp_path / "t"))).partition(pack="here/zstd.toml")
    assert again.summary["total_payload_bytes"] == pytest.approx(total, rel=0.01)

"""Packings through the library and the commands that take ``--pack``."""

import json

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
    with pytest.raises(InputError, match="leave --pack and"):
        cutedge.generate("edge-10m", prompt=16, new=2, overrides=SMALL, pack="q8_0")
    rules = tmp_path / "mine.toml"
    rules.write_text(
        "description = 'd'\ndefault = 'accelerator'\n[[pack]]\nlabel = 'logts'\npacking = 'q8_0'\n"
    )
    with pytest.raises(
        InputError, match=r"pack 1 .label = logts. packs nothing.*Did you mean logits"
    ):
        traced.partition(str(rules))
    rules.write_text(rules.read_text().replace("logts", "logits"))
    with pytest.raises(InputError, match="mine packs tensors, and a sweep counts them as they lie"):
        cutedge.sweep("edge-10m", seq=16, policy=str(rules), out=str(tmp_path / "s"))


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

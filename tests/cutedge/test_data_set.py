"""Runs of all kinds, wherever they are written, read as one data set by what analysts use."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

import cutedge
from cutedge._workspace import default_folder

POLICIES = ("offload-linear", "fuse-attention")
MACHINES = ("tee-tdx+rtx-4090@pcie4-x16", "ryzen-7950x+h100-sxm@pcie5-x16")
WIRES = (None, "float16")
TINY = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_layer": 1,
    "n_embd": 32,
    "n_head": 2,
    "vocab_size": 50,
    "n_positions": 64,
}
SHORT = {"num_hidden_layers": 1}
RUN = "model, variant, phase, past, seq, policy, wire, residency, machine"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """(a folder, how many partitions are below it, the bytes that cross in all of them)"""
    root, count, total = tmp_path_factory.mktemp("runs"), 0, 0
    asked: list[tuple[Any, dict[str, Any], str | None]] = [
        ("edge-10m", {"seq": 16}, None),
        ("edge-10m", {"seq": 16, "overrides": SHORT}, None),
        ("edge-10m", {"phase": "decode", "past": 8, "overrides": SHORT}, None),
        ("edge-10m", {"seq": 16, "dtype": "bfloat16", "overrides": SHORT}, "cutedge-out/mine"),
        (TINY, {"seq": 8}, "elsewhere"),
    ]
    for model, options, out in asked:
        traced = cutedge.trace(model, **options)
        folder = traced.save(root / (out or default_folder(traced.graph)))
        for policy, machine, wire in product(POLICIES, MACHINES, WIRES):
            split = traced.partition(policy, machine=machine, wire_dtype=wire)
            split.save(folder)
            count += 1
            total += split.summary["total_payload_bytes"]
    return root, count, total


@pytest.mark.slow
def test_forty_runs_are_forty_in_duckdb(runs: tuple[Path, int, int]) -> None:
    root, count, total = runs
    rows = f"read_parquet('{root}/**/summary.parquet', union_by_name=true)"
    each = f"SELECT DISTINCT {RUN} FROM {rows}"
    assert duckdb.sql(f"SELECT count(*) FROM ({each})").fetchall() == [(count,)]
    assert count == 40
    transfers = f"read_parquet('{root}/**/transfers.parquet', union_by_name=true)"
    assert duckdb.sql(f"SELECT sum(payload_bytes) FROM {transfers}").fetchall() == [(total,)]
    assert cutedge.query("SELECT count(*) AS n FROM summary", root).to_pylist() == [{"n": count}]


@pytest.mark.slow
def test_forty_runs_are_forty_in_polars(runs: tuple[Path, int, int]) -> None:
    root, count, total = runs
    table = pl.read_parquet(f"{root}/**/transfers.parquet", hive_partitioning=False)
    assert table["payload_bytes"].sum() == total
    assert table.select(RUN.split(", ")).n_unique() == count


@pytest.mark.slow
def test_forty_runs_are_forty_in_pandas(runs: tuple[Path, int, int]) -> None:
    root, count, total = runs
    files = sorted(root.glob("**/transfers.parquet"))
    table = pd.concat([pd.read_parquet(file, partitioning=None) for file in files])
    assert table["payload_bytes"].sum() == total
    assert len(table.groupby(RUN.split(", "))) == count
    split = cutedge.trace("edge-10m", seq=16).partition("offload-linear")
    moved = split.transfers.to_pandas()["payload_bytes"].sum()
    assert moved == split.summary["total_payload_bytes"]


@pytest.mark.slow
def test_forty_runs_are_forty_in_pyarrow(runs: tuple[Path, int, int]) -> None:
    root, count, total = runs
    table = ds.dataset([str(file) for file in root.glob("**/transfers.parquet")]).to_table()
    assert sum(table["payload_bytes"].to_pylist()) == total
    assert table.group_by(RUN.split(", ")).aggregate([]).num_rows == count


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps: 2 policies x 2 lengths in float32, and the same in bfloat16."""
    root = tmp_path_factory.mktemp("sweeps")
    (root / "tiny.json").write_text(json.dumps(TINY))
    for dtype in ("float32", "bfloat16"):
        cutedge.sweep(
            root / "tiny.json",
            root / dtype,
            policy=list(POLICIES),
            seq=[16, 32],
            dtype=dtype,
            jobs=1,
        )
    return root


@pytest.mark.slow
@pytest.mark.slow
def test_rows_of_sweeps_say_what_they_are_of_without_their_paths(swept: Path) -> None:
    marks = ["model", "variant", "phase", "policy", "seq"]
    variants = {"default": "float32", "bfloat16": "bfloat16"}
    wanted = {
        ("tiny", variant, "prefill", policy, seq): cutedge.trace(
            swept / "tiny.json", seq=seq, dtype=dtype
        )
        .partition(policy)
        .summary["total_payload_bytes"]
        for variant, dtype in variants.items()
        for policy in POLICIES
        for seq in (16, 32)
    }
    files = sorted(swept.glob("**/sweep.parquet"))
    figure = "total_payload_bytes"
    duck = duckdb.sql(
        f"SELECT {', '.join(marks)}, {figure} "
        f"FROM read_parquet('{swept}/**/sweep.parquet', hive_partitioning = true)"
    ).fetchall()
    polar = pl.read_parquet(f"{swept}/**/sweep.parquet", hive_partitioning=False)
    arrow = ds.dataset([str(file) for file in files]).to_table().select([*marks, figure])
    panda = pd.concat([pd.read_parquet(file, partitioning=None) for file in files])
    for rows in (
        duck,
        polar.select([*marks, figure]).rows(),
        list(zip(*arrow.to_pydict().values(), strict=True)),
        panda[[*marks, figure]].itertuples(index=False, name=None),
    ):
        assert {tuple(row[:-1]): row[-1] for row in rows} == wanted
    hive = ds.dataset(swept / "bfloat16", partitioning="hive").to_table()
    assert set(hive["variant"].to_pylist()) == {"bfloat16"}

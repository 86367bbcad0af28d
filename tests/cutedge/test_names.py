"""One quantity, one name: the columns of the tables, and the keys of every ``--json``."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from costmodels.cost_table import COSTS
from cutedge._frontier import FRONTIER
from cutedge.runtime.measured import MEASURED_CALLS
from cutedge.sweeping.point_files import SWEEP
from partition.schedule_table import SCHEDULE
from partition.summary_table import SUMMARY
from partition.tables import CALLS, PLACEMENT, TRANSFERS
from tests.support.inprocess import invoke
from tracer.serde import EDGES, OPS, TENSORS

SCHEMAS = {
    "ops": OPS,
    "tensors": TENSORS,
    "edges": EDGES,
    "placement": PLACEMENT,
    "transfers": TRANSFERS,
    "calls": CALLS,
    "summary": SUMMARY,
    "costs": COSTS,
    "sweep": SWEEP,
    "measured_calls": MEASURED_CALLS,
    "schedule": SCHEDULE,
    "frontier": FRONTIER,
}

LINK = {
    "sent_message_framing_bytes": 82,
    "sent_tensor_framing_bytes": 3,
    "received_message_framing_bytes": 7,
    "received_tensor_framing_bytes": 51,
    "sent_bandwidth_bytes_per_second": 1_700_000_000,
    "received_bandwidth_bytes_per_second": 2_300_000_000,
    "sent_latency_seconds": 1.1e-5,
    "received_latency_seconds": 1.3e-5,
}
"""Its two ways differ, and it has framing: no two figures of a run are equal by chance."""

DEVICES = ("--home", "tee-tdx", "--accel", "rtx-4090", "--link", "odd.toml")
CHIP = ("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite")

MIN_CUT = "min-cut-norm-home"
SPLITS = {
    "undescribed": ("--policy", "offload-linear", "--wire-dtype", "bfloat16"),
    "described": ("--policy", MIN_CUT, *DEVICES),
    "forgetful": ("--policy", "offload-linear", "--residency", "call", *DEVICES),
    "chip": ("--policy", "host-chip", "--chips", "4", *CHIP),
    "home": ("--policy", "all-home", *DEVICES),
    "layers": ("--policy", "layers", *DEVICES),
}


def asked(*words: str | Path) -> Any:
    done = invoke(*map(str, words), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def query(sql: str, folder: str | Path = "t") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = asked("cutedge", "query", sql, "--trace", folder)["rows"]
    return rows


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trace of a tiny model and a link whose two ways differ."""
    with chdir(tmp_path_factory.mktemp("names")):
        figures = (f"[{key}]\nvalue = {value}\nsource = 'x'\n" for key, value in LINK.items())
        Path("odd.toml").write_text("description = 'odd'\n" + "".join(figures))
        assert invoke("trace", "edge-10m", "--seq", "8", "--out", "t").returncode == 0
        yield Path()


# --- a partition ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_a_partition_says_what_its_summary_says(split):
    """Every column by its name with its value, and those of the path."""
    found = asked("partition", "t", *SPLITS[split])
    folder = Path(found["folder"])
    (row,) = query("SELECT * FROM summary", folder)
    assert set(SUMMARY.names) <= set(row)
    assert {key: found.get(key, "not there") for key in row} == row
    model = {"model": "edge-10m", "phase": "prefill", "batch": 1, "past": 0, "seq": 8}
    assert {key: found[key] for key in model} == model
    assert found["peak_buffer_bytes"] == max(
        (
            one["bytes"]
            for one in query(
                "SELECT sum(payload_bytes) AS bytes FROM transfers GROUP BY call_id, direction",
                folder,
            )
        ),
        default=0,
    )


def test_an_entry_of_compare_is_a_partition():
    (entry,) = asked("cutedge", "compare", "t", *SPLITS["described"], "--baseline", MIN_CUT)[
        "partitions"
    ]
    found, apart = asked("partition", "t", *SPLITS["described"]), ("version", "topological_cut")
    assert {key: entry[key] for key in found if key not in apart} == {
        key: value for key, value in found.items() if key not in apart
    }


def test_a_whole_model_lies_on_a_device_as_on_a_home_that_runs_it_all():
    home = asked("partition", "t", "--policy", "all-home", "--home", "rtx-4090")
    (cost,) = asked("cutedge", "cost", "t", "--device", "rtx-4090")["costs"]
    assert home["resident_bytes"] == {"rtx-4090": cost["resident_bytes"]}
    assert home["home_seconds"] == pytest.approx(cost["seconds"])


def test_the_seconds_of_a_partition_add_up():
    """Home, accelerators and transfers, one after another: run_seconds, in every table."""
    for split in ("described", "forgetful", "chip", "home"):
        found = asked("partition", "t", *SPLITS[split])
        parts = [found[key] for key in ("home_seconds", "accelerator_seconds", "seconds")]
        assert found["run_seconds"] == pytest.approx(sum(parts))
        assert found["seconds_per_token"] == pytest.approx(sum(parts) / 8)
        assert found["home_seconds"] == found["compute_seconds"][found["home"]]
    unknown = asked("partition", "t", *SPLITS["undescribed"])
    assert [unknown[key] for key in ("seconds", "home_seconds", "run_seconds")] == [None] * 3


@pytest.mark.slow
def test_a_sweep_has_a_partitions_names_and_values():
    sweep = ("edge-10m", "--seq", "8", "--jobs", "1")
    for split in ("described", "forgetful", "chip", "home"):
        options = SPLITS[split]
        found = asked("partition", "t", *options)
        done = invoke("cutedge", "sweep", *sweep, *options, "--out", f"sw-{split}")
        assert done.returncode == 0, done.stderr
        (row,) = query("SELECT * FROM sweep", f"sw-{split}")
        shared = set(SWEEP.names) & set(found) - {"cycles"}
        assert {"calls", "seconds", "run_seconds", "peak_buffer_bytes", "coverage"} <= shared
        for key in shared:
            known = row[key]
            same = pytest.approx(known, rel=1e-12) if isinstance(known, float) else known
            assert found[key] == same, (split, key)
        assert row["home_resident_bytes"] == found["resident_bytes"].get(found["home"], 0)
        away = sum(n for name, n in found["resident_bytes"].items() if name != found["home"])
        assert row["accelerator_resident_bytes"] == away
        assert (row["cycles"] or 0) == sum(found["cycles"].values())


# --- what else there is ---------------------------------------------------------------------------


def test_the_costs_of_a_trace_are_the_sums_of_their_table():
    for device in ("rtx-4090", "chip-8x8"):
        (found,) = asked("cutedge", "cost", "t", "--device", device)["costs"]
        (row,) = query(
            "SELECT sum(seconds) AS seconds, sum(cycles) AS cycles, sum(tiles) AS tiles, "
            "sum(flops) FILTER (flops_status <> 'zero') AS flops, "
            "sum(read_bytes + write_bytes) FILTER (kind NOT IN "
            "('view', 'constant', 'input', 'output')) AS traffic_bytes, "
            "sum(costs.seconds) FILTER (bound = 'memory') AS by_memory "
            "FROM costs JOIN ops USING (op_id)"
        )
        by_memory = row.pop("by_memory")
        assert found["seconds_by_bound"].get("memory") == by_memory or by_memory == pytest.approx(
            found["seconds_by_bound"]["memory"]
        )
        assert {key: found[key] for key in row} == pytest.approx(row)
        assert sum(one["traffic_bytes"] for one in found["by_kind"]) == found["traffic_bytes"]


def test_coverage_is_of_flops_everywhere_and_that_of_seconds_has_its_own_name():
    traced = asked("trace", "edge-10m", "--seq", "8", "--out", "t")
    found = asked("partition", "t", *SPLITS["chip"])
    (cost,) = asked("cutedge", "cost", "t", "--device", "chip-8x8")["costs"]
    assert traced["coverage"] == found["coverage"] == 1
    assert "coverage" not in cost
    assert 0 < cost["seconds_coverage"] < 1  # of softmax and the like a chip has no seconds


@pytest.mark.slow
def test_active_parameters_are_those_that_a_token_meets():
    """A token goes to 2 of 4 experts and looks up a row of 100: the rest of these are idle."""
    small = {
        "model_type": "mixtral",
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 100,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    Path("small.json").write_text(json.dumps(small))
    traced = asked("trace", "small.json", "--seq", "16", "--out", "m")  # as params traces it
    params = asked("cutedge", "params", "small.json")
    for key in ("parameters", "active_parameters"):
        assert traced[key] == params[key]
    experts = 4 * 3 * 32 * 64
    assert traced["active_parameters"] == traced["parameters"] - experts // 2 - 100 * 32
    said = f"{traced['active_parameters']:,} are active for one token"
    assert said in invoke("cutedge", "params", "small.json").stdout


def test_limits_say_beside_active_parameters_what_linears_have_of_them():
    """Norms are active, and no linear's; the table of the embedding is the head's too."""
    traced = asked("trace", "edge-10m", "--seq", "8", "--out", "t")
    params = asked("cutedge", "params", "edge-10m")
    limits = asked("cutedge", "limits", "edge-10m")
    for key in ("parameters", "active_parameters"):
        assert limits[key] == params[key] == traced[key]
    parts = params["parts"]
    linear = parts["attention"]["total"] + parts["ffn"]["total"] + params["lm_head_tied_params"]
    assert limits["activated_params"] == limits["stored_params"] == linear
    assert linear < limits["active_parameters"]


PRODUCT = """
import torch

class Product(torch.nn.Module):
    def forward(self, x, w):
        return x @ w

def product():
    return Product(), {"x": torch.zeros(16, 24), "w": torch.zeros(24, 40)}
"""


def test_a_product_takes_as_long_as_a_partition_with_it_alone():
    """`gemm` adds the link's seconds to the chip's, as `partition` does: one rule, one name."""
    Path("alone.py").write_text(PRODUCT)
    done = invoke("trace", "alone.py:product", "--out", "alone")
    assert done.returncode == 0, done.stderr
    found = asked("partition", "alone", "--policy", "host-chip", *CHIP)
    gemm = asked("cutedge", "gemm", "16", "24", "40", "--device", "chip-8x8")
    assert gemm["link_seconds"] == pytest.approx(found["seconds"])
    assert gemm["seconds"] == found["accelerator_seconds"] == found["compute_seconds"]["chip-8x8"]
    assert gemm["run_seconds"] == pytest.approx(found["run_seconds"] - found["home_seconds"])
    assert gemm["run_seconds"] == pytest.approx(gemm["seconds"] + gemm["link_seconds"])
    assert gemm["overlapped_seconds"] == max(gemm["seconds"], gemm["link_seconds"])
    asked("cutedge", "cost", "alone", "--device", "chip-8x8")
    (row,) = query("SELECT cycles, tiles, utilisation, seconds FROM costs WHERE tiles > 0", "alone")
    assert {key: gemm[key] for key in row} == row


# --- no second name -------------------------------------------------------------------------------


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(the key that it stands under, number) of all figures of a JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def telling(value: float) -> bool:
    """Whether a figure is hardly that of two things by chance."""
    return (
        value > 10_000
        if isinstance(value, int)
        else 0 < value < 1 and f"{value:.9g}" != f"{value:g}"
    )


def test_no_figure_of_a_table_has_another_name_in_json():
    """Whatever is equal to a column of the run's summary is called by that column."""
    for split in ("described", "forgetful", "chip"):
        found = asked("partition", "t", *SPLITS[split])
        (row,) = query("SELECT * FROM summary", found["folder"])
        names: dict[float, set[str]] = {}
        for column, value in row.items():
            for _, figure in leaves(value):
                names.setdefault(figure, set()).add(column)
        for key, number in found.items():
            if isinstance(number, int | float) and telling(number) and number in names:
                assert key in names[number], (split, key, number)


def test_what_is_predicted_and_what_is_measured_of_a_call_have_one_name():
    """Seconds of a call's transfers join to those that were measured, and so do the bytes."""
    shared = set(CALLS.names) & set(MEASURED_CALLS.names)
    sums = {f"{way}_{what}_bytes" for way in ("sent", "received") for what in ("payload", "wire")}
    assert shared == {"call_id", "device", "label", "seconds", *sums}


def test_the_same_column_is_of_the_same_type_in_all_tables():
    """But for a run of several devices, which has a map where a point and an op have a number."""
    maps = {"resident_bytes", "compute_seconds", "cycles"}
    types: dict[str, set[str]] = {}
    for schema in SCHEMAS.values():
        for field in schema:
            if field.name not in maps:
                text = str(field.type).replace("int32", "int").replace("int64", "int")
                types.setdefault(field.name, set()).add(text)
    assert {name: found for name, found in types.items() if len(found) > 1} == {}
